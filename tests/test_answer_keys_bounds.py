"""Bounds: what an answer may cost, and that its key depends on neither the clock nor the depth of the caller's stack."""

import inspect
import sys
import threading
import time
from pathlib import Path

import pytest

from jaxselftrain.answers import answer_key, arithmetic, keys

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))
from texts import SLOW


def matrix(size, cell):
    return r"\begin{pmatrix}" + r"\\".join("&".join(cell(r, c) for c in range(size)) for r in range(size)) + r"\end{pmatrix}"


COSTLY = {
    "a word with a digit after it": "a" * 999 + "1",
    "words with apostrophes": "a'" * 400 + "1",
    "punctuation": "a" + " .,;'" * 190 + "1",
    "dollars": "$" * 999,
    "brackets": "a" + "(" * 900,
    "groups of digits": "1 000 " * 160,
    "compatibility characters": "\ufdfa" * 500,
    "accents": "a" + "\u0301" * 900,
    "sums in sums": r"\sum_{a=1}^{200}\sum_{b=1}^{200}\sum_{c=1}^{200}abc",
    "a power of a matrix": matrix(6, lambda r, c: "x") + "^{90}",
    "a matrix of roots": matrix(8, lambda r, c: rf"\sqrt{{{8 * r + c + 2}}}"),
    "a determinant": r"\left|" + matrix(6, lambda r, c: rf"\sqrt{{{r * c + 2}}}") + r"\right|",
    "gamma functions": "+".join(f"({n}x)!" for n in range(1, 60)),
    "zeros": "+".join(rf"\sin({n}\pi)" for n in range(1, 80)),
    "signs": ",".join([r"\pm\sqrt2\pm\sqrt3\pm\sqrt5\pm\sqrt7"] * 20),
    "exponentials": r"e^{19000x}+e^{-19000x}+e^{18000y}",
    "powers": "(" + "+".join(f"x^{{{n}}}" for n in range(100, 140)) + ")^{40}",
    "quotients": "+".join(rf"\frac{{1}}{{{n}!}}" for n in range(4840, 4900)),
    "binomials": "+".join(rf"\binom{{x}}{{{n}}}" for n in range(50, 100)),
    "intervals": r"\cup".join(rf"(\sqrt{{{n}}},\sqrt{{{n + 1}}})" for n in range(2, 70)),
    "bars": r"|x-1|+|x-2|+|x-3|+|x-\sqrt2|<5",
    "cube roots of powers": r"\sum_{k=1300}^{1500}\sqrt[3]{7^k+2}",
    "cube roots of quotients": r"x\sum_{k=650}^{720}\sqrt[3]{\frac{7^k+2}{7^k+3}}",
    "fifth roots": r"x\sum_{k=601}^{700}\sqrt[5]{7^k+2}",
    "cube roots written out": "x(" + "+".join(rf"\sqrt[3]{{7^{{{k}}}+2}}" for k in range(700, 728)) + ")",
    "complex gamma functions": "+".join(f"(x+{n}i)!" for n in range(1, 20)),
    "complex powers": "i^{n+i}" * 39,
    "arcsines": r"\arcsin nx" * 69,
    "alternating marks": "x" + "\u0301\u0323" * 4999,
    "signs and pi": r"0000000000\pm01021\pi00\pm000\pm01001\pi00\pm01000000700010=000000310d",
    "logarithms": r"\log_2(\log_3(\log_4(10^{5000})))",
}


@pytest.mark.parametrize("name", COSTLY)
def test_an_answer_built_to_be_costly_is_not(name):
    answer_key(r"\sqrt2")  # the first irrational number imports mpmath
    start = time.process_time()
    answer_key(COSTLY[name])
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize("degree", [3, 4, 5, 7, 31, 64])
def test_roots_of_whole_numbers_are_exact(degree):
    for bits in (1, 5, 20, 60, 4096 // degree - 1):
        root = (1 << bits) - bits // 3
        assert [arithmetic._root(root**degree + more, degree) for more in (-1, 0, 1)] == [None, root, None]
    assert [arithmetic._floor_root(n, degree) for n in (1, 2**degree - 1, 2**degree, 3**degree - 1)] == [1, 1, 2, 2]


@pytest.mark.parametrize("name", SLOW)
def test_the_fuzzers_slow_texts_take_little(name):
    answer_key(r"\sqrt2")
    seconds = []
    for _ in range(3):  # the fastest: other processes share the cache
        start = time.process_time()
        answer_key(SLOW[name])
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.15  # 0.05 when nothing else runs


def test_an_exponents_size_is_judged_by_its_value_not_its_first_digits():
    assert answer_key("0E" + "0" * 70 + "2" + "0" * 20).startswith("o:")
    assert answer_key("1e" + "0" * 70 + "5") == answer_key("100000")


@pytest.mark.parametrize(
    "text",
    ["2\\frac{" * 19 + "1" + "}{x}" * 19, r"\sum_{k=1}^{200}\sum_{j=1}^{19}\max(k," + ",".join([r"\pi"] * 180) + ")"],
)
def test_work_is_bounded_where_nothing_is_charged_by_arithmetic(text):
    answer_key(r"\sqrt2")
    started = time.process_time()
    answer_key(text)
    assert time.process_time() - started < 0.5


DEEP = (
    "5", "x = 5", r"\frac{1}{2}", r"\sqrt{" * 19 + "x" + "}" * 19, "1<" + r"\frac{" * 19 + "x" + "}{2}" * 19, "(" * 60,
    "0" + r"\cup(1,2)" * 60, "1 mod " * 190 + "2", r"\sin" * 39 + "x", r"\text{June 20}",
)  # fmt: skip


@pytest.mark.parametrize("depth", [100, 480, 520, 700, 900])
def test_keys_are_the_same_however_deep_the_callers_stack_is(depth):
    def at(frames, text):
        return answer_key(text) if frames <= 0 else at(frames - 1, text)

    here = len(inspect.stack(0))
    assert [at(depth - here, text) for text in DEEP] == [answer_key(text) for text in DEEP]


def test_reading_stays_far_below_the_frames_that_are_kept_for_it():
    """With as few as are kept no text may need its own stack, nor more than Python's limit on it."""
    limit = sys.getrecursionlimit()
    texts = [text for text in (*DEEP, *COSTLY.values()) if len(text) <= 1000]
    wanted = [answer_key(text) for text in texts]
    found = []
    thread = threading.Thread(target=lambda: found.extend(keys._read_key(keys.normal(text)) for text in texts))
    try:
        sys.setrecursionlimit(keys.FRAMES - 50)
        thread.start()
        thread.join()
    finally:
        sys.setrecursionlimit(limit)
    assert found == wanted
