"""Takes intervals, unions and inequalities in one variable, gives the set of real numbers they describe and its key."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final, NamedTuple

from jaxselftrain.answers.arithmetic import Budget
from jaxselftrain.answers.atoms import HALF
from jaxselftrain.answers.evaluate import holds, settle, substitute, variables
from jaxselftrain.answers.polynomials import PROBES, degree
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.scalars import INFINITY, infinite, is_scalar, number_key, real_number, scalar_key
from jaxselftrain.answers.tokens import Nothing, Strange


class End(NamedTuple):
    """One end of an interval: where it is, and the key by which equal ends are told."""

    at: Fraction | float
    key: str


class Piece(NamedTuple):
    low: End
    high: End
    low_closed: bool
    high_closed: bool


Region = list[Piece]
BELOW: Final = End(-math.inf, "n:-inf")
ABOVE: Final = End(math.inf, "n:inf")


def region(tree: Tree, budget: Budget) -> Region | None:
    """The set of real numbers that a tree writes down (a pair counts as an open interval), or None when it is none."""
    kind = tree[0]
    if kind == "reals":
        return [Piece(BELOW, ABOVE, False, False)]
    if kind == "interval" or (kind == "tuple" and len(tree[1]) == 2):
        low, high = (_end(side, budget) for side in ((tree[1], tree[2]) if kind == "interval" else tree[1]))
        if low is None or high is None or low.at > high.at:
            return None
        closed = tree[3:5] if kind == "interval" else (False, False)
        return normal([Piece(low, high, closed[0] and low.at != -math.inf, closed[1] and high.at != math.inf)])
    if kind == "set":
        ends = [_end(item, budget) for item in tree[1]]
        if any(end is None or math.isinf(end.at) for end in ends):
            return None
        return normal([Piece(end, end, True, True) for end in ends if end is not None])
    if kind == "setop":
        left, right = region(tree[2], budget), region(tree[3], budget)
        if left is None or right is None:
            return None
        if tree[1] == "cup":
            return normal(left + right)
        return intersection(left, right if tree[1] == "cap" else complement(right))
    return None


def _end(tree: Tree, budget: Budget) -> End | None:
    if not is_scalar(tree):
        return None
    sign = infinite(tree)
    if sign:
        return ABOVE if sign > 0 else BELOW
    if variables(tree):
        return None
    value = settle(tree, 0, budget)
    if type(value) is list or value[1] != 0:
        return None
    return End(value[0] if type(value[0]) is Fraction else value[0].value, number_key(value))


def normal(pieces: Region) -> Region:
    """Sorted, empty pieces dropped, touching ones joined."""
    found: Region = []
    for piece in sorted((p for p in pieces if not _empty(p)), key=lambda p: (p.low.at, not p.low_closed)):
        last = found[-1] if found else None
        same = last is not None and last.high.key == piece.low.key
        if last is None or (same and not (last.high_closed or piece.low_closed)) or (not same and last.high.at < piece.low.at):
            found.append(piece)
            continue
        if piece.high.key == last.high.key:
            found[-1] = last._replace(high_closed=last.high_closed or piece.high_closed)
        elif piece.high.at > last.high.at:
            found[-1] = last._replace(high=piece.high, high_closed=piece.high_closed)
    return found


def _empty(piece: Piece) -> bool:
    if piece.low.key == piece.high.key:
        return not (piece.low_closed and piece.high_closed)
    return piece.low.at > piece.high.at


def complement(pieces: Region) -> Region:
    found, low, low_closed = [], BELOW, False
    for piece in pieces:
        found.append(Piece(low, piece.low, low_closed, not piece.low_closed and piece.low != BELOW))
        low, low_closed = piece.high, not piece.high_closed and piece.high != ABOVE
    found.append(Piece(low, ABOVE, low_closed, False))
    return normal(found)


def intersection(left: Region, right: Region) -> Region:
    return complement(normal(complement(left) + complement(right)))


def region_key(pieces: Region) -> str:
    """Points alone are a set (one of them: that number); one open interval has the key of the pair."""
    if all(piece.low.key == piece.high.key for piece in pieces):
        return set_key([piece.low.key for piece in pieces])
    if len(pieces) == 1 and not (pieces[0].low_closed or pieces[0].high_closed):
        return f"p:({pieces[0].low.key};{pieces[0].high.key})"
    return "I:" + "".join(
        f"{'[' if piece.low_closed else '('}{piece.low.key};{piece.high.key}{']' if piece.high_closed else ')'}"
        for piece in pieces
    )


def set_key(keys: list[str]) -> str:
    unique = sorted(set(keys))
    return unique[0] if len(unique) == 1 else f"s:{{{'|'.join(unique)}}}"


# ----------------------------------------------------------------------------------------------------------- inequalities


def num(value: int | Fraction) -> Tree:
    return ("num", Fraction(value))


def minus(a: Tree, b: Tree) -> Tree:
    return ("add", (a, ("neg", b)))


def half_line(left: Tree, right: Tree, operator: str, budget: Budget) -> Region | None:
    """`x < 5` and the like, without solving anything; None for every other inequality."""
    end = _end(right, budget) if left[0] == "sym" else None
    if end is None:
        return None
    closed = operator in ("<=", ">=")
    below, above = Piece(BELOW, end, False, closed), Piece(end, ABOVE, closed, False)
    return {"<": [below], ">": [above], "!=": [below, above]}[operator[:1] if operator != "!=" else operator]


def solve(difference: Tree, operator: str, name: str, budget: Budget) -> Region | None:
    """Where `difference` is below, above, ... zero, for a variable that it holds in linear or quadratic polynomials and | |.

    None where it is no such function. The line is cut where a | | turns and where a polynomial is zero; a sample decides
    each part.
    """
    x: Tree = ("sym", name)
    bars = _bars(difference, x)
    cuts: list[tuple[End, Tree]] = []
    for bar in bars:
        roots = _roots(bar, x, budget)
        if roots is None:
            return None
        cuts += roots
    pieces: list[tuple[End, Tree]] = []
    for sample in _samples([end for end, _ in cuts]):
        plain = difference
        for bar in bars:
            value = real_number(substitute(bar, x, num(sample)), budget)
            if value is None:
                return None
            plain = substitute(plain, ("fn", "abs", (bar,)), bar if value >= 0 else ("neg", bar))
        roots = _roots(plain, x, budget)
        if roots is None:
            return None
        pieces += roots
    ends = {end.key: (end, tree) for end, tree in cuts + pieces}
    ordered = sorted(ends.values(), key=lambda cut: cut[0].at)
    found: Region = []
    borders = [BELOW, *(end for end, _ in ordered), ABOVE]
    for (low, high), sample in zip(pairwise(borders), _samples([end for end, _ in ordered]), strict=True):
        if _true(substitute(difference, x, num(sample)), operator, budget):
            found.append(Piece(low, high, False, False))
    for end, tree in ordered:
        if _true(substitute(difference, x, tree), operator, budget):
            found.append(Piece(end, end, True, True))
    return normal(found)


def _bars(tree: Any, x: Tree) -> list[Tree]:
    """The insides of every | | that holds the variable."""
    found = [tree[2][0]] if tree[:2] == ("fn", "abs") and x[1] in variables(tree) else []
    for part in tree:
        if type(part) is tuple:
            found += _bars(part, x)
    if len(found) > 4:
        raise Strange("bars")
    return found


def _samples(ends: list[End]) -> list[Fraction]:
    """A number between each two neighbours, and one on either side."""
    at = sorted({Fraction(end.at) for end in ends})
    if not at:
        return [Fraction(0)]
    between = [(a + b) / 2 for a, b in pairwise(at)]
    return [_simple(s) for s in (at[0] - 1, *between, at[-1] + 1)]


def _simple(value: Fraction) -> Fraction:
    return value if value.denominator < 10**20 else value.limit_denominator(10**20)


def _true(tree: Tree, operator: str, budget: Budget) -> bool:
    value = real_number(tree, budget)
    if value is None:
        raise Strange("inequality")
    return {"<": value < 0, "<=": value <= 0, ">": value > 0, ">=": value >= 0, "!=": value != 0}[operator]


def _roots(tree: Tree, x: Tree, budget: Budget) -> list[tuple[End, Tree]] | None:
    """The real zeros of a polynomial of degree one or two, each as a tree too; None for any other function."""

    def at(value: int | Fraction) -> Tree:
        return substitute(tree, x, num(value))

    bound = degree(tree, x[1])
    if bound is None or not is_scalar(tree):
        return None
    try:
        c = _settled(at(0), budget)
        a = _settled(minus(("mul", (("add", (at(1), at(-1))), HALF), ()), c), budget)
        b = _settled(("mul", (minus(at(1), at(-1)), HALF), ()), budget)
        for probe in PROBES[: max(bound - 2, 0)]:
            guess = ("add", (("mul", (a, num(probe * probe)), ()), ("mul", (b, num(probe)), ()), c))
            if real_number(minus(at(probe), guess), budget) != 0:
                return None
    except Nothing:  # 1/x at 0
        return None
    if real_number(a, budget) == 0:
        slope = real_number(b, budget)
        if not slope:
            return [] if slope is not None else None
        trees: list[Tree] = [("mul", (("neg", c),), (b,))]
    else:
        square = minus(("pow", b, num(2)), ("mul", (num(4), a, c), ()))
        discriminant = real_number(square, budget)
        if discriminant is None:
            return None
        root = ("pow", square, HALF)
        signs = [] if discriminant < 0 else [root] if discriminant == 0 else [root, ("neg", root)]
        trees = [("mul", (("add", (("neg", b), sign)),), (num(2), a)) for sign in signs]
    found = [(_end(tree, budget), tree) for tree in trees]
    return [(end, tree) for end, tree in found if end is not None]


def _settled(tree: Tree, budget: Budget) -> Tree:
    """The exact number that a tree is, so that what is built of it stays small, or the tree."""
    value = None if variables(tree) or holds(tree, INFINITY) else settle(tree, 0, budget)
    return num(value[0]) if type(value) is tuple and value[1] == 0 and type(value[0]) is Fraction else tree


def symbolic_key(tree: Tree, budget: Budget) -> str:
    """The key of an interval or union whose ends are not numbers."""
    if tree[0] == "interval":
        low, high = scalar_key(tree[1], budget), scalar_key(tree[2], budget)
        return f"I:{'[' if tree[3] else '('}{low};{high}{']' if tree[4] else ')'}"
    if tree[0] == "tuple" and len(tree[1]) == 2:
        return f"p:({scalar_key(tree[1][0], budget)};{scalar_key(tree[1][1], budget)})"
    if tree[0] == "setop" and tree[1] == "cup":
        return "u:" + "|".join(sorted({symbolic_key(tree[2], budget), symbolic_key(tree[3], budget)}))
    raise Strange(tree[0])
