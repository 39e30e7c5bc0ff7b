"""Evaluation statistics against enumeration, and the bootstrap against simulated truth."""

from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from rich.console import Console

from jaxselftrain.rewards import kept
from jaxselftrain.statistics import (
    avg_at_k,
    bootstrap,
    intervals,
    macro_average,
    maj_at_k,
    majority_shares,
    paired_difference,
    paired_p_value,
    pass_at_k,
    render,
    scores,
    thresholds,
)
from jaxselftrain.votes import vote

RIGHT_QN = st.tuples(st.integers(1, 4), st.integers(1, 7)).flatmap(lambda shape: arrays(bool, shape))


@given(RIGHT_QN, st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(right_QN, data):
    N = right_QN.shape[1]
    k = data.draw(st.integers(1, N))
    want = [np.mean([any(subset) for subset in combinations(row, k)]) for row in right_QN.tolist()]
    np.testing.assert_allclose(pass_at_k(right_QN, k), want, atol=1e-12)
    np.testing.assert_allclose(pass_at_k(right_QN, 1), avg_at_k(right_QN), atol=1e-12)


def test_a_macro_average_counts_every_set_the_same():
    rng = np.random.default_rng(0)
    small, large = rng.random(25), rng.random(400)
    got = macro_average([{"avg": small, "maj": small}, {"avg": large}], seed=0)
    assert got.keys() == {"avg"} and got["avg"]["value"] == pytest.approx((small.mean() + large.mean()) / 2)
    # by the normal law: the variances of the two means add up, over 4
    spread = np.sqrt(small.var() / 25 + large.var() / 400) / 2
    assert got["avg"]["high"] - got["avg"]["low"] == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert macro_average([{"avg": large}], seed=3) == intervals({"avg": large}, seed=3)
    with pytest.raises(ValueError, match="no set"):
        macro_average([], seed=0)


def test_pass_at_k_of_many_samples_neither_overflows_nor_loses_digits():
    right_QN = np.zeros((1, 10_000), bool)
    right_QN[0, :3] = True
    wrong = np.prod([(10_000 - 1000 - i) / (10_000 - i) for i in range(3)])  # none of the 3 right ones is among the 1000
    np.testing.assert_allclose(pass_at_k(right_QN, 1000), [1 - wrong], rtol=1e-9)


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_k_needs_k_samples(k):
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(np.zeros((2, 3), bool), k)


@given(st.lists(st.lists(st.sampled_from([None, "n:1", "n:2", "n:3"]), min_size=5, max_size=5), min_size=1, max_size=6))
def test_maj_at_k_votes_and_compares_the_label_with_gold(keys_QN):
    right_QN = np.asarray([[key == "n:2" for key in keys] for keys in keys_QN])
    want = []
    for keys in keys_QN:
        said = [key for key in keys if key is not None]
        label = max(said, key=lambda key: (said.count(key), -said.index(key))) if said else None
        want.append(float(label == "n:2"))
    assert maj_at_k(right_QN, keys_QN, ties="first", opaque_may_win=True).tolist() == want


def test_a_tie_that_abstains_is_not_right():
    keys_QN, right_QN = [["n:1", "n:2"]], np.asarray([[True, False]])
    assert maj_at_k(right_QN, keys_QN, ties="first", opaque_may_win=True).tolist() == [1.0]
    assert maj_at_k(right_QN, keys_QN, ties="abstain", opaque_may_win=True).tolist() == [0.0]


def test_bootstrap_equals_a_plain_loop():
    values_QS = np.random.default_rng(1).random((7, 2))
    random = np.random.default_rng(5)
    index = random.integers(0, 7, (4000, 7))
    means = np.asarray([[np.mean([values_QS[q, s] for q in row]) for s in range(2)] for row in index])
    low_S, high_S = bootstrap(values_QS, seed=5)
    np.testing.assert_allclose([low_S, high_S], np.quantile(means, [0.025, 0.975], axis=0), rtol=1e-12)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    covered, trials = 0, 300
    for trial in range(trials):
        skill_Q = random.beta(0.5, 0.8, 80)  # easy and hard questions, few in between; the true mean is 0.5 / 1.3
        right_QN = random.random((80, 8)) < skill_Q[:, None]
        low_S, high_S = bootstrap(avg_at_k(right_QN)[:, None], seed=trial)
        covered += low_S[0] <= 0.5 / 1.3 <= high_S[0]
    assert 0.91 <= covered / trials <= 0.98  # 95% +- 3 standard errors, and the percentile interval's known shortfall


def test_the_paired_interval_is_narrower_and_around_the_difference():
    random = np.random.default_rng(0)
    before_Q = random.beta(0.5, 0.5, 200)
    after_Q = np.clip(before_Q + 0.05 + random.normal(0, 0.02, 200), 0, 1)
    paired = paired_difference(before_Q, after_Q, seed=0)
    apart = intervals({"before": before_Q, "after": after_Q}, seed=0)
    assert paired["value"] == pytest.approx(after_Q.mean() - before_Q.mean())
    assert paired["low"] < paired["value"] < paired["high"]
    assert paired["low"] > 0  # sure of the gain, where the separate intervals overlap
    assert apart["before"]["high"] > apart["after"]["low"]
    with pytest.raises(ValueError, match="same questions"):
        paired_difference(before_Q, after_Q[:-1], seed=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(2, 6), st.integers(0, 2**31 - 1))
def test_scores_equal_each_statistic_alone(Q, N, seed):
    random = np.random.default_rng(seed)
    keys_QN = random.choice(np.asarray([None, "n:1", "n:2"], object), (Q, N)).tolist()
    right_QN = np.asarray([[key == "n:1" for key in keys] for keys in keys_QN])
    truncated_QN = random.random((Q, N)) < 0.3
    per_question = scores(right_QN=right_QN, keys_QN=keys_QN, truncated_QN=truncated_QN, k=2, ties="first", opaque_may_win=True)
    assert {len(values) for values in per_question.values()} == {Q}
    got = intervals(per_question, seed=seed)
    assert got["avg"]["value"] == pytest.approx(right_QN.mean())
    assert got["maj"]["value"] == pytest.approx(maj_at_k(right_QN, keys_QN, ties="first", opaque_may_win=True).mean())
    assert got["pass"]["value"] == pytest.approx(pass_at_k(right_QN, 2).mean())
    right4, keys4 = np.tile(right_QN, (1, 4)), [keys * 4 for keys in keys_QN]
    many = scores(right_QN=right4, keys_QN=keys4, truncated_QN=truncated_QN, k=8, ties="first", opaque_may_win=True)
    assert [name for name in many if name.startswith("pass")] == ["pass_2", "pass_4", "pass"]
    np.testing.assert_array_equal(many["pass_4"], pass_at_k(right4, 4))
    assert got["no_answer"]["value"] == pytest.approx(np.mean([key is None for keys in keys_QN for key in keys]))
    assert got["truncated"]["value"] == pytest.approx(truncated_QN.mean())
    assert all(-1e-12 <= each["low"] <= each["high"] + 1e-12 <= 1 + 2e-12 for each in got.values())
    assert intervals(per_question, seed=seed) == got


def test_no_question_is_an_error():
    with pytest.raises(ValueError, match="no question"):
        scores(right_QN=np.zeros((0, 2)), keys_QN=[], truncated_QN=np.zeros((0, 2)), k=1, ties="first", opaque_may_win=True)


def test_the_table_shows_every_number():
    console = Console(width=160, record=True)
    value = {"value": 0.4321, "low": 0.4, "high": 0.5}
    console.print(render({"before": {"avg": value}, "after": {"avg": value, "maj": value}}, title="held-out"))
    text = console.export_text()
    assert text.count("43.2 [40.0, 50.0]") == 3 and "avg@k" in text and "maj@k" in text and "before" in text and "95%" in text


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_the_p_value_is_that_of_all_sign_flips(differences):
    d = np.asarray(differences, float)
    sums = [abs((np.asarray(signs) * d).sum()) for signs in product((1, -1), repeat=len(d))]
    want = np.mean([total >= abs(d.sum()) - 1e-9 for total in sums])
    assert abs(paired_p_value(np.zeros(len(d)), d, seed=0) - want) < 5 * 0.005 + 1e-4
    assert paired_p_value(d, np.zeros(len(d)), seed=0) == paired_p_value(np.zeros(len(d)), d, seed=0)


def test_p_values_of_no_difference_are_uniform_and_of_a_real_one_small():
    random = np.random.default_rng(0)
    values = [paired_p_value(random.random(40), random.random(40), seed=0) for _ in range(200)]
    assert 0.01 <= np.mean(np.asarray(values) < 0.05) <= 0.10 and 0.4 <= np.mean(values) <= 0.6
    before = random.random(100)
    assert paired_p_value(before, before + 0.05 + random.normal(0, 0.05, 100), seed=0) == 1 / 10_000
    assert paired_p_value(before, before, seed=0) == 1.0


def thresholds_of(right_QN, keys_QN):
    how = {"ties": "first", "opaque_may_win": False}
    return thresholds(majority_shares(keys_QN, **how), maj_at_k(right_QN, keys_QN, **how), avg_at_k(right_QN))


def test_thresholds_by_hand():
    keys_QN = [["n:1"] * 4, ["n:1", "n:1", "n:2", "n:3"], ["n:1", "n:1", None, None], [None] * 4, ["n:2", "n:2", "n:2", "n:1"]]
    right_QN = np.asarray([[key == "n:1" for key in keys] for keys in keys_QN])
    got = thresholds_of(right_QN, keys_QN)
    assert [entry["share"] for entry in got] == [0.0, 0.5, 0.75, 1.0]
    assert [entry["coverage"] for entry in got] == [1.0, 0.8, 0.6, 0.4]
    np.testing.assert_allclose([entry["majority"] for entry in got], [3 / 5, 3 / 4, 2 / 3, 1.0])
    np.testing.assert_allclose([entry["sample"] for entry in got], [2.25 / 5, 2.25 / 4, 1.75 / 3, 1.5 / 2])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_thresholds_keep_what_a_minimum_share_keeps(Q, N, seed):
    keys_QN = np.random.default_rng(seed).choice(np.asarray([None, "n:1", "n:2", "n:3"], object), (Q, N)).tolist()
    right_QN = np.asarray([[key == "n:1" for key in keys] for keys in keys_QN])
    share_Q = [vote(keys, ties="first", denominator="valid", opaque_may_win=False).share for keys in keys_QN]
    for entry in thresholds_of(right_QN, keys_QN):
        is_in = kept(share_Q, minimum=entry["share"], fraction=1.0)
        assert entry["coverage"] == pytest.approx(np.mean(is_in))
        assert entry["sample"] == pytest.approx(right_QN[is_in].mean())
