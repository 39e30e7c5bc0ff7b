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

from jaxselftrain.model.attention import widen
from jaxselftrain.model.policy import Policy, output_logits
from jaxselftrain.sharding import ROWS

if TYPE_CHECKING:
    from jaxselftrain.update import Batch

LOGIT_BYTES = 2**28  # float32 logits alive at once on one device


def score(policy: Policy, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(log-prob of each response token, entropy of its distribution in nats), [Q, M, T] float32, at the sampling temperature."""
    hidden_QMTD = policy.responses(batch.prompt_QC, batch.prompt_length_Q, batch.tokens_QMT)
    Q, M, T, D = hidden_QMTD.shape
    devices = 1 if policy.mesh is None else policy.mesh.shape[ROWS[0]] * policy.mesh.shape[ROWS[1]]
    chunk = _chunk(T, most=LOGIT_BYTES * devices // (4 * Q * M * policy.architecture.V))

    def one(part):
        hidden_QMTD, tokens_QMT = part
        return token_scores(policy.architecture.tied, hidden_QMTD, policy.output_matrix(), batch.temperature_QM, tokens_QMT)

    hidden = hidden_QMTD.reshape(Q, M, T // chunk, chunk, D).transpose(2, 0, 1, 3, 4)
    tokens = batch.tokens_QMT.reshape(Q, M, T // chunk, chunk).transpose(2, 0, 1, 3)
    logp, entropy = jax.lax.map(one, (hidden, tokens))
    return tuple(x.transpose(1, 2, 0, 3).reshape(Q, M, T) for x in (logp, entropy))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def token_scores(
    tied: bool, hidden_QMTD: jax.Array, matrix: jax.Array, temperature_QM: jax.Array, tokens_QMT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(log-prob, entropy) of each token from the hidden state that predicts it; the temperature gets no gradient."""
    return _scores(tied, hidden_QMTD, matrix, temperature_QM, tokens_QMT)[0]


def _scores(tied, hidden_QMTD, matrix, temperature_QM, tokens_QMT):
    logits_QMTV = output_logits(hidden_QMTD, matrix, tied=tied) / temperature_QM[..., None, None]
    top_QMT = logits_QMTV.max(-1)
    below_QMTV = logits_QMTV - top_QMT[..., None]
    e_QMTV = jnp.exp(below_QMTV)
    total_QMT = e_QMTV.sum(-1)
    chosen_QMT = jnp.take_along_axis(logits_QMTV, tokens_QMT[..., None], -1)[..., 0]
    logz_QMT = top_QMT + jnp.log(total_QMT)
    # log(sum e) - sum(p below) rather than logz - sum(p logits): no difference of large numbers
    entropy_QMT = jnp.log(total_QMT) - (e_QMTV * below_QMTV).sum(-1) / total_QMT
    kept = hidden_QMTD, matrix, temperature_QM, tokens_QMT, logz_QMT, entropy_QMT
    return (chosen_QMT - logz_QMT, entropy_QMT), kept


def _scores_backward(tied, kept, gradients):
    hidden_QMTD, matrix, temperature_QM, tokens_QMT, logz_QMT, entropy_QMT = kept
    to_logp_QMT, to_entropy_QMT = (widen(g)[..., None] for g in gradients)
    raw_QMTV, pull = jax.vjp(partial(output_logits, tied=tied), hidden_QMTD, matrix)
    logp_QMTV = raw_QMTV / temperature_QM[..., None, None] - logz_QMT[..., None]
    is_token = jax.lax.broadcasted_iota(jnp.int32, logp_QMTV.shape, 3) == tokens_QMT[..., None]
    # d logp_i / d logit_v = [v = i] - p_v;  d entropy / d logit_v = -p_v (log p_v + entropy)
    slope_QMTV = to_logp_QMT + to_entropy_QMT * (logp_QMTV + entropy_QMT[..., None])
    to_logits_QMTV = jnp.where(is_token, to_logp_QMT, 0.0) - jnp.exp(logp_QMTV) * slope_QMTV
    to_hidden, to_matrix = pull(to_logits_QMTV / temperature_QM[..., None, None])
    return to_hidden, to_matrix, None, None


token_scores.defvjp(_scores, _scores_backward)


def _chunk(T: int, *, most: int) -> int:
    """The largest divisor of T that is at most `most`, and at least 1."""
    return next(size for size in range(T, 0, -1) if T % size == 0 and (size <= most or size == 1))
