"""Takes the tree of an answer, gives its key: relations, assignments, lists and sets of expressions."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise
from typing import Any, Final

from jaxselftrain.answers.arithmetic import Budget
from jaxselftrain.answers.evaluate import POINTS, Approximate, holds, settle, substitute, text, variables
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.regions import (
    Region,
    half_line,
    intersection,
    minus,
    normal,
    num,
    region,
    region_key,
    set_key,
    solve,
    symbolic_key,
)
from jaxselftrain.answers.scalars import (
    digest,
    infinite,
    is_scalar,
    real_number,
    scalar_key,
    signed,
)
from jaxselftrain.answers.tokens import Nothing, Strange
from jaxselftrain.answers.words import words_key

INTEGERS: Final = ("numbers", "Z")
MIRROR: Final = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


def tree_key(tree: Tree, budget: Budget) -> str:
    """The key of a whole answer. Raises Strange (TooLarge) and Nothing."""
    if tree[0] == "list":
        return _list_key(tree[1], tree[2], budget)
    if tree[0] == "set":
        key = set_key(_keys(tree[1], budget))
        return "s:{s:{}}" if key == "s:{}" and tree[1] else key  # the set of the empty set is not empty
    trees = signed(tree)
    if len(trees) > 1:
        return set_key([tree_key(one, budget) for one in trees])
    if is_scalar(tree):
        return scalar_key(tree, budget)
    if tree[0] == "rel":
        return _relation_key(tree[1], tree[2], budget)
    if tree[0] == "text":
        return words_key(tree[1])
    if tree[0] == "ratio":
        return _ratio_key(tree[1], budget)
    if tree[0] == "tuple":
        return f"p:({';'.join(tree_key(item, budget) for item in tree[1])})"
    if tree[0] in ("interval", "setop"):
        found = region(tree, budget)
        return symbolic_key(tree, budget) if found is None else region_key(found)
    raise Strange(tree[0])


# ------------------------------------------------------------------------------------------------------------------ lists


def _list_key(items: tuple[Tree, ...], separators: tuple[str, ...], budget: Budget) -> str:
    """Values in any order; named values by their names; conditions joined by "or" and "and"."""
    if any(separator.startswith("logical") for separator in separators):
        if not all(item[0] == "rel" for item in items):
            raise Strange("a proposition")
        separators = tuple(separator.removeprefix("logical ") for separator in separators)
    kept = tuple(item for item in items if not (item[0] == "rel" and item[2] == ("in",) and item[1][1] == INTEGERS))
    if len(kept) == 1 and len(items) == 2:  # \frac{\pi}{4} + k\pi, k \in \mathbb{Z}
        return tree_key(kept[0], budget)
    if any(_is_inequality(item) for item in items) or _are_intervals(items):
        return _conditions_key(items, separators, budget)
    named = [_assigned(item) for item in items]
    if named[0] is not None and all(item[0] != "rel" for item in items[1:]):  # n = 2, 3, 4
        return set_key(_keys((named[0][1], *items[1:]), budget))
    if all(pair is not None for pair in named):
        pairs = [pair for pair in named if pair is not None]
        names = [name for name, _ in pairs]
        if len(set(names)) == 1:
            return set_key(_keys([value for _, value in pairs], budget))
        if 1 < len(set(names)) < len(names):
            raise Strange("several solutions")  # x=1, y=2 or x=2, y=1: which value goes with which?
        if len(set(names)) == len(names):
            keys = sorted(f"{name}={tree_key(value, budget)}" for name, value in pairs)
            return f"a:{{{'|'.join(keys)}}}"
    return set_key(_keys(items, budget))


def _keys(items: Iterable[Tree], budget: Budget) -> list[str]:
    """The keys of a list's items, of which ± makes two."""
    return [tree_key(one, budget) for item in items for one in signed(item)]


def _is_inequality(tree: Tree) -> bool:
    return tree[0] == "rel" and all(operator in MIRROR for operator in tree[2])


