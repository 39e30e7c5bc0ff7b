"""Labels by every source against the rules written out, and who may see a gold answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxselftrain.labels import choose_labels, is_noisy
from jaxselftrain.votes import vote

KEYS = st.lists(st.sampled_from([None, "n:1", "n:2", "n:3", "o:x"]), min_size=1, max_size=12)


def labels_of(source, keys_QN, golds=None, *, noise=0.0, seed=0, opaque_may_win=False):
    votes = [vote(keys, ties="first", denominator="valid", opaque_may_win=opaque_may_win) for keys in keys_QN]
    return choose_labels(source, votes, golds, noise=noise, ids=[f"q{q}" for q in range(len(keys_QN))], seed=seed)


def most_frequent(keys, *, but=()):
    said = [key for key in keys if key is not None and key != "o:x" and key not in but]
    return max(said, key=lambda key: (said.count(key), -said.index(key)), default=None)


@given(st.lists(st.tuples(KEYS, st.sampled_from([None, "n:1", "n:2", "n:9"])), min_size=1, max_size=4))
def test_every_source(cases):
    keys_QN, golds = [keys for keys, _ in cases], [gold for _, gold in cases]
    majorities = [most_frequent(keys) for keys in keys_QN]
    assert labels_of("vote", keys_QN) == majorities
    assert labels_of("gold", keys_QN, golds) == golds
    assert labels_of("mixed", keys_QN, golds) == [g or m for g, m in zip(golds, majorities, strict=True)]
    incorrect = [None if gold is None else most_frequent(keys, but=(gold,)) for keys, gold in cases]
    assert labels_of("incorrect", keys_QN, golds) == incorrect


@given(st.lists(KEYS, min_size=1, max_size=4))
def test_noise_puts_the_most_frequent_other_answer_in_the_labels_place(keys_QN):
    others = [most_frequent(keys, but=(most_frequent(keys),)) for keys in keys_QN]
    assert labels_of("vote", keys_QN, noise=1.0) == others
    half = labels_of("vote", keys_QN, noise=0.5, seed=3)
    for q, keys in enumerate(keys_QN):
        assert half[q] == (others[q] if is_noisy(f"q{q}", noise=0.5, seed=3) else most_frequent(keys))


def test_the_noisy_questions_are_as_many_as_asked_for_and_always_the_same():
    ids = [f"q{i}" for i in range(4000)]
    for noise in (0.0, 0.1, 0.5, 1.0):
        noisy = [is_noisy(id, noise=noise, seed=1) for id in ids]
        assert abs(sum(noisy) / len(ids) - noise) <= 4 * (noise * (1 - noise) / len(ids)) ** 0.5
        assert noisy == [is_noisy(id, noise=noise, seed=1) for id in ids]
    few, many = ({id for id in ids if is_noisy(id, noise=noise, seed=1)} for noise in (0.1, 0.5))
    assert few < many
    assert few != {id for id in ids if is_noisy(id, noise=0.1, seed=2)}


def test_gold_answers_are_given_to_those_who_ask_and_to_nobody_else():
    for source in ("gold", "mixed", "incorrect"):
        with pytest.raises(ValueError, match=f"the source is {source}"):
            labels_of(source, [["n:1"]])
    with pytest.raises(ValueError, match="the source is vote"):
        labels_of("vote", [["n:1"]], ["n:1"])
    with pytest.raises(ValueError, match="must be vote or one of teacher, ema, gold, mixed, incorrect"):
        labels_of("model", [["n:1"]])


def test_an_opaque_answer_that_may_not_win_is_nobodys_label():
    keys_QN = [["o:x", "o:x", "n:1"]]
    assert labels_of("incorrect", keys_QN, ["n:2"]) == ["n:1"]
    assert labels_of("incorrect", keys_QN, ["n:2"], opaque_may_win=True) == ["o:x"]
