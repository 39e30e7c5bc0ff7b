"""Takes a config, an architecture and a mesh, gives what takes a device's memory while a step runs, by what it is for.

What the program is given and gives back is exact: shapes and shardings say it. What it makes on the way is worked out: the
largest arrays that it cannot do without, in the phase that needs most. What the compiler takes beyond these is a line of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import Mesh

from jaxselftrain import counts
from jaxselftrain.config import Config
from jaxselftrain.lowering import Inputs, Need
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.sampler import rows_per_question, segments
from jaxselftrain.scoring import LOGIT_BYTES
from jaxselftrain.sharding import shards
from jaxselftrain.update import micro_parts

WIDE = 4  # bytes of a float32
ITEMSIZE = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Share:
    """What one device of a mesh has of a step's work."""

    Q: int  # questions, or parts of them
    N: int  # samples of each
    M: int  # samples of each that are trained on
    W: int  # rows that sample them
    C: int
    T: int
    pieces: int  # micro-batches that each question's samples are split into
    micro: int  # micro-batches
    weights: int  # devices that split the weights
    tensor: int
    kv: int  # devices that split keys and values by their heads


@dataclass(frozen=True)
class Account:
    """Bytes of one device: what it is given, what is made in each phase, and what the compiler says, where one was asked."""

    given: dict[str, float]
    made: dict[str, dict[str, float]]  # phase -> what -> bytes
    need: Need | None

    @property
    def phase(self) -> str:
        """The phase that makes most."""
        return max(self.made, key=lambda phase: sum(self.made[phase].values()))

    @property
    def estimate(self) -> float:
        return sum(self.given.values()) + sum(self.made[self.phase].values())

    @property
    def peak(self) -> float:
        """By the compiler's account; without one, by ours."""
        return self.estimate if self.need is None else self.need.data + self.need.program

    def lines(self) -> dict[str, float]:
        """What takes the memory; the lines add up to the peak."""
        lines = dict(self.given)
        if self.need is not None:
            lines["tile padding of these"] = self.need.arguments - sum(self.given.values())
        lines |= self.made[self.phase]
        if self.need is not None:
            lines["program"] = self.need.program
            lines["other"] = self.peak - sum(lines.values())
        return lines


def share_of(config: Config, a: Architecture, mesh: Mesh, *, width: int) -> Share:
    """A device's share, as the step splits it."""
    parts, questions = shards(mesh, "samples"), config.rollout.questions
    W = rows_per_question(config.rollout, mesh, Q=questions, N=config.vote.samples, parts=parts)
    own = max(questions // shards(mesh, "questions"), 1)
    M, per_step = config.samples_trained // parts, questions // config.update.minibatches
    pieces = micro_parts(Q=per_step, M=M, micro=config.micro_batches, devices=shards(mesh, "questions"))[1]
    tensor = mesh.shape["tensor"]
    return Share(
        Q=own,
        N=config.vote.samples // parts,
        M=M,
        W=W,
        C=width,
        T=config.rollout.max_tokens,
        pieces=pieces,
        micro=config.micro_batches,
        weights=mesh.shape["fsdp"] * tensor,
        tensor=tensor,
        kv=tensor if a.G % tensor == 0 else 1,
    )


def device_bytes(tree: Any) -> float:
    """Bytes of one device's part of a tree of shapes with shardings, without padding."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def given_bytes(inputs: Inputs) -> dict[str, float]:
    """What the step is given, and gives back in its place."""
    state = inputs.state
    lines = {
        "weights": device_bytes(state.params),
        "optimizer": device_bytes((state.moments, state.count, state.seed)),
        "reference": device_bytes(state.reference),
        "teacher": device_bytes(state.teacher),
        "rollouts and prompts": device_bytes((inputs.rollouts, inputs.feedback, inputs.prompts)),
    }
    return {name: size for name, size in lines.items() if size}


def made_bytes(config: Config, a: Architecture, share: Share) -> dict[str, dict[str, float]]:
    """What sampling and the update make at the least, at the moment of each that has most."""
    model, s = config.model, share
    item, stored = ITEMSIZE[model.compute_dtype], ITEMSIZE[model.weights_dtype]
    entries = counts.parameters(a) / s.weights
    copies = (0 if item == stored else item * entries) * (1 + config.keeps_reference)
    layer = counts.layer_weights(a) / a.L / s.tensor * item
    gathered = {"weights gathered": 2 * layer + a.V * a.D / s.tensor * item} if s.weights > s.tensor else {}
    whole = (
        {"weights gathered": counts.parameters(a) / s.tensor * item} if gathered and config.rollout.gather_weights else gathered
    )
    lanes = s.Q * counts.cache_bytes(a, item) / s.kv
    room = segments(s.T)[-1] * (1 if len(segments(s.T)) == 1 else 1.5)  # while caches grow, the smaller ones are there as well
    sampling = {
        "weights in the compute dtype": 0 if item == stored else item * entries,
        "prompts' keys and values": lanes * s.C,
        "responses' keys and values": lanes * s.W * room,
        "logits": 2 * s.Q * s.W * a.V / s.tensor * WIDE,
    }
    # one micro-batch: rows of the questions it has, of which remat keeps something in every layer
    questions = max(s.Q / config.update.minibatches / (s.micro / s.pieces), 1)
    tokens = questions * (s.C + s.M / s.pieces * (s.T - 1))
    heads, kv_heads, F = a.H * a.K / s.tensor, a.G * a.K / s.kv, a.F / s.tensor
    projected = 2 * a.D + heads + 2 * kv_heads + 2 * F
    kept = {"layers": a.D, "dots": a.D + projected, "none": 6 * a.D + 2 * heads + 2 * kv_heads + 3 * F}[model.remat]
    scores = 0.0
    if model.attention == "plain":  # the scores of one layer, and their gradient
        pairs = max(questions * s.M / s.pieces * s.T * (s.C + s.T), questions * s.C * s.C)
        scores = 2 * a.H / s.tensor * pairs * WIDE
    logits = min(LOGIT_BYTES, questions * s.M / s.pieces * s.T * a.V * WIDE) / s.tensor
    gradients = entries * (WIDE + stored if s.micro > 1 else stored)
    update = {
        "weights in the compute dtype": copies,
        "gradients": gradients,
        "gradient of the output matrix": a.V * a.D * WIDE / s.tensor,
        "activations kept": a.L * tokens * kept * item,
        "one layer's activations": tokens * (projected + 2 * F) * item + scores,
        "logits and their gradients": 2 * logits,
    }
    return {
        phase: {name: size for name, size in lines.items() if size}
        for phase, lines in (("sampling", sampling | whole), ("update", update | gathered))
    }
