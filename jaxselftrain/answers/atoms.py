"""Takes the tokens of an answer, gives the tree of one atom: a number, letter, fraction, root or function."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Final

from jaxselftrain.answers.reader import Reader, Tree, integer
from jaxselftrain.answers.tables import ACCENTS, CURRENCIES, GREEK_FUNCTIONS, INVERSE, OF_INTEGERS, TRIGONOMETRIC
from jaxselftrain.answers.tokens import Nothing, Strange, Token, TooLarge, kind_of_run

MAX_EXPONENT: Final = 5_000  # of ten, in a number such as 1e300
HALF: Final = ("num", Fraction(1, 2))

_FUNCTIONS_OF_MANY: Final = frozenset({"gcd", "lcm", "max", "min", "binom"})


class Atoms(Reader):
    """Numbers, letters, words, functions and commands."""

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

    def plain_number(self) -> Tree:
        r"""A number of which no fraction is part: 2^3\frac12 is half of 2^3, \sqrt3\frac12 half of \sqrt3."""
        tree = self.number(self.take(), may_mix=False)
        if self.token.kind == "num" and self.token.spaced:
            raise Strange("number")  # 2^3 1/2
        return tree

    def number(self, token: Token, may_mix: bool = True) -> Tree:
        mantissa, _, exponent = token.value.lower().partition("e")
        digits = exponent.lstrip("+-").lstrip("0")
        if len(digits) > 8 or int(digits or "0") > MAX_EXPONENT:
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
        elif dot and self.token.value == "(" and not self.token.spaced and self.found[self.index + 1].kind == "num":
            raise Strange("repeating decimal")  # 0.(3): not 0 times 3
        elif may_mix and not dot and not exponent:
            value = self.mixed(value)
        return ("num", value)

    def mixed(self, whole: Fraction) -> Fraction:
        r"""2\frac{1}{3} or 3 1/2; anything but a proper fraction after the number leaves it as it is."""
        start = self.index
        if self.token.value == "frac" and self.token.kind == "cmd":
            self.take()
            top, bottom = self.digits(), self.digits()  # never by trial: nested, that doubles the work at each level
        elif [token.kind or token.value for token in self.found[start : start + 5]] == ["op", "num", "cmd", "num", "op"]:
            if [self.found[start + k].value for k in (0, 2, 4)] != ["{", "over", "}"]:
                return whole
            top, bottom = (("num", integer(self.found[start + k].value)) for k in (1, 3))
            self.back_to(start + 5)
        elif self.token.kind == "num" and self.token.spaced and self.found[self.index + 1].value == "/":
            top = ("num", integer(self.take().value))
            self.take()
            bottom = ("num", integer(self.take().value))
            if bottom[0] != "num" or not top[1] < bottom[1]:
                raise Strange("mixed number")
        else:
            return whole
        if top[0] == bottom[0] == "num" and 0 < top[1] < bottom[1] and top[1].denominator == bottom[1].denominator == 1:
            return whole + top[1] / bottom[1]
        self.back_to(start)
        return whole

    def digits(self) -> Tree:
        """An argument that holds nothing but digits; ("",) for every other, of which nothing is read."""
        after = self.found[self.index : self.index + 3]
        if [token.value for token in (after[0], after[-1])] == ["{", "}"] and after[1].kind == "num" and after[1].value.isdigit():
            return self.argument()
        return self.argument() if after[0].kind == "num" and after[0].value.isdigit() else ("",)

    def symbol(self, name: str) -> Tree:
        while self.token.value == "'" and self.token.kind == "op":
            self.take()
            name += "'"
        if self.token.value == "_" and self.token.kind == "op":
            self.take()
            name += "_" + self.group_text()
        if self.token.value == "(" and self.is_application(name.rstrip("'")):
            self.take()
            return ("app", name, self.arguments(")"))
        return ("sym", name)

    def is_application(self, name: str) -> bool:
        """Whether a name before a bracket is a function and not a factor, as its kind or what the bracket holds says."""
        if name in ("f", "g", "h", "F", "G", "H") or name.removeprefix("\\") in GREEK_FUNCTIONS:
            return True
        inside = [
            token.kind if token.kind in ("sym", "num") else token.value for token in self.found[self.index + 1 : self.index + 4]
        ]
        inside = inside[1:] if inside[0] == "-" else inside
        if self.token.spaced:
            return False
        if inside[:2] == ["sym", ")"] or (inside[:2] == ["num", ")"] and name.isupper()):
            return True  # y(-x), P(3): as products they would be written without brackets
        calls = (a.value == name and b.value == "(" and not b.spaced for a, b in pairwise(self.found))
        return len(name) == 1 and name.isupper() and sum(calls) > 1  # T(n-1) + T(n-2)

    def words(self, token: Token) -> Tree:
        r"""\text{...} where a value is expected: what it holds when that is one letter or number, otherwise words."""
        if token.kind != "text":
            raise Strange(token.value)
        content = token.value.partition(":")[2].strip()
        if len(content) == 1 and content.isascii() and content.isalpha():
            return self.symbol(content) if content not in "ei" else ("const", content)
        if content.isascii() and content.isdigit():
            return self.number(Token("num", content, False))
        if content in OF_INTEGERS or content in ("floor", "ceil", "det"):
            return self.function(content)
        if content.replace("\\", "").rstrip(".") in CURRENCIES:
            return self.primary()
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
            opening = self.take().value
            if opening not in ("(", r"\{"):
                raise Strange(name)
            return ("fn", name, self.arguments(")" if opening == "(" else r"\}"))
        if name in ("floor", "ceil", "det"):
            return ("fn", name, (self.function_argument(),))
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
        elif name == "cis":
            tree = ("add", (("fn", "cos", (inside,)), ("mul", (("const", "i"), ("fn", "sin", (inside,))), ())))
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

    def series(self, name: str) -> Tree:
        r"""\sum_{k=1}^{10} and \prod, with the product that follows."""
        self.expect("_")
        self.expect("{")
        variable = self.take()
        self.expect("=")
        first = self.closed("}")
        self.expect("^")
        last = self.exponent()
        if variable.kind != "sym" and variable != ("const", "i", variable.spaced):
            raise Strange(name)
        body = self.product()
        index = ("sym", variable.value) if variable.kind == "sym" else ("const", "i")
        return (name, index, first, last, body)

    def positive(self) -> str:
        r"""The + of \mathbb{Z}^+ and \mathbb{Z}_{>0}, or nothing, of which nothing is read."""
        if self.token.value in ("^", "_"):
            values = [token.value for token in self.found[self.index + 1 : self.index + 5]]
            for signs in (["+"], ["{", "+", "}"], ["{", ">", "0", "}"]):
                if values[: len(signs)] == signs:
                    self.back_to(self.index + 1 + len(signs))
                    return "+"
        return ""

    def accented(self, accent: str) -> Tree:
        r"""\vec{AB}, \hat\imath: a name of its own, in which the order of the letters counts."""
        name = self.group_text()
        while self.token.value in ("'", "_") and self.token.kind == "op":
            name += "'" if self.take().value == "'" else "_" + self.group_text()
        if not name or not name.lstrip("\\")[0].isalpha():
            raise Strange(accent)
        self.vectors = self.vectors or accent in ("vec", "hat")
        return ("sym", f"{accent} {name}")

    def angle(self) -> Tree:
        r"""\angle ABC, the same angle as \angle CBA; \angle 1."""
        if self.token.value == "{" or self.token.kind in ("num", "text"):
            name = self.group_text()
        else:
            name = ""
            while self.token.kind == "sym" and len(name) < 3:
                name += self.take().value
        if not name.isascii() or not name.isalnum():
            raise Strange("angle")
        return ("sym", "angle " + (min(name, name[::-1]) if len(name) == 3 and name.isalpha() else name))

    def command(self, name: str) -> Tree:
        if name == "frac":
            top, bottom = self.argument(), self.argument()
            if bottom[0] == "mul" and bottom[1][0] == ("sym", "d"):  # \frac{dy}{dx} is a name, \frac{d}{dx} an operator
                if top[0] != "mul" or top[1][0] != ("sym", "d") or len(top[1]) != 2 or top[1][1][0] != "sym":
                    raise Strange("derivative")
                return ("sym", f"d{top[1][1][1]}/d{bottom[1][-1][-1]}")
            return ("mul", (top,), (bottom,))
        if name == "binom":
            top = self.argument()
            return ("fn", "binom", (top, self.argument()))
        if name == "sqrt":
            degree: Tree | None = None
            if self.token.value == "[":
                self.take()
                degree = self.closed("]")
            # \sqrt12 is written by people who mean the root of 12, whatever TeX makes of it.
            inside = self.plain_number() if self.token.kind == "num" else self.argument()
            return ("pow", inside, HALF if degree is None else ("mul", (("num", Fraction(1)),), (degree,)))
        if name in ("lfloor", "lceil"):
            name = name[1:]
            inside = self.expression()
            self.expect("r" + name)
            return ("fn", name, (inside,))
        if name in ("gcd", "lcm", "max", "min", "det"):
            return self.function(name)
        if name in ("emptyset", "varnothing"):
            return ("set", ())
        if name == "mathbb":
            name = self.group_text()
            return number_set(name + self.positive())
        if name in ("overline", "bar"):
            inside = self.argument()
            letters = inside[1] if inside[0] == "mul" and not inside[2] else (inside,)
            if all(letter[0] == "sym" for letter in letters):  # a segment AB, a mean x
                return ("sym", "bar " + "".join(letter[1] for letter in letters))
            return ("fn", "conj", (inside,))
        if name in ACCENTS:
            return self.accented(name)
        if name in ("angle", "measuredangle"):
            return self.angle()
        if name in ("sum", "prod"):
            return self.series(name)
        raise Strange(name)


def number_set(name: str) -> Tree:
    """The tree of R, Z, Q, ..., and of their positive numbers."""
    if name == "R+":
        return ("interval", ("num", Fraction(0)), ("const", "inf"), False, False)
    return ("reals",) if name == "R" else ("numbers", name)


def in_radians(tree: Tree) -> Tree:
    """A tree whose degrees count as such, as under a sine; elsewhere degrees are dropped."""
    if tree[0] == "deg":
        return ("mul", (tree[1], ("const", "pi")), (("num", Fraction(180)),))
    return tuple(in_radians(part) if isinstance(part, tuple) and part else part for part in tree)
