"""Generated answers: rewritings that keep the value keep the key, values that differ differ, and no text breaks the reader.

The other route is Python's own: Fraction arithmetic on the same tree, polynomials as lists of coefficients, square-free
radicands, membership in intervals.
"""

import re
from fractions import Fraction

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jaxselftrain.answers import answer_key, extract, is_opaque
from jaxselftrain.sections import Answer

settings.register_profile("shared machine", deadline=None)  # time is tested elsewhere, in CPU seconds
settings.load_profile("shared machine")
KINDS = re.compile(r"(?:[nrcftpIsuaeimqoLzb]|mod):", re.DOTALL)
INTEGERS = st.integers(-30, 30)


def trees(leaves):
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from("+-*/"), inner, inner),
            st.tuples(st.just("^"), inner, st.integers(-3, 3)),
            st.tuples(st.just("neg"), inner),
        ),
        max_leaves=7,
    )


NUMBERS = trees(st.integers(0, 40))
FUNCTIONS = trees(st.one_of(st.integers(0, 9), st.sampled_from(["x", "y", r"\theta", "a_1"])))


def value(tree):
    """The tree's value with Fractions; ZeroDivisionError where it has none."""
    if isinstance(tree, int):
        return Fraction(tree)
    if tree[0] == "neg":
        return -value(tree[1])
    a = value(tree[1])
    if tree[0] == "^":
        return a ** tree[2]
    b = value(tree[2])
    return {"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[tree[0]]()


def spell(tree, draw):
    """One of the many ways in which people write a tree; always bracketed enough."""

    def pick(*options):
        return options[draw(st.integers(0, len(options) - 1))]

    def group(text):
        return pick("({})", r"\left({}\right)", "( {} )", "{{{}}}", r"\bigl({}\bigr)").format(text)

    if isinstance(tree, int):
        return pick(str(tree), f"{tree}.0", f"{tree}", f"{{{tree}}}", f"({tree})")
    if isinstance(tree, str):
        return pick(tree + " ", f"{{{tree}}}", f"({tree})", rf"\mathit{{{tree}}}" if len(tree) == 1 else tree + " ")
    parts = [spell(part, draw) if not isinstance(part, int) or tree[0] != "^" else str(part) for part in tree[1:]]
    if tree[0] == "neg":
        return group(pick("-{}", r"-1\cdot {}", "0-{}", "- {}").format(group(parts[0])))
    a, b = parts
    if tree[0] == "^":
        return group(pick("{}^{{{}}}", "{}^{{ {} }}", "{}**({})").format(group(a), b))
    if tree[0] == "+":
        return group(pick(f"{a}+{b}", f"{b} + {a}", rf"{a} \,+\, {b}", f"{b}-(-{group(a)})"))
    if tree[0] == "-":
        return group(pick(f"{a}-{group(b)}", f"-{group(b)}+{a}", f"{a} − {group(b)}", f"-({group(b)}-{group(a)})"))
    if tree[0] == "*":
        a, b = group(a), group(b)
        return group(pick(rf"{a}\cdot{b}", rf"{a} \times {b}", f"{b}*{a}", f"{a}{b}", f"{b} {a}"))
    return group(
        pick(rf"\frac{{{a}}}{{{b}}}", rf"\dfrac{{{a}}}{{{b}}}", f"{group(a)}/{group(b)}", rf"{group(a)} \div {group(b)}")
    )


@given(NUMBERS, st.data())
def test_arithmetic_in_any_spelling_is_the_exact_value(tree, data):
    text = spell(tree, data.draw)
    assume(text.count("{") + text.count("(") < 60)
    key = answer_key(text)
    assume(key is None or not is_opaque(key) or max_depth(text) < 15)
    try:
        want = value(tree)
    except ZeroDivisionError:
        assert key is None
        return
    if want.numerator.bit_length() + want.denominator.bit_length() < 3000:
        assert key == f"n:{want}", text


def max_depth(text):
    depth = most = 0
    for c in text:
        depth += (c in "({") - (c in ")}")
        most = max(most, depth)
    return most


@given(FUNCTIONS, st.data())
def test_two_spellings_of_a_function_share_a_key(tree, data):
    a, b = spell(tree, data.draw), spell(tree, data.draw)
    assume(max(max_depth(a), max_depth(b)) < 15)
    assert answer_key(a) == answer_key(b), (a, b)


@given(FUNCTIONS, st.integers(1, 9), st.data())
def test_a_changed_function_has_another_key(tree, change, data):
    a, b = spell(tree, data.draw), spell(("+", tree, change), data.draw)
    assume(max(max_depth(a), max_depth(b)) < 15)
    assert answer_key(a) is None or is_opaque(answer_key(a)) or answer_key(a) != answer_key(b), (a, b)


def polynomial(coefficients):
    return "+".join(f"({c})x^{{{power}}}" for power, c in enumerate(coefficients))


@given(st.lists(INTEGERS, min_size=1, max_size=6), st.lists(INTEGERS, min_size=1, max_size=6))
def test_polynomials_are_equal_exactly_when_their_coefficients_are(a, b):
    horner = "0"
    for c in reversed(a):
        horner = f"({horner})x+({c})"
    assert answer_key(polynomial(a)) == answer_key(horner)
    size = max(len(a), len(b))
    same = a + [0] * (size - len(a)) == b + [0] * (size - len(b))
    assert (answer_key(polynomial(a)) == answer_key(polynomial(b))) == same


@given(st.lists(st.fractions(-9, 9, max_denominator=9), min_size=1, max_size=4))
def test_a_product_of_linear_factors_is_its_expansion(roots):
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [s - root * c for s, c in zip(shifted, [*coefficients, Fraction(0)], strict=True)]
    product = "".join(f"(x-({root}))" for root in roots)
    assert answer_key(product) == answer_key(polynomial(coefficients))


def square_free(n):
    outside = 1
    for p in range(2, 40):
        while n % (p * p) == 0:
            n, outside = n // (p * p), outside * p
    return outside, n


@given(INTEGERS, st.integers(1, 12), st.integers(1, 300), INTEGERS, st.integers(1, 12), st.integers(1, 300))
def test_surds_are_equal_exactly_when_their_normal_forms_are(a, b, n, c, d, m):
    def normal(whole, factor, radicand):
        outside, inside = square_free(radicand)
        return (whole + factor * outside, 0, 1) if inside == 1 else (whole, factor * outside, inside)

    whole, factor, inside = normal(a, b, n)
    first = answer_key(rf"{a}+{b}\sqrt{{{n}}}")
    assert (
        first == answer_key(rf"{factor}\sqrt{{{inside}}}+{whole}") == answer_key(rf"{whole}+\sqrt{{{factor * factor * inside}}}")
    )
    assert first == answer_key(rf"\frac{{({a}+{b}\sqrt{{{n}}})(7-\sqrt{{3}})}}{{7-\sqrt{{3}}}}")
    assert (first == answer_key(rf"{c}+{d}\sqrt{{{m}}}")) == (normal(a, b, n) == normal(c, d, m))


@given(st.fractions(0, 100, max_denominator=60), st.fractions(0, 100, max_denominator=60))
def test_ways_to_write_a_fraction(a, b):
    whole, rest = divmod(a, 1)
    assert answer_key(f"{a}") == answer_key(rf"{100 * a}\%") == answer_key(rf"\frac{{{3 * a.numerator}}}{{{3 * a.denominator}}}")
    if rest and whole:
        assert (
            answer_key(rf"{whole}\frac{{{rest.numerator}}}{{{rest.denominator}}}")
            == answer_key(f"{a}")
            == answer_key(f"{whole} {rest}")
        )
        assert answer_key(rf"-{whole}\tfrac{{{rest.numerator}}}{{{rest.denominator}}}") == answer_key(f"-{a}")
    assert (answer_key(f"{a}") == answer_key(f"{b}")) == (a == b)


@given(st.integers(0, 999), st.text("0123456789", max_size=4), st.text("0123456789", min_size=1, max_size=4))
def test_repeating_decimals(whole, places, period):
    value = whole + Fraction(int(places or "0"), 10 ** len(places))
    value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(places))
    assert answer_key(rf"{whole}.{places}\overline{{{period}}}") == f"n:{value}"


