"""Takes a run's responses.jsonl, gives the majority share of every question in it, and a few questions to browse in full.

The file may be many gigabytes: it is read line by line, twice, and only what is shown is kept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxselftrain.errors import UserError
from jaxselftrain.metrics import RESPONSES_FILE, each_response
from jaxselftrain.report.text import cut

CLASSES, SAMPLES = 12, 64  # shown of one question
QUESTION, ANSWER, TEXT = 2000, 200, 2000  # characters shown of each
PAGE = 3_000_000  # characters of responses on the whole page; with more, less is shown of each
LEAST = 160  # but never less than this


@dataclass(frozen=True)
class Sample:
    """One response."""

    answer: str | None
    reward: float
    tokens: int
    truncated: bool
    text: str
    omitted: int  # characters of the text that are left out


@dataclass(frozen=True)
class Asked:
    """One question at one step."""

    step: int
    id: str
    question: str
    question_omitted: int
    majority: str | None
    share: float
    classes: list[tuple[str, int]]
    classes_omitted: int
    samples: list[Sample]
    samples_omitted: int

    @property
    def votes(self) -> int:
        """Of all samples, shown or not."""
        return len(self.samples) + self.samples_omitted


def read_shares(folder: Path) -> list[tuple[int, float]]:
    """(step, majority share) of every logged question. Raises UserError when a line has none."""
    try:
        found = [(int(row["step"]), float(row["share"])) for row in each_response(folder)]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _damaged(folder) from None
    if not all(math.isfinite(share) for _, share in found):
        raise _damaged(folder)
    return found


def read_asked(folder: Path, *, total: int, most: int, of_page: float) -> list[Asked]:
    """At most `most` of the `total` logged questions, evenly over the run, with the first and the last.

    `of_page` is the part of PAGE that they may fill.

    Raises UserError when a line is not as the log writes it.
    """
    wanted = set(evenly(total, most))
    try:
        rows = [row for number, row in enumerate(each_response(folder)) if number in wanted]
        shown = sum(min(SAMPLES, len(row["samples"])) for row in rows)
        limit = int(min(TEXT, max(LEAST, PAGE * of_page / max(1, shown))))
        return [_asked(row, limit) for row in rows]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise _damaged(folder) from None


def evenly(total: int, most: int) -> list[int]:
    """At most `most` (two or more) of range(total), as even as can be, the first and the last among them."""
    if total <= most:
        return list(range(total))
    return [round(number * (total - 1) / (most - 1)) for number in range(most)]


def spelled(key: str | None) -> str | None:
    """An answer key without the letter that says what kind it is, where what follows reads as the answer does."""
    return None if key is None else re.sub(r"\A[nt]:", "", key)


def _asked(row: dict[str, Any], limit: int) -> Asked:
    question, question_omitted = cut(str(row["question"]), QUESTION)
    classes: Sequence[tuple[str, int]] = [(_brief(spelled(str(key))), int(count)) for key, count in row["classes"][:CLASSES]]
    return Asked(
        step=int(row["step"]),
        id=_brief(str(row["id"])),
        question=question,
        question_omitted=question_omitted,
        majority=None if row["majority"] is None else _brief(spelled(str(row["majority"]))),
        share=float(row["share"]),
        classes=list(classes),
        classes_omitted=max(0, len(row["classes"]) - CLASSES),
        samples=[_sample(sample, limit) for sample in row["samples"][:SAMPLES]],
        samples_omitted=max(0, len(row["samples"]) - SAMPLES),
    )


def _sample(sample: dict[str, Any], limit: int) -> Sample:
    text, omitted = cut(str(sample["text"]), limit)
    return Sample(
        answer=None if sample["answer"] is None else _brief(str(sample["answer"])),
        reward=float(sample["reward"]),
        tokens=int(sample["tokens"]),
        truncated=bool(sample["truncated"]),
        text=text,
        omitted=omitted,
    )


def _brief(text: str | None) -> str:
    begun, omitted = cut(text or "", ANSWER)
    return f"{begun}… ({omitted} more characters)" if omitted else begun


def _damaged(folder: Path) -> UserError:
    return UserError(
        f"{folder / RESPONSES_FILE} holds a line that is not as a run logs it; move the file away to report the rest"
    )
