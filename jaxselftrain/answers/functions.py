"""Takes a function's name and values, gives its value: trigonometry, rounding, counting, number theory, determinants."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, Final

from jaxselftrain.answers.arithmetic import GAMMA_DIGITS, MAX_BITS, ONE, Arithmetic, Gauss, bits
from jaxselftrain.answers.tokens import Nothing, Strange, TooLarge

_MP_NAMES: Final = {
    "arcsin": "asin",
    "arccos": "acos",
    "arctan": "atan",
    "arccot": "acot",
    "arcsec": "asec",
    "arccsc": "acsc",
    "arcsinh": "asinh",
    "arccosh": "acosh",
    "arctanh": "atanh",
}
_WITH_POLES: Final = frozenset({"tan", "cot", "sec", "csc", "coth", "csch", "arctanh", "arccoth"})
_MAX_GAMMA: Final = 10_000
_MAX_SIDE: Final = 6  # of a determinant


def apply(name: str, values: Sequence[Any], by: Arithmetic) -> Any:
    """The value of the function `name`. Raises Strange and Nothing where it has none that can be computed."""
    special = _SPECIAL.get(name)
    if special is not None:
        return special(values, by)
    (value,) = values
    x = by.number(value)
    if x and by.mp.mag(x) > 3000:
        raise TooLarge(name)
    by.charge(by.dearer(x, 60))
    if name == "arccot" and not x:
        return by.mp.pi / 2
    result = by.bounded(getattr(by.mp, _MP_NAMES.get(name, name))(x))
    if name in _WITH_POLES and result:
        by.nonzero(1 / result)
    return result


def _log(values: Sequence[Any], by: Arithmetic) -> Any:
    value, base = values
    return by.div(by.log(value), by.log(base))


def _ln(values: Sequence[Any], by: Arithmetic) -> Any:
    return by.log(values[0])


def _abs(values: Sequence[Any], by: Arithmetic) -> Any:
    (value,) = values
    if type(value) is Fraction:
        return abs(value)
    if type(value) is list:
        return _determinant(values, by)
    by.charge(10)
    if type(value) is Gauss:
        return by.power(by.add(by.mul(value.re, value.re), by.mul(value.im, value.im)), Fraction(1, 2), real_roots=True)
    return abs(by.number(value))


def nearest_fraction(value: Any, by: Arithmetic) -> Fraction:
    """A real many-digit number as the exact Fraction that it is."""
    real = by.mp.mpf(value)
    sign, mantissa, exponent, _ = real._mpf_
    mantissa = -int(mantissa) if sign else int(mantissa)
    return Fraction(mantissa * (1 << exponent)) if exponent >= 0 else Fraction(mantissa, 1 << -exponent)


def _rounded(values: Sequence[Any], by: Arithmetic, rounding: Callable[[Fraction], int]) -> Any:
    (value,) = values
    if type(value) is not Fraction:
        by.charge(20)
        x = by.number(value)
        if by.mp.im(x) != 0 or (x and by.mp.mag(x) > by.digits):
            raise Strange("rounding")
        value = nearest_fraction(by.mp.re(x), by)
        whole = round(value)
        if abs(value - whole) < Fraction(1, 10 ** (by.digits // 2)):  # log_2 8 is 3, whatever its last digit
            return Fraction(whole)
    return Fraction(rounding(value))


def _floor(values: Sequence[Any], by: Arithmetic) -> Any:
    return _rounded(values, by, math.floor)


def _ceil(values: Sequence[Any], by: Arithmetic) -> Any:
    return _rounded(values, by, math.ceil)


def _integers(values: Sequence[Any]) -> list[int]:
    if not all(type(value) is Fraction and value.denominator == 1 for value in values):
        raise Strange("not an integer")
    return [value.numerator for value in values]


def _gcd(values: Sequence[Any], by: Arithmetic) -> Any:
    return Fraction(math.gcd(*_integers(values)))


def _lcm(values: Sequence[Any], by: Arithmetic) -> Any:
    if sum(bits(value) for value in values if type(value) is Fraction) > MAX_BITS:
        raise TooLarge("lcm")
    return Fraction(math.lcm(*_integers(values)))


def _mod(values: Sequence[Any], by: Arithmetic) -> Any:
    a, b = _integers(values)
    if b == 0:
        raise Nothing
    return Fraction(a % b)


def _extreme(values: Sequence[Any], by: Arithmetic, pick: Callable[..., Any]) -> Any:
    def real(value: Any) -> Fraction:
        if type(value) is Fraction:
            return value
        by.charge(10)
        x = by.number(value)
        if by.mp.im(x) != 0:
            raise Strange("order")
        return nearest_fraction(by.mp.re(x), by)

    return pick(values, key=real)


def _max(values: Sequence[Any], by: Arithmetic) -> Any:
    return _extreme(values, by, max)


def _min(values: Sequence[Any], by: Arithmetic) -> Any:
    return _extreme(values, by, min)


def _factorial(values: Sequence[Any], by: Arithmetic) -> Any:
    (value,) = values
    if type(value) is Fraction and value.denominator == 1:
        n = value.numerator
        if n < 0:
            raise Nothing
        if n.bit_length() * n > MAX_BITS + n:
            raise TooLarge("factorial")
        by.budget.spend(1 + n * n // 10_000)
        return Fraction(math.factorial(n))
    return _gamma(by.add(value, ONE), by)


def _gamma(value: Any, by: Arithmetic) -> Any:
    x = by.number(value)
    if by.digits > GAMMA_DIGITS or abs(x) > _MAX_GAMMA:
        raise TooLarge("gamma")
    by.charge(1000 if isinstance(x, by.mp.mpc) else 300)
    result = by.bounded(by.mp.gamma(x))
    by.nonzero(1 / result)
    return result


def _binomial(values: Sequence[Any], by: Arithmetic) -> Any:
    n, k = values
    if type(k) is Fraction and k.denominator == 1:
        if type(n) is Fraction and n.denominator == 1 and n >= 0:
            k = min(k, n - k)
            if k < 0:
                return Fraction(0)
            if k * n.numerator.bit_length() > MAX_BITS:
                raise TooLarge("binomial")
            by.budget.spend(1 + k.numerator * k.numerator // 1000)
            return Fraction(math.comb(n.numerator, k.numerator))
        if 0 <= k <= 100:  # a polynomial in n
            product: Any = ONE
            for j in range(k.numerator):
                product = by.div(by.mul(product, by.add(n, Fraction(-j))), Fraction(j + 1))
            return product
    below = by.mul(_factorial([k], by), _factorial([by.add(n, by.neg(k))], by))
    return by.div(_factorial([n], by), below)


def _determinant(values: Sequence[Any], by: Arithmetic) -> Any:
    (rows,) = values
    if type(rows) is not list or len(rows) != len(rows[0]) or len(rows) > _MAX_SIDE:
        raise Strange("determinant")
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, head in enumerate(rows[0]):
        minor = [[x for c, x in enumerate(row) if c != column] for row in rows[1:]]
        term = by.mul(head, _determinant([minor], by))
        terms.append(by.neg(term) if column % 2 else term)
    return by.total(terms)


def _transpose(values: Sequence[Any], by: Arithmetic) -> Any:
    (rows,) = values
    if type(rows) is not list:
        raise Strange("transpose")
    return [list(column) for column in zip(*rows, strict=True)]


def _conj(values: Sequence[Any], by: Arithmetic) -> Any:
    (value,) = values
    if type(value) is Fraction:
        return value
    return Gauss(value.re, -value.im) if type(value) is Gauss else by.mp.conj(by.number(value))


_SPECIAL: Final[dict[str, Callable[[Sequence[Any], Arithmetic], Any]]] = {
    "log": _log,
    "ln": _ln,
    "abs": _abs,
    "floor": _floor,
    "ceil": _ceil,
    "conj": _conj,
    "gcd": _gcd,
    "lcm": _lcm,
    "mod": _mod,
    "max": _max,
    "min": _min,
    "factorial": _factorial,
    "binom": _binomial,
    "det": _determinant,
    "transpose": _transpose,
}
