"""Takes the answer keys of one question's samples, gives their classes with counts, the majority and its share.

| convention | `ties` | `denominator` | `opaque_may_win` |
| --- | --- | --- | --- |
| SRT (arXiv 2505.21444): what cannot be parsed is out of the vote | first | valid | false |
| TTRL (arXiv 2504.16084): raw strings vote, and every sample counts | first | all | true |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jaxselftrain.answers import is_opaque


@dataclass(frozen=True)
class Vote:
    """How the samples of one question voted."""

    classes: tuple[tuple[str, int], ...]  # (key, count), the largest first, equal counts in the order first seen
    majority: str | None  # the pseudo-label; None: no answer that may win, or a tie that abstains
    share: float  # count of the largest class that may win over the denominator, also in a tie; 0 where there is none
    valid: int  # samples that stated an answer
    opaque: int  # those of them that stated an opaque one
    samples: int  # all samples
    shares: tuple[float, ...]  # of each class, over the denominator; 0 for those that may not win


def vote(keys: Sequence[str | None], *, ties: str, denominator: str, opaque_may_win: bool) -> Vote:
    """Count the votes of one question's samples. A key of None is no vote.

    ties: "first", the tied answer seen first wins, or "abstain", nobody does. denominator of the share: "valid" answers
    or "all" samples. opaque_may_win: whether an answer that was too long, deep, large or strange to be understood, and
    so counts as its exact text, can be the majority; where not, it still counts in the denominator, and the largest
    class of the others wins.
    """
    if ties not in ("first", "abstain") or denominator not in ("valid", "all"):
        raise ValueError(f"ties = {ties!r} must be first or abstain, denominator = {denominator!r} valid or all")
    counts = Counter(key for key in keys if key is not None)
    classes = tuple(counts.most_common())  # a stable sort of insertion order: equal counts stay in the order first seen
    opaque = sum(count for key, count in classes if is_opaque(key))
    may_win = [(key, count) for key, count in classes if opaque_may_win or not is_opaque(key)]
    most = may_win[0][1] if may_win else 0
    tied = len(may_win) > 1 and may_win[1][1] == most
    total = counts.total() if denominator == "valid" else len(keys)
    return Vote(
        classes=classes,
        majority=None if not may_win or (tied and ties == "abstain") else may_win[0][0],
        share=most / total if may_win else 0.0,
        valid=counts.total(),
        opaque=opaque,
        samples=len(keys),
        shares=tuple(count / total if opaque_may_win or not is_opaque(key) else 0.0 for key, count in classes),
    )
