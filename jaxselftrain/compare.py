"""Takes run folders, gives one table: what each measured before and after training, and whether the change may be chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxselftrain.errors import UserError
from jaxselftrain.run_folder import EVALUATIONS
from jaxselftrain.statistics import BOOTSTRAP_SEED, CONFIDENCE, paired_difference

MEASURES = {"avg": "avg@k", "maj": "maj@k", "pass": "pass@k", "greedy": "greedy"}


def comparison(runs: Sequence[Path]) -> Table:
    """A rich table with a row per run and measure: before, after, and the change with its paired bootstrap interval, in percent.

    Before and after are a run's first and last held-out evaluation. The interval resamples questions and takes each
    question's own change, so how hard a question is cancels. Raises UserError when a folder does not hold two evaluations.
    """
    table = Table(
        caption=f"percent of held-out questions; in brackets the {CONFIDENCE:.0%} interval of the change, paired by question"
    )
    for name in ("run", "measure", "before", "after", "change"):
        table.add_column(name, justify="left" if name in ("run", "measure") else "right")
    for run in runs:
        before, after = _scores(run)
        shown = [name for name in MEASURES if all(name in score for score in (*before.values(), *after.values()))]
        for name in shown:
            first_Q, last_Q = (100 * np.asarray([score[name] for _, score in sorted(part.items())]) for part in (before, after))
            change = paired_difference(first_Q, last_Q, seed=BOOTSTRAP_SEED)
            interval = f"{change['value']:+.1f} \\[{change['low']:+.1f}, {change['high']:+.1f}]"
            label = escape(str(run)) if name == shown[0] else ""
            table.add_row(label, MEASURES[name], f"{first_Q.mean():.1f}", f"{last_Q.mean():.1f}", interval)
        table.add_section()
    return table


def _scores(run: Path) -> list[dict[str, dict[str, float]]]:
    """[before, after]: question id -> its score in each measure."""
    files = sorted((run / EVALUATIONS).glob("step_??????.jsonl"))
    if len(files) < 2:
        raise UserError(f"{run} holds no held-out evaluation before and after training: it is no run folder, or has not finished")
    found = []
    for file in (files[0], files[-1]):
        try:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            found.append({row["id"]: row["scores"] for row in rows})
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{file} cannot be read as an evaluation; run the evaluation again") from None
    if found[0].keys() != found[1].keys():
        raise UserError(f"{files[0]} and {files[-1]} are about different questions, so their change cannot be told")
    return found
