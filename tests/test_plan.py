"""Plans: names of topologies, collectives against known bytes, memory that adds up; with libtpu, all kinds of chip."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxselftrain.cli import main
from jaxselftrain.config import load_config
from jaxselftrain.errors import UserError
from jaxselftrain.plan.account import device_bytes, share_of
from jaxselftrain.plan.collectives import collectives
from jaxselftrain.plan.command import find_architecture
from jaxselftrain.plan.fit import changes, meshes, smallest_change
from jaxselftrain.plan.phases import decode_rounds, received_by_phase
from jaxselftrain.plan.planning import SPARE, Job, decided, estimate, make_plan, open_job
from jaxselftrain.plan.topologies import GPUS, TPUS, StandIn, Topology, parse_topology
from jaxselftrain.sharding import make_mesh
from jaxselftrain.step import abstract_state, state_shardings

CONFIGS = Path(__file__).parents[1] / "configs"
GPU_CONFIGS = {
    "qwen2.5_math_7b_h200.yaml": "gpu:h200x1",
    "qwen2.5_7b_80gb.yaml": "gpu:h100x1",
    "qwen2.5_1.5b_80gb.yaml": "gpu:a100-80gx1",
    "qwen2.5_1.5b_24gb.yaml": "gpu:l4x1",
}
TPU_CONFIGS = {
    "qwen2.5_1.5b_v5e-8.yaml": "v5e-8",
    "qwen2.5_math_7b_v5e-64.yaml": "v5e-64",
    "qwen2.5_math_7b_v5p-16.yaml": "v5p-16",
    "qwen2.5_math_7b_v6e-32.yaml": "v6e-32",
    "qwen2.5_32b_v5p-128.yaml": "v5p-128",
}
needs_compiler = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu, the TPU's compiler, is not here")


def model_of(config, name):
    return find_architecture(config, CONFIGS / name, None)[0]


def stand_in_job(name, topology, *overrides, width=1024):
    """A Job on devices in name only."""
    config = load_config(CONFIGS / name, overrides)
    place = parse_topology(topology)
    devices = [StandIn(i, place.platform) for i in range(place.devices)]
    return decided(Job(config, model_of(config, name), place, devices, width))


@pytest.mark.parametrize(
    ("name", "chips", "devices", "resolved"),
    [
        ("v5e:4x4", 16, 16, "v5e:4x4"),
        ("V5E:16x16", 256, 256, "v5e:16x16"),
        ("v5litepod-8", 8, 8, "v5e:2x4"),
        ("v5p-16", 8, 8, "v5p:2x2x2"),
        ("v5p-128", 64, 64, "v5p:4x4x4"),
        ("v6e-32", 32, 32, "v6e:4x8"),
        ("v4-8", 4, 8, "v4:2x2x1"),
        ("tpu7x:2x2x1", 4, 8, "tpu7x:2x2x1"),
        ("gpu:h200x1", 1, 1, "gpu:h200x1"),
        ("gpu:a100-80gx8", 8, 8, "gpu:a100-80gx8"),
        ("gpu:rtx4090x2", 2, 2, "gpu:rtx4090x2"),
        ("cpu", 1, 1, "cpu"),
    ],
)
def test_names_of_topologies(name, chips, devices, resolved):
    found = parse_topology(name)
    assert (found.chips, found.devices, found.name) == (chips, devices, resolved)
    assert found.device_memory * devices == found.chip.memory * chips


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("v9:2x2", "topology v9:2x2 is not known"),
        ("v5x:2x2", "did you mean v5"),
        ("v5e", "topology v5e is not known; name one like v5e:4x4"),
        ("v5e:2x2x2", "a v5e has 2 sides, such as v5e:4x4"),
        ("v5p:4x4", "a v5p has 3 sides"),
        ("v5p-17", "slices are v5p-8, v5p-16"),
        ("v5e:0x4", "a v5e has 2 sides"),
        ("gpu:h20x1", "no GPU 'h20' is known here (did you mean h200?)"),
        ("gpu:h200x0", "the number of GPUs is 1 to 4096, not 0"),
        ("gpu:h200x100000000000", "the number of GPUs is 1 to 4096"),
        ("", "is not known"),
    ],
)
def test_a_wrong_topology_is_one_sentence(name, part):
    with pytest.raises(UserError) as error:
        parse_topology(name)
    assert part in str(error.value)


HLO = """HloModule jit_step

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%x, %y)
}

