"""Takes the command line of `jaxselftrain report`, gives the page, once or again and again while the runs train."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from jaxselftrain.metrics import METRICS_FILE
from jaxselftrain.report.page import write_report
from jaxselftrain.report.runs import is_finished, stamp
from jaxselftrain.run_folder import CONFIG

FOLDER = "report"  # inside the run; of several runs, in the current folder


def run_report(*, runs: Sequence[Path], out: Path | None, watch: bool, seconds: int) -> None:
    """`jaxselftrain report`. Raises UserError for what is no run, or has no step yet and is not watched, and for a bad `out`."""
    out = out or (runs[0] / FOLDER if len(runs) == 1 else Path(FOLDER))
    if watch:
        _watch(runs, out, seconds)
    else:
        print(f"report: {write_report(runs, out, reload_seconds=None)}")


def _watch(runs: Sequence[Path], out: Path, seconds: int) -> None:
    """Makes the page anew whenever a run has written something, until all have finished or Ctrl-C."""
    seen: list[tuple] | None = None
    try:
        while True:
            now, finished = [stamp(run) for run in runs], all(is_finished(run) for run in runs)
            if now != seen and _begun(runs):
                page = write_report(runs, out, reload_seconds=None if finished else seconds)
                if seen is None:
                    print(
                        f"report: {page}" + ("" if finished else "; made anew as the run goes on, Ctrl-C ends that"), flush=True
                    )
                seen = now
            if finished and now == seen:
                return
            time.sleep(seconds)
    except KeyboardInterrupt:
        if seen is not None:  # the page must not go on loading itself
            print(f"\nreport: {write_report(runs, out, reload_seconds=None)}")


def _begun(runs: Sequence[Path]) -> bool:
    """Whether there is something to show of each; a folder that is no run is for `write_report` to refuse."""
    for run in runs:
        metrics = run / METRICS_FILE
        if (run / CONFIG).is_file() and not (metrics.is_file() and metrics.stat().st_size):
            return False
    return True
