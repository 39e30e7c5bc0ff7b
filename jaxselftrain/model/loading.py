"""Takes a model folder or GGUF file, gives its parameters as (sharded) device arrays, read shard by shard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxselftrain.errors import UserError
from jaxselftrain.model.fresh import fresh_weights, is_fresh
from jaxselftrain.model.gguf import open_gguf
from jaxselftrain.model.huggingface import open_folder
from jaxselftrain.model.layout import Weights
from jaxselftrain.model.paths import local_model

__all__ = ["Weights", "load_params", "open_model", "open_weights"]


def open_model(path: str, revision: str | None) -> Weights:
    """The Weights of what model.path says: a folder, file, hub id or package, or a new policy. Raises UserError."""
    return fresh_weights(path) if is_fresh(path) else open_weights(local_model(path, revision))


def open_weights(path: Path) -> Weights:
    """The Weights of a Hugging Face folder or a .gguf file; no data is read. Raises UserError when it is neither."""
    if path.is_dir():
        return open_folder(path)
    if not path.exists():
        raise UserError(f"model {path} does not exist")
    if path.suffix != ".gguf":
        raise UserError(f"model {path} is neither a Hugging Face folder nor a .gguf file")
    return open_gguf(path)


def load_params(
    weights: Weights, *, shardings: Mapping[str, jax.sharding.Sharding] | None, dtype: str | np.dtype
) -> dict[str, jax.Array]:
    """Every parameter of Architecture.shapes() as an array of the dtype, laid out by its sharding (None: one device).

    Parameter by parameter, and of each only the shards of this process's devices: the host never holds more than one
    parameter beside the device arrays. Raises UserError, before reading any data, when a tensor is missing, misshapen
    or unexpected.
    """
    weights.check()
    single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    params = {}
    for name, shape in weights.architecture.shapes().items():
        sharding = single if shardings is None else shardings[name]
        params[name] = _load(weights, name, shape, sharding, jnp.dtype(dtype))
    return params


def _load(weights: Weights, name: str, shape: tuple[int, ...], sharding: jax.sharding.Sharding, dtype: np.dtype) -> jax.Array:
    shards: dict[tuple, np.ndarray] = {}  # devices that hold copies of one shard share one reading of it

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        assert index is not None  # None only for shardings without a shape
        key = tuple(part.indices(size) for part, size in zip(index, shape, strict=True))
        if key not in shards:
            shards[key] = weights.read(name, index).astype(dtype, copy=False)
        return shards[key]

    return jax.make_array_from_callback(shape, sharding, shard)
