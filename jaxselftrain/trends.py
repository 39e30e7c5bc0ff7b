"""Takes the label-free metrics of a run, step by step, gives how they move: means, slopes, drifts since the beginning.

Everything is taken over windows of the same number of steps, so that one batch's chance does not look like a trend, and nothing
is said before there is a window to say it of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

LEVELS = (  # metrics whose mean over the window is a signal of its own
    "pseudo_reward",
    "majority_share",
    "saturated_share",
    "same_majority_share",
    "dominant_answer_share",
    "distinct_answers",
    "halves_differ_share",
    "kl",
)
RELATIVE = {"entropy": "entropy_drift", "response_length": "length_drift"}  # drift as a part of the mean at the beginning
ABSOLUTE = {"no_answer_share": "no_answer_drift", "truncated_share": "truncated_drift"}  # drift as a difference of shares
RISES = {"surprise": "surprise_rise"}  # above the lowest mean so far, as a part of the mean at the beginning
FOLLOWED = (*LEVELS, *RELATIVE, *ABSOLUTE, *RISES)
TRENDS = ("pseudo_reward_slope", "kl_acceleration", *RELATIVE.values(), *ABSOLUTE.values(), *RISES.values())


@dataclass
class History:
    """What trends are taken from; a checkpoint keeps it. Plain JSON values."""

    first: dict[str, list[float]] = field(default_factory=dict)  # the first window of each metric
    recent: dict[str, list[float]] = field(default_factory=dict)  # its last two windows
    lowest: dict[str, float] = field(default_factory=dict)  # its lowest mean over a window, of RISES

    def note(self, line: Mapping[str, float], *, window: int) -> None:
        """Takes down a step's metrics; those that the step does not have are passed over."""
        for name in FOLLOWED:
            if name not in line:
                continue
            first, recent = self.first.setdefault(name, []), self.recent.setdefault(name, [])
            if len(first) < window:
                first.append(line[name])
            recent.append(line[name])
            del recent[: -2 * window]
            if name in RISES and self._has(name, window):
                now = _mean(recent[-window:])
                self.lowest[name] = min(self.lowest.get(name, now), now)

    def means(self, *, window: int) -> dict[str, float]:
        """The mean over the last window of every level that has been followed so long."""
        return {name: _mean(self.recent[name][-window:]) for name in LEVELS if self._has(name, window)}

    def trends(self, *, window: int) -> dict[str, float]:
        """What METRICS explains of TRENDS, as far as there are steps enough: slopes and drifts one window, acceleration two."""
        found: dict[str, float] = {}
        if self._has("pseudo_reward", window):
            found["pseudo_reward_slope"] = slope(self.recent["pseudo_reward"][-window:])
        if self._has("kl", 2 * window):
            found["kl_acceleration"] = slope(self.recent["kl"][-window:]) - slope(self.recent["kl"][:window])
        for name, drift in RELATIVE.items():
            if self._has(name, window) and _mean(self.first[name]) != 0:
                found[drift] = _mean(self.recent[name][-window:]) / _mean(self.first[name]) - 1
        for name, drift in ABSOLUTE.items():
            if self._has(name, window):
                found[drift] = _mean(self.recent[name][-window:]) - _mean(self.first[name])
        for name, rise in RISES.items():
            if self._has(name, window) and _mean(self.first[name]) != 0:
                found[rise] = (_mean(self.recent[name][-window:]) - self.lowest[name]) / _mean(self.first[name])
        return found

    def _has(self, name: str, steps: int) -> bool:
        return len(self.recent.get(name, ())) >= steps


def slope(values: list[float]) -> float:
    """Slope per step of the straight line that fits the values best (least squares); 0 for a single one."""
    middle = (len(values) - 1) / 2
    spread = sum((i - middle) ** 2 for i in range(len(values)))
    mean = _mean(values)
    return sum((i - middle) * (value - mean) for i, value in enumerate(values)) / spread if spread else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
