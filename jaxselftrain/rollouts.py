"""Takes parameters and prompts, gives rollouts: N responses to each question, with their behaviour log-probs.

The prompt is prefilled once per question and its keys and values are shared by the question's samples. The loop has
static shapes and stops as soon as every response has ended. The noise of a token depends on (seed, stream, draw, question
slot, sample, position) and on nothing else: not on the batch, its width or the mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxselftrain.draw import draw
from jaxselftrain.model.policy import Policy, ready
from jaxselftrain.sharding import constrain
from jaxselftrain.stopping import STOPPED

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
    wanted: Leaf  # bool; false: no sampling at all, for a call that only learns
    sampling: Sampling


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


def empty_rollouts(*, Q: int, N: int, C: int, T: int) -> Rollouts:
    """Rollouts of the right shapes with nothing in them, for the first step."""
    return Rollouts(
        prompt_QC=jnp.zeros((Q, C), jnp.int32),
        prompt_length_Q=jnp.ones(Q, jnp.int32),
        tokens_QNT=jnp.zeros((Q, N, T), jnp.int32),
        length_QN=jnp.ones((Q, N), jnp.int32),
        ended_QN=jnp.zeros((Q, N), bool),
        logp_QNT=jnp.zeros((Q, N, T), jnp.float32),
        temperature_N=jnp.ones(N, jnp.float32),
    )


def token_noise(noise: jax.Array, slot_Q: jax.Array, N: int, position: jax.Array) -> jax.Array:
    """One uniform number in [0, 1) a sample, uniform_QN, for the given position of its response."""
    seed, stream, counter = noise
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), counter)

    def one(slot, sample):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, slot), sample), position))

    return jax.vmap(lambda slot: jax.vmap(lambda sample: one(slot, sample))(jnp.arange(N)))(slot_Q)


def sample(graph: nnx.GraphDef, params: dict[str, jax.Array], prompts: Prompts, *, N: int, T: int) -> Rollouts:
    """Samples N responses of at most T tokens to each prompt."""
    Q, C = prompts.tokens_QC.shape

    def go(params):
        return _sample(graph, params, prompts, N=N, T=T)

    return jax.lax.cond(prompts.wanted, go, lambda _: empty_rollouts(Q=Q, N=N, C=C, T=T), params)


def _sample(graph, params, prompts, *, N, T):
    policy: Policy = ready(graph, params)
    settings, Q = prompts.sampling, prompts.tokens_QC.shape[0]

    def next_token(t, hidden_QND, run):
        logits_QNV = policy.logits(hidden_QND)
        V = logits_QNV.shape[-1]
        uniform_QN = token_noise(prompts.noise, prompts.slot_Q, N, t)
        token_X, logp_X = draw(
            jnp.broadcast_to(logits_QNV, (Q, N, V)).reshape(Q * N, V),
            uniform_QN.reshape(Q * N),
            temperature_X=jnp.tile(settings.temperature_N, Q),
            top_p=settings.top_p,
            top_k=settings.top_k,
        )
        live_QN = run["state_QN"] != STOPPED
        token_QN = jnp.where(live_QN, token_X.reshape(Q, N), 0)
        logp_QN = jnp.where(live_QN, logp_X.reshape(Q, N), 0.0)
        moved_QN = settings.stop_SV[jnp.maximum(run["state_QN"], 0), token_QN].astype(jnp.int32)
        return {
            "tokens_QNT": jax.lax.dynamic_update_index_in_dim(run["tokens_QNT"], token_QN, t, 2),
            "logp_QNT": jax.lax.dynamic_update_index_in_dim(run["logp_QNT"], logp_QN, t, 2),
            "length_QN": run["length_QN"] + live_QN,
            "state_QN": jnp.where(live_QN, moved_QN, STOPPED),
        }

    hidden_QD, prompt_cache = policy.prefill(prompts.tokens_QC, prompts.length_Q)
    run = {
        "tokens_QNT": jnp.zeros((Q, N, T), jnp.int32),
        "logp_QNT": jnp.zeros((Q, N, T), jnp.float32),
        "length_QN": jnp.zeros((Q, N), jnp.int32),
        "state_QN": jnp.zeros((Q, N), jnp.int32),
    }
    run = {name: constrain(x, policy.mesh, "rows") for name, x in run.items()}
    run = next_token(0, hidden_QD[:, None], run)  # one row a question: its samples all start from the same logits

    def unfinished(carry):
        t, run, _ = carry
        return (t < T) & (run["state_QN"] != STOPPED).any()

    def one_more(carry):
        t, run, cache = carry
        token_QN = jax.lax.dynamic_index_in_dim(run["tokens_QNT"], t - 1, 2, keepdims=False)
        hidden_QND, cache = policy.decode(token_QN, t - 1, cache, prompt_cache, prompts.length_Q)
        return t + 1, next_token(t, hidden_QND, run), cache

    _, run, _ = jax.lax.while_loop(unfinished, one_more, (1, run, policy.empty_cache(Q, N, T)))
    return Rollouts(
        prompt_QC=prompts.tokens_QC,
        prompt_length_Q=prompts.length_Q,
        tokens_QNT=run["tokens_QNT"],
        length_QN=run["length_QN"],
        ended_QN=run["state_QN"] == STOPPED,
        logp_QNT=run["logp_QNT"],
        temperature_N=settings.temperature_N,
    )
