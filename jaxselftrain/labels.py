"""Takes the votes on a batch of questions and, where the run asks for them, gold keys; gives each question's label.

| `label.source` | the label |
| --- | --- |
| vote | the majority answer of the samples themselves (SRT, arXiv 2505.21444) |
| gold | the gold answer: the labelled baseline |
| mixed | the gold answer where a question has one, otherwise the majority answer |
| teacher | the majority answer of a frozen teacher, made once by `jaxselftrain label` |
| ema | the majority answer of a teacher that follows the policy slowly (Co-rewarding II, arXiv 2508.00410) |
| incorrect | the most frequent answer that is not the gold one: a control (Spurious Rewards, arXiv 2506.10947) |

Gold answers and a teacher's come as an argument and from nowhere else: `judge` passes them for the sources that name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from jaxselftrain.votes import Vote

NEED_GOLD = ("gold", "mixed", "incorrect")
KNOWN_BEFORE = ("teacher", "ema", *NEED_GOLD)  # labels that come from elsewhere than this batch's own votes


def choose_labels(
    source: str, votes: Sequence[Vote], known: Sequence[str | None] | None, *, noise: float, ids: Sequence[str], seed: int
) -> list[str | None]:
    """The label's key for every question; None where it has none, which is no reward for anybody.

    `known` are keys of gold answers, or of a teacher's; None for a question without one. `noise` is the share of questions with
    a wrong label, the same ones throughout a run (by seed and id): the most frequent answer that is not their label. An opaque
    answer that may not win is nobody's label.

    Raises ValueError when such keys are given and the source does not use them, or the other way round.
    """
    if source not in ("vote", *KNOWN_BEFORE):
        raise ValueError(f"source = {source!r} must be vote or one of {', '.join(KNOWN_BEFORE)}")
    if (known is not None) != (source in KNOWN_BEFORE):
        raise ValueError(
            f"known labels go with the sources {', '.join(KNOWN_BEFORE)}, and only with them; the source is {source}"
        )
    labels: list[str | None] = []
    for ballot, given, id in zip(votes, known or [None] * len(votes), ids, strict=True):
        if source == "vote" or (source == "mixed" and given is None):
            label = ballot.majority
        elif source == "incorrect":
            label = None if given is None else most_frequent_but(ballot, given)
        else:
            label = given
        labels.append(most_frequent_but(ballot, label) if is_noisy(id, noise=noise, seed=seed) else label)
    return labels


def most_frequent_but(ballot: Vote, key: str | None) -> str | None:
    """The answer with the most votes that may win and is not `key`; None where there is none."""
    return next((other for (other, _), share in zip(ballot.classes, ballot.shares, strict=True) if share and other != key), None)


def is_noisy(id: str, *, noise: float, seed: int) -> bool:
    """Whether a question is one of those with a wrong label; a larger share has all questions of a smaller one."""
    digest = blake2b(f"{seed}:noise:{id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < noise * 2**64
