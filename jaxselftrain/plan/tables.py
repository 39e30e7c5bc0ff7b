"""Takes a Plan, gives what is printed of it, and the same as JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from jaxselftrain import counts
from jaxselftrain.plan.fit import Change
from jaxselftrain.plan.phases import decode_rounds
from jaxselftrain.plan.planning import SPARE, Plan
from jaxselftrain.plan.topologies import GIB

NOTES = {
    "given": "weights, optimizer, reference, rollouts: exact, from shapes and shardings.",
    "padding": "Tile padding: the compiler's arguments less these.",
    "made": "What is made on the way ({phase}, the phase that makes most): worked out, the least that it needs.",
    "other": "Other: what the compiler takes beyond that, or saves.",
    "analysis": "No compiler of this target was asked: by analysis, a lower bound. Allocators and libraries take more.",
    "time": "Operations and bytes are counted by formula, for responses of full length. Least time: the largest of operations / "
    "bfloat16 peak, bytes / bandwidth, received / links; an estimate and a lower bound, no measurement.",
    "loops": "Received: by the compiled program, constant loops multiplied out, the one that draws tokens by {rounds:,} rounds.",
}


def show(console: Console, plan: Plan, change: Change | None, notes: Sequence[str], *, searched: bool) -> None:
    """Prints the whole plan."""
    job, account = plan.job, plan.account
    chip = job.topology.chip
    each = "" if chip.devices == 1 else f"; a chip is {chip.devices} devices, and figures are of one device"
    mesh = " x ".join(f"{name} {size}" for name, size in job.mesh.shape.items() if size > 1) or "one device"
    console.print(f"{job.topology.chips} x {chip.name}{each}; mesh: {mesh}; model: {job.config.model.path}", highlight=False)
    for note in notes:
        console.print(note, highlight=False)
    console.print(memory_table(plan))
    if account.need is None and plan.needed is None:
        console.print(NOTES["analysis"], highlight=False)
    console.print(phase_table(plan))
    if plan.sent:
        console.print(collective_table(plan))
    console.print(_verdict(plan, change, searched), highlight=False, style="bold")


def memory_table(plan: Plan) -> Table:
    """What takes a device's memory."""
    account, limit = plan.account, plan.job.topology.device_memory
    told = [NOTES["given"], NOTES["padding"] if plan.is_compiled else "", NOTES["made"].format(phase=account.phase)]
    caption = " ".join(filter(None, [*told, NOTES["other"] if plan.is_compiled else ""]))
    table = Table(title="memory of one device", caption=caption, caption_justify="left")
    for column, side in (("what", "left"), ("GiB", "right"), ("share", "right")):
        table.add_column(column, justify=side)  # type: ignore[arg-type]

    def row(name: str, size: float, style: str | None = None) -> None:
        table.add_row(name, f"{size / GIB:.2f}", f"{size / limit:.1%}", style=style)

    if account.need is not None:
        row("arguments", account.need.arguments, "bold")
        row("temporaries", account.need.temporaries + account.need.results, "bold")
        table.add_section()
    for name, size in account.lines().items():
        row(name, size)
    table.add_section()
    if plan.needed is not None and math.isinf(plan.needed):
        table.add_row("peak", "refused", "")
    else:
        row("peak", plan.peak, "bold")
    row("memory", limit)
    return table


def phase_table(plan: Plan) -> Table:
    """Operations, bytes and the least time of each phase."""
    rounds = decode_rounds(plan.share)
    told = NOTES["time"] + (" " + NOTES["loops"].format(rounds=rounds) if plan.sent else "")
    table = Table(title="one step, of one device", caption=told, caption_justify="left")
    for column in ("phase", "TFLOP", "GB moved", "GB received", "least seconds", "bound by"):
        table.add_column(column, justify="left" if column in ("phase", "bound by") else "right")
    for name, phase in plan.phases.items():
        received = sum(phase.received.values())
        seconds = "" if phase.seconds is None else f"{phase.seconds:.2f}"
        cells = (f"{phase.operations / 1e12:,.1f}", f"{phase.bytes / 1e9:,.1f}", f"{received / 1e9:,.1f}" if plan.sent else "")
        table.add_row(name, *cells, seconds, bound_by(plan, name))
    if (total := step_seconds(plan)) is not None:
        table.add_section()
        table.add_row("step", "", "", "", f"{total:.2f}", f"{_tokens(plan) / total:,.0f} tokens/s at most", style="bold")
    return table


