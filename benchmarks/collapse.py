"""Takes tasks and seeds, gives the figures of docs/reward-dynamics.md: what each label source reaches, what the alarm sees.

python benchmarks/collapse.py [--jobs 2] [--seeds 3] [--only sums] [--tables]

Trains every run of the campaign that has no result in benchmarks/collapse_results yet (see campaign.py), then prints the tables
and draws the pictures. Stopped anywhere, the same command goes on. `--tables` trains nothing.

First the runs whose alarm only warns; from them thresholds are found, for each task on the other tasks (calibration.py); then the
runs whose alarm acts, by these. Figures are held-out avg@k in percent, as means over seeds with 95% intervals (Student's t).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from calibration import ACCURACY, COMPARABLE, POINTS, Outcome, calibrate, collapse_step, leave_one_out, outcomes
from campaign import Condition, Place, Run, Task, read_runs, run_missing
from collapse_pictures import draw_alarms, draw_curves, draw_gains, draw_surprise
from tables import show, told

from jaxselftrain.errors import UserError
from jaxselftrain.sections import NEED_REFERENCE, Alarm

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "collapse_results"
PICTURES = ROOT / "docs"
GENTLE = (  # at the config's learning rate: what the label and the reward are taken from
    Condition("srt", "SRT: the policy's own vote"),
    Condition("teacher", "fixed teacher: the base's votes", ("label.source=teacher", "label.file={labels}")),
    Condition("ema", "EMA teacher's votes (decay 0.99)", ("label.source=ema",)),
    Condition("gold", "gold answers", ("label.source=gold",)),
    Condition("ttrl", "TTRL: 32 vote, 16 are trained on", ("vote.samples=32", "update.samples=16")),
    Condition("soft", "soft vote: each answer's share", ("reward.kind=soft",)),
    Condition("easiest", "easiest third by the base's share", ("questions.easiest=0.333", "questions.labels={labels}")),
    Condition("share", "shares of at least 0.6, refilled", ("reward.minimum_share=0.6", "reward.refill=4")),
    Condition("random", "random rewards (control)", ("reward.kind=random",)),
)
RATES = {name: f"optimizer.learning_rate={rate}" for name, rate in (("keen", "6e-5"), ("hard", "1e-4"), ("harder", "3e-4"))}
DRIVEN = (  # at higher learning rates: votes and, so that the alarm is not one of the learning rate, gold answers
    Condition("gold_hard", "gold answers, learning rate 1e-4", ("label.source=gold", RATES["hard"])),
    Condition("gold_harder", "gold answers, learning rate 3e-4", ("label.source=gold", RATES["harder"])),
    Condition("keen", "SRT, learning rate 6e-5", (RATES["keen"],)),
    Condition("hard", "SRT, learning rate 1e-4", (RATES["hard"],)),
    Condition("harder", "SRT, learning rate 3e-4", (RATES["harder"],)),
)
ACTING = (
    Condition("hard_rollback", "SRT, learning rate 1e-4, the alarm rolls back", (RATES["hard"],), action="rollback"),
    Condition("harder_rollback", "SRT, learning rate 3e-4, the alarm rolls back", (RATES["harder"],), action="rollback"),
)
WATCHING = (*GENTLE, *DRIVEN)
SMOLLM2 = (
    *(condition for condition in GENTLE if condition.name in ("srt", "teacher", "gold", "random")),
    Condition("driven", "SRT, learning rate 4e-5", ("optimizer.learning_rate=4e-5",)),
)
SMALL = ("probe.questions=16", "alarm.action=warn")
LARGE = (
    "probe.questions=8",
    "probe.every=4",
    "alarm.action=warn",
    "reference.keep=always",
    "evaluate.every=4",
    "evaluate.greedy=false",
)
TASKS = {
    "sums": Task(ROOT / "configs" / "tiny_sums.yaml", (*WATCHING, *ACTING), SMALL),
    "words": Task(ROOT / "configs" / "tiny_words.yaml", (*WATCHING, *ACTING), SMALL),
    "smollm2-sums": Task(ROOT / "configs" / "quickstart.yaml", SMOLLM2, LARGE),
    "smollm2-differences": Task(ROOT / "configs" / "sums_and_differences.yaml", SMOLLM2, LARGE),
}
GOLD_AT = {"hard": "gold_hard", "harder": "gold_harder", "gold_hard": "gold_hard", "gold_harder": "gold_harder"}
SAYS = {condition.name: condition.says for task in TASKS.values() for condition in task.conditions}
ALARM = Alarm()
LeftOut = Mapping[str, tuple[Alarm, list[Outcome]]]  # task -> (alarm found on the others, what it does on the task's runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, each on its own cores")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each condition")
    parser.add_argument("--steps", type=int, help="steps of each run; without it, the task's config says")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), help="tasks to train")
    parser.add_argument("--conditions", nargs="+", choices=SAYS, help="conditions to train")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "collapse", help="run folders; may be thrown away")
    parser.add_argument("--results", type=Path, default=RESULTS, help="what is kept of each run")
    parser.add_argument("--pictures", type=Path, default=PICTURES, help="folder of the pictures")
    parser.add_argument("--tables", action="store_true", help="train nothing")
    given = parser.parse_args()
    place = Place(given.work.resolve(), given.results)
    if not given.tables:
        train(given, place)
    runs = read_runs(place.results)
    if not runs:
        raise UserError(f"{place.results} holds no results yet: leave out --tables to make some")
    show_results(runs, given.pictures)


def train(given: argparse.Namespace, place: Place) -> None:
    """Whatever is missing: first what watches, then what acts on what was seen."""
    overrides = [] if given.steps is None else [f"train.steps={given.steps}"]
    for is_acting in (False, True):
        chosen = {
            name: replace(
                task,
                conditions=tuple(
                    condition
                    for condition in task.conditions
                    if (condition.action is not None) == is_acting
                    and (given.conditions is None or condition.name in given.conditions)
                ),
            )
            for name, task in TASKS.items()
            if name in given.only
        }
        run_missing(
            chosen,
            range(given.seeds),
            place=place,
            jobs=given.jobs,
            overrides=overrides,
            thresholds=lambda task: _thresholds(watching(read_runs(place.results)), task),
        )


def watching(runs: Iterable[Run]) -> list[Run]:
    """The runs whose alarm did nothing, on which thresholds can be found and tested."""
    acting = {condition.name for condition in ACTING}
    return [run for run in runs if run.condition not in acting]


def _thresholds(runs: Sequence[Run], task: str) -> list[str]:
    """The alarm's settings for a task, found on the others."""
    alarm = calibrate([run for run in runs if run.task != task], ALARM)
    names = ("signals", "count", "window", "patience")
    return [f"alarm.{name}={value}" for name, value in alarm.model_dump(include=set(names)).items()]


