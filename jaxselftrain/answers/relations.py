"""Takes the two sides of equations and inequalities, gives their keys: solved where that is simple, otherwise up to a factor."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

from jaxselftrain.answers.arithmetic import ONE, ZERO, Budget
from jaxselftrain.answers.evaluate import Approximate, substitute, text, variables
from jaxselftrain.answers.polynomials import PROBES, degree
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.regions import Region, half_line, intersection, minus, num, solve
from jaxselftrain.answers.scalars import at_points, digest, infinite, is_scalar, real_number, scalar_key
from jaxselftrain.answers.tokens import Nothing, Strange

MIRROR: Final = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


def is_inequality(tree: Tree) -> bool:
    return tree[0] == "rel" and all(operator in MIRROR for operator in tree[2])


def equation_key(left: Tree, right: Tree, budget: Budget) -> str:
    """An equation up to a factor; solved where its variable, or its y beside x, is linear."""
    if not (is_scalar(left) and is_scalar(right)):
        if left[0] == right[0] == "matrix":
            raise Strange("matrices")
        raise Strange("equation")
    difference = minus(left, right)
    names = variables(difference)
    if not names:
        raise Strange("an identity of numbers")
    if names == {"x", "y"} or (len(names) == 1 and not next(iter(names)).endswith(")")):
        solved = _solved(difference, "y" if len(names) == 2 else next(iter(names)), names, budget)
        if solved is not None:
            return scalar_key(solved, budget)
    return "e:" + _up_to_scale(difference, budget)[0]


def _solved(difference: Tree, name: str, names: set[str], budget: Budget) -> Tree | None:
    """The value of `name` for which a polynomial that is linear in it vanishes, where that says the same as the equation.

    It does when the factor of `name` is a number, and when the rest is one: xy = 1 says y = 1/x, for where x is zero neither
    holds; but xy = x is more than y = 1.
    """
    bound = degree(difference, name)
    if bound is None:
        return None
    x = ("sym", name)
    at_zero, at_one = (substitute(difference, x, num(value)) for value in (0, 1))
    slope = minus(at_one, at_zero)
    try:
        factor, rest = (scalar_key(tree, budget) for tree in (slope, at_zero))
        if factor == "n:0" or not (_is_number(factor) or (len(names) == 2 and _is_number(rest) and rest != "n:0")):
            return None
        for probe in PROBES[: bound - 1]:
            there = minus(substitute(difference, x, num(probe)), at_zero)
            if scalar_key(minus(there, ("mul", (num(probe), slope), ())), budget) != "n:0":
                return None
    except (Strange, Nothing):
        return None
    return ("mul", (("neg", at_zero),), (num(Fraction(factor[2:])) if _is_number(factor) else slope,))


def _is_number(key: str) -> bool:
    return key.startswith("n:") and "#" not in key and "inf" not in key


def _up_to_scale(difference: Tree, budget: Budget) -> tuple[str, int]:
    """A digest of a function's values up to a factor, and the sign taken out."""
    values: list[Fraction | None] = []
    for settled in at_points(difference, budget):
        if isinstance(settled, list):
            raise Strange("an equation of matrices")
        re, im = (ZERO, ONE) if settled is None else settled
        values.append((re.value if isinstance(re, Approximate) else re) if im == 0 else None)
    scale = next((value for value in values if value), None)
    if scale is None:
        raise Strange("an identity")
    if sum(value is not None for value in values) < 3:
        raise Strange("defined at too few points")  # up to a factor, one value is like every other
    spelled = ["undefined" if v is None else text(_rounded(v / scale)) for v in values]
    return digest(spelled), 1 if scale > 0 else -1


def _rounded(value: Fraction) -> Any:
    """A quotient of many-digit numbers as the simple fraction it is, or as digits."""
    simple = value.limit_denominator(10**40)
    close = abs(value - simple) <= abs(value) * Fraction(1, 10**100)
    return simple if close and abs(simple.numerator) < 10**40 else Approximate(value)


def inequality(tree: Tree, budget: Budget) -> Region | None:
    """The numbers for which a chain of inequalities in one variable holds; None when it is not of that kind."""
    names = variables(tree)
    if len(names) != 1 or next(iter(names)).endswith(")"):
        return None
    sides, operators = tree[1], tree[2]
    common: Region | None = None
    for (left, right), operator in zip(pairwise(sides), operators, strict=True):
        left_end, right_end = (infinite(side) if is_scalar(side) else 0 for side in (left, right))
        if left_end or right_end:
            continue  # -\infty < x says nothing
        found = half_line(left, right, operator, budget) or half_line(right, left, MIRROR[operator], budget)
        if found is None:
            found = solve(minus(left, right), operator, next(iter(names)), budget)
        if found is None:
            return None
        common = found if common is None else intersection(common, found)
    return common


def constraints_key(sides: tuple[Tree, ...], operators: tuple[str, ...], budget: Budget) -> str:
    """Inequalities in several variables, each up to a positive factor, in any order."""
    found = []
    for (left, right), operator in zip(pairwise(sides), operators, strict=True):
        if not (is_scalar(left) and is_scalar(right)) or real_number(minus(left, right), budget) is not None:
            raise Strange("inequality")
        shape, sign = _up_to_scale(minus(left, right), budget)
        found.append((operator if sign > 0 else MIRROR[operator]) + shape)
    return "i:" + ";".join(sorted(found))
