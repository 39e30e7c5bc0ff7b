"""Takes a config with `auto` in it and the parts of a run, gives the fastest way to update that fits the devices' memory.

The training step is compiled for one choice after the other and the compiler itself is asked what it needs, so nothing is
estimated. What is compiled for the chosen one goes to the compilation cache and is not compiled again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

import jax
import jax.numpy as jnp

from jaxselftrain.assembly import Parts
from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Prompts, Sampling, empty_rollouts
from jaxselftrain.step import (
    abstract_state,
    compile_step,
    feedback_shardings,
    prompt_shardings,
    rollout_shardings,
    state_shardings,
)

SHARE = 0.92  # of a device's memory that a step may take: allocators lose some to fragments
HOST_SHARE = 0.5  # of this machine's memory, where devices are its CPUs and others use it too


def fit_memory(parts: Parts, width: int, *, limit: int, say: Callable[[str], None]) -> Parts:
    """The parts with update.micro_batches and model.remat decided; `limit` is one device's memory in bytes, for all it holds.

    Keeps what the config fixes. Parts are added up before activations are recomputed: recomputing costs a third more work, a
    split next to nothing while each part still fills the devices. Raises UserError when no choice fits.
    """
    smallest: int | None = None
    for config in choices(parts.config, rows=parts.mesh.shape["data"] * parts.mesh.shape["fsdp"]):
        chosen = replace(parts, config=config)
        needed = step_bytes(chosen, width)
        told = f"update.micro_batches = {config.update.micro_batches}, model.remat = {str(config.model.remat).lower()}"
        if needed <= limit:
            say(f"{told}: the step takes {needed / 2**30:.1f} of {limit / 2**30:.1f} GiB a device")
            return chosen
        smallest = needed if smallest is None else min(smallest, needed)
    assert smallest is not None
    raise UserError(
        f"the training step takes at least {smallest / 2**30:.1f} GiB a device, and {limit / 2**30:.1f} GiB may be used; lower "
        "rollout.max_tokens, rollout.questions or vote.samples, or use more devices"
    )


def choices(config: Config, *, rows: int) -> Iterator[Config]:
    """The configs to try, fastest first: every number of parts that leaves no device of `rows` idle, without and with remat."""
    micro, remat = config.update.micro_batches, config.model.remat
    questions, samples = config.rollout.questions // config.update.minibatches, config.samples_trained
    counts = [n for n in range(1, questions + 1) if questions % n == 0 and questions // n % rows == 0] or [1]
    if rows == 1:
        counts += [questions * n for n in range(2, samples + 1) if samples % n == 0]
    tried = [n for n in counts if n == counts[0] or n.bit_length() > counts[counts.index(n) - 1].bit_length()]  # about doubling
    for recompute in (False, True) if remat == "auto" else (remat,):
        for count in tried if micro == "auto" else (micro,):
            model = config.model.model_copy(update={"remat": recompute})
            update = config.update.model_copy(update={"micro_batches": count})
            yield config.model_copy(update={"model": model, "update": update})


def step_bytes(parts: Parts, width: int) -> int:
    """What one device holds at most while the training step runs, in bytes, by the compiler's own account."""
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
        wanted=shape((), bool),
        sampling=Sampling(
            temperature_N=shape((N,), jnp.float32),
            top_p=shape((), jnp.float32),
            top_k=shape((), jnp.int32),
            stop_SV=shape(parts.stop_SV.shape, parts.stop_SV.dtype),
        ),
    )
    rollouts = jax.eval_shape(lambda: empty_rollouts(Q=Q, N=N, C=width, T=T))
    given = abstract_state(config, parts.architecture), rollouts, feedback, prompts
    at = (
        state_shardings(config, parts.architecture, mesh),
        rollout_shardings(mesh),
        feedback_shardings(mesh),
        prompt_shardings(mesh),
    )
    placed = jax.tree.map(lambda x, to: shape(x.shape, x.dtype, sharding=to), given, at)
    compiled = compile_step(parts.graph, config, parts.architecture, mesh).lower(*placed).compile()
    found = compiled.memory_analysis()
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
    return int(HOST_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / len(devices))
