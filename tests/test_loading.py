"""Weights in: Hugging Face folders against torch, shard by shard, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors.numpy import load_file, save_file
from small_models import FAMILIES, random_params, save_folder, torch_model, written_out

from jaxselftrain.errors import UserError
from jaxselftrain.model.loading import load_params, open_weights

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """family -> (torch model, folder), made once."""
    made = {}

    def get(family):
        if family not in made:
            model = torch_model(family)
            made[family] = model, save_folder(model, tmp_path_factory.mktemp(family))
        return made[family]

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_equals_torchs(family, folders):
    model, folder = folders(family)
    weights = open_weights(folder)
    params = load_params(weights, shardings=None, dtype="float32")
    assert {name: value.shape for name, value in params.items()} == weights.architecture.shapes()
    assert sum(value.size for value in params.values()) == model.num_parameters()
    for name, value in params.items():
        np.testing.assert_array_equal(value, written_out(model, name), err_msg=name)
    assert weights.generation["eos_token_id"] == [2, 0]


def test_sharded_files_and_their_index_read_the_same(folders, tmp_path):
    model, whole = folders("llama")
    save_folder(model, tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    _same(load_params(open_weights(tmp_path), shardings=None, dtype="float32"), _params(whole))


@pytest.mark.parametrize(("dtype", "rounded"), [("bfloat16", True), ("float16", False)])
def test_half_precision_files(dtype, rounded, folders, tmp_path):
    """bfloat16 stays as it is when the parameters are bfloat16; float16 passes through float32."""
    import torch

    model, _ = folders("qwen2")
    save_folder(torch_model("qwen2").to(getattr(torch, dtype)), tmp_path)
    params = load_params(open_weights(tmp_path), shardings=None, dtype="bfloat16" if rounded else "float32")
    for name, value in params.items():
        want = torch.from_numpy(np.array(written_out(model, name))).to(getattr(torch, dtype)).to(torch.float32).numpy()
        assert value.dtype == (jax.numpy.bfloat16 if rounded else np.float32)
        np.testing.assert_array_equal(np.asarray(value, np.float32), want, err_msg=name)


def _params(folder):
    return load_params(open_weights(folder), shardings=None, dtype="float32")


def _same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name], err_msg=name)


SPECS = {
    "embed_VD": ("tensor", "fsdp"),
    "unembed_DV": ("fsdp", "tensor"),
    "w_q_LDHK": (None, "fsdp", "tensor"),
    "w_k_LDGK": (None, "fsdp", "tensor"),
    "w_v_LDGK": (None, "fsdp", "tensor"),
    "w_o_LHKD": (None, "tensor", None, "fsdp"),
    "w_gate_LDF": (None, "fsdp", "tensor"),
    "w_up_LDF": (None, "fsdp", "tensor"),
    "w_down_LFD": (None, "tensor", "fsdp"),
    "b_q_LHK": (None, "tensor"),
}


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_sharded_loading_reads_each_shard_once_and_equals_unsharded(family, folders):
    _, folder = folders(family)
    mesh = Mesh(np.asarray(jax.devices()[:8]).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
    weights = open_weights(folder)
    shapes = weights.architecture.shapes()
    shardings = {name: NamedSharding(mesh, PartitionSpec(*SPECS.get(name, ()))) for name in shapes}
    count: dict[str, int] = {}

    def counted(name, index):
        block = weights.read_block(name, index)
        count[name] = count.get(name, 0) + block.size
        return block

    params = load_params(dataclasses.replace(weights, read_block=counted), shardings=shardings, dtype="float32")
    assert count == {name: int(np.prod(shape)) for name, shape in weights.stored.items()}
    for name, value in params.items():
        assert value.sharding == shardings[name]
    _same(params, _params(folder))


def test_a_shard_is_read_without_the_rest(folders):
    _, folder = folders("qwen3")
    weights = open_weights(folder)
    asked: list[tuple[str, tuple[int, ...]]] = []

    def watched(name, index):
        block = weights.read_block(name, index)
        asked.append((name, block.shape))
        return block

    watched_weights = dataclasses.replace(weights, read_block=watched)
    whole = {name: np.asarray(value) for name, value in _params(folder).items()}
    index = np.s_[1:2, 16:32, 2:4, :]
    np.testing.assert_array_equal(watched_weights.read("w_q_LDHK", index), whole["w_q_LDHK"][index])
    assert asked == [("model.layers.1.self_attn.q_proj.weight", (2 * 32, 16))]
    inside_heads = np.s_[0:3, 0:64, 1:2, 5:9]
    np.testing.assert_array_equal(weights.read("w_k_LDGK", inside_heads), whole["w_k_LDGK"][inside_heads])
    rows = np.s_[:, 0:3, 10:30, 8:24]
    np.testing.assert_array_equal(weights.read("w_o_LHKD", rows), whole["w_o_LHKD"][rows])


def test_loaded_parameters_may_be_donated(folders):
    """On CPU a device array may share memory with what the callback returned; copies of a shard must not share a fate."""
    _, folder = folders("llama")
    mesh = Mesh(np.asarray(jax.devices()[:8]), ("data",))
    weights = open_weights(folder)
    shardings = dict.fromkeys(weights.architecture.shapes(), NamedSharding(mesh, PartitionSpec()))
    want = _params(folder)
    params = load_params(weights, shardings=shardings, dtype="float32")
    step = jax.jit(lambda p: jax.tree.map(lambda x: x + 1, p), donate_argnums=0)
    for _ in range(3):
        params = step(params)
    for name, value in params.items():
        for shard in value.addressable_shards:
            np.testing.assert_allclose(shard.data, np.asarray(want[name]) + 3, rtol=1e-6, err_msg=name)
    _same(_params(folder), want)


def test_generation_settings_come_from_the_config_where_their_own_file_is_missing(tmp_path):
    save_folder(torch_model("llama"), tmp_path)
    assert open_weights(tmp_path).generation["eos_token_id"] == [2, 0]
    (tmp_path / "generation_config.json").unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "eos_token_id": [2, 7]}))
    assert open_weights(tmp_path).generation == {"bos_token_id": 0, "eos_token_id": [2, 7]}


def _edit(folder, target, change):
    """A copy of a saved folder whose tensors went through `change`."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    (target / "config.json").write_text((folder / "config.json").read_text())
    return target


