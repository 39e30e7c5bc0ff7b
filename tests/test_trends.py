"""Trends against NumPy, and the alarm's rule on made-up runs."""

from dataclasses import asdict
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxselftrain.alarm import SIGNALS, Watch, past_thresholds
from jaxselftrain.metrics import METRICS
from jaxselftrain.sections import Alarm, AlarmSignal
from jaxselftrain.trends import LEVELS, TRENDS, History, slope

SETTINGS = Alarm(window=4, count=2, patience=2, signals={"saturated_share": 0.8, "entropy_drift": -0.5, "probe_agreement": 0.3})


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=40))
@settings(max_examples=200, deadline=None)
def test_the_slope_is_that_of_a_least_squares_line(values):
    assert slope(values) == pytest.approx(np.polyfit(np.arange(len(values)), values, 1)[0], abs=1e-6)


def test_trends_compare_the_last_window_with_the_first():
    history, rng = History(), np.random.default_rng(0)
    lines = [{name: float(value) for name, value in zip(("entropy", "kl", "truncated_share", "pseudo_reward"), row, strict=True)}
             for row in rng.random((11, 4))]  # fmt: skip
    for line in lines:
        history.note(line, window=4)
    found = history.trends(window=4)
    assert set(found) == {"entropy_drift", "kl_acceleration", "truncated_drift", "pseudo_reward_slope"} <= set(TRENDS)
    of = {name: np.asarray([line[name] for line in lines]) for name in lines[0]}
    assert found["entropy_drift"] == pytest.approx(of["entropy"][-4:].mean() / of["entropy"][:4].mean() - 1)
    assert found["truncated_drift"] == pytest.approx(of["truncated_share"][-4:].mean() - of["truncated_share"][:4].mean())
    late, early = (np.polyfit(np.arange(4), part, 1)[0] for part in (of["kl"][-4:], of["kl"][-8:-4]))
    assert found["kl_acceleration"] == pytest.approx(late - early)
    assert history.means(window=4)["pseudo_reward"] == pytest.approx(of["pseudo_reward"][-4:].mean())


def test_surprise_rises_from_its_lowest_mean_as_a_part_of_the_first():
    rng = np.random.default_rng(0)
    surprise, window = 1 + rng.random(40), 5
    history = History()
    for number, value in enumerate(surprise, 1):
        history.note({"surprise": float(value)}, window=window)
        history = History(**asdict(history))  # as a checkpoint keeps it
        means = [surprise[i - window : i].mean() for i in range(window, number + 1)]
        found = history.trends(window=window).get("surprise_rise")
        assert found == (pytest.approx((means[-1] - min(means)) / means[0], abs=1e-12) if means else None)


def test_nothing_is_said_before_there_is_a_window():
    history = History()
    for _ in range(3):
        history.note({"entropy": 1.0, "kl": 1.0, "pseudo_reward": 1.0}, window=4)
    assert history.trends(window=4) == {} and history.means(window=4) == {}


def raised_at(lines, watch=None):
    """(the steps at which the alarm is raised, the score of every step)."""
    watch, steps, scores = watch or Watch(), [], []
    for step, line in enumerate(lines, 1):
        found, raised = watch.step({**line, "step": step}, SETTINGS)
        watch = Watch(**asdict(watch))  # as a checkpoint keeps it
        scores.append(found.get("alarm_score"))
        if raised is not None:
            steps.append(raised.step)
    return steps, scores


def line(saturated, entropy, **more):
    return {"saturated_share": saturated, "entropy": entropy, **more}


def test_the_alarm_is_raised_once_by_enough_signals_for_long_enough():
    lines = [line(0.1, 1.0)] * 5 + [line(1.0, 0.1)] * 8
    steps, scores = raised_at(lines)
    assert scores[:3] == [None] * 3 and scores[4] == 0.0 and scores[-1] == 2.0
    first = next(i for i, score in enumerate(scores, 1) if score == 2.0)
    assert steps == [first + 1]  # patience 2, and not again while it is up


def test_one_signal_alone_does_not_raise_it():
    assert raised_at([line(0.1, 1.0)] * 4 + [line(1.0, 1.0)] * 20)[0] == []


def test_it_is_raised_again_after_a_healthy_step():
    ill, well = [line(1.0, 0.1)] * 8, [line(0.1, 1.0)] * 8
    assert len(raised_at(well + ill + well + ill)[0]) == 2


def test_probe_agreement_holds_between_two_looks():
    lines = [line(0.1, 1.0)] * 4 + [line(1.0, 1.0, probe_agreement=0.1)] + [line(1.0, 1.0)] * 8
    assert len(raised_at(lines)[0]) == 1


def test_switched_off_it_scores_nothing():
    watch = Watch()
    for step in range(1, 9):
        found, raised = watch.step(line(1.0, 0.0) | {"step": step}, Alarm(action="off", window=4))
        assert raised is None and "alarm_score" not in found
    assert "entropy_drift" not in found  # it began at 0


def test_the_bad_side_is_the_signals_own():
    assert past_thresholds({"kl": 2.0, "distinct_answers": 2.0}, {"kl": 1.0, "distinct_answers": 3.0}) == {
        "kl": 2.0,
        "distinct_answers": 2.0,
    }
    assert past_thresholds({"kl": 0.5, "distinct_answers": 4.0}, {"kl": 1.0, "distinct_answers": 3.0, "entropy_drift": 1}) == {}


def test_every_signal_can_be_measured_and_is_explained():
    assert set(SIGNALS) == set(get_args(AlarmSignal)) == {*LEVELS, *TRENDS, "probe_agreement"}
    assert set(SIGNALS) <= set(METRICS)
