"""Takes rows of a source, gives Questions, which hold no answer, and the order in which training draws them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from jaxselftrain.errors import UserError
from jaxselftrain.sections import Questions
from jaxselftrain.sources import Row, as_text, is_missing, read_rows, value_at

_ABSENT = object()


@dataclass(frozen=True)
class Question:
    """What a model is asked. `messages` are the (role, content) pairs of a prompt in chat layout, `text` its last user's."""

    id: str
    text: str
    messages: tuple[tuple[str, str], ...] | None = None


def load_questions(config: Questions) -> list[Question]:
    """The questions of `config`'s source, in its order; the answer field is not looked at.

    Raises UserError naming the row: no question, not text, an id seen before.
    """
    return [question for _, question in questions_with_rows(config)]


def questions_with_rows(config: Questions) -> Iterator[tuple[Row, Question]]:
    """Each row with its Question: the one place where ids are given, so that gold answers find theirs. Errors as above."""
    first_with: dict[str, str] = {}
    for row in read_rows(config):
        question = _question(row, config)
        if question.id in first_with:
            raise UserError(
                f"id {question.id} stands twice: {first_with[question.id]} and {row.where}; ids must differ "
                "(rows without an id get one from their text, so equal questions need ids of their own)"
            )
        first_with[question.id] = row.where
        yield row, question


def without_overlap(training: Sequence[Question], held_out: Sequence[Question]) -> tuple[list[Question], int]:
    """(training questions whose text is not held out, how many were removed); runs of white space count as one blank."""
    out = {_plain(question.text) for question in held_out}
    kept = [question for question in training if _plain(question.text) not in out]
    return kept, len(training) - len(kept)


class QuestionOrder:
    """An endless stream of question indices: every epoch a new shuffle of all `count`, none left out.

    Equal (count, seed) give equal streams, and what comes at a place follows from that number alone, so it is all that a
    checkpoint keeps. Batches run across the ends of epochs.
    """

    def __init__(self, count: int, seed: int):
        import grain  # here, because it imports JAX where JAX is installed, and reading questions needs none

        self._stream = grain.MapDataset.range(count).seed(seed).shuffle().repeat()

    def take(self, first: int, count: int) -> list[int]:
        """The indices of the `count` questions from place `first` of the stream on."""
        return [int(self._stream[first + place]) for place in range(count)]


def _plain(text: str) -> str:
    return " ".join(text.split())


def _question(row: Row, config: Questions) -> Question:
    name = config.fields.question
    value = value_at(row.values, name, absent=_ABSENT)
    if is_missing(value):
        raise UserError(f"{row.where}: field {name} (questions.fields.question) is null")
    if value is _ABSENT:
        raise UserError(f"{row.where}: there is no field {name} (questions.fields.question); it has {', '.join(row.values)}")
    if isinstance(value, list | tuple):
        messages = tuple(_message(part, f"{row.where}: field {name}, message {index}") for index, part in enumerate(value))
        asked = [content for role, content in messages if role == "user"]
        if not asked:
            raise UserError(f"{row.where}: field {name} holds no message of role user")
        text = asked[-1]
    else:
        messages, text = None, as_text(value, row.where, name)
    if not text.strip():
        raise UserError(f"{row.where}: field {name} is empty")
    given = value_at(row.values, config.fields.id) if config.fields.id else None
    own_id = "" if is_missing(given) else as_text(given, row.where, str(config.fields.id)).strip()
    return Question(id=own_id or _content_id(text, messages), text=text, messages=messages)


def _message(part: Any, where: str) -> tuple[str, str]:
    if not isinstance(part, dict) or not isinstance(part.get("role"), str) or part.get("content") is None:
        raise UserError(f"{where} must have a role and a content")
    return part["role"], as_text(part["content"], where, "content")


def _content_id(text: str, messages: tuple[tuple[str, str], ...] | None) -> str:
    content = text if messages is None else json.dumps(messages)
    return hashlib.blake2b(content.encode("utf-8"), digest_size=8).hexdigest()
