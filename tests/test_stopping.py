"""The stop table against a search in the growing text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxselftrain.errors import UserError
from jaxselftrain.stopping import ROUND, STOPPED, cut_at_stop, stop_table

LETTERS = st.text("ab\n", min_size=1, max_size=4)


def stopped_at(table, ids):
    state = 0
    for position, token in enumerate(ids):
        state = table[state, token]
        if state == STOPPED:
            return position
    return None


@given(stop=st.lists(LETTERS, max_size=4), pieces=st.lists(LETTERS, min_size=1, max_size=8), data=st.data())
def test_a_response_ends_with_the_token_that_completes_a_stop_string(stop, pieces, data):
    ids = data.draw(st.lists(st.integers(0, len(pieces) - 1), max_size=12))
    table = stop_table(stop, [piece.encode() for piece in pieces], [])
    texts = ["".join(pieces[i] for i in ids[: n + 1]) for n in range(len(ids))]
    want = next((n for n, text in enumerate(texts) if any(s in text for s in stop)), None)
    assert stopped_at(table, ids) == want


@given(text=st.text("abc", max_size=12), data=st.data())
def test_every_tokenization_of_a_text_stops_at_the_same_place(text, data):
    pieces = [a + b + c for a in "abc" for b in ("", *"abc") for c in ("", *"abc")]
    table = stop_table(["bca"], [piece.encode() for piece in pieces], [])
    ids, rest = [], text
    while rest:
        size = data.draw(st.integers(1, min(3, len(rest))))
        ids.append(pieces.index(rest[:size]))
        rest = rest[size:]
    assert (stopped_at(table, ids) is not None) == ("bca" in text)


def test_multibyte_characters_may_be_split_between_tokens():
    euro = "€".encode()
    table = stop_table(["€"], [euro[:1], euro[1:2], euro[2:], b"x"], [])
    assert stopped_at(table, [3, 0, 1, 2]) == 3
    assert stopped_at(table, [0, 1, 3, 2]) is None


def test_end_ids_stop_in_every_state_and_special_tokens_break_a_match():
    table = stop_table(["ab"], [b"a", b"b", b"", b""], [3])
    assert stopped_at(table, [0, 3]) == 1
    assert stopped_at(table, [0, 2, 1]) is None
    assert table.shape[0] % ROUND == 0


def test_an_empty_stop_string_is_an_error():
    with pytest.raises(UserError, match="rollout.stop"):
        stop_table([""], [b"a"], [])


@given(text=st.text("ab\n", max_size=10), stop=st.lists(LETTERS, max_size=3))
def test_cut_keeps_the_text_before_the_stop_string_that_is_completed_first(text, stop):
    got = cut_at_stop(text, stop)
    grown = next((text[:n] for n in range(len(text) + 1) if any(s in text[:n] for s in stop)), None)
    if grown is None:
        assert got == text
    else:
        assert any(grown == got + s for s in stop)
