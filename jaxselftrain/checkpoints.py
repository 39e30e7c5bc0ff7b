"""Takes everything the next step depends on, gives it back after a kill: Orbax checkpoints, asynchronous and atomic.

A checkpoint of step i holds the state after update i, the rollouts awaiting update i + 1 with the host's feedback on
them, the host's own counters, and a digest of each of these. The frozen reference is not stored: it is the initial policy,
which is read again.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as managers

from jaxselftrain import sections
from jaxselftrain.assembly import Parts
from jaxselftrain.digests import digests, text_digest
from jaxselftrain.errors import UserError
from jaxselftrain.processes import any_of, is_first, is_loss, wait_for_all
from jaxselftrain.resources import disk_is_full
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Rollouts
from jaxselftrain.run_folder import checkpoints_of
from jaxselftrain.update import State

METRIC = "heldout/avg"  # what `best` means
HEALTHY = "healthy"  # how healthy, where no signal of the alarm was past its threshold: guard.calm


class DamagedError(Exception):
    """A checkpoint that cannot be restored because something of it is missing or changed; the message says what."""


@dataclass(frozen=True)
class Highest(managers.PreservationPolicy):
    """Keeps the checkpoint that has most of a metric, of those that have any; the earliest of equals."""

    metric: str
    scores: Mapping[int, Mapping[str, float]]  # step -> its metrics; grows while the run goes on

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        scores = [self.scores.get(info.step, {}).get(self.metric) for info in checkpoints]
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

    def __init__(self, folder: epath.PathLike, settings: sections.Checkpoint):
        self._quiet = ExitStack()
        self._quiet.enter_context(quiet())
        self.folder = absolute(folder)
        # Orbax keeps metrics only beside a single best checkpoint, and cannot open a folder where one of theirs is damaged.
        self._scores: dict[int, dict[str, float]] = {}
        policies: list[managers.PreservationPolicy] = [managers.LatestN(settings.keep), Highest(HEALTHY, self._scores)]
        if settings.keep_best:
            policies.append(Highest(METRIC, self._scores))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=managers.AnyPreservationPolicy(policies), cleanup_tmp_directories=True
        )
        self.manager = ocp.CheckpointManager(self.folder, options=options)
        for step in self.steps():
            self._scores[step] = _scores(self.folder / str(step))

    def steps(self) -> list[int]:
        """The steps that can be restored, oldest first."""
        return sorted(self.manager.all_steps())

    def save(self, step: int, saved: Saved, *, metrics: Mapping[str, float]) -> None:
        """Starts saving; training goes on meanwhile. Raises UserError when an earlier save failed (a full disk).

        `metrics` are METRIC and HEALTHY, where the step has them.
        """
        saved = dataclasses.replace(saved, state=dataclasses.replace(saved.state, reference=None))
        host = {"host": saved.host, "metrics": dict(metrics), "digests": _digests(saved, metrics)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(saved.state),
            rollouts=ocp.args.StandardSave(saved.rollouts),
            feedback=ocp.args.StandardSave(saved.feedback),
            host=ocp.args.JsonSave(host),
        )
        self._scores[step] = dict(metrics)
        with self._told():
            self.manager.save(step, args=args)

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

    def restore_newest(
        self, state: State, rollouts: Rollouts, feedback: Feedback, *, say: Callable[[str], None], last: int | None = None
    ) -> Saved | None:
        """The newest checkpoint that is whole, placed as `restore` does; None where there is no checkpoint at all.

        Only those up to step `last` count, where it is given. Damaged ones are moved aside, and each is told. Raises UserError
        where none is whole, and then moves none.
        """
        damaged: dict[int, str] = {}
        for step in reversed([step for step in self.steps() if last is None or step <= last]):
            why = None
            try:
                saved = self.restore(step, state, rollouts, feedback)
            except DamagedError as error:
                why = str(error)
            if any_of(why is not None):
                damaged[step] = why or "another process could not read it"
                continue
            for bad, why in damaged.items():
                place = self._put_aside(bad)
                say(f"the checkpoint of step {bad} is damaged ({why}) and now {place}; that of step {step} takes its place")
            return saved
        if not damaged:
            return None
        told = "; ".join(f"step {step}: {why}" for step, why in damaged.items())
        which = "no checkpoint" if last is None else f"no checkpoint up to step {last}"
        raise UserError(
            f"{which} in {self.folder} is whole ({told}); put back a copy of one, or start over in another train.folder"
        )

    def restore(self, step: int, state: State, rollouts: Rollouts, feedback: Feedback) -> Saved:
        """The checkpoint of a step, placed as the abstract arrays given say (ShapeDtypeStructs with shardings).

        The reference in the result is None. Raises DamagedError where it is not what was saved.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(dataclasses.replace(state, reference=None)),
            rollouts=ocp.args.StandardRestore(rollouts),
            feedback=ocp.args.StandardRestore(feedback),
            host=ocp.args.JsonRestore(),
        )
        with damage_found():
            got = self.manager.restore(step, args=args)
            host, metrics, kept = _opened(got.host)
            saved = Saved(got.state, got.rollouts, jax.tree.map(np.asarray, got.feedback), host)
            if kept is not None:
                _compare(kept, _digests(saved, metrics))
        return saved

    def _put_aside(self, step: int) -> epath.Path:
        """Moves a step's folder out of Orbax's sight, and says where to; nothing is deleted."""
        aside = self.folder.parent / (self.folder.name + ".damaged")
        aside.mkdir(exist_ok=True)
        places = (aside / (f"{step}.{number}" if number else str(step)) for number in itertools.count())
        place = next(place for place in places if not place.exists())
        wait_for_all()
        if is_first():
            (self.folder / str(step)).rename(place)
        wait_for_all()
        self._scores.pop(step, None)
        self.manager.reload()
        return place

    def close(self) -> None:
        self.manager.close()
        self._quiet.close()

    @contextmanager
    def _told(self):
        """Turns the errors of a save, which may surface one save later, into one sentence."""
        try:
            yield
        except Exception as error:
            if is_loss(error):
                raise
            good = self.steps()
            kept = f"the checkpoint of step {good[-1]} is intact" if good else "no earlier checkpoint exists"
            if disk_is_full(error):
                raise UserError(f"no room on the disk for a checkpoint in {self.folder}; {kept}") from error
            text = " ".join(str(error).split())[:300]
            raise UserError(f"saving a checkpoint in {self.folder} failed ({text}); {kept}") from error


