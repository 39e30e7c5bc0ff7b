"""Takes a Hugging Face config.json, gives the Architecture of a decoder of the Llama family and its parameter shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxselftrain.errors import UserError

SUPPORTED = {  # architectures[0] of config.json -> flags that the class implies
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"qkv_bias": True},
    "Qwen3ForCausalLM": {"qk_norm": True},
}
# What `transformers` takes where config.json is silent; only what differs by class stands here.
DEFAULTS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "MistralForCausalLM": {"num_key_value_heads": 8, "sliding_window": 4096},
    "Qwen2ForCausalLM": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28},
    "Qwen3ForCausalLM": {"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28, "head_dim": 128},
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
BIASES = {"LlamaForCausalLM": ("attention_bias", "mlp_bias"), "Qwen3ForCausalLM": ("attention_bias",)}


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling (rope_type llama3)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class Architecture:
    """Sizes and flags of one decoder; letters as in the package's dimension table."""

    name: str
    V: int
    D: int
    F: int
    H: int
    G: int
    K: int
    L: int
    rope_theta: float
    norm_eps: float
    max_positions: int
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False
    rope_scaling: RopeScaling | None = None

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every parameter; the suffix of a name spells its dimensions, per-layer ones are stacked on L."""
        names = ["embed_VD", "final_norm_D", "attn_norm_LD", "mlp_norm_LD", "w_q_LDHK", "w_k_LDGK", "w_v_LDGK", "w_o_LHKD"]
        names += ["w_gate_LDF", "w_up_LDF", "w_down_LFD"]
        names += [] if self.tied else ["unembed_DV"]
        names += ["b_q_LHK", "b_k_LGK", "b_v_LGK"] if self.qkv_bias else []
        names += ["q_norm_LK", "k_norm_LK"] if self.qk_norm else []
        return {name: tuple(getattr(self, letter) for letter in name.rsplit("_", 1)[1]) for name in names}


def from_huggingface(config: dict[str, Any], where: str) -> Architecture:
    """The Architecture a config.json describes. Raises UserError when it is one that the decoder does not compute.

    `where` names the config's origin in errors. Both spellings of the rotary settings are read: `rope_theta` with
    `rope_scaling`, and the `rope_parameters` of transformers 5.
    """
    names = config.get("architectures") or []
    name = names[0] if names else None
    if name not in SUPPORTED:
        raise UserError(f"{where}: architecture {name} is not supported; supported are {', '.join(SUPPORTED)}")
    config = {**DEFAULTS[name], **config}
    if config.get("hidden_act", "silu") != "silu":
        raise UserError(f"{where}: hidden_act {config['hidden_act']} is not supported; only silu is")
    for field in BIASES.get(name, ()):
        if config.get(field):
            raise UserError(f"{where}: {field} = true is not supported for {name}")
    heads = _size(config, "num_attention_heads", where)
    if config.get("num_key_value_heads") is None:
        config["num_key_value_heads"] = heads
    if config.get("head_dim") is None:
        config["head_dim"] = _size(config, "hidden_size", where) // heads
    V, D, F, L, H, max_positions = (_size(config, field, where) for field in SIZES)
    G, K = _size(config, "num_key_value_heads", where), _size(config, "head_dim", where)
    if H % G:
        raise UserError(f"{where}: num_key_value_heads = {G} does not divide num_attention_heads = {H}")
    if K % 2:
        raise UserError(f"{where}: head_dim = {K} is odd; rotary embedding needs an even one")
    if _slides(config, name):
        max_positions = min(max_positions, config["sliding_window"])  # inside one window, sliding attention is plain attention
    theta, scaling = _rope(config, where)
    return Architecture(
        name=name,
        V=V,
        D=D,
        F=F,
        H=H,
        G=G,
        K=K,
        L=L,
        rope_theta=theta,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        max_positions=max_positions,
        tied=bool(config.get("tie_word_embeddings", False)),
        rope_scaling=scaling,
        **SUPPORTED[name],
    )


def _size(config: dict[str, Any], field: str, where: str) -> int:
    value = config.get(field)
    if type(value) is not int or value < 1:
        raise UserError(f"{where}: {field} = {value!r} must be a whole number of at least 1")
    return value


def _slides(config: dict[str, Any], name: str) -> bool:
    """Whether any layer attends only inside a window."""
    if config.get("sliding_window") is None:
        return False
    if name == "MistralForCausalLM":
        return True
    if name == "LlamaForCausalLM" or not config.get("use_sliding_window"):
        return False
    if config.get("layer_types") is not None:
        return "sliding_attention" in config["layer_types"]
    return config["max_window_layers"] < config["num_hidden_layers"]


def _rope(config: dict[str, Any], where: str) -> tuple[float, RopeScaling | None]:
    """Base and scaling of the rotary frequencies; like transformers, what stands in the nested record goes first."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in rope.values()):
        raise UserError(f"{where}: rope_parameters that differ by layer are not supported")
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    fraction = rope.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if fraction not in (None, 1):
        raise UserError(f"{where}: partial_rotary_factor = {fraction} is not supported; only 1 is")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(f"{where}: rope scaling {kind} is not supported; supported are default and llama3")
    for field in ("factor", "low_freq_factor", "high_freq_factor"):
        if field not in rope:
            raise UserError(f"{where}: rope scaling llama3 lacks {field}")
    scaling = RopeScaling(
        factor=float(rope["factor"]),
        low_freq_factor=float(rope["low_freq_factor"]),
        high_freq_factor=float(rope["high_freq_factor"]),
        original_max_positions=int(rope.get("original_max_position_embeddings") or config["max_position_embeddings"]),
    )
    return theta, scaling
