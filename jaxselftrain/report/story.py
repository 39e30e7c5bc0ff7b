"""Takes a group of runs, gives what happened in it: a verdict, a few sentences, the numbers to look at first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from jaxselftrain.compare import read_scores
from jaxselftrain.errors import UserError
from jaxselftrain.report.runs import AVG, Group, Run
from jaxselftrain.statistics import BOOTSTRAP_SEED, Interval, paired_difference

MATTERS, FAR = 0.05, 0.25  # rises and falls of reward and accuracy over a run that are worth a sentence
TOLD = 1000  # characters of what an alarm says

GOOD, BAD, NEUTRAL = "good", "bad", "neutral"
KINDS = {
    "improved": GOOD,
    "fell from its peak": BAD,
    "got worse": BAD,
    "no clear change": NEUTRAL,
    "too little measured": NEUTRAL,
}


@dataclass(frozen=True)
class Story:
    """Of one run."""

    run: Run
    verdict: str  # one of KINDS
    sentences: list[str]
    warnings: list[str]
    start: float | None  # held-out avg@k
    peak: float | None
    end: float | None
    reward: float | None  # pseudo-reward, over the last tenth of the steps
    accuracy: float | None  # of the training samples, there
    alarm: str


@dataclass(frozen=True)
class Tile:
    """A number to look at first."""

    label: str
    value: str
    note: str
    kind: str = NEUTRAL


def tell(run: Run) -> Story:
    """What happened in a run."""
    scores = run.points(AVG)
    steps = sorted(scores)
    fell = change(run, run.best, steps[-1]) if run.best is not None and run.best != steps[-1] else None
    rose = change(run, steps[0], steps[-1]) if len(steps) > 1 else None
    verdict = _verdict(rose, fell)
    reward, accuracy = _ends(run, "pseudo_reward"), _ends(run, "true_accuracy")
    warnings = [str(alarm.get("told") or alarm.get("action") or "the alarm fired")[:TOLD] for alarm in run.alarms]
    apart = _apart(reward, accuracy)
    if reward and accuracy and apart:
        warnings.append(
            f"The pseudo-reward rose from {reward[0]:.2f} to {reward[1]:.2f} while the true accuracy of the training samples "
            f"went from {percent(accuracy[0])} to {percent(accuracy[1])}: the model is agreeing with itself on wrong answers."
        )
    return Story(
        run=run,
        verdict=verdict,
        sentences=[*_held_out(run, steps, rose, fell), *([] if apart else [_reward(reward, accuracy)]), best_told(run)],
        warnings=warnings,
        start=scores[steps[0]] if steps else None,
        peak=None if run.best is None else scores[run.best],
        end=scores[steps[-1]] if steps else None,
        reward=reward[1] if reward else None,
        accuracy=accuracy[1] if accuracy else None,
        alarm=alarm_told(run),
    )


def change(run: Run, first: int, last: int) -> Interval | None:
    """Held-out avg@k of a later evaluation less an earlier one, paired by question; None where their responses are not there."""
    try:
        before, after = (read_scores(run.evaluation(step)) for step in (first, last))
    except UserError:
        return None
    if before.keys() != after.keys() or not all("avg" in score for score in (*before.values(), *after.values())):
        return None
    before_Q, after_Q = (np.asarray([part[id]["avg"] for id in sorted(part)], float) for part in (before, after))
    return paired_difference(before_Q, after_Q, seed=BOOTSTRAP_SEED)


def alarm_told(run: Run) -> str:
    """The alarm's state in a few words."""
    if run.alarms:
        fired = ", ".join(f"{alarm.get('action', 'alarm')} at step {int(alarm['step'])}" for alarm in run.alarms[-3:])
        return f"fired: {fired}" if len(run.alarms) <= 3 else f"fired {len(run.alarms)} times, last: {fired}"
    scores = run.points("alarm_score")
    if not scores:
        return "off"
    now, most = scores[max(scores)], max(scores.values())
    return f"quiet ({now:g} signals past their thresholds now, at most {most:g})"


def best_told(run: Run) -> str:
    """Which checkpoint is best, and why."""
    scores, k, exported = run.points(AVG), run.config.evaluate.samples, run.exported
    if run.best is None:
        which = "there is none yet" if exported is None else f"step {exported} is the newest"
        return f"Best checkpoint: not known, for nothing was evaluated on held-out questions; {which}."
    told = (
        f"Best checkpoint: step {run.best}, because its held-out avg@{k} of {percent(scores[run.best])} is the highest of "
        f"{len(scores)} evaluation{'s' if len(scores) > 1 else ''}"
    )
    if run.best == 0:
        taken = "there is no checkpoint yet" if exported is None else f"`jaxselftrain export` takes step {exported}"
        return (
            f"Best checkpoint: none is better than the model before training, whose held-out avg@{k} of {percent(scores[0])} is "
            f"the highest of {len(scores)} evaluation{'s' if len(scores) > 1 else ''}; {taken}."
        )
    if run.best == exported:
        return f"{told}; it is the one that `jaxselftrain export` takes."
    if exported is None:
        return f"{told}; no checkpoint is in the run folder."
    instead = f"`jaxselftrain export` takes step {exported}" + (f" ({percent(scores[exported])})" if exported in scores else "")
    return f"{told}; but it was not kept, and {instead}."