def collective_table(plan: Plan) -> Table:
    """Kinds of collectives by phase."""
    table = Table(title="collectives of one step: GB received by one device")
    kinds = sorted({kind for phase in plan.phases.values() for kind in phase.received})
    table.add_column("phase")
    for kind in kinds:
        table.add_column(kind, justify="right")
    for name, phase in plan.phases.items():
        if phase.received:
            table.add_row(name, *(f"{phase.received[kind] / 1e9:,.2f}" if kind in phase.received else "" for kind in kinds))
    return table


def step_seconds(plan: Plan) -> float | None:
    """The least time of a step; None without published peaks."""
    times = [phase.seconds for phase in plan.phases.values()]
    return None if None in times else sum(time for time in times if time is not None)


def bound_by(plan: Plan, name: str) -> str:
    """What gives a phase its least time."""
    phase, chip, n = plan.phases[name], plan.job.topology.chip, plan.job.topology.chip.devices
    if chip.rate is None or chip.bandwidth is None or chip.link is None:
        return ""
    times = {
        "operations": phase.operations * n / chip.rate,
        "memory bandwidth": phase.bytes * n / chip.bandwidth,
        "links": sum(phase.received.values()) * n / chip.link,
    }
    return max(times, key=lambda what: times[what])


def record(plan: Plan, change: Change | None, notes: Sequence[str]) -> dict[str, Any]:
    """The plan as plain values, for a file."""
    job, account = plan.job, plan.account
    by_kind: dict[str, float] = defaultdict(float)
    for phase in plan.phases.values():
        for kind, size in phase.received.items():
            by_kind[kind] += size
    return {
        "model": job.config.model.path,
        "topology": job.topology.name,
        "chip": job.topology.chip.name,
        "chips": job.topology.chips,
        "devices": job.topology.devices,
        "mesh": dict(job.mesh.shape),
        "parameters": counts.parameters(job.architecture),
        "prompt_tokens": job.width,
        "micro_batches": job.config.micro_batches,
        "remat": job.config.model.remat,
        "rows_per_question": plan.share.W,
        "compiled": plan.is_compiled,
        "compile_seconds": round(plan.seconds, 1) if plan.is_compiled else None,
        "compiler": None if account.need is None else asdict(account.need),
        "compiler_cost_loops_once": plan.cost,
        "memory": account.lines(),
        "peak": None if math.isinf(plan.peak) else plan.peak,
        "device_memory": job.topology.device_memory,
        "spare": SPARE,
        "fits": plan.fits,
        "phases": {name: asdict(phase) for name, phase in plan.phases.items()},
        "collectives": dict(by_kind),
        "least_step_seconds": step_seconds(plan),
        "change": None if change is None else list(change.overrides),
        "notes": list(notes),
    }


def _tokens(plan: Plan) -> float:
    rollout = plan.job.config.rollout
    return rollout.questions * plan.job.config.vote.samples * rollout.max_tokens


def _verdict(plan: Plan, change: Change | None, searched: bool) -> str:
    share = plan.peak / plan.job.topology.device_memory
    limit = f"{1 - SPARE:.0%} of {plan.job.topology.device_memory / GIB:.1f} GiB"
    if plan.fits:
        return f"fits: {share:.0%} of a device's memory, within {limit}"
    taken = "more than the compiler allows" if math.isinf(plan.peak) else f"{share:.0%} of a device's memory"
    text = f"does not fit: {taken}, beyond {limit}"
    if change is not None:
        peak = change.plan.peak / plan.job.topology.device_memory
        return f"{text}; the smallest change that does ({peak:.0%}): {' '.join(change.overrides)}"
    if not searched:
        return text
    return (
        f"{text}; no micro-batches, rows, remat or mesh of these chips do: use more chips, bfloat16 states, or shorter responses"
    )
