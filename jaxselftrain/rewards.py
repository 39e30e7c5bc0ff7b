"""Takes the answer keys of the samples and their votes, gives the host's feedback to the device: who is rewarded how much.

Gold answers are no business of this module: a label reaches a reward only as an explicit argument of `feedback`. Where labels
come from is said in `labels`; nothing here can look one up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    rate: Any = field(default_factory=lambda: np.ones((), np.float32))  # the learning rate is multiplied by this


def with_questions(feedback: Feedback, places: Sequence[int], new: Feedback) -> Feedback:
    """The feedback on a batch after the questions at these places have been replaced; `new` is about these alone."""

    def put(old, new):
        whole = np.array(old)
        whole[list(places)] = new
        return whole

    return Feedback(
        reward_QN=put(feedback.reward_QN, new.reward_QN),
        weight_QN=put(feedback.weight_QN, new.weight_QN),
        kl_weight_Q=put(feedback.kl_weight_Q, new.kl_weight_Q),
        chosen_QM=put(feedback.chosen_QM, new.chosen_QM),
        learn=feedback.learn,
    )


def agreement(keys: Sequence[str | None], label: str | None) -> list[float]:
    """1.0 for each sample whose answer is the label, 0.0 for the others and for all when there is no label.

    SRT's reward (arXiv 2505.21444): r(y) = 1[answer(y) = majority answer].
    """
    return [1.0 if label is not None and key == label else 0.0 for key in keys]


def coin(*, seed: int, step: int, question: str, sample: int) -> float:
    """A fair coin, 0.0 or 1.0, that depends on these four values and nothing else: the random-reward control."""
    digest = blake2b(f"{seed}:{step}:{sample}:{question}".encode("utf-8", "surrogatepass"), digest_size=1).digest()
    return float(digest[0] & 1)


def soft(keys: Sequence[str | None], ballot: Vote) -> list[float]:
    """Each sample's reward is the share of the vote that its answer has; 0 without an answer.

    The soft reward of SRT's released code. No label is asked for.
    """
    share = dict(zip((key for key, _ in ballot.classes), ballot.shares, strict=True))
    return [0.0 if key is None else share[key] for key in keys]


def feedback(
    keys_QN: Sequence[Sequence[str | None]],
    votes: Sequence[Vote],
    labels: Sequence[str | None],
    confidence: Mapping[str, np.ndarray],
    *,
    parts: Mapping[str, float],
    choose: str,
    samples_trained: int,
    ids: Sequence[str],
    seed: int,
    step: int,
) -> Feedback:
    """Rewards and weights of Q questions with N samples each.

    | kind | a sample's reward |
    | --- | --- |
    | agreement | 1 when its answer is its question's label |
    | soft | the share of the vote that its answer has |
    | self_certainty | mean_t KL(U || p_t) of its tokens' distributions (INTUITOR, arXiv 2505.19590) |
    | entropy | -mean_t H(p_t) (RENT, arXiv 2505.22660) |
    | log_prob | mean_t log p(y_t) (EM-RL, arXiv 2505.15134) |
    | format | 1 when it states an answer, whatever it is: a control |
    | random | a fair coin on (seed, step, id, sample), whatever it says: a control |

    `parts` is kind -> weight: one kind as it is, or the weighted sum of several, each standardized within its question first
    (minus its mean, over its standard deviation; arXiv 2605.22620). `confidence` has log_prob, entropy and self_certainty [Q, N]
    where a kind asks for them.

    A question that nothing can be learned from, because it has no label (nobody answered, a tie that abstains), has reward 0,
    so no advantage, and is charged no KL; its tokens still count in token means, as in SRT's released code. Trained on are
    `samples_trained` samples of each question, the first ones or, with `choose` "random", others by a hash of (seed, step, id,
    sample), as TTRL has 64 vote and 32 learn. See `keep` for questions that are left out.

    Raises ValueError for an unknown kind or choice, and when the lengths differ.
    """
    if choose not in ("first", "random"):
        raise ValueError(f"choose = {choose!r} must be first or random")
    Q, N = len(keys_QN), len(keys_QN[0])
    if {len(votes), len(ids), len(labels)} != {Q} or {len(keys) for keys in keys_QN} != {N} or not 0 < samples_trained <= N:
        raise ValueError(
            f"{Q} questions x {N} samples do not fit {len(votes)} votes, {len(ids)} ids, {len(labels)} labels, "
            f"{samples_trained} samples trained on"
        )
    found = {kind: _rewards(kind, keys_QN, votes, labels, confidence, ids=ids, seed=seed, step=step) for kind in parts}
    if len(parts) == 1:
        (reward_QN,) = (reward_QN for reward_QN, _ in found.values())
    else:
        reward_QN = sum((weight * standardized(found[kind][0]) for kind, weight in parts.items()), np.zeros((Q, N)))
    says_something_Q = np.any([says_Q for _, says_Q in found.values()], 0)
    return Feedback(
        reward_QN=reward_QN.astype(np.float32),
        weight_QN=np.ones((Q, N), np.float32),
        kl_weight_Q=says_something_Q.astype(np.float32),
        chosen_QM=np.asarray([chosen(N, samples_trained, choose=choose, seed=seed, step=step, id=id) for id in ids], np.int32),
        learn=np.asarray(True),
    )


def kept_share(feedback: Feedback) -> float:
    """Share of a batch's questions that are learned from."""
    return float((feedback.weight_QN > 0).any(1).mean())


