"""Takes a finished run folder, gives summary.json, a table for the terminal and a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from jaxselftrain.metrics import read_metrics
from jaxselftrain.plots import plot_run
from jaxselftrain.run_folder import EVALUATIONS, read_config, replace_text
from jaxselftrain.statistics import render

SUMMARY, PICTURE = "summary.json", "picture.png"


def write_summary(folder: Path, *, seconds: float) -> dict[str, Any]:
    """summary.json: held-out metrics before and after, and seconds.

    `seconds` is the wall time of the process that finished the run; `split` sums the seconds of all its steps.
    """
    lines = read_metrics(folder)
    evaluated = [line for line in lines if "heldout/avg" in line]
    summary: dict[str, Any] = {"steps": int(lines[-1]["step"]) if lines else 0, "seconds": round(seconds, 1)}
    for name, line in (("before", evaluated[:1]), ("after", evaluated[-1:])):
        summary[name] = {key.removeprefix("heldout/"): value for key, value in (line[0] if line else {}).items() if "/" in key}
    times = ("device_seconds", "voter_seconds", "host_seconds", "heldout/seconds")
    summary["split"] = {name: round(sum(line.get(name, 0.0) for line in lines), 2) for name in times}
    replace_text(folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def show_summary(folder: Path) -> None:
    """Prints held-out results before and after, draws the picture, and says where things are."""
    config, console = read_config(folder), Console()
    lines = read_metrics(folder)
    evaluated = [int(line["step"]) for line in lines if "heldout/avg" in line]
    if evaluated:
        columns = {
            f"step {step}": json.loads((folder / EVALUATIONS / f"step_{step:06d}.json").read_text(encoding="utf-8"))
            for step in dict.fromkeys((evaluated[0], evaluated[-1]))
        }
        title = f"held-out questions, k = {config.evaluate.samples}, reward: {config.reward.source}"
        console.print(render(columns, title=title))
    if len(lines) > 1:
        plot_run({config.reward.source: folder}, folder / PICTURE, title=f"{folder.name}: reward from {config.reward.source}")
        print(f"picture: {folder / PICTURE}")
    print(f"run folder: {folder}")
