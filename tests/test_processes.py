"""What processes tell each other, without the others."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import TINY

from jaxselftrain.checkpoints import Checkpoints, DamagedError, damage_found
from jaxselftrain.errors import UserError
from jaxselftrain.plan.topologies import StandIn
from jaxselftrain.processes import any_of, gather, is_loss, join, least_of, own_rows, pack, several_by, together, unpack
from jaxselftrain.sections import Mesh
from jaxselftrain.sharding import check_mesh, make_mesh


@pytest.mark.parametrize(
    "environment", [{"JAX_NUM_PROCESSES": "2"}, {"SLURM_STEP_NUM_TASKS": "4"}, {"TPU_WORKER_HOSTNAMES": "a,b"}]
)
def test_the_environment_says_that_there_are_several_processes(environment):
    assert several_by(environment) == next(iter(environment))


@pytest.mark.parametrize(
    "environment", [{}, {"JAX_NUM_PROCESSES": "1"}, {"SLURM_STEP_NUM_TASKS": "x"}, {"TPU_WORKER_HOSTNAMES": "a"}]
)
def test_a_process_alone_joins_nobody(environment):
    assert several_by(environment) is None
    assert several_by(environment | {"JAX_NUM_PROCESSES": "3"}) == "JAX_NUM_PROCESSES"
    join(environment)
    assert not any_of(False) and any_of(True) and least_of(3) == 3 and together(lambda: 5) == 5
    assert own_rows(make_mesh(Mesh(data=-1)), "questions", 16) == range(16)


@pytest.mark.parametrize(
    "missing",
    [
        {"JAX_PROCESS_ID": "0"},
        {"JAX_COORDINATOR_ADDRESS": "x:1"},
        {"JAX_PROCESS_ID": "a", "JAX_COORDINATOR_ADDRESS": "x:1"},
        {"JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "nowhere"},
    ],
)
def test_half_of_an_address_is_one_sentence(missing):
    with pytest.raises(UserError, match="JAX_NUM_PROCESSES = 2 says .* JAX_PROCESS_ID must say which"):
        join({"JAX_NUM_PROCESSES": "2", **missing})


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.integers(0, 2**31))
def test_what_is_packed_and_joined_is_unpacked_bit_for_bit(owners, seed):
    """Row q belongs to process owners[q]; each packs its own, and all unpack what all have sent."""
    Q, random = len(owners), np.random.default_rng(seed)
    whole = [
        np.arange(Q),
        random.standard_normal((Q, 3)).astype(np.float32),
        random.integers(0, 2**64, Q, np.uint64),
        random.random((Q, 2, 2)) < 0.5,
        np.full(Q, np.nan),
    ]
    mine = [[x[[q for q in range(Q) if owners[q] == process]] for x in whole] for process in range(4)]
    sent = np.concatenate([pack(arrays, most=max(map(owners.count, range(4)))) for arrays in mine])
    rows, *arrays = unpack(sent, mine[0])
    assert sorted(rows) == list(range(Q))
    for x, want in zip(arrays, whole[1:], strict=True):
        assert x.dtype == want.dtype and x[np.argsort(rows)].tobytes() == want.tobytes()


@pytest.mark.parametrize("count", ["two", "0", "-1", "2.5"])
def test_a_count_that_is_none_is_one_sentence(count):
    with pytest.raises(UserError, match=f"JAX_NUM_PROCESSES = '{count}' must be the number of processes, 1 or more"):
        join({"JAX_NUM_PROCESSES": count})


def test_a_loss_of_a_process_is_no_damage_and_no_failed_save(monkeypatch):
    lost = RuntimeError("Gloo AllGather failed: [external/gloo] Read error [127.0.0.1]:43699: Connection reset by peer")
    with pytest.raises(DamagedError), damage_found():
        raise lost
    monkeypatch.setattr("jaxselftrain.processes.are_several", lambda: True)
    for context in (damage_found(), Checkpoints._told(None)):
        with pytest.raises(RuntimeError, match="Gloo"), context:
            raise lost
    for other in (OSError("Connection refused by a bucket"), RuntimeError("out of memory")):
        assert is_loss(lost) and not is_loss(other)


def test_machines_that_have_not_joined_are_one_sentence(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(UserError, match="devices of 4 machines, whose processes have not joined; start them with launch/"):
        make_mesh(Mesh(data=-1))


def test_a_question_stays_in_one_process():
    """Devices as a TPU slice numbers them: those of a process are neighbours on the chip, not in number."""
    devices = [StandIn(i, "tpu", process_index=i % 4 // 2) for i in range(8)]
    mesh = make_mesh(Mesh(tensor=2), devices)
    assert [[device.process_index for device in group] for group in mesh.devices.reshape(-1, 2)] == [[0, 0]] * 2 + [[1, 1]] * 2
    with pytest.raises(
        UserError, match="8 devices work on one question.* of the 2 processes.* divides the 4 devices of a process"
    ):
        check_mesh(make_mesh(Mesh(samples=2, tensor=4), devices), TINY)
    check_mesh(mesh, TINY)


def test_rows_that_nobody_has_are_zero():
    found = gather([2, 0], {"x": np.asarray([[1.5], [2.5]])}, most=2, total=4)
    assert found["x"].tolist() == [[2.5], [0], [1.5], [0]]
