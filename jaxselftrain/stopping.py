"""Takes stop strings and end-of-sequence ids, gives one table that tells, token by token, where a response ends.

The stop strings become one Aho-Corasick automaton over bytes; each token moves it by all of its bytes at once. So a stop
string is found wherever token boundaries fall, with one table look-up per token inside the compiled sampler.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from jaxselftrain.errors import UserError

STOPPED = -1  # entry of the table: the response ends with this token
ROUND = 8  # states are padded to a multiple of this, so that small changes of the stop set do not recompile


def stop_table(stop: Sequence[str], token_bytes: Sequence[bytes], end_ids: Sequence[int]) -> np.ndarray:
    """next_SV int16: state after reading token v in state s, or STOPPED; state 0 is the start.

    token_bytes[v] are the bytes of token v (empty for special tokens, which break a match). Raises UserError for an
    empty stop string.
    """
    if any(not text for text in stop):
        raise UserError("rollout.stop holds an empty string; remove it")
    goto, accepting = _automaton([text.encode() for text in stop])
    states = -(-len(goto) // ROUND) * ROUND
    table = np.zeros((states, len(token_bytes)), np.int16)
    for v, piece in enumerate(token_bytes):
        for state in range(len(goto)):
            table[state, v] = _read(goto, accepting, state, piece)
    table[:, list(end_ids)] = STOPPED
    return table


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string that ends earliest, as the sampler saw it; the whole text if there is none."""
    ends = [(at + len(s), at) for s in stop if (at := text.find(s)) >= 0]
    return text[: min(ends)[1]] if ends else text


def _read(goto, accepting, state, piece):
    if not piece:
        return 0
    for byte in piece:
        state = goto[state].get(byte, 0)
        if state in accepting:
            return STOPPED
    return state


def _automaton(patterns: list[bytes]) -> tuple[list[dict[int, int]], set[int]]:
    """(next state by byte for every state, missing meaning 0; accepting states)."""
    goto: list[dict[int, int]] = [{}]
    accepting = set()
    for pattern in patterns:
        state = 0
        for byte in pattern:
            if byte not in goto[state]:
                goto.append({})
                goto[state][byte] = len(goto) - 1
            state = goto[state][byte]
        accepting.add(state)
    fail = [0] * len(goto)
    queue = deque(goto[0].values())
    while queue:  # breadth first: the failure state's own moves are complete before they are inherited
        state = queue.popleft()
        if fail[state] in accepting:
            accepting.add(state)
        for byte, child in goto[state].items():
            fail[child] = goto[fail[state]].get(byte, 0)
            queue.append(child)
        goto[state] = {**goto[fail[state]], **goto[state]}
    return goto, accepting
