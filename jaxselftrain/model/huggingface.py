"""Takes a Hugging Face folder (config.json, safetensors), gives its Weights; data is read only when asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import from_huggingface
from jaxselftrain.model.layout import PLACES, Weights

INDEX = "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16")


def open_folder(path: Path) -> Weights:
    """The Weights in a folder with config.json and model.safetensors, whole or sharded with its index.

    Raises UserError when a file is missing or damaged, the model is pre-quantized, or its architecture not supported.
    """
    config = _json(path / "config.json")
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown method")
        raise UserError(f"{path}: the model is pre-quantized ({method}); training needs its unquantized (or GGUF) form")
    architecture = from_huggingface(config, str(path / "config.json"))
    generation_file = path / "generation_config.json"
    if generation_file.exists():
        generation = _json(generation_file)
    else:
        generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None}
    slices = _tensors(path)

    def read_block(name: str, index: tuple[slice, ...]) -> np.ndarray:
        values = slices[name][index]
        return values.astype(np.float32) if values.dtype == np.float16 else values

    return Weights(
        where=str(path),
        architecture=architecture,
        config=config,
        generation=generation,
        stored={name: tuple(part.get_shape()) for name, part in slices.items()},
        templates={name: place.huggingface for name, place in PLACES.items()},
        read_block=read_block,
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {path.name}; a Hugging Face model folder is expected") from None
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not UTF-8
        raise UserError(f"{path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object")
    return value


def _tensors(path: Path) -> dict[str, Any]:
    """Tensor name -> safetensors slice (memory-mapped) of every tensor in the folder's weight files."""
    if (path / INDEX).exists():
        where = _json(path / INDEX).get("weight_map")
        if not isinstance(where, dict) or not where:
            raise UserError(f"{path / INDEX} must hold a weight_map that names the file of each tensor")
        files = sorted(set(where.values()))
    elif (path / "model.safetensors").exists():
        where, files = None, ["model.safetensors"]
    else:
        others = sorted(file.name for pattern in ("*.bin", "*.pth", "*.safetensors") for file in path.glob(pattern))
        found = f" (found {', '.join(others[:3])}, which is not read)" if others else ""
        raise UserError(f"{path} holds neither model.safetensors nor {INDEX}{found}")
    slices = {}
    for name in files:
        try:
            opened = safe_open(path / name, framework="np")
        except FileNotFoundError:
            raise UserError(f"{path / name} is missing, though {INDEX} names it") from None
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path / name} is damaged or not a safetensors file: {error}") from None
        for tensor in opened.keys():
            if tensor.endswith("rotary_emb.inv_freq") or (where is not None and where.get(tensor) != name):
                continue  # old checkpoints store the rotary frequencies, which follow from the config
            slices[tensor] = opened.get_slice(tensor)
            if slices[tensor].get_dtype() not in DTYPES:
                dtype = slices[tensor].get_dtype()
                raise UserError(f"{path / name}: tensor {tensor} is of type {dtype}; read are {', '.join(DTYPES)}")
    return slices
