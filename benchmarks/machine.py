"""Takes a dtype, gives this machine's limits as measured: operations per second of a large matrix product, bytes per second."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

REPETITIONS = 5

# device_kind starts with -> (dense bfloat16 FLOP/s, bytes/s), as their makers publish them; the first match counts
DATA_SHEETS = {
    "NVIDIA H200": (989e12, 4.8e12),
    "NVIDIA H100 PCIe": (756e12, 2.0e12),
    "NVIDIA H100": (989e12, 3.35e12),
    "NVIDIA A100-SXM4-80GB": (312e12, 2.04e12),
    "NVIDIA A100": (312e12, 1.55e12),
    "NVIDIA L4": (121e12, 0.3e12),
    "TPU v5 lite": (197e12, 0.82e12),
    "TPU v5": (459e12, 2.77e12),
    "TPU v6 lite": (918e12, 1.64e12),
    "TPU v4": (275e12, 1.23e12),
}


def data_sheet(device_kind: str) -> tuple[float, float] | None:
    """(dense bfloat16 operations, bytes) per second that the device's maker names, where the device is known here."""
    return next((limits for start, limits in DATA_SHEETS.items() if device_kind.startswith(start)), None)


def matmul_rate(dtype: str, size: int) -> float:
    """Operations per second of products of square matrices, several in a row; the best of a few repetitions."""
    products = 4
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)

    @jax.jit
    def chain(x):
        for _ in range(products):
            x = (x @ a) * jnp.asarray(size**-0.5, dtype)
        return x

    return products * 2 * size**3 / _best(chain, a)


def bandwidth(megabytes: int) -> float:
    """Bytes per second: the faster of adding up a large array and of writing a multiple of it, as a reader and a writer would."""
    x = jnp.ones(megabytes * 2**20 // 4, jnp.float32)
    read = x.nbytes / _best(jax.jit(lambda x: x.reshape(64, -1).sum(1)), x)
    copied = 2 * x.nbytes / _best(jax.jit(lambda x: x * 1.5), x)
    return max(read, copied)


def sizes() -> tuple[int, int]:
    """(side of the matrices, megabytes of the array) that fill this backend for long enough to be timed."""
    return (2048, 512) if jax.default_backend() == "cpu" else (8192, 4096)


def _best(f, x) -> float:
    jax.block_until_ready(f(x))  # compiles
    seconds = []
    for _ in range(REPETITIONS):
        started = time.perf_counter()
        jax.block_until_ready(f(x))
        seconds.append(time.perf_counter() - started)
    return min(seconds)
