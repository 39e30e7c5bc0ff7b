"""The cross-check: a stand-in package for what may go wrong, and the real math-verify."""

import importlib.util
import json
import os
import time
from pathlib import Path

import pytest

from jaxselftrain import cross_check as module
from jaxselftrain.cross_check import CrossCheck, Judged, cross_check, require_math_verify
from jaxselftrain.errors import UserError

STAND_IN = """
import os, time
def parse(text, **settings):
    if "crash" in text:
        os._exit(1)
    if "hang" in text:
        time.sleep(600)
    if "raise" in text:
        raise ValueError(text)
    return text.removeprefix(chr(92) + "boxed{").removesuffix("}").strip().lower()
def verify(gold, answer, **settings):
    print("noise")
    return gold == answer
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A package math_verify that compares text without case."""
    (tmp_path / "math_verify.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr(module, "SECONDS", 1.0)


def test_differences_are_listed_once_and_counted_by_sample(stand_in):
    judged = [
        Judged("q1", "A", "a", False),
        Judged("q1", "A", "a", False),
        Judged("q1", "A", "A", True),
        Judged("q2", "A", "b", True),
        Judged("q2", "A", "c", False),
    ]
    got = cross_check(judged, workers=2)
    assert (got.compared, got.failed, got.differs) == (5, 0, 3)
    assert [json.loads(line) for line in got.jsonl().splitlines()] == [
        {"id": "q1", "gold": "A", "answer": "a", "samples": 2, "keys": False, "math_verify": True},
        {"id": "q2", "gold": "A", "answer": "b", "samples": 1, "keys": True, "math_verify": False},
    ]


def test_an_answer_that_hangs_crashes_or_raises_fails_alone(stand_in, capfd):
    answers = ["hang", "a", "crash", "raise", "A"]
    started = time.monotonic()
    got = cross_check([Judged("q", "A", answer, True) for answer in answers], workers=1)
    assert (got.compared, got.failed, got.differs, got.rows) == (5, 3, 0, [])
    assert time.monotonic() - started < 20
    assert capfd.readouterr() == ("", "")


def test_nothing_to_compare(stand_in):
    got = cross_check([], workers=1)
    assert (got.compared, got.failed, got.differs, got.jsonl()) == (0, 0, 0, "")


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'jaxselftrain\[math-verify\]'"):
        require_math_verify()
    setup = (Path(__file__).parent.parent / "setup.cfg").read_text()
    assert "\nmath-verify = math-verify" in setup


def test_an_evaluation_carries_it_into_metrics_and_files(tmp_path):
    from jaxselftrain.evaluate import Evaluation
    from jaxselftrain.metrics import METRICS

    row = {"id": "q", "gold": "1", "answer": "é", "samples": 2, "keys": True, "math_verify": False}
    with_it = Evaluation({}, {}, [{"id": "q"}], [], CrossCheck(compared=5, failed=1, differs=2, rows=[row]))
    assert with_it.metrics() == {"heldout/cross_check_differs": 2, "heldout/cross_check_failed": 1}
    assert set(with_it.metrics()) <= set(METRICS) and Evaluation({}, {}, [], []).metrics() == {}
    with_it.write(tmp_path, "step")
    assert json.loads((tmp_path / "step.differences.jsonl").read_text()) == row
    Evaluation({}, {}, [{"id": "q"}], []).write(tmp_path, "other")
    assert not (tmp_path / "other.differences.jsonl").exists()


def test_the_real_one_knows_mathematics():
    judged = [
        Judged("q", r"\frac{1}{2}", "0.5", True),
        Judged("q", r"\frac{1}{2}", "0.6", False),
        Judged("q", r"\frac{1}{2}", r"\dfrac12", False),  # said to be wrong: the one difference
        Judged("q", "10", r"10\%", False),  # math-verify reads a percent sign as a unit
    ]
    got = cross_check(judged, workers=1)
    assert (got.compared, got.failed) == (4, 0)
    assert [(row["answer"], row["keys"], row["math_verify"]) for row in got.rows] == [
        (r"\dfrac12", False, True),
        (r"10\%", False, True),
    ]
