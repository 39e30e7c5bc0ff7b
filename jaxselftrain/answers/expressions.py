"""Takes the tokens of an answer, gives the tree of one expression: sums, products, powers, units and degrees."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Final

from jaxselftrain.answers.brackets import Brackets
from jaxselftrain.answers.reader import Tree
from jaxselftrain.answers.tables import (
    ACCENTS,
    ANY_INTEGER,
    COMPASS,
    DEGREES,
    LENGTHS,
    LETTER_MULTIPLES,
    MULTIPLES,
    NOT_UNITS,
    PERCENT,
    WHERE,
)
from jaxselftrain.answers.tokens import Strange, TooLarge

_SAID_OF_VARIABLES: Final = WHERE | ANY_INTEGER
_STARTS_FACTOR: Final = frozenset({"num", "sym", "const", "fn", "cmd", "begin"})
_FACTOR_COMMANDS: Final = frozenset(
    {"frac", "sqrt", "binom", "lfloor", "lceil", "overline", "bar", "sum", "prod", "gcd", "lcm", "max", "min", "angle"}
) | frozenset(ACCENTS.values())
_BARE_UNITS: Final = (("sym", "h"), ("sym", "s"))
_UNIT_TEXT = re.compile(r"[A-Za-zµΩ°$¢ ~.,/()^{}0-9²³·'%-]*")
_THIN_SPACE = re.compile(r"\\(?:[,;:! ]|cdot\b)")
_WORDS = re.compile(r"[A-Za-z]+")
_NUMBER_IN_UNIT = re.compile(r"(?:^|[\s(~]|(?<!\{)-)[0-9]")  # 5\text{ feet 6 inches}, 7\text{ R 2}; but cm^{2} and m/s2


class Expressions(Brackets):
    """Sums, products and powers of atoms."""

    # ------------------------------------------------------------------------------------------------- sums and products

    def expression(self) -> Tree:
        self.deeper()
        terms = [self.term()]
        while self.token.kind == "op" and self.token.value in ("+", "-", "±", "∓"):
            sign = self.take().value
            term = self.term()
            terms.append(term if sign == "+" else ({"-": "neg", "±": "pm", "∓": "mp"}[sign], term))
        tree = terms[0] if len(terms) == 1 else ("add", tuple(terms))
        if self.token[:2] in (("cmd", "over"), ("cmd", "choose")):  # 3 \over 4 takes all that stands on either side
            over = self.take().value == "over"
            below = self.expression()
            tree = ("mul", (tree,), (below,)) if over else ("fn", "binom", (tree, below))
        self.depth -= 1
        return tree

    def term(self) -> Tree:
        signs: list[str] = []
        while self.token.kind == "op" and self.token.value in ("+", "-", "±", "∓"):
            signs.append(self.take().value)
        if len(signs) > 3:
            raise Strange("signs")
        bracket = self.token.value == "("
        tree = self.product()
        if signs and tree[:2] == ("fn", "mod"):  # -7 mod 3 is 2, -(7 mod 3) is -1
            if bracket or signs != ["-"]:
                raise Strange("mod")
            return ("fn", "mod", (("neg", tree[2][0]), tree[2][1]))
        for sign in reversed(signs):
            tree = tree if sign == "+" else ({"-": "neg", "±": "pm", "∓": "mp"}[sign], tree)
        return tree

    def product(self) -> Tree:
        factors: list[Tree] = [self.power()]
        divisors: list[Tree] = []
        percents = 0
        if factors[0][0] in ("text", "reals"):
            return factors[0]
        while True:
            value = self.token.value if self.token.kind == "op" else ""
            if value in ("*", "/"):
                self.take()
                if value == "/" and self.token.kind == "unit" and not divisors:  # $12/hour
                    factors = [self.unit(_product(factors, divisors))]
                    continue
                sign = self.token.value if self.token.kind == "op" and self.token.value in ("-", "+") else ""
                if sign:
                    self.take()
                factor = self.power()
                (factors if value == "*" else divisors).append(("neg", factor) if sign == "-" else factor)
            elif value == "%":
                self.take()
                divisors.append(("num", Fraction(100)))
                percents += 1
                if self.starts_factor() or percents > 1:
                    raise Strange("%")
            elif value == "mod":
                self.take()
                left = _product(factors, divisors)
                factors, divisors = [("fn", "mod", (left, self.power()))], []
            elif self.token.kind == "text" and self.token.value.removeprefix("text:").strip(" ,") in _SAID_OF_VARIABLES:
                break
            elif self.token.kind in ("text", "unit", "word") or self.fraction_of_units():
                start = self.index
                tree = self.unit(_product(factors, divisors))
                words = "".join(token.value.partition(":")[2] or token.value for token in self.found[start : self.index])
                self.units.add(words.casefold().strip(" .").removesuffix("s"))
                if self.starts_factor():
                    raise Strange("unit")
                if self.token.value not in ("*", "/"):
                    return tree
                factors, divisors = [tree], []
            elif self.starts_factor():
                if self.token.kind == "num" and factors[-1][0] in ("num", "sym") and not divisors:
                    raise Strange("adjacent numbers")
                factors.append(self.power())
            else:
                break
        if self.vectors and sum(map(_is_vector, factors)) > 1:
            raise Strange("vectors")  # which product of them, and in which order?
        return _product(factors, divisors)

    def starts_factor(self) -> bool:
        token = self.token
        if token.kind == "op":
            if token.value == "(":
                return self.found[self.index + 1].value != "mod" and self.found[self.index + 2].value != "in"
            return token.value == "{" or (token.value == "[" and not self.square) or (token.value == "|" and not self.open_bars)
        return token.kind in _STARTS_FACTOR and (token.kind != "cmd" or token.value in _FACTOR_COMMANDS)

    def fraction_of_units(self) -> bool:
        r"""Whether a fraction such as \frac{\text{m}}{\text{s}} comes next."""
        return self.token[:2] == ("cmd", "frac") and self.found[self.index + 2].kind in ("text", "unit")

    def unit(self, tree: Tree, before: tuple[str, ...] = ()) -> Tree:
        """A number's unit, dropped; percent, degrees and words such as million change the value. `before`: its words so far."""
        token = self.take()
        if token.value == "frac":
            for _ in range(2):
                self.expect("{")
                tree = self.unit(tree)
                self.expect("}")
            return tree
        words = token.value.partition(":")[2] if token.kind == "text" else token.value
        words = _THIN_SPACE.sub(" ", words)
        if not _UNIT_TEXT.fullmatch(words) or _NUMBER_IN_UNIT.search(words):
            raise Strange(words)
        names = [w.casefold() for w in _WORDS.findall(words)]
        if token.kind == "text" and not names and words.strip(" .,'-") not in ("", "°", "$", "%"):
            raise Strange(words)
        kelvin = words.strip(" .") == "K" and (token.spaced or words[0] == " ")  # 300 K, but 5K
        if (words.strip(" .") in LETTER_MULTIPLES and not kelvin) or (tree[0] == "deg" and not COMPASS.isdisjoint(names)):
            raise Strange(words)
        while not before and names and names[0] in MULTIPLES:  # five hundred thousand
            tree = ("mul", (tree, ("num", Fraction(MULTIPLES[names[0]]))), ())
            names = names[1:]
        for name, last in zip(names, (*before[-1:], *names) if before else ("", *names), strict=False):
            if name in ("squared", "cubed") and last in LENGTHS:
                continue
            if name in NOT_UNITS or name in MULTIPLES or (name == "left" and (not last or last in LENGTHS)):
                raise Strange(words)
        if " ".join(names) in PERCENT:
            return ("mul", (tree,), (("num", Fraction(100)),))
        if names and names[0] in DEGREES:
            return ("deg", tree)
        if self.token.value == "^":
            self.take()
            self.exponent()
        slash = self.index
        if self.token.value == "/":
            self.take()
        if self.token.kind in ("text", "unit", "word") and not (self.token.kind == "word" and token.kind == "text"):
            return self.unit(tree, (*before, *names))
        if self.index != slash:
            if self.token[:2] in _BARE_UNITS:  # 3 km/h, 3 ft/s^2: after a unit no variable
                self.take()
                square = [t.value for t in self.found[self.index : self.index + 2]] == ["^", "2"]
                self.back_to(self.index + 2 * square)
                if self.token.kind == "":
                    return tree
            self.back_to(slash)
        return tree

    # --------------------------------------------------------------------------------------------- powers and postfixes

    def power(self) -> Tree:
        tree = self.primary()
        posts = 0
        while self.token.kind == "op" or self.token.value == "circ":
            value = self.token.value
            if value == "^":
                self.take()
                tree = self.raised(tree)
            elif value == "!":
                self.take()
                if self.token.value == "!":
                    raise Strange("!!")
                tree = ("fn", "factorial", (tree,))
            elif value == "°":
                self.take()
                tree = ("deg", tree)
            elif value == "_":
                self.take()
                tree = self.in_base(tree)
            else:
                break
            posts += 1
            if posts > 4:
                raise TooLarge("postfixes")
        return tree

    def raised(self, tree: Tree) -> Tree:
        """`tree` with the exponent that follows; degrees and transposes are written as exponents too."""
        start = self.index
        braces = self.token.value == "{"
        if braces:
            self.take()
        if self.token.value in ("circ", "°"):
            self.take()
            if braces:
                self.expect("}")
            if self.token.kind in ("text", "sym") and self.token.value in ("text:C", "text:F", "mathrm:C", "mathrm:F", "C", "F"):
                self.take()
            return ("deg", tree)
        if self.token.value in ("T", r"text:T", "mathrm:T", "top", "intercal") and tree[0] in ("matrix", "add", "mul"):
            self.take()
            if braces:
                self.expect("}")
            return ("fn", "transpose", (tree,))
        self.back_to(start)
        return ("pow", tree, self.exponent())

    def exponent(self) -> Tree:
        if self.token.value in ("-", "+") and self.token.kind == "op":
            sign = self.take().value
            tree = self.exponent_part()
            return ("neg", tree) if sign == "-" else tree
        return self.exponent_part()

    def exponent_part(self) -> Tree:
        self.deeper()
        tree = self.plain_number() if self.token.kind == "num" else self.primary()
        if self.token.value == "!" and self.found[self.index].kind == "op":
            raise Strange("!")  # 2^n! can be read in two ways
        if self.token.value == "^":
            self.take()
            tree = self.raised(tree)
        self.depth -= 1
        return tree

    def in_base(self, tree: Tree) -> Tree:
        """A number with its base written as an index."""
        base = self.argument()
        if tree[0] != "num" or base[0] != "num" or tree[1].denominator != 1 or base[1].denominator != 1 or not 2 <= base[1] <= 10:
            raise Strange("_")
        try:
            return ("num", Fraction(int(str(tree[1].numerator), int(base[1]))))
        except ValueError:
            raise Strange("base") from None


def _product(factors: list[Tree], divisors: list[Tree]) -> Tree:
    return factors[0] if len(factors) == 1 and not divisors else ("mul", tuple(factors), tuple(divisors))


def _is_vector(tree: Tree) -> bool:
    """Whether a name with an arrow or a hat stands in a tree outside bars."""
    if tree[:1] == ("sym",):
        return tree[1].startswith(("vec ", "hat "))
    return tree[:2] != ("fn", "abs") and any(type(part) is tuple and _is_vector(part) for part in tree)