def _are_intervals(items: tuple[Tree, ...]) -> bool:
    """Whether a list is one of intervals, not of pairs: one of them has a square bracket or an infinite end."""
    pairs = all(item[0] in ("interval", "setop") or (item[0] == "tuple" and len(item[1]) == 2) for item in items)
    return pairs and any(
        item[0] in ("interval", "setop") or any(is_scalar(end) and infinite(end) for end in item[1]) for item in items
    )


def _conditions_key(items: tuple[Tree, ...], separators: tuple[str, ...], budget: Budget) -> str:
    found: list[Region | None] = []
    names = set()
    for item in items:
        found.append(_inequality(item, budget) if _is_inequality(item) else region(item, budget))
        names |= variables(item)
    regions = [one for one in found if one is not None]
    if len(regions) == len(items) and len(names) <= 1:
        if "and" not in separators and ("or" in separators or not names):
            return region_key(normal([piece for one in regions for piece in one]))
        if set(separators) == {"and"} or (set(separators) == {","} and names):
            common = regions[0]
            for one in regions[1:]:
                common = intersection(common, one)
            if common:
                return region_key(common)
            return region_key(normal([piece for one in regions for piece in one]))  # "x < 1 and x > 3" means either
    return f"L:{'|'.join(sorted(set(separators)))}" + set_key(
        [f"{','.join(sorted(variables(item)))}:{tree_key(item, budget)}" for item in items]
    )


def _ratio_key(parts: tuple[Tree, ...], budget: Budget) -> str:
    """3:4 in lowest terms; what may be a time of day (12:00) as it stands."""
    keys = [scalar_key(part, budget) for part in parts]
    values = [
        Fraction(key[2:]) if key.startswith("n:") and key[2:] not in ("inf", "-inf") and "#" not in key else None for key in keys
    ]
    if any(value is None for value in values):
        return f"q:{':'.join(keys)}"
    numbers = [value for value in values if value is not None]
    clock = len(numbers) == 2 and all(v.denominator == 1 for v in numbers) and 0 <= numbers[0] <= 24 and 0 <= numbers[1] < 60
    if clock and (numbers[1] >= 10 or numbers[1] == 0):
        return f"q:{numbers[0]}:{numbers[1]}"
    scale = next((value for value in numbers if value), None)
    if scale is None:
        raise Strange("ratio")
    return "q:" + ":".join(str(value / scale) for value in numbers)


# -------------------------------------------------------------------------------------------------------------- relations


def _named(tree: Tree) -> str | None:
    """The name that stands on one side of an assignment: x, f(x), (x, y), V_1 : V_2, or words."""
    if tree[0] == "sym":
        return tree[1]
    if tree[0] == "text":
        return "text " + tree[1]
    if tree[0] == "app" and all(argument[0] in ("sym", "num") for argument in tree[2]):
        return f"{tree[1]}({','.join(str(argument[1]) for argument in tree[2])})"
    if tree[0] == "mul" and not tree[2] and all(factor[0] == "sym" for factor in tree[1]):
        letters = "".join(factor[1] for factor in tree[1])  # AB = 5, m\angle A = 30: a segment, an angle
        return letters if letters.isascii() and letters.removeprefix("m").isupper() else None
    if tree[:2] == ("fn", "abs") and tree[2][0][0] in ("mul", "sym"):
        return _named(tree[2][0]) if tree[2][0][0] == "mul" else None  # |AB| = 5
    if tree[0] in ("tuple", "ratio"):
        names = [_named(item) for item in tree[1]]
        if all(name is not None and not name.startswith("text ") for name in names):
            return f"({','.join(str(name) for name in names)})"
    return None


