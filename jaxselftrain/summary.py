"""Takes a finished run folder, gives summary.json, a table for the terminal and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxselftrain.errors import UserError
from jaxselftrain.metrics import read_metrics
from jaxselftrain.plots import HELD_OUT, TRAINING, plot_run
from jaxselftrain.run_folder import EVALUATIONS, SUMMARY, read_config, replace_text
from jaxselftrain.statistics import render

PICTURE = "picture.png"


def write_summary(folder: Path, *, compiled: dict[str, Any], memory: dict[str, float]) -> dict[str, Any]:
    """summary.json: held-out metrics before and after (empty without an evaluation after step 0), and what the run cost.

    `model_collapse_step` is the first step with a reward accuracy below 1% (Model Collapse Step, arXiv 2603.08660), null where
    there is none; it is absent where reward accuracy is not measured.
    `seconds` is the wall time of all the processes that worked on the run, `split` sums the seconds of its logged steps;
    `compiled` (times and seconds of each program) and `peak_memory_gib` are of the process that finished it.
    """
    lines = read_metrics(folder)
    evaluated = [line for line in lines if "heldout/avg" in line]
    last = lines[-1] if lines else {}
    summary: dict[str, Any] = {"steps": int(last.get("step", 0)), "seconds": round(last.get("elapsed_seconds", 0.0), 1)}
    for name, line in (("before", evaluated[:1]), ("after", evaluated[1:][-1:])):
        summary[name] = {key.removeprefix("heldout/"): value for key, value in (line[0] if line else {}).items() if "/" in key}
    rewarded = [(int(line["step"]), line["reward_accuracy"]) for line in lines if "reward_accuracy" in line]
    if rewarded:  # 1%: arXiv 2603.08660
        summary["model_collapse_step"] = next((step for step, accuracy in rewarded if accuracy < 0.01), None)
    times = ("device_seconds", "voter_seconds", "refill_seconds", "host_seconds", "heldout/seconds")
    summary["split"] = {name: round(sum(line.get(name, 0.0) for line in lines), 2) for name in times}
    summary |= {"compiled": compiled, "peak_memory_gib": memory}
    replace_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def show_summary(folder: Path) -> None:
    """Prints held-out results before and after, draws the picture, and says where things are."""
    config, console = read_config(folder), Console()
    lines = read_metrics(folder)
    evaluated = [int(line["step"]) for line in lines if "heldout/avg" in line]
    if evaluated:
        files = {step: folder / EVALUATIONS / f"step_{step:06d}.json" for step in (evaluated[0], evaluated[-1])}
        columns = {f"step {step}": _read_json(file) for step, file in files.items() if file.is_file()}
        title = f"held-out questions, k = {config.evaluate.samples}, reward: {config.reward_name}"
        console.print(render(columns, title=title))
    if any(name in line for line in lines[1:] for name in (*TRAINING, *HELD_OUT)):  # supervised steps alone have neither
        plot_run({config.reward_name: folder}, folder / PICTURE, title=f"{folder.name}: reward from {config.reward_name}")
        print(f"picture: {folder / PICTURE}")
    print(f"run folder: {folder}")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{file} is damaged; run `jaxselftrain evaluate` on the run again") from None
