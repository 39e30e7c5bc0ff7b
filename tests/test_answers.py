"""Extraction of every format against written-out cases, and the key against Python's own exact arithmetic."""

import subprocess
import sys
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxselftrain.answers import answer_key, compile_pattern, extract, is_opaque
from jaxselftrain.errors import UserError
from jaxselftrain.sections import Answer


def answer(format, **fields):
    return Answer(format=format, **fields)


@pytest.mark.parametrize(
    "text, want",
    [
        (r"so \boxed{5}", "5"),
        (r"\boxed{4} wait, no: \fbox{5}.", "5"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x : x \right\}}", r"\left\{ x : x \right\}"),
        (r"\boxed{\begin{matrix}1\\2\\\end{matrix}}", r"\begin{matrix}1\\2\\\end{matrix}"),
        (r"\boxed {5}", "5"),
        (r"\\boxed{5}", "5"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{ \boxed{ \boxed{5} } }", "5"),
        (r"\boxed{x = \boxed{5}}", r"x = \boxed{5}"),
        (r"\boxed{\boxed{1} + \boxed{2}}", r"\boxed{1} + \boxed{2}"),
        (r"let S = { x, and so \boxed{5}", "5"),
        (r"write \boxed{ around it: \boxed{5}", "5"),
        ("\\boxed{" + " " * 100_000 + "5\r\n}", "5"),
        (r"\boxed{5} \boxed{}", None),
        (r"\boxed{5} \boxed{ }", None),
        (r"\boxed{5}, or rather \boxed{6", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed 5", None),
        (r"\boxed}5{", None),
        (r"boxed{5}", None),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_boxed(text, want):
    assert extract(text, answer("boxed")) == want


@pytest.mark.parametrize("unit, times", [("\\boxed{", 20_000), ("\\boxed{1} ", 20_000), ("{", 200_000), ("\\", 200_000)])
def test_boxed_takes_linear_time(unit, times):
    import time

    start = time.perf_counter()
    extract(unit * times, answer("boxed"))
    nested = extract("\\boxed{" * times + "5" + "}" * times, answer("boxed"))
    assert nested == "5" and time.perf_counter() - start < 2.0  # quadratic would take minutes


@pytest.mark.parametrize(
    "text, want",
    [
        ("so\n#### 72", "72"),
        ("#### 1\n#### 2 \nbye", "2"),
        ("####\n72", None),
        ("#### 1\n####", None),
        ("### 5", None),
        ("#### a b\r\nc", "a b"),
    ],
)
def test_hash(text, want):
    assert extract(text, answer("hash")) == want


@pytest.mark.parametrize(
    "text, first, last",
    [(" 56\n9 * 9 = 81", "56", "9 * 9 = 81"), ("\n \n a \r\nb\n\n", "a", "b"), (" \n", None, None), ("7", "7", "7")],
)
def test_first_and_last_line(text, first, last):
    assert extract(text, answer("first_line")) == first
    assert extract(text, answer("last_line")) == last


@pytest.mark.parametrize(
    "text, want",
    [
        ("(B)", "B"),
        ("B.", "B"),
        ("b", None),
        ("(b)", "B"),
        ("**B**", "B"),
        (r"$\boxed{\text{(B)}}$", "B"),
        ("The answer is B.", "B"),
        ("The correct answer is: **(C)** since ...", "C"),
        ("answer is B because A is wrong", "B"),
        ("Answer: D\nThat is all.", "D"),
        ("Final answer:\n(E)", "E"),
        ("The answer is A. No, the answer is B.", "B"),
        ("A\nNo: the correct option is B", "B"),
        ("The answer is A\n\nC", "C"),
        ("The answer is A or B", None),
        ("The answer is A, B", None),
        ("The answer is (A) and (C).", None),
        ("The answer is B, I think", "B"),
        ("The answer is A cat", None),
        ("The answer is not A", None),
        ("The answer is I'm not sure", None),
        ("The answer is X-ray", None),
        ("(A) is wrong, (B) is right", None),
        ("A. one\nB. two", None),
        ("The answer is 5", None),
        ("", None),
    ],
)
def test_letter(text, want):
    assert extract(text, answer("letter")) == want


def test_regex_takes_the_first_group_of_the_last_match():
    config = answer("regex", pattern=r"<a>(.*?)</a>(x)?")
    assert extract("<a>1</a> <a> 2 </a>x", config) == "2"
    assert extract("<a></a>", config) is None
    assert extract("2", config) is None
    assert extract("b", answer("regex", pattern="(a)|b")) is None  # matched, but the group took no part


@pytest.mark.parametrize("pattern, word", [("(", "not a valid"), ("a+", "no group"), ("(a){99999999999}", "not a valid")])
def test_a_bad_pattern_is_a_user_error(pattern, word):
    with pytest.raises(UserError, match=word):
        compile_pattern(pattern)


NOTHING = [
    "",
    " ",
    "?",
    "??",
    "...",
    "…",
    "N/A",
    "n/a.",
    "nan",
    "NaN",
    "none",
    "None.",
    "answer",
    r"\text{NaN}",
    "$?$",
    r"\ldots",
]
UNPRINTABLE = ["5\0", "\x1b[31m5\x1b[0m", "\u202e5\u202c", "\ufffd", "\ud800", "5\x1f", "5\x7f", "\u200b"]


@pytest.mark.parametrize("text", NOTHING + UNPRINTABLE)
def test_no_answer(text):
    assert answer_key(text) is None
    assert extract(f"\\boxed{{{text}}}", answer("boxed")) is None
    assert extract(f"#### {text}", answer("hash")) is None


def test_an_answer_that_is_too_long_is_none():
    assert extract("\\boxed{" + "9" * 20 + "}", answer("boxed", max_characters=20)) == "9" * 20
    assert extract("\\boxed{" + "9" * 21 + "}", answer("boxed", max_characters=20)) is None


@pytest.mark.parametrize(
    "key, spellings",
    [
        (
            "n:1000",
            [
                "1,000",
                "1000",
                "1000.0",
                "1{,}000",
                "+1000",
                r"1\,000",
                r"1\ 000",
                r"1,\!000",
                "1\u00a0000",
                "$1,000$",
                r"\$1,000",
            ],
        ),
        ("n:55", ["055", "55", "55.0", "55.", " 55 ", "$55", r"\(55\)", r"\text{55}", "**55**", "５５", "\ufeff55", "110/2"]),
        ("n:-3", ["-3", "\u22123", "- 3", "-3.00", "-6/2", "6/-2", "$-3$"]),
        ("n:0", ["0", "-0", "0.0", ".0", "0/7", "000"]),
        ("n:1/2", ["0.5", ".5", "1/2", "2 / 4", "0.500", "½"]),
        ("t:A", ["A", "(A)", "A.", "A)", r"\text{(A)}", "$A$", r"\mathrm{A}"]),
        ("t:east side", ["East  side", r"\text{East side}", " East\nside "]),
        ("t:x", ["x", "(x)", "1x"]),
        ("s:{n:0|n:1}", ["1,00"]),
        ("s:{n:32|n:349}", ["32, 349"]),
    ],
)
def test_spellings_of_one_answer_share_its_key(key, spellings):
    assert {spelling: answer_key(spelling) for spelling in spellings} == dict.fromkeys(spellings, key)


@pytest.mark.parametrize("text", ["9" * 1001, "0" * 5000 + "1", "9" * 100_000, "1/" + "9" * 9_000])
def test_length_is_bounded_before_anything_is_converted(text):
    assert answer_key(text) == "o:" + text and is_opaque(answer_key(text))


@given(st.fractions(), st.integers(1, 10**6))
def test_quotients_are_exact(value, factor):
    text = f"{value.numerator * factor}/{value.denominator * factor}"
    assert Fraction(answer_key(text).removeprefix("n:")) == value


@given(st.decimals(allow_nan=False, allow_infinity=False, places=5), st.integers(0, 6))
def test_decimals_are_exact(value, zeros):
    plain = f"{value:f}"
    grouped = f"{value:,f}" + "0" * zeros
    assert answer_key(plain) == answer_key(grouped)
    assert Fraction(answer_key(plain).removeprefix("n:")) == Fraction(value)


@given(
    st.text(alphabet="\\boxedfr{}$ 15/\n#AB().", max_size=80),
    st.sampled_from(["boxed", "hash", "first_line", "last_line", "letter"]),
)
def test_extraction_survives_any_text_and_gives_a_part_of_it(text, format):
    found = extract(text, answer(format))
    assert found is None or (found == found.strip() and (found in text or found.lower() in text))


def test_imports_neither_jax_nor_numpy_nor_pydantic_nor_mpmath():
    heavy = "{'jax', 'numpy', 'pydantic', 'sympy', 'mpmath'}"
    code = f"import sys, jaxselftrain.answers, jaxselftrain.votes; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"
