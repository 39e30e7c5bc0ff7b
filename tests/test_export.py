"""Weights out: torch -> ours -> folder -> torch and ours again."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_models import FAMILIES, SPECIALS, random_params, save_folder, smollm2, tokenizer, torch_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from jaxselftrain.errors import UserError
from jaxselftrain.model import export
from jaxselftrain.model.export import export_folder
from jaxselftrain.model.loading import load_params, open_weights

TOKENS = torch.tensor([[5, 17, 300, 42, 9, 260, 0, 77, 31, 8]])


class SmallTokenizer:
    def save(self, folder):
        tokenizer().save_pretrained(str(folder))


def _params(path):
    return load_params(open_weights(path), shardings=None, dtype="float32")


def _same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(np.asarray(value, np.float32), np.asarray(b[name], np.float32), err_msg=name)


def _export(weights, params, out, *, dtype="float32"):
    export_folder(params, weights.config, weights.generation, SmallTokenizer(), out, dtype=dtype, card="# How it was trained\n")
    return out


def _logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_keeps_torchs_logits_and_our_arrays_bit_for_bit(family, tmp_path):
    model = torch_model(family)
    weights = open_weights(save_folder(model, tmp_path / "in"))
    params = load_params(weights, shardings=None, dtype="float32")
    out = _export(weights, params, tmp_path / "out")
    loaded, report = AutoModelForCausalLM.from_pretrained(str(out), output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.dtype == torch.float32
    assert torch.equal(_logits(loaded.eval()), _logits(model))
    assert loaded.generation_config.eos_token_id == [2, 0]
    _same(_params(out), params)
    assert open_weights(out).architecture == weights.architecture
    assert (out / "README.md").read_text() == "# How it was trained\n"
    assert AutoTokenizer.from_pretrained(str(out)).encode("the<|im_end|>") == tokenizer().encode("the<|im_end|>")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_trained_parameters_go_out_not_the_original_ones(tmp_path):
    weights = open_weights(save_folder(torch_model("qwen3"), tmp_path / "in"))
    params = random_params(weights.architecture, seed=3, scale=0.1, dtype="float32")
    loaded = AutoModelForCausalLM.from_pretrained(str(_export(weights, params, tmp_path / "out")))
    _same(_params(tmp_path / "out"), params)
    got = loaded.model.layers[1].self_attn.o_proj.weight.detach().numpy()
    np.testing.assert_array_equal(got, np.asarray(params["w_o_LHKD"])[1].reshape(-1, 64).T)


def test_bfloat16_export_says_so_and_rounds_to_nearest(tmp_path):
    weights = open_weights(save_folder(torch_model("llama"), tmp_path / "in"))
    params = load_params(weights, shardings=None, dtype="float32")
    out = _export(weights, params, tmp_path / "out", dtype="bfloat16")
    assert AutoConfig.from_pretrained(str(out)).dtype == torch.bfloat16
    loaded = AutoModelForCausalLM.from_pretrained(str(out))
    assert loaded.dtype == torch.bfloat16
    want = torch_model("llama").model.layers[2].mlp.down_proj.weight.to(torch.bfloat16)
    assert torch.equal(loaded.model.layers[2].mlp.down_proj.weight, want)
    _same(_params(out), {name: value.astype(jnp.bfloat16) for name, value in params.items()})


def test_large_models_are_cut_into_files_with_an_index(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 100_000)
    model = torch_model("llama")
    weights = open_weights(save_folder(model, tmp_path / "in"))
    params = load_params(weights, shardings=None, dtype="float32")
    out = _export(weights, params, tmp_path / "out")
    files = sorted(out.glob("*.safetensors"))
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    assert all(file.stat().st_size < 100_000 + 5000 for file in files)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * model.num_parameters()
    assert set(index["weight_map"]) == set(weights.stored)
    _same(_params(out), params)
    assert torch.equal(_logits(AutoModelForCausalLM.from_pretrained(str(out))), _logits(model))


def test_a_gguf_model_leaves_as_a_hugging_face_folder(tmp_path):
    weights = open_weights(smollm2())
    params = load_params(weights, shardings=None, dtype="float32")
    out = _export(weights, params, tmp_path / "out", dtype="bfloat16")
    config = AutoConfig.from_pretrained(str(out))
    assert (config.model_type, config.num_hidden_layers, config.tie_word_embeddings) == ("llama", 30, True)
    assert (config.rms_norm_eps, config.rope_parameters["rope_theta"]) == (1e-5, 100_000.0)
    assert open_weights(out).architecture == weights.architecture
    loaded, report = AutoModelForCausalLM.from_pretrained(str(out), output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.generation_config.eos_token_id == 2
    _same(load_params(open_weights(out), shardings=None, dtype="bfloat16"), {k: v.astype("bfloat16") for k, v in params.items()})


def test_an_existing_folder_is_kept_and_a_failure_leaves_nothing(tmp_path):
    weights = open_weights(save_folder(torch_model("llama"), tmp_path / "in"))
    params = load_params(weights, shardings=None, dtype="float32")
    before = (tmp_path / "in" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"already exists and is not empty"):
        _export(weights, params, tmp_path / "in")
    assert (tmp_path / "in" / "model.safetensors").read_bytes() == before

    class Full:
        def save(self, folder):
            assert (folder / "model.safetensors").exists()
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"out cannot be written: .*No space left"):
        export_folder(params, weights.config, weights.generation, Full(), tmp_path / "out", dtype="float32", card="")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    (tmp_path / "out").mkdir()  # empty: fine
    _export(weights, params, tmp_path / "out")
    assert SPECIALS[2] in (tmp_path / "out" / "tokenizer.json").read_text()
    with pytest.raises(ValueError, match="params are not those"):
        _export(weights, {name: value for name, value in params.items() if name != "unembed_DV"}, tmp_path / "other")
