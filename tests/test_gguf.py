"""Weights in from GGUF: small files written here against torch, and the real SmolLM2 against transformers' own loading."""

import dataclasses
import struct

import gguf
import ml_dtypes
import numpy as np
import pytest
from small_models import LLAMA3, THETA, smollm2, smollm2_torch, torch_model, written_out
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import from_huggingface
from jaxselftrain.model.gguf import open_gguf, read_gguf
from jaxselftrain.model.huggingface import open_folder
from jaxselftrain.model.loading import load_params, open_weights

KINDS = {"llama": "llama", "llama_tied": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3_tied": "qwen3"}
TYPES = {kind.name: kind for kind in gguf.GGMLQuantizationType}


def _permuted(w, heads):
    """llama.cpp's order of Q and K rows: within a head, the two halves interleaved."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def _write(path, model, kind, type_name, *, metadata=None, extra=None, skip=()):
    """A GGUF file of a small torch model as llama.cpp's converter lays it out; matrices of the type, vectors float32."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), kind)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head = getattr(config, "head_dim", None)
    if head is not None:
        writer.add_key_length(head)
        writer.add_value_length(head)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(2)
    writer.add_token_list(["<|endoftext|>", "é", "x"])
    writer.add_array("test.numbers", [1, 2, 3])
    for key, value in (metadata or {}).items():
        {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}[type(value)](key, value)
    names = gguf.get_tensor_name_map({v: k for k, v in gguf.MODEL_ARCH_NAMES.items()}[kind], config.num_hidden_layers)
    for name, value in model.state_dict().items():
        name, array = names.get_name(name, try_suffixes=(".weight", ".bias")), value.numpy()
        if (name == "output.weight" and config.tie_word_embeddings) or name in skip:
            continue
        if kind == "llama" and (".attn_q." in name or ".attn_k." in name):
            array = _permuted(array, config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads)
        chosen = TYPES[type_name if array.ndim == 2 else "F32"]
        writer.add_tensor(name, gguf.quantize(np.ascontiguousarray(array), chosen), raw_dtype=chosen)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _rounded(value, type_name):
    """What a type keeps of a matrix, by NumPy's own casts (or the package's round trip for quantized ones)."""
    if type_name == "F16":
        return value.astype(np.float16).astype(np.float32)
    if type_name == "BF16":
        return value.astype(ml_dtypes.bfloat16).astype(np.float32)
    return gguf.dequantize(gguf.quantize(np.ascontiguousarray(value), TYPES[type_name]), TYPES[type_name])


@pytest.mark.parametrize(
    ("family", "type_name"),
    [(family, "F32") for family in KINDS] + [("llama", "F16"), ("qwen2", "BF16"), ("llama", "Q8_0"), ("qwen3_tied", "Q4_1")],
)
def test_a_small_gguf_equals_the_folder_of_the_same_model(family, type_name, tmp_path):
    import torch

    model = torch_model(family)
    if model.config.rope_parameters["rope_type"] == "llama3":  # its factors are tested on their own below
        model.config.rope_parameters = dict(THETA)
    path = _write(tmp_path / "model.gguf", model, KINDS[family], type_name)
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim == 2 and type_name != "F32":
                value.copy_(torch.from_numpy(_rounded(value.numpy(), type_name)))
    model.save_pretrained(str(tmp_path / "folder"))
    ours, theirs = open_weights(path), open_folder(tmp_path / "folder")
    same = [x for x in vars(theirs.architecture) if x != "name"]
    assert {x: getattr(ours.architecture, x) for x in same} == {x: getattr(theirs.architecture, x) for x in same}
    params, want = (load_params(weights, shardings=None, dtype="float32") for weights in (ours, theirs))
    assert params.keys() == want.keys()
    for name, value in params.items():
        np.testing.assert_array_equal(value, want[name], err_msg=name)
    assert ours.generation == {"bos_token_id": 0, "eos_token_id": 2}


def test_a_slice_dequantizes_only_its_rows_and_blocks(tmp_path, monkeypatch):
    path = _write(tmp_path / "model.gguf", torch_model("llama_tied"), "llama", "Q8_0")
    weights = open_gguf(path)
    whole = {name: weights.read(name, (slice(None),) * len(shape)) for name, shape in weights.architecture.shapes().items()}
    dequantize, sizes = gguf.dequantize, []
    monkeypatch.setattr(gguf, "dequantize", lambda raw, kind: sizes.append(raw.nbytes) or dequantize(raw, kind))
    for name, index in (
        ("w_q_LDHK", np.s_[1:2, 32:64, 1:3, :]),
        ("w_k_LDGK", np.s_[0:3, 40:50, 2:4, 3:5]),
        ("w_down_LFD", np.s_[2:3, 0:32, 7:9]),
        ("embed_VD", np.s_[300:320, 0:64]),
    ):
        np.testing.assert_array_equal(weights.read(name, index), whole[name][index], err_msg=name)
    block = 34  # bytes of a Q8_0 block of 32
    # heads 1 and 2 of one layer; one block of columns, heads 2 and 3, three layers; two rows; 20 rows of two blocks
    assert sizes == [2 * 16 * block, *[2 * 16 * block] * 3, 2 * block, 20 * 2 * block]


def test_llama3_rope_scaling_is_recovered_from_its_factors(tmp_path):
    """rope_freqs.weight is what transformers' frequencies are divided by, for Llama 3.1's settings."""
    model = torch_model("llama")
    settings = {**LLAMA3, "rope_theta": 500_000.0, "original_max_position_embeddings": 8192}
    model.config.rope_parameters = settings
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](model.config, "cpu")
    plain = 500_000.0 ** (-np.arange(0, 16, 2) / 16)
    factors = (plain / scaled.numpy()).astype(np.float32)
    assert 1 < np.unique(factors).size < 8 and factors.max() > 7.9
    path = _write(tmp_path / "a.gguf", model, "llama", "F32", extra={"rope_freqs.weight": factors})
    weights = open_gguf(path)
    model.save_pretrained(str(tmp_path / "folder"))
    assert weights.architecture.rope_scaling == open_folder(tmp_path / "folder").architecture.rope_scaling
    weights.check()
    ones = _write(tmp_path / "b.gguf", model, "llama", "F32", extra={"rope_freqs.weight": np.ones(8, np.float32)})
    assert open_gguf(ones).architecture.rope_scaling is None
    other = _write(tmp_path / "c.gguf", model, "llama", "F32", extra={"rope_freqs.weight": factors**2})
    with pytest.raises(UserError, match=r"rope_freqs\.weight is not Llama 3's"):
        open_gguf(other)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "rope scaling yarn"),
        ({"llama.expert_count": 8}, "expert_count = 8"),
        ({"llama.rope.dimension_count": 8}, "rope.dimension_count = 8"),
        ({"split.count": 3}, "one part of 3"),
    ],
)
def test_metadata_that_cannot_be_expressed_is_refused(metadata, words, tmp_path):
    path = _write(tmp_path / "model.gguf", torch_model("llama_tied"), "llama", "F32", metadata=metadata)
    with pytest.raises(UserError, match=words):
        open_gguf(path)


