"""Takes everything the next step depends on, gives it back after a kill: Orbax checkpoints, asynchronous and atomic.

A checkpoint of step i holds the state after update i, the rollouts awaiting update i + 1 with the host's feedback on
them, and the host's own counters. The frozen reference is not stored: it is the initial policy, which is read again.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers

from jaxselftrain import sections
from jaxselftrain.assembly import Parts
from jaxselftrain.errors import UserError
from jaxselftrain.resources import disk_is_full
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Rollouts
from jaxselftrain.run_folder import CHECKPOINTS
from jaxselftrain.update import State

METRIC = "heldout/avg"  # what `best` means
HEALTHY = "healthy"  # how healthy, where no signal of the alarm was past its threshold: guard.calm


@dataclass(frozen=True)
class Highest(managers.PreservationPolicy):
    """Keeps the checkpoint that has most of a metric, of those that have any; the earliest of equals."""

    metric: str

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        scores = [(info.metrics or {}).get(self.metric) for info in checkpoints]
        best = max((score for score in scores if score is not None), default=None)
        place = scores.index(best) if best is not None else -1
        return [index == place for index in range(len(scores))]


@dataclass(frozen=True)
class Saved:
    """What a checkpoint holds."""

    state: State
    rollouts: Rollouts
    feedback: Feedback  # NumPy arrays
    host: dict[str, Any]  # plain JSON values


class Checkpoints:
    """The checkpoints of one run folder: the newest `keep`, and the best held-out one where there is an answer key.

    For the process that holds the folder's lock: it clears away what a kill left half-written.
    """

    def __init__(self, folder: Path, settings: sections.Checkpoint):
        policies: list[managers.PreservationPolicy] = [managers.LatestN(settings.keep), Highest(HEALTHY)]
        if settings.keep_best:
            policies.append(Highest(METRIC))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(policies), cleanup_tmp_directories=True
        )
        self._quiet = ExitStack()
        self._quiet.enter_context(quiet())
        self.folder = folder.absolute()
        self.manager = ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        """The steps that can be restored, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, saved: Saved, *, metrics: Mapping[str, float]) -> None:
        """Starts saving; training goes on meanwhile. Raises UserError when an earlier save failed (a full disk).

        `metrics` are METRIC and HEALTHY, where the step has them.
        """
        state = dataclasses.replace(saved.state, reference=None)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            rollouts=ocp.args.StandardSave(saved.rollouts),
            feedback=ocp.args.StandardSave(saved.feedback),
            host=ocp.args.JsonSave(saved.host),
        )
        with self._told():
            self.manager.save(step, args=args, metrics=dict(metrics) or None)

    def wait(self) -> None:
        """Returns once every started save is on disk; raises UserError when one failed."""
        with self._told():
            self.manager.wait_until_finished()

    def forget_after(self, step: int) -> None:
        """Deletes every checkpoint of a later step."""
        self.wait()
        for later in self.steps():
            if later > step:
                self.manager.delete(later)

    def restore(self, step: int, state: State, rollouts: Rollouts, feedback: Feedback) -> Saved:
        """The checkpoint of a step, placed as the abstract arrays given say (ShapeDtypeStructs with shardings).

        The reference in the result is None.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(dataclasses.replace(state, reference=None)),
            rollouts=ocp.args.StandardRestore(rollouts),
            feedback=ocp.args.StandardRestore(feedback),
            host=ocp.args.JsonRestore(),
        )
        with damage_told(self.folder, step):
            got = self.manager.restore(step, args=args)
        return Saved(got.state, got.rollouts, jax.tree.map(np.asarray, got.feedback), got.host)

    def close(self) -> None:
        self.manager.close()
        self._quiet.close()

    @contextmanager
    def _told(self):
        """Turns the errors of a save, which may surface one save later, into one sentence."""
        try:
            yield
        except Exception as error:
            good = self.steps()
            kept = f"the checkpoint of step {good[-1]} is intact" if good else "no earlier checkpoint exists"
            if disk_is_full(error):
                raise UserError(f"no room on the disk for a checkpoint in {self.folder}; {kept}") from error
            text = " ".join(str(error).split())[:300]
            raise UserError(f"saving a checkpoint in {self.folder} failed ({text}); {kept}") from error


def checkpoint_params(
    parts: Parts, run: Path, *, step: int | None, scores: Mapping[int, float] | None = None, healthy: Collection[int] = ()
) -> tuple[dict[str, jax.Array], int]:
    """(weights of a run's checkpoint, its step). Only reads, so the run may be training meanwhile.

    Without a step, the one with the highest of `scores` (by step; the earliest of equals); where none has a score, the newest
    that is `healthy`, or the newest.

    Raises UserError when it is not there, is damaged, or holds another model's weights.
    """
    folder = (run / CHECKPOINTS).absolute()
    if not folder.is_dir():
        raise UserError(f"{run} holds no checkpoint yet")
    handlers = {"state": ocp.PyTreeCheckpointHandler()}
    with quiet():
        options = ocp.CheckpointManagerOptions(read_only=True)
    with quiet(), ocp.CheckpointManager(folder, options=options, item_handlers=handlers) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise UserError(f"{run} holds no checkpoint yet")
        if step is not None and step not in steps:
            raise UserError(f"{run} holds no checkpoint of step {step}; there are {', '.join(map(str, steps))}")
        chosen = step
        if chosen is None:
            scored = [each for each in steps if each in (scores or {})]
            well = [each for each in steps if each in healthy] or steps
            chosen = max(scored, key=lambda each: (scores or {})[each]) if scored else well[-1]
        abstract = {"params": parts.abstract_params()}
        restore = ocp.args.PyTreeRestore(
            abstract, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(abstract)
        )
        with damage_told(folder, chosen):
            stored = manager.item_metadata(chosen).state.tree["params"]
            for name, wanted in abstract["params"].items():
                found = stored.get(name)
                if found is None or tuple(found.shape) != tuple(wanted.shape):
                    shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
                    raise UserError(
                        f"model.path = {parts.config.model.path} is not the model that {run} trains: {name} is {shape} in the "
                        f"checkpoint of step {chosen}, and of shape {tuple(wanted.shape)} in the model"
                    )
            params = manager.restore(chosen, args=ocp.args.Composite(state=restore)).state["params"]
    return params, chosen


@contextmanager
def damage_told(folder: Path, step: int) -> Iterator[None]:
    """Turns what Orbax says of a checkpoint with missing or broken files into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a file of an array that is cut short is a bare Exception of Orbax's
        text = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint of step {step} in {folder} is damaged ({text}); remove its folder to use the one before"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Orbax to itself: it tells every file it opens, and of a failed save, which it also raises, many tracebacks."""
    _raise_a_failure_once()
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        absl.setLevel(level)


@cache
def _raise_a_failure_once() -> None:
    """Of a checkpoint's failed reads or writes one is raised; asyncio tells the others when they are collected, at any time."""
    hook = sys.unraisablehook

    def not_late(told: Any) -> None:  # after a failed save, TensorStore still calls the event loop that Orbax has closed
        if str(told.exc_value) != "Event loop is closed":
            hook(told)

    def not_repeated(record: logging.LogRecord) -> bool:
        text = record.getMessage()  # Orbax's own tasks, or TensorStore's futures, which asyncio wraps
        return not ("exception was never retrieved" in text and ("orbax" in text or "_wrap_awaitable" in text))

    sys.unraisablehook = not_late
    # the writes that a failed save never began
    warnings.filterwarnings("ignore", message="coroutine '.*(serialize|write).*' was never awaited", category=RuntimeWarning)
    logging.getLogger("asyncio").addFilter(not_repeated)
