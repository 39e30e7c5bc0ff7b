"""The kernels' layouts against plain attention (cuDNN's in its XLA form, splash interpreted), and where kernels cannot run."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import TINY, mesh_of, params, prompts, rollouts, tiny_config

from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.model.attention import PromptKV, attention
from jaxselftrain.model.kernels import CUDNN_BLOCK, SPLASH_BLOCK, check_kernel, fused_attention
from jaxselftrain.model.policy import abstract_policy, ready

TWO, FOUR = {"fsdp": 2, "tensor": 1}, {"fsdp": 2, "tensor": 2}
THREE = {"fsdp": 1, "tensor": 3}  # splits the heads of a group, not the groups
GROUPED = Architecture(
    "Qwen2ForCausalLM", V=64, D=16, F=32, H=6, G=2, K=8, L=2, rope_theta=1e4, norm_eps=1e-5, max_positions=128, tied=True,
    qkv_bias=True,
)  # fmt: skip


SIZES = [
    *(("xla", C, T) for C, T in [(1, 1), (5, 7), (CUDNN_BLOCK, 3), (40, CUDNN_BLOCK - 40), (3, CUDNN_BLOCK)]),
    *(("interpret", C, T) for C, T in [(1, 1), (5, 7), (SPLASH_BLOCK - 3, 3), (2, SPLASH_BLOCK), (300, 140)]),
]


@pytest.mark.parametrize(("kernel", "C", "T"), SIZES)
def test_a_sample_sees_its_prompt_and_its_own_past(kernel, C, T):
    Q, G, N, R, K = 3, 2, 2, 3, 8
    keys = jax.random.split(jax.random.key(C), 6)
    q = jax.random.normal(keys[0], (Q, G, N, R, T, K))
    k, v = (jax.random.normal(key, (Q, G, N, T, K)) for key in keys[1:3])
    prompt_k, prompt_v = (jax.random.normal(key, (Q, G, C, K)) for key in keys[3:5])
    mask_QC = jnp.arange(C) < jnp.asarray([1, max(1, C // 2), C])[:, None]
    causal = jnp.tril(jnp.ones((T, T), bool))
    weight = jax.random.normal(keys[5], q.shape)

    def plain(q, k, v, prompt_k, prompt_v):
        out = attention(q, k.mT, v, causal, PromptKV(prompt_k, prompt_v, mask_QC))
        return (out * weight).sum(), out

    def fused(q, k, v, prompt_k, prompt_v):
        out = fused_attention(q, k, v, PromptKV(prompt_k, prompt_v, mask_QC), kernel, None)
        return (out * weight).sum(), out

    given = q, k, v, prompt_k, prompt_v
    want, got = (jax.jit(jax.value_and_grad(f, argnums=range(5), has_aux=True))(*given) for f in (plain, fused))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


WHOLE = [
    (GROUPED, "xla", {}),
    (GROUPED, "xla", TWO),
    (TINY, "interpret", {}),
    (GROUPED, "interpret", FOUR),
    (GROUPED, "interpret", THREE),
]


@pytest.mark.parametrize(("architecture", "kernel", "shape"), WHOLE)
def test_the_whole_policy_agrees_with_the_plain_one(architecture, kernel, shape):
    mesh = mesh_of(tiny_config(mesh=shape), math.prod(shape.values()))
    weights, got, asked = params(architecture), rollouts(), prompts()
    results = []
    for by in (None, kernel):
        policy = abstract_policy(architecture, compute_dtype="float32", remat="layers", mesh=mesh, kernel=by)

        def loss(weights, policy=policy):
            hidden = ready(policy, weights).responses(got.prompt_QC, got.prompt_length_Q, got.tokens_QNT)
            return (hidden**2 * jnp.arange(hidden.shape[2])[:, None]).sum(), hidden

        last, _ = jax.jit(lambda w, policy=policy: ready(policy, w).prefill(asked.tokens_QC, asked.length_Q))(weights)
        results.append((jax.jit(jax.value_and_grad(loss, has_aux=True))(weights), last))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(jnp.abs(b).max()))


def test_what_a_kernel_needs_is_said():
    check_kernel("splash", "float32", 36, "tpu")
    with pytest.raises(UserError, match="model.attention = splash needs a TPU, and the devices are cpus"):
        check_kernel("splash", "bfloat16", 128, "cpu")
    check_kernel("cudnn", "bfloat16", 128, "gpu")
    for given, said in {
        ("bfloat16", 64, "cpu"): "needs a GPU, and the devices are cpus",
        ("float32", 64, "gpu"): "needs model.compute_dtype = bfloat16, which is float32",
        ("bfloat16", 80, "gpu"): None,
        ("bfloat16", 36, "gpu"): "needs heads of a multiple of 8 and at most 128, and the model's are of 36",
        ("bfloat16", 256, "gpu"): "at most 128",
    }.items():
        if said is None:
            check_kernel("cudnn", *given)
        else:
            with pytest.raises(UserError, match=said):
                check_kernel("cudnn", *given)