@given(st.lists(st.fractions(-20, 20, max_denominator=6), min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_lists_and_sets_ignore_order_and_repetition_and_tuples_do_not(items, random):
    shuffled = items * 2
    random.shuffle(shuffled)
    keys = {
        answer_key(", ".join(map(str, items))),
        answer_key(r"\{" + ",".join(map(str, shuffled)) + r"\}"),
        answer_key(r" \text{ or } ".join(map(str, shuffled))),
    }
    assert len(keys) == 1
    if len(items) > 1:
        a, b = (f"({', '.join(map(str, order))})" for order in (items, items[::-1]))
        assert (answer_key(a) == answer_key(b)) == (items == items[::-1])


ENDS = st.integers(-6, 6)
PIECES = st.lists(st.tuples(ENDS, ENDS, st.booleans(), st.booleans()).filter(lambda p: p[0] < p[1]), min_size=1, max_size=4)


def union(pieces):
    return r" \cup ".join(f"{'[' if c else '('}{low}, {high}{']' if d else ')'}" for low, high, c, d in pieces)


def members(pieces):
    """Which of the integers and the points between them belong: enough to tell unions with integer ends apart."""
    points = [Fraction(n, 2) for n in range(-14, 15)]
    return [any(low < x < high or (c and x == low) or (d and x == high) for low, high, c, d in pieces) for x in points]


@given(PIECES, PIECES, st.randoms(use_true_random=False))
def test_unions_of_intervals_are_equal_exactly_when_their_members_are(a, b, random):
    shuffled = list(a)
    random.shuffle(shuffled)
    assert answer_key(union(a)) == answer_key(union(shuffled))
    assert (answer_key(union(a)) == answer_key(union(b))) == (members(a) == members(b))


@given(st.integers(-9, 9).filter(bool), INTEGERS, INTEGERS, st.sampled_from(["<", r"\le", ">", r"\geq"]))
def test_linear_inequalities_are_solved(a, b, c, operator):
    """ax + b < c."""
    at = Fraction(c - b, a)
    up = (operator in (">", r"\geq")) == (a > 0)
    closed = operator in (r"\le", r"\geq")
    want = f"{'[' if closed else '('}{at}, \\infty)" if up else f"(-\\infty, {at}{']' if closed else ')'}"
    assert answer_key(f"({a})x+({b}) {operator} {c}") == answer_key(want)


@given(st.lists(INTEGERS, min_size=4, max_size=4).filter(lambda c: sum(map(bool, c[:3])) == 3), st.integers(-9, 9).filter(bool))
def test_equations_are_equal_up_to_a_factor_and_only_that(c, factor):
    a, b, z, d = c
    equation = answer_key(f"({a})u+({b})v+({z})w={d}")
    assert equation == answer_key(f"({factor * a})u+({factor * b})v={factor * d}-({factor * z})w")
    assert equation == answer_key(f"0=({d})-({a})u-({b})v-({z})w")
    assert equation != answer_key(f"({a})u+({b})v+({z})w={d + 1}")


@given(st.text(max_size=80))
def test_any_text_has_a_stable_key_of_a_known_kind(text):
    key = answer_key(text)
    assert key is None or KINDS.match(key)
    assert answer_key(text) == key and answer_key(" " + text + "\n") == key


LATEX = st.lists(
    st.sampled_from(
        r"\frac \sqrt { } ( ) [ ] \{ \} ^ _ + - * / = < \le , ; : | ! % 1 2 10 0.5 x y e i \pi \infty \cup \in \pm \text{and} "
        r"\text{cm} "
        r"\sin \ln \log_ \binom \begin{pmatrix} \end{pmatrix} & \\ ' \lfloor \rfloor f( \mod \overline \sum \mathbb{R}".split()
    ),
    max_size=20,
).map("".join)


@settings(max_examples=500)
@given(LATEX)
def test_any_heap_of_mathematics_is_read_without_an_error(text):
    key = answer_key(text)
    assert key is None or KINDS.match(key)
    found = extract(f"\\boxed{{{text}}}", Answer(format="boxed"))
    assert found is None or found.strip() == found
