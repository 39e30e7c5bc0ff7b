"""Takes groups of runs, gives the pictures that are no curves over the steps: reward against accuracy, shares, thresholds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxselftrain.compare import read_thresholds
from jaxselftrain.plots import SMOOTHING, new_figure, plot_thresholds, running_mean
from jaxselftrain.report.curves import curve
from jaxselftrain.report.pictures import (
    ENTRY,
    MARGIN,
    PANEL,
    WIDTH,
    Missing,
    Picture,
    group_colours,
    label,
    legend,
    write_csv,
)
from jaxselftrain.report.runs import AVG, Group, Run
from jaxselftrain.report.series import NO_GOLD
from jaxselftrain.statistics import Threshold

Shares = Mapping[str, Sequence[tuple[int, float]]]  # name of a group -> (step, majority share) of its logged questions
EDGES = np.linspace(0, 1, 11)
MOST_THRESHOLDS = 4  # three curves each
PER_COLUMN, COLUMNS = 6, 60  # questions in a column of the shares, at least where they are enough; columns at most


def draw_against(groups: Sequence[Group], folder: Path) -> Picture | Missing:
    """The path of each group through the plane of pseudo-reward and true accuracy."""
    title = "Pseudo-reward against true accuracy"
    paths = {}
    for group in groups:
        reward, accuracy = curve(group, "pseudo_reward"), curve(group, "true_accuracy")
        if reward is None or accuracy is None:
            continue
        right = dict(zip(accuracy.steps, accuracy.values, strict=True))
        path = [(step, value, right[step]) for step, value in zip(reward.steps, reward.values, strict=True) if step in right]
        if path:
            paths[group.name] = path
    if not paths:
        return Missing(title, NO_GOLD)
    colours = group_colours(groups)
    single = len(groups) == 1
    entries = [] if single else [(label(name), *colours[name]) for name in paths]
    with new_figure((WIDTH, MARGIN + 1.9 * PANEL + ENTRY * len(entries)), folder / "against.png") as figure:
        axis = figure.subplots()
        figure.suptitle(title, fontsize=12, fontweight="bold")
        for name, path in paths.items():
            _path(figure, axis, path, *colours[name], single=single)
        axis.plot([0, 1], [0, 1], color="#808080", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        turned: dict = {"rotation": 45, "rotation_mode": "anchor", "transform_rotates_text": True}
        axis.annotate("reward = accuracy", (0.25, 0.28), color="#606060", fontsize=9, ha="center", **turned)
        low = min(0.0, *(reward for path in paths.values() for _, reward, _ in path))
        high = max(1.0, *(reward for path in paths.values() for _, reward, _ in path))
        axis.set_xlim(low - 0.02, high + 0.02)
        axis.set_ylim(-0.02, 1.04)
        axis.set_xlabel("pseudo-reward (what it is trained on)")
        axis.set_ylabel("true accuracy (watched, never trained on)")
        axis.grid(alpha=0.25)
        legend(figure, entries)
    rows = [(name, *point) for name, path in paths.items() for point in path]
    write_csv(folder / "against.csv", ("line", "step", "pseudo_reward", "true_accuracy"), rows)
    caption = (
        "From the ring (first step) to the dot (last step). Up and to the right is learning; to the right and down is a model "
        "that agrees with itself on wrong answers."
    )
    if any(len(path) > SMOOTHING for path in paths.values()):
        caption += " Running means over a thirtieth part of the steps; the CSV file has every step."
    png = (folder / "against.png").read_bytes()
    return Picture("against", title, caption, png, ["pseudo_reward", "true_accuracy"])


def _path(figure, axis, path: Sequence[tuple[int, float, float]], colour: str, dashes: object, *, single: bool) -> None:
    steps, x, y = (list(part) for part in zip(*path, strict=True))
    if len(path) > SMOOTHING:
        x, y = (running_mean(values, max(3, len(path) // SMOOTHING)) for values in (x, y))
    axis.plot(x, y, color="#A0A0A0" if single else colour, linewidth=1 if single else 1.6, linestyle=dashes, zorder=2)
    if single and len(path) > 1:
        dots = axis.scatter(x, y, c=steps, cmap="viridis_r", s=18, zorder=3)
        figure.colorbar(dots, ax=axis, label="training step", fraction=0.05, pad=0.02)
    dark = "#222222" if single else colour
    axis.plot(x[:1], y[:1], "o", markersize=9, markerfacecolor="none", color=dark, zorder=4)
    axis.plot(x[-1:], y[-1:], "o", markersize=8, color=dark, zorder=4)
    if single:
        pale = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}
        for place, step in ((0, steps[0]), (-1, steps[-1])):
            align, shift = ("right", -7) if x[place] > 0.8 else ("left", 7)
            axis.annotate(
                f"step {step}",
                (x[place], y[place]),
                xytext=(shift, 7),
                textcoords="offset points",
                ha=align,
                fontsize=9,
                bbox=pale,
            )


def draw_shares(groups: Sequence[Group], shares: Shares, folder: Path) -> Picture | Missing:
    """How the majority shares of single questions are distributed, over the steps."""
    title = "Distribution of majority shares"
    found = {group.name: shares[group.name] for group in groups if shares.get(group.name)}
    if not found:
        return Missing(title, "no responses were logged; log.responses above 0 keeps some")
    rows: list[tuple] = []
    with new_figure((WIDTH, MARGIN + PANEL * max(1.5, 0.9 * len(found))), folder / "shares.png") as figure:
        axes = figure.subplots(len(found), 1, squeeze=False, sharex=True)[:, 0]
        figure.suptitle(title, fontsize=12, fontweight="bold")
        for axis, (name, each) in zip(axes, found.items(), strict=True):
            columns, counts_BC, means = binned(each)
            edges = [columns[0][0] - 0.5, *((a[1] + b[0]) / 2 for a, b in itertools.pairwise(columns))]
            mesh = axis.pcolormesh(
                [*edges, columns[-1][1] + 0.5], EDGES, counts_BC / counts_BC.sum(0), cmap="Blues", vmin=0, vmax=1, zorder=1
            )
            middles = [(first + last) / 2 for first, last in columns]
            axis.plot(middles, means, color="#D55E00", linewidth=2, marker="o" if len(means) == 1 else "", zorder=3)
            axis.set_ylabel("majority share")
            if len(found) > 1:
                axis.set_title(label(name), fontsize=10, loc="left")
            figure.colorbar(mesh, ax=axis, label="part of the questions", fraction=0.05, pad=0.02)
            for (first, last), counts_B in zip(columns, counts_BC.T, strict=True):
                rows += [
                    (name, first, last, f"{EDGES[b]:.1f}", f"{EDGES[b + 1]:.1f}", int(count)) for b, count in enumerate(counts_B)
                ]
        axes[-1].set_xlabel("training step (updates of the policy)")
    write_csv(folder / "shares.csv", ("line", "first_step", "last_step", "share_from", "share_to", "questions"), rows)
    total = sum(len(each) for each in found.values())
    caption = (
        f"From the {total} questions whose responses were logged. Dark at the top: almost all samples of a question give the "
        "same answer, right or wrong. Orange: their mean."
    )
    return Picture("shares", title, caption, (folder / "shares.png").read_bytes(), ["majority_share"])


def binned(shares: Sequence[tuple[int, float]]) -> tuple[list[tuple[int, int]], np.ndarray, list[float]]:
    """((first, last) step of each column, [B, columns] counts of questions by their share, mean share of each column)."""
    by_step: dict[int, list[float]] = {}
    for step, share in shares:
        by_step.setdefault(step, []).append(share)
    steps = sorted(by_step)
    parts = np.array_split(np.asarray(steps), max(1, min(COLUMNS, len(steps), len(shares) // PER_COLUMN)))
    pooled = [np.asarray([share for step in part for share in by_step[int(step)]]) for part in parts]
    # 3 of 10 votes are 0.3, which lies in the bin that begins there, whatever the last bit of the float says
    counts_BC = np.stack([np.histogram(np.clip(values + 1e-9, 0, 1), EDGES)[0] for values in pooled], 1)
    return [(int(part[0]), int(part[-1])) for part in parts], counts_BC, [float(values.mean()) for values in pooled]


def draw_thresholds(groups: Sequence[Group], folder: Path) -> Picture | Missing:
    """Accuracy over agreement on held-out questions: of one run its last and its first evaluation, of several each one's last."""
    title = "Accuracy over agreement, held-out questions"
    curves: dict[str, list[Threshold]] = {}
    for group in groups:
        steps = _with_thresholds(group.runs[0])
        if len(groups) == 1:
            for step in dict.fromkeys((*steps[-1:], *steps[:1])):
                curves[f"step {step}"] = read_thresholds(group.runs[0].evaluation(step))
        elif steps and len(curves) < MOST_THRESHOLDS:
            curves[label(group.name)] = read_thresholds(group.runs[0].evaluation(steps[-1]))
    curves = {name: each for name, each in curves.items() if each}
    if not curves:
        return Missing(title, "no held-out evaluation with its thresholds is in the run folder")
    plot_thresholds(curves, folder / "thresholds.png", title=title, size=(WIDTH, MARGIN + 1.6 * PANEL + ENTRY * 3 * len(curves)))
    names = ("share", "coverage", "majority", "sample")
    rows = [(name, *(entry[part] for part in names)) for name, each in curves.items() for entry in each]  # type: ignore[literal-required]
    write_csv(folder / "thresholds.csv", ("line", *names), rows)
    shown = [group.runs[0].name for group in groups if len(group.runs) > 1]
    caption = (
        "What answering, or learning from, only the questions with a large majority share would give: how many are left, and how "
        "often they are right. Where accuracy does not rise to the right, agreement tells nothing about truth."
    )
    if shown:
        caption += f" Of several seeds, the first: {', '.join(shown[:4])}."
    return Picture("thresholds", title, caption, (folder / "thresholds.png").read_bytes(), [])


def _with_thresholds(run: Run) -> list[int]:
    return [step for step in sorted(run.points(AVG)) if run.evaluation(step).with_suffix(".thresholds.json").is_file()]
