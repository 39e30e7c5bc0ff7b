"""Takes a config, a decoder's architecture and a mesh, gives the training step lowered for shapes alone, and what it needs.

Nothing is allocated: the devices of the mesh may be elsewhere. `memory` asks the compiler of the devices at hand for the
choice that fits, `plan` any TPU's compiler for what a run would need there.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Prompts, Rollouts, Sampling, empty_rollouts
from jaxselftrain.step import (
    abstract_state,
    compile_step,
    feedback_shardings,
    prompt_shardings,
    rollout_shardings,
    state_shardings,
)
from jaxselftrain.update import State

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class DoesNotFit(Exception):
    """A program that needs more memory than a device has; its argument is how many bytes, inf where the compiler does not say."""


@dataclass(frozen=True)
class Inputs:
    """The four arguments of the step as shapes, each with where it lies."""

    state: State
    rollouts: Rollouts
    feedback: Feedback
    prompts: Prompts


@dataclass(frozen=True)
class Need:
    """What one device holds while the program runs, in bytes, by the compiler's own account."""

    arguments: int
    results: int  # beside the arguments: what is donated is written in place
    temporaries: int
    program: int

    @property
    def data(self) -> int:
        return self.arguments + self.results + self.temporaries


def step_inputs(config: Config, architecture: Architecture, mesh: Mesh, *, width: int, states: int) -> Inputs:
    """What the step is given for prompts of `width` tokens and a stop table of so many states."""
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
            stop_SV=shape((states, architecture.V), jnp.int16),
        ),
    )
    kept = {"confidence": config.measures_confidence, "taught": config.keeps_teacher}
    rollouts = jax.eval_shape(lambda: empty_rollouts(Q=Q, N=N, C=width, T=T, **kept))
    given = abstract_state(config, architecture), rollouts, feedback, prompts
    at = (
        state_shardings(config, architecture, mesh),
        rollout_shardings(mesh, **kept),
        feedback_shardings(mesh),
        prompt_shardings(mesh),
    )
    return Inputs(*jax.tree.map(lambda x, to: shape(x.shape, x.dtype, sharding=to), given, at))


def lower_step(
    graph: nnx.GraphDef, config: Config, architecture: Architecture, mesh: Mesh, *, width: int, states: int
) -> jax.stages.Lowered:
    """The training step of a config for these devices, ready for their compiler."""
    given = step_inputs(config, architecture, mesh, width=width, states=states)
    return compile_step(graph, config, architecture, mesh).lower(given.state, given.rollouts, given.feedback, given.prompts)


def compiled_step(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """The compiled program. Raises DoesNotFit where the compiler refuses for memory, as TPU's does."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"(?:Used |HLO temporaries \()([\d.]+)([KMGT])", str(error))
        raise DoesNotFit(float(used[1]) * UNITS[used[2]] if used else math.inf) from None


def need_of(compiled: jax.stages.Compiled) -> Need:
    """What one device holds at most while the program runs. Raises UserError where the backend does not tell."""
    found = compiled.memory_analysis()
    if found is None:
        raise UserError("this backend does not tell what a program needs: set update.micro_batches and model.remat yourself")
    return Need(
        arguments=found.argument_size_in_bytes,
        results=found.output_size_in_bytes - found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        program=found.generated_code_size_in_bytes,
    )
