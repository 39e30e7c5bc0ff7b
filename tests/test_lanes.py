"""Lanes: every sample is worked on once, by rows that wait only where nothing is left for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxselftrain.lanes import Lanes, first_lanes, may_move, move, take

taken = jax.jit(take, static_argnames=("N", "shards"))
moved = jax.jit(move, static_argnames=("N", "shards"))
movable = jax.jit(may_move, static_argnames=("N", "shards"))


def work(length_QN, wanted_Q=None, *, W, shards, moving=True):
    """Plays sampling with given lengths, checking every tick. Gives (ticks, {(question, sample): ticks spent on it})."""
    wanted_Q = np.ones(len(length_QN), bool) if wanted_Q is None else wanted_Q
    Q, N = length_QN.shape
    each = Q // shards
    lanes, age_QW = first_lanes(jnp.asarray(wanted_Q), N=N, W=W, shards=shards), np.zeros((Q, W), int)
    spent, ticks = {}, 0
    reads_Q = np.arange(Q)  # whose prompt each lane holds, as copies between lanes have it
    while (np.asarray(lanes.sample_QW) < N).any():
        if moving and movable(lanes, N=N, shards=shards):
            lanes, source_Q = moved(lanes, N=N, shards=shards)
            reads_Q = reads_Q[np.asarray(source_Q) + np.arange(Q) // each * each]
        question_Q = np.asarray(lanes.question_Q) + np.arange(Q) // each * each
        sample_QW, next_Q = np.asarray(lanes.sample_QW), np.asarray(lanes.next_Q)
        assert (question_Q == reads_Q).all()
        assert all(question_Q[q] == q for q in range(Q) if next_Q[q] < N)  # where others find its prompt
        idle_Q = (sample_QW == N).all(1)
        assert not moving or not any(
            idle_Q[q] and (next_Q[q // each * each : q // each * each + each] < N).any() for q in range(Q)
        )
        busy_QW = sample_QW < N
        for q, w in np.argwhere(busy_QW):
            key = int(question_Q[q]), int(sample_QW[q, w])
            spent[key] = spent.get(key, 0) + 1
            assert spent[key] == age_QW[q, w] + 1  # never two rows at one sample
        age_QW = np.where(busy_QW, age_QW + 1, 0)
        done_QW = busy_QW & (age_QW >= length_QN[question_Q[:, None], np.minimum(sample_QW, N - 1)])
        age_QW = np.where(done_QW, 0, age_QW)
        lanes = taken(lanes, jnp.asarray(done_QW | ~busy_QW), N=N, shards=shards)
        ticks += 1
    return ticks, spent


@settings(deadline=None)
@given(st.data(), st.sampled_from([(1, 1), (3, 1), (4, 2), (6, 2)]), st.sampled_from([(4, 1), (4, 2), (5, 3), (3, 3)]))
def test_every_sample_is_worked_on_once_and_no_lane_waits(data, devices, samples):
    (Q, shards), (N, W) = devices, samples
    lengths = st.lists(st.integers(1, 9), min_size=Q * N, max_size=Q * N)
    length_QN = np.asarray(data.draw(lengths)).reshape(Q, N)
    wanted_Q = np.asarray(data.draw(st.lists(st.booleans(), min_size=Q, max_size=Q)))
    ticks, spent = work(length_QN, wanted_Q, W=W, shards=shards)
    assert spent == {(q, n): length_QN[q, n] for q in np.flatnonzero(wanted_Q) for n in range(N)}
    assert length_QN[wanted_Q].max(initial=0) <= ticks <= length_QN[wanted_Q].sum()


@pytest.mark.parametrize(("W", "bound"), [(1, 1.1), (2, 1.2)])
def test_lanes_help_a_question_with_longer_responses(W, bound):
    length_QN = np.full((8, 16), 2)
    length_QN[3] = 20
    with_help, _ = work(length_QN, W=W, shards=1)
    alone, _ = work(length_QN, W=W, shards=1, moving=False)
    assert alone == 16 // W * 20
    assert with_help <= bound * (length_QN.sum() / (8 * W) + 20)


def test_several_idle_lanes_spread_over_the_questions_with_most_left():
    N = 9
    lanes = Lanes(jnp.arange(5), jnp.asarray([[N], [N], [N], [4], [2]]), jnp.asarray([N, N, N, 5, 3]))
    after, source_Q = move(lanes, N=N, shards=1)
    assert source_Q.tolist() == [4, 3, 4, 3, 4] and after.question_Q.tolist() == source_Q.tolist()
    assert after.sample_QW[:, 0].tolist() == [3, 5, 4, 4, 2] and after.next_Q.tolist() == [N, N, N, 6, 5]