def _rewards(kind, keys_QN, votes, labels, confidence, *, ids, seed, step) -> tuple[np.ndarray, np.ndarray]:
    """(rewards [Q, N], whether they say anything about a question [Q]) of one kind."""
    all_Q = np.ones(len(keys_QN), bool)
    match kind:
        case "agreement":
            rewards = [agreement(keys, label) for keys, label in zip(keys_QN, labels, strict=True)]
            return np.asarray(rewards), np.asarray([label is not None for label in labels])
        case "soft":
            rewards = [soft(keys, ballot) for keys, ballot in zip(keys_QN, votes, strict=True)]
            return np.asarray(rewards), np.asarray([ballot.share > 0 for ballot in votes])
        case "self_certainty" | "log_prob":
            return np.asarray(confidence[kind], float), all_Q
        case "entropy":
            return -np.asarray(confidence[kind], float), all_Q
        case "format":
            return np.asarray([[float(key is not None) for key in keys] for keys in keys_QN]), all_Q
        case "random":
            coins = [[coin(seed=seed, step=step, question=id, sample=n) for n in range(len(keys_QN[0]))] for id in ids]
            return np.asarray(coins), all_Q
    raise ValueError(f"kind = {kind!r} is no reward")


def standardized(reward_QN: np.ndarray) -> np.ndarray:
    """Each question's rewards with mean 0 and standard deviation 1; zeros where they are all equal."""
    centred_QN = reward_QN - reward_QN.mean(1, keepdims=True)
    spread_Q1 = reward_QN.std(1, keepdims=True)
    return np.where(spread_Q1 > 1e-12, centred_QN / np.maximum(spread_Q1, 1e-12), 0.0)


def kept(shares: Sequence[float], *, minimum: float, fraction: float) -> list[bool]:
    """Which questions of a batch are learned from, by their majority shares."""
    most = math.ceil(fraction * len(shares) - 1e-9)  # 0.1 * 30 is 3.0000000000000004
    first = set(sorted(range(len(shares)), key=lambda q: -shares[q])[:most])
    return [q in first and share >= minimum for q, share in enumerate(shares)]


def keep(feedback: Feedback, shares: Sequence[float], *, minimum_share: float, keep_fraction: float) -> Feedback:
    """The feedback on a whole batch without the questions that too few samples agree on, by their majority shares.

    Those below `minimum_share`, and all but the `keep_fraction` of the batch with the largest shares (rounded up; the first ones
    of equal shares), are out: no weight and no KL.
    """
    kept_Q = np.asarray(kept(shares, minimum=minimum_share, fraction=keep_fraction), np.float32)
    return replace(feedback, weight_QN=feedback.weight_QN * kept_Q[:, None], kl_weight_Q=feedback.kl_weight_Q * kept_Q)


def chosen(N: int, M: int, *, choose: str, seed: int, step: int, id: str) -> list[int]:
    """The M of N samples that are trained on, in rising order."""
    if choose == "first" or M == N:
        return list(range(M))

    def place(n):
        return blake2b(f"{seed}:{step}:choose:{n}:{id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()

    return sorted(sorted(range(N), key=place)[:M])
