"""Takes text, gives it in one spelling, tells placeholders from answers, and gives the key of an answer made of words."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from jaxselftrain.answers.tables import FUNCTIONS
from jaxselftrain.answers.tokens import Nothing, Strange, kind_of_run

MAX_CHARACTERS: Final = 10_000  # a longer answer keeps its exact text
MAX_MARKS: Final = 30  # so does one with a longer row of combining marks: Unicode's own bound, sorting them takes quadratic time

# Stand-ins for an answer, once . and ? and brackets around them are gone; "none of the above" and "no solution" are answers.
_PLACEHOLDERS: Final = frozenset(
    {"", "n/a", "n.a", "nan", "none", "null", "not applicable", "not available", "unknown", "tbd", "todo", "placeholder", "blank"}
    | {"no answer", "not given", "not provided", "not specified", "not sure", "unsure", "idk", "not known", "no idea"}
    | {"i don't know", "i do not know", "don't know", "cannot answer", r"\ldots", r"\dots", r"\cdots", r"\square", r"\box"}
    | {"value", "number", "option letter", "see above", "as above", "see below"}
)
_OF_TEMPLATES = re.compile(  # what is meant to be replaced: your answer, the final answer, insert answer here
    r"(?:(?:insert|put|write|enter|place|fill in|the|your|my|final|correct|exact|numerical|numeric) )*"
    r"(?:answer|result|solution)(?: is| (?:goes )?here)?"
    r"|(?:(?:insert|put|write|enter|place|a|an|the|your|my|single|final|correct|numerical|numeric|option|choice) )+"
    r"(?:value|number|integer|expression|letter)(?: (?:goes )?here)?"
)
_BETWEEN = re.compile(r"[,;]|\band\b|\bor\b")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")  # yourAnswer
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
_ISO_DATE = re.compile(r"([12][0-9]{3})-([01][0-9])-([0-3][0-9])", re.ASCII)
_SLASHED_DATE = re.compile(r"[0-3]?[0-9]/[0-3]?[0-9]/[12][0-9]{3}", re.ASCII)
_MAYBE_DATE = re.compile(rf"{'|'.join(_MONTHS)}|st\b|nd\b|rd\b|th\b", re.IGNORECASE)
_ORDINAL = re.compile(r"[0-9]*(?:1 ?st|2 ?nd|3 ?rd|[0-9] ?th)", re.ASCII)
_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mbox)\b|[{}^]|\\(?=[ ,;])")
_PUNCTUATION = re.compile(r"[!-/:-@\[\]^-`{-~\s]*")  # no backslash: \{\} is a set
_DIGITS: Final = frozenset("0123456789")
_VERDICTS: Final = frozenset(
    "yes no true false odd even positive negative increasing decreasing converges diverges convergent divergent correct "
    "incorrect right wrong left up down valid invalid always sometimes never heads tails rational irrational prime composite "
    "win lose loss greater less equal larger smaller higher lower concave convex dependent independent".split()
)
_LETTER_VERDICTS: Final = (frozenset("tf"), frozenset("yn"), frozenset("ht"), frozenset("wl"))
_CHOICE = re.compile(r"\((?P<a>[A-Za-z])\)[.:]?|(?P<b>[A-Z])[.):]|(?i:option|choice) \(?(?P<c>[A-Z])\)?\.?")
_ROMAN = r"\((?:i|[xv]?i{2,3}|x?i?[vx]|[xv]i|xvi{0,3}|I|[XV]?I{2,3}|X?I?[VX]|[XV]I|XVI{0,3})\)"
_ROMANS = re.compile(rf"{_ROMAN}(?:(?: ?, ?and | ?[,;] ?| and | or ){_ROMAN})*")  # (ii), (i) and (iv): labels, no products


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
    inner = (bare.strip("<>[](){}*!:. ?_-") or bare).replace("’", "'")
    for spelled in (inner, _CAMEL.sub(" ", inner)):
        words = " ".join(re.split(r"[\s_-]+", spelled.casefold())).strip().replace(" / ", "/")
        if words in _PLACEHOLDERS or spelled == "xxx" or _OF_TEMPLATES.fullmatch(words) is not None:  # but XXX is thirty
            return True
    parts = _BETWEEN.split(inner)
    return len(parts) > 1 and all(map(is_placeholder, parts))


def has_control_characters(text: str) -> bool:
    """Control, format, private and unassigned characters (tabs, line ends and a byte-order mark aside), or a decoding error."""
    if text.isascii() and text.isprintable():
        return False
    return any(
        c not in "\t\r\n\ufeff" and (c == "\ufffd" or unicodedata.category(c)[0] == "C") for c in text if not " " <= c <= "~"
    )


def date(text: str) -> str | None:
    """A day such as June 20, 20th of June or Jun. 20, 2021, a month of a year, or 5th, in one spelling; None for other text."""
    numeric = _ISO_DATE.fullmatch(text)
    if numeric is not None and 1 <= int(numeric[2]) <= 12:
        return f"{[*_MONTHS.values()][int(numeric[2]) - 1]} {int(numeric[3])} {numeric[1]}"
    if _SLASHED_DATE.fullmatch(text):
        return text  # the day or the month first?
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
    """The letter of (B), B., B) or option B."""
    found = _CHOICE.fullmatch(text)
    return None if found is None else found["a"] or found["b"] or found["c"]


def is_words(text: str) -> bool:
    """Whether an answer reads as words and not as mathematics: letters and light punctuation, at least one run a word."""
    if text[:1] == "(" and _ROMANS.fullmatch(text):
        return True
    if not _PHRASE.fullmatch(text) or len(text) > 300:
        return False
    runs = [run for run in _RUN.findall(text) if len(run) > 1]
    if any(run in FUNCTIONS for run in runs):
        return False
    return any(kind_of_run(run) in ("word", "unit") and run.casefold() not in ("and", "or", "percent") for run in runs)


def is_code(text: str) -> bool:
    """Whether an answer is two capital letters or more: tosses, a ranking, a triangle, an abbreviation, but no product."""
    plain = text.replace(" ", "")
    return (
        len(plain) >= 2
        and plain.isascii()
        and plain.isalpha()
        and plain.isupper()
        and len(text) in (len(plain), 2 * len(plain) - 1)
    )


def words_key(text: str) -> str:
    """The key of words: case and punctuation folded; a comma, "and", "or" separate names whose order is free."""
    if any(c > "\x7f" and c.isalpha() and not unicodedata.name(c, "").startswith("LATIN") for c in text):
        raise Strange("script")
    if not re.fullmatch(r"[^\W\d_]+(?:[ ,;:.!?'’()/-]+[^\W\d_]+)*[ .!?)]*", text.strip(" (")):
        raise Strange("words")
    if is_placeholder(text) or any(part.strip() and is_placeholder(part) for part in _BETWEEN.split(text)):
        raise Nothing
    if len(text) == 1:
        return "t:" + text
    text = text.casefold().replace("’", "'")
    parts = [" ".join(re.sub(r"[.!?()]", " ", part).split()) for part in re.split(r"[,;] *(?:and\b|or\b)?|\band\b|\bor\b", text)]
    if len(parts) == 1 or not all(parts) or any(part.count(" ") > 1 for part in parts):
        return "t:" + " ".join(re.sub(r"[.!?(),;]", " ", text).split())
    return list_key(parts, either=re.search(r"\bor\b", text) is not None)


def list_key(parts: list[str], either: bool) -> str:
    """The key of several words or letters: a sequence where the order is the answer, otherwise a set.

    A sequence is what repeats ("T, F, T"), what holds a verdict ("yes, no" answers two questions), and three single letters
    or more that are not in alphabetical order ("B, A, C" ranks); "A, C" and "C, A" tick the same boxes.
    """
    small = [part.casefold() for part in parts]
    letters = all(len(part) == 1 for part in parts)
    ranked = letters and len(parts) > 2 and small != sorted(small)
    verdicts = not _VERDICTS.isdisjoint(small) or any(set(small) <= pair for pair in _LETTER_VERDICTS)
    prefix = "L:or" if either else ""  # Alice or Bob is not both
    if verdicts or ranked or len(set(parts)) < len(parts):
        return f"{prefix}t:{' '.join(parts)}"
    return prefix + "s:{" + "|".join(sorted({"t:" + part for part in parts})) + "}"
