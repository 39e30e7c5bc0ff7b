"""config.json -> Architecture, against the config classes of transformers."""

import json

import pytest
import transformers
from small_models import FAMILIES, HEADS, LLAMA3, SIZES

from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import RopeScaling, from_huggingface

CLASSES = ("Llama", "Mistral", "Qwen2", "Qwen3")
BARE = {**SIZES, "num_attention_heads": 32, "hidden_size": 2048}  # 32: divisible by every class's default of kv heads


def _architecture(config):
    return from_huggingface(config, "config.json")


def _check(config, theirs):
    """Our reading of a config.json against what transformers made of it."""
    ours = _architecture(config)
    heads = theirs.num_attention_heads
    assert (ours.V, ours.D, ours.F, ours.L) == (
        theirs.vocab_size,
        theirs.hidden_size,
        theirs.intermediate_size,
        theirs.num_hidden_layers,
    )
    assert (ours.H, ours.G) == (heads, theirs.num_key_value_heads)
    assert (getattr(theirs, "head_dim", None) or theirs.hidden_size // heads) == ours.K
    assert ours.rope_theta == theirs.rope_parameters["rope_theta"]
    assert ours.norm_eps == theirs.rms_norm_eps
    assert ours.tied == theirs.tie_word_embeddings
    assert (ours.rope_scaling is None) == (theirs.rope_parameters["rope_type"] == "default")
    return ours


@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_reads_back(family, tmp_path):
    kind = FAMILIES[family]
    theirs = getattr(transformers, f"{kind.causal}Config")(
        **{**SIZES, **HEADS, **kind.config}, architectures=[f"{kind.causal}ForCausalLM"]
    )
    theirs.save_pretrained(str(tmp_path))
    ours = _check(json.loads((tmp_path / "config.json").read_text()), theirs)
    assert ours.qkv_bias == (kind.causal == "Qwen2") and ours.qk_norm == (kind.causal == "Qwen3")
    assert ours.max_positions == 256


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}, {"head_dim": 32}, {"rope_theta": 123.0}])
def test_what_config_json_leaves_out_is_as_in_transformers(name, changes):
    config = {**BARE, **changes, "architectures": [f"{name}ForCausalLM"]}
    _check(config, getattr(transformers, f"{name}Config")(**config))


def test_old_and_new_spelling_of_rope_agree():
    old = {k: v for k, v in LLAMA3.items() if k != "rope_theta"}
    base = {**SIZES, **HEADS, "architectures": ["LlamaForCausalLM"]}
    new = _architecture({**base, "rope_parameters": LLAMA3})
    assert new == _architecture({**base, "rope_theta": 10_000.0, "rope_scaling": old})
    assert new.rope_scaling == RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_positions=32)
    without = {k: v for k, v in LLAMA3.items() if k != "original_max_position_embeddings"}
    theirs = transformers.LlamaConfig(**{**base, "rope_parameters": dict(without)})
    got = _architecture({**base, "rope_parameters": without}).rope_scaling
    assert got.original_max_positions == theirs.rope_parameters["original_max_position_embeddings"] == 256


@pytest.mark.parametrize(
    ("name", "changes", "longest"),
    [
        ("Mistral", {"sliding_window": 100}, 100),
        ("Mistral", {"sliding_window": None}, 256),
        ("Mistral", {"max_position_embeddings": 8192}, 4096),  # transformers' own window where config.json is silent
        ("Qwen2", {"sliding_window": 100}, 256),
        ("Qwen2", {"sliding_window": 100, "use_sliding_window": True}, 256),  # only layers from 28 on slide
        ("Qwen2", {"sliding_window": 100, "use_sliding_window": True, "max_window_layers": 1}, 100),
        ("Qwen3", {"sliding_window": 100, "use_sliding_window": True, "layer_types": ["full_attention"] * 3}, 256),
    ],
)
def test_the_context_ends_with_the_sliding_window(name, changes, longest):
    config = {**BARE, "architectures": [f"{name}ForCausalLM"], **changes}
    assert _architecture(config).max_positions == longest
    if name != "Mistral":
        theirs = getattr(transformers, f"{name}Config")(**config)
        assert ("sliding_attention" in theirs.layer_types) == (longest == 100)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported"),
        ({"architectures": None}, "architecture None is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"vocab_size": None}, "vocab_size = None"),
        ({"num_hidden_layers": "3"}, "num_hidden_layers = '3'"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"head_dim": 15}, "head_dim = 15"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope scaling linear"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "lacks low_freq_factor"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "differ by layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ],
)
def test_what_the_decoder_does_not_compute_is_refused_by_name(changes, words):
    with pytest.raises(UserError, match=words):
        _architecture({**SIZES, **HEADS, "architectures": ["LlamaForCausalLM"], **changes})
