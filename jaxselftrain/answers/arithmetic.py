"""Takes exact or many-digit numbers, gives sums, products, powers and functions of them, never more work than its budget allows.

A value is a Fraction, a Gauss (exact complex), an mpmath number, or a list of rows (matrix). What is exact stays exact as
long as it can. Sizes are bounded before a result is computed, and work is counted in operations, not in seconds, so the
same text has the same outcome on a slow machine.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from fractions import Fraction
from typing import Any, Final, NamedTuple

from jaxselftrain.answers.tokens import Nothing, Strange, TooLarge

MAX_BITS: Final = 65_536  # of one exact integer: 5,000! has 54,000
MAX_WORK: Final = 50_000  # about microseconds
MAX_LOG: Final = 20_000  # of a many-digit number, either way: e^20000
GAMMA_DIGITS: Final = 200  # the gamma function's tables for more cost a second

ZERO: Final = Fraction(0)
ONE: Final = Fraction(1)
_contexts = threading.local()  # mpmath changes a context's precision inside its functions: not to be shared by threads


class Gauss(NamedTuple):
    """An exact complex number that is not real."""

    re: Fraction
    im: Fraction


class Budget:
    """The work that one answer may still cost."""

    def __init__(self, work: int = MAX_WORK):
        self.left = work

    def spend(self, work: int) -> None:
        self.left -= work
        if self.left < 0:
            raise TooLarge("work")


def bits(value: Fraction) -> int:
    return value.numerator.bit_length() + value.denominator.bit_length()


def _gauss(re: Fraction, im: Fraction) -> Any:
    return Gauss(re, im) if im else re


def _parts(value: Any) -> tuple[Fraction, Fraction]:
    return (value.re, value.im) if type(value) is Gauss else (value, ZERO)


def exact(value: Any) -> bool:
    return type(value) is Fraction or type(value) is Gauss


class Arithmetic:
    """Operations at a number of decimal digits."""

    def __init__(self, budget: Budget, digits: int):
        self.budget = budget
        self.digits = digits
        self.divisors: list[int] = []  # binary magnitudes of the many-digit numbers that must not be zero
        self._mp: Any = None

    @property
    def mp(self) -> Any:
        if self._mp is None:
            cached = _contexts.__dict__.setdefault("by_digits", {})
            if self.digits not in cached:
                from mpmath.ctx_mp import MPContext  # imported late: plain numbers do not need it

                cached[self.digits] = MPContext()
                cached[self.digits].dps = self.digits
            self._mp = cached[self.digits]
        return self._mp

    def number(self, value: Any) -> Any:
        """The value as an mpmath number."""
        if type(value) is Fraction:
            self.charge(4)
            return self.mp.mpf(value.numerator) / value.denominator
        if type(value) is Gauss:
            return self.mp.mpc(self.number(value.re), self.number(value.im))
        if type(value) is list:
            raise Strange("matrix")
        return value

    def charge(self, work: int) -> None:
        """Spend work that grows with the precision: `work` microseconds at 150 digits."""
        self.budget.spend(work * (self.digits + 150) // 300 + 1)

    def dearer(self, value: Any, work: int) -> int:
        """The work that a function of a many-digit number costs: complex ones take two to four times what real ones do."""
        return 2 * work if isinstance(value, self.mp.mpc) else work

    def bounded(self, value: Any) -> Any:
        """An mpmath number, unless it is so large or small that the next step would be too much."""
        mp = self.mp
        if not mp.isfinite(value):
            raise TooLarge("not finite")
        if value and abs(mp.mag(value)) > 2 * MAX_LOG:
            raise TooLarge("magnitude")
        return value

    def nonzero(self, value: Any) -> Any:
        """The value, noted as one that has to be there: whether it is zero, one precision alone cannot tell."""
        self.divisors.append(int(self.mp.mag(value)))
        return value

    # ------------------------------------------------------------------------------------------------------ + - * /

    def add(self, a: Any, b: Any) -> Any:
        if type(a) is Fraction and type(b) is Fraction:
            self._charge_exact(bits(a) + bits(b))
            return a + b
        if type(a) is list or type(b) is list:
            if type(a) is not list or type(b) is not list or len(a) != len(b) or len(a[0]) != len(b[0]):
                raise Strange("matrix")
            return [[self.add(x, y) for x, y in zip(r, s, strict=True)] for r, s in zip(a, b, strict=True)]
        if exact(a) and exact(b):
            (ar, ai), (br, bi) = _parts(a), _parts(b)
            return _gauss(self.add(ar, br), self.add(ai, bi))
        self.charge(3)
        return self.bounded(self.number(a) + self.number(b))

    def _charge_exact(self, size: int) -> None:
        if size > 2 * MAX_BITS:
            raise TooLarge("digits")
        self.budget.spend(3 + (size >> 7) * (size >> 7) // 250)

    def neg(self, a: Any) -> Any:
        return self.mul(Fraction(-1), a)

    def mul(self, a: Any, b: Any) -> Any:
        if type(a) is Fraction and type(b) is Fraction:
            self._charge_exact(bits(a) + bits(b))
            return a * b
        if type(a) is list or type(b) is list:
            return self._matrix_product(a, b)
        if exact(a) and exact(b):
            (ar, ai), (br, bi) = _parts(a), _parts(b)
            re = self.add(self.mul(ar, br), -self.mul(ai, bi))
            return _gauss(re, self.add(self.mul(ar, bi), self.mul(ai, br)))
        self.charge(3)
        return self.bounded(self.number(a) * self.number(b))

    def div(self, a: Any, b: Any) -> Any:
        return self.mul(a, self.inverse(b))

    def inverse(self, b: Any) -> Any:
        if type(b) is list:
            return self._matrix_inverse(b)
        if not b:
            raise Nothing
        if type(b) is Fraction:
            return 1 / b
        if type(b) is Gauss:
            square = self.add(self.mul(b.re, b.re), self.mul(b.im, b.im))
            return Gauss(self.div(b.re, square), self.div(-b.im, square))
        self.charge(5)
        return self.bounded(1 / self.nonzero(b))

    def _matrix_product(self, a: Any, b: Any) -> Any:
        if type(a) is not list:
            return [[self.mul(a, x) for x in row] for row in b]
        if type(b) is not list:
            return [[self.mul(x, b) for x in row] for row in a]
        if len(a[0]) != len(b):
            raise Strange("matrix")
        columns = list(zip(*b, strict=True))
        return [[self.total(self.mul(x, y) for x, y in zip(row, column, strict=True)) for column in columns] for row in a]

    def _matrix_inverse(self, rows: Any) -> Any:
        """Gauss-Jordan elimination; for exact entries only, whose zeros are certain."""
        size = len(rows)
        if size != len(rows[0]) or size > 5 or not all(exact(x) for row in rows for x in row):
            raise Strange("matrix")
        work = [[*row, *(ONE if i == j else ZERO for j in range(size))] for i, row in enumerate(rows)]
        for c in range(size):
            pivot = next((r for r in range(c, size) if work[r][c]), None)
            if pivot is None:
                raise Nothing
            work[c], work[pivot] = work[pivot], work[c]
            work[c] = [self.div(x, work[c][c]) for x in work[c]]
            for r in range(size):
                if r != c:
                    factor = self.neg(work[r][c])
                    work[r] = [self.add(x, self.mul(factor, y)) for x, y in zip(work[r], work[c], strict=True)]
        return [row[size:] for row in work]

    def total(self, values: Any) -> Any:
        sum_ = None
        for value in values:
            sum_ = value if sum_ is None else self.add(sum_, value)
        return sum_

    # ------------------------------------------------------------------------------------------------------------ powers

    def power(self, a: Any, e: Any, *, real_roots: bool) -> Any:
        """a^e; with `real_roots` a negative number has real odd roots, otherwise the principal branch holds everywhere."""
        if type(e) is Fraction and e.denominator == 1:
            return self._integer_power(a, e.numerator)
        if type(a) is list or type(e) is list:
            raise Strange("matrix")
        if not a:
            if type(e) is Fraction and e > 0:
                return ZERO
            raise Nothing
        if type(e) is Fraction and bits(e) < 4096:
            if type(a) is Fraction:
                return self._rational_power(a, e, real_roots)
            if real_roots and e.denominator % 2 and self.mp.im(self.number(a)) == 0 and self.number(a).real < 0:
                root = self.power(self.mul(Fraction(-1), a), e, real_roots=True)
                return root if e.numerator % 2 == 0 else self.neg(root)
        return self.exp(self.mul(e, self.log(a)))

    def _integer_power(self, a: Any, n: int) -> Any:
        if type(a) is Fraction:
            if not a and n <= 0:
                if n == 0:
                    return ONE
                raise Nothing
            if abs(a) == 1:
                return a if n % 2 else ONE
            if n.bit_length() > 40 or bits(a) * abs(n) > 2 * MAX_BITS:
                raise TooLarge("power")
            self._charge_exact(bits(a) * abs(n))
            return a**n
        if type(a) is Gauss and not a.re and abs(a.im) == 1:
            n %= 4  # i
        if type(a) is list or type(a) is Gauss:
            if abs(n) > 200 or (type(a) is list and n == 0):
                raise TooLarge("power")
            if n <= 0:
                return ONE if n == 0 else self.inverse(self._integer_power(a, -n))
            half = self._integer_power(a, n // 2) if n > 1 else None
            square = a if half is None else self.mul(half, half)
            return self.mul(square, a) if half is not None and n % 2 else square
        if n.bit_length() > 40 or (a and abs(self.mp.mag(a) * n) > MAX_LOG):
            raise TooLarge("power")
        if not a and n < 0:
            raise Nothing
        self.charge(10)
        return self.bounded(self.mp.power(self.nonzero(a) if n < 0 else a, n))

    def _rational_power(self, a: Fraction, e: Fraction, real_roots: bool) -> Any:
        if a < 0:
            if e.denominator == 2:
                return self.mul(self._integer_power(Gauss(ZERO, ONE), e.numerator % 4), self._rational_power(-a, e, real_roots))
            if e.denominator % 2 and real_roots:
                root = self._rational_power(-a, e, real_roots)
                return root if e.numerator % 2 == 0 else self.neg(root)
            return self.exp(self.mul(e, self.log(a)))
        if bits(a) <= 4096 and e.denominator <= 64:
            self.budget.spend(10 + bits(a) // 32)
            top, bottom = _root(a.numerator, e.denominator), _root(a.denominator, e.denominator)
            if top is not None and bottom is not None:
                return self._integer_power(Fraction(top, bottom), e.numerator)
        if (bits(a) + 1) * abs(e) > MAX_LOG:
            raise TooLarge("power")
        self.charge(40)
        mp = self.mp
        if e.denominator == 2:
            return self._integer_power(mp.sqrt(self.number(a)), e.numerator)
        return self.bounded(mp.power(self.number(a), self.number(e)))

    def exp(self, x: Any) -> Any:
        x = self.number(x)
        if abs(self.mp.re(x)) > MAX_LOG or (x and self.mp.mag(x) > 3000):
            raise TooLarge("exp")
        self.charge(self.dearer(x, 45))
        return self.bounded(self.mp.exp(x))

    def log(self, x: Any) -> Any:
        if not x:
            raise Nothing
        x = self.number(x)
        self.charge(self.dearer(x, 25))
        return self.bounded(self.mp.log(self.nonzero(x)))


def _root(n: int, degree: int) -> int | None:
    """The exact root of a positive integer, or None."""
    root = math.isqrt(n) if degree == 2 else _floor_root(n, degree)
    return root if root**degree == n else None


def _floor_root(n: int, degree: int) -> int:
    """The whole part of a root: from the leading half of its digits, by two or three of Newton's steps, which go down to it."""
    size = n.bit_length() // degree + 1  # bits of the root
    if size <= 8:
        return bisect_right(range(1 << size), n, key=lambda root: root**degree) - 1
    half = size // 2
    root = (_floor_root(n >> half * degree, degree) + 1) << half
    while True:
        lower = ((degree - 1) * root + n // root ** (degree - 1)) // degree
        if lower >= root:
            return root
        root = lower
