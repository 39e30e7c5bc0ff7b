"""Takes trained parameters, gives a Hugging Face folder that `transformers` and vLLM load as is."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import Architecture, from_huggingface
from jaxselftrain.model.huggingface import INDEX
from jaxselftrain.model.layout import PLACES, stored_shapes, to_stored

SHARD_BYTES = 4_000_000_000  # of one safetensors file; also what the host holds of the model at a time


class SavesTokenizer(Protocol):
    """Anything that writes its tokenizer files into a folder."""

    def save(self, folder: Path) -> None: ...


def export_folder(
    params: dict[str, jax.Array],
    weights_config: dict[str, Any],
    generation: dict[str, Any],
    tokenizer: SavesTokenizer,
    out: Path,
    *,
    dtype: str,
    card: str,
) -> None:
    """Writes params as the Hugging Face folder `out`: safetensors of the dtype, configs, tokenizer files and model card.

    params: named and shaped as Architecture.shapes(), each wholly on this process's devices. weights_config and
    generation: the contents of config.json and generation_config.json that the model came with. Everything goes to a
    temporary folder beside `out`, renamed at the end. UserError when `out` exists and is not empty, or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"export folder {out} already exists and is not empty; name another one or remove it")
    architecture = from_huggingface(weights_config, "the model's config")
    if {name: value.shape for name, value in params.items()} != architecture.shapes():
        raise ValueError("params are not those of the config's architecture")
    out = out.absolute()
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        partial.mkdir(parents=True)
        _write_tensors(params, architecture, partial, dtype)
        config = {key: value for key, value in weights_config.items() if key not in ("dtype", "_name_or_path")}
        _write_json(partial / "config.json", config | {"torch_dtype": dtype})  # a name that every version of transformers reads
        _write_json(partial / "generation_config.json", generation)
        tokenizer.save(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
        partial.rename(out)
    except (OSError, SafetensorError) as error:
        raise UserError(f"export folder {out} cannot be written: {error}") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already after the rename


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_tensors(params: dict[str, jax.Array], architecture: Architecture, folder: Path, dtype: str) -> None:
    """model.safetensors, or numbered shards and their index when the tensors take more than SHARD_BYTES."""
    shapes = stored_shapes(architecture, {name: place.huggingface for name, place in PLACES.items()})
    sizes = {name: math.prod(shape) * jnp.dtype(dtype).itemsize for name, shape in shapes.items()}
    plan = _plan(sizes)
    tensors = _tensors(params, architecture, dtype)
    where: dict[str, str] = {}
    for number, names in enumerate(plan, 1):
        file = "model.safetensors" if len(plan) == 1 else f"model-{number:05}-of-{len(plan):05}.safetensors"
        # Without this metadata transformers refuses the file.
        save_file(dict(itertools.islice(tensors, len(names))), folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    if len(plan) > 1:
        _write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where})


def _plan(sizes: dict[str, int]) -> list[list[str]]:
    """Tensor names cut, in their order, into files of at most SHARD_BYTES each (or one tensor, when it alone is larger)."""
    plan: list[list[str]] = []
    room = 0
    for name, size in sizes.items():
        if not plan or size > room:
            plan.append([])
            room = SHARD_BYTES
        plan[-1].append(name)
        room -= size
    return plan


def _tensors(params: dict[str, jax.Array], architecture: Architecture, dtype: str) -> Iterator[tuple[str, np.ndarray]]:
    """Name and value of every stored tensor in the order of stored_shapes, fetched from the devices one at a time."""
    for name in architecture.shapes():
        template, value = PLACES[name].huggingface, params[name]
        for layer in range(architecture.L) if "{}" in template else [None]:
            part = value if layer is None else value[layer]
            yield template.format(layer), to_stored(name, np.asarray(part.astype(dtype)))
