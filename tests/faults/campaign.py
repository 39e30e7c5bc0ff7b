"""Kills a small training run at random moments until the kills are used up, and compares each run with one never stopped.

    python tests/faults/campaign.py --kills 100 --seed 0
    python tests/faults/campaign.py --kills 50 --seed 0 --processes 2

A run is one process after another in one run folder, or so many at a time: one is killed at a moment drawn at random, and the
next start goes on, until one finishes. Of the kills, most are SIGKILL at a moment uniform over a process's life, start-up
included; a share waits until a checkpoint is half-written; a share is SIGTERM. Now and then the newest checkpoint is damaged as
well before the next start. Nothing may be lost: metrics, responses and evaluations must equal those of the uninterrupted run, and
the last checkpoint bit for bit. Exit code 1 when something was, with the folders kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from pods import Pod  # noqa: E402
from runs import lines, without_times  # noqa: E402

WHILE_SAVING, TERMINATED, DAMAGED = 0.4, 0.2, 0.1  # shares of the kills
LONGEST = 1200.0  # seconds that processes may take to end by themselves
# Seconds within which the others must end when one was killed: at once where a connection breaks, else when JAX has waited for a
# sign of life, 100 of them. Those that have not met yet wait longer, and are killed, as launchers do.
AFTER, UNMET = 150.0, 15.0
RESUMABLE = 75
BEGUN, FINISHED = "compiling the training step", re.compile(r"step (\d+) of \1\b")  # what the first process has said by then


def config(folder: Path, *, steps: int) -> dict:
    """A step takes some tens of milliseconds, so that saving is a good part of it; questions are read from files, which costs a
    start less than making them."""

    def questions(name: str, *, first: int, count: int) -> dict:
        rows = [{"id": f"q{i}", "question": f"{i}+1=", "answer": str(i + 1)} for i in range(first, first + count)]
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return {"source": "jsonl", "path": str(folder / name)}

    return {
        "model": {"path": "new://layers=1,width=32,heads=2", "remat": "none"},
        "questions": questions("train.jsonl", first=0, count=60),
        "rollout": {"questions": 4, "max_tokens": 4},
        "answer": {"format": "regex", "pattern": "(.)"},
        "vote": {"samples": 4},
        "reference": {"keep": "always"},
        "optimizer": {"learning_rate": 1e-3},
        "mesh": {"data": -1},
        "probe": {"questions": 2, "every": 7},
        "evaluate": {"questions": questions("held_out.jsonl", first=60, count=8), "every": 10, "samples": 2, "batch": 8},
        "checkpoint": {"every": 1, "keep": 2},
        "log": {"tensorboard": False},
        "runtime": {"compilation_cache": False},  # the campaign names its own, which keeps small programs too
        "train": {"steps": steps},
    }


@dataclass
class Tally:
    """What happened, and what must not have."""

    kills: Counter = field(default_factory=Counter)  # by signal
    while_saving: int = 0
    before_any_checkpoint: int = 0
    saved_on_request: int = 0  # SIGTERM answered with exit code 75
    damaged: int = 0
    fallen_back: int = 0  # of these, to the checkpoint before
    by_themselves: int = 0  # kills after which the other processes ended, and
    by_us: int = 0  # kills before they had met, after which they were killed, too
    restarts: int = 0
    resumed: list[int] = field(default_factory=list)  # steps that were gone on from
    runs: int = 0
    losses: list[str] = field(default_factory=list)

    def told(self) -> str:
        steps = sorted(self.resumed)
        spread = f"steps {steps[0]} to {steps[-1]}, half of them below {steps[len(steps) // 2]}" if steps else "none"
        rows = {
            "runs": self.runs,
            "kills": sum(self.kills.values()),
            "by signal": ", ".join(f"{name} {count}" for name, count in sorted(self.kills.items())),
            "with a checkpoint half-written": self.while_saving,
            "before there was any checkpoint": self.before_any_checkpoint,
            "SIGTERM that saved and exited with 75": self.saved_on_request,
            "checkpoints damaged before the next start": self.damaged,
            "of these told, and gone on from the one before": self.fallen_back,
            "the other processes ended by themselves": self.by_themselves,
            "had not met it yet, and were killed, too": self.by_us,
            "restarts": self.restarts,
            "resumed from a checkpoint": f"{len(steps)} times, {spread}",
            "losses": len(self.losses),
        }
        return "\n".join(["| | |", "| :-- | :-- |", *(f"| {name} | {value} |" for name, value in rows.items())])


class Run:
    """One run folder, the processes that train in it, and their logs."""

    def __init__(self, folder: Path, config: Path, cache: Path, *, processes: int):
        self.folder, self.config, self.processes, self.starts = folder, config, processes, 0
        self.checkpoints = folder / "checkpoints"
        self.variables = {
            "PYTHONDONTWRITEBYTECODE": "",  # empty is unset: what one process compiles the next need not
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self) -> Pod:
        self.starts += 1
        arguments = "train", str(self.config), f"train.folder={self.folder}"
        return Pod(self.processes, *arguments, devices=1, logs=self._logs(), variables=self.variables)

    def log(self, number: int = 0) -> Path:
        """What a process of the newest start said; the first one talks to people."""
        return self._logs().with_name(f"{self._logs().name}.{number}.log")

    def has_begun(self) -> bool:
        """Whether all processes of the newest start have met, and hear signals."""
        return self.log().is_file() and BEGUN in self.log().read_text()

    def _logs(self) -> Path:
        return self.folder.with_name(f"{self.folder.name}-{self.starts}")

    def steps(self) -> list[int]:
        """The checkpoints that are there under their final names."""
        return sorted(int(name) for name in self._names() if name.isdigit())

    def half_written(self) -> set[str]:
        return {name for name in self._names() if not name.isdigit()}

    def _names(self) -> list[str]:
        return os.listdir(self.checkpoints) if self.checkpoints.is_dir() else []

    def resumed_from(self) -> int | None:
        found = re.search(r"resuming after step (\d+)", self.log().read_text())
        return int(found[1]) if found else None


@dataclass
class Struck:
    """Which process got which signal."""

    number: int
    signal: signal.Signals


def strike(run: Run, pod: Pod, rng: random.Random, life: float) -> Struck | None:
    """Waits for a moment drawn at random and sends a signal to one of the processes; None where it has ended before."""
    which = rng.randrange(run.processes) if run.processes > 1 else 0
    process, until = pod.processes[which], time.monotonic() + rng.random() * life
    saves, delay = rng.randrange(1, 12), rng.random() * 0.06
    number = signal.SIGTERM if rng.random() < TERMINATED else signal.SIGKILL
    if rng.random() < WHILE_SAVING:
        seen: set[str] = set()
        while process.poll() is None and len(seen) < saves:
            seen |= run.half_written()
            time.sleep(0.001)
        time.sleep(delay)
    else:
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.002)
    if process.poll() is not None:
        return None
    process.send_signal(number)
    return Struck(which, number)


def ended(run: Run, pod: Pod, struck: Struck | None) -> list[int | None]:
    """The exit codes of the processes; None for those that had to be killed because they did not end."""
    until = time.monotonic() + LONGEST
    while None in (codes := [process.poll() for process in pod.processes]) and time.monotonic() < until:
        if struck is not None and codes[struck.number] not in (None, RESUMABLE):
            until = min(until, time.monotonic() + (AFTER if run.has_begun() else UNMET))
            struck = None  # the clock runs
        time.sleep(0.01)
    for process in pod.processes:
        process.kill()
        process.wait()
    return codes


def damage(run: Run, rng: random.Random) -> None:
    """Cuts one file of the newest checkpoint short, empties it, removes it, or flips one of its bits."""
    path = rng.choice(sorted(path for path in (run.checkpoints / str(run.steps()[-1])).rglob("*") if path.is_file()))
    content = bytearray(path.read_bytes())
    how = rng.choice(("cut", "empty", "gone", "flip"))
    if how == "gone":
        path.unlink()
    elif how == "flip" and content:
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
    else:
        os.truncate(path, len(content) // 2 if how == "cut" else 0)


def torment(run: Run, rng: random.Random, tally: Tally, *, kills: int, life: float) -> None:
    """Trains the run to its end, killing it on the way while there are kills left."""
    allowed: set[int | None] = {None}
    while True:
        struck = None
        tally.restarts += run.starts > 1
        with run.start() as pod:
            if sum(tally.kills.values()) < kills:
                struck = strike(run, pod, rng, life)
            codes = ended(run, pod, struck)
        _check(run, codes, struck, allowed, tally)
        if tally.losses or not any(codes):
            return
        assert struck is not None  # without a signal, every other code is a loss
        steps, half = run.steps(), run.half_written()
        tally.kills[struck.signal.name] += 1
        tally.while_saving += bool(half)
        where = f"after step {steps[-1]}" if steps else "before any checkpoint"
        told = f"{struck.signal.name} of process {struck.number}, exit codes {codes}, {where}"
        print(f"  kill {sum(tally.kills.values())}: {told}{', one half-written' if half else ''}", flush=True)
        tally.before_any_checkpoint += not steps
        tally.saved_on_request += codes[struck.number] == RESUMABLE
        others = [code for number, code in enumerate(codes) if number != struck.number]
        tally.by_us += None in others
        tally.by_themselves += bool(others) and None not in others
        allowed = {steps[-1] if steps else None}
        if len(steps) > 1 and rng.random() < DAMAGED:
            damage(run, rng)
            tally.damaged += 1
            allowed |= {steps[-2]}


def _check(run: Run, codes: list[int | None], struck: Struck | None, allowed: set[int | None], tally: Tally) -> None:
    """Notes where the processes went on from; a loss for a wrong place, a wrong exit code or a traceback."""
    text, resumed = run.log().read_text(), run.resumed_from()
    for number, (code, may) in enumerate(zip(codes, _codes(run, codes, struck), strict=True)):
        log = run.log(number).read_text()
        if code not in may:
            what = f"exit code {code}" if code is not None else f"no end within {LONGEST:.0f} s"
            tally.losses.append(f"{run.log(number)}: {what} after {struck or 'no signal'}")
        if "Traceback" in log or "Exception ignored" in log:
            tally.losses.append(f"{run.log(number)}: a traceback")
    if struck is not None and codes[struck.number] == RESUMABLE and f"stopped after step {run.steps()[-1]} of" not in text:
        tally.losses.append(f"{run.log()}: stopped on request, and the newest checkpoint is of step {run.steps()[-1]}")
    got_so_far = resumed is not None or "compiling the training step" in text
    if got_so_far and resumed not in allowed:
        tally.losses.append(f"{run.log()}: went on from {resumed}, not from {' or '.join(map(str, sorted(allowed, key=str)))}")
    if resumed is not None:
        tally.resumed.append(resumed)
        tally.fallen_back += len(allowed) > 1 and "is damaged (" in text


def _codes(run: Run, codes: list[int | None], struck: Struck | None) -> list[set[int | None]]:
    """The exit codes that each process may have."""
    if struck is None:
        return [{0}] * len(codes)
    own: set[int | None] = {-signal.SIGKILL} if struck.signal == signal.SIGKILL else {RESUMABLE, 0}
    if struck.signal == signal.SIGTERM and (not run.has_begun() or FINISHED.search(run.log().read_text())):
        own |= {-signal.SIGTERM}  # before its handlers are there, and after, a signal ends a Python process like any other
    # told to stop, one makes all of them save; dead, it leaves others that notice, or that JAX aborts
    others: set[int | None] = {RESUMABLE, 0}
    if codes[struck.number] not in (RESUMABLE, 0):
        others |= {-signal.SIGABRT} if run.has_begun() else {-signal.SIGABRT, None}
    return [own if number == struck.number else others for number in range(len(codes))]


def differences(run: Run, whole: Run, *, steps: int) -> list[str]:
    """What is not as in the uninterrupted run."""
    found = []
    if [line["step"] for line in lines(run.folder)] != list(range(steps + 1)):
        found.append(f"{run.folder}: a step is missing or there twice")
    for name in ("metrics.jsonl", "responses.jsonl"):
        if without_times(lines(run.folder, name)) != without_times(lines(whole.folder, name)):
            found.append(f"{run.folder / name}: differs")
    for path in sorted((whole.folder / "evaluations").iterdir()):
        ours = run.folder / "evaluations" / path.name
        if not ours.is_file() or (path.suffix == ".jsonl" and ours.read_bytes() != path.read_bytes()):
            found.append(f"{ours}: differs")
    if run.steps()[-1:] != [steps] or arrays(run, steps) != arrays(whole, steps):
        found.append(f"{run.checkpoints}: the last checkpoint differs")
    return found


def arrays(run: Run, step: int) -> dict[str, tuple]:
    """Every array of a checkpoint, as its bytes."""
    from saved import saved_arrays

    found = {
        (item, name): x for item in ("state", "rollouts", "feedback") for name, x in saved_arrays(run.folder, step, item).items()
    }
    return {place: (str(x.dtype), x.shape, x.tobytes()) for place, x in found.items()}


def campaign(folder: Path, *, kills: int, seed: int, steps: int, processes: int) -> Tally:
    path, cache = folder / "config.yaml", folder / "cache"
    path.write_text(yaml.safe_dump(config(folder, steps=steps)))
    rng, tally = random.Random(seed), Tally()
    whole, life = Run(folder / "whole", path, cache, processes=processes), 0.0
    for _ in range(2):  # the second finds everything compiled, as those that are killed do
        shutil.rmtree(whole.folder, ignore_errors=True)
        started = time.monotonic()
        with whole.start() as pod:
            if any(ended(whole, pod, None)):
                raise SystemExit(f"the uninterrupted run failed:\n{pod.told()}")
        life = time.monotonic() - started
    print(f"an uninterrupted run takes {life:.1f} s; the campaign is in {folder}", flush=True)
    try:
        while sum(tally.kills.values()) < kills and not tally.losses:
            tally.runs += 1
            run = Run(folder / f"run{tally.runs}", path, cache, processes=processes)
            torment(run, rng, tally, kills=kills, life=life)
            tally.losses += [] if tally.losses else differences(run, whole, steps=steps)
            print(f"run {tally.runs}: finished by process {run.starts}, {len(tally.losses)} losses", flush=True)
            if not tally.losses:
                shutil.rmtree(run.folder)
    except KeyboardInterrupt:
        print("stopped; so far:", file=sys.stderr)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="stop after so many kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=25, help="of each run (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=1, help="of each run, with a device each (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="a new or empty folder to work in, which is kept (default: a temporary one)")
    options = parser.parse_args()
    if options.kills < 1 or options.steps < 1:
        parser.error("--kills and --steps are 1 or more")
    if options.processes not in (1, 2, 4):
        parser.error("--processes is 1, 2 or 4: they share 4 questions evenly")
    if options.folder is not None:
        if options.folder.exists() and (not options.folder.is_dir() or any(options.folder.iterdir())):
            parser.error(f"--folder {options.folder} is not an empty folder")
        options.folder.mkdir(parents=True, exist_ok=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="jaxselftrain-faults-"))
    tally = campaign(folder.absolute(), kills=options.kills, seed=options.seed, steps=options.steps, processes=options.processes)
    print(f"\n{tally.told()}")
    for loss in tally.losses:
        print(f"LOSS {loss}", file=sys.stderr)
    if not tally.losses and options.folder is None:
        shutil.rmtree(folder)
    return 1 if tally.losses else 0


if __name__ == "__main__":
    sys.exit(main())
