"""Takes the tree of an expression, gives its settled value at a fixed point: exact, or digits that two precisions agree on.

Variables have fixed values at each of a few points, drawn from their names, so equal functions have equal values whatever
their spelling. A number that is computed with many digits and turns out to be a rational with few of them is taken for
that rational: the square root of 8 over the square root of 2 is 2.
"""

from __future__ import annotations

from fractions import Fraction
from functools import lru_cache
from hashlib import blake2b
from itertools import combinations
from string import ascii_letters
from typing import Any, Final, NamedTuple

from jaxselftrain.answers.arithmetic import ONE, ZERO, Arithmetic, Budget, Gauss, exact
from jaxselftrain.answers.functions import apply, nearest_fraction
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.tokens import Nothing, Strange, TooLarge

POINTS: Final = 14
FAR: Final = 12  # from this one on the points are large: what is too large to compute there is left out
STEPS: Final = 6  # further points, whole numbers, for what holds \lfloor or \lceil, and as many again:
NEAR: Final = 2  # just below and above a whole number
REMOTE: Final = 8  # from 130 to beyond a million, of both signs; for what has corners (corners.py) too
DIGITS: Final = (130, 190)  # the two precisions; they must agree to
AGREED: Final = Fraction(1, 10**115)
MORE_DIGITS: Final = (300, 600)  # where they don't: mostly a zero
SIMPLE: Final = 10**40  # a fraction below this height is recognised, when it is as close as one part in
SIMPLE_BITS: Final = 134
CLOSE: Final = 10**140
VANISHING: Final = 64  # bits by which a divisor is smaller at the second precision: the more digits, the smaller, so zero
KEPT_DIGITS: Final = 100
MAX_TERMS: Final = 200  # of a sum or product
_MINUS: Final = tuple(combinations(range(8), 4))  # seventy rows of signs: where a variable is negative
_LETTERS: Final = r"\alpha \beta \gamma \delta \epsilon \zeta \eta \theta \lambda \mu \xi \rho \sigma \tau \phi \chi \psi \omega"
# Multiplied, so that neighbours such as x and y differ at several points.
_ROWS: Final = {name: 57 * n % 70 for n, name in enumerate([*ascii_letters, *_LETTERS.split()])}


class Approximate(NamedTuple):
    """A real number known to more digits than `KEPT_DIGITS`, and no simple fraction."""

    value: Fraction


Real = Fraction | Approximate
Complex = tuple[Real, Real]


@lru_cache(maxsize=4096)
def point(name: str, k: int) -> Fraction:
    """The value of a variable at point k.

    0 in (1/8, 1); 1 its reciprocal, so that every two variables are once in this order and once in the other, and |x - y| is
    neither x - y nor y - x; 2 in (1, 20); 3 in (-8, -1). At the next eight the signs are the variable's own (`_signs`), and
    of its four values of each sign the first and third are within 1, the second within 8, the fourth in 9..60. The last
    two are in 91..99, one of each sign: what turns at a number within 90 turns between points, whatever the letter. No
    farther, so that e^(2x^2) is not too large and e^-x not lost beside e^x.
    """
    if k == 1:
        return 1 / point(name, 0)
    if k >= POINTS:
        return _further(name, k)
    draw = _drawn(f"{k}:{name}", 8)
    bottom = (211, 223, 227, 229, 233, 239, 241, 251, 257, 263, 269, 271)[draw % 12]
    if k < 4:
        near, far = ((0.125, 1), (0, 0), (1, 20), (1, 8))[k]
        sign = -1 if k == 3 else 1
    else:
        signs = _signs(name)
        sign = signs[k - 4] if k < FAR else signs[0] * (-1) ** k
        near, far = ((0, 1), (1, 8), (0, 1), (9, 60))[signs[: k - 4].count(sign)] if k < FAR else (91, 99)
    low, high = int(near * bottom) + 1, int(far * bottom) - (far == 1)
    top = low + draw // 24 % (high - low)
    top += top % bottom == 0  # no whole numbers
    return Fraction(sign * top, bottom)


