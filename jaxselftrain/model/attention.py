"""Takes queries, a sample's own keys/values and its question's prompt keys/values, gives the attended values.

This one function serves prefill (own keys only), decoding (one query a row) and the training forward (all response
tokens at once): the samples of a question share one copy of their prompt's keys and values, which are never repeated.
Heads stand before samples (QGN...) and keys lie K before S, so that both einsums are plain batched matmuls, with no
transposed copy of a cache: on 2 CPU cores scores against 128 slots take 0.4 ms a layer this way, and 3 ms with S before K.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PromptKV(NamedTuple):
    """A prompt's keys and values in one layer, and which of its C slots hold a token."""

    k_QGCK: jax.Array
    v_QGCK: jax.Array
    mask_QC: jax.Array


def attention(
    q_QGNRTK: jax.Array, k_QGNKS: jax.Array, v_QGNSK: jax.Array, mask_TS: jax.Array, prompt: PromptKV | None
) -> jax.Array:
    """Softmax attention over [the question's prompt | the sample's own tokens]; softmax in float32. Gives QGNRTK.

    mask_TS says which own slots a query may see (broadcastable to QGNRTS); prompt is None for prefill.
    """
    q_QGNRTK = q_QGNRTK * q_QGNRTK.shape[-1] ** -0.5
    own_QGNRTS = _scores("QGNRTK,QGNKS->QGNRTS", q_QGNRTK, k_QGNKS, mask_TS)
    top = own_QGNRTS.max(-1, keepdims=True)
    if prompt is not None:
        prompt_QGNRTC = _scores("QGNRTK,QGCK->QGNRTC", q_QGNRTK, prompt.k_QGCK, prompt.mask_QC[:, None, None, None, None])
        top = jnp.maximum(top, prompt_QGNRTC.max(-1, keepdims=True))
    top = jax.lax.stop_gradient(top)
    p_QGNRTS = jnp.exp(own_QGNRTS - top)
    total = p_QGNRTS.sum(-1, keepdims=True)
    out_QGNRTK = _values("QGNRTS,QGNSK->QGNRTK", p_QGNRTS, v_QGNSK)
    if prompt is not None:
        p_QGNRTC = jnp.exp(prompt_QGNRTC - top)
        total += p_QGNRTC.sum(-1, keepdims=True)
        out_QGNRTK += _values("QGNRTC,QGCK->QGNRTK", p_QGNRTC, prompt.v_QGCK)
    return (out_QGNRTK / total).astype(v_QGNSK.dtype)


def _scores(letters, q, k, mask):
    return jnp.where(mask, jnp.einsum(letters, q, k, preferred_element_type=wide_dtype(q)), -jnp.inf)


def _values(letters, p, v):
    return jnp.einsum(letters, p.astype(v.dtype), v, preferred_element_type=wide_dtype(v))


def wide_dtype(x):
    """float32, or float64 where x is that already: the dtype of softmax, norms, log-probs and loss."""
    return jnp.promote_types(x.dtype, jnp.float32)


def widen(x: jax.Array) -> jax.Array:
    return x.astype(wide_dtype(x))
