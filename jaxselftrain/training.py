"""Takes a Config, trains it in its run folder: `train` for programs, `run` with a progress bar and a picture for people."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from etils import epath

from jaxselftrain.assembly import set_runtime
from jaxselftrain.config import Config, parse_config
from jaxselftrain.errors import UserError
from jaxselftrain.interrupts import Interrupts
from jaxselftrain.loop import Control, Loop, Report
from jaxselftrain.processes import are_several, from_first, is_first, join, same_in_all, together, told_of_losses
from jaxselftrain.progress import Progress
from jaxselftrain.remote import MARK, Copy, here, home
from jaxselftrain.resources import Compilations, peak_memory_gib, told_of_limits
from jaxselftrain.run_folder import SUMMARY, close_folder, keep_decided, open_folder, with_folder
from jaxselftrain.summary import show_summary, write_summary

SEEN_WITHIN = 60.0  # seconds, after which what one machine writes must be there for the others: network folders take some


class Training(Iterator[Report]):
    """A run, step by step: iterate over it for its Reports, and tell it between two of them to stop or to label otherwise."""

    def __init__(self, config: Config, folder: Path, callback, say, watch):
        self.config, self.folder = config, folder
        self._control, self._callback = Control(), callback
        self._steps = _steps(config, folder, self._control, say, watch)

    def __next__(self) -> Report:
        report = next(self._steps)
        if self._callback is not None and self._callback(report) is False:
            self.stop()
        return report

    def stop(self) -> None:
        """Saves after the step just reported, and ends the iteration; the same call of `train` goes on from there."""
        self._control.is_stopped = True

    def use_labels(self, source: str) -> None:
        """Takes labels from `source` (vote, gold, teacher, ...; see label.source) from the next batch that is voted on.

        That is the batch after the one whose votes have just been reported. A resumed run goes on with it. Raises UserError for a
        source whose labels the run has not been given: gold without answers, teacher without a file, ema without a teacher.
        """
        have = self._control.sources
        if have is None:
            raise UserError("use_labels: the run has not begun; take its first report before changing the labels")
        if source not in have:
            raise UserError(f"use_labels({source!r}): this run has labels from {', '.join(have)}")
        self._control.label_source = source

    def close(self) -> None:
        """Ends the run where it is, without saving; what has been saved is kept. The run folder is free again."""
        self._steps.close()


def train(
    config: Config,
    folder: str | Path | None = None,
    *,
    callback: Callable[[Report], bool | None] | None = None,
    say: Callable[[str], None] = print,
    watch: Callable[[str], None] = lambda doing: None,
) -> Training:
    """Trains in a run folder, resuming what it holds; the Training yields a Report before the first update and after every one.

    Without a folder it is the config's train.folder, with `run` for {name}; either may be gs://... (see remote.py). `callback`
    hears each report before it is yielded; where it returns False the run saves and ends. `say` hears what a person should
    know: what was dropped, changed or resumed, and what is being waited for; `watch` what is going on at the moment, often.

    Iterating raises UserError for what the user can change, and Resumable after SIGTERM or Ctrl-C, once everything is saved.
    """
    if config.stages:
        raise UserError("train takes a run without stages: see stages.plan for the runs that they stand for")
    settled = with_folder(config, "run") if folder is None else with_folder(config, "run", str(folder))
    return Training(settled, here(settled.train.folder), callback, say, watch)


def _steps(config: Config, folder: Path, control: Control, say, watch) -> Generator[Report]:
    cache = _join(config, folder)
    again = f"the run in {config.train.folder} goes on from its newest checkpoint"
    with told_of_losses(again):
        if not same_in_all(config.model_dump_json):
            raise UserError("the processes of this run were started with different settings; start all with the same command")
        kept = together(lambda: home(config.train.folder, folder))
        copy = Copy(folder, kept, say=say) if is_first() else None
        together(lambda: None if copy is None else copy.fetch())
        config = parse_config(json.loads(from_first(lambda: keep_decided(config, folder, kept).model_dump_json())))
        lock, notes = together(lambda: open_folder(folder, kept, config) if is_first() else (None, []))
    settings = (
        f"raise update.micro_batches (now {config.update.micro_batches}; auto finds what fits) if the update does not fit; "
        "lower rollout.questions, vote.samples or rollout.max_tokens, or set rollout.gather_weights=false, if sampling does not"
    )
    try:
        with told_of_losses(again), told_of_limits(folder, settings), Interrupts() as interrupts, own_folder(folder) as own:
            check_shared(kept)
            if own != folder:
                config, say = quiet(config), lambda text: None
            # told of losses once more within: the Loop's end would wait for who is gone
            with Loop(config, kept, notes, own=own, cache=cache, copy=copy, say=say, watch=watch) as loop, told_of_losses(again):
                control.sources = loop.sources()
                yield from loop.run(interrupts, control)
    finally:
        if lock is not None:
            close_folder(folder, lock)


def _join(config: Config, folder: Path) -> Path:
    """Joins other processes where there are some; gives the folder of the compilation cache, which lies beside the run's."""
    cache = folder.parent / ".compilation_cache"
    set_runtime(config, cache)  # before devices are used, which joining does
    join()
    return cache


def check_shared(kept: epath.Path) -> None:
    """Raises UserError, in all processes, unless they see one and the same folder: what is saved is in parts, one of each."""
    if not are_several():
        return
    token, mark = from_first(lambda: secrets.token_hex(8)), kept / MARK

    def write() -> None:
        if is_first():
            kept.mkdir(parents=True, exist_ok=True)
            mark.write_text(token)

    def look() -> None:
        until = time.monotonic() + SEEN_WITHIN
        while not (mark.exists() and mark.read_text() == token):
            if time.monotonic() > until:
                raise UserError(
                    f"train.folder: the processes do not share {kept}: what the first one writes there is not there for another; "
                    "name a folder that all machines see, such as gs://BUCKET/..."
                )
            time.sleep(0.1)

    together(write)
    try:
        together(look)
    finally:
        if is_first():
            mark.unlink(missing_ok=True)


@contextmanager
def own_folder(folder: Path) -> Iterator[Path]:
    """Where this process writes what people read: the run folder for the first one, for others a folder that nobody reads."""
    if is_first():
        yield folder
        return
    with TemporaryDirectory() as own:
        yield Path(own)


def quiet(config: Config) -> Config:
    """The config without loggers: one process of several has them."""
    return config.model_copy(update={"log": config.log.model_copy(update={"tensorboard": False, "wandb": None})})


def run(config: Config, name: str) -> None:
    """`train` as the command line runs it, with `name` for {name}: shows progress, then summary.json, a table and a picture."""
    config = with_folder(config, name)
    folder, steps, report = here(config.train.folder), config.train.steps, None
    _join(config, folder)
    with Compilations() as compiled, Progress(steps, shown=is_first()) as progress:
        for report in train(config, say=progress.say, watch=progress.watch):
            progress.show(report)
    cost: dict[str, Any] = {"compiled": compiled.summary(), "peak_memory_gib": peak_memory_gib()}
    if report is None and (folder / SUMMARY).is_file():  # nothing was left to do: the cost is that of who did it
        cost |= json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    if not is_first():
        return
    write_summary(folder, compiled=cost["compiled"], memory=cost["peak_memory_gib"])
    show_summary(folder)
    Copy(folder, home(config.train.folder, folder), say=print).keep()
