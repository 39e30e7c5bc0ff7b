"""Votes against a slow counter and the written-out conventions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxselftrain.votes import vote

KEYS = st.lists(st.sampled_from([None, "n:1", "n:2", "t:1", "t:a"]), max_size=24)


@given(KEYS, st.sampled_from(["first", "abstain"]), st.sampled_from(["valid", "all"]))
def test_equals_a_slow_count(keys, ties, denominator):
    said = [key for key in keys if key is not None]
    different = [key for i, key in enumerate(said) if key not in said[:i]]
    ordered = sorted(different, key=lambda key: (-said.count(key), said.index(key)))
    got = vote(keys, ties=ties, denominator=denominator)
    assert got.classes == tuple((key, said.count(key)) for key in ordered)
    assert (got.valid, got.samples) == (len(said), len(keys))
    if not said:
        assert got.majority is None and got.share == 0.0
        return
    most = max(said.count(key) for key in different)
    leaders = [key for key in different if said.count(key) == most]
    assert got.majority == (leaders[0] if len(leaders) == 1 or ties == "first" else None)
    assert got.share == most / (len(said) if denominator == "valid" else len(keys))


def test_ties_go_to_the_answer_seen_first_whatever_its_name():
    assert vote(["t:z", "t:a", "t:a", "t:z"], ties="first", denominator="valid").majority == "t:z"
    assert vote(["t:a", "t:z", "t:z", "t:a"], ties="first", denominator="valid").majority == "t:a"
    tied = vote([None, "t:z", "t:a"], ties="abstain", denominator="all")
    assert tied.majority is None and tied.share == 1 / 3


@given(KEYS, st.integers(0, 24))
def test_a_sample_without_an_answer_moves_nothing_but_the_count(keys, at):
    longer = [*keys[:at], None, *keys[at:]]
    before, after = (vote(k, ties="first", denominator="valid") for k in (keys, longer))
    assert (before.classes, before.majority, before.share) == (after.classes, after.majority, after.share)
    assert after.samples == before.samples + 1


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match="ties"):
        vote(["n:1"], ties="last", denominator="valid")
    with pytest.raises(ValueError, match="denominator"):
        vote(["n:1"], ties="first", denominator="most")
