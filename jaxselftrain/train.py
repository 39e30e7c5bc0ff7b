"""Takes a Config, trains it in its run folder: `train` for programs, `run` with a progress bar and a picture for people."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
from tqdm.auto import tqdm

from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.interrupts import Interrupts
from jaxselftrain.loop import Loop, Report
from jaxselftrain.run_folder import open_folder
from jaxselftrain.summary import show_summary, write_summary


def train(config: Config, folder: Path, *, say: Callable[[str], None] = print) -> Iterator[Report]:
    """Trains in a run folder, resuming what it holds; yields before the first update and after every one.

    `say` hears what a person should know: what was dropped, changed or resumed, and what is being waited for.
    Raises UserError for what the user can change, and Resumable after SIGTERM or Ctrl-C, once everything is saved.
    """
    lock, notes = open_folder(folder, config)
    try:
        with Interrupts() as interrupts, Loop(config, folder, notes, say=say) as loop:
            yield from loop.run(interrupts)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"out of device memory: raise update.micro_batches (now {config.update.micro_batches}) if the update does not "
            "fit; lower rollout.questions, vote.samples or rollout.max_tokens if sampling does not"
        ) from error
    finally:
        lock.release()


def run(config: Config, folder: Path) -> None:
    """`train` as the command line runs it: a progress bar, then summary.json, a table and a picture."""
    started = time.monotonic()
    steps = config.train.steps
    with tqdm(total=steps, unit="step", dynamic_ncols=True, file=sys.stderr) as bar:
        for report in train(config, folder, say=partial(bar.write, file=sys.stderr)):
            bar.set_description("training")
            bar.update(report.step - bar.n)
            shown = {
                "pseudo-reward": report.metrics.get("pseudo_reward"),
                "majority": report.metrics.get("majority_share"),
                "tok/s": report.metrics.get("tokens_per_second"),
                "held-out avg": report.metrics.get("heldout/avg"),
            }
            bar.set_postfix({name: f"{value:.3g}" for name, value in shown.items() if value is not None})
    write_summary(folder, seconds=time.monotonic() - started)
    show_summary(folder)
