"""Takes what `attention` takes, gives what it gives, by kernels that keep the scores to themselves: cuDNN's, and splash on TPUs.

For whole sequences only (prefill and update): plain attention writes T x (C + T) scores a head to memory, these write none. A
decoding token has one query a row and no use for them. Neither kernel knows of prompts that samples share, so each sample's
keys are its prompt's and its own in one row, for the length of one layer.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxselftrain.errors import UserError
from jaxselftrain.model.attention import PromptKV
from jaxselftrain.sharding import ROWS

Kernel = Literal["cudnn", "xla", "splash", "interpret"]  # "xla" and "interpret": the same two ways on any device, for tests
CUDNN_BLOCK = 64  # lengths are rounded up to multiples of these
SPLASH_BLOCK = 128
LARGEST_BLOCK = 512  # of scores that splash keeps in the chip's fast memory at a time


def fused_attention(
    q_QGNRTK: jax.Array, k_QGNTK: jax.Array, v_QGNTK: jax.Array, prompt: PromptKV | None, kernel: Kernel, mesh: Mesh | None
) -> jax.Array:
    """What `attention` gives under a causal mask, QGNRTK; prompt is None for prefill."""
    if prompt is None:
        Q, G, _, _, _, K = q_QGNRTK.shape
        nothing_QGCK = jnp.zeros((Q, G, 0, K), k_QGNTK.dtype)
        prompt = PromptKV(nothing_QGCK, nothing_QGCK, jnp.zeros((Q, 0), bool))
    if kernel in ("cudnn", "xla"):
        return _dot_product(q_QGNRTK, k_QGNTK, v_QGNTK, prompt, kernel)
    local = partial(_splash, interpret=kernel == "interpret")
    if mesh is None:
        return local(q_QGNRTK, k_QGNTK, v_QGNTK, prompt)
    return _on_each_device(local, mesh, q_QGNRTK, k_QGNTK, v_QGNTK, prompt)


def check_kernel(kernel: Kernel, compute_dtype: str, K: int, platform: str) -> None:
    """Raises UserError where the kernel does not run."""
    reason, place = None, "gpu" if kernel == "cudnn" else "tpu"
    if platform != place:
        reason = f"a {place.upper()}, and the devices are {platform}s"
    elif kernel == "cudnn" and compute_dtype != "bfloat16":
        reason = f"model.compute_dtype = bfloat16, which is {compute_dtype}"
    elif kernel == "cudnn" and (K % 8 or K > 128):
        reason = f"heads of a multiple of 8 and at most 128, and the model's are of {K}"
    if reason is not None:
        raise UserError(f"model.attention = {kernel} needs {reason}; set model.attention=plain")


def _dot_product(q_QGNRTK, k_QGNTK, v_QGNTK, prompt, kernel):
    """jax.nn.dot_product_attention, whose causal mask starts at the first key.

    So a sample's own tokens follow its prompt at once, in the place of its padding. Queries of prompt places are zeros, whose
    results nobody reads: C / (C + T) more scores.
    """
    Q, G, N, R, T, K = q_QGNRTK.shape
    C = prompt.mask_QC.shape[1]
    start_Q = prompt.mask_QC.sum(-1, dtype=jnp.int32)
    q_QNTHK = q_QGNRTK.transpose(0, 2, 4, 1, 3, 5).reshape(Q, N, T, G * R, K)
    q_QNSHK = _after(jnp.zeros((Q, C, G * R, K), q_QNTHK.dtype), q_QNTHK, start_Q)
    k_QNSGK = _after(prompt.k_QGCK.swapaxes(1, 2), k_QGNTK.transpose(0, 2, 3, 1, 4), start_Q)
    v_QNSGK = _after(prompt.v_QGCK.swapaxes(1, 2), v_QGNTK.transpose(0, 2, 3, 1, 4), start_Q)
    rows = (x.reshape(Q * N, *x.shape[2:]) for x in (q_QNSHK, k_QNSGK, v_QNSGK))
    out_XSHK = jax.nn.dot_product_attention(*rows, is_causal=True, implementation=kernel)
    own = jax.vmap(lambda out_NSHK, start: jax.lax.dynamic_slice_in_dim(out_NSHK, start, T, axis=1))
    out_QNTHK = own(out_XSHK.reshape(Q, N, *out_XSHK.shape[1:]), start_Q)
    return out_QNTHK.reshape(Q, N, T, G, R, K).transpose(0, 3, 1, 4, 2, 5)


def _after(prompt_QCGK, own_QNTGK, start_Q):
    """Each sample's own tokens right behind its prompt: [Q, N, S, G, K] with S = C + T, rounded up."""
    Q, N, T, G, K = own_QNTGK.shape
    C = prompt_QCGK.shape[1]
    S = _rounded(C + T, CUDNN_BLOCK)
    room_QSGK = jnp.pad(prompt_QCGK, ((0, 0), (0, S - C), (0, 0), (0, 0)))
    room_QNSGK = jnp.broadcast_to(room_QSGK[:, None], (Q, N, S, G, K))
    put = jax.vmap(lambda room, own, start: jax.lax.dynamic_update_slice_in_dim(room, own.astype(room.dtype), start, axis=1))
    return put(room_QNSGK, own_QNTGK, start_Q)