def tiles(group: Group, stories: Sequence[Story]) -> list[Tile]:
    """The numbers of a group to look at first: of one run, or means with the range over the seeds."""
    k = group.runs[0].config.evaluate.samples
    found = [
        Tile(f"held-out avg@{k} at the start", *_over([story.start for story in stories])),
        Tile("at its peak", *_over([story.peak for story in stories])),
        Tile("at the end", *_over([story.end for story in stories])),
        Tile("pseudo-reward at the end", *_over([story.reward for story in stories], "{:.2f}".format)),
        Tile("true accuracy at the end", *_over([story.accuracy for story in stories])),
    ]
    fired = sum(bool(story.run.alarms) for story in stories)
    alarm = stories[0].alarm.split(" (")[0] if len(stories) == 1 else f"fired in {fired} of {len(stories)} runs"
    if not fired and all(story.alarm == "off" for story in stories):
        alarm = "off"
    found.append(Tile("alarm", alarm.split(":")[0], alarm.partition(": ")[2], BAD if fired else NEUTRAL))
    return found


def verdict_told(stories: Sequence[Story]) -> tuple[str, str]:
    """(what the runs did, what kind that is where most of them did the same)."""
    counts = Counter(story.verdict for story in stories).most_common()
    verdict, count = counts[0]
    if len(stories) == 1:
        return verdict, KINDS[verdict]
    told = ", ".join(f"{number} of {len(stories)} {each}" for each, number in counts)
    return told, KINDS[verdict] if 2 * count > len(stories) else NEUTRAL


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"


def _verdict(rose: Interval | None, fell: Interval | None) -> str:
    """By the ends of the intervals, so that chance alone seldom gives one."""
    if rose is None:
        return "too little measured"
    if rose["high"] < 0:
        return "got worse"
    if fell is not None and fell["high"] < 0:
        return "fell from its peak"
    return "improved" if rose["low"] > 0 else "no clear change"


def _held_out(run: Run, steps: Sequence[int], rose: Interval | None, fell: Interval | None) -> list[str]:
    scores, k = run.points(AVG), run.config.evaluate.samples
    if not steps or run.best is None:
        return ["Nothing was measured on held-out questions, so whether the model got better is not known."]
    if len(steps) == 1:
        return [f"Held-out avg@{k} was {percent(scores[steps[0]])} at step {steps[0]}, the only evaluation so far."]
    told = f"Held-out avg@{k} went from {percent(scores[steps[0]])} (step {steps[0]}) to {percent(scores[steps[-1]])} "
    told += f"(step {steps[-1]}){_by(rose)}"
    if run.best == steps[-1]:
        return [f"{told}; that is also its peak."]
    return [
        f"{told}. Its peak was {percent(scores[run.best])} at step {run.best}; from there to the end it changed{_by(fell, 'by')}."
    ]


def _by(interval: Interval | None, word: str = "") -> str:
    if interval is None:
        return "" if not word else " by an amount without an interval, for the evaluations' responses are not in the folder"
    value, low, high = (100 * interval[end] for end in ("value", "low", "high"))  # type: ignore[literal-required]
    told = f"{value:+.1f} points, 95% interval {low:+.1f} to {high:+.1f}"
    return f" {word} {told}" if word else f": {told}"


def _apart(reward: tuple[float, float] | None, accuracy: tuple[float, float] | None) -> bool:
    """Whether accuracy fell while the reward rose, or stayed where it was while the reward rose far."""
    if reward is None or accuracy is None:
        return False
    rise, learned = reward[1] - reward[0], accuracy[1] - accuracy[0]
    return (rise > MATTERS and learned < -MATTERS) or (rise > FAR and learned < MATTERS)


def _reward(reward: tuple[float, float] | None, accuracy: tuple[float, float] | None) -> str:
    if reward is None:
        return "No pseudo-reward was logged."
    told = f"The pseudo-reward ended at {reward[1]:.2f} (it began at {reward[0]:.2f})"
    if accuracy is None:
        return f"{told}; it measures agreement, and without gold answers nobody knows how much of that is right."
    return f"{told}, the true accuracy of the training samples at {percent(accuracy[1])} (it began at {percent(accuracy[0])})."


def _ends(run: Run, metric: str) -> tuple[float, float] | None:
    """Means over the first and the last tenth of the steps, one step at least: single steps are noisy."""
    values = list(run.points(metric).values())
    part = max(1, len(values) // 10)
    return (float(np.mean(values[:part])), float(np.mean(values[-part:]))) if values else None


def _over(values: Sequence[float | None], written: Callable[[float], str] = percent) -> tuple[str, str]:
    """(mean, range) over runs."""
    known = [value for value in values if value is not None]
    if not known:
        return "-", "not measured"
    span = f"{written(min(known))} to {written(max(known))} over {len(known)} runs" if len(known) > 1 else ""
    return written(float(np.mean(known))), span
