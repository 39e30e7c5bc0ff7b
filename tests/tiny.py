"""A tiny random policy, and batches for it: what the tests of the device path share."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from jaxselftrain.config import Config, parse_config
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.model.policy import abstract_policy
from jaxselftrain.optimizer import init_moments
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Prompts, Rollouts, Sampling
from jaxselftrain.sharding import make_mesh, param_shardings
from jaxselftrain.step import (
    feedback_shardings,
    make_transform,
    prompt_shardings,
    rollout_shardings,
    state_shardings,
)
from jaxselftrain.stopping import stop_table
from jaxselftrain.update import State

TINY = Architecture(
    "LlamaForCausalLM", V=64, D=16, F=32, H=8, G=8, K=4, L=2, rope_theta=1e4, norm_eps=1e-5, max_positions=128, tied=True
)
PIECES = [bytes([48 + i]) for i in range(TINY.V)]  # token i is one ASCII character; token 0 is "0"
Q, N, C, T = 8, 4, 12, 10


def tiny_config(**sections) -> Config:
    values: dict = {
        "questions": {"source": "jsonl", "path": "unused"},
        "rollout": {"questions": Q, "max_tokens": T},
        "vote": {"samples": N},
        "optimizer": {"learning_rate": 1e-2},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section}
    return parse_config(values)


def params(architecture=TINY, *, seed=0, dtype="float32", scale=0.3):
    rng = np.random.default_rng(seed)
    return {name: jnp.asarray(rng.normal(size=s) * scale, dtype) for name, s in architecture.shapes().items()}


def graph(mesh=None, *, architecture=TINY, compute_dtype="float32", remat="layers", gather=True):
    return abstract_policy(architecture, compute_dtype=compute_dtype, remat=remat, mesh=mesh, gather=gather)


def mesh_of(config: Config, count=1):
    return make_mesh(config.mesh, jax.devices()[:count])


def sampling(*, temperatures=(1.0,) * N, top_p=1.0, top_k=0, stop=(), end_ids=(3,), pieces=PIECES) -> Sampling:
    table = jnp.asarray(stop_table(stop, pieces, end_ids))
    return Sampling(jnp.asarray(temperatures, jnp.float32), jnp.float32(top_p), jnp.int32(top_k), table)


def prompts(*, seed=0, draw=0, rows=Q, width=C, vocabulary=TINY.V, lengths=None, **how) -> Prompts:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, width + 1, rows) if lengths is None else np.asarray(lengths)
    tokens = np.where(np.arange(width) < lengths[:, None], rng.integers(0, vocabulary, (rows, width)), 0)
    return Prompts(
        tokens_QC=jnp.asarray(tokens, jnp.int32),
        length_Q=jnp.asarray(lengths, jnp.int32),
        slot_Q=jnp.arange(rows, dtype=jnp.int32),
        noise=jnp.asarray([seed, 0, draw], jnp.uint32),
        wanted_Q=jnp.ones(rows, bool),
        sampling=sampling(**how),
    )


def rollouts(*, seed=0, rows=Q, samples=N, width=C, length=T, vocabulary=TINY.V) -> Rollouts:
    """Random responses of unequal lengths, with made-up behaviour log-probs."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, (rows, samples))
    mask = np.arange(length) < lengths[..., None]
    asked = prompts(seed=seed, rows=rows, width=width, vocabulary=vocabulary)
    return Rollouts(
        prompt_QC=asked.tokens_QC,
        prompt_length_Q=asked.length_Q,
        tokens_QNT=jnp.asarray(np.where(mask, rng.integers(0, vocabulary, mask.shape), 0), jnp.int32),
        length_QN=jnp.asarray(lengths, jnp.int32),
        ended_QN=jnp.asarray(lengths < length),
        logp_QNT=jnp.asarray(np.where(mask, -rng.random(mask.shape) * 4, 0), jnp.float32),
        temperature_N=jnp.ones(samples, jnp.float32),
    )


def votes(*, seed=0, rows=Q, samples=N, chosen=None, learn=True) -> Feedback:
    rng = np.random.default_rng(seed + 1)
    chosen = np.tile(np.arange(samples), (rows, 1)) if chosen is None else np.asarray(chosen)
    return Feedback(
        reward_QN=jnp.asarray(rng.integers(0, 2, (rows, samples)), jnp.float32),
        weight_QN=jnp.ones((rows, samples), jnp.float32),
        kl_weight_Q=jnp.asarray(rng.integers(0, 2, rows), jnp.float32),
        chosen_QM=jnp.asarray(chosen, jnp.int32),
        learn=jnp.asarray(learn),
    )


def state(config: Config, mesh, *, architecture=TINY, weights=None, reference=None) -> State:
    at = state_shardings(config, architecture, mesh)
    weights = params(architecture, dtype=config.model.weights_dtype) if weights is None else weights
    weights = jax.device_put(weights, param_shardings(mesh, architecture))
    moments = jax.device_put(init_moments(make_transform(config), weights, dtype=config.optimizer.state_dtype), at.moments)
    count, seed = jax.device_put((jnp.int32(0), jnp.uint32(config.train.seed)), (at.count, at.seed))
    if reference is not None:
        reference = jax.device_put(reference, param_shardings(mesh, architecture))
    return State(jax.tree.map(jnp.copy, weights), moments, count, seed, reference)


def place(mesh, rollouts: Rollouts, feedback: Feedback, prompts: Prompts):
    """The three inputs of a step as the host loop puts them on the mesh."""
    return (
        jax.device_put(rollouts, rollout_shardings(mesh)),
        jax.device_put(feedback, feedback_shardings(mesh)),
        jax.device_put(prompts, prompt_shardings(mesh)),
    )


def not_learning(feedback: Feedback) -> Feedback:
    return replace(feedback, learn=jnp.asarray(False))


def equal_bits(a, b) -> bool:
    """Whether two pytrees are equal bit for bit."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
