"""Takes the tokens after an opening bracket, gives the tree of what it holds: a group, tuple, interval, set, bars or a matrix."""

from __future__ import annotations

import re

from jaxselftrain.answers.atoms import Atoms
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.tables import MATRICES
from jaxselftrain.answers.tokens import Strange

_COLUMNS = re.compile(r"[clr| ]*")


class Brackets(Atoms):
    """Everything that opens and closes."""

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
        """What plain braces hold: a group or, as Python writes a set, elements."""
        tree = self.statement_side()
        if self.token.value != ",":
            return tree
        items = [tree]
        while self.token.value == ",":
            self.take()
            items.append(self.statement_side())
        return ("set", tuple(items))

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
