"""Takes a config, an architecture and a topology, gives the Plan: what a step needs there, by its compiler where there is one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from jax.sharding import Mesh

from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.lowering import DoesNotFit, Need, compiled_step, lower_step, need_of, step_inputs
from jaxselftrain.memory import choices
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.model.kernels import check_kernel
from jaxselftrain.plan.account import Account, Share, given_bytes, made_bytes, share_of
from jaxselftrain.plan.collectives import Collective, collectives
from jaxselftrain.plan.phases import Phase, phases
from jaxselftrain.plan.topologies import Topology, planned_devices
from jaxselftrain.sharding import check_mesh, make_mesh, shards
from jaxselftrain.step import policy_graph
from jaxselftrain.stopping import ROUND

SPARE = 0.1  # of a device's memory that a plan leaves free: runtimes and fragments take some


@dataclass(frozen=True)
class Job:
    """What is planned: a decided or undecided config, for one model and one topology."""

    config: Config
    architecture: Architecture
    topology: Topology
    devices: Sequence
    width: int  # tokens of the longest prompt

    @property
    def mesh(self) -> Mesh:
        return make_mesh(self.config.mesh, list(self.devices))

    @property
    def limit(self) -> float:
        return (1 - SPARE) * self.topology.device_memory

    @property
    def states(self) -> int:
        """Rows of the stop table: at most one for each byte of the stop strings, and the start."""
        longest = 1 + sum(len(text.encode()) for text in self.config.rollout.stop)
        return -(-longest // ROUND) * ROUND


@dataclass(frozen=True)
class Plan:
    """What one step needs; `needed` is what a refused program asked for, inf where the compiler did not say."""

    job: Job
    share: Share
    account: Account
    phases: dict[str, Phase]
    sent: Sequence[Collective]
    cost: dict[str, float]  # the compiler's own, with every loop's body counted once
    seconds: float  # of compiling
    needed: float | None = None

    @property
    def peak(self) -> float:
        return self.account.peak if self.needed is None else self.needed

    @property
    def fits(self) -> bool:
        return self.peak <= self.job.limit

    @property
    def is_compiled(self) -> bool:
        return self.account.need is not None


def open_job(config: Config, architecture: Architecture, topology: Topology, width: int) -> Job:
    """A Job that can run at all. Raises UserError where the mesh, the batch or the context do not fit."""
    job = Job(config, architecture, topology, planned_devices(topology), width)
    minibatches = config.update.minibatches
    name = "rollout.questions" if minibatches == 1 else "rollout.questions / update.minibatches"
    batch = {"evaluate.batch": config.evaluate.batch} if config.evaluate.questions else {}
    check_mesh(job.mesh, architecture, questions={name: config.rollout.questions // minibatches}, rows=batch)
    if config.model.attention != "plain":
        check_kernel(config.model.attention, config.model.compute_dtype, architecture.K, topology.platform)
    longest = width + config.rollout.max_tokens
    if longest > architecture.max_positions:
        raise UserError(
            f"rollout.max_tokens = {config.rollout.max_tokens} and prompts of {width} tokens make {longest}, beyond the model's "
            f"context of {architecture.max_positions}; lower rollout.max_tokens, prompt.max_tokens or --prompt-tokens"
        )
    return decided(job)


def decided(job: Job) -> Job:
    """The Job with nothing left to `auto`: the first choice of a run's that fits by analysis, or the one that needs least."""
    if job.config.is_decided:
        return job
    groups = choices(job.config, devices=shards(job.mesh, "questions"), platform=job.topology.platform)
    jobs = [replace(job, config=config) for group in groups for config in group]
    return next((one for one in jobs if estimate(one).peak <= job.limit), None) or min(jobs, key=lambda one: estimate(one).peak)


def estimate(job: Job, need: Need | None = None) -> Account:
    """The account of a Job without compiling it."""
    inputs = step_inputs(job.config, job.architecture, job.mesh, width=job.width, states=job.states)
    share = share_of(job.config, job.architecture, job.mesh, width=job.width)
    return Account(given_bytes(inputs), made_bytes(job.config, job.architecture, share), need)


def make_plan(job: Job) -> Plan:
    """The Plan of a Job: compiled where its devices have a compiler here, which is TPUs'."""
    share = share_of(job.config, job.architecture, job.mesh, width=job.width)
    sent: list[Collective] = []
    cost: dict[str, float] = {}
    need = needed = None
    started = time.monotonic()
    if job.topology.platform == "tpu":
        graph = policy_graph(job.config, job.architecture, job.mesh)
        lowered = lower_step(graph, job.config, job.architecture, job.mesh, width=job.width, states=job.states)
        try:
            compiled = compiled_step(lowered)
            need, sent = need_of(compiled), collectives(compiled.as_text() or "")
            known = compiled.cost_analysis() or {}
            cost = {name: float(known[name]) for name in ("flops", "bytes accessed") if name in known}
        except DoesNotFit as refused:
            needed = refused.args[0]
    account = estimate(job, need)
    parts = phases(job.config, job.architecture, share, job.topology, sent)
    return Plan(job, share, account, parts, sent, cost, time.monotonic() - started, needed)
