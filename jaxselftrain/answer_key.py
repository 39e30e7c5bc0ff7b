"""Takes rows of a source, gives the AnswerKey: gold answers by question id, for metrics and evaluation alone."""

from __future__ import annotations

from collections.abc import Mapping

from jaxselftrain import answers
from jaxselftrain.config import Questions
from jaxselftrain.questions import questions_with_rows
from jaxselftrain.sources import as_text, value_at


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

    Raises UserError as `load_questions`, and for an answer that is neither text nor a number.
    """
    gold = {}
    if config.fields.answer is not None:
        for row, question in questions_with_rows(config):
            value = value_at(row.values, config.fields.answer)
            text = "" if value is None else as_text(value, row.where, config.fields.answer).rpartition("####")[2].strip()
            if text:
                gold[question.id] = text
    return AnswerKey(gold)
