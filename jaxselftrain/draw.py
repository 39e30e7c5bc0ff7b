"""Takes logits and one uniform number a row, gives the drawn token: temperature, top-k, top-p and inverse-CDF choice.

Nothing here sorts: thresholds are found by bisection over the bits of the floats, exactly, and only when truncation is
on. One uniform number decides a token, so noise costs nothing and does not depend on the vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

BLOCK = 256  # the cumulative sum goes over blocks first: cheaper, and more exact in float32 than one long sum


def draw(logits_XV: jax.Array, uniform_X: jax.Array, *, temperature_X, top_p, top_k) -> tuple[jax.Array, jax.Array]:
    """(token_X, logp_X): the log-prob is at the temperature and before truncation, float32.

    temperature 0 takes the most likely token (its log-prob is then at temperature 1). top_k 0 and top_p 1 are off;
    top-k is applied first and top-p to what it leaves; ties at a threshold are all kept.
    """
    greedy_X = temperature_X <= 0
    logits_XV = logits_XV.astype(jnp.float32) / jnp.where(greedy_X, 1.0, temperature_X)[:, None]
    top_X1 = logits_XV.max(-1, keepdims=True)
    weight_XV = jnp.exp(logits_XV - top_X1)
    total_X = weight_XV.sum(-1)
    drawn_X = jax.lax.cond(  # the choice stands in both branches: what a branch gives on is copied, and weights are large
        (top_k > 0) | (top_p < 1),
        lambda weight_XV: _choose(_truncate(weight_XV, top_p=top_p, top_k=top_k), uniform_X),
        lambda weight_XV: _choose(weight_XV, uniform_X),
        weight_XV,
    )
    token_X = jax.lax.cond(  # argmax over 128 x 49k logits takes 14 ms on 2 cores, a twentieth of the whole token
        greedy_X.any(),
        lambda drawn_X: jnp.where(greedy_X, jnp.argmax(logits_XV, -1), drawn_X),
        lambda drawn_X: drawn_X,
        drawn_X,
    ).astype(jnp.int32)
    chosen_X = jnp.take_along_axis(logits_XV, token_X[:, None], -1)
    return token_X, (chosen_X - top_X1)[:, 0] - jnp.log(total_X)


def _truncate(weight_XV, *, top_p, top_k):
    """Sets to 0 the weights that top-k, then top-p, leave out."""
    V = weight_XV.shape[-1]
    k = jnp.where(top_k > 0, jnp.minimum(top_k, V), V)
    # the largest threshold that still keeps k weights: the k-th largest weight itself
    floor_X1 = _largest_float(lambda t_X1: (weight_XV >= t_X1).sum(-1, keepdims=True) >= k, weight_XV)
    weight_XV = jnp.where(weight_XV >= floor_X1, weight_XV, 0.0)
    mass_X1 = top_p * weight_XV.sum(-1, keepdims=True)
    floor_X1 = _largest_float(
        lambda t_X1: jnp.where(weight_XV >= t_X1, weight_XV, 0.0).sum(-1, keepdims=True) >= mass_X1, weight_XV
    )
    # with top-p off, float32 sums may miss the total by a rounding: then everything stays
    return jnp.where((weight_XV >= floor_X1) | (top_p >= 1), weight_XV, 0.0)


def _largest_float(holds, like_XV):
    """The largest float t in [0, 1] for which holds(t), a condition that only falls as t rises and holds at 0."""
    low = jnp.zeros((*like_XV.shape[:-1], 1), jnp.int32)  # non-negative floats are ordered as their bits are
    high = jnp.full_like(low, jax.lax.bitcast_convert_type(jnp.float32(1.0), jnp.int32) + 1)

    def halve(_, bounds):
        low, high = bounds
        middle = low + (high - low) // 2
        good = holds(jax.lax.bitcast_convert_type(middle, jnp.float32))
        return jnp.where(good, middle, low), jnp.where(good, high, middle)

    low, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)


def _choose(weight_XV, uniform_X):
    """Inverse-CDF choice: the token in whose stretch of the cumulative weight the uniform number falls."""
    X, V = weight_XV.shape
    blocks = -(-V // BLOCK)
    weight_XEB = jnp.pad(weight_XV, ((0, 0), (0, blocks * BLOCK - V))).reshape(X, blocks, BLOCK)
    upto_XE = jnp.cumsum(weight_XEB.sum(-1), -1)
    aim_X1 = uniform_X[:, None] * upto_XE[:, -1:]
    block_X1 = jnp.minimum((upto_XE <= aim_X1).sum(-1, keepdims=True), blocks - 1)
    before_X1 = jnp.where(block_X1 > 0, jnp.take_along_axis(upto_XE, jnp.maximum(block_X1 - 1, 0), 1), 0.0)
    weight_XB = jnp.take_along_axis(weight_XEB, block_X1[..., None], 1)[:, 0]
    # past the sum by a rounding, the last token with any weight is meant; a token without weight is never taken
    past_XB = (jnp.cumsum(weight_XB, -1) > aim_X1 - before_X1) & (weight_XB > 0)
    last_X = BLOCK - 1 - jnp.argmax(weight_XB[:, ::-1] > 0, -1)
    inner_X = jnp.where(past_XB.any(-1), jnp.argmax(past_XB, -1), last_X)
    return block_X1[:, 0] * BLOCK + inner_X
