"""What changes an answer's meaning changes its key: placeholders, multipliers, directions, order, names."""

import pytest

from jaxselftrain.answers import answer_key, is_opaque


@pytest.mark.parametrize(
    "text",
    [
        r"\text{answer}.", r"\text{N/A}.", r"\text{none}.", r"\text{unknown}.", r"\text{nan}.", r"$\text{answer}$.",
        r"\text{final answer}.", r"\textsf{answer}", r"\operatorname{answer}", r"\emph{None}", r"{\text{answer}}",
        r"\,\text{answer}", r"\left(\text{answer}\right)", r"\large\text{answer}", "answer, answer", "none and none", "NaN, NaN",
        "N/A, N/A", "N / A", r"(x,y)=(\text{answer},\text{answer})", r"5, \text{N/A}", "1:0", "0:0", "value", "number",
        "an integer", "option letter", "The answer is", "see above", "yourAnswer", "xxx",
    ],
)  # fmt: skip
def test_a_placeholder_is_no_vote_in_whatever_it_is_wrapped(text):
    assert answer_key(text) is None


@pytest.mark.parametrize(
    "text",
    [
        r"5 \text{answer}", "3 dollars per dozen", "quadrillion", "lakh", "crore", "bil", "mil", "mn", "score", "gross", "k", "K",
        "M", "basis points", "per mille", "fold", "loss", "gain", "km north", "km south", "BC", "AD", "up", "down",
        "meters behind", "meters ahead", "left", "units left", "late", "years older",
    ],
)  # fmt: skip
def test_a_word_that_changes_a_number_is_no_unit(text):
    assert is_opaque(
        answer_key(text if text[0].isdigit() else rf"5\text{{ {text}}}".replace("{ k}", "{k}").replace("{ K}", "{K}"))
    )


@pytest.mark.parametrize(
    "text", [r"5\%\text{ increase}", r"20\%\text{ off}", r"30^\circ\text{N}", r"30^\circ\text{ S}", "2^3 1/2"]
)
def test_what_else_changes_a_number_is_opaque(text):
    assert is_opaque(answer_key(text))


@pytest.mark.parametrize("unit", ["cm", "km/h", "apples", "dollars", "degrees", "N", "m", "square units", "apples left", " K"])
def test_a_unit_is_dropped(unit):
    assert answer_key(rf"5\text{{ {unit}}}") == "n:5"


@pytest.mark.parametrize(
    "a, b",
    [
        (r"5 \text{ hundred thousand}", "500000"), ("5 hundred million", "500000000"),
        (r"2^3\frac12", "4"), (r"x^2\frac13", r"\frac{x^2}{3}"), (r"10^2\frac14", "25"), (r"2^{3\frac12}", r"2^{7/2}"),
        (r"\sqrt3\frac12", r"\frac{\sqrt3}{2}"), (r"+\pm 5", r"\pm 5"),
    ],
)  # fmt: skip
def test_what_is_written_differently_is_equal(a, b):
    assert answer_key(a) == answer_key(b) and not is_opaque(answer_key(a))


@pytest.mark.parametrize(
    "a, b",
    [
        ("T, F, T", "F, T, T"), ("T, F", "F, T"), ("positive, negative", "negative, positive"), ("B, A, C", "A, B, C"),
        ("increasing, decreasing", "decreasing, increasing"), (r"\text{true}, \text{false}", r"\text{false}, \text{true}"),
        ("HT", "TH"), ("T F T", "F T T"), ("red, blue, red", "red, red, blue"), ("Alice and Bob", "Alice or Bob"),
        ("A and C", "A or C"), ("(ii)", "-1"), ("(iv)", "(vi)"), ("(i), (ii)", "(i), (iii)"),
    ],
)  # fmt: skip
def test_what_says_something_else_differs(a, b):
    assert answer_key(a) != answer_key(b) and not is_opaque(answer_key(a))


@pytest.mark.parametrize(
    "a, b",
    [
        ("A, C", "C and A"), ("red, blue", "blue and red"), ("x, y", "y, x"), ("true, false", r"\text{true}, \text{false}"),
        ("A, B, and C", "A, B, C"), ("(iii) and (i)", "(i), (iii)"), ("(II)", "II"),
    ],
)  # fmt: skip
def test_a_list_without_an_order_of_its_own_is_a_set(a, b):
    assert answer_key(a) == answer_key(b) and not is_opaque(answer_key(a))
