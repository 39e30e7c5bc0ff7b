"""Takes run folders or evaluations, gives one table: what each measured, what changed, and whether that may be chance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
from rich.markup import escape
from rich.table import Table

from jaxselftrain.errors import UserError
from jaxselftrain.run_folder import EVALUATIONS
from jaxselftrain.statistics import BOOTSTRAP_SEED, CONFIDENCE, Threshold, paired_difference, paired_p_value

MEASURES = {"avg": "avg@k", "maj": "maj@k", "pass": "pass@k", "greedy": "greedy"}
COLUMNS = ("run", "measure", "before", "after", "change", "p")
CAPTION = (
    f"percent of questions; in brackets the {CONFIDENCE:.0%} interval of the change, paired by question; p: how often chance "
    "alone would change as much"
)


def comparison(given: Sequence[Path]) -> Table:
    """A rich table with a row per comparison and measure: two values and their difference, in percent.

    Each run folder's last held-out evaluation is compared with its first one. Evaluations (the .jsonl files that
    `jaxselftrain evaluate --out` writes) are compared with the first of them. The interval resamples questions and takes each
    question's own change, so how hard a question is cancels; p is that of a permutation test on the same changes.

    Raises UserError when a folder does not hold two evaluations, a file is none, or they are about different questions.
    """
    files = [path for path in given if path.is_file()]
    if files and len(files) < len(given):
        raise UserError(f"compare run folders or evaluations, not both: {files[0]} is a file")
    if len(files) == 1:
        raise UserError(f"{files[0]} is one evaluation: name another to compare it with")
    pairs = [(str(file), files[0], file) for file in files[1:]] or [(str(run), *_ends(run)) for run in given]
    columns = ("evaluation", "measure", str(files[0]), "its own", "change", "p") if files else COLUMNS
    table = Table(caption=CAPTION)
    for name in columns:
        table.add_column(escape(name), justify="left" if name in ("run", "evaluation", "measure") else "right")
    for label, first, last in pairs:
        _add(table, label, first, last)
    return table


def _add(table: Table, label: str, first: Path, last: Path) -> None:
    before, after = read_scores(first), read_scores(last)
    if before.keys() != after.keys():
        raise UserError(f"{first} and {last} are about different questions, so their change cannot be told")
    shown = [name for name in MEASURES if all(name in score for score in (*before.values(), *after.values()))]
    for name in shown:
        first_Q, last_Q = (100 * np.asarray([score[name] for _, score in sorted(part.items())]) for part in (before, after))
        change = paired_difference(first_Q, last_Q, seed=BOOTSTRAP_SEED)
        interval = f"{change['value']:+.1f} \\[{change['low']:+.1f}, {change['high']:+.1f}]"
        p = paired_p_value(first_Q, last_Q, seed=BOOTSTRAP_SEED)
        means = (f"{values_Q.mean():.1f}" for values_Q in (first_Q, last_Q))
        row = (escape(label) if name == shown[0] else "", MEASURES[name], *means, interval)
        table.add_row(*row, "< 0.001" if p < 0.001 else f"{p:.3f}")
    table.add_section()


def _ends(run: Path) -> tuple[Path, Path]:
    """The first and the last evaluation inside a run."""
    files = sorted((run / EVALUATIONS).glob("step_??????.jsonl"))
    if len(files) < 2:
        raise UserError(f"{run} holds no held-out evaluation before and after training: it is no run folder, or has not finished")
    return files[0], files[-1]


def read_scores(file: Path) -> dict[str, dict[str, float]]:
    """Question id -> its score in each measure."""
    try:
        # not splitlines, which would also break at U+2028, and responses may hold anything
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n")]
        found = {row["id"]: {name: float(score) for name, score in row["scores"].items()} for row in rows}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{file} cannot be read as an evaluation; run the evaluation again") from None
    if not all(found.values()):
        raise UserError(f"{file} cannot be read as an evaluation; run the evaluation again")
    return found


def read_thresholds(file: Path) -> list[Threshold]:
    """Accuracy over agreement, as an evaluation leaves it beside its responses."""
    beside = file.with_suffix(".thresholds.json")
    try:
        rows = json.loads(beside.read_text("utf-8"))
        return [cast(Threshold, {name: float(row[name]) for name in Threshold.__annotations__}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{beside} cannot be read; run the evaluation again") from None
