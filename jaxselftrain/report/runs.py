"""Takes run folders, gives what a report reads of each, and which of them are one experiment with several seeds."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.metrics import (
    ALARMS_FILE,
    METRICS_FILE,
    RESPONSES_FILE,
    ROLLED_BACK_FILE,
    read_alarms,
    read_metrics,
    read_rolled_back,
)
from jaxselftrain.run_folder import CONFIG, EVALUATIONS, SUMMARY, checkpoints_of, read_config

AVG = "heldout/avg"  # what the best checkpoint is chosen by


@dataclass(frozen=True)
class Run:
    """One run folder, as it is now."""

    folder: Path
    name: str
    config: Config
    lines: list[dict[str, float]]  # metrics.jsonl
    rolled_back: list[dict[str, float]]  # lines that the alarm took back, `alarm` is its step
    alarms: list[dict[str, Any]]
    checkpoints: list[int]  # steps that can still be exported
    finished: bool

    def points(self, metric: str) -> dict[int, float]:
        """Step -> value, where it was measured and is finite."""
        return points(self.lines, metric)

    @property
    def step(self) -> int:
        """The last logged one."""
        return int(self.lines[-1]["step"])

    @property
    def best(self) -> int | None:
        """The step with the best held-out avg@k, the earliest of equals; None where nothing was evaluated."""
        scores = self.points(AVG)
        return max(scores, key=lambda step: scores[step]) if scores else None

    @property
    def exported(self) -> int | None:
        """The step that `jaxselftrain export` takes: the best one of the checkpoints that were evaluated, or the newest."""
        scores = self.points(AVG)
        scored = [step for step in self.checkpoints if step in scores and step > 0]
        if scored:
            return max(scored, key=lambda step: scores[step])
        return self.checkpoints[-1] if self.checkpoints else None

    def evaluation(self, step: int) -> Path:
        """The responses of a held-out evaluation."""
        return self.folder / EVALUATIONS / f"step_{step:06d}.jsonl"


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed alone; often just one."""

    name: str
    runs: tuple[Run, ...]


def points(lines: Sequence[dict[str, float]], metric: str) -> dict[int, float]:
    """Step -> value of a metric in lines of metrics.jsonl, where it is a finite number."""
    found = ((int(line["step"]), line.get(metric)) for line in lines)
    return {step: float(value) for step, value in found if isinstance(value, int | float) and math.isfinite(value)}


def read_run(folder: Path, name: str) -> Run:
    """Raises UserError when it is no run folder, or its run has logged nothing yet."""
    config = read_config(folder) if (folder / CONFIG).is_file() else _no_run(folder)
    lines = read_metrics(folder)
    if not lines:
        raise UserError(f"{folder / METRICS_FILE} holds no line yet: wait for the run's first step, or give --watch")
    return Run(
        folder=folder,
        name=name,
        config=config,
        lines=lines,
        rolled_back=read_rolled_back(folder),
        alarms=read_alarms(folder),
        checkpoints=_checkpoints(checkpoints_of(folder)),
        finished=is_finished(folder),
    )


def read_groups(folders: Sequence[Path]) -> list[Group]:
    """The runs in the order given, those of one experiment together. Raises UserError as `read_run`, and for one given twice."""
    resolved = [folder.resolve() for folder in folders]
    twice = [folder for number, folder in enumerate(folders) if resolved[number] in resolved[:number]]
    if twice:
        raise UserError(f"{twice[0]} is given twice")
    short = [folder.name for folder in resolved]
    names = short if len(set(short)) == len(short) else [str(folder) for folder in folders]
    alike: dict[str, list[Run]] = {}
    for folder, name in zip(folders, names, strict=True):
        run = read_run(folder, name)
        alike.setdefault(json.dumps(_settings(run.config), sort_keys=True), []).append(run)
    return _named([tuple(runs) for runs in alike.values()])


def is_finished(folder: Path) -> bool:
    """Whether the summary is newer than the last line of metrics: nothing more will come, unless the run is given more steps."""
    try:
        return (folder / SUMMARY).stat().st_mtime_ns >= (folder / METRICS_FILE).stat().st_mtime_ns
    except OSError:
        return False


def stamp(folder: Path) -> tuple:
    """Changes when there is something new to show."""
    found = []
    for name in (METRICS_FILE, RESPONSES_FILE, ALARMS_FILE, ROLLED_BACK_FILE, SUMMARY):
        try:
            status = (folder / name).stat()
            found.append((status.st_mtime_ns, status.st_size))
        except OSError:
            found.append((0, 0))
    return tuple(found)


def differences(groups: Sequence[Group]) -> list[tuple[str, list[str]]]:
    """The settings in which the groups differ: (dotted field, its value in each group)."""
    flat = [_flat(_settings(group.runs[0].config), "") for group in groups]
    names = dict.fromkeys(name for fields in flat for name in fields)
    rows = ((name, [fields.get(name, "-") for fields in flat]) for name in names)
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def _no_run(folder: Path) -> Config:
    stages = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}")) if folder.is_dir() else []
    if stages:
        raise UserError(
            f"{folder} is not a run folder, but holds some: give {', '.join(str(folder / name) for name in stages[:4])}"
        )
    return read_config(folder)  # which says so


def _checkpoints(folder: epath.Path) -> list[int]:
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()) if folder.is_dir() else []


def _settings(config: Config) -> dict[str, Any]:
    """Everything but the seed and where the run lies."""
    values = config.model_dump(mode="json")
    values["train"] = {name: value for name, value in values["train"].items() if name not in ("seed", "folder")}
    return values


def _flat(values: dict[str, Any], prefix: str) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: text}
    return flat


def _common(names: Sequence[str]) -> str:
    """What all of them begin with."""
    return "".join(letters[0] for letters in itertools.takewhile(lambda each: len(set(each)) == 1, zip(*names, strict=False)))


def _named(groups: Sequence[tuple[Run, ...]]) -> list[Group]:
    """A group of several is called by what its runs' names begin with."""
    named: list[Group] = []
    for runs in groups:
        name = runs[0].name
        if len(runs) > 1:
            common = _common([run.name for run in runs]).rstrip("0123456789-_.=/ ")
            seeds = len({run.config.train.seed for run in runs}) == len(runs)
            name = f"{common or name} ({len(runs)} {'seeds' if seeds else 'runs'})"
        taken = {group.name for group in named}
        unique = next(each for each in (name, *(f"{name}, {number}" for number in range(2, 10**6))) if each not in taken)
        named.append(Group(unique, runs))
    return named
