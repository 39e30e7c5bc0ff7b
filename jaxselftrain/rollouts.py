"""Prompts that go into the compiled step and rollouts that come out: N responses to each question, with their log-probs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxselftrain.confidence import no_confidence

Leaf = Any  # a jax.Array; in the trees that describe where arrays lie, its sharding or ShapeDtypeStruct


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How to sample; all are arrays, so changing them never recompiles."""

    temperature_N: Leaf  # float32, one for each sample of a question; 0 is greedy
    top_p: Leaf  # float32; 1 is off
    top_k: Leaf  # int32; 0 is off
    stop_SV: Leaf  # int16, see stopping.stop_table


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
    """One batch of questions, ready to sample."""

    tokens_QC: Leaf  # int32, padded on the right
    length_Q: Leaf  # int32, at least 1
    slot_Q: Leaf  # int32, the question's place in the whole batch: keys its noise
    noise: Leaf  # uint32 [3]: seed, stream (training, evaluation, ...), draw counter
    wanted_Q: Leaf  # bool; false: not sampled, in a call that only learns or only fills some places again
    sampling: Sampling


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Taught:
    """A teacher's responses to the same prompts; only what they answer counts."""

    tokens_QNT: Leaf  # int32
    length_QN: Leaf  # int32


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollouts:
    """N responses a question, and the prompts they answer."""

    prompt_QC: Leaf  # int32
    prompt_length_Q: Leaf  # int32
    tokens_QNT: Leaf  # int32, 0 after the end
    length_QN: Leaf  # int32, the token that ended the response included
    ended_QN: Leaf  # bool; false: cut at T tokens
    logp_QNT: Leaf  # float32 behaviour log-probs at the temperature, before truncation; 0 after the end
    temperature_N: Leaf  # float32
    confidence: Leaf = None  # a Confidence where the rewards ask for it
    taught: Leaf = None  # Taught, where a teacher answers as well


def empty_rollouts(*, Q: int, N: int, C: int, T: int, confidence: bool, taught: bool = False) -> Rollouts:
    """Rollouts of the right shapes with nothing in them, for the first step."""
    return Rollouts(
        prompt_QC=jnp.zeros((Q, C), jnp.int32),
        prompt_length_Q=jnp.ones(Q, jnp.int32),
        tokens_QNT=jnp.zeros((Q, N, T), jnp.int32),
        length_QN=jnp.ones((Q, N), jnp.int32),
        ended_QN=jnp.zeros((Q, N), bool),
        logp_QNT=jnp.zeros((Q, N, T), jnp.float32),
        temperature_N=jnp.ones(N, jnp.float32),
        confidence=no_confidence(Q, N) if confidence else None,
        taught=Taught(jnp.zeros((Q, N, T), jnp.int32), jnp.ones((Q, N), jnp.int32)) if taught else None,
    )
