"""Takes text, gives it in one spelling, tells placeholders from answers, and gives the key of an answer made of words."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from jaxselftrain.answers.tables import FUNCTIONS
from jaxselftrain.answers.tokens import Strange, kind_of_run

MAX_CHARACTERS: Final = 10_000  # a longer answer keeps its exact text
MAX_MARKS: Final = 30  # so does one with a longer row of combining marks: Unicode's own bound, sorting them takes quadratic time

# Stand-ins for an answer, once . and ? and brackets around them are gone; "none of the above" and "no solution" are answers.
_PLACEHOLDERS: Final = frozenset(
    {"", "n/a", "n.a", "nan", "none", "null", "not applicable", "not available", "unknown", "tbd", "todo", "placeholder", "blank"}
    | {"no answer", "not given", "not provided", "not specified", "not sure", "unsure", "idk", "not known", "no idea"}
    | {"i don't know", "i do not know", "don't know", "cannot answer", r"\ldots", r"\dots", r"\cdots", r"\square", r"\box"}
)
_OF_TEMPLATES = re.compile(  # what is meant to be replaced: your answer, the final answer, insert answer here
    r"(?:(?:insert|put|write|enter|place|fill in|the|your|my|final|correct|exact|numerical|numeric) )*"
    r"(?:answer|result|solution)(?: (?:goes )?here)?"
)
_WRAPPERS = re.compile(
    r"\$\$(?P<a>[^$]*)\$\$|\$(?P<b>[^$]*)\$|\\\((?P<c>(?:(?!\\[()]).)*)\\\)|\\\[(?P<d>(?:(?!\\[\[\]]).)*)\\\]"
    r"|\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|boxed|fbox)\s*\{(?P<e>[^{}]*)\}|\*\*(?P<f>[^*]*)\*\*|`(?P<g>[^`]*)`"
    r"|\*(?P<h>[^*]+)\*|__(?P<i>[^_]+)__|\"(?P<j>[^\"]+)\"|“(?P<k>[^“”]+)”"
)
_PHRASE = re.compile(r"[^\W\d_](?:[^\W\d_]|[ ,;:.!?'’()/-])*")
_RUN = re.compile(r"[^\W\d_]+")
_MONTHS: Final = {
    name[:3]: name for name in "january february march april may june july august september october november december".split()
}
_DATE = re.compile(
    r"(?:(?P<a>[a-z]{3,9})\.?(?: (?P<d>[0-3]?[0-9])(?:st|nd|rd|th)?)?"
    r"|(?:the )?(?P<e>[0-3]?[0-9])(?:st|nd|rd|th)?(?: of)? (?P<b>[a-z]{3,9}))(?:,? (?P<y>[12][0-9]{3}))?",
    re.ASCII,
)
_MAYBE_DATE = re.compile(rf"{'|'.join(_MONTHS)}|st\b|nd\b|rd\b|th\b", re.IGNORECASE)
_ORDINAL = re.compile(r"[0-9]*(?:1 ?st|2 ?nd|3 ?rd|[0-9] ?th)", re.ASCII)
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mbox)\b|[{}^]|\\(?=[ ,;])")
_PUNCTUATION = re.compile(r"[!-/:-@\[\]^-`{-~\s]*")  # no backslash: \{\} is a set
_DIGITS: Final = frozenset("0123456789")
_VERDICTS: Final = frozenset({"yes", "no", "true", "false", "odd", "even"})
_CHOICE = re.compile(r"\((?P<a>[A-Za-z])\)[.:]?|(?P<b>[A-Z])[.):]")


def normal(text: str) -> str:
    """The text in one spelling: compatibility forms folded, white space collapsed, wrappers around the whole removed."""
    if len(text) > MAX_CHARACTERS:
        return text
    if not text.isascii():
        if _has_long_marks(text):
            return " ".join(text.split())
        # NFKC turns 2⁵ into 25 and ½ into 1⁄2: with such a character in it, the text keeps its own form.
        raised = any(unicodedata.decomposition(c).startswith(("<super>", "<sub>", "<fraction>")) for c in text if c > "\x7f")
        text = unicodedata.normalize("NFC" if raised else "NFKC", text).replace("\ufeff", "")
    text = " ".join(text.replace("&nbsp;", " ").split())
    for _ in range(4):  # $\text{(B)}$ has three; more is somebody's joke
        inside = _WRAPPERS.fullmatch(text) if text[:1] in '$\\*`_"“' else None
        if inside is None:
            break
        text = next(group for group in inside.groups() if group is not None).strip()
    return text


def _has_long_marks(text: str) -> bool:
    """Whether more than `MAX_MARKS` combining marks follow one another."""
    row = 0
    for character in text:
        row = row + 1 if unicodedata.combining(character) else 0
        if row > MAX_MARKS:
            return True
    return False


def is_placeholder(text: str) -> bool:
    """Whether normalised text is empty or a stand-in for an answer."""
    if len(text) > 50 or not _DIGITS.isdisjoint(text):
        return False
    bare = text.strip(" .?_").removesuffix(r"\\")
    if bare in ("NA", "na") or _PUNCTUATION.fullmatch(bare):  # but not Na, which is sodium, or N times a
        return True
    words = " ".join(re.split(r"[\s_-]+", (bare.strip("<>[](){}*!:. ?_-") or bare).replace("’", "'").casefold())).strip()
    return words in _PLACEHOLDERS or _OF_TEMPLATES.fullmatch(words) is not None


def has_control_characters(text: str) -> bool:
    """Control, format, private and unassigned characters (tabs, line ends and a byte-order mark aside), or a decoding error."""
    if text.isascii() and text.isprintable():
        return False
    return any(
        c not in "\t\r\n\ufeff" and (c == "\ufffd" or unicodedata.category(c)[0] == "C") for c in text if not " " <= c <= "~"
    )


def date(text: str) -> str | None:
    """A day such as June 20, 20th of June or Jun. 20, 2021, a month of a year, or 5th, in one spelling; None for other text."""
    if _DIGITS.isdisjoint(text) or _MAYBE_DATE.search(text) is None:
        return None
    plain = " ".join(_MARKUP.sub("", text).replace("~", " ").strip(" .").casefold().split())
    if _ORDINAL.fullmatch(plain):
        return plain.replace(" ", "")
    found = _DATE.fullmatch(plain)
    month = None if found is None else _MONTHS.get((found["a"] or found["b"])[:3])
    if found is None or month is None or not month.startswith(found["a"] or found["b"]):
        return None
    day = found["d"] or found["e"]
    if day is None and found["y"] is None:
        return None  # a name
    return " ".join([month, *([] if day is None else [str(int(day))]), *([] if found["y"] is None else [found["y"]])])


def choice(text: str) -> str | None:
    """The letter of (B), B. or B)."""
    found = _CHOICE.fullmatch(text)
    return None if found is None else found["a"] or found["b"]


def is_words(text: str) -> bool:
    """Whether an answer reads as words and not as mathematics: letters and light punctuation, at least one run a word."""
    if not _PHRASE.fullmatch(text) or len(text) > 300:
        return False
    runs = [run for run in _RUN.findall(text) if len(run) > 1]
    if any(run in FUNCTIONS for run in runs):
        return False
    return any(kind_of_run(run) in ("word", "unit") and run.casefold() not in ("and", "or", "percent") for run in runs)


def is_code(text: str) -> bool:
    """Whether an answer is three capital letters or more: a ranking, a triangle, an abbreviation, but no product."""
    return len(text) >= 3 and text.isascii() and text.isalpha() and text.isupper()


def words_key(text: str) -> str:
    """The key of words: case and punctuation folded; a comma, "and", "or" separate names whose order is free."""
    if any(c > "\x7f" and c.isalpha() and not unicodedata.name(c, "").startswith("LATIN") for c in text):
        raise Strange("script")
    if not re.fullmatch(r"[^\W\d_]+(?:[ ,;:.!?'’()/-]+[^\W\d_]+)*[ .!?)]*", text.strip(" (")):
        raise Strange("words")
    if len(text) == 1:
        return "t:" + text
    text = text.casefold().replace("’", "'")
    parts = [" ".join(re.sub(r"[.!?()]", " ", part).split()) for part in re.split(r"[,;] *(?:and\b|or\b)?|\band\b|\bor\b", text)]
    ordered = not _VERDICTS.isdisjoint(parts)  # "yes, no" answers two questions
    if len(parts) == 1 or not all(parts) or any(part.count(" ") > 1 for part in parts) or ordered:
        return "t:" + " ".join(re.sub(r"[.!?(),;]", " ", text).split())
    return "s:{" + "|".join(sorted({"t:" + part for part in parts})) + "}"
