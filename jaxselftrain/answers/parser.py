r"""Takes the text of an answer, gives a tree of plain tuples: what is written there, nothing computed.

Scalars: ("num", Fraction), ("sym", name), ("const", "pi" | "e" | "i" | "inf"), ("add", terms), ("neg", a),
("mul", factors, divisors), ("pow", a, b), ("fn", name, args), ("app", name, args) for an unknown function, ("deg", a),
("pm", a) and ("mp", a) for ±a and ∓a. Others: ("tuple", items), ("set", items), ("interval", low, high, closed, closed),
("setop", cup | cap | setminus, a, b), ("reals",), ("numbers", name), ("matrix", rows), ("ratio", parts), ("text", words),
("approx", a, decimal), ("rel", sides, operators), ("list", items, separators),
("builder", name, set that it ranges over, condition).

The readers are layered: reader.py, atoms.py, brackets.py, expressions.py and, here, lists of relations.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, Final

from jaxselftrain.answers.atoms import number_set
from jaxselftrain.answers.expressions import Expressions
from jaxselftrain.answers.tables import ANY_INTEGER, IS_INTEGER, WHERE
from jaxselftrain.answers.tokens import Nothing, Strange, tokens

Tree = tuple[Any, ...]

RELATIONS: Final = frozenset({"=", "<", ">", "<=", ">=", "!=", "in", "equiv"})
_IN_NUMBERS: Final = frozenset({"+", "-", "*", "/", "^", "{", "}", "frac", "sqrt"})
_BASED = re.compile(r"(?:\(|\\text\{)?([0-9A-Za-z]{1,60})[)}]?_(?:\{(?:\\text\{)?\s*([0-9a-z]{1,8})\}?\}|([0-9]{1,2}))")
_BASE_WORD = re.compile(r"(?:_\{)?\s*(?:\\text\{\s*base\s*\}|\bbase\b|\\text\{\s*base\b)\s*([0-9]{1,2}|[a-z]{3,8})\s*\}?\Z")
_BASES: Final = {
    "two": 2,
    "three": 3,
    "four": 4,
    "five": 5,
    "six": 6,
    "seven": 7,
    "eight": 8,
    "nine": 9,
    "ten": 10,
    "sixteen": 16,
}


def parse(text: str) -> Tree:
    """The tree of an answer. Raises Strange (TooLarge among it) when it is not mathematics, Nothing when it is no answer."""
    based = _BASED.fullmatch(_BASE_WORD.sub(r"_{\1}", text).replace(" ", "")) if "_" in text or "base" in text else None
    if based is not None:
        name = based[2] or based[3]
        base = _BASES.get(name) or (int(name) if name.isdigit() else 0)
        if 2 <= base <= 36 and (based[1].isdigit() or base > 10):
            try:
                return ("num", Fraction(int(based[1], base)))
            except ValueError:
                raise Strange(text) from None  # a digit that the base does not have
    parser = _Statements(tokens(text))
    if parser.token.kind == "":
        raise Nothing
    if parser.token.value == "%":
        raise Nothing  # the rest of the line is a comment
    tree = parser.statements()
    if parser.token.kind != "" or len(parser.units) > 1:  # 3 hours and 20 minutes are not {3, 20}
        raise Strange(parser.token.value)
    return tree


class _Statements(Expressions):
    """Lists of relations between unions of expressions."""

    def statements(self) -> Tree:
        if self.token[:2] == ("begin", "cases"):
            return self.system()
        items, separators = [self.relation()], []
        while True:
            if self.token.value in (",", ";", "and", "or", "logical and", "logical or"):
                separator = self.take().value
                if separator in (",", ";") and self.token.value in ("and", "or"):
                    separator = self.take().value
                if self.token.kind == "":
                    if separator in (",", ";"):
                        break
                    raise Strange(separator)
                items.append(self.declaration() or self.relation())
            elif declared := self.declaration():
                separator = ","
                items.append(declared)
            else:
                break
            separators.append(separator)
        if len(items) == 1 and self.residue():
            items = [("rel", (("sym", "x"), items[0], self.modulus()), ("equiv",))]
        return items[0] if len(items) == 1 else ("list", tuple(items), tuple(separators))

    def system(self) -> Tree:
        r"""The rows of \begin{cases} where each is a relation, which hold together; pieces of a function are strange."""
        self.take()
        items = [self.relation()]
        while self.token.value in (r"\\", ",") and self.token.kind == "op":
            if self.take().value == "," and self.token.value == r"\\":
                self.take()
            if self.token.kind == "end":
                break
            items.append(self.relation())
        if self.take()[:2] != ("end", "cases") or any(item[0] != "rel" for item in items):
            raise Strange("cases")
        return items[0] if len(items) == 1 else ("list", tuple(items), ("and",) * (len(items) - 1))

    def declaration(self) -> Tree | None:
        r"""(k \in \mathbb{Z}), where k \in Z, for any integer k, k is an integer: what a variable ranges over; else nothing."""
        start, bracket = self.index, self.token.value == "("
        if bracket:
            self.take()
        words = self.phrase()
        integers = words in ANY_INTEGER
        if self.token.kind == "sym" and (
            bracket or integers or words in WHERE or (words == "" and self.found[start - 1].value == ",")
        ):
            name = ("sym", self.take().value)
            if not integers and self.token.value == "in":
                self.take()
                numbers = self.side()
                integers = numbers == ("numbers", "Z") or numbers == ("sym", "Z")
                if numbers == ("reals",) and not bracket:
                    return ("rel", (name, numbers), ("in",))
            elif not integers and words == "for all" and self.token.kind == "":  # f(x) = x for all x
                return ("rel", (name, ("reals",)), ("in",))
            elif not integers:
                integers = self.phrase() in IS_INTEGER
            if integers and (not bracket or self.take().value == ")"):
                return ("rel", (name, ("numbers", "Z")), ("in",))
        self.back_to(start)
        return None

    def phrase(self) -> str:
        """The words that come next, in \\text{} or bare."""
        words = []
        while self.token.kind in ("text", "word"):
            words.append(self.take().value.removeprefix("text:").removeprefix("mathrm:").casefold())
        return " ".join(" ".join(words).split()).strip(" ,")

    def relation(self) -> Tree:
        sides, operators = [self.defined() or self.approximated()], []
        while self.token.kind == "op" and self.token.value in RELATIONS:
            operators.append(self.take().value)
            sides.append(self.approximated())
            if operators[-1] == "in" and sides[-1][0] == "sym" and sides[-1][1] in ("Z", "N", "Q", "R", "C"):
                sides[-1] = number_set(sides[-1][1])  # k ∈ Z, in whatever font
            if operators[-1] == "equiv":
                if sides[-1][:2] == ("fn", "mod"):  # a = b mod n, without brackets
                    sides[-1:] = sides[-1][2]
                else:
                    sides.append(self.modulus())
        return sides[0] if not operators else ("rel", tuple(sides), tuple(operators))

    def approximated(self) -> Tree:
        r"""A side, with the decimal that may be said to be close to it: 2\sqrt3 \approx 3.46."""
        tree = self.side()
        if self.token.value != "approx":
            return tree
        self.take()
        return ("approx", tree, self.side())

    def defined(self) -> Tree | None:
        """The left side of a definition such as P(x) = or f^{-1}(x) =, whatever letter the function has; else nothing is read."""
        start, token = self.index, self.token
        if token.kind != "sym":
            return None
        self.take()
        while (self.token.kind == "op" and self.token.value in ("^", "{", "-", "'", "}", "_")) or self.token.kind == "num":
            self.take()
        after = self.index
        inverse = "".join(t.value for t in self.found[start + 1 : after])
        names = []
        while self.token.value in ("(", ",") and self.found[self.index + 1].kind == "sym":
            names.append(self.found[self.index + 1].value)
            self.take()
            self.take()
        if names and self.take().value == ")" and self.token.value == "=":
            return ("app", token.value + inverse, tuple(("sym", name) for name in names))
        self.back_to(after)
        if inverse.strip("'") in ("", "^{-1}", "^-1") and self.at_number():  # P(2) = 3 is no statement about 2P
            self.take()
            return ("app", token.value + inverse, self.arguments(")"))
        self.back_to(start)
        return None

    def at_number(self) -> bool:
        """Whether a bracket with nothing but a number in it comes next, and then an equals sign. Nothing is read."""
        if self.token.value != "(" or self.token.spaced:
            return False
        at = self.index + 1
        while self.found[at].kind in ("num", "const") or self.found[at].value in _IN_NUMBERS:
            at += 1
        return at > self.index + 1 and [token.value for token in self.found[at : at + 2]] == [")", "="]

    def residue(self) -> bool:
        r"""Whether \pmod or (mod comes next, after what then is a residue class: 5 \pmod 7 is x \equiv 5 \pmod 7."""
        return self.token.value == "pmod" or [token.value for token in self.found[self.index : self.index + 2]] == ["(", "mod"]

    def modulus(self) -> Tree:
        r"""What follows \pmod, (mod or \mod; a congruence without one is strange."""
        if self.token.value == "pmod":
            self.take()
            return self.argument()
        bracket = self.token.value == "("
        if bracket:
            self.take()
        if self.take().value != "mod":
            raise Strange("mod")
        side = self.expression()
        if bracket:
            self.expect(")")
        return side

    def side(self) -> Tree:
        tree = self.ratio()
        while self.token.value in ("cup", "cap", "setminus"):
            tree = ("setop", self.take().value, tree, self.ratio())
        return tree

    def statement_side(self) -> Tree:
        """What a bracket may hold: an expression, a union of intervals, a ratio."""
        return self.side()

    def ratio(self) -> Tree:
        parts = [self.expression()]
        while self.token.value == ":" and self.open_sets == 0:
            self.take()
            if self.token.value == "00":
                raise Strange("time")  # 12:00 noon
            parts.append(self.expression())
        return parts[0] if len(parts) == 1 else ("ratio", tuple(parts))

    def set_or_builder(self) -> Tree:
        r"""What stands between \{ and \}: elements, or a variable and its condition."""
        if self.token.value == r"\}":
            self.take()
            return ("set", ())
        self.open_sets += 1
        self.open_bars = 1  # a bar after the first element is "such that", not a factor |x|
        first = self.relation()
        self.open_bars = 0
        if self.token.value in (":", "|"):
            self.take()
            condition = self.statements()
            self.open_sets -= 1
            self.expect(r"\}")
            if condition[0] != "rel" and condition[0] != "list":
                raise Strange("set")
            name, ranges = first[1] if first[0] == "rel" and first[2] == ("in",) else (first, ("reals",))
            if name[0] != "sym":
                raise Strange("set")
            if condition[0] == "list":  # a comma is "and" here
                condition = (*condition[:2], tuple("and" if separator in ",;" else separator for separator in condition[2]))
            return ("builder", name[1], ranges, condition)
        items = [first]
        while self.token.value in (",", ";"):
            self.take()
            items.append(self.relation())
        self.open_sets -= 1
        self.expect(r"\}")
        if any(item[0] == "rel" for item in items):
            raise Strange("set")
        return ("set", tuple(items))
