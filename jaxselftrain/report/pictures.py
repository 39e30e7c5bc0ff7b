"""Takes groups of runs, gives pictures: each a PNG file, a CSV file with its numbers, and a sentence that says how to read it.

One group alone has a colour for each metric; of several, each group has its colour and each metric its own panel.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxselftrain.plots import HELD_OUT, SMOOTHING, annotate_ends, new_figure, running_mean, short
from jaxselftrain.report.curves import COLUMNS, Curve, curves, taken_back
from jaxselftrain.report.runs import AVG, Group
from jaxselftrain.report.series import COLOURS, Series
from jaxselftrain.report.text import visible
from jaxselftrain.run_folder import replace_text

# after as many groups as there are colours they begin again with other dashes
DASHES: tuple = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))
ALARM = "#D55E00"
WIDTH, PANEL, MARGIN, ENTRY = 5.7, 2.0, 0.9, 0.19  # inches: of a picture, and of the height of its parts
BROAD = ("majority_share", "majority_accuracy")  # pale and broad: what is often the same as another curve must be seen under it


@dataclass(frozen=True)
class Picture:
    """A picture that has been drawn."""

    name: str  # of its files
    title: str
    caption: str
    png: bytes
    metrics: list[str]  # those that it shows
    notes: tuple[str, ...] = ()  # what it shares with other pictures, and the page says once


@dataclass(frozen=True)
class Missing:
    """A picture that could not be drawn."""

    title: str
    why: str


def draw_series(series: Series, groups: Sequence[Group], folder: Path) -> Picture | Missing:
    """One of SERIES as NAME.png and NAME.csv in the folder."""
    found = {metric: curves(groups, metric) for metric in series.metrics}
    found = {metric: each for metric, each in found.items() if each}
    if not found:
        return Missing(series.title, series.why)
    back = {metric: [each for group in groups for each in taken_back(group, metric)] for metric in found}
    split = len(groups) > 1 or series.panels
    panels = [[metric] for metric in found] if split else [list(found)]
    if len(groups) > 1:
        colours = group_colours(groups)
        entries = [(label(name), colour, dashes) for name, (colour, dashes) in colours.items()]
    else:
        colours = {}
        entries = (
            []
            if split or len(found) == 1
            else [(series.metrics[metric][0], series.metrics[metric][1], "solid") for metric in found]
        )
    height = PANEL * len(panels) if split else 1.5 * PANEL
    with new_figure((WIDTH, MARGIN + height + ENTRY * len(entries)), folder / f"{series.name}.png") as figure:
        axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
        figure.suptitle(series.title, fontsize=12, fontweight="bold")
        for axis, metrics in zip(axes, panels, strict=True):
            pen = Pen(axis, series, colours)
            for metric in metrics:
                for each in found[metric]:
                    pen.draw(each)
                for each in back[metric]:
                    pen.draw_taken_back(each)
            pen.finish(groups, series.metrics[metrics[0]][0] if split else "", tells=metrics[0] == next(iter(found)))
        axes[-1].set_xlabel("training step (updates of the policy)")
        legend(figure, entries)
    rows = [row for part in (found, back) for each in part.values() for one in each for row in one.rows()]
    write_csv(folder / f"{series.name}.csv", COLUMNS, rows)
    return Picture(
        series.name, series.title, series.caption, _read(folder, series.name), list(found), _notes(series, found, back)
    )


@dataclass
class Pen:
    """Draws curves into one panel."""

    axis: Any
    series: Series
    colours: Mapping[str, tuple[str, Any]]  # of groups; empty where each metric has its own
    ends: list = field(default_factory=list)

    def look(self, each: Curve) -> tuple[str, Any]:
        return self.colours.get(each.line) or (self.series.metrics[each.metric][1], "solid")

    def draw(self, each: Curve) -> None:
        axis = self.axis
        colour, dashes = self.look(each)
        look: dict = {"color": colour, "linestyle": dashes, "linewidth": 2, "zorder": 3}
        if each.metric in BROAD and not self.colours:
            look |= {"linewidth": 6, "alpha": 0.45, "zorder": 2.8}
        values = each.values
        if each.band:
            self._band(each, colour)
        if each.metric in HELD_OUT or len(values) <= 3:
            look |= {"marker": "o", "markersize": 4}
        elif self.series.smooth and len(values) > SMOOTHING:
            axis.plot(each.steps, values, color=colour, alpha=0.25, linewidth=0.8)
            values = running_mean(values, max(3, len(values) // SMOOTHING))
        axis.plot(each.steps, values, **look)
        self.ends.append((colour, each.steps, values))

    def _band(self, each: Curve, colour: str) -> None:
        if len(each.steps) <= 3:
            self.axis.vlines(each.steps, each.low, each.high, color=colour, alpha=0.4, linewidth=2)
        else:
            self.axis.fill_between(each.steps, each.low, each.high, color=colour, alpha=0.16, linewidth=0, zorder=1.5)

    def draw_taken_back(self, each: Curve) -> None:
        colour, _ = self.look(each)
        self.axis.plot(each.steps, each.values, color=colour, alpha=0.5, linewidth=1.2, linestyle=(0, (2, 2)), zorder=2)

    def finish(self, groups: Sequence[Group], name: str, *, tells: bool) -> None:
        """Frame, alarms, best checkpoint; `name` is the panel's own title, and only one panel tells what the alarms did."""
        axis, series = self.axis, self.series
        axis.grid(alpha=0.25)
        axis.set_ylabel(series.unit)
        if name:
            axis.set_title(name, fontsize=10, loc="left")
        if series.is_share and all(0 <= value <= 1 for _, _, values in self.ends for value in values):
            axis.set_ylim(-0.02, 1.04)
        elif not series.panels and axis.get_ylim()[0] >= 0:  # from 0, or a small change would look like a large one
            axis.set_ylim(0, 1.06 * axis.get_ylim()[1])
        steps = [step for _, each, _ in self.ends for step in each]
        first, last = min(steps), max(steps)
        room = 0.11 * max(1, last - first)
        axis.set_xlim(first - room, last + room)
        low, high = axis.get_ylim()
        if len(self.ends) <= 5 and last > first and not series.panels:
            inches = 1.5 * PANEL if not name else PANEL - 0.5
            form = ".2f" if series.is_share else ".2g"
            annotate_ends(axis, [end for end in self.ends if len(end[1]) > 1], gap=(high - low) * 0.17 / inches, form=form)
        mark_alarms(axis, groups, self.colours, tells=tells)
        mark_best(axis, groups, series)


