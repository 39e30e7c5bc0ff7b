"""Takes the name of a model's shape, gives random weights and a tokenizer of it: for measuring where no model file is."""

from __future__ import annotations

import itertools
import string

import jax
import jax.numpy as jnp

from jaxselftrain.assembly import Parts
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.model.tokenizer import Tokenizer
from jaxselftrain.sharding import param_shardings

LLAMA, QWEN = "LlamaForCausalLM", "Qwen2ForCausalLM"
SHAPES = {
    "tiny": Architecture(
        LLAMA, V=512, D=64, F=128, H=4, G=2, K=16, L=2, rope_theta=1e4, norm_eps=1e-5, max_positions=4096, tied=True
    ),
    "smollm2-135m": Architecture(
        LLAMA, V=49152, D=576, F=1536, H=9, G=3, K=64, L=30, rope_theta=1e5, norm_eps=1e-5, max_positions=8192, tied=True
    ),
    "qwen2.5-1.5b": Architecture(
        QWEN,
        V=151936,
        D=1536,
        F=8960,
        H=12,
        G=2,
        K=128,
        L=28,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_positions=32768,
        tied=True,
        qkv_bias=True,
    ),
    "qwen2.5-7b": Architecture(
        QWEN,
        V=152064,
        D=3584,
        F=18944,
        H=28,
        G=4,
        K=128,
        L=28,
        rope_theta=1e6,
        norm_eps=1e-6,
        max_positions=32768,
        tied=False,
        qkv_bias=True,
    ),
}


def random_params(parts: Parts) -> dict[str, jax.Array]:
    """Matrices N(0, 0.02), norms 1, biases 0, made on the devices where they belong."""
    at, dtype = param_shardings(parts.mesh, parts.architecture), parts.config.model.weights_dtype

    def make(key):
        params = {}
        for index, (name, shape) in enumerate(parts.architecture.shapes().items()):
            if "norm" in name or name.startswith("b_"):
                params[name] = jnp.full(shape, float("norm" in name), dtype)
            else:
                params[name] = jax.random.normal(jax.random.fold_in(key, index), shape, dtype) * jnp.asarray(0.02, dtype)
        return params

    return jax.jit(make, out_shardings=at)(jax.random.key(0))


def word_tokenizer(V: int) -> Tokenizer:
    """A byte-level tokenizer of V tokens: the bytes, then made-up words, so that responses are as long as real text."""
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = (
        "Ġ" + "".join(word) for size in itertools.count(2) for word in itertools.product(string.ascii_lowercase, repeat=size)
    )
    names = [*letters, *itertools.islice(words, V - len(letters))]
    fast = Fast(models.BPE({name: index for index, name in enumerate(names)}, []))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast), eos_ids=[], where="made-up words")
