"""Policies of random weights and their character tokenizer, against transformers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxselftrain.errors import UserError
from jaxselftrain.model.export import export_folder
from jaxselftrain.model.fresh import VOCABULARY, fresh_weights
from jaxselftrain.model.loading import load_params, open_model, open_weights
from jaxselftrain.model.tokenizer import load_tokenizer

PATH = "new://layers=2,width=32,heads=4"


def params(path=PATH):
    return load_params(open_model(path, None), shardings=None, dtype="float32")


def test_the_same_path_has_the_same_weights_and_another_seed_has_others():
    first, again, other = params(), params(), params(PATH + ",seed=1")
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["w_q_LDHK"], other["w_q_LDHK"])


def test_weights_are_scaled_by_their_inputs():
    found = params("new://layers=2,width=64,heads=4")
    assert np.std(found["w_q_LDHK"]) == pytest.approx(64**-0.5, rel=0.05)
    assert np.std(found["w_down_LFD"]) == pytest.approx(256**-0.5 / 2, rel=0.05)
    assert np.std(found["embed_VD"]) == pytest.approx(0.02, rel=0.05) and np.all(found["attn_norm_LD"] == 1)


def test_a_slice_is_the_slice_of_the_whole():
    weights = fresh_weights(PATH)
    whole = weights.read("w_gate_LDF", (slice(None),) * 3)
    part = weights.read("w_gate_LDF", (slice(1, 2), slice(8, 16), slice(0, 64)))
    assert np.array_equal(part, whole[1:2, 8:16, :64])


def test_what_is_exported_loads_in_transformers_and_here(tmp_path):
    weights, tokenizer = open_model(PATH, None), load_tokenizer(PATH, revision=None)
    export_folder(params(), weights.config, weights.generation, tokenizer, tmp_path / "out", dtype="float32", card="")
    again = load_params(open_weights(tmp_path / "out"), shardings=None, dtype="float32")
    assert all(np.array_equal(again[name], value) for name, value in params().items())
    theirs = AutoModelForCausalLM.from_pretrained(str(tmp_path / "out")).eval()
    reader = AutoTokenizer.from_pretrained(str(tmp_path / "out"))
    text = "7 + 8 = é\n"
    ids = load_tokenizer(str(tmp_path / "out"), revision=None).encode(text)
    assert ids == tokenizer.encode(text) == reader(text).input_ids and reader.decode(ids) == text
    assert theirs.generation_config.eos_token_id == 256 == reader.eos_token_id
    with torch.no_grad():
        assert theirs(torch.tensor([ids])).logits.shape[-1] == VOCABULARY < 300


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_a_token_is_a_byte(text):
    tokenizer = load_tokenizer(PATH, revision=None)
    ids, pieces = tokenizer.encode(text), tokenizer.token_bytes()
    assert b"".join(pieces[i] for i in ids) == text.encode("utf-8", "surrogatepass") and len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("new://", "'' is not NAME=NUMBER with a name of layers, width"),
        ("new://layers=2,witdh=32,heads=4", "did you mean width?"),
        ("new://layers=2,width=32", "heads: Field required"),
        ("new://layers=two,width=32,heads=4", "layers: Input should be a valid integer"),
        ("new://layers=2,width=36,heads=4", "width = 36 must be a multiple of 2 x heads = 8"),
        ("new://layers=0,width=32,heads=4", "layers: Input should be greater than or equal to 1"),
    ],
)
def test_a_wrong_path_gets_a_sentence(path, says):
    with pytest.raises(UserError) as error:
        open_model(path, None)
    assert str(error.value).startswith(f"model path {path}: ") and says in str(error.value)
