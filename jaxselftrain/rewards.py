"""Takes the answer keys of the samples and their votes, gives the host's feedback to the device: who is rewarded how much.

Gold answers are no business of this module: a label reaches a reward only as an explicit argument of `feedback`, which
the host loop passes when `reward.source` is gold. Nothing here can look one up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from jaxselftrain.votes import Vote


@dataclass(frozen=True)
class Feedback:
    """What the host decided about one batch of rollouts; NumPy arrays, question-major."""

    reward_QN: Any  # float32
    weight_QN: Any  # float32: weight of the sample's loss; 0 takes it out
    kl_weight_Q: Any  # float32: weight of the question's KL
    chosen_QM: Any  # int32: the samples trained on
    learn: Any  # bool, no axes: False skips the update


def agreement(keys: Sequence[str | None], label: str | None) -> list[float]:
    """1.0 for each sample whose answer is the label, 0.0 for the others and for all when there is no label.

    SRT's reward (arXiv 2505.21444): r(y) = 1[answer(y) = majority answer].
    """
    return [1.0 if label is not None and key == label else 0.0 for key in keys]


def coin(*, seed: int, step: int, question: str, sample: int) -> float:
    """A fair coin, 0.0 or 1.0, that depends on these four values and nothing else: the random-reward control."""
    digest = blake2b(f"{seed}:{step}:{sample}:{question}".encode("utf-8", "surrogatepass"), digest_size=1).digest()
    return float(digest[0] & 1)


def feedback(
    keys_QN: Sequence[Sequence[str | None]],
    votes: Sequence[Vote],
    *,
    source: str,
    labels: Sequence[str | None] | None,
    samples_trained: int,
    ids: Sequence[str],
    seed: int,
    step: int,
) -> Feedback:
    """Rewards and weights of Q questions with N samples each.

    source "vote": a sample is rewarded when it gives its question's majority answer; "gold": when it gives the label in
    `labels` (a key per question, None where there is none); "random": by a fair coin on (seed, step, id, sample),
    whatever it says. A question without a label (nobody answered, a tie that abstains) has reward 0, so no advantage, and is
    charged no KL; its tokens still count in token means, as in SRT's released code. Trained on are the first
    `samples_trained` samples of each question.

    Raises ValueError when labels are given and the source is not gold, or the other way round, and when the lengths differ.
    """
    if source not in ("vote", "gold", "random"):
        raise ValueError(f"source = {source!r} must be vote, gold or random")
    if (labels is not None) != (source == "gold"):
        raise ValueError(f"labels go with source gold, and only with it; the source is {source}")
    used = [ballot.majority for ballot in votes] if labels is None else list(labels)
    Q, N = len(keys_QN), len(keys_QN[0])
    if {len(votes), len(ids), len(used)} != {Q} or {len(keys) for keys in keys_QN} != {N} or not 0 < samples_trained <= N:
        raise ValueError(
            f"{Q} questions x {N} samples do not fit {len(votes)} votes, {len(ids)} ids, {len(used)} labels, "
            f"{samples_trained} samples trained on"
        )
    if source == "random":
        rewards = [[coin(seed=seed, step=step, question=id, sample=n) for n in range(N)] for id in ids]
        labelled_Q = np.ones(Q, np.float32)
    else:
        rewards = [agreement(keys, label) for keys, label in zip(keys_QN, used, strict=True)]
        labelled_Q = np.asarray([label is not None for label in used], np.float32)
    return Feedback(
        reward_QN=np.asarray(rewards, np.float32),
        weight_QN=np.ones((Q, N), np.float32),
        kl_weight_Q=labelled_Q,
        chosen_QM=np.tile(np.arange(samples_trained, dtype=np.int32), (Q, 1)),
        learn=np.asarray(True),
    )
