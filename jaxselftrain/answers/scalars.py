"""Takes the tree of one expression, gives its key: a number's value, or a function's values at fixed points."""

from __future__ import annotations

from fractions import Fraction
from hashlib import blake2b
from itertools import product
from typing import Any, Final

from jaxselftrain.answers.arithmetic import Budget
from jaxselftrain.answers.corners import without_corners
from jaxselftrain.answers.evaluate import FAR, NEAR, POINTS, REMOTE, STEPS, Complex, holds, point, settle, text, variables
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.tokens import Nothing, Strange, TooLarge

INFINITY: Final = ("const", "inf")
IMAGINARY: Final = ("const", "i")
MAX_SIGNS: Final = 4  # of ± in one item: sixteen values
_SCALAR: Final = frozenset({"num", "sym", "const", "add", "mul", "neg", "pow", "fn", "app", "deg", "matrix", "sum", "prod"})


def is_scalar(tree: Tree) -> bool:
    return tree[0] in _SCALAR


def scalar_key(tree: Tree, budget: Budget) -> str:
    """The key of a number, function or matrix. Raises Strange, TooLarge, Nothing."""
    sign = infinite(tree)
    if sign:
        return "n:inf" if sign > 0 else "n:-inf"
    if tree[0] == "num":
        return "n:" + text(tree[1])
    names = variables(tree)
    if not names:
        value = settle(tree, 0, budget)
        return number_key(value) if type(value) is tuple else _matrix_key([value], ())
    values = at_points(tree, budget)
    if type(values[0]) is list:
        return _matrix_key(values, names, has_i=holds(tree, IMAGINARY))
    key = _function_key(values, names, has_i=holds(tree, IMAGINARY))
    if _holds_function(tree, "floor", "ceil"):
        at_steps = _spelled(tree, range(POINTS, POINTS + STEPS + NEAR + REMOTE), budget)
        return key if key.startswith("n:") and set(at_steps) == {key} else "f:" + digest([key, *at_steps])
    return _with_corners(key, values, tree, budget)


def at_points(tree: Tree, budget: Budget) -> list[Any]:
    """The values of a function at the points; None at a far one where it cannot be computed."""
    values: list[Any] = [settle(tree, k, budget) for k in range(FAR)]
    for k in range(FAR, POINTS):
        try:
            values.append(settle(tree, k, budget))
        except (Strange, Nothing):
            if budget.left < 0:
                raise
            values.append(None)
    return values


def _spelled(tree: Tree, points: range, budget: Budget) -> list[str]:
    """The keys of a function's values at further points."""
    found = []
    for k in points:
        try:
            found.append(number_key(settle(tree, k, budget)))
        except Nothing:
            found.append("undefined")
        except TooLarge:
            if budget.left < 0:
                raise
            found.append("too large")
    return found


def _with_corners(key: str, values: list[Any], tree: Tree, budget: Budget) -> str:
    """The key of a function whose corners may lie beyond the points: |x - 500|, which is 500 - x at all of them.

    Where a function without corners agrees with it at the points and beyond, it is that function: |x|^2 has the key of x^2.
    Where none does at the points, its key tells so already.
    """
    try:
        smooth = without_corners(tree, budget)
        if smooth == tree:
            return key
        for k, value in enumerate(values):
            if value is not None and number_key(value) != number_key(settle(smooth, k, budget)):
                return key
        remote = range(POINTS + STEPS + NEAR, POINTS + STEPS + NEAR + REMOTE)
        beyond = _spelled(tree, remote, budget)
        return key if beyond == _spelled(smooth, remote, budget) else "f:" + digest([key, *beyond])
    except (Strange, Nothing):
        if budget.left < 0:
            raise
        return key


def _holds_function(tree: Any, *names: str) -> bool:
    if tree[:1] == ("fn",) and tree[1] in names:
        return True
    return any(_holds_function(part, *names) for part in tree if type(part) is tuple)


