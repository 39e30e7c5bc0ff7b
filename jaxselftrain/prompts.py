"""Takes Questions, gives prompt tokens, by few-shot text or the tokenizer's chat template, padded to one length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from jaxselftrain.errors import UserError
from jaxselftrain.questions import Question
from jaxselftrain.sections import Prompt

if TYPE_CHECKING:
    from jaxselftrain.model.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """Questions kept, the prompt tokens of each, and the ids of those dropped as too long."""

    questions: list[Question]
    tokens: list[list[int]]
    dropped_ids: list[str]

    def dropped(self) -> str:
        """How many were dropped, and the first of them, as a sentence."""
        count = len(self.dropped_ids)
        return f"{count} prompts are longer than prompt.max_tokens and were dropped: {first_of(self.dropped_ids)}"


def encode_prompts(questions: Sequence[Question], *, tokenizer: Tokenizer, prompt: Prompt, too_long: str) -> Encoded:
    """The prompt tokens of every question; those of more than `prompt.max_tokens` are dropped or refused, as `too_long` says.

    Raises UserError when `too_long` is "error" and one is too long, when no question is left, and when the chat format is
    asked of a tokenizer without a chat template.
    """
    kept, tokens, dropped = [], [], []
    for question in questions:
        if prompt.format == "chat":
            ids = tokenizer.chat(_messages(question, prompt), prompt.chat_template_arguments)
        else:
            ids = tokenizer.encode(few_shot_text(question, prompt))
        if len(ids) > prompt.max_tokens:
            dropped.append(question.id)
        else:
            kept.append(question)
            tokens.append(ids)
    if dropped and too_long == "error":
        raise UserError(
            f"{len(dropped)} of {len(questions)} prompts are longer than prompt.max_tokens = {prompt.max_tokens}, "
            f"ids {first_of(dropped)}; raise it or set questions.too_long=drop"
        )
    if not kept:
        because = f": all {len(dropped)} prompts are longer than prompt.max_tokens = {prompt.max_tokens}" if dropped else ""
        raise UserError(f"no question is left{because}")
    return Encoded(kept, tokens, dropped)


def few_shot_text(question: Question, prompt: Prompt) -> str:
    """The prompt as plain text: examples, then the template around the question and the instruction."""
    # replace, not format: questions and templates are full of LaTeX's braces
    return prompt.few_shot + prompt.template.replace("{question}", question.text + prompt.instruction)


def first_of(ids: Sequence[str]) -> str:
    """The first ids of a list, for a message: `a, b, c ...`."""
    return ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")


def prompt_width(tokens: Sequence[Sequence[int]]) -> int:
    """The one prompt length of a run: the longest of `tokens`, rounded up to 16, 32 or a multiple of 64."""
    longest = max(len(ids) for ids in tokens)
    return next((width for width in (16, 32) if longest <= width), -(-longest // 64) * 64)


def pad(tokens: Sequence[Sequence[int]], width: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens_QC, length_Q), int32: each prompt from the left, 0 behind its end. ValueError when one is longer than `width`."""
    tokens_QC = np.zeros((len(tokens), width), np.int32)
    length_Q = np.array([len(ids) for ids in tokens], np.int32)
    for row_C, ids in zip(tokens_QC, tokens, strict=True):
        if len(ids) > width:
            raise ValueError(f"a prompt of {len(ids)} tokens does not fit the width {width}")
        row_C[: len(ids)] = ids
    return tokens_QC, length_Q


def _messages(question: Question, prompt: Prompt) -> list[tuple[str, str]]:
    """The conversation of a question: the configured system message first, the instruction after the last user's words."""
    messages = list(question.messages or [("user", question.text)])
    last = max(index for index, (role, _) in enumerate(messages) if role == "user")
    messages[last] = ("user", messages[last][1] + prompt.instruction)
    if prompt.system is None:
        return messages
    return [("system", prompt.system), *(messages[1:] if messages[0][0] == "system" else messages)]
