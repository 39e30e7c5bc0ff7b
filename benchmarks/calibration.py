"""Takes measured runs, gives thresholds for the alarm, and what an alarm with given thresholds would have done on them.

A run has collapsed where the mean of its last LASTING evaluations is POINTS of held-out avg@k below the best mean of as many in a
row; the collapse is the first step at which it has lost POINTS for as long. Gold answers decide this and nothing else here:
signals and alarms are those that a run without labels has.

How thresholds are found: an alarm that stops a run keeps the accuracy of the last evaluation before it; its regret is what the
best evaluation of the run had more. A late alarm costs what was lost by then, an early one what was still to come, and a false
one FALSE besides. Signals, thresholds, window and patience are those with the least mean regret over the runs: the best single
signal, and others beside it, any of which raises the alarm, as long as each lowers the regret by WORTH. Only COMPARABLE signals
are tried: how many different answers a question gets, or how many samples agree, is the task's own. On other tasks they may do
better or worse: therefore `leave_one_out` finds them on all tasks but one and tests them on that one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import mean

import numpy as np
from campaign import Run

from jaxselftrain.alarm import HIGH, SIGNALS, all_signals, replay
from jaxselftrain.sections import Alarm
from jaxselftrain.trends import TRENDS

POINTS = 0.05
LASTING = 3
FALSE = 0.01  # what a false alarm costs besides
WORTH = 0.005
MOST_SIGNALS = 2
WINDOWS, PATIENCES = (5, 10), (1, 2, 3)
COMPARABLE = (*TRENDS, "probe_agreement")  # signals that are measured from the run's own beginning
CUTS = np.linspace(0.01, 0.99, 80)  # thresholds that are tried, as quantiles of all values of a signal
ACCURACY = "heldout/avg"


def collapse_step(run: Run) -> int | None:
    """The evaluated step by which a run that ends POINTS below its best has lost so many; None for a healthy run."""
    steps, values = zip(*run.curve(ACCURACY).items(), strict=True)
    means = [mean(values[place : place + LASTING]) for place in range(len(values) - LASTING + 1)]
    if not means or means[-1] > max(means) - POINTS:
        return None
    lost = [place for place in range(1, len(means)) if means[place] <= max(values[:place]) - POINTS]
    start = lost[0] if lost else len(means) - 1
    return next(
        (steps[place] for place in range(start, len(values)) if values[place] <= max(values[:start]) - POINTS), steps[start]
    )


@dataclass(frozen=True)
class Outcome:
    """What an alarm did on one run."""

    run: Run
    collapse: int | None
    raised: int | None

    @property
    def is_caught(self) -> bool:
        """Raised before the run had lost POINTS."""
        return self.collapse is not None and self.raised is not None and self.raised < self.collapse

    @property
    def is_late(self) -> bool:
        return self.collapse is not None and self.raised is not None and self.raised >= self.collapse

    @property
    def is_false(self) -> bool:
        return self.collapse is None and self.raised is not None

    @property
    def lead(self) -> int | None:
        """Steps from the alarm to the loss of POINTS; below 0 it came too late."""
        return None if self.collapse is None or self.raised is None else self.collapse - self.raised

    @property
    def kept(self) -> float | None:
        """Held-out accuracy at the last evaluation before the alarm: what stopping there keeps. None where it was not raised."""
        before = [value for step, value in self.run.curve(ACCURACY).items() if self.raised is not None and step <= self.raised]
        return before[-1] if before else None


def outcomes(runs: Iterable[Run], settings: Alarm) -> list[Outcome]:
    """What an alarm with these settings would have done, run by run."""
    found = []
    for run in runs:
        _, alarms = replay(run.lines(), settings)
        found.append(Outcome(run, collapse_step(run), alarms[0].step if alarms else None))
    return found


def held(run: Run, *, window: int, patience: int) -> dict[str, dict[int, float]]:
    """Signal -> step -> the mildest value of the last `patience` steps: it is past a threshold where all of them are."""
    signals, found = all_signals(run.lines(), window=window), {}
    for name, (side, _) in SIGNALS.items():
        known = [(step, values[name]) for step, values in signals.items() if name in values]
        found[name] = {
            known[i][0]: (min if side == HIGH else max)(value for _, value in known[i - patience + 1 : i + 1])
            for i in range(patience - 1, len(known))
        }
    return found


def first_past(series: Mapping[int, float], side: int, threshold: float) -> int | None:
    """The step at which a signal, as `held` has it, is first past a threshold."""
    return next((step for step, value in series.items() if side * (value - threshold) > 0), None)


def regrets(run: Run) -> np.ndarray:
    """What stopping a run at each step costs; the last entry is that of going on to its end."""
    steps, values = (np.asarray(each) for each in zip(*run.curve(ACCURACY).items(), strict=True))
    last = np.searchsorted(steps, np.arange(steps[-1] + 1), side="right") - 1
    trouble = FALSE if collapse_step(run) is None else 0.0
    return values.max() - np.append(values[last] - trouble, values[-1])


def calibrate(runs: Sequence[Run], settings: Alarm, *, names: Collection[str] = COMPARABLE) -> Alarm:
    """These settings with the signals of `names`, thresholds, window and patience of the least mean regret on the runs."""
    if not runs:
        raise ValueError("thresholds need runs to be found on")
    lost = [regrets(run) for run in runs]
    best: tuple[float, Alarm] | None = None
    for window, patience in product(WINDOWS, PATIENCES):
        regret, signals = _search([held(run, window=window, patience=patience) for run in runs], lost, names)
        if signals and (best is None or regret < best[0]):
            found = {"signals": signals, "count": 1, "window": window, "patience": patience, "action": "warn"}
            best = regret, settings.model_copy(update=found)
    if best is None:
        raise ValueError("no signal of these runs says when to stop")
    return best[1]


def _search(
    seen: Sequence[Mapping[str, Mapping[int, float]]], lost: Sequence[np.ndarray], names: Collection[str]
) -> tuple[float, dict[str, float]]:
    """(mean regret, signal -> threshold): one signal after the other, each the best beside those before."""
    never = [len(each) - 1 for each in lost]  # the place of the whole run
    stops = {}  # (signal, threshold) -> the step at which each run is stopped by it alone
    for name in names:
        side = SIGNALS[name][0]
        values = [value for run in seen for value in run[name].values()]
        for threshold in sorted({float(f"{cut:.2g}") for cut in np.quantile(values, CUTS)}) if values else ():
            firsts = [first_past(run[name], side, threshold) for run in seen]
            stops[name, threshold] = np.asarray([end if at is None else at for at, end in zip(firsts, never, strict=True)])

    def regret(at: np.ndarray) -> float:
        return float(np.mean([each[step] for each, step in zip(lost, at, strict=True)]))

    chosen: dict[str, float] = {}
    now, least = np.asarray(never), regret(np.asarray(never))
    while len(chosen) < MOST_SIGNALS:
        found = min(((regret(np.minimum(now, at)), *key) for key, at in stops.items() if key[0] not in chosen), default=None)
        if found is None or found[0] > least - WORTH:
            break
        least, name, threshold = found
        chosen[name], now = threshold, np.minimum(now, stops[name, threshold])
    return least, chosen


def leave_one_out(
    runs: Sequence[Run], settings: Alarm, *, names: Collection[str] = COMPARABLE
) -> dict[str, tuple[Alarm, list[Outcome]]]:
    """Task -> (thresholds found on all the other tasks, what they do on its runs)."""
    found = {}
    for task in sorted({run.task for run in runs}):
        alarm = calibrate([run for run in runs if run.task != task], settings, names=names)
        found[task] = alarm, outcomes([run for run in runs if run.task == task], alarm)
    return found
