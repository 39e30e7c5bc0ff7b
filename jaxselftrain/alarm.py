"""Takes a run's label-free signals, gives the alarm: whether the policy has begun to agree with itself rather than to be right.

The rule. Each signal has a threshold, and a side of it that is bad. The score of a step is the number of signals past theirs. The
alarm is raised when the score has been at least `alarm.count` for `alarm.patience` steps in a row, and may be raised again once
the score has been 0. A step with score 0 is healthy, and the healthiest checkpoint is what a rollback returns to: the one with
the lowest mean surprise where the alarm goes by its rise, else the newest.

No gold answer is read here. Where the thresholds come from is told in docs/reward-dynamics.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxselftrain.sections import Alarm
from jaxselftrain.trends import History

HIGH, LOW = 1, -1
SIGNALS = {  # signal -> the side that is bad, and what it says there
    "pseudo_reward": (HIGH, "the pseudo-reward is high"),
    "pseudo_reward_slope": (HIGH, "the pseudo-reward jumps"),
    "majority_share": (HIGH, "samples agree nearly always"),
    "saturated_share": (HIGH, "most questions have one answer only"),
    "same_majority_share": (HIGH, "different questions get the same answer"),
    "dominant_answer_share": (HIGH, "one answer is given everywhere"),
    "distinct_answers": (LOW, "a question has hardly any different answers"),
    "halves_differ_share": (LOW, "chance no longer decides any vote"),
    "kl": (HIGH, "the policy is far from where it began"),
    "kl_acceleration": (HIGH, "the policy moves away ever faster"),
    "surprise_rise": (HIGH, "the policy says what the initial one would not"),
    "entropy_drift": (LOW, "the policy has grown sure of every token"),
    "length_drift": (LOW, "responses have become much shorter"),
    "no_answer_drift": (HIGH, "more responses state no answer"),
    "truncated_drift": (HIGH, "more responses are cut"),
    "probe_agreement": (LOW, "probe questions are answered otherwise than at the start"),
}


@dataclass(frozen=True)
class Raised:
    """An alarm: where, and what it was raised for."""

    step: int
    score: int
    signals: dict[str, float]  # those past their thresholds

    @property
    def reasons(self) -> str:
        """What the signals say, as half a sentence."""
        return "; ".join(f"{SIGNALS[name][1]} ({name} {value:.3g})" for name, value in self.signals.items())


@dataclass
class Watch:
    """The state of the alarm between steps; a checkpoint keeps it. Plain JSON values."""

    in_a_row: int = 0  # steps with a score of at least alarm.count
    is_up: bool = False  # raised, and no healthy step since
    probe_agreement: float | None = None  # when it was last measured
    first: dict[str, list[float]] = field(default_factory=dict)
    recent: dict[str, list[float]] = field(default_factory=dict)
    lowest: dict[str, float] = field(default_factory=dict)

    def step(self, line: Mapping[str, float], settings: Alarm) -> tuple[dict[str, float], Raised | None]:
        """(trends and alarm_score of a step's metrics, the alarm if it is raised at this step).

        Without enough steps for any signal there is no score.
        """
        trends, levels = self._signals(line, settings.window)
        if settings.action == "off":
            return trends, None
        signals = trends | levels
        past = past_thresholds(signals, {str(name): threshold for name, threshold in settings.signals.items()})
        if not signals.keys() & settings.signals.keys() - {"probe_agreement"}:
            return trends, None
        score = len(past)
        self.in_a_row = self.in_a_row + 1 if score >= settings.count else 0
        self.is_up = self.is_up and score > 0
        raised = None
        if self.in_a_row >= settings.patience and not self.is_up:
            self.is_up = True
            raised = Raised(int(line["step"]), score, past)
        return trends | {"alarm_score": float(score)}, raised

    def _signals(self, line: Mapping[str, float], window: int) -> tuple[dict[str, float], dict[str, float]]:
        """(trends, means over the window and the last probe_agreement) after one more step."""
        history = History(self.first, self.recent, self.lowest)
        history.note(line, window=window)
        self.probe_agreement = line.get("probe_agreement", self.probe_agreement)
        probed = {} if self.probe_agreement is None else {"probe_agreement": self.probe_agreement}
        return history.trends(window=window), history.means(window=window) | probed


def replay(lines: Sequence[Mapping[str, float]], settings: Alarm) -> tuple[dict[int, float], list[Raised]]:
    """(the score of each step that has one, the alarms) as these settings would have had it on a run's metrics lines.

    A run that an alarm has changed is what it was from there on: replay what ran with action warn.
    """
    watch, scores, alarms = Watch(), {}, []
    for line in lines:
        found, raised = watch.step(line, settings) if "loss" in line else ({}, None)  # a line without is an evaluation alone
        if "alarm_score" in found:
            scores[int(line["step"])] = found["alarm_score"]
        alarms += [raised] if raised is not None else []
    return scores, alarms


def all_signals(lines: Sequence[Mapping[str, float]], *, window: int) -> dict[int, dict[str, float]]:
    """Every signal at every step of a run, from its metrics lines: what thresholds are found from."""
    watch, found = Watch(), {}
    for line in lines:
        if "loss" in line:
            trends, levels = watch._signals(line, window)
            found[int(line["step"])] = trends | levels
    return found


def past_thresholds(signals: Mapping[str, float], thresholds: Mapping[str, float]) -> dict[str, float]:
    """The signals on the bad side of their thresholds."""
    return {
        name: signals[name]
        for name, threshold in thresholds.items()
        if name in signals and SIGNALS[name][0] * (signals[name] - threshold) > 0
    }


def event(raised: Raised, *, action: str, told: str, healthy: int | None, **more: Any) -> dict[str, Any]:
    """A line of alarms.jsonl."""
    return {
        "step": raised.step,
        "score": raised.score,
        "signals": raised.signals,
        "action": action,
        "healthy": healthy,
        "told": told,
        **more,
    }