def _digests(saved: Saved, metrics: Mapping[str, float]) -> dict[str, int]:
    """What tells whether a checkpoint is read as it was saved: a number for each array, and one for the host's values."""
    arrays = {"state": saved.state, "rollouts": saved.rollouts, "feedback": saved.feedback}
    return digests(arrays) | {"host": text_digest([saved.host, dict(metrics)])}


def _opened(item: dict[str, Any]) -> tuple[dict[str, Any], dict[str, float], dict[str, int] | None]:
    """(the host's values, the step's metrics, the digests) in a checkpoint's item `host`; an early one has only the first."""
    return (item["host"], item["metrics"], item["digests"]) if "digests" in item else (item, {}, None)


def _compare(kept: Mapping[str, int], found: Mapping[str, int]) -> None:
    """Raises DamagedError where something found is not what was kept."""
    changed = sorted(name for name, digest in found.items() if kept.get(name) != digest)
    if changed:
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise DamagedError(f"changed since it was saved: {', '.join(changed[:3])}{more}")


def absolute(folder: epath.PathLike) -> epath.Path:
    """As Orbax wants it; what is in a bucket already is."""
    path = epath.Path(folder)
    return path if "://" in str(path) else epath.Path(Path(path).absolute())


def _scores(folder: epath.Path) -> dict[str, float]:
    """The metrics that a checkpoint was saved with; none where it is damaged, which is told when it is restored."""
    try:
        return dict(_opened(json.loads((folder / "host" / "metadata").read_text()))[1])
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def checkpoint_params(
    parts: Parts, run: Path, *, step: int | None, scores: Mapping[int, float] | None = None, healthy: Collection[int] = ()
) -> tuple[dict[str, jax.Array], int]:
    """(weights of a run's checkpoint, its step). Only reads, so the run may be training meanwhile.

    Without a step, the one with the highest of `scores` (by step; the earliest of equals); where none has a score, the newest
    that is `healthy`, or the newest.

    Raises UserError when it is not there, is damaged, or holds another model's weights.
    """
    folder = absolute(checkpoints_of(run))
    if not folder.is_dir():
        raise UserError(f"{run} holds no checkpoint yet")
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "host": ocp.JsonCheckpointHandler()}
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
        try:
            with damage_found():
                return _read_params(manager, parts, run, chosen), chosen
        except DamagedError as error:  # another step's weights in their place would be another result under the same name
            raise UserError(
                f"the checkpoint of step {chosen} in {folder} is damaged ({error}); `jaxselftrain train` makes it again from the "
                "one before, and without its folder another is taken"
            ) from error


