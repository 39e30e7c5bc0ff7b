"""Takes a tree and a variable, gives a bound on its degree where a polynomial is written, and points that prove a lower one."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Final

from jaxselftrain.answers.evaluate import variables
from jaxselftrain.answers.reader import Tree

MAX_DEGREE: Final = 8
# Where a polynomial is compared with one of a lower degree: as many further points as the degrees differ by are proof.
PROBES: Final = tuple(Fraction(*value) for value in ((-3, 1), (7, 5), (5, 1), (-11, 3), (2, 7), (13, 2), (-9, 4), (17, 3)))


def degree(tree: Tree, name: str) -> int | None:
    r"""A bound on the degree of a tree in a variable, or None when no polynomial in it is written, or one of more than eight.

    A function that is linear at any given points need not be so elsewhere, |x - 7| is not; hence by the rules for sums,
    products and whole powers. A bound only, for terms may cancel. What does not hold the variable may be anything.
    """
    found = _degree(tree, name)
    return found if found is not None and found <= MAX_DEGREE else None


def _degree(tree: Tree, name: str) -> int | None:
    if name not in variables(tree):
        return 0
    kind = tree[0]
    if type(kind) is tuple:  # a row of a determinant
        return _all(tree, name, max)
    if kind == "sym":
        return 1
    if kind in ("neg", "deg"):
        return _degree(tree[1], name)
    if kind == "add":
        return _all(tree[1], name, max)
    if kind == "mul":
        return None if any(name in variables(divisor) for divisor in tree[2]) else _all(tree[1], name, sum)
    if kind == "pow":
        return _times(_degree(tree[1], name), tree[2])
    if kind == "fn" and tree[1] == "binom" and name not in variables(tree[2][1]):
        return _times(_degree(tree[2][0], name), tree[2][1])
    if kind == "fn" and tree[1] in ("det", "abs") and tree[2][0][0] == "matrix":
        return _all(tree[2][0][1], name, sum)
    if kind == "sum" and name not in variables(tree[2]) | variables(tree[3]) and tree[1] != ("sym", name):
        return _degree(tree[4], name)
    return None


def _all(parts: tuple[Tree, ...], name: str, join: Callable[[list[int]], int]) -> int | None:
    degrees = [_degree(part, name) for part in parts]
    known = [found for found in degrees if found is not None]
    return join(known) if len(known) == len(degrees) else None


def _times(base: int | None, exponent: Tree) -> int | None:
    """The degree of a power whose exponent is a small whole number."""
    whole = exponent[0] == "num" and exponent[1].denominator == 1 and 0 <= exponent[1] <= MAX_DEGREE
    return base * exponent[1].numerator if base is not None and whole else None
