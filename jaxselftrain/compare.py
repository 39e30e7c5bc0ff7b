"""Takes finished run folders, gives one table: what each measured before and after training, and the difference."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from jaxselftrain.errors import UserError

SUMMARY = "summary.json"


def comparison(runs: Sequence[Path]) -> str:
    """A text table with a line per run and measure: before, after, change in percentage points.

    The measures are those that a run's summary holds both before and after (avg, maj, greedy, ...), as a share of 0 to 1.
    Raises UserError when a folder holds no readable summary.
    """
    lines = [("run", "measure", "before", "after", "change")]
    for run in runs:
        before, after = _summary(run)
        for measure in before:
            first, last = before[measure], after.get(measure)
            if isinstance(first, int | float) and isinstance(last, int | float):
                lines.append((str(run), measure, f"{first:.3f}", f"{last:.3f}", f"{100 * (last - first):+.1f} points"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    rows.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(rows) + "\n"


def _summary(run: Path) -> tuple[dict, dict]:
    path = run / SUMMARY
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        before, after = summary["before"], summary["after"]
    except FileNotFoundError:
        raise UserError(f"{run} holds no {SUMMARY}: it is no run folder, or its run has not finished") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} cannot be read as a run's summary; let the run finish again") from None
    if not (isinstance(before, dict) and isinstance(after, dict)):
        raise UserError(f"{path} holds no measurements before and after: the run had no evaluate.questions with answers")
    return before, after
