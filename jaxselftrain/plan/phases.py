"""Takes a device's share of a step and the program's collectives, gives operations, bytes and the least time of each phase.

The counts are those of `counts`: what no program can do without, for responses of full length. The least time is the largest of
operations / peak, bytes / bandwidth and received bytes / links' bandwidth: a real step overlaps these less well and takes longer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from jaxselftrain import counts
from jaxselftrain.config import Config
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.plan.account import ITEMSIZE, WIDE, Share
from jaxselftrain.plan.collectives import Collective
from jaxselftrain.plan.topologies import Topology

PHASES = ("prefill", "decoding", "scoring", "gradient", "optimizer")


@dataclass(frozen=True)
class Phase:
    """One device's part of a phase."""

    operations: float
    bytes: float
    received: dict[str, float]  # kind of collective -> bytes
    seconds: float | None  # at the least; None where no peaks are published


def phases(config: Config, a: Architecture, share: Share, topology: Topology, sent: Sequence[Collective]) -> dict[str, Phase]:
    """Every phase that the step has, in the order of the path."""
    work = work_of(config, a, share)
    received = received_by_phase(sent, rounds=decode_rounds(share))
    chip, n = topology.chip, topology.chip.devices
    out = {}
    for name in PHASES:
        if name not in work:
            continue
        operations, moved = work[name].operations, work[name].bytes
        seconds = None
        if chip.rate is not None and chip.bandwidth is not None and chip.link is not None:
            links = sum(received[name].values()) / (chip.link / n)
            seconds = max(operations / (chip.rate / n), moved / (chip.bandwidth / n), links)
        out[name] = Phase(operations, moved, dict(received[name]), seconds)
    return out


def decode_rounds(share: Share) -> int:
    """Rounds of the loop that draws tokens, where every response has full length."""
    return math.ceil(share.N / share.W) * share.T - 1


def work_of(config: Config, a: Architecture, share: Share) -> dict[str, counts.Work]:
    """Operations and bytes of one device, by phase; what is computed again is counted as well."""
    s, item = share, ITEMSIZE[config.model.compute_dtype]
    layers, attention, logits = counts.forward_operations(a, Q=s.Q * s.pieces, M=s.M // s.pieces, C=s.C, T=s.T)
    forward = layers + attention + logits
    again = logits + {"none": 0.0, "dots": attention, "layers": layers + attention}[config.model.remat]  # see scoring.py
    weights, read = counts.moved_weights(a) * item, s.Q * s.M * s.T * a.V * WIDE
    splits = s.pieces > 1 or config.mesh.samples > 1
    scores_first = config.update.epochs * config.update.minibatches > 1 or (splits and config.charges_kl_in_reward)
    scored = int(config.keeps_reference) + int(scores_first)
    steps = config.update.epochs * config.update.minibatches
    work = {
        "prefill": counts.prefill(a, Q=s.Q, C=s.C, itemsize=item),
        "decoding": counts.decode(a, Q=s.Q, N=s.N, C=s.C, T=s.T, W=s.W, itemsize=item),
        "scoring": counts.Work(scored * forward, scored * (s.micro * weights + read)),
        "gradient": counts.Work(
            config.update.epochs * (3 * forward + again), steps * 3 * s.micro * weights + config.update.epochs * 2 * read
        ),
    }
    whole = {name: counts.Work(w.operations / s.tensor, w.bytes / s.tensor) for name, w in work.items()}
    if not scored:
        del whole["scoring"]
    return whole | {"optimizer": counts.Work(0.0, steps * counts.optimizer_bytes(a, config) / s.weights)}


def received_by_phase(sent: Sequence[Collective], *, rounds: int) -> dict[str, dict[str, float]]:
    """phase -> kind -> bytes that a device receives in a step.

    The loop that draws tokens stands in the program once for each size of the caches; each round runs in one of these, so the
    largest is multiplied by the rounds.
    """
    out: dict[str, dict[str, float]] = {name: defaultdict(float) for name in PHASES}
    by_loop: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for one in sent:
        if one.loop is not None:
            by_loop[one.loop][one.kind] += one.bytes * one.times
        else:
            out[phase_of(one.where)][one.kind] += one.bytes * one.times
    largest = max(by_loop.values(), key=lambda kinds: sum(kinds.values()), default={})
    for kind, size in largest.items():
        out["decoding"][kind] += rounds * size
    return out


def phase_of(where: str) -> str:
    """The phase of a path of names, by the scopes that the step gives its parts."""
    names = where.split("/")
    if "update" in names:
        return next((name for name in ("scoring", "gradient") if name in names), "optimizer")
    return "prefill" if "prefill" in names else "decoding"