def show_results(runs: Sequence[Run], pictures: Path) -> None:
    watched = watching(runs)
    for task in sorted({run.task for run in runs}):
        _show_sources(task, [run for run in watched if run.task == task])
    small, large = ([run for run in runs if run.task.startswith("smollm2") == is_large] for is_large in (False, True))
    pictures.mkdir(parents=True, exist_ok=True)
    draw_curves(watching(small), SAYS, pictures / "dynamics_curves.png")
    draw_gains(small, SAYS, pictures / "dynamics_gains.png")
    draw_surprise(watching(small), pictures / "dynamics_surprise.png", window=ALARM.window)
    if large:
        draw_curves(large, SAYS, pictures / "dynamics_smollm2.png")
    if len({run.task for run in watched}) > 1:
        left_out = leave_one_out(watched, ALARM)
        blind = leave_one_out(watched, ALARM, names=[name for name in COMPARABLE if name not in NEED_REFERENCE])
        _show_alarm(watched, left_out, blind)
        _show_kept(runs, left_out)
        shown = [outcome for task, (_, found) in left_out.items() for outcome in found if not task.startswith("smollm2")]
        draw_alarms(shown, SAYS, pictures / "dynamics_alarms.png")
        final = calibrate(watched, ALARM)
        print(f"Found on all tasks together: {alarm_told(final)}")


def alarm_told(alarm: Alarm) -> str:
    """An alarm's settings, of which any one signal is enough."""
    signals = " or ".join(f"{name} past {threshold:g}" for name, threshold in alarm.signals.items())
    return f"{signals}, in windows of {alarm.window} steps, {alarm.patience} times in a row"


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of its 95% interval by Student's t); without a width for a single value."""
    from scipy.stats import t

    n = len(values)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return float(np.mean(values)), half


def percent(values: Sequence[float]) -> str:
    mean, half = mean_interval([100 * value for value in values])
    return f"{mean:.1f}" if math.isnan(half) else f"{mean:.1f} ± {half:.1f}"


def by_condition(runs: Iterable[Run]) -> dict[str, list[Run]]:
    order = list(SAYS)
    found: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: (order.index(run.condition), run.seed)):
        found.setdefault(run.condition, []).append(run)
    return found


def mean_curve(runs: Sequence[Run], metric: str = ACCURACY) -> dict[int, float]:
    """Step -> mean over the runs, at the steps that all of them measured."""
    curves = [run.curve(metric) for run in runs]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {step: float(np.mean([curve[step] for curve in curves])) for step in steps}


