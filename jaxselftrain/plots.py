"""Takes what runs and evaluations measured, gives pictures: reward and accuracy over the steps, accuracy over agreement."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxselftrain.errors import UserError
from jaxselftrain.metrics import METRICS_FILE, read_metrics
from jaxselftrain.statistics import Threshold

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colours that people with colour-blindness tell apart (Okabe and Ito); the same measure has the same colour on both sides.
TRAINING = {
    "pseudo_reward": ("pseudo-reward (what it is trained on)", "#E69F00"),
    "majority_share": ("majority share", "#56B4E9"),
    "true_accuracy": ("true accuracy (watched, never trained on)", "#009E73"),
}
HELD_OUT = {
    "heldout/maj": ("maj@k (majority vote)", "#0072B2"),
    "heldout/greedy": ("greedy", "#CC79A7"),
    "heldout/avg": ("avg@k (single sample)", "#009E73"),
}
THRESHOLDS = {
    "majority": ("majority answer right (of these questions)", "#0072B2"),
    "sample": ("sample right (of these questions)", "#009E73"),
    "coverage": ("coverage (of all questions)", "#E69F00"),
}
GREYS = ("#7F7F7F", "#B0B0B0", "#4D4D4D")  # of the runs to compare with
# A name may hold anything: a folder called `$a` is no formula.
STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}
SMOOTHING = 30  # a line of more steps than this is drawn faint, with its running mean over a thirtieth part on top


def plot_run(runs: Mapping[str, Path], out: Path, *, title: str) -> Path:
    """Draws the runs (label -> run folder) into the PNG file `out`, and returns it.

    Left: pseudo-reward, majority share and true accuracy of each step's samples. Right, where the run was evaluated:
    avg@k, maj@k and greedy on held-out questions, with upright bars for 95% intervals. The first and the last value are
    written beside each curve. The first run is in colour; the others, such as a control with random rewards, are dashed and grey.
    Raises UserError when a folder has no metrics, or none of these.
    """
    lines = {label: read_metrics(Path(folder)) for label, folder in runs.items()}
    for label, folder in runs.items():
        if not any(name in line for line in lines[label] for name in (*TRAINING, *HELD_OUT)):
            raise UserError(f"{Path(folder) / METRICS_FILE} has nothing to plot yet: no step was logged")
    evaluated = any(name in line for run in lines.values() for line in run for name in HELD_OUT)
    bars = " (bars: 95% intervals)" if any("heldout/avg_low" in line for run in lines.values() for line in run) else ""
    with new_figure((12.5 if evaluated else 7.5, 5.4), out) as figure:
        axes = figure.subplots(1, 2 if evaluated else 1, squeeze=False)[0]
        figure.suptitle(title, fontsize=14, fontweight="bold")
        for axis, names, head in zip(
            axes, (TRAINING, HELD_OUT), ("On the training questions", "On held-out questions" + bars), strict=False
        ):
            axis.set_title(head)
            axis.set_xlabel("training step (updates of the policy)")
            axis.set_ylabel("share")
            axis.grid(alpha=0.25)
            steps = [line["step"] for run in lines.values() for line in run]
            axis.set_xlim(min(steps), max(max(steps), min(steps) + 1))
            for number, (label, run) in enumerate(lines.items()):
                _draw(axis, names, run, None if number == 0 else (label, GREYS[(number - 1) % len(GREYS)]))
            _frame(axis)
    return Path(out)


def plot_thresholds(
    curves: Mapping[str, Sequence[Threshold]], out: Path, *, title: str, size: tuple[float, float] = (7.5, 5.4)
) -> Path:
    """Draws accuracy and coverage against the least majority share (label -> statistics.thresholds) into the PNG file `out`.

    The first curve is in colour; others, such as the model before training, are dashed and grey. `size` is in inches.
    """
    with new_figure(size, out) as figure:
        axis = figure.subplots()
        figure.suptitle(title, fontsize=min(14, 1.9 * size[0]), fontweight="bold")
        axis.set_xlabel("questions whose majority share is at least this")
        axis.set_ylabel("share")
        axis.grid(alpha=0.25)
        for number, (label, curve) in enumerate(curves.items()):
            shares = [entry["share"] for entry in curve]
            for (name, (says, colour)), dashes in zip(THRESHOLDS.items(), ((5, 2), (1, 1.5), (5, 1.5, 1, 1.5)), strict=True):
                values = [entry[name] for entry in curve]  # type: ignore[literal-required]
                look: dict = {"color": colour, "label": says, "linewidth": 2.2, "marker": "o", "markersize": 4, "zorder": 3}
                if number:
                    grey = GREYS[(number - 1) % len(GREYS)]
                    look = {"color": grey, "label": f"{short(label)}: {says.split(' (')[0]}", "linewidth": 1.4, "dashes": dashes}
                # what holds at a share holds for all thresholds down to the next smaller share
                axis.plot(shares, values, drawstyle="steps-pre", **look)
        axis.set_xlim(0, 1.02)
        axis.set_ylim(0, 1.02)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=9)
    return Path(out)


@contextmanager
def new_figure(size: tuple[float, float], out: Path) -> Iterator[Figure]:
    """An empty figure of (width, height) inches to draw into; written to the PNG file `out` in one move when the block ends.

    By the object interface, not pyplot: a notebook's own figures and backend stay as they are.
    Raises UserError when the file cannot be written.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # of a name; its place holds a box
        figure = Figure(figsize=size, dpi=140, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        temporary = Path(out).with_name(Path(out).name + ".tmp")
        try:
            figure.savefig(temporary, format="png")
            os.replace(temporary, out)
        except OSError as error:
            temporary.unlink(missing_ok=True)  # on a full disk it is half a picture
            raise UserError(f"picture {out} cannot be written: {error.strerror}") from None


def short(label: str) -> str:
    """The end of a name, which tells paths apart; a legend of longer ones leaves no room for the curves."""
    return label if len(label) <= 32 else "…" + label[-31:]


def _draw(axis, names: Mapping[str, tuple[str, str]], run: list[dict[str, float]], other: tuple[str, str] | None) -> None:
    """One run's curves; `other` is (label, grey) of a run to compare with, told apart by its markers and dashes."""
    ends = []
    for (name, (label, colour)), mark, dashes in zip(names.items(), "os^", ((5, 2), (1, 1.5), (5, 1.5, 1, 1.5)), strict=True):
        points = [(line["step"], line[name], line) for line in run if math.isfinite(line.get(name, math.nan))]
        if not points:
            continue
        steps, values = [step for step, _, _ in points], [value for _, value, _ in points]
        look: dict = {"color": colour, "label": label, "linewidth": 2.2, "zorder": 3}
        if name == "majority_share":  # pale and broad: the pseudo-reward of a vote is this very line, and must be seen on it
            look |= {"linewidth": 6, "alpha": 0.5, "zorder": 2.8}
        if other is not None:
            look = {
                "color": other[1],
                "label": f"{short(other[0])}: {label.split(' (')[0]}",
                "linewidth": 1.4,
                "dashes": dashes,
                "zorder": 2,
            }
        if name in HELD_OUT:
            look |= {"marker": mark, "markersize": 6 if other is None else 4}
            if other is None and all(f"{name}_low" in line for *_, line in points):
                low, high = ([line[f"{name}_{end}"] for *_, line in points] for end in ("low", "high"))
                # Beside each other, for intervals at the same step would hide one another.
                beside = [step + ("os^".index(mark) - 1) * 0.006 * (steps[-1] - steps[0]) for step in steps]
                axis.vlines(beside, low, high, color=colour, alpha=0.45, linewidth=2.2, zorder=2.5)
        elif len(points) > SMOOTHING:
            axis.plot(steps, values, color=look["color"], alpha=0.25, linewidth=1)
            values = running_mean(values, max(3, len(values) // SMOOTHING))
        axis.plot(steps, values, **look)
        if other is None:
            ends.append((colour, steps, values))
    if ends and len(ends[0][1]) > 1:
        annotate_ends(axis, ends)


def annotate_ends(
    axis, ends: Sequence[tuple[str, Sequence[float], Sequence[float]]], *, gap: float = 0.045, form: str = ".2f"
) -> None:
    """The first and the last value of each curve, written beside it in its colour, moved `gap` apart where they would overlap."""
    for side, align, shift in ((0, "right", -8), (-1, "left", 8)):
        last_y = -math.inf
        for colour, steps, values in sorted(ends, key=lambda end: end[2][side]):
            y = max(values[side], last_y + gap)
            last_y = y
            axis.annotate(
                f"{values[side]:{form}}",
                (steps[side], y),
                xytext=(shift, 0),
                textcoords="offset points",
                ha=align,
                va="center",
                color=colour,
                fontweight="bold",
                annotation_clip=False,
            )


def _frame(axis) -> None:
    axis.set_ylim(0, 1.02)
    left, right = axis.get_xlim()
    axis.set_xlim(left - 0.13 * (right - left), right + 0.13 * (right - left))
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False, fontsize=9)


def running_mean(values: list[float], width: int) -> list[float]:
    """Each value averaged with its neighbours within width / 2 steps; fewer at the ends."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]
