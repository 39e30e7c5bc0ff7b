"""Takes tasks, conditions and seeds, gives one file of measures for each run: what is missing is run, what is there is read.

A task is a config. Where it has stages, those before the last one make the base model that all runs of the task start from, once;
the last one, or a config without stages, is what the runs train. A condition is what a run does differently. Runs take turns by
seed, so that a campaign that is stopped has whole seeds.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from jaxselftrain.config import Config, load_config, override_config, to_yaml
from jaxselftrain.errors import UserError
from jaxselftrain.metrics import read_alarms, read_metrics
from jaxselftrain.remote import CHECKPOINTS
from jaxselftrain.run_folder import SUMMARY, replace_text
from jaxselftrain.stages import plan
from jaxselftrain.trends import FOLLOWED

KEPT = (
    "step",
    "loss",
    *FOLLOWED,  # what the signals are made of
    "probe_agreement",
    "true_accuracy",
    "label_accuracy",
    "reward_accuracy",
    "learning_rate",
    *(f"heldout/{name}" for name in ("avg", "maj", "greedy")),
)
DIGITS = 4
LABELS = "{labels}"  # in settings: what the base votes on all questions of training


@dataclass(frozen=True)
class Condition:
    """One way to train: its name in files and in tables, and the settings that it differs in."""

    name: str
    says: str
    settings: tuple[str, ...] = ()
    action: str | None = None  # what its alarm does, by thresholds that were found on other tasks


@dataclass(frozen=True)
class Task:
    """A config, the conditions that are run on it, and the settings that all of them share."""

    config: Path
    conditions: tuple[Condition, ...]
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """What one run measured: metric -> its value at each logged step, None where the step does not have it."""

    task: str
    condition: str
    seed: int
    settings: list[str]
    alarms: list[dict[str, Any]]
    values: dict[str, list[float | None]] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.task} {self.condition} {self.seed}"

    def lines(self) -> list[dict[str, float]]:
        """The run as lines of metrics.jsonl, for alarm.replay."""
        rows = zip(*self.values.values(), strict=True)
        return [{name: value for name, value in zip(self.values, row, strict=True) if value is not None} for row in rows]

    def curve(self, metric: str) -> dict[int, float]:
        """Step -> value, where the metric was measured."""
        pairs = zip(self.values["step"], self.values.get(metric, []), strict=False)
        return {int(step): value for step, value in pairs if step is not None and value is not None}


@dataclass(frozen=True)
class Place:
    """Where a campaign keeps things: `work` holds run folders and may be thrown away, `results` is kept."""

    work: Path
    results: Path

    def result(self, task: str, condition: str, seed: int) -> Path:
        return self.results / task / f"{condition}-{seed}.json"


def read_runs(results: Path) -> list[Run]:
    """Every run that has been measured, in the order of names."""
    return [Run(**json.loads(path.read_text())) for path in sorted(results.glob("*/*.json"))]


def run_missing(
    tasks: Mapping[str, Task],
    seeds: Sequence[int],
    *,
    place: Place,
    jobs: int,
    overrides: Sequence[str],
    thresholds: Callable[[str], list[str]],
) -> None:
    """Trains the base of every task, and then every run that has no result yet, `jobs` at a time on cores of their own.

    `overrides` hold for all runs; `thresholds` gives the settings of the alarm of a task's runs whose alarm acts. A run that
    was stopped is resumed. Raises UserError when one fails, after the others that had begun.
    """
    parts = list(_share_cores(jobs))  # before anything is trained
    most = max((len(task.conditions) for task in tasks.values()), default=0)
    wanted = [
        (name, task.conditions[number], seed)
        for seed in seeds
        for number in range(most)
        for name, task in tasks.items()
        if number < len(task.conditions) and not place.result(name, task.conditions[number].name, seed).is_file()
    ]
    finals = {}
    for name in dict.fromkeys(name for name, *_ in wanted):
        finals[name] = override_config(_base(tasks[name].config, name, place), [*tasks[name].settings, *overrides])
        if any(LABELS in setting for task, condition, _ in wanted if task == name for setting in condition.settings):
            _labels(finals[name], place.work / name)
    slots: queue.SimpleQueue[list[int]] = queue.SimpleQueue()
    for cores in parts:
        slots.put(cores)

    def one(task: str, condition: Condition, seed: int) -> None:
        cores = slots.get()
        try:
            _run(finals[task], task, condition, seed, place=place, cores=cores, thresholds=thresholds)
        finally:
            slots.put(cores)

    with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(wanted), unit="run", desc="campaign", disable=not wanted) as bar:
        futures = [pool.submit(one, *run) for run in wanted]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _base(path: Path, task: str, place: Place) -> Config:
    """Trains the stages before the last one, where they have not been, and gives the config of what comes after them."""
    config = load_config(path)
    folder = place.work / task / "base"
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not config.stages:
        return config
    if len(config.stages) > 1:
        before = folder.with_suffix(".yaml")
        replace_text(before, to_yaml(config.model_copy(update={"stages": config.stages[:-1]})))
        _command("train", str(before), f"train.folder={folder}", log=folder.with_suffix(".log"))
    return plan(config, folder)[-1].config


def _labels(config: Config, folder: Path) -> None:
    """What the base votes on every question of training: the fixed teacher, and how easy a question is."""
    questions = folder / "questions.yaml"
    replace_text(questions, to_yaml(config))
    _command("label", config.model.path, str(questions), str(folder / "labels.jsonl"), log=folder / "labels.log")


def _run(
    config: Config,
    task: str,
    condition: Condition,
    seed: int,
    *,
    place: Place,
    cores: list[int],
    thresholds: Callable[[str], list[str]],
) -> None:
    folder = place.work / task / f"{condition.name}-{seed}"
    given = [setting.replace(LABELS, str(place.work / task / "labels.jsonl")) for setting in condition.settings]
    if condition.action is not None:
        given += [f"alarm.action={condition.action.replace(LABELS, str(place.work / task / 'labels.jsonl'))}", *thresholds(task)]
    file = folder.with_suffix(".yaml")
    own = override_config(config, [*given, f"train.seed={seed}", f"train.folder={folder}"])
    replace_text(file, to_yaml(own))
    if not (folder / SUMMARY).is_file():  # else it is whole, and only its result was taken away
        _command("train", str(file), log=folder.with_suffix(".log"), cores=cores)
    _keep(place.result(task, condition.name, seed), folder, task, condition.name, seed, given, place)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)  # tens of megabytes each


def _keep(out: Path, folder: Path, task: str, condition: str, seed: int, settings: Sequence[str], place: Place) -> None:
    """Writes a run's result, in one move."""
    lines = read_metrics(folder)
    values = {
        name: [None if line.get(name) is None else round(line[name], DIGITS) for line in lines]
        for name in KEPT
        if any(name in line for line in lines)
    }
    told = [setting.replace(str(place.work / task), task) for setting in settings]
    alarms = [{name: alarm.get(name) for name in ("step", "action", "to", "signals")} for alarm in read_alarms(folder)]
    out.parent.mkdir(parents=True, exist_ok=True)
    head = {"task": task, "condition": condition, "seed": seed, "settings": told, "alarms": alarms}
    body = ",\n".join(f"  {json.dumps(name)}: {json.dumps(series)}" for name, series in values.items())
    replace_text(out, json.dumps(head)[:-1] + ', "values": {\n' + body + "\n}}\n")


def _share_cores(jobs: int) -> Iterator[list[int]]:
    """The cores that this process may use, in as many equal parts."""
    cores = sorted(os.sched_getaffinity(0))
    if jobs > len(cores):
        raise UserError(f"--jobs {jobs} is more than the {len(cores)} cores that there are")
    each = len(cores) // jobs
    return (cores[job * each : (job + 1) * each] for job in range(jobs))


def _command(*arguments: str, log: Path, cores: Sequence[int] = ()) -> None:
    """A jaxselftrain command on these cores; what it says goes into a log, whose end is told where it fails."""
    pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
    with open(log, "w") as said:
        done = subprocess.run([*pinned, sys.executable, "-m", "jaxselftrain.cli", *arguments], stdout=said, stderr=said)
    if done.returncode:
        last = [line for line in log.read_text().replace("\r", "\n").splitlines() if line.strip()][-1:]
        raise UserError(f"jaxselftrain {' '.join(arguments)}: exit {done.returncode}: {''.join(last)} (all of it: {log})")
