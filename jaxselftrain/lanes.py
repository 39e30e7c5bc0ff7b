"""Says which of the sampler's rows works on which sample: a row whose response has ended takes another one at once.

Every question begins as a lane of its own: W rows that share one copy of its prompt's keys and values and take its samples
in turn. When a question has no sample left and all rows of its lane are idle, the lane moves on as a whole, so that prompt
attention stays one grouped product, to the question of the same device that has most samples left, and helps. So rows are
idle at the end alone, also where one question's responses are much longer than the others'.

All arrays lead with Q, for the lanes as well as for the questions, and are split over devices by it; `shards` says over how
many. Nothing here crosses devices, but for one yes or no of `may_move`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lanes:
    """Who works on what. As long as a question has samples left, the lane of its own number works on it."""

    question_Q: jax.Array  # of each lane: its question's place among those of the same device
    sample_QW: jax.Array  # of each row: the sample it works on; N: none, it is idle
    next_Q: jax.Array  # of each question: the first sample that no row has taken


def first_lanes(wanted_Q: jax.Array, *, N: int, W: int, shards: int) -> Lanes:
    """Every lane at its own question, its rows at the first W of N samples, or idle where the question is not wanted."""
    Q = len(wanted_Q)
    return Lanes(
        question_Q=jnp.tile(jnp.arange(Q // shards), shards),
        sample_QW=jnp.where(wanted_Q[:, None], jnp.arange(W), N),
        next_Q=jnp.where(wanted_Q, W, N),
    )


def take(lanes: Lanes, free_QW: jax.Array, *, N: int, shards: int) -> Lanes:
    """Free rows take their questions' next samples, in the order of lanes and rows, or are idle where none is left."""

    def own(lanes, free_QW):
        count_Q = free_QW.sum(1)
        same_QQ = lanes.question_Q[:, None] == lanes.question_Q
        before_Q = (jnp.tril(same_QQ, -1) * count_Q).sum(1)  # rows of earlier lanes at the same question
        first_Q = lanes.next_Q[lanes.question_Q] + before_Q
        new_QW = jnp.minimum(first_Q[:, None] + jnp.cumsum(free_QW, 1) - 1, N)
        taken_Q = (count_Q * (lanes.question_Q == jnp.arange(len(count_Q))[:, None])).sum(1)
        return Lanes(
            question_Q=lanes.question_Q,
            sample_QW=jnp.where(free_QW, new_QW, lanes.sample_QW),
            next_Q=jnp.minimum(lanes.next_Q + taken_Q, N),
        )

    return on_each_device(own, shards, lanes, free_QW)


def may_move(lanes: Lanes, *, N: int, shards: int) -> jax.Array:
    """Whether some lane has nothing to do and another question of its device has samples left."""

    def own(lanes):
        return (_idle(lanes, N).any() & (lanes.next_Q < N).any())[None]

    return on_each_device(own, shards, lanes).any()


def move(lanes: Lanes, *, N: int, shards: int) -> tuple[Lanes, jax.Array]:
    """(lanes after idle ones have moved on and their rows have taken samples, the place of the lane to copy the prompt from).

    The place is among the lanes of the same device; it is the lane's own where it stays.
    """

    def own(lanes):
        left_Q = N - lanes.next_Q
        moves_Q = _idle(lanes, N) & (left_Q > 0).any()
        most_left_Q = jnp.argsort(-left_Q)
        turn_Q = (jnp.cumsum(moves_Q) - 1) % jnp.maximum((left_Q > 0).sum(), 1)
        to_Q = most_left_Q[turn_Q]
        moved = replace(lanes, question_Q=jnp.where(moves_Q, to_Q, lanes.question_Q))
        return moved, jnp.where(moves_Q, to_Q, jnp.arange(len(left_Q)))

    lanes, source_Q = on_each_device(own, shards, lanes)
    return take(lanes, lanes.sample_QW == N, N=N, shards=shards), source_Q


def on_each_device(f: Callable, shards: int, *trees: Any) -> Any:
    """f of each device's own part of arrays that are split over their first axis; the parts' results joined again."""
    parts = jax.tree.map(lambda x: x.reshape(shards, -1, *x.shape[1:]), trees)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), jax.vmap(f)(*parts))


def _idle(lanes: Lanes, N: int) -> jax.Array:
    return (lanes.sample_QW == N).all(1)
