"""Takes a few questions that are never trained on, gives how many of them the policy still answers as the initial policy did.

How far a policy has moved from what it said at the start can be seen without a gold answer. The same noise is used every time,
so that only the weights differ.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxselftrain.prompts import Encoded


def set_aside(encoded: Encoded, count: int) -> tuple[Encoded, Encoded]:
    """(the probe questions, the others): the first `count` in the order of the source, which no shuffle changes."""

    def part(of: slice, dropped_ids: list[str]) -> Encoded:
        return Encoded(encoded.questions[of], encoded.tokens[of], encoded.length_Q[of], dropped_ids)

    return part(slice(count), []), part(slice(count, None), encoded.dropped_ids)


def agreement(before: Sequence[int], now: Sequence[int]) -> float:
    """Share of the probe questions whose majority answer is that of the initial policy; none then and none now agree as well.

    Both are fingerprints of answers.
    """
    return sum(old == new for old, new in zip(before, now, strict=True)) / len(before)
