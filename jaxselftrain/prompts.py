"""Takes Questions, gives prompt tokens, by few-shot text or the tokenizer's chat template, padded to one length.

Of several processes each tokenizes its share of the questions, and tells the others how long those prompts are; after that, what
it asks itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np

from jaxselftrain.errors import UserError
from jaxselftrain.processes import gather, most_share, own_share, together
from jaxselftrain.questions import Question
from jaxselftrain.sections import Prompt

if TYPE_CHECKING:
    from jaxselftrain.model.tokenizer import Tokenizer


class Tokens(Sequence[list[int]]):
    """The prompt tokens of questions: worked out when they are first asked for, and kept.

    Asking raises UserError when the chat format is asked of a tokenizer without a chat template.
    """

    def __init__(self, questions: Sequence[Question], tokenizer: Tokenizer, prompt: Prompt):
        self.questions, self.tokenizer, self.prompt = questions, tokenizer, prompt
        self.known: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.questions)

    @overload
    def __getitem__(self, at: int) -> list[int]: ...
    @overload
    def __getitem__(self, at: slice) -> Tokens: ...
    def __getitem__(self, at):
        if isinstance(at, slice):
            return self.of(self.questions[at])
        question = self.questions[at]
        if question.id not in self.known:
            self.known[question.id] = self._worked_out(question)
        return self.known[question.id]

    def of(self, questions: Sequence[Question]) -> Tokens:
        """Those of some of the questions; what is known is known to both."""
        some = Tokens(questions, self.tokenizer, self.prompt)
        some.known = self.known
        return some

    def _worked_out(self, question: Question) -> list[int]:
        if self.prompt.format == "chat":
            return self.tokenizer.chat(_messages(question, self.prompt), self.prompt.chat_template_arguments)
        return self.tokenizer.encode(few_shot_text(question, self.prompt))


class Encoded(NamedTuple):
    """Questions kept, the prompt tokens of each, how many those are, and the ids of those dropped as too long."""

    questions: list[Question]
    tokens: Sequence[list[int]]
    length_Q: np.ndarray
    dropped_ids: list[str]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(self.length_Q.max(initial=0))

    def dropped(self) -> str:
        """How many were dropped, and the first of them, as a sentence."""
        count = len(self.dropped_ids)
        return f"{count} prompts are longer than prompt.max_tokens and were dropped: {first_of(self.dropped_ids)}"


def encode_prompts(questions: Sequence[Question], *, tokenizer: Tokenizer, prompt: Prompt, too_long: str) -> Encoded:
    """The prompts of all questions; those of more than `prompt.max_tokens` tokens are dropped or refused, as `too_long` says.

    Where there are several processes all must call this at the same time. Raises UserError, and then in all of them, when
    `too_long` is "error" and one is too long, when no question is left, and when the chat format is asked of a tokenizer without
    a chat template.
    """
    tokens, share = Tokens(questions, tokenizer, prompt), own_share(len(questions))
    lengths = together(lambda: np.asarray([len(tokens[i]) for i in share], np.int32))
    length_Q = gather(share, lengths, most=most_share(len(questions)), total=len(questions))
    fits_Q = length_Q <= prompt.max_tokens
    kept = [question for question, fits in zip(questions, fits_Q, strict=True) if fits]
    dropped = [question.id for question, fits in zip(questions, fits_Q, strict=True) if not fits]
    if dropped and too_long == "error":
        raise UserError(
            f"{len(dropped)} of {len(questions)} prompts are longer than prompt.max_tokens = {prompt.max_tokens}, "
            f"ids {first_of(dropped)}; raise it or set questions.too_long=drop"
        )
    if not kept:
        because = f": all {len(dropped)} prompts are longer than prompt.max_tokens = {prompt.max_tokens}" if dropped else ""
        raise UserError(f"no question is left{because}")
    return Encoded(kept, tokens.of(kept), length_Q[fits_Q], dropped)


def few_shot_text(question: Question, prompt: Prompt) -> str:
    """The prompt as plain text: examples, then the template around the question and the instruction."""
    # replace, not format: questions and templates are full of LaTeX's braces
    return prompt.few_shot + prompt.template.replace("{question}", question.text + prompt.instruction)


def first_of(ids: Sequence[str]) -> str:
    """The first ids of a list, for a message: `a, b, c ...`."""
    return ", ".join(ids[:5]) + (" ..." if len(ids) > 5 else "")


def prompt_width(longest: int) -> int:
    """The one prompt length of a run: that of its longest prompt, in tokens, rounded up to 16, 32 or a multiple of 64."""
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
