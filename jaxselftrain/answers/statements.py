"""Takes the tree of an answer, gives its key: relations, assignments, lists and sets of expressions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction

from jaxselftrain.answers.arithmetic import Budget
from jaxselftrain.answers.conditions import are_intervals, domain, numbers_key, region_of
from jaxselftrain.answers.evaluate import holds, variables
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.regions import intersection, region, region_key, set_key, symbolic_key
from jaxselftrain.answers.relations import MIRROR, constraints_key, equation_key, inequality, is_inequality
from jaxselftrain.answers.scalars import infinite, is_scalar, real_number, scalar_key, signed
from jaxselftrain.answers.tokens import Nothing, Strange
from jaxselftrain.answers.words import list_key, words_key

_OTHER_NAME = re.compile(r"'$|_[^,()]*[+-]")  # y' = 2x does not say what y is, nor a_{n+1} = 2n + 1 what a_n is


def tree_key(tree: Tree, budget: Budget) -> str:
    """The key of a whole answer. Raises Strange (TooLarge) and Nothing."""
    if tree[0] == "list":
        return _list_key(tree[1], tree[2], budget)
    if tree[0] == "set":
        keys = _keys(tree[1], budget)
        of_a_set = len(set(keys)) == 1 and tree[1][0][0] == "set"
        return f"s:{{{keys[0]}}}" if of_a_set else set_key(keys)
    trees = signed(tree)
    if len(trees) > 1:
        return set_key([tree_key(one, budget) for one in trees])
    if is_scalar(tree):
        return scalar_key(tree, budget)
    if tree[0] == "rel":
        return _relation_key(tree[1], tree[2], budget)
    if tree[0] == "builder":
        return _builder_key(tree[1], tree[2], tree[3], budget)
    if tree[0] == "text":
        return words_key(tree[1])
    if tree[0] == "approx":
        return _approximated_key(tree[1], tree[2], budget)
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
    kept = tuple(item for item in items if domain(item) is None)
    if 0 < len(kept) < len(items):
        declared = [found for found in map(domain, items) if found is not None]
        return _declared_key(kept, separators[: len(kept) - 1], dict(declared), budget)
    if items[0][0] == "rel" and items[0][2] == ("!=",) and set(separators) <= {",", "and"} and all(map(is_scalar, items[1:])):
        items = (items[0], *(("rel", (items[0][1][0], item), ("!=",)) for item in items[1:]))  # x \neq 1, 2
        separators = ("and",) * len(separators)
    if any(is_inequality(item) for item in items) or are_intervals(items):
        found = region_of(items, set(separators), budget)
        if found or (found is not None and set(separators) != {"and"}):  # nobody answers what contradicts itself
            return region_key(found)
        parts = [f"{','.join(sorted(variables(item)))}:{tree_key(item, budget)}" for item in items]
        return f"L:{'|'.join(sorted(set(separators)))}" + set_key(parts)
    if all(item[0] == "text" or (item[0] == "sym" and len(item[1]) == 1 and item[1].isupper()) for item in items):
        spelled = [words_key(item[1]) for item in items]  # choices, verdicts, names
        if all(key.startswith("t:") for key in spelled):
            return list_key([key[2:] for key in spelled], either="or" in separators)
    named = [_assigned(item) for item in items]
    if named[0] is not None and not _at_number(items[0]) and all(item[0] != "rel" for item in items[1:]):  # n = 2, 3, 4
        names = items[0][1][0]
        rest = [_in_order(names, item)[1] for item in items[1:]] if names[0] in ("tuple", "ratio") else items[1:]
        return set_key(_keys((named[0][1], *rest), budget))
    if all(pair is not None for pair in named):
        pairs = [pair for pair in named if pair is not None]
        distinct = {name for name, _ in pairs}
        if len(distinct) == 1 and not _at_number(items[0]):
            return set_key(_keys([value for _, value in pairs], budget))
        if 1 < len(distinct) < len(pairs):
            raise Strange("several solutions")  # x=1, y=2 or x=2, y=1: which value goes with which?
        if len(distinct) == len(pairs):
            keys = sorted(f"{name}={tree_key(value, budget)}" for name, value in pairs)
            return f"{'L:or' if 'or' in separators else 'a:'}{{{'|'.join(keys)}}}"  # x = 1 or y = 2 does not say both
    either = "or" in separators and any(item[0] == "rel" for item in items)
    return ("L:or" if either else "") + set_key(_keys(items, budget))


def _keys(items: Iterable[Tree], budget: Budget) -> list[str]:
    """The keys of a list's items, of which ± makes two, and a set stays one: {1, {2}} is not {1, 2}, nor {{}} empty."""
    return [_element_key(one, budget) for item in items for one in signed(item)]


def _element_key(tree: Tree, budget: Budget) -> str:
    key = tree_key(tree, budget)
    return f"s:{{{key}}}" if tree[0] == "set" and (key == "s:{}" or not key.startswith("s:{")) else key


def _declared_key(items: tuple[Tree, ...], separators: tuple[str, ...], declared: dict[str, str], budget: Budget) -> str:
    r"""Answers beside the sets that their variables range over: x > 2, x \in \mathbb{Z}; k\pi, k \in \mathbb{Z}."""
    if len(declared) == 1 and all(is_inequality(item) and variables(item) == set(declared) for item in items):
        ((name, numbers),) = declared.items()
        return _builder_key(name, ("numbers", numbers), ("list", items, separators), budget)
    equations = any(item[0] == "rel" and item[2] != ("equiv",) and _assigned(item) is None for item in items)
    if not set(declared.values()) <= {"Z", "R"} or (equations and "Z" in declared.values()):  # 2x = 5 has no integer solution
        raise Strange("declared")
    return tree_key(items[0], budget) if len(items) == 1 else _list_key(items, separators, budget)


