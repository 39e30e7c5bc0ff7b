"""Takes a run's reports, shows how far it is: a bar on a terminal, a line every few seconds in a log that is read later."""

from __future__ import annotations

import math
import sys
import time

from tqdm.auto import tqdm

from jaxselftrain.loop import Report

EVERY = 10.0  # seconds between two lines of a log
SHOWN = {
    "pseudo-reward": "pseudo_reward",
    "majority": "majority_share",
    "tok/s": "tokens_per_second",
    "held-out avg": "heldout/avg",
}


class Progress:
    """Of `steps` steps, on stderr; nothing but what is said where another process shows it."""

    def __init__(self, steps: int, *, shown: bool):
        self.steps, self.told = steps, -math.inf
        self.in_lines = shown and not sys.stderr.isatty()
        # leave: a mistake found before the first step is told without an empty bar above it
        self.bar = tqdm(
            total=steps,
            unit="step",
            dynamic_ncols=True,
            file=sys.stderr,
            delay=3,
            leave=False,
            disable=self.in_lines or not shown,
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.bar.write(text, file=sys.stderr)

    def watch(self, doing: str) -> None:
        """What is going on at the moment; not for logs."""
        self.bar.set_description(doing)

    def show(self, report: Report) -> None:
        """A step that is done."""
        known = {name: report.metrics[metric] for name, metric in SHOWN.items() if metric in report.metrics}
        values = {name: f"{value:.3g}" for name, value in known.items()}
        if self.in_lines:
            self._log(report.step, values)
            return
        self.bar.leave = True
        if self.bar.n == 0:
            self.bar.initial = self.bar.n = max(report.step - 1, 0)  # a resumed run's speed is that of the steps done now
        self.bar.set_description("training")
        self.bar.update(report.step - self.bar.n)
        self.bar.set_postfix(values)

    def _log(self, step: int, values: dict[str, str]) -> None:
        is_due = time.monotonic() - self.told >= EVERY or step == self.steps or "held-out avg" in values
        if is_due:
            self.told = time.monotonic()
            told = ", ".join(f"{name} {value}" for name, value in values.items())
            print(f"step {step} of {self.steps}{': ' if told else ''}{told}", file=sys.stderr, flush=True)