def _read_params(manager: ocp.CheckpointManager, parts: Parts, run: Path, step: int) -> dict[str, jax.Array]:
    """The weights of a step as the model has them. Raises UserError where they are another model's, DamagedError otherwise."""
    state, abstract = manager.item_metadata(step).state, parts.abstract_params()
    if state is None:
        raise DamagedError("its folder `state` is missing")
    stored = state.tree["params"]
    for name, wanted in abstract.items():
        found = stored.get(name)
        if found is None or tuple(found.shape) != tuple(wanted.shape):
            shape = "missing" if found is None else f"of shape {tuple(found.shape)}"
            raise UserError(
                f"model.path = {parts.config.model.path} is not the model that {run} trains: {name} is {shape} in the "
                f"checkpoint of step {step}, and of shape {tuple(wanted.shape)} in the model"
            )
    as_stored = {
        name: jax.ShapeDtypeStruct(wanted.shape, stored[name].dtype, sharding=wanted.sharding)
        for name, wanted in abstract.items()
    }
    tree = {"params": as_stored}
    args = ocp.args.PyTreeRestore(tree, partial_restore=True, restore_args=ocp.checkpoint_utils.construct_restore_args(tree))
    got = manager.restore(step, args=ocp.args.Composite(state=args, host=ocp.args.JsonRestore()))
    params, (_, _, kept) = got.state["params"], _opened(got.host)
    if kept is not None:
        _compare(kept, digests({"state": {"params": params}}))
    return {name: x.astype(abstract[name].dtype) for name, x in params.items()}


@contextmanager
def damage_found() -> Iterator[None]:
    """Turns what Orbax says of a checkpoint with missing or broken files into a DamagedError.

    What is no damage stays what it is: no memory to read it into, or no permission to.
    """
    try:
        yield
    except (UserError, DamagedError, MemoryError):
        raise
    except Exception as error:  # a file of an array that is cut short is a bare Exception of Orbax's
        text = " ".join(str(error).partition("See full TensorStore details")[0].split())[:200]
        if "RESOURCE_EXHAUSTED" in str(error) or is_loss(error):
            raise
        if isinstance(error, PermissionError) or "PERMISSION_DENIED" in text:
            raise UserError(f"a checkpoint cannot be read ({text}); allow this user to read its files") from error
        raise DamagedError(text) from error


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

    def not_late(told: Any) -> None:
        """After a failed save, TensorStore still calls the event loop that Orbax has closed; a failed read leaves coroutines."""
        code = getattr(told.object, "cr_code", None)
        if str(told.exc_value) != "Event loop is closed" and "orbax" not in getattr(code, "co_filename", ""):
            hook(told)

    def not_repeated(record: logging.LogRecord) -> bool:
        text = record.getMessage()  # Orbax's own tasks, or TensorStore's futures, which asyncio wraps
        return not ("exception was never retrieved" in text and ("orbax" in text or "_wrap_awaitable" in text))

    sys.unraisablehook = not_late
    # the reads and writes that a failure left undone
    warnings.filterwarnings(
        "ignore", message="coroutine '.*(serialize|write|read_array).*' was never awaited", category=RuntimeWarning
    )
    logging.getLogger("asyncio").addFilter(not_repeated)
