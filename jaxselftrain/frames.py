"""Takes run folders, gives pandas frames: of their metrics, of the votes on logged questions, of the samples behind these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxselftrain.errors import UserError
from jaxselftrain.metrics import read_metrics, read_responses

if TYPE_CHECKING:
    import pandas

Folders = Mapping[str, str | Path] | Sequence[str | Path]  # label -> folder, or folders, which are their own labels


def load_runs(folders: Folders) -> pandas.DataFrame:
    """One row for each logged step of each run, indexed by (run, step); a metric that a step does not have is NaN."""
    rows = [
        {"run": run, **line, "step": int(line["step"])} for run, folder in _labelled(folders) for line in read_metrics(folder)
    ]
    return _frame(rows, ["run", "step"])


def load_votes(folders: Folders) -> pandas.DataFrame:
    """One row for each answer to each logged question, indexed by (run, step, id): question, answer, votes, share, is_majority.

    `share` is the majority's share of the question. Answers are as canonical keys.
    """
    rows = [
        {**place, "question": row["question"], "answer": answer, "votes": votes, "share": row["share"],
         "is_majority": answer == row["majority"]}
        for place, row in _responses(folders)
        for answer, votes in row["classes"]
    ]  # fmt: skip
    return _frame(rows, ["run", "step", "id"])


def load_samples(folders: Folders) -> pandas.DataFrame:
    """One row for each logged response, indexed by (run, step, id, sample): text, answer, reward, tokens, truncated."""
    rows = [
        {**place, "sample": number, **sample}
        for place, row in _responses(folders)
        for number, sample in enumerate(row["samples"])
    ]
    return _frame(rows, ["run", "step", "id", "sample"])


def _responses(folders: Folders):
    for run, folder in _labelled(folders):
        for row in read_responses(folder):
            yield {"run": run, "step": int(row["step"]), "id": row["id"]}, row


def _labelled(folders: Folders) -> list[tuple[str, Path]]:
    pairs = folders.items() if isinstance(folders, Mapping) else ((str(folder), folder) for folder in folders)
    return [(label, Path(folder)) for label, folder in pairs]


def _frame(rows: list[dict[str, Any]], index: list[str]) -> pandas.DataFrame:
    try:
        import pandas
    except ImportError:
        raise UserError("frames need the package pandas: install jaxselftrain[notebooks]") from None
    return pandas.DataFrame(rows, columns=None if rows else index).set_index(index)
