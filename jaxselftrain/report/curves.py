"""Takes groups of runs and the name of a metric, gives a curve: the mean over the seeds, with a band."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from jaxselftrain.report.runs import Group, points

OVER_QUESTIONS, OVER_RUNS = "95% interval over questions", "smallest to largest of the runs"


@dataclass(frozen=True)
class Curve:
    """One metric of one group over the steps. A curve without a band has NaN for its ends."""

    line: str  # the group
    metric: str
    steps: list[int]
    values: list[float]
    low: list[float]
    high: list[float]
    runs: int
    band: str  # what low and high are; "" for none
    alarm: int | None = None  # the step of the alarm that took these steps back

    def rows(self) -> Iterator[tuple[str | int | float | None, ...]]:
        """For the CSV file, in the order of COLUMNS."""
        for step, value, low, high in zip(self.steps, self.values, self.low, self.high, strict=True):
            ends = (low, high) if self.band else (None, None)
            yield (self.line, self.metric, step, value, *ends, self.runs, self.band, self.alarm)


COLUMNS = ("line", "metric", "step", "value", "low", "high", "runs", "band", "rolled_back_by_alarm_at")


def curve(group: Group, metric: str) -> Curve | None:
    """Where every run of the group that measures the metric has a value; None where none has.

    Of several runs: the mean, and the smallest and largest value. Of one run: its values, with the interval where the
    metrics have one.
    """
    series = [found for found in (run.points(metric) for run in group.runs) if found]
    if not series:
        return None
    steps = sorted(set.intersection(*(set(found) for found in series)))
    if not steps:
        return None
    values_RS = np.asarray([[found[step] for step in steps] for found in series])
    low, high, band = [math.nan] * len(steps), [math.nan] * len(steps), ""
    if len(series) > 1:
        low, high, band = values_RS.min(0).tolist(), values_RS.max(0).tolist(), OVER_RUNS
    elif len(group.runs) == 1:
        ends = [group.runs[0].points(f"{metric}_{end}") for end in ("low", "high")]
        if all(step in end for step in steps for end in ends):
            low, high = ([end[step] for step in steps] for end in ends)
            band = OVER_QUESTIONS
    return Curve(group.name, metric, steps, values_RS.mean(0).tolist(), low, high, len(series), band)


def curves(groups: Sequence[Group], metric: str) -> list[Curve]:
    """That of each group that has one."""
    return [found for found in (curve(group, metric) for group in groups) if found is not None]


def taken_back(group: Group, metric: str) -> list[Curve]:
    """What each run of the group had measured on the steps that an alarm took back."""
    found = []
    for run in group.runs:
        for alarm in sorted({_alarm(line) for line in run.rolled_back}):
            values = points([line for line in run.rolled_back if _alarm(line) == alarm], metric)
            if values:
                none = [math.nan] * len(values)
                found.append(Curve(group.name, metric, list(values), list(values.values()), none, none, 1, "", alarm))
    return found


def _alarm(line: dict[str, float]) -> int:
    """The step of the alarm that took a line back."""
    return int(line.get("alarm", line["step"]))
