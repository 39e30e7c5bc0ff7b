"""Takes the text of an answer, gives its tokens; refuses what is too long or holds a character that mathematics does not use."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final, NamedTuple

from jaxselftrain.answers.tables import (
    ACCENTS,
    BINOMIALS,
    BOLD,
    CURRENCY_CODES,
    DISPLAYS,
    FONTS,
    FRACTIONS,
    FUNCTIONS,
    GREEK,
    LOWERED,
    NUMBER_WORDS,
    OF_INTEGERS,
    OPERATORS,
    RAISED,
    SAME_FUNCTION,
    SAME_LETTER,
    SHORT_WORDS,
    SILENT,
    SPACES,
    SPLIT_OFF,
    TEXTS,
    UNICODE,
    UNITS,
)

MAX_PARSED: Final = 1000  # characters of an answer that is parsed at all
MAX_TOKENS: Final = 400


class Strange(Exception):
    """The text is not mathematics that this parser reads; it counts as its exact text."""


class TooLarge(Strange):
    """Reading or computing it would take more than its share of work; it counts as its exact text."""


class Nothing(Exception):
    """The text states no answer at all, such as 1/0 or a comment."""


class Token(NamedTuple):
    r"""kind: num, sym, const, fn, word, unit, text, cmd (read by the parser), op, begin, end; "" at the end of the text."""

    kind: str
    value: str
    spaced: bool  # white space stands before it


END: Final = Token("", "", False)

_GROUPED = re.compile(r"(?<![\d.,])([1-9]\d{0,2})((?:(?:\{,\}|,\\!|\\,|\\ |\\;|[\u00a0\u2009\u202f ])\s*\d{3})+)(?![\d,]\d)")
_CURRENCY = re.compile(
    rf"(?<![\w\\])(?:(?:US|CA|A)\\?\$|(?:{'|'.join(sorted(CURRENCY_CODES))})\.?)(?=[ ~]*\.?\d)"
)  # USD 20, Rs. 20
_DIGITS = re.compile(r"\d+", re.ASCII)
_ZEROS = re.compile(r"0\d\d(?!\d)", re.ASCII)
_NOT_DIGIT = re.compile(r"[^0-9]+")
_COUNTED = re.compile(  # _5C_2, {}^5C_2, {}_nP_r; not x^5C_2, a product
    r"(?:(?<![_^])\{\s*\}\s*|(?<![\w}\])\s]))[_^](?:\{\s*(\d{1,4}|[a-z])\s*\}|(\d|[a-z]))\s*(?:\\(?:text|mathrm)\{([CP])\}|([CP]))"
    r"_(?:\{\s*(\d{1,4}|[a-z])\s*\}|(\d|[a-z]))(?![\d^])",
    re.ASCII,
)
_POWER_OF_TEN = re.compile(r"(?<=\d)\s?[xX]\s?(?=10\s?\^)")  # 3 x 10^8
_SQUARE = re.compile(r"(?<=[\d\s{])sq\.?\s(?=\s*(?:units?|ft|feet|foot|inch|inches|cm|km|miles?|yards?|met(?:er|re)s?)\b)")
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")
_TOKEN = re.compile(
    r"(?P<space>(?:\s|~|\\[,;:!> ]|&nbsp;|\\?\$|[€£¥¢₹₩₽])+)"
    r"|(?P<comma>[1-9]\d{0,2}(?:,\d{3})+(?!\d|,\d)(?:\.\d+)?)"
    r"|(?P<num>(?:\d+\.?\d*|\.\d+|\.(?=\\(?:overline|bar)\b))(?:[eE][+-]?\d+(?![\d.]))?)"
    r"|\\(?P<env>begin|end)\s*\{(?P<name>[a-zA-Z]+)\*?\}"
    r"|\\(?P<cmd>[a-zA-Z]+)"
    r"|(?P<word>[a-zA-Z]+)"
    r"|(?P<op>\*\*|<=|>=|!=|==|=<|\\\\|\\[{}%|#&]|[-+*/^_=<>(){}\[\]|,;:!%'&°])",
    re.ASCII,
)
_SAME_OP: Final = {"**": "^", "==": "=", "=<": "<=", r"\%": "%", r"\|": "|", r"\&": "&"}
_UNIT_VECTOR = re.compile(r"\s*(?:\{\s*[ijk]\s*\}|[ijk](?![a-zA-Z]))|\s*\{?\\(?:hat|vec|mathbf)\b")
_BRACED = re.compile(r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_DROPPED = re.compile(r"\\(?:[hv]?phantom|hspace|vspace|hskip|label|tag|color|textcolor|mathrlap)\*?\s*\{[^{}]*\}")


def _spelled(text: str) -> str:
    """Text in ASCII spelling, without currencies and what prints nothing; spaces between thousands gone."""
    if len(text) > MAX_PARSED:
        raise TooLarge(text[:20])
    if not text.isascii():
        text = _RAISED.sub(lambda m: "^{" + m.group().translate(RAISED) + "}", text)
        text = _LOWERED.sub(lambda m: "_{" + m.group().translate(LOWERED) + "}", text).translate(UNICODE)
    if "\\" in text:
        text = _DROPPED.sub(" ", text)
    if ("C" in text or "P" in text) and "_" in text:
        text = _COUNTED.sub(_chosen, text)
    if "10" in text:
        text = _POWER_OF_TEN.sub(r"\\times ", text)
    text = _CURRENCY.sub(" ", text if "sq" not in text else _SQUARE.sub("square ", text))
    if "," in text or " " in text or not text.isascii():
        text = _GROUPED.sub(lambda m: m.group(1) + _NOT_DIGIT.sub("", m.group(2)), text)
    return text


def _chosen(found: re.Match[str]) -> str:
    """What the numbers before and after C and P stand for: a choice of k from n, and that times the orders of the k."""
    n, k = found[1] or found[2], found[5] or found[6]
    return f" \\binom{{{n}}}{{{k}}}" + (f"({k})!" if (found[3] or found[4]) == "P" else "")


def tokens(text: str) -> list[Token]:
    """The tokens of `text`, closed by END. Raises Strange and TooLarge."""
    text = _spelled(text)
    found: list[Token] = []
    at, depth, spaced = 0, 0, False
    grouped = pairs = False
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise Strange(text[at])
        kind = match.lastgroup
        start, at = at, match.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "comma" and depth > 0 and ",0" in match.group():  # nobody writes the element 000
            grouped = True
            found.append(Token("num", match.group().replace(",", ""), spaced))
        elif kind == "comma" and depth > 0:  # (1,234) is a pair
            pairs = True
            match = _DIGITS.match(text, start)
            assert match is not None
            at = match.end()
            found.append(Token("num", match.group(), spaced))
        elif kind == "comma":
            if text[at : at + 1] == "," and ",0" not in match.group():
                raise Strange(match.group())  # 100,200, 300
            found.append(Token("num", match.group().replace(",", ""), spaced))
        elif kind == "num":
            if depth > 0 and not spaced and found[-1].value == "," and _ZEROS.match(match.group()):
                raise Strange(match.group())  # [10,000,20,000]
            found.append(Token("num", match.group(), spaced))
        elif kind == "name" and match["name"] in DISPLAYS:
            spaced = True
            continue
        elif kind == "name":
            found.append(Token(match["env"], match["name"], spaced))
        elif kind == "word":
            argument = bool(found) and found[-1].kind == "cmd" and len(match.group()) == 1  # \frac x2
            _add_letters(match.group(), spaced, found, at < len(text) and text[at].isdigit() and not argument)
        elif kind == "cmd":
            at, spaced_out = _add_command(match["cmd"], text, at, spaced, found)
            if spaced_out:
                spaced = True
                continue
        else:
            value = _SAME_OP.get(match.group(), match.group())
            depth += (value in ("(", "[", r"\{")) - (value in (")", "]", r"\}"))
            found.append(Token("op", value, spaced))
        spaced = False
        if len(found) > MAX_TOKENS:
            raise TooLarge(text[:20])
    if grouped and pairs:
        raise Strange("thousands")  # (1,000, 2,500)
    found += [END, END]  # one may be looked past
    return found


def _add_command(name: str, text: str, at: int, spaced: bool, found: list[Token]) -> tuple[int, bool]:
    """Append what the command \\name means; gives where to read on and whether it was only white space."""
    if name in SPACES or name in SILENT:
        if name in ("left", "right") and text[at : at + 1] == ".":
            at += 1
        return at, True
    if name in TEXTS:
        braced = _BRACED.match(text, at)
        if braced is None:
            raise Strange(name)
        joined = braced.group(1).strip(" ,")
        if joined in ("and", "or"):
            found.append(Token("op", joined, spaced))
            return braced.end(), False
        if joined in ("i", "e", "pi"):  # upright constants, and no unit: 3+4\mathrm{i} is not 7
            found.append(Token("const", joined, spaced))
            return braced.end(), False
        if joined == "cis":  # 2\text{ cis }60^\circ: no unit
            found.append(Token("fn", joined, spaced))
            return braced.end(), False
        if joined in ("x", "y", "z"):
            found.append(Token("sym", joined, spaced))
            return braced.end(), False
        found.append(Token("text", f"{'mathrm' if name in ('mathrm', 'operatorname') else 'text'}:{braced.group(1)}", spaced))
        return braced.end(), False
    if name in OPERATORS:
        found.append(Token("op", OPERATORS[name], spaced))
    elif name in GREEK:
        found.append(Token("sym", "\\" + SAME_LETTER.get(name, name), spaced))
    elif name in ("pi", "infty"):
        found.append(Token("const", "pi" if name == "pi" else "inf", spaced))
    elif name in ("imath", "jmath"):
        found.append(Token("const", "i", spaced) if name == "imath" else Token("sym", "j", spaced))
    elif name in FUNCTIONS or name in SAME_FUNCTION:
        found.append(Token("fn", SAME_FUNCTION.get(name, name), spaced))
    elif name in FRACTIONS or name in BINOMIALS:
        found.append(Token("cmd", "frac" if name in FRACTIONS else "binom", spaced))
    elif name in ACCENTS:
        found.append(Token("cmd", ACCENTS[name], spaced))
    elif name in BOLD and _UNIT_VECTOR.match(text, at):
        found.append(Token("cmd", "hat", spaced))
    elif name in FONTS:
        return at, True  # \mathbf{x}: the braces group
    else:
        found.append(Token("cmd", name, spaced))  # known to the parser, or strange
    return at, False


_ATTACHED = re.compile(rf"(?P<before>[a-z]?[nrtxyz])?(?P<name>{'|'.join(SPLIT_OFF)})(?P<after>[xyzABC])?")  # sinx, xln; not cost
_WORDLIKE = re.compile(r"[A-Z][a-z]*[aeiou][a-z]*|[^\WaeiouA-Z][eiou][^\WaeiouA-Z]", re.ASCII)  # Bob, hen; but xyz, abx


def kind_of_run(run: str) -> str:
    """What a run of two or more letters is: fn, const, sym (a Greek letter), unit, word or product (of one-letter symbols)."""
    small = run.casefold()
    if run in FUNCTIONS or run in SAME_FUNCTION or run in OF_INTEGERS or run in ("sqrt", "cbrt", "abs", "mod", "binom"):
        return "fn"
    if run == "pi" or small in NUMBER_WORDS or small in ("inf", "oo"):
        return "const"
    if run in GREEK:
        return "sym"
    if small in UNITS or run in CURRENCY_CODES:
        return "unit"
    if _ATTACHED.fullmatch(run):
        return "product"
    if small in SHORT_WORDS or not set(run) - set("IVX"):  # Roman numerals
        return "word"
    if len(run) == 3 and (_WORDLIKE.fullmatch(run) or len(set(run)) < 3):
        return "word"
    if len(run) <= 3 or all(ord(b) - ord(a) == 1 for a, b in pairwise(run)):
        return "product"
    return "product" if len(run) <= 5 and not set(small) & set("aeiou") else "word"


def _add_letters(run: str, spaced: bool, found: list[Token], digit_follows: bool) -> None:
    if len(run) == 1:
        found.append(Token("const", run, spaced) if run in "ie" else Token("sym", run, spaced))
        if digit_follows:  # x2, 0x1F: no way to tell what is meant
            raise Strange(run)
        return
    kind = kind_of_run(run)
    if kind == "fn":
        if digit_follows and run == "log":
            raise Strange(run)
        found.append(Token("op" if run == "mod" else "fn", SAME_FUNCTION.get(run, run), spaced))
        return
    if kind == "const":
        found.append(Token("const", "pi" if run == "pi" else "inf", spaced))
    elif kind == "sym":
        found.append(Token("sym", "\\" + SAME_LETTER.get(run, run), spaced))
    elif kind == "unit":
        found.append(Token("unit", run.casefold(), spaced))
    else:
        attached = _ATTACHED.fullmatch(run)
        if attached is not None:
            for letter in attached["before"] or "":
                _add_letters(letter, spaced, found, False)
            found.append(Token("fn", SAME_FUNCTION.get(attached["name"], attached["name"]), spaced))
            for letter in attached["after"] or "":
                _add_letters(letter, False, found, digit_follows)
            return
        if kind == "product":
            for letter in run:
                _add_letters(letter, spaced, found, False)
                spaced = False
        else:
            low = run.casefold()
            found.append(Token("op" if low in ("and", "or") else "word", low if low in ("and", "or") else run, spaced))
    if digit_follows:
        raise Strange(run)