def _show_sources(task: str, runs: Sequence[Run]) -> None:
    grouped, rows = by_condition(runs), []
    for name, group in grouped.items():
        curve = mean_curve(group)
        gold = mean_curve(grouped.get(GOLD_AT.get(name, "gold"), group))
        base, best = curve[0], max(curve, key=lambda step: curve[step])
        last = max(curve)
        gain = gold.get(best, gold[0]) - gold[0]
        collapsed = sum(collapse_step(run) is not None for run in group)
        rows.append(
            [
                SAYS[name],
                str(len(group)),
                percent([run.curve(ACCURACY)[best] for run in group]),
                str(best),
                percent([run.curve(ACCURACY)[last] for run in group]),
                percent([run.curve("heldout/maj")[last] for run in group]),
                f"{100 * (curve[best] - base) / gain:.0f}%" if gain > 0 else "",
                f"{collapsed} of {len(group)}",
            ]
        )
    first = [run.curve(ACCURACY)[0] for run in runs]
    majority = [run.curve("heldout/maj")[0] for run in runs]
    columns = ["trained on", "n", "best avg@k", "at step", "at the end", "maj@k there", "of gold's gain", "collapsed"]
    note = (
        f"The base: avg@k {100 * np.mean(first):.1f}, maj@k {100 * np.mean(majority):.1f}. n: seeds. Best: of the mean curve. Of "
        "gold's gain: the gain at that step as a part of what gold answers gave by the same step, where there are such runs at "
        "the same learning rate."
    )
    show(task, columns, rows, notes=[note])


def _show_alarm(runs: Sequence[Run], left_out: LeftOut, without: LeftOut) -> None:
    rows, notes = [], []
    for ending, tested in (("", left_out), (", no reference", without)):
        for task, (alarm, found) in tested.items():
            rows.append([task + ending, *_counts(found)])
            notes.append(f"Tested on {task}{ending}; found on the others: {alarm_told(alarm)}.")
        rows.append([f"together{ending}", *_counts([outcome for _, found in tested.values() for outcome in found])])
    blind = {name: limit for name, limit in ALARM.signals.items() if name not in NEED_REFERENCE}
    for ending, signals in (("", ALARM.signals), (", no reference", blind)):
        shipped = ALARM.model_copy(update={"signals": signals})
        rows.append([f"the default alarm on all{ending}", *_counts(outcomes(runs, shipped))])
    lead = "lead in steps: median (range)"
    columns = ["tested on", "runs", "collapses", "in time", "late", "missed", lead, "healthy", "false alarms"]
    points = f"{100 * POINTS:.0f}"
    notes.append(
        f"Collapse: a run ends with held-out avg@k {points} points below its best; it is counted from the first step with such a "
        "loss. In time: raised before that step; the lead is counted to it, below 0 where the alarm was late. No reference: only "
        "signals that need no copy of the initial policy."
    )
    show("The alarm, each task with thresholds found on the others", columns, rows, notes=notes)


def _counts(found: Sequence[Outcome]) -> list[str]:
    collapses = [outcome for outcome in found if outcome.collapse is not None]
    leads = sorted(outcome.lead for outcome in collapses if outcome.lead is not None)
    lead = f"{np.median(leads):g} ({leads[0]} to {leads[-1]})" if leads else ""
    return [
        str(len(found)),
        str(len(collapses)),
        str(sum(outcome.is_caught for outcome in collapses)),
        str(sum(outcome.is_late for outcome in collapses)),
        str(sum(outcome.raised is None for outcome in collapses)),
        lead,
        str(len(found) - len(collapses)),
        str(sum(outcome.is_false for outcome in found)),
    ]


def _show_kept(runs: Sequence[Run], left_out: LeftOut) -> None:
    rows = []
    for task, (_, found) in left_out.items():
        grouped = by_condition(run for run in runs if run.task == task)
        for name in dict.fromkeys(outcome.run.condition for outcome in found if outcome.collapse is not None):
            group = [outcome for outcome in found if outcome.run.condition == name]
            stopped = [_last(outcome.run) if outcome.kept is None else outcome.kept for outcome in group]
            acting = grouped.get(f"{name}_rollback", [])
            rows.append(
                [
                    f"{task}, {SAYS[name]}",
                    str(len(group)),
                    percent([outcome.run.curve(ACCURACY)[0] for outcome in group]),
                    percent([max(outcome.run.curve(ACCURACY).values()) for outcome in group]),
                    percent([_last(outcome.run) for outcome in group]),
                    percent(stopped),
                    percent([_last(run) for run in acting]) if acting else "",
                    f"{np.mean([len(run.alarms) for run in acting]):.1f}" if acting else "",
                ]
            )
    columns = ["run", "n", "base", "best", "end, no action", "end, stop", "end, rollback", "alarms"]
    notes = ["Stop: the last evaluation before the alarm, read off the same run. Rollback: runs of their own, the same seeds."]
    show("What the alarm's action keeps (held-out avg@k)", columns, rows, notes=notes)


def _last(run: Run) -> float:
    curve = run.curve(ACCURACY)
    return curve[max(curve)]


if __name__ == "__main__":
    told(main)
