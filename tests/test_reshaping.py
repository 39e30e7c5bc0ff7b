"""Checkpoints across shapes: saved on one mesh and restored on another, the arrays and the next loss are the same."""

import math
import signal
from functools import cache

import jax
import numpy as np
import pytest
from runs import lines, make_home, start, wait_for_step
from tiny import (
    TINY,
    equal_bits,
    graph,
    mesh_of,
    place,
    prompts,
    rollouts,
    state,
    tiny_config,
    votes,
)

from jaxselftrain import sections
from jaxselftrain.checkpoints import Checkpoints, Saved
from jaxselftrain.sharding import named
from jaxselftrain.step import (
    abstract_state,
    compile_step,
    feedback_shardings,
    prompt_shardings,
    rollout_shardings,
    state_shardings,
)

AXES = ("data", "fsdp", "samples", "tensor")
EIGHT, ONE = (2, 2, 1, 2), (1, 1, 1, 1)
CHANGES = [
    (EIGHT, ONE),
    (EIGHT, (1, 2, 1, 1)),
    (EIGHT, (2, 4, 1, 1)),
    (EIGHT, (2, 1, 4, 1)),  # each device has one sample of four questions
    ((2, 1, 4, 1), (1, 4, 1, 2)),
    (ONE, EIGHT),
]


@cache
def program_of(mesh_shape):
    config = tiny_config(mesh=dict(zip(AXES, mesh_shape, strict=True)))
    mesh = mesh_of(config, math.prod(mesh_shape))
    return config, mesh, compile_step(graph(mesh), config, TINY, mesh)


def one_update(mesh_shape, given_state, given_rollouts, feedback):
    """(state, rollouts, loss) after a call of the step; state and rollouts are given away."""
    _, mesh, program = program_of(mesh_shape)
    feedback = jax.device_put(feedback, feedback_shardings(mesh))
    new_state, new_rollouts, metrics = program(
        given_state, given_rollouts, feedback, jax.device_put(prompts(draw=1), prompt_shardings(mesh))
    )
    return new_state, new_rollouts, float(metrics["loss"])


@pytest.fixture(scope="module")
def saved_on(tmp_path_factory):
    """Mesh shape -> (folder, what was saved, the loss of the update that follows there): a state with moments, real rollouts."""

    @cache
    def save(mesh_shape):
        config, mesh, _ = program_of(mesh_shape)
        trained, sampled, _ = one_update(mesh_shape, state(config, mesh), *place(mesh, rollouts(), votes(), prompts())[:2])
        feedback = jax.tree.map(np.asarray, votes(seed=7))
        folder = tmp_path_factory.mktemp("saved") / "checkpoints"
        checkpoints = Checkpoints(folder, sections.Checkpoint())
        checkpoints.save(1, Saved(trained, sampled, feedback, {"step": 1}), metrics={})
        checkpoints.wait()
        checkpoints.close()
        kept = jax.tree.map(np.array, (trained, sampled))  # copies: the step is given the arrays
        return folder, kept, feedback, one_update(mesh_shape, trained, sampled, feedback)[2]

    return save


def restored_on(mesh_shape, folder):
    config, mesh, _ = program_of(mesh_shape)
    like = abstract_state(config, TINY), jax.eval_shape(rollouts)
    at = state_shardings(config, TINY, mesh), rollout_shardings(mesh)
    asked = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), like, at)
    checkpoints, said = Checkpoints(folder, sections.Checkpoint()), []
    got = checkpoints.restore_newest(*asked, jax.tree.map(np.asarray, votes()), say=said.append)
    checkpoints.close()
    assert got is not None and not said
    placed = jax.tree.map(lambda x, to: x.sharding == to, (got.state, got.rollouts), at)
    assert all(jax.tree.leaves(placed))
    return got


@pytest.mark.parametrize(("before", "after"), CHANGES, ids=str)
def test_a_checkpoint_is_the_same_on_another_mesh(saved_on, before, after):
    folder, kept, feedback, loss = saved_on(before)
    got = restored_on(after, folder)
    assert equal_bits((got.state, got.rollouts), kept) and equal_bits(got.feedback, feedback)
    assert np.asarray(got.state.moments[1][0].mu["w_q_LDHK"]).any() and int(got.state.count) == 1
    *_, again = one_update(after, got.state, got.rollouts, got.feedback)
    assert abs(again - loss) <= 1e-5 * max(1, abs(loss))


def test_the_whole_way_round_gives_the_first_arrays_back(saved_on, tmp_path):
    folder, kept, feedback, _ = saved_on(EIGHT)
    for number, mesh_shape in enumerate([(1, 4, 1, 2), (2, 1, 4, 1), ONE, EIGHT]):
        got = restored_on(mesh_shape, folder)
        folder = tmp_path / str(number)
        checkpoints = Checkpoints(folder, sections.Checkpoint())
        checkpoints.save(1, got, metrics={})
        checkpoints.wait()
        checkpoints.close()
        assert equal_bits((got.state, got.rollouts), kept) and equal_bits(got.feedback, feedback)
    _, mesh, _ = program_of(EIGHT)
    assert got.state.params["w_gate_LDF"].sharding == named(mesh, None, "fsdp", "tensor")


def test_a_run_is_stopped_on_eight_devices_and_goes_on_on_two(tmp_path):
    """With other micro-batches and rows too: all of these are free to change."""
    home = make_home(tmp_path, questions=30, held_out=6, first_held_out=28, evaluate={"questions": None}, train={"steps": 4})
    arguments = ["train", str(home / "config.yaml"), "rollout.questions=8", "checkpoint.every=1"]
    process = start(*arguments, "mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2", "train.steps=400", devices=8)
    wait_for_step(home / "run", 2, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    stopped = lines(home / "run")[-1]["step"]
    changed = ("mesh.data=1", "mesh.fsdp=1", "mesh.samples=2", "update.micro_batches=2", "rollout.rows=16")
    process = start(*arguments, *changed, f"train.steps={stopped + 2}", devices=2)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0 and "is damaged" not in err, err
    for told in ("mesh.data: 2 -> 1", "mesh.samples: 1 -> 2", "micro_batches: 1 -> 2", f"resuming after step {stopped}"):
        assert told in err
    rows = lines(home / "run")
    assert [row["step"] for row in rows] == list(range(1, stopped + 3))
    assert all(np.isfinite(row["loss"]) for row in rows)
