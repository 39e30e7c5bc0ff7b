"""Takes the tree of a function with corners (| |, max, min, roots of squares), gives the one without that it is at a point."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any

from jaxselftrain.answers.arithmetic import Budget
from jaxselftrain.answers.evaluate import settle, substitute, variables
from jaxselftrain.answers.polynomials import degree
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.tokens import Strange


def without_corners(tree: Any, budget: Budget) -> Any:
    """The tree with every | |, max, min, even root of squares and logarithm of squares replaced by what it is at the first point.

    The same tree where it holds none. The result only says whether to look at a function farther out, so a square that is
    not recognised as one costs no more than that.
    """
    if type(tree) is not tuple:
        return tree
    tree = tuple(without_corners(part, budget) for part in tree)
    if tree[:1] == ("pow",) and variables(tree[1]) and not variables(tree[2]):
        return _root(tree, budget)
    if tree[:1] != ("fn",) or not variables(tree):
        return tree
    if tree[1] in ("ln", "log"):
        return _logarithm(tree, budget)
    if tree[1] not in ("abs", "max", "min"):
        return tree
    at = [_at_first(argument, budget) for argument in tree[2]]
    if tree[1] == "abs":
        return tree[2][0] if at[0] >= 0 else ("neg", tree[2][0])
    return tree[2][at.index(max(at) if tree[1] == "max" else min(at))]


def _at_first(tree: Tree, budget: Budget) -> Fraction:
    """The value of a tree at the first point. Raises Strange where it is not real."""
    value = settle(tree, 0, budget)
    if type(value) is list or value[1] != 0:
        raise Strange("corners")
    return value[0] if type(value[0]) is Fraction else value[0].value


def _root(tree: Tree, budget: Budget) -> Tree:
    r"""\sqrt{(x-500)^2} as 500 - x; any other power as it is."""
    if tree[2][0] == "num" and tree[2][1].denominator == 1:
        return tree
    squares, rest = _squares(tree[1], budget)
    exponent = settle(tree[2], 0, budget)[0] if squares else None
    if type(exponent) is not Fraction or exponent.denominator % 2:
        return tree
    return ("mul", (("pow", rest, tree[2]), *(("pow", base, ("num", n * exponent)) for base, n in squares)), ())


def _logarithm(tree: Tree, budget: Budget) -> Tree:
    r"""\ln (x-500)^2 as 2 \ln (500-x); any other logarithm as it is."""
    squares, rest = _squares(tree[2][0], budget)
    if not squares:
        return tree
    logs = (("mul", (("num", n), ("fn", tree[1], (base, *tree[2][1:]))), ()) for base, n in squares)
    return ("add", (("fn", tree[1], (rest, *tree[2][1:])), *logs))


def _squares(tree: Tree, budget: Budget) -> tuple[list[tuple[Tree, Fraction]], Tree]:
    """The factors that stand in a product with even powers, as bases that are positive at the first point, and the rest."""
    squares: list[tuple[Tree, Fraction]] = []
    rest: list[list[Tree]] = [[("num", Fraction(1))], []]
    factors, divisors = tree[1:] if tree[0] == "mul" else ((tree,), ())
    for side, parts in enumerate((factors, divisors)):
        for part, times in Counter(parts).items():
            twice = times % 2 == 0 and bool(variables(part))  # (x-500)(x-500)
            part, times = (("pow", part, ("num", Fraction(times))), 1) if twice else (part, times)
            base, power, scale = _square(part, budget)
            if power:
                squares.append((base if _at_first(base, budget) >= 0 else ("neg", base), (-power if side else power) * times))
            rest[side] += [("num", scale) if power else part] * times
    return squares, ("mul", tuple(rest[0]), tuple(rest[1]))


def _square(tree: Tree, budget: Budget) -> tuple[Tree, Fraction, Fraction]:
    """A base, its even power and a factor before it, such that a tree is their product; power 0 where it is no such power."""
    if tree[0] == "pow" and tree[2][0] == "num" and tree[2][1] % 2 == 0 and variables(tree[1]):
        return tree[1], tree[2][1], Fraction(1)
    names = variables(tree)
    if tree[0] == "add" and len(names) == 1 and degree(tree, *names) == 2:  # x^2 - 1000x + 250000
        (name,) = names
        values = [settle(substitute(tree, ("sym", name), ("num", Fraction(k))), 0, budget) for k in (-1, 0, 1)]
        if all(type(re) is Fraction and im == 0 for re, im in values):
            below, c, above = (value[0] for value in values)
            a, b = (above + below) / 2 - c, (above - below) / 2
            if a > 0 and b * b == 4 * a * c:
                return ("add", (("sym", name), ("num", b / (2 * a)))), Fraction(2), a
    return tree, Fraction(0), Fraction(1)
