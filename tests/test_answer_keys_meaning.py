"""What changes an answer's meaning changes its key: placeholders, multipliers, directions, order, names."""

import pytest

from jaxselftrain.answers import answer_key, extract, is_opaque
from jaxselftrain.sections import Answer


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
    "text", [r"5\%\text{ increase}", r"20\%\text{ off}", r"30^\circ\text{N}", r"30^\circ\text{ S}", "2^3 1/2", "[1,000,2,000]"]
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
        (r"2\mathbf{i}+3\mathbf{j}", r"2\hat{\imath}+3\hat{\jmath}"), (r"m\angle A = 30^\circ", "30"), ("2(1,000)", "2000"),
        (r"\{1,000, 2,000\}", "2,000, 1,000"), ("[10,000, 20,000]", "[10000,20000]"), (r"2\vec a+\vec b", r"\vec{b}+2\vec{a}"),
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
        (r"\vec{AB}", r"\vec{BA}"), (r"\angle BAC", r"\angle ABC"), (r"\angle A", "A"), (r"\tilde x", r"\hat x"),
        (r"\hat x", "x"),
        (r"\hat i", "i"), (r"\mathbf i^2", "-1"), (r"2\hat\imath+3\hat\jmath", r"3\hat\imath+2\hat\jmath"),
        ("F(b)-F(a)", "F(b-a)"), ("T(n-1)+T(n-2)", "T(2n-3)"), ("y(x)+y(-x)", "0"),
        (r"\phi(12)", r"12\phi"), (r"\Gamma(5)", r"5\Gamma"),
        (r"\psi(x)\phi(y)", r"\psi(y)\phi(x)"), (r"\{10,000\}", "10, 0"), ("[0, 1,000]", "[0, 1]"), ("y'=2x", "y=2x"),
        ("a_n=2n+1", "a_{n+1}=2n+1"), ("2020-10-05", "2005"), (r"-7 \bmod 3", "-1"),
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


@pytest.mark.parametrize(
    "text, letter",
    [
        ("The correct answer is option B", "B"),
        ("The answer is choice (c).", "C"),
        ("The answer is option B or C.", None),
        ("The answer is option A of several", None),
        ("The answer is optional", None),
    ],
)
def test_an_answer_may_be_called_an_option(text, letter):
    assert extract(text, Answer(format="letter")) == letter
