"""Takes the answer keys of one question's samples, gives their classes with counts, the majority and its share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Vote:
    """How the samples of one question voted."""

    classes: tuple[tuple[str, int], ...]  # (key, count), the largest first, equal counts in the order first seen
    majority: str | None  # the pseudo-label; None: no valid answer, or a tie that abstains
    share: float  # count of the largest class over the denominator, also in a tie; 0 without a valid answer
    valid: int  # samples that stated an answer
    samples: int  # all samples


def vote(keys: Sequence[str | None], *, ties: str, denominator: str) -> Vote:
    """Count the votes of one question's samples. A key of None is no vote.

    ties: "first", the tied answer seen first wins, or "abstain", nobody does. denominator of the share: "valid" answers
    or "all" samples. SRT (arXiv 2505.21444) uses "first" and "valid".
    """
    if ties not in ("first", "abstain") or denominator not in ("valid", "all"):
        raise ValueError(f"ties = {ties!r} must be first or abstain, denominator = {denominator!r} valid or all")
    counts = Counter(key for key in keys if key is not None)
    classes = tuple(counts.most_common())  # a stable sort of insertion order: equal counts stay in the order first seen
    valid = sum(counts.values())
    if not classes:
        return Vote(classes=(), majority=None, share=0.0, valid=0, samples=len(keys))
    (first, most), *others = classes
    tied = bool(others) and others[0][1] == most
    return Vote(
        classes=classes,
        majority=None if tied and ties == "abstain" else first,
        share=most / (valid if denominator == "valid" else len(keys)),
        valid=valid,
        samples=len(keys),
    )
