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
import jax.numpy as jnp

from jaxselftrain.assembly import Parts
from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Prompts, Sampling, empty_rollouts
from jaxselftrain.sharding import shards
from jaxselftrain.step import (
    abstract_state,
    compile_step,
    feedback_shardings,
    prompt_shardings,
    rollout_shardings,
    state_shardings,
)

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
    smallest = min(needs.values())
    least = "more memory than there is" if math.isinf(smallest) else f"at least {smallest / 2**30:.1f} GiB"
    raise UserError(
        f"the training step takes {least} a device, and {limit / 2**30:.1f} GiB may be used; lower "
        "rollout.max_tokens, rollout.questions or vote.samples, or use more devices"
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
    split = [questions * n for n in range(2, samples + 1) if samples % (n * config.mesh.samples) == 0 and devices == 1]
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
        return [[decided(level, micro)] for level, _ in groups]
    return [[decided(level, count) for count in counts] for level, counts in groups]


def step_bytes(parts: Parts, width: int) -> float:
    """What one device holds at most while the training step runs, in bytes, by the compiler's own account; inf if it refuses."""
    config, mesh = parts.config, parts.mesh
    Q, N, M, T = config.rollout.questions, config.vote.samples, config.samples_trained, config.rollout.max_tokens
    shape = jax.ShapeDtypeStruct
    feedback = Feedback(
        reward_QN=shape((Q, N), jnp.float32),
        weight_QN=shape((Q, N), jnp.float32),
        kl_weight_Q=shape((Q,), jnp.float32),
        chosen_QM=shape((Q, M), jnp.int32),
        learn=shape((), bool),
    )
    prompts = Prompts(
        tokens_QC=shape((Q, width), jnp.int32),
        length_Q=shape((Q,), jnp.int32),
        slot_Q=shape((Q,), jnp.int32),
        noise=shape((3,), jnp.uint32),
        wanted_Q=shape((Q,), bool),
        sampling=Sampling(
            temperature_N=shape((N,), jnp.float32),
            top_p=shape((), jnp.float32),
            top_k=shape((), jnp.int32),
            stop_SV=shape(parts.stop_SV.shape, parts.stop_SV.dtype),
        ),
    )
    kept = {"confidence": config.measures_confidence, "taught": config.keeps_teacher}
    rollouts = jax.eval_shape(lambda: empty_rollouts(Q=Q, N=N, C=width, T=T, **kept))
    given = abstract_state(config, parts.architecture), rollouts, feedback, prompts
    at = (
        state_shardings(config, parts.architecture, mesh),
        rollout_shardings(mesh, **kept),
        feedback_shardings(mesh),
        prompt_shardings(mesh),
    )
    placed = jax.tree.map(lambda x, to: shape(x.shape, x.dtype, sharding=to), given, at)
    lowered = compile_step(parts.graph, config, parts.architecture, mesh).lower(*placed)
    try:
        found = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf  # TPU's compiler refuses a program that does not fit
    if found is None:
        raise UserError("this backend does not tell what a program needs: set update.micro_batches and model.remat yourself")
    made = found.output_size_in_bytes - found.alias_size_in_bytes  # what is donated is written in place
    return found.argument_size_in_bytes + made + found.temp_size_in_bytes


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
