"""Feedback against loops over samples, and the line that keeps gold labels out of a label-free run."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxselftrain.rewards import agreement, coin, feedback
from jaxselftrain.votes import vote

KEYS_QN = st.integers(2, 6).flatmap(
    lambda N: st.lists(st.lists(st.sampled_from([None, "n:1", "n:2", "t:a"]), min_size=N, max_size=N), min_size=1, max_size=5)
)


def given_feedback(keys_QN, *, source="vote", labels=None, ties="first", samples_trained=2, seed=0, step=0):
    votes = [vote(keys, ties=ties, denominator="valid", opaque_may_win=True) for keys in keys_QN]
    ids = [f"q{i}" for i in range(len(keys_QN))]
    return feedback(keys_QN, votes, source=source, labels=labels, samples_trained=samples_trained, ids=ids, seed=seed, step=step)


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


def test_gold_labels_replace_the_vote_only_when_asked_for():
    keys_QN = [["n:1", "n:1", "n:2"], ["n:1", "n:1", None], ["n:1", "n:1", "n:1"]]
    got = given_feedback(keys_QN, source="gold", labels=["n:2", None, "n:3"])
    assert got.reward_QN.tolist() == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert got.kl_weight_Q.tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="source is vote"):
        given_feedback(keys_QN, source="vote", labels=["n:2", None, "n:3"])
    with pytest.raises(ValueError, match="source is random"):
        given_feedback(keys_QN, source="random", labels=["n:2", None, "n:3"])
    with pytest.raises(ValueError, match="source is gold"):
        given_feedback(keys_QN, source="gold")


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
    silent = given_feedback([[None, None, None], [None, None, None]], source="random", seed=3, step=4)
    loud = given_feedback([["n:1", "n:1", "n:1"], ["n:1", "n:2", "n:2"]], source="random", seed=3, step=4)
    assert silent.reward_QN.tolist() == loud.reward_QN.tolist()
    assert silent.weight_QN.min() == 1 and silent.kl_weight_Q.min() == 1 and silent.learn
    want = [[coin(seed=3, step=4, question=f"q{q}", sample=n) for n in range(3)] for q in range(2)]
    assert silent.reward_QN.tolist() == want


def test_lengths_must_fit():
    votes = [vote(["n:1", "n:1"], ties="first", denominator="valid", opaque_may_win=True)]
    settings = {"source": "vote", "labels": None, "seed": 0, "step": 0}
    with pytest.raises(ValueError, match="do not fit"):
        feedback([["n:1", "n:1"]] * 2, votes, samples_trained=2, ids=["a", "b"], **settings)
    with pytest.raises(ValueError, match="do not fit"):
        feedback([["n:1", "n:1"]], votes, samples_trained=3, ids=["a"], **settings)
    with pytest.raises(ValueError, match="source"):
        feedback([["n:1", "n:1"]], votes, samples_trained=2, ids=["a"], **(settings | {"source": "model"}))


def test_agreement():
    assert agreement(["n:1", None, "n:2"], "n:1") == [1.0, 0.0, 0.0]
    assert agreement(["n:1", None], None) == [0.0, 0.0]