def _builder_key(name: str, ranges: Tree, condition: Tree, budget: Budget) -> str:
    r"""The set of all `name` in `ranges` for which a condition holds."""
    items, separators = (condition[1], condition[2]) if condition[0] == "list" else ((condition,), ())
    if all(is_inequality(item) for item in items) and variables(condition) == {name}:
        found = region_of(items, {separator.removeprefix("logical ") for separator in separators}, budget)
        if found is not None and ranges[0] == "numbers":
            return numbers_key(found, ranges[1])
        within = None if found is None or ranges == ("reals",) else region(ranges, budget)
        if found is not None and (within is not None or ranges == ("reals",)):
            return region_key(found if within is None else intersection(found, within))
    if ranges != ("reals",):
        raise Strange("set")
    key = tree_key(condition, budget)
    return key if variables(condition) == {name} else f"b:{name}:{key}"


def _ratio_key(parts: tuple[Tree, ...], budget: Budget) -> str:
    """3:4 in lowest terms; what may be a time of day (12:00) as it stands."""
    keys = [scalar_key(part, budget) for part in parts]
    if any(variables(part) for part in parts) or not all(key[:2] in ("n:", "r:") for key in keys):
        return f"q:{':'.join(keys)}"
    clock = len(keys) == 2 and all(key[2:].isdigit() and key[:2] == "n:" for key in keys) and len(keys[0]) < 5 > len(keys[1])
    if clock and int(keys[0][2:]) <= 24 and 10 <= int(keys[1][2:]) < 60:
        return f"q:{keys[0][2:]}:{keys[1][2:]}"
    if any(map(infinite, parts)):
        raise Strange("ratio")
    if keys[-1] == "n:0":
        raise Nothing  # 1:0 and 0:0, like 1/0
    first = next(part for part, key in zip(parts, keys, strict=True) if key != "n:0")
    return "q:" + ":".join(scalar_key(("mul", (part,), (first,)), budget).removeprefix("n:") for part in parts)


def _approximated_key(tree: Tree, decimal: Tree, budget: Budget) -> str:
    """The key of the number before "is about", where the decimal after it is that number to within its last place."""
    value, close = real_number(tree, budget), real_number(decimal, budget)
    if value is None or close is None:
        raise Strange("about")
    place = next((Fraction(1, 10**k) for k in range(20) if (10**k * close).denominator == 1), None)
    if place is None or abs(value - close) >= place:
        raise Strange("about")
    return scalar_key(tree, budget)


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
        if len(tree[1]) == 2 and tree[1][0] == ("sym", "m") and tree[1][1][1].startswith("angle "):
            return tree[1][1][1]
        letters = "".join(factor[1] for factor in tree[1])  # AB = 5: a segment
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
            return _in_order(side, other) if side[0] in ("tuple", "ratio") else (name, other)
    return None


def _at_number(relation: Tree) -> bool:
    """Whether a relation is about a function at a number, f(2) = 3, which says nothing about f elsewhere: it keeps its name."""
    return any(side[0] == "app" and all(argument[0] == "num" for argument in side[2]) for side in relation[1])


def _in_order(names: Tree, value: Tree) -> tuple[str, Tree]:
    """The names of a tuple or ratio sorted, and their values likewise: (y, x) = (1, 2) says (x, y) = (2, 1)."""
    spelled = [str(_named(name)) for name in names[1]]
    order = sorted(range(len(spelled)), key=lambda k: _natural(spelled[k]))
    name = f"({','.join(spelled[k] for k in order)})"
    if order == list(range(len(spelled))) and len(set(spelled)) == len(spelled):
        return name, value

    def reordered(tree: Tree) -> Tree:
        if tree[0] == "set":
            return ("set", tuple(reordered(item) for item in tree[1]))
        if tree[0] != names[0] or len(tree[1]) != len(spelled) or len(set(spelled)) < len(spelled):
            raise Strange("names")
        return (tree[0], tuple(tree[1][k] for k in order))

    return name, reordered(value)


def _natural(name: str) -> tuple[bool, list[tuple[bool, int, str]], str]:
    r"""The order in which people write names: x_2 before x_{10}, a before B, r before \theta."""
    parts = re.findall(r"([0-9]{1,9})|([^0-9]+)", name.casefold())
    return name.startswith("\\"), [(not digits, int(digits or 0), other) for digits, other in parts], name.swapcase()


def _relation_key(sides: tuple[Tree, ...], operators: tuple[str, ...], budget: Budget) -> str:
    if operators == ("equiv",):
        residue, modulus = scalar_key(sides[1], budget), scalar_key(sides[2], budget)
        if _named(sides[0]) is None or not modulus[2:].isdigit() or not residue.startswith("n:") or modulus == "n:0":
            raise Strange("congruence")
        return f"mod:{Fraction(residue[2:]) % int(modulus[2:])}:{modulus[2:]}"
    if all(operator in MIRROR for operator in operators):
        found = inequality(("rel", sides, operators), budget)
        return constraints_key(sides, operators, budget) if found is None else region_key(found)
    if len(sides) == 2:
        assigned = _assigned(("rel", sides, operators))
        if assigned is not None:
            key = tree_key(assigned[1], budget)
            kept = _at_number(("rel", sides, operators)) or _OTHER_NAME.search(assigned[0])
            return f"a:{{{assigned[0]}={key}}}" if kept else key
        if operators == ("in",):
            raise Strange("in")
        return equation_key(sides[0], sides[1], budget)
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
