"""Takes a config with `auto` in it and the parts of a run, gives the fastest way to update that fits the devices' memory.

The training step is compiled for one choice after the other and the compiler itself is asked what it needs, so nothing is
estimated. What is compiled for the chosen one goes to the compilation cache and is not compiled again.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax

from jaxselftrain.assembly import Parts
from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.lowering import DoesNotFit, compiled_step, lower_step, need_of
from jaxselftrain.sharding import shards

SHARE = 0.92  # of a device's memory that a step may take: allocators lose some to fragments
PART = 256  # tokens of a part on CPUs: fewer, and products fall below their full rate
CONTAINER = Path("/sys/fs/cgroup/memory.max")
HOST_SHARE = 0.5  # of this machine's memory, where devices are its CPUs and others use it too


def fit_memory(parts: Parts, width: int, *, limit: int, say: Callable[[str], None]) -> Parts:
    """The parts with update.micro_batches and model.remat decided; `limit` is one device's memory in bytes, for all it holds.

    Keeps what the config fixes. Raises UserError when no choice fits.
    """
    needs: dict[tuple[int, str], float] = {}

    def needed(config: Config) -> float:
        key = config.micro_batches, config.model.remat
        if key not in needs:
            needs[key] = step_bytes(replace(parts, config=config), width)
        return needs[key]

    mesh = parts.mesh
    devices, platform = shards(mesh, "questions"), mesh.devices.flat[0].platform
    for group in choices(parts.config, devices=devices, platform=platform):
        if needed(group[-1]) > limit:  # the smallest of them: the others need not be tried
            continue
        config = next(config for config in group if needed(config) <= limit)
        told = f"update.micro_batches = {config.micro_batches}, model.remat = {config.model.remat}"
        say(f"{told}: the step takes {needed(config) / 2**30:.1f} of {limit / 2**30:.1f} GiB a device")
        return replace(parts, config=config)
    smallest, apart = min(needs.values()), ""
    if parts.config.rollout.gather_weights and mesh.shape["fsdp"] > 1:
        apart = "set rollout.gather_weights=false, "
    least = "more memory than there is" if math.isinf(smallest) else f"at least {smallest / 2**30:.1f} GiB"
    raise UserError(
        f"the training step takes {least} a device, and {limit / 2**30:.1f} GiB may be used; lower "
        f"rollout.max_tokens, rollout.questions or vote.samples, {apart}or use more devices"
    )


def choices(config: Config, *, devices: int, platform: str) -> list[list[Config]]:
    """The configs to try, fastest first, in groups within which memory falls.

    Splitting whole questions costs next to nothing while each part still has one for each of the `devices`; computing again
    what a layer does between its matrices costs little, whole layers a third more work; a split of a question's samples computes
    its prompt once for each part. On CPUs (measured on W1 and W2 of docs/performance.md) it is fastest to keep the results of
    matrices and to have parts of at least PART tokens: arrays of all tokens leave the caches, and new memory has its price.
    """
    micro, remat = config.update.micro_batches, config.model.remat
    questions, samples = config.rollout.questions // config.update.minibatches, config.samples_trained
    counts = [n for n in range(1, questions + 1) if questions % n == 0 and questions // n % devices == 0] or [1]
    whole = [n for n in counts if n == counts[0] or n.bit_length() > counts[counts.index(n) - 1].bit_length()]  # about doubling
    split = [counts[-1] * n for n in range(2, samples + 1) if samples % (n * config.mesh.samples) == 0]
    split = [n for n in split if questions % n == 0 or n % questions == 0]  # what a config may say
    levels = ["none", "dots", "layers"]
    if platform == "cpu":
        tokens = questions * samples * config.rollout.max_tokens
        first = [n for n in whole if n == whole[0] or tokens // n >= PART][-1]
        whole = [n for n in whole if n >= first]
        levels = ["dots", "layers"]
    groups = [(level, whole) for level in (levels if remat == "auto" else [remat])]
    if split:
        groups.append((groups[-1][0], split))

    def decided(level, count):
        model = config.model.model_copy(update={"remat": level})
        return config.model_copy(update={"model": model, "update": config.update.model_copy(update={"micro_batches": count})})

    if micro != "auto":
        return [[decided(level, micro)] for level in dict.fromkeys(level for level, _ in groups)]
    return [[decided(level, count) for count in counts] for level, counts in groups]


def step_bytes(parts: Parts, width: int) -> float:
    """What one device holds at most while the training step runs, in bytes, by the compiler's own account; inf if it refuses."""
    states = parts.stop_SV.shape[0]
    lowered = lower_step(parts.graph, parts.config, parts.architecture, parts.mesh, width=width, states=states)
    try:
        return need_of(compiled_step(lowered)).data
    except DoesNotFit:
        return math.inf


def device_limit() -> int:
    """The bytes of one device's memory that a step may take; for CPUs, its part of this machine's."""
    devices = jax.local_devices()
    stats = devices[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(SHARE * stats["bytes_limit"])
    return int(HOST_SHARE * host_memory() / len(devices))


def host_memory() -> int:
    """The bytes that this machine has, or the container that this process is in, where it may use less."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        allowed = CONTAINER.read_text().strip()
    except OSError:
        return physical
    return min(physical, int(allowed)) if allowed.isdecimal() else physical  # "max": no limit
