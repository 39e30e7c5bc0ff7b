"""A small model, questions and a config on disk, and a way to train on them in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import yaml
from small_models import save_folder, torch_model

TIMES = ("device_seconds", "voter_seconds", "refill_seconds", "host_seconds", "heldout/seconds", "elapsed_seconds")
TIMINGS = (*TIMES, "tokens_per_second")


def make_model(folder: Path) -> Path:
    return save_folder(torch_model("llama_tied"), folder)


def write_questions(path: Path, count: int, *, start: int = 0, answer=lambda i: str(i + 1)) -> Path:
    rows = [{"id": f"q{i}", "question": f"{i} + 1 =", "answer": answer(i)} for i in range(start, start + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def make_home(folder: Path, *, questions: int, held_out: int, first_held_out: int, **sections) -> Path:
    """`folder` with a model, training and held-out questions, and config.yaml."""
    make_model(folder / "model")
    write_questions(folder / "train.jsonl", questions)
    write_questions(folder / "held_out.jsonl", held_out, start=first_held_out)
    write_config(folder, **sections)
    return folder


def make_run(folder: Path, **sections) -> Path:
    """The run folder of two finished steps, with held-out questions."""
    make_home(folder, **{"questions": 8, "held_out": 6, "first_held_out": 20, "train": {"steps": 2}} | sections)
    code, _, err = command("train", str(folder / "config.yaml"))
    assert code == 0, err
    return folder / "run"


def write_config(folder: Path, **sections) -> Path:
    """A config of a run that takes seconds; `sections` are laid over it, one level deep."""
    values: dict = {
        "model": {"path": str(folder / "model")},
        "questions": {"source": "jsonl", "path": str(folder / "train.jsonl")},
        "prompt": {"few_shot": "1 + 1 = 2\n"},
        "rollout": {"questions": 4, "max_tokens": 6, "stop": ["\n"]},
        "answer": {"format": "regex", "pattern": "(.)"},
        "vote": {"samples": 4},
        "optimizer": {"learning_rate": 1e-3},
        "mesh": {"data": 1},
        "evaluate": {
            "questions": {"source": "jsonl", "path": str(folder / "held_out.jsonl")},
            "every": 3,
            "samples": 2,
            "batch": 4,
        },
        "checkpoint": {"every": 2},
        "train": {"steps": 6, "folder": str(folder / "run")},
        "runtime": {"compilation_cache": False},  # the one of all tests, which the environment names, is taken
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


def environment(*, devices: int = 1) -> dict[str, str]:
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(Path(__file__).parents[1])}


def start(*arguments: str, devices: int = 1, **options) -> subprocess.Popen:
    """The command line in a process of its own, with so many simulated devices."""
    command = [sys.executable, "-m", "jaxselftrain.cli", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=environment(devices=devices), **pipes, **options)


def command(*arguments: str, timeout: float = 300) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of one command line."""
    process = start(*arguments)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_for_step(folder: Path, step: int, process: subprocess.Popen, *, timeout: float = 120) -> None:
    """Returns once metrics.jsonl holds the step."""
    limit = time.monotonic() + timeout
    while time.monotonic() < limit:
        if process.poll() is not None:
            raise AssertionError(f"ended early with {process.returncode}: {process.communicate()[1][-2000:]}")
        if any(line["step"] >= step for line in lines(folder)):
            return
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    raise AssertionError(f"step {step} was not reached in {timeout} s")


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    path = folder / name
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def without_times(rows: list[dict]) -> list[dict]:
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in rows]


def final_weights(folder: Path, step: int = 6) -> dict[str, np.ndarray]:
    """The weights in the checkpoint of a step."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager((folder / "checkpoints").absolute()) as manager:
        restored = manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    return {name: np.asarray(value) for name, value in restored.state["params"].items()}
