r"""Takes the text of a response, gives its final answer (`extract`) and the answer's canonical key (`answer_key`).

Two answers are equal exactly when their keys are equal, so equality is transitive by construction: a chain of
pairwise "close enough" verdicts cannot join "9", "9%" and "0.09" into one class that a policy would learn to hit.
Responses are untrusted text: they are scanned and normalised, never evaluated, and every number is bounded in length
before it is converted. Nothing falls back to "the last number in the text": a response that does not state its answer
in the configured format has none.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import TYPE_CHECKING

from jaxselftrain.errors import UserError

if TYPE_CHECKING:  # the voter's workers start faster without pydantic
    from jaxselftrain.config import Answer

MAX_DIGITS = 400  # a longer number is compared as text; well below the length where int() slows down or refuses
MAX_CHARACTERS = 10_000  # a longer answer keeps its exact text: normalising some Unicode texts takes quadratic time

# ---------------------------------------------------------------------------------------------------------------- extract

_BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|\\[{}]|\\\\(?!boxed|fbox)|[{}]")

# A letter as people mark it: B  (B)  [B]  B.  B)  **B**  $B$  \boxed{B}  \text{(B)}; lower case only inside brackets.
_MARKED = (
    r"(?:[*_$\s]|\\(?:boxed|text|textbf|mathrm|mathbf)\{)*(?:[(\[](?P<bracketed>[A-Za-z])[)\]]|(?P<bare>[A-Z])(?![\w'’-]))[*_$}]*"
)
_LETTER_LINE = re.compile(_MARKED + r"[.):*_$}\s]*\Z")
_CUE = re.compile(r"\b(?:answer|correct (?:option|choice))(?:\s+is\b|\s*[:=])\s*:?", re.IGNORECASE)
_LETTER_AFTER_CUE = re.compile(
    _MARKED
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
                "B.", "**B**") or by "answer is B", "answer: (B)", "correct option is B"; after such a phrase a bare letter
                must end its clause. The last statement decides; "A or B" states nothing and makes the answer None
    regex       the first group of the last match of `answer.pattern` (Python's `re`, no flags)

    In every format an answer is None when it is empty, longer than `answer.max_characters`, holds control characters,
    or is a placeholder such as "?", "...", "N/A", "nan", "none".

    A regex may take exponential time: call this in a process that can be killed (`voter.Voter`).
    """
    found = _FORMATS[answer.format](text, answer)
    if found is None or _has_control_characters(found):
        return None
    found = found.strip().strip("\ufeff").strip()
    if len(found) > answer.max_characters or _is_placeholder(_normal(found)):
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
    content: str | None = None
    for match in _BRACES.finditer(text):
        token = match.group()
        if token == "}":
            box = open_braces.pop() if open_braces else None
            if box is None:
                continue
            start, inner = box
            wraps = inner <= span[0] and not text[inner : span[0]].strip() and not text[span[1] : match.start()].strip()
            if content is None or not wraps:  # \boxed{\boxed{5}} is 5
                content = text[inner : match.start()]
            span = (start, match.end())
        elif token == "{":
            open_braces.append(None)
        elif token.startswith(("\\b", "\\f")):
            open_braces.append((match.start(), match.end()))
    if any(box is not None and box[0] >= span[1] for box in open_braces):
        return None  # a later box never closes: the response was about to change its answer
    return content


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


# -------------------------------------------------------------------------------------------------------------------- key

_PLACEHOLDERS = frozenset({"", "n/a", "nan", "none", "answer", r"\ldots", r"\dots", r"\cdots"})  # once . and ? are gone
_WRAPPERS = re.compile(
    r"\$\$(?P<a>[^$]*)\$\$|\$(?P<b>[^$]*)\$|\\\((?P<c>(?:(?!\\[()]).)*)\\\)|\\\[(?P<d>(?:(?!\\[\[\]]).)*)\\\]"
    r"|\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox)\{(?P<e>[^{}]*)\}|\*\*(?P<f>[^*]*)\*\*"
)
_SEPARATOR = re.compile(r"\{,\}|,\\!|\\,|\\ |[\u00a0\u2009\u202f]")  # between digits these group thousands
_NUMBER = re.compile(r"(?P<sign>[+-]?) ?(?P<whole>[0-9]*|[1-9][0-9]{0,2}(?:,[0-9]{3})+)(?:\.(?P<places>[0-9]*))?")
_QUOTIENT = re.compile(r"(?P<sign>[+-]?) ?(?P<top>[0-9]+) ?/ ?(?P<bottom>[+-]?[0-9]+)")
_CHOICE = re.compile(r"\((?P<a>[A-Z])\)\.?|(?P<b>[A-Z])[.)]")


