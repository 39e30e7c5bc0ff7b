"""Takes a path such as new://layers=4,width=192,heads=6, gives a policy with random weights and its character tokenizer.

A Llama of a few million parameters begins at nothing and learns a task in minutes, so that whole runs, and many of them, can be
studied on a CPU. It is read, trained and exported as any other model. Its tokens are the 256 bytes: no text is foreign to it.
"""

from __future__ import annotations

import difflib
import hashlib
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import from_huggingface
from jaxselftrain.model.layout import PLACES, Weights, stored_shapes

SCHEME = "new://"
EOS = "<eos>"
VOCABULARY = 264  # 256 bytes and EOS, rounded up to what 2, 4 or 8 devices can share


class Sizes(BaseModel):
    """What a new:// path may say; `mlp` is four times the width unless it is said."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(ge=1)
    width: int = Field(ge=2)
    heads: int = Field(ge=1)
    mlp: int | None = Field(None, ge=1)
    positions: int = Field(512, ge=1)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _divides(self):
        if self.width % (2 * self.heads):
            raise ValueError(f"width = {self.width} must be a multiple of 2 x heads = {2 * self.heads}")
        return self


def is_fresh(path: str) -> bool:
    """Whether a model path asks for a new policy."""
    return path.startswith(SCHEME)


def fresh_weights(path: str) -> Weights:
    """Random Weights of the sizes that the path says: the same ones for the same path. Raises UserError for a wrong path.

    Matrices are normal with standard deviation 1 / sqrt(inputs), those that add to the residual stream smaller by sqrt(2 layers)
    (GPT-2's scheme), the embedding 0.02; norms are 1.
    """
    sizes = _sizes(path)
    config = _config(sizes)
    architecture = from_huggingface(config, path)
    templates = {name: place.huggingface for name, place in PLACES.items()}
    stored = stored_shapes(architecture, templates)

    def read_block(name: str, index: tuple[slice, ...]) -> np.ndarray:
        if len(stored[name]) == 1:
            return np.ones(stored[name], np.float32)[index]
        scale = 0.02 if "embed_tokens" in name else stored[name][1] ** -0.5
        if "o_proj" in name or "down_proj" in name:
            scale /= (2 * sizes.layers) ** 0.5
        digest = hashlib.blake2b(f"{sizes.seed}:{name}".encode(), digest_size=8).digest()
        whole = np.random.default_rng(int.from_bytes(digest, "big")).standard_normal(stored[name], np.float32)
        return (whole * np.float32(scale))[index]

    return Weights(
        where=path,
        architecture=architecture,
        config=config,
        generation={"eos_token_id": config["eos_token_id"]},
        stored=stored,
        templates=templates,
        read_block=read_block,
    )


def character_tokenizer() -> Any:
    """A fast transformers tokenizer whose tokens are the 256 bytes and the end of a sequence: byte-level BPE, no merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS, pad_token=EOS, clean_up_tokenization_spaces=False)


def _sizes(path: str) -> Sizes:
    told: dict[str, str] = {}
    for part in path.removeprefix(SCHEME).split(","):
        name, equals, value = part.partition("=")
        if name not in Sizes.model_fields or not equals:
            near = difflib.get_close_matches(name, Sizes.model_fields, n=1)
            hint = f"; did you mean {near[0]}?" if near and equals else ""
            known = ", ".join(Sizes.model_fields)
            raise UserError(f"model path {path}: {part!r} is not NAME=NUMBER with a name of {known}{hint}")
        told[name] = value
    try:
        return Sizes.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        says = first["msg"].removeprefix("Value error, ")
        raise UserError(f"model path {path}: {f'{where}: ' if where else ''}{says}") from None


def _config(sizes: Sizes) -> dict[str, Any]:
    """config.json of the policy."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": sizes.width,
        "intermediate_size": sizes.mlp or 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.heads,
        "max_position_embeddings": sizes.positions,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 256,
    }
