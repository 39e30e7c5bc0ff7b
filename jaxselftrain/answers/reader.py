"""Takes the tokens of an answer one by one; the part of the parser that knows where it is and how deep."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, Final

from jaxselftrain.answers.tokens import Strange, Token, TooLarge

Tree = tuple[Any, ...]

MAX_DEPTH: Final = 40  # open brackets, fractions, exponents around one token


class Reader:
    """A recursive-descent reader over a list of tokens; `depth` bounds its recursion.

    One parser, in a file for each level of the grammar: Reader, Atoms, Brackets, Expressions, and the statements of
    parser.py. The levels call each other both ways, a fraction holds expressions, so each is built on the one before,
    and what the later ones add is declared here.
    """

    expression: Callable[[], Tree]
    product: Callable[[], Tree]
    power: Callable[[], Tree]
    exponent: Callable[[], Tree]
    primary: Callable[[], Tree]
    starts_factor: Callable[[], bool]
    bracketed: Callable[[str], Tree]
    matrix: Callable[[str], Tree]
    statement_side: Callable[[], Tree]
    set_or_builder: Callable[[], Tree]

    def __init__(self, found: list[Token]):
        self.found = found
        self.index = 0
        self.token = found[0]
        self.depth = 0
        self.units: set[str] = set()  # dropped after a number
        self.vectors = False  # a name with an arrow or a hat was read
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
            self.found[self.index : self.index + 1] = [Token("num", part, False) for part in (token.value[0], token.value[1:])]
            self.token = self.found[self.index]
        if self.token.kind == "num":
            return ("num", integer(self.take().value))
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

    def inside(self, closing: str, read: Callable[[], Tree]) -> Tree:
        """What `read` finds with the state of the brackets around it put aside."""
        saved = self.open_bars, self.square, self.open_sets
        self.open_bars = self.square = self.open_sets = 0
        tree = read()
        if closing:
            self.expect(closing)
        self.open_bars, self.square, self.open_sets = saved
        return tree


def integer(text: str) -> Fraction:
    """A token's digits as a number; Strange when it holds anything else."""
    if not (text.isascii() and text.isdigit()):
        raise Strange(text)
    return Fraction(int(text))