def answer_key(answer: str) -> str | None:
    r"""The canonical key of an answer: equal answers have equal keys. None when the answer is no answer at all.

    "n:NUMERATOR" or "n:NUMERATOR/DENOMINATOR"  a plain number as an exact rational in lowest terms: 1,000 = 1000 = 1000.0
        = 1{,}000 = +1000, 055 = 55, $12$ = 12, 1/2 = 0.5; never rounded
    "t:TEXT"  anything else, as its exact text: NFKC, white space collapsed, case kept, math delimiters and \text{}
        removed; (A) and A. become A

    None: empty, placeholders ("?", "...", "N/A", "nan", "none", the word "answer"), control characters, division by zero.
    """
    text = _normal(answer)
    if _is_placeholder(text) or _has_control_characters(answer):
        return None
    number = _number(answer)
    if number is None:
        choice = _CHOICE.fullmatch(text)
        return "t:" + (text if choice is None else choice["a"] or choice["b"])
    top, bottom = number
    if bottom == 0:
        return None
    value = Fraction(top, bottom)
    return f"n:{value.numerator}" if value.denominator == 1 else f"n:{value.numerator}/{value.denominator}"


def _number(answer: str) -> tuple[int, int] | None:
    """(numerator, denominator) of a plain number, not reduced; None when the answer is not one."""
    if len(answer) > 4 * MAX_DIGITS:
        return None
    text = _normal(_SEPARATOR.sub(",", answer.strip()))
    text = text.removeprefix("\\").removeprefix("$").lstrip() if text.startswith(("$", r"\$")) else text
    if len(text) > MAX_DIGITS:
        return None
    quotient = _QUOTIENT.fullmatch(text)
    if quotient is not None:
        return int(quotient["sign"] + quotient["top"]), int(quotient["bottom"])
    number = _NUMBER.fullmatch(text)
    if number is None or not (number["whole"] or number["places"]):
        return None
    places = number["places"] or ""
    return int(number["sign"] + number["whole"].replace(",", "") + places), 10 ** len(places)


def _normal(text: str) -> str:
    """The text in one spelling: compatibility forms folded, white space collapsed, wrappers around the whole removed."""
    if len(text) > MAX_CHARACTERS:
        return text
    # NFKC turns 2⁵ into 25 and ½ into 1⁄2: with such a character in it, the text keeps its own form.
    raised = any(unicodedata.decomposition(c).startswith(("<super>", "<sub>", "<fraction>")) for c in text if c > "\x7f")
    text = unicodedata.normalize("NFC" if raised else "NFKC", text).replace("\u2212", "-").replace("\ufeff", "")
    text = " ".join(text.split())
    for _ in range(4):  # $\text{(B)}$ has three; more is somebody's joke
        inside = _WRAPPERS.fullmatch(text)
        if inside is None:
            break
        text = next(group for group in inside.groups() if group is not None).strip()
    return text


def _is_placeholder(text: str) -> bool:
    """Whether normalised text is empty or a stand-in for an answer."""
    return len(text) < 20 and text.casefold().strip(" .?") in _PLACEHOLDERS


def _has_control_characters(text: str) -> bool:
    """Control, format, private and unassigned characters (tabs, line ends and a byte-order mark aside), or a decoding error."""
    return any(
        c not in "\t\r\n\ufeff" and (c == "\ufffd" or unicodedata.category(c)[0] == "C") for c in text if not " " <= c <= "~"
    )