%all-reduce-scatter.1 (input: bf16[16,32]) -> bf16[2,32] {
  %all-reduce.9 = bf16[16,32]{1,0:T(8,128)(2,1)} all-reduce(%input), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %g = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather(%a), channel_id=1, replica_groups=mesh['x'=4,'y'=2] {'x'}, \
metadata={op_name="jit(step)/update/while/body/gradient/dot"}
  %again = bf16[64,128]{1,0} all-gather(%a), channel_id=1, replica_groups=mesh['x'=4,'y'=2] {'x'}
  %f = bf16[2,32]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(step)/update/scoring/x"}
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  ROOT %t = (s32[]{:T(128)}, f32[8]) tuple(%next, %z), backend_config={}
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(56)
  %counter = s32[]{:T(128)} get-tuple-element(%p), index=0
  ROOT %lt = pred[]{:T(512)} compare(%counter, %limit), direction=LT
}

%draw (p: (s32[])) -> (s32[]) {
  %w = (s32[], f32[8]) while(%t), condition=%inner, body=%layers, backend_config={"known_trip_count":{"n":"3"}}
}

%layers (p: (s32[])) -> (s32[]) {
  %s = (bf16[8,4], bf16[8,4], u32[], u32[]) collective-permute-start(%a), channel_id=4, source_target_pairs={{0,1},{1,0}}
}

%inner (p: (s32[])) -> pred[] {
  ROOT %x = pred[] custom-call(%p)
}

%until_done (p: (s32[])) -> pred[] {
  %seen = pred[] all-reduce(%p), channel_id=5, replica_groups=[1,8]<=[8], to_apply=%add
  ROOT %and = pred[] and(%seen, %seen)
}

%learn (p: f32[8]) -> f32[8] {
  %loop = (s32[], f32[8]) while(%t), condition=%condition, body=%body
}

%skip (p: f32[8]) -> f32[8] {
  ROOT %same = f32[8] copy(%p)
}

