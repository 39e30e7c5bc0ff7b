"""Feedback against loops over samples, and the line that keeps gold labels out of a label-free run."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxselftrain.rewards import agreement, coin, feedback, keep
from jaxselftrain.votes import vote

KEYS_QN = st.integers(2, 6).flatmap(
    lambda N: st.lists(st.lists(st.sampled_from([None, "n:1", "n:2", "t:a"]), min_size=N, max_size=N), min_size=1, max_size=5)
)


SETTINGS = {"parts": {"agreement": 1.0}, "choose": "first", "seed": 0, "step": 0}


def votes_of(keys_QN, *, ties="first", denominator="valid", opaque_may_win=True):
    return [vote(keys, ties=ties, denominator=denominator, opaque_may_win=opaque_may_win) for keys in keys_QN]


def given_feedback(
    keys_QN, *, labels=None, confidence=None, kind=None, ties="first", minimum_share=0, keep_fraction=1, **settings
):
    votes = votes_of(keys_QN, ties=ties)
    ids = [f"q{i}" for i in range(len(keys_QN))]
    labels = [ballot.majority for ballot in votes] if labels is None else labels
    settings = SETTINGS | {"samples_trained": 2} | settings | ({} if kind is None else {"parts": {kind: 1.0}})
    found = feedback(keys_QN, votes, labels, confidence or {}, ids=ids, **settings)
    return keep(found, [ballot.share for ballot in votes], minimum_share=minimum_share, keep_fraction=keep_fraction)


@given(KEYS_QN, st.sampled_from(["first", "abstain"]))
def test_the_vote_rewards_those_who_agree_with_the_majority(keys_QN, ties):
    got = given_feedback(keys_QN, ties=ties)
    for q, keys in enumerate(keys_QN):
        majority = vote(keys, ties=ties, denominator="valid", opaque_may_win=True).majority
        for n, key in enumerate(keys):
            assert got.reward_QN[q, n] == (majority is not None and key == majority)
            assert got.kl_weight_Q[q] == (majority is not None)
            assert got.weight_QN[q, n] == 1
    assert got.learn
    assert [got.reward_QN.dtype, got.weight_QN.dtype, got.kl_weight_Q.dtype] == [np.float32] * 3
    assert got.chosen_QM.dtype == np.int32 and got.chosen_QM.tolist() == [[0, 1]] * len(keys_QN)
    assert got.learn.dtype == bool and got.learn.shape == ()


def test_nobody_answered():
    got = given_feedback([[None, None], ["n:1", None]])
    assert got.reward_QN.tolist() == [[0, 0], [1, 0]]
    assert got.kl_weight_Q.tolist() == [0, 1]


def test_labels_need_not_be_the_majority():
    keys_QN = [["n:1", "n:1", "n:2"], ["n:1", "n:1", None], ["n:1", "n:1", "n:1"]]
    got = given_feedback(keys_QN, labels=["n:2", None, "n:3"])
    assert got.reward_QN.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert got.kl_weight_Q.tolist() == [1, 0, 1]


@given(KEYS_QN, st.sampled_from(["valid", "all"]))
def test_a_soft_reward_is_the_share_of_those_who_say_the_same(keys_QN, denominator):
    votes = votes_of(keys_QN, denominator=denominator)
    ids = [f"q{q}" for q in range(len(keys_QN))]
    got = feedback(keys_QN, votes, [None] * len(ids), {}, samples_trained=2, ids=ids, **(SETTINGS | {"parts": {"soft": 1.0}}))
    for q, keys in enumerate(keys_QN):
        total = len(keys) if denominator == "all" else len([key for key in keys if key is not None])
        want = [0.0 if key is None else keys.count(key) / total for key in keys]
        np.testing.assert_allclose(got.reward_QN[q], want, rtol=1e-6)
        assert got.kl_weight_Q[q] == any(key is not None for key in keys)


def test_an_opaque_answer_that_may_not_win_gets_no_soft_reward():
    keys = ["o:x", "o:x", "n:1", None]
    barred, open_ = (votes_of([keys], opaque_may_win=may) for may in (False, True))
    for votes, want in ((barred, [0, 0, 1 / 3, 0]), (open_, [2 / 3, 2 / 3, 1 / 3, 0])):
        got = feedback([keys], votes, [None], {}, samples_trained=4, ids=["q"], **(SETTINGS | {"parts": {"soft": 1.0}}))
        np.testing.assert_allclose(got.reward_QN[0], want, rtol=1e-6)


def test_the_format_control_rewards_any_answer():
    got = given_feedback([["n:1", None, "o:x"]], labels=[None], kind="format", samples_trained=3)
    assert got.reward_QN.tolist() == [[1, 0, 1]] and got.kl_weight_Q.tolist() == [1]


SHARES = [["n:1", "n:1", "n:1", "n:1"], ["n:1", "n:1", "n:2", "n:3"], ["n:1", "n:1", "n:1", "n:2"], [None] * 4]  # 1, .5, .75, 0


@pytest.mark.parametrize(
    ("minimum_share", "keep_fraction", "kept"),
    [(0, 1, [1, 1, 1, 1]), (0.6, 1, [1, 0, 1, 0]), (0.75, 1, [1, 0, 1, 0]), (0, 0.5, [1, 0, 1, 0]), (0, 0.26, [1, 0, 1, 0]),
     (0, 0.25, [1, 0, 0, 0]), (0.8, 0.75, [1, 0, 0, 0]), (0, 0.75, [1, 1, 1, 0])],
)  # fmt: skip
def test_questions_with_little_agreement_are_left_out(minimum_share, keep_fraction, kept):
    for kind in ("agreement", "soft", "random"):
        got = given_feedback(SHARES, minimum_share=minimum_share, keep_fraction=keep_fraction, kind=kind)
        assert got.weight_QN.tolist() == [[k] * 4 for k in kept]
        labelled = [1, 1, 1, kind == "random"]
        assert got.kl_weight_Q.tolist() == [k * label for k, label in zip(kept, labelled, strict=True)]


@given(st.integers(1, 60), st.integers(1, 100))
def test_a_fraction_keeps_as_many_questions_as_it_says(Q, percent):
    keys_QN = [["n:1", "n:1" if q % 3 else "n:2"] for q in range(Q)]
    kept = given_feedback(keys_QN, keep_fraction=percent / 100).weight_QN[:, 0]
    assert kept.sum() == -(-percent * Q // 100)
    order = sorted(range(Q), key=lambda q: (q % 3 == 0, q))  # those who agree, then the others, each in batch order
    assert kept[order].tolist() == sorted(kept, reverse=True)


def test_samples_are_chosen_first_or_by_a_hash():
    keys_QN = [["n:1"] * 8] * 40
    assert given_feedback(keys_QN, samples_trained=3).chosen_QM.tolist() == [[0, 1, 2]] * 40
    got = given_feedback(keys_QN, samples_trained=3, choose="random").chosen_QM
    assert (np.diff(got, axis=1) > 0).all() and got.min() >= 0 and got.max() <= 7
    counts = np.bincount(got.ravel(), minlength=8)  # 15 of 120 each
    assert counts.min() >= 4 and counts.max() <= 30
    assert len({tuple(row) for row in got.tolist()}) > 15
    again = given_feedback(keys_QN, samples_trained=3, choose="random").chosen_QM
    assert got.tolist() == again.tolist()
    assert given_feedback(keys_QN, samples_trained=3, choose="random", step=1).chosen_QM.tolist() != got.tolist()
    assert given_feedback(keys_QN, samples_trained=8, choose="random").chosen_QM.tolist() == [list(range(8))] * 40


def test_this_module_cannot_look_a_gold_answer_up():
    code = "import sys, jaxselftrain.rewards; print([m for m in sys.modules if 'answer_key' in m or m.split('.')[0] == 'jax'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    parameters = inspect.signature(feedback).parameters.values()
    assert all(parameter.default is inspect.Parameter.empty for parameter in parameters)  # gold never comes by omission


def test_coins_are_fair_independent_and_repeatable():
    tosses = np.asarray(
        [
            [[coin(seed=s, step=t, question=f"q{q}", sample=n) for n in range(8)] for q in range(20)]
            for s in range(5)
            for t in range(20)
        ]
    )
    assert set(np.unique(tosses)) == {0.0, 1.0}
    count = tosses.size
    assert abs(tosses.mean() - 0.5) < 4 * 0.5 / count**0.5
    for axis in range(3):  # neighbours along steps, questions and samples agree half of the time
        first, second = np.moveaxis(tosses, axis, 0)[:-1], np.moveaxis(tosses, axis, 0)[1:]
        assert abs((first == second).mean() - 0.5) < 4 * 0.5 / first.size**0.5
    assert coin(seed=1, step=2, question="q", sample=3) == coin(seed=1, step=2, question="q", sample=3)
    # Fixed for good: a resumed control must toss as it did before.
    assert [coin(seed=0, step=0, question="q", sample=n) for n in range(12)] == [
        1.0,
        0.0,
        1.0,
        0.0,
        1.0,
        1.0,
        0.0,
        1.0,
        0.0,
        1.0,
        1.0,
        0.0,
    ]


def test_the_control_ignores_what_was_said():
    silent = given_feedback([[None, None, None], [None, None, None]], kind="random", seed=3, step=4)
    loud = given_feedback([["n:1", "n:1", "n:1"], ["n:1", "n:2", "n:2"]], kind="random", seed=3, step=4)
    assert silent.reward_QN.tolist() == loud.reward_QN.tolist()
    assert silent.weight_QN.min() == 1 and silent.kl_weight_Q.min() == 1 and silent.learn
    want = [[coin(seed=3, step=4, question=f"q{q}", sample=n) for n in range(3)] for q in range(2)]
    assert silent.reward_QN.tolist() == want


def test_lengths_must_fit():
    votes = votes_of([["n:1", "n:1"]])
    with pytest.raises(ValueError, match="do not fit"):
        feedback([["n:1", "n:1"]] * 2, votes, ["n:1"], {}, samples_trained=2, ids=["a", "b"], **SETTINGS)
    with pytest.raises(ValueError, match="do not fit"):
        feedback([["n:1", "n:1"]], votes, ["n:1"], {}, samples_trained=3, ids=["a"], **SETTINGS)
    with pytest.raises(ValueError, match="do not fit"):
        feedback([["n:1", "n:1"]], votes, [], {}, samples_trained=2, ids=["a"], **SETTINGS)
    for wrong in ({"parts": {"model": 1.0}}, {"choose": "last"}):
        with pytest.raises(ValueError, match="must be|is no reward"):
            feedback([["n:1", "n:1"]], votes, ["n:1"], {}, samples_trained=2, ids=["a"], **(SETTINGS | wrong))


def test_agreement():
    assert agreement(["n:1", None, "n:2"], "n:1") == [1.0, 0.0, 0.0]
    assert agreement(["n:1", None], None) == [0.0, 0.0]


def test_being_sure_is_a_reward_whatever_is_said():
    confidence = {name: np.random.default_rng(0).random((2, 3)) for name in ("log_prob", "entropy", "self_certainty")}
    for kind, sign in (("log_prob", 1), ("self_certainty", 1), ("entropy", -1)):
        got = given_feedback([[None, None, None], ["n:1", "n:2", None]], confidence=confidence, kind=kind)
        np.testing.assert_allclose(got.reward_QN, sign * confidence[kind], rtol=1e-6)
        assert got.kl_weight_Q.tolist() == [1, 1]


def test_a_sum_of_rewards_weighs_what_is_standardized_within_a_question():
    keys_QN = [["n:1", "n:1", "n:2", None], ["n:1", "n:1", "n:1", "n:1"], [None] * 4]
    certainty_QN = np.random.default_rng(1).normal(5, 3, (3, 4))
    parts = {"agreement": 1.0, "self_certainty": 0.25}
    got = given_feedback(keys_QN, confidence={"self_certainty": certainty_QN}, parts=parts)
    agreeing_QN = [[1, 1, -1, -1], [0] * 4, [0] * 4]  # of mean 0 and standard deviation 1; equal rewards say nothing
    sure_QN = np.asarray([(row - row.mean()) / row.std() for row in certainty_QN])
    np.testing.assert_allclose(got.reward_QN, agreeing_QN + 0.25 * sure_QN, rtol=1e-5, atol=1e-6)
    assert got.kl_weight_Q.tolist() == [1, 1, 1]  # where nobody answered, certainty still says something