def infinite(tree: Tree) -> int:
    """1 for infinity, -1 for minus infinity, 0 for everything else; raises Nothing for what has no value, such as inf - inf."""
    if tree == INFINITY:
        return 1
    if tree[0] == "neg":
        return -infinite(tree[1])
    if tree[0] in ("add", "mul", "pow", "fn") and holds(tree, INFINITY):
        if tree[0] == "add":
            signs = {infinite(term) if holds(term, INFINITY) else 0 for term in tree[1]}
            if {1, -1} <= signs:
                raise Nothing
        if tree[0] == "mul":
            numbers = [f for f in tree[1] if f[0] == "num"]
            if any(not f[1] for f in numbers) or (holds(tree[1], INFINITY) and holds(tree[2], INFINITY)):
                raise Nothing
        raise Strange("infinity")
    return 0


def number_key(value: Complex) -> str:
    re, im = value
    if im == 0:
        return ("n:" if type(re) is Fraction else "r:") + text(re)
    return f"c:{text(re)},{text(im)}"


def _function_key(values: list[Complex | None], names: set[str], has_i: bool) -> str:
    """Equal functions of real variables agree wherever both are real; where one is not, the other must not be either."""
    spelled = ["not computed" if value is None else number_key(value) for value in values]
    if len({key for key, value in zip(spelled, values, strict=True) if value is not None}) == 1:
        return spelled[0]
    for name in names:
        if spelled == [f"n:{point(name, k)}" for k in range(POINTS)]:
            return "t:" + name
    if not has_i:
        real = [value is None or value[1] == 0 for value in values]
        if any(real[:FAR]):
            spelled = [key if is_real else "undefined" for key, is_real in zip(spelled, real, strict=True)]
    return "f:" + digest(spelled)


def digest(parts: list[str]) -> str:
    return blake2b("|".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _matrix_key(values: list[Any], names: Any, has_i: bool = True) -> str:
    rows, columns = len(values[0]), len(values[0][0])
    cells = []
    for r, c in product(range(rows), range(columns)):
        cell = [None if value is None else value[r][c] for value in values]
        cells.append(_function_key(cell, set(names), has_i) if len(cell) > 1 else number_key(values[0][r][c]))
    return f"m:{rows}x{columns}({';'.join(cells)})"


def real_number(tree: Tree, budget: Budget) -> Fraction | None:
    """The value of a tree without variables where it is real (many-digit numbers as the fraction they are), else None."""
    if not is_scalar(tree) or variables(tree) or holds(tree, INFINITY):
        return None
    value = settle(tree, 0, budget)
    if type(value) is list or value[1] != 0:
        return None
    return value[0] if type(value[0]) is Fraction else value[0].value


def signed(tree: Tree) -> list[Tree]:
    """Every tree that a tree with ± stands for; with ∓ in it the signs belong together, otherwise they are independent."""
    plus, minus = _count(tree, "pm"), _count(tree, "mp")
    if plus + minus == 0:
        return [tree]
    if minus:
        return [_choose(tree, [s] * (plus + minus)) for s in (1, -1)]
    if plus > MAX_SIGNS:
        raise TooLarge("signs")
    return [_choose(tree, list(signs)) for signs in product((1, -1), repeat=plus)]


def _count(tree: Any, kind: str) -> int:
    return (tree[:1] == (kind,)) + sum(_count(part, kind) for part in tree if type(part) is tuple)


def _choose(tree: Any, signs: list[int]) -> Any:
    """The tree with its ± and ∓ replaced by signs, which are used up in the order of writing."""
    if tree[:1] == ("pm",) or tree[:1] == ("mp",):
        sign = signs.pop(0) * (1 if tree[0] == "pm" else -1)
        inner = _choose(tree[1], signs)
        return inner if sign > 0 else ("neg", inner)
    return tuple(_choose(part, signs) if type(part) is tuple else part for part in tree)
