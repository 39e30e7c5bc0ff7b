"""Takes tokens, gives hidden states and logits: the decoder of the Llama family as one Flax NNX module.

Layers are stacked on L and scanned, so compile time does not grow with depth. There are three ways through it, all over
the same layer: `prefill` (prompts, once per question), `decode` (the next token of every sample) and `responses` (whole
responses for the update, their prompts again once per question).
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Mesh

from jaxselftrain.model.architecture import Architecture, RopeScaling
from jaxselftrain.model.attention import PromptKV, attention, wide_dtype, widen
from jaxselftrain.model.kernels import Kernel, fused_attention
from jaxselftrain.model.projection import project
from jaxselftrain.sharding import constrain, param_shardings

Remat = Literal["none", "dots", "layers"]  # what the backward pass computes again: nothing; all but projections; whole layers
LANES = 128  # of a TPU's tiles: the minor axis of an array is padded to a multiple of it
KEPT = {"dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable, "layers": None}


class Cache(NamedTuple):
    """Keys and values of all layers: [L, Q, G, C, K] for prompts; [L, Q, G, N, K, S] and [L, Q, G, N, S, K] for samples."""

    k: jax.Array
    v: jax.Array


class Policy(nnx.Module):
    """A decoder whose parameters are named and shaped as Architecture.shapes() says; stored in any dtype, see `ready`."""

    embed_VD: nnx.Param
    unembed_DV: nnx.Param  # where embeddings are not tied
    final_norm_D: nnx.Param

    def __init__(
        self,
        architecture: Architecture,
        *,
        compute_dtype: str,
        remat: Remat,
        mesh: Mesh | None,
        kernel: Kernel | None,
        gather: bool,
    ):
        self.architecture = architecture
        self.compute_dtype = compute_dtype
        self.remat = remat
        self.mesh = mesh
        self.kernel = kernel  # of attention over whole sequences; None: plain XLA
        self.gather = gather  # see `ready_to_sample`
        for name, shape in architecture.shapes().items():
            setattr(self, name, nnx.Param(jnp.zeros(shape)))

    def prefill(self, tokens_QC: jax.Array, length_Q: jax.Array) -> tuple[jax.Array, Cache]:
        """Prompts, padded on the right -> (hidden state of each last token [Q, D], prompt cache)."""
        mask_CC = _causal(tokens_QC.shape[1])
        rope = self._rope(jnp.arange(tokens_QC.shape[1]))

        def layer(x_QNTD, w):
            kept = []

            def attend(q, k, v):
                kept.append((k, v))
                return self._attend(q, k, v, mask_CC, None)

            x_QNTD = self._layer(w, x_QNTD, rope, attend)
            ((k_QGNTK, v_QGNTK),) = kept
            return x_QNTD, Cache(k_QGNTK[:, :, 0], v_QGNTK[:, :, 0])

        x_QNTD, cache = jax.lax.scan(layer, self._embed(tokens_QC[:, None]), self._layers())
        return self._final(_last(x_QNTD[:, 0], length_Q)), cache

    def decode(
        self, token_QN: jax.Array, age_QN: jax.Array, t: jax.Array, cache: Cache, prompt: Cache, prompt_length_Q: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """Each row's newest token, its age_QN-th -> (hidden state [Q, N, D], the cache with it written at slot t mod S).

        The S slots are a ring: all rows write the same one, whatever their ages, so nothing is scattered, and a row sees
        the newest age_QN of them. An age of 0 gives a row that sees its prompt alone; what it writes is seen by nobody.
        """
        S = cache.k.shape[5]
        slot = t % S
        mask_QNS = (slot - jnp.arange(S)) % S < age_QN[..., None]
        mask_QGNRTS = mask_QNS[:, None, :, None, None]
        mask_QC = jnp.arange(prompt.k.shape[3]) < prompt_length_Q[:, None]
        rope = self._rope((prompt_length_Q[:, None] + age_QN - 1)[..., None])

        def layer(carry, scanned):
            x_QNTD, cache = carry
            w, prompt_k, prompt_v, index = scanned
            kept = []

            def attend(q, k, v):
                # written in place: the cache is carried, never an output of the scan
                new_k = jax.lax.dynamic_update_slice(cache.k, k.mT[None], (index, 0, 0, 0, 0, slot))
                new_v = jax.lax.dynamic_update_slice(cache.v, v[None], (index, 0, 0, 0, slot, 0))
                new = self._in_full_lanes(Cache(new_k, new_v))
                kept.append(new)
                k, v = (jax.lax.dynamic_index_in_dim(c, index, keepdims=False) for c in new)
                return attention(q, k, v, mask_QGNRTS, PromptKV(prompt_k, prompt_v, mask_QC))

            x_QNTD = self._layer(w, x_QNTD, rope, attend)
            return (x_QNTD, kept[0]), None

        scanned = (self._layers(), prompt.k, prompt.v, jnp.arange(self.architecture.L))
        (x_QNTD, cache), _ = jax.lax.scan(layer, (self._embed(token_QN[..., None]), cache), scanned)
        return self._final(x_QNTD[:, :, 0]), cache

    def responses(self, tokens_QC: jax.Array, length_Q: jax.Array, tokens_QNT: jax.Array) -> jax.Array:
        """Hidden states that predict each response token, [Q, N, T, D]; the prompt goes through the network once a question.

        The first one is the prompt's last hidden state, so of each response only the first T - 1 tokens are read.
        """
        steps = tokens_QNT.shape[2] - 1
        prompt_rope = self._rope(jnp.arange(tokens_QC.shape[1]))
        rope = self._rope((length_Q[:, None] + jnp.arange(steps))[:, None])
        prompt_mask, mask = _causal(tokens_QC.shape[1]), _causal(steps)
        mask_QC = jnp.arange(tokens_QC.shape[1]) < length_Q[:, None]

        def layer(carry, w):
            prompt_QNCD, x_QNTD = carry
            kept = []

            def attend_prompt(q, k, v):
                kept.append(PromptKV(k[:, :, 0], v[:, :, 0], mask_QC))
                return self._attend(q, k, v, prompt_mask, None)

            prompt_QNCD = self._layer(w, prompt_QNCD, prompt_rope, attend_prompt)
            if steps:
                x_QNTD = self._layer(w, x_QNTD, rope, lambda q, k, v: self._attend(q, k, v, mask, kept[0]))
            return (prompt_QNCD, x_QNTD), None

        body = layer if self.remat == "none" else jax.checkpoint(layer, policy=KEPT[self.remat])
        start = (self._embed(tokens_QC[:, None]), self._embed(tokens_QNT[:, :, :-1]))
        (prompt_QNCD, x_QNTD), _ = jax.lax.scan(body, start, self._layers())
        first_QD = _last(prompt_QNCD[:, 0], length_Q)
        first_QNTD = jnp.broadcast_to(first_QD[:, None, None], (*tokens_QNT.shape[:2], 1, first_QD.shape[-1]))
        return self._final(jnp.concatenate([first_QNTD, x_QNTD], 2))

    def logits(self, hidden_D: jax.Array) -> jax.Array:
        """[..., D] -> [..., V], float32."""
        return output_logits(hidden_D, self.output_matrix(), tied=self.architecture.tied)

    def output_matrix(self) -> jax.Array:
        """[V, D] where it is the embedding, otherwise [D, V]."""
        return self.embed_VD[...] if self.architecture.tied else self.unembed_DV[...]

    def empty_cache(self, Q: int, N: int, S: int) -> Cache:
        a = self.architecture
        shapes = (a.L, Q, a.G, N, a.K, S), (a.L, Q, a.G, N, S, a.K)
        zeros = (jnp.zeros(shape, self.compute_dtype) for shape in shapes)
        return Cache(*(constrain(x, self.mesh, None, "rows", "kv_heads") for x in zeros))

    def _in_full_lanes(self, cache: Cache) -> Cache:
        """Samples' keys and values with the slots as a TPU's minor axis, where that pads less than K: its tiles have 128 lanes.

        The compiler takes K by itself, so heads of 64 would be padded to twice the memory, and twice the bytes of a step.
        """
        K, S = cache.k.shape[4:]
        on_tpu = self.mesh is not None and self.mesh.devices.flat[0].platform == "tpu"
        tiles_K, tiles_S = -(-K // LANES), -(-S // LANES)
        if not on_tpu or tiles_K * S <= tiles_S * K:
            return cache
        k = with_layout_constraint(cache.k, Layout(major_to_minor=(0, 1, 2, 3, 4, 5)))
        return Cache(k, with_layout_constraint(cache.v, Layout(major_to_minor=(0, 1, 2, 3, 5, 4))))

    def _layers(self) -> dict[str, jax.Array]:
        return {name: getattr(self, name)[...] for name in self.architecture.shapes() if name.rsplit("_", 1)[1].startswith("L")}

    def _layer(self, w, x_QNTD, rope, attend):
        """One decoder layer; attend(q_QGNRTK, k_QGNTK, v_QGNTK) -> QGNRTK owns masks and caches."""
        a = self.architecture
        x_QNTD = constrain(x_QNTD, self.mesh, "rows")
        h_QNTD = self._norm(x_QNTD, w["attn_norm_LD"])
        q_QNTHK, k_QNTGK, v_QNTGK = (
            jnp.einsum("QNTD,DHK->QNTHK", h_QNTD, w[name]) for name in ("w_q_LDHK", "w_k_LDGK", "w_v_LDGK")
        )
        if a.qkv_bias:
            q_QNTHK, k_QNTGK, v_QNTGK = q_QNTHK + w["b_q_LHK"], k_QNTGK + w["b_k_LGK"], v_QNTGK + w["b_v_LGK"]
        if a.qk_norm:
            q_QNTHK, k_QNTGK = self._norm(q_QNTHK, w["q_norm_LK"]), self._norm(k_QNTGK, w["k_norm_LK"])
        q_QNTHK, k_QNTGK = _rotate(q_QNTHK, rope), _rotate(k_QNTGK, rope)
        q_QNTGRK = q_QNTHK.reshape(*q_QNTHK.shape[:3], a.G, a.H // a.G, a.K)
        out_QGNRTK = attend(
            q_QNTGRK.transpose(0, 3, 1, 4, 2, 5), k_QNTGK.transpose(0, 3, 1, 2, 4), v_QNTGK.transpose(0, 3, 1, 2, 4)
        )
        out_QNTHK = out_QGNRTK.transpose(0, 2, 4, 1, 3, 5).reshape(q_QNTHK.shape)
        x_QNTD = x_QNTD + jnp.einsum("QNTHK,HKD->QNTD", out_QNTHK, w["w_o_LHKD"])
        h_QNTD = self._norm(x_QNTD, w["mlp_norm_LD"])
        gate_QNTF = jax.nn.silu(project("QNTD,DF->QNTF", h_QNTD, w["w_gate_LDF"]))
        up_QNTF = project("QNTD,DF->QNTF", h_QNTD, w["w_up_LDF"])
        return x_QNTD + project("QNTF,FD->QNTD", gate_QNTF * up_QNTF, w["w_down_LFD"])

    def _attend(self, q_QGNRTK, k_QGNTK, v_QGNTK, causal_TT, prompt):
        """Attention of whole sequences; decoding, one query a row, has no use for kernels made for many."""
        if self.kernel is None:
            return attention(q_QGNRTK, k_QGNTK.mT, v_QGNTK, causal_TT, prompt)
        return fused_attention(q_QGNRTK, k_QGNTK, v_QGNTK, prompt, self.kernel, self.mesh)

    def _embed(self, tokens):
        return constrain(self.embed_VD[...][tokens], self.mesh, "rows")

    def _final(self, hidden_D):
        return self._norm(hidden_D, self.final_norm_D[...])

    def _norm(self, x, scale):
        """Root-mean-square norm over the last axis, in float32."""
        x32 = widen(x)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, -1, keepdims=True) + self.architecture.norm_eps)
        return x32.astype(x.dtype) * scale

    def _rope(self, position):
        return rope(position, K=self.architecture.K, theta=self.architecture.rope_theta, scaling=self.architecture.rope_scaling)


def output_logits(hidden_D: jax.Array, matrix: jax.Array, *, tied: bool) -> jax.Array:
    """[..., D] and the output matrix, [V, D] if tied and [D, V] if not -> [..., V], float32."""
    letters = "...D,VD->...V" if tied else "...D,DV->...V"
    return jnp.einsum(letters, hidden_D, matrix, preferred_element_type=wide_dtype(hidden_D))


def ready(graph: nnx.GraphDef, params: dict[str, jax.Array]) -> Policy:
    """The policy with its parameters in the compute dtype: cast once per program, not once per token."""
    policy = nnx.merge(graph, params)
    return nnx.merge(graph, jax.tree.map(lambda x: x.astype(policy.compute_dtype), params))


def ready_to_sample(graph: nnx.GraphDef, params: dict[str, jax.Array]) -> Policy:
    """The same, with the weights that fsdp splits put together once, unless the policy says otherwise.

    Every token reads all weights. Left in parts they would pass through the links between devices again for each: for 7B on 64
    v5e chips 10 TB a step, 51 of its 64 seconds at the least.
    """
    policy = ready(graph, params)
    mesh = policy.mesh
    if mesh is None or mesh.shape["fsdp"] == 1 or not policy.gather:
        return policy
    at = param_shardings(mesh, policy.architecture, gathered=True)
    return nnx.merge(graph, {name: jax.lax.with_sharding_constraint(getattr(policy, name)[...], at[name]) for name in at})


def abstract_policy(
    architecture: Architecture,
    *,
    compute_dtype: str,
    remat: Remat,
    mesh: Mesh | None = None,
    kernel: Kernel | None = None,
    gather: bool = True,
) -> nnx.GraphDef:
    """The policy's graph definition, without memory for its weights: `nnx.merge` it with a dict of parameters, or use `ready`."""
    make = partial(Policy, architecture, compute_dtype=compute_dtype, remat=remat, mesh=mesh, kernel=kernel, gather=gather)
    return nnx.split(nnx.eval_shape(make))[0]


