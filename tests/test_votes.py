"""Votes against a slow counter and the written-out conventions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxselftrain.votes import vote

KEYS = st.lists(st.sampled_from([None, "n:1", "n:2", "t:1", "o:a", "o:b"]), max_size=24)


@given(KEYS, st.sampled_from(["first", "abstain"]), st.sampled_from(["valid", "all"]), st.booleans())
def test_equals_a_slow_count(keys, ties, denominator, opaque_may_win):
    said = [key for key in keys if key is not None]
    different = [key for i, key in enumerate(said) if key not in said[:i]]
    ordered = sorted(different, key=lambda key: (-said.count(key), said.index(key)))
    got = vote(keys, ties=ties, denominator=denominator, opaque_may_win=opaque_may_win)
    assert got.classes == tuple((key, said.count(key)) for key in ordered)
    total = len(said) if denominator == "valid" else len(keys)
    may_win = [opaque_may_win or key not in ("o:a", "o:b") for key in ordered]
    assert got.shares == tuple(may * said.count(key) / total for key, may in zip(ordered, may_win, strict=True))
    assert (got.valid, got.opaque, got.samples) == (len(said), said.count("o:a") + said.count("o:b"), len(keys))
    candidates = [key for key in different if opaque_may_win or key not in ("o:a", "o:b")]
    if not candidates:
        assert got.majority is None and got.share == 0.0
        return
    most = max(said.count(key) for key in candidates)
    leaders = [key for key in candidates if said.count(key) == most]
    assert got.majority == (leaders[0] if len(leaders) == 1 or ties == "first" else None)
    assert got.share == most / (len(said) if denominator == "valid" else len(keys))


def test_ties_go_to_the_answer_seen_first_whatever_its_name():
    assert vote(["t:z", "t:a", "t:a", "t:z"], ties="first", denominator="valid", opaque_may_win=True).majority == "t:z"
    assert vote(["t:a", "t:z", "t:z", "t:a"], ties="first", denominator="valid", opaque_may_win=True).majority == "t:a"
    tied = vote([None, "t:z", "t:a"], ties="abstain", denominator="all", opaque_may_win=True)
    assert tied.majority is None and tied.share == 1 / 3


def test_an_opaque_answer_that_may_not_win_leaves_the_vote_to_the_others():
    keys = ["o:a", "o:a", "o:a", "n:5", None]
    barred = vote(keys, ties="first", denominator="valid", opaque_may_win=False)
    assert (barred.majority, barred.share, barred.classes[0]) == ("n:5", 1 / 4, ("o:a", 3))
    assert vote(keys, ties="first", denominator="valid", opaque_may_win=True).majority == "o:a"
    even = vote(["o:a", "n:5"], ties="abstain", denominator="all", opaque_may_win=False)
    assert (even.majority, even.share) == ("n:5", 1 / 2)  # no tie with what cannot win
    alone = vote(["o:a"] * 4, ties="first", denominator="all", opaque_may_win=False)
    assert (alone.majority, alone.share, alone.valid) == (None, 0.0, 4)


def test_the_conventions_of_both_papers():
    """The same samples under SRT's and TTRL's rules, worked out by hand."""
    keys = ["n:1", None, "n:2", "n:1", "n:2", None, "o:x", "o:x", "o:x", None]
    srt = vote(keys, ties="first", denominator="valid", opaque_may_win=False)
    assert (srt.majority, srt.share) == ("n:1", 2 / 7)
    ttrl = vote(keys, ties="first", denominator="all", opaque_may_win=True)
    assert (ttrl.majority, ttrl.share) == ("o:x", 3 / 10)


@given(KEYS, st.integers(0, 24))
def test_a_sample_without_an_answer_moves_nothing_but_the_count(keys, at):
    longer = [*keys[:at], None, *keys[at:]]
    before, after = (vote(k, ties="first", denominator="valid", opaque_may_win=True) for k in (keys, longer))
    assert (before.classes, before.majority, before.share) == (after.classes, after.majority, after.share)
    assert after.samples == before.samples + 1


def test_an_unknown_convention_is_refused():
    with pytest.raises(ValueError, match="ties"):
        vote(["n:1"], ties="last", denominator="valid", opaque_may_win=True)
    with pytest.raises(ValueError, match="denominator"):
        vote(["n:1"], ties="first", denominator="most", opaque_may_win=True)