def _splash(q_QGNRTK, k_QGNTK, v_QGNTK, prompt, *, interpret: bool):
    """The splash kernel that JAX ships for TPUs: its causal mask starts after the prompt, whose padding is a segment apart."""
    from jax.experimental.pallas.ops.tpu import splash_attention as splash  # half a second that other devices don't need

    Q, G, N, R, T, K = q_QGNRTK.shape
    C = prompt.mask_QC.shape[1]
    L, S = _rounded(T, SPLASH_BLOCK), _rounded(C + T, SPLASH_BLOCK)
    q_QNHTK = q_QGNRTK.transpose(0, 2, 1, 3, 4, 5).reshape(Q, N, G * R, T, K) * K**-0.5

    def keys(prompt_QGCK, own_QGNTK):
        prompt_QNGCK = jnp.broadcast_to(prompt_QGCK[:, None], (Q, N, G, C, K)).astype(own_QGNTK.dtype)
        return _padded(jnp.concatenate([prompt_QNGCK, own_QGNTK.swapaxes(1, 2)], 3), S, axis=3)

    seen_QS = jnp.concatenate([prompt.mask_QC, jnp.ones((Q, T), bool), jnp.zeros((Q, S - C - T), bool)], 1).astype(jnp.int32)
    query_L = jnp.ones(L, jnp.int32)  # those beyond T see what is there; nobody reads them
    causal = splash.CausalMask((L, S), offset=C)
    q, kv = _block(L), _block(S)
    blocks = splash.BlockSizes(q, kv, None, q, kv, None, q, kv)  # forward; gradient of keys and values; gradient of queries
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([causal] * (G * R)),
        block_sizes=blocks,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )

    def row(q_HLK, k_GSK, v_GSK, seen_S):
        return kernel(q_HLK, k_GSK, v_GSK, segment_ids=splash.SegmentIds(query_L, seen_S))

    rows = jax.vmap(jax.vmap(row, (0, 0, 0, None)))
    q_QNHLK = _padded(q_QNHTK, L, axis=3)
    out_QNHLK = rows(q_QNHLK, keys(prompt.k_QGCK, k_QGNTK), keys(prompt.v_QGCK, v_QGNTK), seen_QS)
    return out_QNHLK[:, :, :, :T].reshape(Q, N, G, R, T, K).swapaxes(1, 2)


def _block(length: int) -> int:
    return next(block for block in (LARGEST_BLOCK, LARGEST_BLOCK // 2, SPLASH_BLOCK) if length % block == 0)


def _on_each_device(local, mesh, q_QGNRTK, k_QGNTK, v_QGNTK, prompt):
    """The compiler does not know how to split a Pallas kernel: every device is given its questions and its heads."""
    G, R, tensor = q_QGNRTK.shape[1], q_QGNRTK.shape[3], mesh.shape["tensor"]
    groups = "tensor" if G % tensor == 0 else None
    repeats = "tensor" if groups is None and R % tensor == 0 else None  # otherwise each device has all heads
    spec = PartitionSpec
    own = spec(ROWS, groups)
    return jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(spec(ROWS, groups, None, repeats), own, own, PromptKV(own, own, spec(ROWS))),
        out_specs=spec(ROWS, groups, None, repeats),
        check_vma=False,
    )(q_QGNRTK, k_QGNTK, v_QGNTK, prompt)


def _rounded(length: int, block: int) -> int:
    return -(-length // block) * block


def _padded(x, length: int, *, axis: int):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, length - x.shape[axis])
    return jnp.pad(x, widths)
