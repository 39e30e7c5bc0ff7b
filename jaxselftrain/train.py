"""Takes a Config, trains it in its run folder: `train` for programs, `run` with a progress bar and a picture for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from jaxselftrain.config import Config
from jaxselftrain.interrupts import Interrupts
from jaxselftrain.loop import Loop, Report
from jaxselftrain.resources import Compilations, peak_memory_gib, told_of_limits
from jaxselftrain.run_folder import SUMMARY, close_folder, keep_decided, open_folder
from jaxselftrain.summary import show_summary, write_summary


def train(
    config: Config, folder: Path, *, say: Callable[[str], None] = print, watch: Callable[[str], None] = lambda doing: None
) -> Iterator[Report]:
    """Trains in a run folder, resuming what it holds; yields before the first update and after every one.

    `say` hears what a person should know: what was dropped, changed or resumed, and what is being waited for; `watch`
    what is going on at the moment, often. Raises UserError for what the user can change, and Resumable after SIGTERM or
    Ctrl-C, once everything is saved.
    """
    config = keep_decided(config, folder)
    lock, notes = open_folder(folder, config)
    settings = (
        f"raise update.micro_batches (now {config.update.micro_batches}; auto finds what fits) if the update does not fit; "
        "lower rollout.questions, vote.samples or rollout.max_tokens if sampling does not"
    )
    try:
        with told_of_limits(folder, settings), Interrupts() as interrupts:
            with Loop(config, folder, notes, say=say, watch=watch) as loop:
                yield from loop.run(interrupts)
    finally:
        close_folder(folder, lock)


def run(config: Config, folder: Path) -> None:
    """`train` as the command line runs it: a progress bar, then summary.json, a table and a picture."""
    steps, report = config.train.steps, None
    # the delay: a mistake that is told at once is told without an empty bar above it
    with Compilations() as compiled, tqdm(total=steps, unit="step", dynamic_ncols=True, file=sys.stderr, delay=3) as bar:
        for report in train(config, folder, say=partial(bar.write, file=sys.stderr), watch=bar.set_description):
            if bar.n == 0:
                bar.initial = bar.n = max(report.step - 1, 0)  # a resumed run's speed is that of the steps done now
            bar.set_description("training")
            bar.update(report.step - bar.n)
            shown = {
                "pseudo-reward": report.metrics.get("pseudo_reward"),
                "majority": report.metrics.get("majority_share"),
                "tok/s": report.metrics.get("tokens_per_second"),
                "held-out avg": report.metrics.get("heldout/avg"),
            }
            bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items() if value is not None})
    cost: dict[str, Any] = {"compiled": compiled.summary(), "peak_memory_gib": peak_memory_gib()}
    if report is None and (folder / SUMMARY).is_file():  # nothing was left to do: the cost is that of who did it
        cost |= json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    write_summary(folder, compiled=cost["compiled"], memory=cost["peak_memory_gib"])
    show_summary(folder)