def _refused(folder, words):
    weights = dataclasses.replace(open_weights(folder), read_block=None)  # nothing may be read before the checks
    with pytest.raises(UserError, match=words):
        load_params(weights, shardings=None, dtype="float32")


def test_missing_misshapen_and_unexpected_tensors_are_named(folders, tmp_path):
    _, folder = folders("llama")
    lost, bent, extra = (tmp_path / name for name in ("lost", "bent", "extra"))
    for target in (lost, bent, extra):
        target.mkdir()
    norm, q = "model.layers.1.input_layernorm.weight", "model.layers.2.self_attn.q_proj.weight"
    _refused(_edit(folder, lost, lambda t: t.pop(norm)), rf"tensor {norm} is missing.*LlamaForCausalLM")
    _refused(_edit(folder, bent, lambda t: t.update({q: t[q][:-16]})), rf"tensor {q} has shape \[48, 64\].*\[64, 64\]")
    bias = "model.layers.0.self_attn.q_proj.bias"
    _refused(_edit(folder, extra, lambda t: t.update({bias: np.zeros(64, np.float32)})), rf"tensor {bias} is not part")


def test_rotary_frequencies_of_old_checkpoints_are_ignored(folders, tmp_path):
    _, folder = folders("llama")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _same(_params(_edit(folder, tmp_path, lambda t: t.update({name: np.ones(8, np.float32)}))), _params(folder))


def test_a_stored_copy_of_tied_embeddings_must_be_equal(folders, tmp_path):
    _, folder = folders("llama_tied")
    embed = "model.embed_tokens.weight"
    copied = _edit(folder, tmp_path, lambda t: t.update({"lm_head.weight": t[embed]}))
    _same(_params(copied), _params(folder))
    _edit(copied, tmp_path, lambda t: t.update({"lm_head.weight": t[embed] + 1}))
    with pytest.raises(UserError, match="tie_word_embeddings"):
        _params(tmp_path)


def test_folders_that_cannot_be_read_are_refused_with_the_reason(folders, tmp_path):
    _, folder = folders("llama")
    config = json.loads((folder / "config.json").read_text())

    def refused(words):
        with pytest.raises(UserError, match=words):
            open_weights(tmp_path)

    with pytest.raises(UserError, match="does not exist"):
        open_weights(tmp_path / "nowhere")
    refused(r"holds no config\.json")
    (tmp_path / "config.json").write_text("{")
    refused(r"config\.json cannot be read")
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    refused(r"pre-quantized \(awq\)")
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(r"neither model\.safetensors nor .* \(found pytorch_model\.bin")
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])
    refused(r"model\.safetensors is damaged")
    save_file({"model.norm.weight": np.zeros(64, np.int8)}, tmp_path / "model.safetensors")
    refused(r"model\.norm\.weight is of type I8")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}))
    refused(r"model-00001-of-00002\.safetensors is missing")
    (tmp_path / "model.gguf.txt").write_text("")
    with pytest.raises(UserError, match=r"neither a Hugging Face folder nor a \.gguf file"):
        open_weights(tmp_path / "model.gguf.txt")


def test_random_params_have_the_architectures_shapes(folders):
    architecture = open_weights(folders("qwen2")[1]).architecture
    params = random_params(architecture, seed=1, scale=0.1, dtype="bfloat16")
    assert {name: value.shape for name, value in params.items()} == architecture.shapes()
    assert {value.dtype for value in params.values()} == {jax.numpy.dtype("bfloat16")}
    _same(params, random_params(architecture, seed=1, scale=0.1, dtype="bfloat16"))
