"""Takes a plan that does not fit, gives the smallest change of its settings that does, confirmed by the compiler.

Smallest in what it costs a run: first more micro-batches, then fewer rows at a time, then more computed again, then weights that
stay in parts while tokens are drawn, then another mesh of as many devices; of each kind the least that is enough.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from jaxselftrain.config import Config, override_config
from jaxselftrain.errors import UserError
from jaxselftrain.plan.planning import Job, Plan, estimate, make_plan
from jaxselftrain.sharding import check_mesh, shards

TRIES = 3  # programs compiled to confirm a change


@dataclass(frozen=True)
class Change:
    """Overrides that make a plan fit, and the plan with them."""

    overrides: tuple[str, ...]
    plan: Plan


def smallest_change(plan: Plan, say: Callable[[str], None]) -> Change | None:
    """The first change that fits; None where none of those tried does.

    What a change saves is worked out first, so that few programs are compiled; how much the compiler took beyond our estimate for
    the plan at hand is added to each.
    """
    job, tried = plan.job, 0
    before = estimate(job).estimate
    beyond = max(plan.peak - before, 0.0) if math.isfinite(plan.peak) else 0.0
    for overrides in changes(job):
        changed = with_overrides(job, overrides)
        if changed is None or estimate(changed).estimate + beyond > job.limit:
            continue
        if job.topology.platform == "tpu":
            say(f"does not fit; compiling with {' '.join(overrides)}")
        found = make_plan(changed)
        if found.fits:
            return Change(overrides, found)
        tried += 1
        if tried == TRIES:
            return None
    return None


def with_overrides(job: Job, overrides: tuple[str, ...]) -> Job | None:
    """The Job with other settings; None where they are not allowed together."""
    try:
        changed = replace(job, config=override_config(job.config, overrides))
        name = {"rollout.questions": changed.config.rollout.questions // changed.config.update.minibatches}
        check_mesh(changed.mesh, job.architecture, questions=name)
    except UserError:
        return None
    return changed


def changes(job: Job) -> Iterator[tuple[str, ...]]:
    """Overrides to try, smallest first; not all of them are allowed."""
    config = job.config
    yield from one_mesh(config, shards(job.mesh, "questions"))
    for data, fsdp, samples, tensor in meshes(len(job.devices)):
        mesh = (f"mesh.data={data}", f"mesh.fsdp={fsdp}", f"mesh.samples={samples}", f"mesh.tensor={tensor}")
        for settings in itertools.chain([()], one_mesh(config, data * fsdp)):
            yield (*mesh, *settings)


def one_mesh(config: Config, devices: int) -> Iterator[tuple[str, ...]]:
    """Changes that keep the mesh, over whose devices questions are split."""
    own = max(config.rollout.questions // config.update.minibatches // devices, 1)
    most = own * config.samples_trained // config.mesh.samples
    micro = [f"update.micro_batches={n}" for n in range(config.micro_batches + 1, most + 1) if most % n == 0]
    full = config.rollout.questions * config.vote.samples
    rows, least = config.rollout.rows or full, config.rollout.questions * config.mesh.samples
    fewer = [f"rollout.rows={n}" for n in range(rows - 1, least - 1, -1) if full % n == 0 and n % least == 0]
    remat = {"none": ["dots", "layers"], "dots": ["layers"]}.get(config.model.remat, [])
    again = [f"model.remat={level}" for level in remat]
    apart = ["rollout.gather_weights=false"] if config.rollout.gather_weights and config.mesh.fsdp > 1 else []
    yield from (
        *((x,) for x in micro),
        *((x,) for x in fewer),
        *((x,) for x in again),
        *itertools.product(micro, fewer),
        *itertools.product(micro, again),
        *itertools.product(micro, fewer, again),
        *((x,) for x in apart),
        *itertools.product(apart, micro),
        *itertools.product(apart, micro, fewer, again),
    )


def meshes(devices: int) -> Iterator[tuple[int, int, int, int]]:
    """(data, fsdp, samples, tensor) of all meshes of so many devices, those with least tensor and samples first."""
    sizes = [n for n in range(1, devices + 1) if devices % n == 0]
    for tensor, samples in sorted(itertools.product(sizes, sizes), key=lambda pair: pair[0] * pair[1]):
        if devices % (tensor * samples) == 0:
            rest = devices // (tensor * samples)
            for fsdp in reversed([n for n in sizes if rest % n == 0]):
                yield rest // fsdp, fsdp, samples, tensor
