"""Takes the runs of the campaign, gives its pictures: curves over seeds, gains of each label source, where alarms were raised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from calibration import ACCURACY, Outcome, collapse_step
from campaign import Run

from jaxselftrain.plots import new_figure

CURVES = {  # condition -> colour (Okabe and Ito)
    "gold": "#0072B2",
    "srt": "#009E73",
    "keen": "#CC79A7",
    "hard": "#E69F00",
    "harder": "#D55E00",
    "driven": "#D55E00",
    "random": "#7F7F7F",
}
PANELS = {
    ACCURACY: "held-out accuracy (avg@k)",
    "pseudo_reward": "reward (what it is trained on)",
    "kl": "KL to the initial policy, nats a token",
}
HEALTHY, COLLAPSE, RAISED = "#009E73", "#D55E00", "#0072B2"


def _tasks(runs: Sequence[Run]) -> list[str]:
    return sorted({run.task for run in runs})


def draw_curves(runs: Sequence[Run], says: Mapping[str, str], out: Path) -> Path:
    """A column for each task; rows: accuracy, pseudo-reward, KL. Lines are means over seeds, bands go from least to most."""
    tasks = _tasks(runs)
    with new_figure((5.6 * len(tasks), 10.5), out) as figure:
        axes = figure.subplots(len(PANELS), len(tasks), squeeze=False, sharex="col")
        for column, task in enumerate(tasks):
            for row, (metric, title) in enumerate(PANELS.items()):
                axis = axes[row][column]
                for condition, colour in CURVES.items():
                    group = [run for run in runs if (run.task, run.condition) == (task, condition)]
                    if group:
                        label = f"{says[condition]} (n={len(group)})"
                        _band(axis, [run.curve(metric) for run in group], colour, label)
                axis.set_title(f"{task}: {title}", fontsize=11, loc="left")
                axis.grid(alpha=0.25)
                if metric == "kl":
                    axis.set_yscale("log")
                    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                    axis.set_xlabel("training step")
                else:
                    axis.set_ylim(0, 1.02)
            axes[-1][column].legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=1, frameon=False, fontsize=9)
    return out


def _band(axis, curves: Sequence[Mapping[int, float]], colour: str, label: str) -> None:
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not steps:
        return
    values = np.asarray([[curve[step] for step in steps] for curve in curves])
    width = max(1, len(steps) // 30) if len(steps) > 60 else 1
    if width > 1:  # one batch's chance is no trend: means over a thirtieth of the run
        whole = len(steps) // width * width
        values = values[:, :whole].reshape(len(values), -1, width).mean(2)
        steps = list(np.asarray(steps[:whole]).reshape(-1, width).mean(1))
    axis.plot(steps, values.mean(0), color=colour, linewidth=2.2, label=label)
    axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.18, linewidth=0)


def draw_gains(runs: Sequence[Run], says: Mapping[str, str], out: Path) -> Path:
    """Each condition's held-out accuracy at the end, a dot for each seed and a bar for their mean; dashed is the base."""
    tasks, order = _tasks(runs), [name for name in says if any(run.condition == name for run in runs)]
    with new_figure((4.2 + 4.2 * len(tasks), 1.3 + 0.36 * len(order)), out) as figure:
        axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
        for axis, task in zip(axes, tasks, strict=True):
            mine = [run for run in runs if run.task == task]
            axis.axvline(float(np.mean([run.curve(ACCURACY)[0] for run in mine])), color="#4D4D4D", dashes=(4, 3), linewidth=1.2)
            for place, name in enumerate(order):
                ends = [list(run.curve(ACCURACY).values())[-1] for run in mine if run.condition == name]
                bests = [max(run.curve(ACCURACY).values()) for run in mine if run.condition == name]
                axis.plot(bests, [place] * len(bests), "o", mfc="none", color="#7F7F7F", markersize=6, label="best on the way")
                axis.plot(ends, [place] * len(ends), "o", color="#0072B2", markersize=6, alpha=0.8, label="at the end")
                if ends:
                    axis.plot([np.mean(ends)] * 2, [place - 0.32, place + 0.32], color="#0072B2", linewidth=2.5)
            axis.set_title(f"{task} (dashed: the base)", fontsize=11)
            axis.set_xlabel("held-out accuracy (avg@k)")
            axis.set_xlim(0, 1)
            axis.grid(alpha=0.25, axis="x")
        axes[0].set_yticks(range(len(order)), [says[name] for name in order])
        axes[0].invert_yaxis()
        handles, labels = axes[0].get_legend_handles_labels()
        kinds = dict(zip(labels, handles, strict=True))
        figure.legend(kinds.values(), kinds.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return out


def draw_alarms(outcomes: Sequence[Outcome], says: Mapping[str, str], out: Path) -> Path:
    """A line for each run: green while it is healthy, red once it has lost 5 points; a diamond where the alarm was raised."""
    order = list(says)
    chosen = sorted(outcomes, key=lambda outcome: (outcome.run.task, order.index(outcome.run.condition), outcome.run.seed))
    with new_figure((9.5, 1.2 + 0.12 * len(chosen)), out) as figure:
        axis = figure.subplots()
        places: dict[str, list[int]] = {}
        for place, outcome in enumerate(chosen):
            run, end = outcome.run, max(outcome.run.curve(ACCURACY))
            fallen = collapse_step(run)
            for start, stop, colour in ((0, end if fallen is None else fallen, HEALTHY), (fallen, end, COLLAPSE)):
                if start is not None:
                    axis.plot([start, stop], [place] * 2, color=colour, linewidth=2.5, alpha=0.7, solid_capstyle="butt")
            if outcome.raised is not None:
                axis.plot([outcome.raised], [place], "D", color=RAISED, markersize=4, zorder=3)
            places.setdefault(f"{run.task}: {says[run.condition]}", []).append(place)
        axis.set_yticks([float(np.mean(group)) for group in places.values()], list(places), fontsize=8)
        axis.margins(y=0.01)
        axis.invert_yaxis()
        axis.set_xlabel("training step")
        axis.set_title("green: healthy; red: 5 points of held-out accuracy lost; diamond: the alarm", fontsize=11)
        axis.grid(alpha=0.25, axis="x")
    return out


def draw_surprise(runs: Sequence[Run], out: Path, *, window: int) -> Path:
    """Each run's surprise, as a part of where it began, in windows: green where it stays healthy, red where it collapses."""
    tasks = _tasks(runs)
    with new_figure((5.6 * len(tasks), 4.4), out) as figure:
        axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
        for axis, task in zip(axes, tasks, strict=True):
            for run in (run for run in runs if run.task == task):
                values = np.asarray(list(run.curve("surprise").values()))
                if len(values) < window:  # rolled back to where it began, or without a reference
                    continue
                means = np.convolve(values, np.full(window, 1 / window), "valid")
                fallen = collapse_step(run)
                steps = np.arange(window, window + len(means))
                axis.plot(steps, means / means[0], color=HEALTHY if fallen is None else COLLAPSE, linewidth=1.1, alpha=0.55)
                if fallen is not None:
                    place = min(max(fallen - window, 0), len(means) - 1)
                    axis.plot([steps[place]], [means[place] / means[0]], "o", color=COLLAPSE, markersize=6, zorder=3)
            axis.axhline(1, color="#4D4D4D", dashes=(4, 3), linewidth=1)
            axis.set_title(task, fontsize=11, loc="left")
            axis.set_xlabel("training step")
            axis.set_ylim(0, 2.2)
            axis.grid(alpha=0.25)
        axes[0].set_ylabel("surprise, as a part of where it began")
        marks = {"healthy": (HEALTHY, ""), "collapses": (COLLAPSE, ""), "5 points of accuracy lost": (COLLAPSE, "o")}
        for label, (colour, marker) in marks.items():
            axes[0].plot([], [], marker or "-", color=colour, label=label)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return out
