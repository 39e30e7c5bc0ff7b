"""Takes the text of a response, gives the final answer that it states in the configured format.

Nothing falls back to "the last number in the text": a response that does not state its answer in that format has none.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from jaxselftrain.answers.words import has_control_characters, is_placeholder, normal
from jaxselftrain.errors import UserError

if TYPE_CHECKING:  # the voter's workers start faster without pydantic
    from jaxselftrain.sections import Answer

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}]|\\\\(?!boxed|fbox)|[{}]")

# A letter as people mark it: B  (B)  [B]  B.  B)  **B**  $B$  \boxed{B}  \text{(B)}; lower case only inside brackets.
_MARKED = (
    r"(?:[*_$\s]|\\(?:boxed|text|textbf|mathrm|mathbf)\{)*(?:[(\[](?P<bracketed>[A-Za-z])[)\]]|(?P<bare>[A-Z])(?![\w'’-]))[*_$}]*"
)
_LETTER_LINE = re.compile(_MARKED + r"[.):*_$}\s]*\Z")
_CUE = re.compile(r"\b(?:answer|correct (?:option|choice))(?:\s+is\b|\s*[:=])\s*:?", re.IGNORECASE)
_LETTER_AFTER_CUE = re.compile(
    r"(?:\s*(?:option|choice)\b)?"  # the answer is option B
    + _MARKED
    + r"(?P<hedge>\s*(?:,|/|&|\bor\b|\band\b)[\s*_$]*(?:or\s+|and\s+)?[(\[]?[A-HJ-Z](?![\w'’-]))?"
    + r"(?P<goes_on>\s+(?!because\b|since\b|as\b)[a-z])?"
)


def extract(text: str, answer: Answer) -> str | None:
    r"""The final answer that `text` states in the configured format, or None when it states none.

    boxed       the content of the last \boxed{} or \fbox{} (of the outermost when they are nested); None when that
                box is empty or never closed
    hash        what follows the last #### up to the end of its line
    first_line  the first line that is not blank
    last_line   the last line that is not blank
    letter      a choice letter, upper case. A response states one by a line that holds nothing else ("B", "(B)",
                "B.", "**B**") or by "answer is B", "answer: (B)", "correct option is B", "answer is option B";
                after such a phrase a bare letter must end its clause. The last statement decides; "A or B" states
                nothing and makes the answer None
    regex       the first group of the last match of `answer.pattern` (Python's `re`, no flags)

    In every format an answer is None when it is empty, longer than `answer.max_characters`, holds control characters,
    or is a placeholder such as "?", "...", "N/A", "nan", "none".

    A regex may take exponential time: call this in a process that can be killed (`voter.Voter`).
    """
    found = _FORMATS[answer.format](text, answer)
    if found is None or has_control_characters(found):
        return None
    found = found.strip().strip("\ufeff").strip()
    if len(found) > answer.max_characters or is_placeholder(normal(found)):
        return None
    return found


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """The compiled `answer.pattern`; UserError when it is no regular expression or has no group."""
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"answer.pattern = {pattern!r} is not a valid regular expression: {error}") from None
    if compiled.groups < 1:
        raise UserError(f"answer.pattern = {pattern!r} has no group: put the answer's part in parentheses")
    return compiled


def _boxed(text: str, answer: Answer) -> str | None:
    """One pass with a stack of open braces, so 20,000 nested boxes cost no more than other text of that length."""
    open_braces: list[tuple[int, int] | None] = []  # a box's own start and its content's start; None: any other brace
    span = (0, 0)  # of the box that closed last: the last one, or the one around it
    content: tuple[int, int] | None = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            box = open_braces.pop() if open_braces else None
            if box is None:
                continue
            start, inner = box
            wraps = inner <= span[0] and not text[inner : span[0]].strip() and not text[span[1] : match.start()].strip()
            if content is None or not wraps:  # \boxed{\boxed{5}} is 5
                content = (inner, match.start())  # copied once, at the end
            span = (start, match.end())
        elif token == "{":
            open_braces.append(None)
        elif token.startswith(("\\b", "\\f")):
            open_braces.append((match.start(), match.end()))
    if any(box is not None and box[0] >= span[1] for box in open_braces):
        return None  # a later box never closes: the response was about to change its answer
    return None if content is None else text[content[0] : content[1]]


def _hash(text: str, answer: Answer) -> str | None:
    _, marker, after = text.rpartition("####")
    return _lines(after)[0] if marker else None


def _first_line(text: str, answer: Answer) -> str | None:
    return next((line for line in _lines(text) if line.strip()), None)


def _last_line(text: str, answer: Answer) -> str | None:
    return next((line for line in reversed(_lines(text)) if line.strip()), None)


def _letter(text: str, answer: Answer) -> str | None:
    last_at, letter = -1, None
    for match in _CUE.finditer(text):
        stated = _LETTER_AFTER_CUE.match(text, match.end())
        if stated is None or (stated["bare"] and stated["goes_on"] and not stated["hedge"]):
            continue
        last_at, letter = match.start(), None if stated["hedge"] else (stated["bracketed"] or stated["bare"]).upper()
    position = 0
    for line in text.split("\n"):
        alone = _LETTER_LINE.match(line) if len(line) < 100 else None
        if alone is not None and position > last_at:
            last_at, letter = position, (alone["bracketed"] or alone["bare"]).upper()
        position += len(line) + 1
    return letter


def _regex(text: str, answer: Answer) -> str | None:
    assert answer.pattern is not None
    found = None
    for match in compile_pattern(answer.pattern).finditer(text):  # re keeps compiled patterns
        found = match
    return found.group(1) if found is not None else None


_FORMATS = {
    "boxed": _boxed,
    "hash": _hash,
    "first_line": _first_line,
    "last_line": _last_line,
    "letter": _letter,
    "regex": _regex,
}


def _lines(text: str) -> list[str]:
    """Lines as a reader sees them; str.splitlines would also break at form feeds and other control characters."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