def _further(name: str, k: int) -> Fraction:
    """Points for what has steps or corners: whole numbers, one of each remainder by six; beside whole numbers; remote ones."""
    k -= POINTS
    draw = _drawn(f"{k + POINTS}:{name}", 2)
    if k < STEPS:
        return Fraction(6 * (draw // 256 % 9 - 3) + k)
    k -= STEPS
    if k < NEAR:
        return draw % 19 + Fraction((-1) ** (k + 1), 10**9 + draw)
    k -= NEAR
    size = (130 + draw % 170, 300 + draw % 700, 3_000 + draw % 7_000, 10**6 + draw)[k // 2]
    return Fraction((-1) ** k * size) + Fraction(draw, 2**16)


def _drawn(text: str, size: int) -> int:
    """A number of `size` bytes that looks random, the same for a text wherever it is drawn."""
    return int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest(), "big")


def _signs(name: str) -> tuple[int, ...]:
    r"""The signs of a variable at the last eight points, four of each.

    Of two variables with different such rows each is somewhere negative where the other is not, so that the root of x^2 y
    is neither x nor -x times the root of y. All letters and the common Greek ones have different rows; further names share.
    """
    row = _ROWS[name] if name in _ROWS else _drawn(name, 8) % len(_MINUS)
    return tuple(-1 if k in _MINUS[row] else 1 for k in range(8))


def variables(tree: Tree) -> set[str]:
    """The names of the variables and unknown functions in a tree."""
    found: set[str] = set()
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        if type(node) is not tuple or not node:
            continue
        if node[0] == "sym":
            found.add(node[1])
        elif node[0] == "builder":
            found |= variables(node[2]) | (variables(node[3]) - {node[1]})
        elif node[0] in ("sum", "prod"):
            found |= variables(node[2]) | variables(node[3]) | (variables(node[4]) - {node[1][1]})
        else:
            if node[0] == "app":
                found.add(node[1] + "()")
            stack.extend(node)
    return found


def holds(tree: Tree, *what: Any) -> bool:
    """Whether a node equal to one of `what` stands in the tree."""
    return tree in what or any(type(part) is tuple and part and holds(part, *what) for part in tree)


def substitute(tree: Any, old: Tree, new: Tree) -> Any:
    """The tree with every node `old` replaced."""
    if tree == old:
        return new
    if type(tree) is not tuple:
        return tree
    return tuple(substitute(part, old, new) if type(part) is tuple else part for part in tree)


class Walk:
    """The value of trees at one point."""

    def __init__(self, arithmetic: Arithmetic, k: int):
        self.by = arithmetic
        self.k = k

    def value(self, tree: Tree) -> Any:
        by = self.by
        by.budget.spend(1)
        kind = tree[0]
        if kind == "num":
            return tree[1]
        if kind == "sym":
            return point(tree[1], self.k)
        if kind == "add":
            return by.total([self.value(term) for term in tree[1]])
        if kind == "mul":
            product = self.value(tree[1][0])
            for factor in tree[1][1:]:
                product = by.mul(product, self.value(factor))
            for divisor in tree[2]:
                product = by.div(product, self.value(divisor))
            return product
        if kind == "neg":
            return by.neg(self.value(tree[1]))
        if kind == "pow":
            return self.power(tree[1], tree[2])
        if kind == "fn":
            return apply(tree[1], [self.value(argument) for argument in tree[2]], by)
        if kind == "deg":
            return self.value(tree[1])
        if kind == "const":
            if tree[1] == "i":
                return Gauss(ZERO, ONE)
            if tree[1] == "inf":
                raise Strange("infinity")
            by.charge(5)
            return +by.mp.pi if tree[1] == "pi" else +by.mp.e
        if kind == "matrix":
            return [[self.value(cell) for cell in row] for row in tree[1]]
        if kind in ("sum", "prod"):
            return self.series(tree)
        if kind == "app":
            arguments = ",".join(_text_of(self.value(argument), by) for argument in tree[2])
            return point(f"{tree[1]}({arguments})", self.k)
        raise Strange(kind)

    def series(self, tree: Tree) -> Any:
        """A sum or product over a range of integers."""
        first, last = self.value(tree[2]), self.value(tree[3])
        if not (type(first) is type(last) is Fraction and first.denominator == last.denominator == 1):
            raise Strange("range")
        if last - first > MAX_TERMS:
            raise TooLarge("terms")
        by, total = self.by, ZERO if tree[0] == "sum" else ONE
        size = _size(tree[4])
        for k in range(first.numerator, last.numerator + 1):
            by.budget.spend(20 + size)
            term = self.value(substitute(tree[4], tree[1], ("num", Fraction(k))))
            total = by.add(total, term) if tree[0] == "sum" else by.mul(total, term)
        return total

    def power(self, base: Tree, exponent: Tree) -> Any:
        e = self.value(exponent)
        if base == ("const", "e") and e != 0:
            return self.by.exp(e)
        if base[0] == "pow" and type(e) is Fraction and e.denominator == 1:
            inner = self.value(base[2])  # (\sqrt{2})^{100} is exact: the exponents multiply
            if type(inner) is Fraction:
                root = self.value(base[1])
                if type(root) is Fraction and root > 0:
                    return self.by.power(root, inner * e, real_roots=True)
        return self.by.power(self.value(base), e, real_roots=not variables(exponent))


def _size(tree: Any) -> int:
    """The number of nodes."""
    return 1 + sum(_size(part) for part in tree if type(part) is tuple)


def _text_of(value: Any, by: Arithmetic) -> str:
    """A stable spelling of an unknown function's argument."""
    if type(value) is list:
        raise Strange("matrix")
    if type(value) is Fraction:
        return str(value)
    number = by.number(value)
    re, im = (_recognised(nearest_fraction(x, by), by.budget) for x in (number.real, number.imag))
    return text(re) + "," + text(im)


def _recognised(value: Fraction, budget: Budget) -> Real:
    """A real number computed to many digits as the simple fraction that it is, or as itself."""
    budget.spend(80)
    if not value:
        return ZERO
    if abs(value.numerator.bit_length() - value.denominator.bit_length()) > SIMPLE_BITS:
        return Approximate(value)
    top, bottom = value.numerator, value.denominator
    (p, q), (p_next, q_next), rest, divisor = (0, 1), (1, 0), top, bottom
    while divisor and q_next < SIMPLE:  # the convergents of its continued fraction: one of them is it, or none is
        quotient, (rest, divisor) = rest // divisor, (divisor, rest % divisor)
        (p, q), (p_next, q_next) = (p_next, q_next), (p + quotient * p_next, q + quotient * q_next)
    if q_next >= SIMPLE:
        p_next, q_next = p, q
    if abs(p_next) < SIMPLE and abs(top * q_next - p_next * bottom) * CLOSE <= abs(top) * q_next:
        return Fraction(p_next, q_next)
    return Approximate(value)


def settle(tree: Tree, k: int, budget: Budget) -> Any:
    """The value of a tree at point k: a Complex, or rows of them for a matrix.

    Raises Strange (TooLarge) when it is too much or cannot be told, Nothing when it is undefined.
    """
    try:
        for digits in (DIGITS, MORE_DIGITS):
            low_by, high_by = Arithmetic(budget, digits[0]), Arithmetic(budget, digits[1])
            low = Walk(low_by, k).value(tree)
            if exact(low) and not low_by.divisors:
                return _agreed(low, low, high_by)
            high = Walk(high_by, k).value(tree)
            if any(a - b > VANISHING for a, b in zip(low_by.divisors, high_by.divisors, strict=False)):
                raise Nothing  # \sin\pi over \sin\pi is 0/0, though both are computed as something small
            if exact(low):
                return _agreed(low, low, high_by)
            if type(low) is not list:
                agreed = _agreed(low, high, high_by)
                if agreed is not None:
                    return agreed
                continue
            rows = [[_agreed(a, b, high_by) for a, b in zip(r, s, strict=True)] for r, s in zip(low, high, strict=True)]
            if all(cell is not None for row in rows for cell in row):
                return rows
    except ZeroDivisionError:
        raise Nothing from None
    except (ValueError, ArithmeticError) as error:  # mpmath's ways to say "outside the domain"
        raise Strange(str(error)[:50]) from None
    raise Strange("digits")


def _agreed(low: Any, high: Any, by: Arithmetic) -> Complex | None:
    """The value that two precisions agree on, or None when they don't."""
    if type(low) is Fraction:
        return (low, ZERO)
    if type(low) is Gauss:
        return (low.re, low.im)
    low, high = by.number(low), by.number(high)
    parts: list[Real] = []
    for x, y in ((low.real, high.real), (low.imag, high.imag)):
        a, b = nearest_fraction(x, by), nearest_fraction(y, by)
        if abs(a - b) <= AGREED * abs(b):
            parts.append(_recognised(b, by.budget))
        elif by.digits == MORE_DIGITS[1] and abs(a) < Fraction(1, 10**150) and abs(b) < Fraction(1, 10**400):
            parts.append(ZERO)  # the more digits, the smaller it gets
        else:
            return None
    return (parts[0], parts[1])


def text(value: Real) -> str:
    """A key's spelling of a real number."""
    if isinstance(value, Fraction):
        if value.numerator.bit_length() + value.denominator.bit_length() > 3000:
            return "#" + blake2b(f"{value.numerator:x}/{value.denominator:x}".encode(), digest_size=16).hexdigest()
        return str(value)
    size = abs(value.value)
    exponent = round((size.numerator.bit_length() - size.denominator.bit_length()) * 0.30103)
    while True:  # from within one or two of the exponent to the one that leaves exactly KEPT_DIGITS
        shift = KEPT_DIGITS - exponent
        top, bottom = size.numerator * 10 ** max(shift, 0), size.denominator * 10 ** max(-shift, 0)
        whole = (2 * top + bottom) // (2 * bottom)
        if whole >= 10**KEPT_DIGITS:
            exponent += 1
        elif whole < 10 ** (KEPT_DIGITS - 1):
            exponent -= 1
        else:
            return f"{'-' if value.value < 0 else ''}{whole}e{exponent}"
