"""Takes rows of a source, gives the AnswerKey: gold answers by question id, for metrics and evaluation alone."""

from __future__ import annotations

from collections.abc import Mapping

from jaxselftrain import answers
from jaxselftrain.errors import UserError
from jaxselftrain.questions import questions_with_rows
from jaxselftrain.sections import Questions
from jaxselftrain.sources import as_text, is_missing, value_at

_ABSENT = object()


class AnswerKey:
    """Gold answers by question id. Training questions never carry theirs; who may import this module is tested."""

    def __init__(self, gold: Mapping[str, str]):
        self._gold = dict(gold)
        self._keys: dict[str, str | None] = {}

    def __len__(self) -> int:
        return len(self._gold)

    def gold(self, id: str) -> str | None:
        """The gold answer as the source writes it, or None where it has none."""
        return self._gold.get(id)

    def is_right(self, id: str, key: str | None) -> bool | None:
        """Whether an answer's key equals the gold answer's; None where there is no gold to compare with. No answer is wrong."""
        if id not in self._keys:
            gold = self._gold.get(id)
            self._keys[id] = None if gold is None else answers.answer_key(gold)
        return None if self._keys[id] is None else self._keys[id] == key


def load_answer_key(config: Questions) -> AnswerKey:
    """The gold answers of `config`'s source; empty where it has none. Of worked solutions (GSM8K's) it takes what follows ####.

    Raises UserError as `load_questions`, for an answer that is neither text nor a number, and where no row has the field, unless
    it is the default one: nobody asked for that.
    """
    gold: dict[str, str] = {}
    name = config.fields.answer
    if name is None:
        return AnswerKey(gold)
    found = name == type(config.fields).model_fields["answer"].default
    for row, question in questions_with_rows(config):
        value = value_at(row.values, name, absent=_ABSENT)
        if value is _ABSENT:
            continue
        found = True
        text = "" if is_missing(value) else as_text(value, row.where, name).rpartition("####")[2].strip()
        if text:
            gold[question.id] = text
    if not found:
        raise UserError(
            f"questions.fields.answer = {name}: no row of {config.path or config.source} has that field; "
            "name the one with the gold answer, or null when there is none"
        )
    return AnswerKey(gold)