def rope(position: jax.Array, *, K: int, theta: float, scaling: RopeScaling | None) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines of rotary embedding (arXiv 2104.09864), [..., K/2] each, float32, for whole-number positions."""
    frequency = theta ** (-jnp.arange(0, K, 2, dtype=jnp.float32) / K)
    if scaling is not None:
        wavelength = 2 * jnp.pi / frequency
        low = scaling.original_max_positions / scaling.low_freq_factor
        high = scaling.original_max_positions / scaling.high_freq_factor
        span = scaling.high_freq_factor - scaling.low_freq_factor
        smooth = (scaling.original_max_positions / wavelength - scaling.low_freq_factor) / span
        between = (1 - smooth) * frequency / scaling.factor + smooth * frequency
        frequency = jnp.where(wavelength > low, frequency / scaling.factor, jnp.where(wavelength < high, frequency, between))
    angle = position[..., None].astype(jnp.float32) * frequency
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x_QNTHK, rope):
    """Rotates the two halves of each head (not neighbouring pairs): the layout of Hugging Face's weights."""
    cos, sin = (part[..., None, :] for part in rope)  # one angle for all heads
    a, b = jnp.split(widen(x_QNTHK), 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x_QNTHK.dtype)


def _causal(T: int) -> jax.Array:
    return jnp.tril(jnp.ones((T, T), bool))


def _last(x_QCD, length_Q):
    return jnp.take_along_axis(x_QCD, (length_Q - 1)[:, None, None], 1)[:, 0]