def test_several_end_tokens_and_a_sliding_window(tmp_path):
    metadata = {"tokenizer.ggml.eot_token_id": 5, "qwen2.attention.sliding_window": 100}
    weights = open_gguf(_write(tmp_path / "model.gguf", torch_model("qwen2_tied"), "qwen2", "F32", metadata=metadata))
    assert weights.generation["eos_token_id"] == [2, 5]
    assert weights.architecture.max_positions == 100


def test_damaged_and_foreign_files_are_refused(tmp_path):
    model, path = torch_model("llama_tied"), tmp_path / "model.gguf"
    content = _write(path, model, "llama", "F32").read_bytes()

    def refused(data, words):
        path.write_bytes(data)
        with pytest.raises(UserError, match=words):
            open_gguf(path)

    for length in (0, 10, 24, 100, 1000, 3000):
        refused(content[:length], "no GGUF file" if length < 24 else "damaged or incomplete")
    refused(content[:-4000], r"tensor .* does not fit")
    refused(b"PK" + content[2:], "does not begin with GGUF")
    refused(content[:4] + struct.pack("<I", 1) + content[8:], "GGUF version 1")
    refused(content[:24] + struct.pack("<Q", 2**63) + content[32:], "damaged or incomplete")
    with pytest.raises(UserError, match="cannot be read"):
        read_gguf(tmp_path / "nowhere.gguf")
    missing = _write(tmp_path / "missing.gguf", model, "llama", "F32", skip=("blk.1.ffn_up.weight",))
    with pytest.raises(UserError, match=r"tensor blk\.1\.ffn_up\.weight is missing"):
        load_params(open_gguf(missing), shardings=None, dtype="float32")
    with pytest.raises(UserError, match="GGUF architecture gemma is not supported; supported are llama, qwen2, qwen3"):
        writer = gguf.GGUFWriter(str(tmp_path / "gemma.gguf"), "gemma")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        open_gguf(tmp_path / "gemma.gguf")
    integers = _write(tmp_path / "int.gguf", model, "llama", "F32", extra={"odd": np.zeros(8, np.int8)})
    with pytest.raises(UserError, match="tensor odd is of type I8"):
        open_gguf(integers)


def test_the_header_equals_the_gguf_packages_reading():
    ours, theirs = read_gguf(smollm2()), gguf.GGUFReader(smollm2())
    fields = {name: part for name, part in theirs.fields.items() if not name.startswith("GGUF.")}
    assert ours.metadata == {name: part.contents() for name, part in fields.items()}
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert (mine.kind, mine.offset, mine.size) == (tensor.tensor_type, tensor.data_offset, tensor.n_bytes)
        assert mine.shape == tuple(int(size) for size in tensor.shape[::-1])


def test_smollm2_equals_transformers_own_gguf_loading():
    weights, theirs = open_weights(smollm2()), smollm2_torch()
    params = load_params(weights, shardings=None, dtype="float32")
    assert sum(value.size for value in params.values()) == theirs.num_parameters()
    for name, value in params.items():
        np.testing.assert_allclose(value, written_out(theirs, name), rtol=0, atol=1e-6, err_msg=name)
    config = {**theirs.config.to_dict(), "architectures": ["LlamaForCausalLM"]}
    same = dataclasses.replace(from_huggingface(config, "theirs"), norm_eps=1e-5)  # transformers keeps eps's float32 digits
    assert weights.architecture == same and abs(config["rms_norm_eps"] - 1e-5) < 1e-12