def _assigned(tree: Tree) -> tuple[str, Tree] | None:
    """The name and the value of `x = 5` or `5 = x`, or None when a tree is no assignment."""
    if tree[0] != "rel" or len(tree[1]) != 2 or tree[2] not in (("=",), ("in",)):
        return None
    left, right = tree[1]
    if left == right:
        raise Strange("an identity")
    for side, other in ((left, right), (right, left)):
        name = _named(side)
        if name is None or (side is right and (tree[2] == ("in",) or side[0] == "text")):
            continue
        if side[0] == "sym" and other[0] == "sym":
            first, second = sorted((side, other), key=lambda s: s[1])
            return second[1], first  # y = x and x = y alike
        inner = side[0] == "app"  # f(x) = x + 1 names the variable that it is about
        if other[0] != "text" and (not (variables(side) & variables(other)) or (inner and not holds(other, side))):
            return name, other
    return None


def _relation_key(sides: tuple[Tree, ...], operators: tuple[str, ...], budget: Budget) -> str:
    if operators == ("equiv",):
        residue, modulus = scalar_key(sides[1], budget), scalar_key(sides[2], budget)
        if _named(sides[0]) is None or not modulus[2:].isdigit() or not residue.startswith("n:") or modulus == "n:0":
            raise Strange("congruence")
        return f"mod:{Fraction(residue[2:]) % int(modulus[2:])}:{modulus[2:]}"
    if all(operator in MIRROR for operator in operators):
        found = _inequality(("rel", sides, operators), budget)
        return _constraints_key(sides, operators, budget) if found is None else region_key(found)
    if len(sides) == 2:
        assigned = _assigned(("rel", sides, operators))
        if assigned is not None:
            return tree_key(assigned[1], budget)
        if operators == ("in",):
            raise Strange("in")
        return _equation_key(sides[0], sides[1], budget)
    if set(operators) != {"="}:
        raise Strange("relation")
    names = [side for side in sides if _named(side) is not None]
    values = [side for side in sides if _named(side) is None]
    keys = {tree_key(value, budget) for value in values}
    if len(keys) != 1 or not names:
        raise Strange("chain")
    if len(names) == 1 or len(values) > 1:
        return keys.pop()
    key = keys.pop()
    return f"a:{{{'|'.join(sorted(f'{_named(name)}={key}' for name in names))}}}"  # x = y = 2


def _equation_key(left: Tree, right: Tree, budget: Budget) -> str:
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
    """The value of `name` for which a function that is linear in it, with a constant factor, vanishes."""
    x = ("sym", name)
    at = [substitute(difference, x, num(value)) for value in (0, 1, -3)]
    slope = minus(at[1], at[0])
    try:
        key = scalar_key(slope, budget)
        if not key.startswith("n:") or key == "n:0" or "#" in key:
            return None
        factor = Fraction(key[2:])
        if scalar_key(minus(at[2], at[0]), budget) != f"n:{-3 * factor}":
            return None
        further = substitute(difference, x, num(Fraction(7, 5)))
        if scalar_key(minus(further, at[0]), budget) != f"n:{factor * Fraction(7, 5)}":
            return None
    except (Strange, Nothing):
        return None
    return ("mul", (("neg", at[0]),), (num(factor),))


def _up_to_scale(difference: Tree, budget: Budget) -> tuple[str, int]:
    """A digest of a function's values up to a factor, and the sign taken out."""
    values: list[Fraction | None] = []
    rounded = False
    for k in range(POINTS):
        settled = settle(difference, k, budget)
        if isinstance(settled, list):
            raise Strange("an equation of matrices")
        re, im = settled
        rounded = rounded or isinstance(re, Approximate)
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


def _inequality(tree: Tree, budget: Budget) -> Region | None:
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


def _constraints_key(sides: tuple[Tree, ...], operators: tuple[str, ...], budget: Budget) -> str:
    """Inequalities in several variables, each up to a positive factor, in any order."""
    found = []
    for (left, right), operator in zip(pairwise(sides), operators, strict=True):
        if not (is_scalar(left) and is_scalar(right)) or real_number(minus(left, right), budget) is not None:
            raise Strange("inequality")
        shape, sign = _up_to_scale(minus(left, right), budget)
        found.append((operator if sign > 0 else MIRROR[operator]) + shape)
    return "i:" + ";".join(sorted(found))
