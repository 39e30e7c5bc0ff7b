r"""Takes an answer, gives its canonical key: equal answers have equal keys.

Two answers are equal exactly when their keys are equal, so equality is transitive by construction: a chain of pairwise
"close enough" verdicts cannot join "9", "9%" and "0.09" into one class that a policy would learn to hit. Answers are
untrusted text: they are read by our own parser and never evaluated by anything else; size, depth and work are bounded
before each step, by counts and not by the clock.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from jaxselftrain.answers.arithmetic import Budget
from jaxselftrain.answers.parser import parse
from jaxselftrain.answers.statements import tree_key
from jaxselftrain.answers.tokens import MAX_PARSED, Nothing, Strange
from jaxselftrain.answers.words import choice, date, has_control_characters, is_code, is_placeholder, is_words, normal, words_key

FRAMES: Final = 500  # more than reading any answer takes: the depth of what is read is bounded, 281 is the most seen
_INTEGER = re.compile(r"-?(?:0|[1-9][0-9]{0,299})", re.ASCII)
_CLOCK = re.compile(r"(\d{1,2})(:\d\d)?(?:\s|\\[ ,;~]|~)*(?:\\(?:text|mathrm)\{)?\s*([aApP])\.?\s?[mM]\.?\s*\}?\.?", re.ASCII)
_TIME = re.compile(r"(\d{1,2}):(0[0-9])", re.ASCII)  # 6:08 is no ratio
_HEX = re.compile(r"0[xXbBoO][0-9A-Fa-f]+")
# A line's end, commas, a full stop; but not the comma of a thin space, nor "3.14...".
_TRAILING = re.compile(r"(?:(?<!\\)[,;:\s])*(?:(?<![.\\])\.)?(?:(?<!\\)\\{1,2}\s*)?\Z")


def answer_key(answer: str) -> str | None:
    r"""The canonical key of an answer, or None when it is no answer at all. docs/voter.md has the policy with examples.

    The kind stands before the first colon: n (exact real), r and c (real and complex to 100 digits), f (function), t (words,
    letters, dates), p (tuple, open interval), I (other sets of reals), z (integers without end), u (union with ends that are
    no numbers), b (set whose condition is not on its variable alone), s (set, list), L (conditions that are no one set), a
    (named values), e and i (equation, inequality up to scale), m (matrix), q (ratio, time of day), mod (congruence), and o:
    opaque, the answer's exact text, when it is not read as mathematics or words, or is too long, too deep or too large to
    compute.

    None: empty, placeholders ("?", "...", "N/A", "nan", "none", "the answer", "unknown"), control characters, 1/0. Raises
    nothing, whatever the text and however deep the caller's stack is (up to some dozen frames below Python's limit).
    """
    if _INTEGER.fullmatch(answer):
        return "n:0" if answer == "-0" else "n:" + answer
    if has_control_characters(answer):
        return None
    text = normal(answer)
    if is_placeholder(text):
        return None
    if len(text) > MAX_PARSED:
        return "o:" + text
    letter = choice(text)
    if letter is not None and letter not in "ei":
        return "t:" + letter
    return _read_key(text) if _has_room() else _on_a_stack_of_its_own(_read_key, text)


def _read_key(text: str) -> str | None:
    """The key of normalised text that needs reading. It takes some hundred frames of Python's stack at most."""
    try:
        clock = _CLOCK.fullmatch(text) if len(text) < 40 else None
        if clock is not None:
            return f"q:{clock[1]}{clock[2] or ':00'}{clock[3].lower()}m"
        time = _TIME.fullmatch(text)
        if time is not None:
            return f"q:{int(time[1])}:{time[2]}"
        day = date(text) if len(text) < 60 else None
        if day is not None:
            return "t:" + day
        if is_words(text) or is_code(text):
            return words_key(text)
        if _HEX.fullmatch(text):
            raise Strange(text)
        return tree_key(parse(_TRAILING.sub("", text)), Budget())
    except Nothing:
        return None
    except Strange:
        return "o:" + text


def _has_room() -> bool:
    """Whether the caller has left as many frames as reading may take: Python allows 1,000 in all."""
    try:
        sys._getframe(max(sys.getrecursionlimit() - FRAMES, 0))
    except ValueError:
        return True
    return False


def _on_a_stack_of_its_own(read: Callable[[str], str | None], text: str) -> str | None:
    """read(text) in a new thread, whose stack is empty; opaque where the recursion limit was set too low even for that.

    In advance, not when the stack is full: an error inside mpmath could leave a precision changed.
    """
    found: list[str | None] = ["o:" + text]

    def run() -> None:
        with suppress(RecursionError):
            found[0] = read(text)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def is_opaque(key: str) -> bool:
    """Whether a key is an answer's exact text because nothing more is known about it."""
    return key.startswith("o:")


def matches(answer: str, gold: str) -> bool:
    """Whether an answer equals the gold answer, by the same keys as in the vote; False when either is no answer."""
    key = answer_key(answer)
    return key is not None and key == answer_key(gold)
