"""Takes a policy and a batch of responses, gives each token's log-prob and the entropy of its distribution.

The output matrix has most of a small model's operations, and its logits most of an update's memory. They exist for one chunk
of tokens at a time, in the forward and in the backward pass, never as [rows, T, V]; the backward pass makes a chunk's logits
again and turns them into their gradient at one go.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from jaxselftrain.model.attention import wide_dtype
from jaxselftrain.model.policy import Policy, output_logits
from jaxselftrain.sharding import shards

if TYPE_CHECKING:
    from jaxselftrain.update import Batch

LOGIT_BYTES = 2**28  # float32 logits alive at once on one device


def score(policy: Policy, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(log-prob of each response token, entropy of its distribution in nats), [Q, M, T] float32, at the sampling temperature."""
    hidden_QMTD = policy.responses(batch.prompt_QC, batch.prompt_length_Q, batch.tokens_QMT)
    Q, M, T, D = hidden_QMTD.shape
    most = LOGIT_BYTES * shards(policy.mesh, "rows") // (4 * Q * policy.architecture.V)
    temperature_QMT = jnp.broadcast_to(batch.temperature_QM[..., None], (Q, M, T))
    tokens_QX, temperature_QX = (x.reshape(Q, M * T) for x in (batch.tokens_QMT, temperature_QMT))
    hidden_QXD = hidden_QMTD.reshape(Q, M * T, D)
    matrix, tied = policy.output_matrix(), policy.architecture.tied
    logp_QX, entropy_QX = token_scores(tied, most, hidden_QXD, matrix, temperature_QX, tokens_QX)
    return logp_QX.reshape(Q, M, T), entropy_QX.reshape(Q, M, T)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def token_scores(
    tied: bool, most: int, hidden_QXD: jax.Array, matrix: jax.Array, temperature_QX: jax.Array, tokens_QX: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(log-prob, entropy) of each token from the hidden state that predicts it; the temperature gets no gradient.

    The logits of at most `most` tokens of a question (and at least one) exist at a time.
    """
    return _forward(tied, most, hidden_QXD, matrix, temperature_QX, tokens_QX)[0]


def _forward(tied, most, hidden_QXD, matrix, temperature_QX, tokens_QX):
    def one(part):
        hidden_XD, temperature_X, tokens_X = _flat(part)
        logits_XV = output_logits(hidden_XD, matrix, tied=tied) / temperature_X[:, None]
        top_X = logits_XV.max(-1)
        below_XV = logits_XV - top_X[:, None]
        e_XV = jnp.exp(below_XV)
        total_X = e_XV.sum(-1)
        chosen_X = jnp.take_along_axis(logits_XV, tokens_X[:, None], -1)[:, 0]
        logz_X = top_X + jnp.log(total_X)
        # log(sum e) - sum(p below) rather than logz - sum(p logits): no difference of large numbers
        entropy_X = jnp.log(total_X) - (e_XV * below_XV).sum(-1) / total_X
        return tuple(x.reshape(part[1].shape) for x in (chosen_X - logz_X, entropy_X, logz_X))

    found = jax.lax.map(one, _cut((hidden_QXD, temperature_QX, tokens_QX), most))
    logp_QX, entropy_QX, logz_QX = _joined(found, tokens_QX.shape[1])
    return (logp_QX, entropy_QX), (hidden_QXD, matrix, temperature_QX, tokens_QX, logz_QX, entropy_QX)


def _backward(tied, most, kept, gradients):
    hidden_QXD, matrix, temperature_QX, tokens_QX, logz_QX, entropy_QX = kept
    D, V = matrix.shape[::-1] if tied else matrix.shape

    def one(to_matrix_DV, part):  # what fills up the last part has no gradient
        hidden_XD, temperature_X, tokens_X, logz_X, entropy_X, to_logp_X, to_entropy_X = _flat(part)
        logp_XV = output_logits(hidden_XD, matrix, tied=tied) / temperature_X[:, None] - logz_X[:, None]
        is_token = jax.lax.broadcasted_iota(jnp.int32, logp_XV.shape, 1) == tokens_X[:, None]
        # d logp_i / d logit_v = [v = i] - p_v;  d entropy / d logit_v = -p_v (log p_v + entropy)
        slope_XV = to_logp_X[:, None] + to_entropy_X[:, None] * (logp_XV + entropy_X[:, None])
        to_logits_XV = jnp.where(is_token, to_logp_X[:, None], 0.0) - jnp.exp(logp_XV) * slope_XV
        to_logits_XV = (to_logits_XV / temperature_X[:, None]).astype(hidden_XD.dtype)
        to_hidden_XD = jnp.einsum("XV,VD->XD" if tied else "XV,DV->XD", to_logits_XV, matrix)
        # D before V even where the matrix is [V, D]: on CPUs the first operand is copied transposed, and this one is narrow
        to_matrix_DV += jnp.einsum("XD,XV->DV", hidden_XD, to_logits_XV, preferred_element_type=to_matrix_DV.dtype)
        return to_matrix_DV, to_hidden_XD.reshape(part[0].shape)

    parts = *_cut((hidden_QXD, temperature_QX, tokens_QX, logz_QX, entropy_QX), most), *_cut(gradients, most, "constant")
    to_matrix_DV, to_hidden = jax.lax.scan(one, jnp.zeros((D, V), wide_dtype(hidden_QXD)), parts)
    to_matrix = (to_matrix_DV.T if tied else to_matrix_DV).astype(matrix.dtype)
    return _joined(to_hidden, tokens_QX.shape[1]), to_matrix, None, None


token_scores.defvjp(_forward, _backward)


def _flat(part):
    """[Q, size, ...] -> [Q * size, ...]: on CPUs, sums over logits of one question took five times as long on three axes."""
    return tuple(x.reshape(-1, *x.shape[2:]) for x in part)


def _cut(arrays, most: int, mode: str = "edge"):
    """Arrays [Q, X, ...] in the fewest equal parts of at most `most` tokens a question, filled up: [parts, Q, size, ...]."""

    def cut(x):
        Q, X = x.shape[:2]
        parts, size = chunks(X, most=most)
        x = jnp.pad(x, ((0, 0), (0, parts * size - X), *((0, 0) for _ in x.shape[2:])), mode=mode)
        return x.reshape(Q, parts, size, *x.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(cut, arrays)


def _joined(parts, X: int):
    """The inverse of _cut."""

    def join(x):
        return x.swapaxes(0, 1).reshape(x.shape[1], -1, *x.shape[3:])[:, :X]

    return jax.tree.map(join, parts)


def chunks(count: int, *, most: int) -> tuple[int, int]:
    """(parts, size): the fewest equal parts of `count` tokens with at most `most` in each, and at least 1."""
    parts = -(-count // max(most, 1))
    return parts, -(-count // parts)
