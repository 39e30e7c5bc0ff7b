"""Takes the tokens of an answer, gives the tree of one atom: a number, letter, fraction, root, function, bracket or matrix."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Final

from jaxselftrain.answers.tables import INVERSE, MATRICES, OF_INTEGERS, TRIGONOMETRIC
from jaxselftrain.answers.tokens import Nothing, Strange, Token, TooLarge, kind_of_run

Tree = tuple[Any, ...]

MAX_DEPTH: Final = 40  # open brackets, fractions, exponents around one token
MAX_EXPONENT: Final = 5_000  # of ten, in a number such as 1e300
HALF: Final = ("num", Fraction(1, 2))

_COLUMNS = re.compile(r"[clr| ]*")
_FUNCTIONS_OF_MANY: Final = frozenset({"gcd", "lcm", "max", "min", "binom"})


class Atoms:
    """A recursive-descent reader over a list of tokens; `depth` bounds its recursion. What it leaves out, `Expressions` adds."""

    def __init__(self, found: list[Token]):
        self.found = found
        self.index = 0
        self.token = found[0]
        self.depth = 0
        self.open_bars = 0
        self.open_sets = 0
        self.square = 0  # inside [ or ]: a further [ closes, as in ]0,1[

    # ------------------------------------------------------------------------------------------------------------ tokens

    def take(self) -> Token:
        token = self.token
        if token.kind != "":
            self.index += 1
            self.token = self.found[self.index]
        return token

    def expect(self, value: str) -> None:
        if self.take().value != value:
            raise Strange(value)

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge("depth")

    def back_to(self, index: int) -> None:
        self.index, self.token = index, self.found[index]

    # --------------------------------------------------------------------------------------------------------- primaries

    def primary(self) -> Tree:
        self.deeper()
        token = self.take()
        kind = token.kind
        if kind == "num":
            tree = self.number(token)
        elif kind == "sym":
            tree = self.symbol(token.value)
        elif kind == "const":
            tree = ("const", token.value)
        elif kind == "fn":
            tree = self.function(token.value)
        elif kind == "cmd":
            tree = self.command(token.value)
        elif kind == "op":
            tree = self.bracketed(token.value)
        elif kind in ("text", "word", "unit"):
            tree = self.words(token)
        elif kind == "begin":
            tree = self.matrix(token.value)
        else:
            raise Strange(token.value)
        self.depth -= 1
        return tree

    def number(self, token: Token) -> Tree:
        mantissa, _, exponent = token.value.lower().partition("e")
        if exponent and abs(int(exponent[:8])) > MAX_EXPONENT:
            raise TooLarge(token.value)
        whole, dot, places = mantissa.partition(".")
        value = Fraction(int(whole + places or "0"), 10 ** len(places))
        if exponent:
            value *= Fraction(10) ** int(exponent)
        if dot and self.token.value in ("overline", "bar", "dot", "overbar"):  # 0.1\overline{6}
            self.take()
            again = self.group_text()
            if not (again.isascii() and again.isdigit()):
                raise Strange(again)
            value += Fraction(int(again), (10 ** len(again) - 1) * 10 ** len(places))
        elif not dot and not exponent:
            value = self.mixed(value)
        return ("num", value)

    def mixed(self, whole: Fraction) -> Fraction:
        r"""2\frac{1}{3} or 3 1/2; anything but a proper fraction after the number leaves it as it is."""
        start = self.index
        if self.token.value == "frac" and self.token.kind == "cmd":
            self.take()
            try:
                top, bottom = self.argument(), self.argument()
            except Strange:
                top = bottom = ("",)
        elif self.token.kind == "num" and self.token.spaced and self.found[self.index + 1].value == "/":
            top = ("num", _integer(self.take().value))
            self.take()
            bottom = ("num", _integer(self.take().value))
            if bottom[0] != "num" or not top[1] < bottom[1]:
                raise Strange("mixed number")
        else:
            return whole
        if top[0] == bottom[0] == "num" and 0 < top[1] < bottom[1] and top[1].denominator == bottom[1].denominator == 1:
            return whole + top[1] / bottom[1]
        self.back_to(start)
        return whole

    def symbol(self, name: str) -> Tree:
        while self.token.value == "'" and self.token.kind == "op":
            self.take()
            name += "'"
        if self.token.value == "_" and self.token.kind == "op":
            self.take()
            name += "_" + self.group_text()
        if name.rstrip("'") in ("f", "g", "h") and self.token.value == "(":
            self.take()
            return ("app", name, self.arguments(")"))
        return ("sym", name)

    def group_text(self) -> str:
        """The characters of the next token or braced group, as a name's index."""
        if self.token.value != "{":
            token = self.take()
            if token.kind == "num" and len(token.value) > 1:  # x_12 means x_{1}2 to TeX and x_{12} to its writer
                return token.value
            if token.kind in ("op", ""):
                raise Strange("index")
            return token.value.partition(":")[2] if token.kind == "text" else token.value
        self.take()
        parts = []
        while self.token.value != "}":
            token = self.take()
            if token.kind == "" or token.value == "{":
                raise Strange("index")
            parts.append(token.value.partition(":")[2] if token.kind == "text" else token.value)
        self.take()
        return "".join(parts)

    def argument(self) -> Tree:
        """One argument of a command: a braced group, or one token, of which a number gives its first digit."""
        if self.token.value == "{" and self.token.kind == "op":
            self.take()
            return self.closed("}")
        if self.token.kind == "num" and len(self.token.value) > 1:
            token = self.token
            if not token.value.isdigit():
                raise Strange(token.value)
            self.found[self.index] = Token("num", token.value[1:], False)
            self.token = self.found[self.index]
            return ("num", Fraction(int(token.value[0])))
        if self.token.kind == "num":
            return ("num", _integer(self.take().value))
        return self.primary()

    def arguments(self, closing: str) -> tuple[Tree, ...]:
        bars, square, self.open_bars, self.square = self.open_bars, self.square, 0, 0
        found = [self.expression()]
        while self.token.value == ",":
            self.take()
            found.append(self.expression())
        self.expect(closing)
        self.open_bars, self.square = bars, square
        return tuple(found)

    def closed(self, closing: str) -> Tree:
        (tree, *more) = self.arguments(closing)
        if more:
            raise Strange(",")
        return tree

    def words(self, token: Token) -> Tree:
        r"""\text{...} where a value is expected: what it holds when that is one letter or number, otherwise words."""
        if token.kind != "text":
            raise Strange(token.value)
        content = token.value.partition(":")[2].strip()
        if len(content) == 1 and content.isascii() and content.isalpha():
            return self.symbol(content) if content not in "ei" else ("const", content)
        if content.isascii() and content.isdigit():
            return self.number(Token("num", content, False))
        if content in OF_INTEGERS:
            return self.function(content)
        if token.value.startswith("mathrm:") and kind_of_run(content or "?") == "fn":
            return self.function(content)
        if not content:
            if self.token.kind == "":
                raise Nothing
            return self.primary()
        return ("text", content)

    # --------------------------------------------------------------------------------------------- functions and commands

    def function(self, name: str) -> Tree:
        """A named function with its argument; sin^2 x, sin^{-1} x and log_2 x carry something in between."""
        if name in _FUNCTIONS_OF_MANY:
            self.expect("(")
            return ("fn", name, self.arguments(")"))
        if name in ("sqrt", "cbrt", "abs"):
            inside = self.function_argument()
            if name == "abs":
                return ("fn", "abs", (inside,))
            return ("pow", inside, HALF if name == "sqrt" else ("num", Fraction(1, 3)))
        base: Tree | None = None
        power: Tree | None = None
        while self.token.kind == "op" and self.token.value in ("_", "^"):
            if self.take().value == "_":
                base = self.argument()
            else:
                power = self.exponent()
        inside = self.function_argument()
        if power == ("neg", ("num", Fraction(1))) and name in INVERSE:
            name, power = INVERSE[name], None
        if name in TRIGONOMETRIC:
            inside = in_radians(inside)
        if name in ("log", "lg"):
            tree: Tree = ("fn", "log", (inside, base or ("num", Fraction(10))))
        elif base is not None:
            raise Strange("_")
        elif name == "exp":
            tree = ("pow", ("const", "e"), inside)
        else:
            tree = ("fn", name, (inside,))
        return tree if power is None else ("pow", tree, power)

    def function_argument(self) -> Tree:
        """A bracket directly after the name, or a product of factors up to the next operator or function."""
        if self.token.kind == "op" and self.token.value in ("(", "{", "["):
            opening = self.take().value
            return self.closed({"(": ")", "{": "}", "[": "]"}[opening])
        signs: list[str] = []
        while self.token.kind == "op" and self.token.value in ("-", "+") and len(signs) < 2:
            signs.append(self.take().value)
        factors = [self.power()]
        while self.starts_factor() and self.token.kind != "fn" and self.token.value not in ("(", "|", "["):
            if self.token.kind == "num":
                raise Strange("number")
            factors.append(self.power())
        tree = factors[0] if len(factors) == 1 else ("mul", tuple(factors), ())
        return ("neg", tree) if "-" in signs else tree

    def command(self, name: str) -> Tree:
        if name == "frac":
            top = self.argument()
            return ("mul", (top,), (self.argument(),))
        if name == "binom":
            top = self.argument()
            return ("fn", "binom", (top, self.argument()))
        if name == "sqrt":
            degree: Tree | None = None
            if self.token.value == "[":
                self.take()
                degree = self.closed("]")
            # \sqrt12 is written by people who mean the root of 12, whatever TeX makes of it.
            inside = self.primary() if self.token.kind == "num" else self.argument()
            return ("pow", inside, HALF if degree is None else ("mul", (("num", Fraction(1)),), (degree,)))
        if name in ("lfloor", "lceil"):
            name = name[1:]
            inside = self.expression()
            self.expect("r" + name)
            return ("fn", name, (inside,))
        if name in ("gcd", "lcm", "max", "min"):
            return self.function(name)
        if name in ("emptyset", "varnothing"):
            return ("set", ())
        if name == "mathbb":
            if self.group_text() == "R":
                return ("reals",)
            raise Strange(name)
        if name in ("overline", "bar"):
            return ("sym", "bar " + self.group_text())
        raise Strange(name)

    # --------------------------------------------------------------------------------------------------------- brackets

    def bracketed(self, opening: str) -> Tree:
        if opening == "{":
            return self.inside("}", self.braced)
        if opening == r"\{":
            return self.inside("", self.set_or_builder)
        if opening == "|":
            self.open_bars += 1
            tree = self.expression()
            self.open_bars -= 1
            self.expect("|")
            return ("fn", "det" if tree[0] == "matrix" else "abs", (tree,))
        if opening not in ("(", "[", "]"):
            raise Strange(opening)
        return self.inside("", lambda: self.round_or_square(opening))

    def braced(self) -> Tree:
        r"""What plain braces hold: a group, \over, or, as Python writes a set, elements."""
        tree = self.statement_side()
        if self.token.value == "over":
            self.take()
            return ("mul", (tree,), (self.statement_side(),))
        if self.token.value != ",":
            return tree
        items = [tree]
        while self.token.value == ",":
            self.take()
            items.append(self.statement_side())
        return ("set", tuple(items))

    def inside(self, closing: str, read: Any) -> Tree:
        """What `read` finds with the state of the brackets around it put aside."""
        saved = self.open_bars, self.square, self.open_sets
        self.open_bars = self.square = self.open_sets = 0
        tree = read()
        if closing:
            self.expect(closing)
        self.open_bars, self.square, self.open_sets = saved
        return tree

    def round_or_square(self, opening: str) -> Tree:
        """A group, a tuple, a matrix in brackets, or an interval with any of its ends open."""
        self.square = int(opening != "(")
        items = [self.statement_side()]
        while self.token.value in (",", ";"):
            self.take()
            items.append(self.statement_side())
        closing = self.take().value
        if closing not in (")", "]", "["):
            raise Strange(closing)
        closed = opening == "[", closing == "]"
        if len(items) == 1:
            if (opening, closing) not in (("(", ")"), ("[", "]")):
                raise Strange(closing)
            return items[0]
        if opening == "(" and closing == ")":
            return ("tuple", tuple(items))
        if len(items) == 2:
            return ("interval", items[0], items[1], *closed)
        if opening == "[" and closing == "]":
            return ("tuple", tuple(items))
        raise Strange(closing)

    def matrix(self, name: str) -> Tree:
        if name not in MATRICES:
            raise Strange(name)
        if name == "array":
            columns = self.group_text()
            if not _COLUMNS.fullmatch(columns):
                raise Strange(columns)
        rows: list[list[Tree]] = [[]]
        while True:
            rows[-1].append(self.expression())
            token = self.take()
            if token.value == r"\\":
                if self.token.kind == "end":
                    token = self.take()
                else:
                    rows.append([])
            if token.kind == "end":
                break
            if token.value not in ("&", r"\\"):
                raise Strange(token.value)
        if token.value != name or len({len(row) for row in rows}) != 1:
            raise Strange("matrix")
        tree = ("matrix", tuple(tuple(row) for row in rows))
        return ("fn", "det", (tree,)) if name == "vmatrix" else tree

    # ------------------------------------------------------------------------------------- what the readers above this one add

    def expression(self) -> Tree:
        raise NotImplementedError

    def power(self) -> Tree:
        raise NotImplementedError

    def exponent(self) -> Tree:
        raise NotImplementedError

    def starts_factor(self) -> bool:
        raise NotImplementedError

    def statement_side(self) -> Tree:
        raise NotImplementedError

    def set_or_builder(self) -> Tree:
        raise NotImplementedError


def in_radians(tree: Tree) -> Tree:
    """A tree whose degrees count as such, as under a sine; elsewhere degrees are dropped."""
    if tree[0] == "deg":
        return ("mul", (tree[1], ("const", "pi")), (("num", Fraction(180)),))
    return tuple(in_radians(part) if isinstance(part, tuple) and part else part for part in tree)


def _integer(text: str) -> Fraction:
    if not text.isdigit():
        raise Strange(text)
    return Fraction(int(text))
