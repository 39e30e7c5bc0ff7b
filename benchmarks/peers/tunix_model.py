"""Takes a Hugging Face folder of a Llama model, gives Tunix's module with its weights, its tokenizer and its mesh."""

import json
from pathlib import Path

import jax
import numpy as np
from transformers import AutoTokenizer
from tunix.models.llama3 import model as llama3
from tunix.models.llama3 import params


def mesh():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ("fsdp", "tp"))


def load(folder: str, dtype: str, on_mesh):
    """(Tunix's configuration, the module)."""
    found = json.loads((Path(folder) / "config.json").read_text())
    heads = found["num_attention_heads"]
    config = llama3.ModelConfig(
        num_layers=found["num_hidden_layers"],
        vocab_size=found["vocab_size"],
        embed_dim=found["hidden_size"],
        hidden_dim=found["intermediate_size"],
        num_heads=heads,
        head_dim=found.get("head_dim") or found["hidden_size"] // heads,
        num_kv_heads=found["num_key_value_heads"],
        rope_theta=found["rope_theta"] if "rope_theta" in found else found["rope_parameters"]["rope_theta"],
        norm_eps=found["rms_norm_eps"],
        weight_tying=found["tie_word_embeddings"],
        remat_config=llama3.RematConfig.NONE,  # faster here, and what fits
    )
    return config, params.create_model_from_safe_tensors(folder, config, on_mesh, dtype=jax.numpy.dtype(dtype))


def load_tokenizer(job):
    """The tokenizer; checks that Tunix, which puts BOS in front, reads the job's texts as the job's tokens."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    # Tunix takes pad tokens out of attention and loss: they must not be tokens that end or begin a text
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for text, wanted in zip(job["texts"], job["prompts"], strict=True):
        tokens = tokenizer.encode(text)
        assert (tokens if tokens[:1] == bos else bos + tokens) == wanted, "Tunix would read other prompts"
    return tokenizer
