"""Takes conditions on a variable and the set that it ranges over, gives the set of numbers they describe, or its key."""

from __future__ import annotations

import math
from typing import Any, Final

from jaxselftrain.answers.arithmetic import Budget
from jaxselftrain.answers.evaluate import variables
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.regions import Region, intersection, normal, region, region_key, set_key
from jaxselftrain.answers.relations import inequality, is_inequality
from jaxselftrain.answers.scalars import infinite, is_scalar
from jaxselftrain.answers.tokens import Strange

MAX_LISTED: Final = 200  # integers that are spelled out


def domain(tree: Tree) -> tuple[str, str] | None:
    r"""The name and the set of a declaration such as k \in \mathbb{Z}, or None when a tree is none."""
    if tree[0] != "rel" or tree[2] != ("in",) or tree[1][0][0] != "sym" or tree[1][1][0] not in ("numbers", "reals"):
        return None
    return tree[1][0][1], "R" if tree[1][1][0] == "reals" else tree[1][1][1]


def are_intervals(items: tuple[Tree, ...]) -> bool:
    """Whether a list is one of intervals, not of pairs: one of them has a square bracket or an infinite end."""
    pairs = all(item[0] in ("interval", "setop") or (item[0] == "tuple" and len(item[1]) == 2) for item in items)
    return pairs and any(
        item[0] in ("interval", "setop") or any(is_scalar(end) and infinite(end) for end in item[1]) for item in items
    )


def region_of(items: tuple[Tree, ...], separators: set[str], budget: Budget) -> Region | None:
    """The numbers that inequalities in one variable, or intervals, describe together; None when they describe none.

    "And" between inequalities means both, "or" either; a comma means both where that is possible ("x > 1, x < 3") and else
    either ("x < 1, x > 3"). Intervals alone are a list, however they are joined.
    """
    found = [inequality(item, budget) if is_inequality(item) else region(item, budget) for item in items]
    names = {name for item in items for name in variables(item)}
    regions = [one for one in found if one is not None]
    if len(regions) < len(items) or len(names) > 1 or len(separators) > 1:
        return None
    either = normal([piece for one in regions for piece in one])
    if not names or separators == {"or"}:
        return either
    common = regions[0]
    for one in regions[1:]:
        common = intersection(common, one)
    return common if separators == {"and"} else common or either


def numbers_key(pieces: Region, name: str) -> str:
    """The key of those numbers in a region that belong to Z, Z+, N or R; "z:" and the runs of integers when there are many."""
    if name == "R":
        return region_key(pieces)
    if name not in ("Z", "Z+", "N"):
        raise Strange(name)
    runs: list[list[float]] = []  # whole numbers, or infinite
    for piece in pieces:
        low, high = piece.low.at, piece.high.at
        first: Any = low if math.isinf(low) else math.ceil(low) + (low == math.ceil(low) and not piece.low_closed)
        last: Any = high if math.isinf(high) else math.floor(high) - (high == math.floor(high) and not piece.high_closed)
        if name == "N" and first <= 0 <= last:
            raise Strange("natural numbers")  # with or without zero?
        first = max(first, 1) if name != "Z" else first
        if first > last:
            continue
        if runs and first <= runs[-1][1] + 1:
            runs[-1][1] = max(runs[-1][1], last)
        else:
            runs.append([first, last])
    if sum(last - first + 1 for first, last in runs) <= MAX_LISTED:
        return set_key([f"n:{n}" for first, last in runs for n in range(int(first), int(last) + 1)])
    return "z:" + "".join(f"[{first};{last}]" for first, last in runs)