ENTRY %main (a: f32[8]) -> f32[8] {
  %c = f32[8] conditional(%i, %a, %a), branch_computations={%skip, %learn}
  %r = (f32[10], f32[6]) all-reduce(%a, %b), channel_id=7, replica_groups=[2,4]<=[8], to_apply=%add
  %d = (s32[]) while(%t), condition=%until_done, body=%draw
}
"""


def test_collectives_of_a_program_in_text():
    kinds = sorted((one.kind, one.times, one.bytes, one.loop) for one in collectives(HLO))
    assert (
        kinds
        == [
            ("all-gather", 28, 64 * 128 * 2 * 3 / 4, None),
            ("all-reduce", 1, 2 * 16 * 4 * 3 / 4, None),
            ("all-reduce", 1, 2 * 1 * 7 / 8, "draw"),
            ("all-reduce", 1, 2 * 16 * 4 * 3 / 4, ""),
            ("collective-permute", 3, 8 * 4 * 2, "draw"),
            ("reduce-scatter", 28, 16 * 32 * 2 * 7 / 8, None),
        ]
        or kinds
    )
    received = received_by_phase(collectives(HLO), rounds=100)
    assert received["decoding"]["collective-permute"] == 100 * 3 * 64
    assert received["gradient"] == {"all-gather": 28 * 12288} and received["scoring"] == {"reduce-scatter": 28 * 896}


def test_collectives_of_a_program_compiled_for_eight_devices():
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("x",))
    split, whole = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())

    def program(w_LDF, x_D):
        def layer(x_D, w_DF):
            with jax.named_scope("update"):
                w_DF = jax.lax.with_sharding_constraint(w_DF, whole)
            return jnp.tanh(x_D @ w_DF), None

        return jax.lax.scan(layer, x_D, w_LDF)[0]

    at = NamedSharding(mesh, PartitionSpec(None, "x"))
    shape = jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=at), jax.ShapeDtypeStruct((64,), jnp.float32, sharding=whole)
    text = jax.jit(program).lower(*shape).compile().as_text()
    total = sum(one.bytes * one.times for one in collectives(text) if one.kind == "all-gather")
    assert total == 5 * 64 * 64 * 4 * 7 / 8
    summed = jax.jit(lambda x: x.sum(0)).lower(jax.ShapeDtypeStruct((8, 100), jnp.float32, sharding=split)).compile().as_text()
    assert [(one.kind, one.bytes) for one in collectives(summed)] == [("all-reduce", 2 * 100 * 4 * 7 / 8)]


@pytest.mark.parametrize("name", GPU_CONFIGS)
def test_configs_for_one_gpu_fit_by_analysis(name):
    job = stand_in_job(name, GPU_CONFIGS[name])
    found = make_plan(job)
    lines = found.account.lines()
    assert found.fits and found.peak <= (1 - SPARE) * job.topology.device_memory
    assert sum(lines.values()) == pytest.approx(found.peak) and min(lines.values()) > 0
    state = abstract_state(job.config, job.architecture)
    exact = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((state.params, state.moments))) + 4  # and the seed
    assert lines["weights"] + lines["optimizer"] == exact + state.count.dtype.itemsize
    assert all(phase.seconds > 0 for phase in found.phases.values())


def test_states_fall_as_the_devices_grow():
    sizes = {}
    for fsdp, tensor in ((2, 4), (4, 4), (8, 4), (16, 4), (32, 4), (64, 4)):
        settings = f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}", "mesh.data=1"
        config = load_config(CONFIGS / "qwen2.5_math_7b_v5e-64.yaml", settings)
        a = model_of(config, "qwen2.5_math_7b_v5e-64.yaml")
        mesh = make_mesh(config.mesh, [StandIn(i, "tpu") for i in range(fsdp * tensor)])
        at = state_shardings(config, a, mesh)
        state = abstract_state(config, a)
        placed = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), state, at)
        sizes[fsdp * tensor] = device_bytes((placed.params, placed.moments))
    for chips, size in sizes.items():
        assert size * chips == pytest.approx(12 * 7_615_616_512, rel=0.05), chips


def test_what_a_device_has_of_a_step():
    job = stand_in_job("qwen2.5_math_7b_v5e-64.yaml", "v5e-64")
    share = share_of(job.config, job.architecture, job.mesh, width=1024)
    assert (share.Q, share.N, share.M, share.pieces, share.weights, share.tensor, share.kv) == (1, 32, 32, 8, 64, 4, 4)
    assert decode_rounds(share) == math.ceil(32 / share.W) * 3072 - 1
    more = stand_in_job("qwen2.5_math_7b_v5e-64.yaml", "v5e-64", "update.micro_batches=16")
    assert sum(estimate(more).made["update"].values()) < sum(estimate(job).made["update"].values())
    apart = stand_in_job("qwen2.5_math_7b_v5e-64.yaml", "v5e-64", "rollout.gather_weights=false")
    together = estimate(job).made["sampling"]["weights gathered"]
    assert together == 2 * 7_615_616_512 / 4 > 5 * estimate(apart).made["sampling"]["weights gathered"]


def test_the_smallest_change_that_fits():
    job = stand_in_job("qwen2.5_1.5b_24gb.yaml", "gpu:l4x1", "update.micro_batches=2")
    found = make_plan(job)
    assert not found.fits
    change = smallest_change(found, say=lambda _: None)
    assert change is not None and change.plan.fits
    (override,) = change.overrides  # no other setting had to change, and half as many parts were not enough
    assert override.startswith("update.micro_batches=")
    count = int(override.partition("=")[2])
    before = [n for n in range(3, count) if 256 % n == 0]
    assert not any(
        make_plan(stand_in_job("qwen2.5_1.5b_24gb.yaml", "gpu:l4x1", f"update.micro_batches={n}")).fits for n in before
    )
    never = make_plan(stand_in_job("qwen2.5_math_7b_h200.yaml", "gpu:l4x1"))
    assert not never.fits and smallest_change(never, say=lambda _: None) is None


def test_meshes_are_all_ways_to_split_the_devices():
    found = list(meshes(8))
    assert len(found) == len(set(found)) == 20 and all(math.prod(mesh) == 8 for mesh in found)
    assert found[0] == (1, 8, 1, 1)
    job = stand_in_job("qwen2.5_1.5b_v5e-8.yaml", "v5e-8")
    assert next(changes(job)) == ("update.micro_batches=8",)


@pytest.mark.parametrize("name", TPU_CONFIGS)
def test_configs_for_tpus_split_evenly(name):
    job = stand_in_job(name, TPU_CONFIGS[name])
    assert estimate(job).estimate <= job.limit
    assert job.mesh.size == parse_topology(TPU_CONFIGS[name]).devices


def test_every_chip_has_its_figures():
    for chip in (*TPUS.values(), *GPUS.values()):
        assert chip.memory >= 2**34 and chip.rate > 1e14 and chip.bandwidth >= 3e11 and chip.link > 1e10


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--topology", "v9:1x1"], "topology v9:1x1 is not known"),
        (["--topology", "gpu:h100x3", "mesh.fsdp=2"], "does not make the 3 devices there are"),
        (["--topology", "gpu:h100x1", "--architecture", "absent.json"], "architecture file absent.json does not exist"),
        (["--topology", "gpu:h100x1", "--json", "absent/plan.json"], "--json absent/plan.json: there is no folder"),
        (["--topology", "gpu:h100x1", "--json", "/"], "--json / cannot be written: is a directory"),
        (["--topology", "gpu:h100x1", "--prompt-tokens", "40000"], "beyond the model's context of 32768"),
        (["--topology", "gpu:h100x1", "model.attention=splash"], "model.attention = splash needs a TPU"),
        (["--topology", "gpu:h100x1", "model.path=nobody/nothing"], "or name the model's config.json: --architecture FILE"),
        ([], "missing option"),
    ],
)
def test_a_wrong_plan_is_one_sentence(arguments, part, capsys):
    assert main(["plan", str(CONFIGS / "qwen2.5_1.5b_80gb.yaml"), *arguments]) == 2
    printed = capsys.readouterr()
    assert part in printed.err.lower() or part in printed.err
    assert printed.err.startswith("jaxselftrain: error: ") and printed.err.count("\n") == 1


def test_a_plan_that_is_refused_leaves_no_file(tmp_path):
    given = "--topology", "gpu:h100x1", "--prompt-tokens", "40000", "--json", str(tmp_path / "plan.json")
    assert main(["plan", str(CONFIGS / "qwen2.5_1.5b_80gb.yaml"), *given]) == 2
    assert not list(tmp_path.iterdir())


def test_stages_are_not_planned_as_if_they_were_none(capsys):
    assert main(["plan", str(CONFIGS / "ladder.yaml"), "--topology", "cpu"]) == 2
    assert "ladder.yaml has stages, each of them a run of its own" in capsys.readouterr().err


def test_without_the_tpus_compiler_the_extra_is_named(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "libtpu" else find(name, *more))
    assert main(["plan", str(CONFIGS / "qwen2.5_1.5b_v5e-8.yaml"), "--topology", "v5e-8"]) == 2
    assert "pip install -e '.[plan]'" in capsys.readouterr().err


def test_the_command_prints_and_writes_the_same_plan(tmp_path, capsys):
    out = tmp_path / "plan.json"
    command = ["plan", str(CONFIGS / "qwen2.5_1.5b_24gb.yaml"), "--topology", "gpu:l4x1", "--json", str(out)]
    assert main(command) == 0
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert "fits:" in printed and "by analysis" in printed and "prompt length: 320 tokens, by prompt.max_tokens" in printed
    assert written["fits"] and not written["compiled"] and sum(written["memory"].values()) == pytest.approx(written["peak"])
    assert written["parameters"] == 1_543_714_304 and list(written["phases"]) == ["prefill", "decoding", "gradient", "optimizer"]


SMALL = (
    "model.path=new://layers=2,width=256,heads=2",
    "model.compute_dtype=bfloat16",
    "rollout.max_tokens=24",  # one size of caches, so one loop to compile
)


def small_job(topology: Topology, *overrides: str) -> Job:
    config = load_config(CONFIGS / "qwen2.5_1.5b_v5e-8.yaml", [*SMALL, *overrides])
    return open_job(config, find_architecture(config, CONFIGS, None)[0], topology, 64)


@needs_compiler
@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x4", "v5p:2x2x2", "v6e:2x4", "tpu7x:2x2x1"])  # eight devices each
def test_a_plan_by_the_tpus_compiler(name):
    found = make_plan(small_job(parse_topology(name)))
    lines = found.account.lines()
    assert found.is_compiled and found.fits and sum(lines.values()) == pytest.approx(found.peak)
    assert lines["weights"] > 0 and lines["tile padding of these"] >= 0
    kinds = {one.kind for one in found.sent}
    assert "all-gather" in kinds and any(one.loop is not None for one in found.sent)
    assert found.phases["gradient"].received and found.phases["decoding"].received


@needs_compiler
def test_the_smallest_config_for_tpus_is_planned_for_real(tmp_path, capsys):
    """As its reader would, with the figures that the page shows."""
    name, out = "qwen2.5_1.5b_v5e-8", tmp_path / "plan.json"
    assert main(["plan", str(CONFIGS / f"{name}.yaml"), "--topology", "v5e:2x4", "--no-search", "--json", str(out)]) == 0
    assert "fits: " in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["compiled"] and found["fits"] and found["peak"] <= 0.9 * found["device_memory"]
    page = (CONFIGS.parent / "docs" / "scaling.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| [{name}]")]
    shown = [cell.strip() for cell in row.split("|")]
    assert float(shown[4]) == pytest.approx(found["peak"] / 2**30, rel=0.02)
    assert float(shown[7]) == pytest.approx(found["least_step_seconds"], rel=0.05)


@pytest.mark.long
@needs_compiler
def test_the_tpus_compiler_confirms_the_smallest_change():
    place = parse_topology("v5e:2x4")
    found = make_plan(small_job(place, "vote.samples=128"))
    limit = 0.8 * found.peak
    chip = replace(place.chip, memory=limit / (1 - SPARE))
    found = replace(found, job=replace(found.job, topology=replace(place, chip=chip)))
    assert found.is_compiled and not found.fits
    said: list[str] = []
    change = smallest_change(found, said.append)
    assert change is not None and change.plan.is_compiled and change.plan.peak <= limit
    assert said[-1] == f"does not fit; compiling with {' '.join(change.overrides)}"