def mark_alarms(axis, groups: Sequence[Group], colours: Mapping[str, tuple[str, Any]], *, tells: bool) -> None:
    """An upright line where an alarm fired; `tells`: with what it did."""
    for group in groups:
        colour = colours[group.name][0] if colours else ALARM
        for run in group.runs:
            for alarm in run.alarms:
                step = alarm["step"]
                axis.axvline(step, color=colour, linewidth=1.2, linestyle=(0, (3, 2)), zorder=1.8)
                if not tells:
                    continue
                told = f"alarm: {label(str(alarm.get('action', '')))}" + (
                    f" to {label(str(alarm['to']))}" if "to" in alarm else ""
                )
                axis.annotate(
                    told if not colours else "alarm",
                    (step, 1),
                    xycoords=("data", "axes fraction"),
                    xytext=(-2, -3),
                    textcoords="offset points",
                    rotation=90,
                    ha="right",
                    va="top",
                    fontsize=8,
                    color=colour,
                    bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
                )


def mark_best(axis, groups: Sequence[Group], series: Series) -> None:
    """A ring around the best held-out accuracy of a single run: its checkpoint is the best one."""
    if AVG not in series.metrics or len(groups) > 1 or len(groups[0].runs) > 1:
        return
    run = groups[0].runs[0]
    if run.best is not None:
        value = run.points(AVG)[run.best]
        axis.plot([run.best], [value], marker="o", markersize=13, color=HELD_OUT[AVG][1], markerfacecolor="none", zorder=4)


def group_colours(groups: Sequence[Group]) -> dict[str, tuple[str, Any]]:
    """Group -> its colour and its dashes."""
    return {
        group.name: (COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)])
        for number, group in enumerate(groups)
    }


def label(name: str) -> str:
    """A name as it stands in a picture."""
    return short(visible(name).replace("\n", " "))


def legend(figure, entries: Iterable[tuple[str, str, Any]]) -> None:
    """One line for each (name, colour, dashes) below the panels."""
    from matplotlib.lines import Line2D

    entries = list(entries)
    if entries:
        handles = [Line2D([], [], color=colour, linestyle=dashes, linewidth=2.5) for _, colour, dashes in entries]
        labels = [f" {name}" for name, _, _ in entries]  # a label that begins with _ would be left out
        figure.legend(handles, labels, loc="outside lower left", frameon=False, fontsize=9, borderaxespad=0.2, labelspacing=0.3)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table whose texts no spreadsheet takes for a formula."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(value) for value in row] for row in rows)
    replace_text(path, text.getvalue())


def _cell(value: object) -> object:
    if isinstance(value, str):
        shown = visible(value)
        return f"'{shown}" if shown.startswith(("=", "+", "-", "@", "\t")) else shown
    return "" if isinstance(value, float) and not math.isfinite(value) else value


def _notes(series: Series, found: Mapping[str, list[Curve]], back: Mapping[str, list[Curve]]) -> tuple[str, ...]:
    """How to read lines, bands and marks."""
    told = []
    every = [each for part in found.values() for each in part]
    several = sorted({each.runs for each in every if each.runs > 1})
    if several:
        count = " or ".join(str(number) for number in several)
        told.append(
            f"Lines are means over {count} runs that differ in their seed alone, bands reach from the smallest to the largest."
        )
    if any(each.band and each.runs == 1 for each in every):
        told.append("Bars or bands of held-out results: 95% intervals over questions.")
    longest = max((len(each.steps) for each in every if each.metric not in HELD_OUT), default=0)
    if series.smooth and longest > SMOOTHING:
        told.append(f"Faint lines: each step; strong ones: running means over {max(3, longest // SMOOTHING)} steps.")
    if AVG in found and len(every) == len(found) and every[0].runs == 1:
        told.append("The ring in the held-out picture marks the best evaluation.")
    if any(back.values()):
        told.append("Dotted lines: steps that an alarm took back.")
    return tuple(told)


def _read(folder: Path, name: str) -> bytes:
    return (folder / f"{name}.png").read_bytes()
