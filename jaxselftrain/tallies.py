"""Takes what was read in Q questions' samples and voted, gives all that is needed of it from there on: small arrays, no text.

Where several processes train together, these arrays are what they tell each other of their questions. Answers are fingerprints in
them, which say whether two are equal and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b

import numpy as np

from jaxselftrain.answer_key import AnswerKey
from jaxselftrain.rewards import Feedback
from jaxselftrain.votes import Vote

NONE = 0  # the fingerprint of no answer


@dataclass(frozen=True)
class Tally:
    """Arrays of Q questions, of N samples each, of which M are trained on."""

    reward_QN: np.ndarray  # float32
    kl_weight_Q: np.ndarray  # float32: 0 where the question has no label
    chosen_QM: np.ndarray  # int32: the samples trained on
    key_QN: np.ndarray  # uint64: fingerprints of the answers
    majority_Q: np.ndarray  # uint64: of the majority answers
    share_Q: np.ndarray  # float64: the majority's
    classes_Q: np.ndarray  # int32: distinct answers
    opaque_Q: np.ndarray  # int32: samples whose answer could not be understood
    halves_differ_Q: np.ndarray  # bool: whether both halves of the samples have the same majority answer
    length_QN: np.ndarray  # int32
    certainty_QN: np.ndarray  # float32: self-certainty; NaN where it is not measured
    truncated_QN: np.ndarray  # bool
    is_known_Q: np.ndarray  # bool: whether the question has a gold answer; the next three are false where it has none
    right_QN: np.ndarray  # bool: the sample's answer is the gold one
    label_right_Q: np.ndarray  # bool
    majority_right_Q: np.ndarray  # bool

    def feedback(self) -> Feedback:
        """What the device is told where all questions are kept."""
        return Feedback(
            reward_QN=self.reward_QN,
            weight_QN=np.ones(self.reward_QN.shape, np.float32),
            kl_weight_Q=self.kl_weight_Q,
            chosen_QM=self.chosen_QM,
            learn=np.asarray(True),
        )

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def at(self, places: Sequence[int]) -> Tally:
        """That of some of the questions alone."""
        return Tally(**{name: x[list(places)] for name, x in self.arrays().items()})


def no_tally(*, N: int, M: int) -> Tally:
    """That of no question."""
    of_samples, of_questions = np.zeros((0, N)), np.zeros(0)
    return Tally(
        reward_QN=of_samples.astype(np.float32),
        kl_weight_Q=of_questions.astype(np.float32),
        chosen_QM=np.zeros((0, M), np.int32),
        key_QN=of_samples.astype(np.uint64),
        majority_Q=of_questions.astype(np.uint64),
        share_Q=of_questions,
        classes_Q=of_questions.astype(np.int32),
        opaque_Q=of_questions.astype(np.int32),
        halves_differ_Q=of_questions.astype(bool),
        length_QN=of_samples.astype(np.int32),
        truncated_QN=of_samples.astype(bool),
        certainty_QN=of_samples.astype(np.float32),
        is_known_Q=of_questions.astype(bool),
        right_QN=of_samples.astype(bool),
        label_right_Q=of_questions.astype(bool),
        majority_right_Q=of_questions.astype(bool),
    )


def fingerprint(key: str | None) -> int:
    """A number in place of an answer's key, the same in every process; two answers share one with a chance of 2**-64."""
    if key is None:
        return NONE
    return int.from_bytes(blake2b(key.encode("utf-8", "surrogatepass"), digest_size=8).digest()) or 1


def count_up(
    keys_QN: Sequence[Sequence[str | None]],
    votes: Sequence[Vote],
    halves: Sequence[tuple[str | None, str | None]],
    labels: Sequence[str | None],
    decided: Feedback,
    length_QN: np.ndarray,
    truncated_QN: np.ndarray,
    certainty_QN: np.ndarray | None,
    ids: Sequence[str],
    answer_key: AnswerKey | None,
) -> Tally:
    """The Tally of Q questions (`ids`); `halves` has the majority answers of both halves of each one's samples.

    `answer_key` is read here to watch the run; nothing that trains sees it.
    """
    gold = answer_key if answer_key is not None else AnswerKey({})
    majorities = [ballot.majority for ballot in votes]
    is_known = [gold.is_right(id, None) is not None for id in ids]
    return Tally(
        reward_QN=decided.reward_QN,
        kl_weight_Q=decided.kl_weight_Q,
        chosen_QM=decided.chosen_QM,
        key_QN=np.asarray([[fingerprint(key) for key in keys] for keys in keys_QN], np.uint64),
        majority_Q=np.asarray([fingerprint(key) for key in majorities], np.uint64),
        share_Q=np.asarray([ballot.share for ballot in votes], float),
        classes_Q=np.asarray([len(ballot.classes) for ballot in votes], np.int32),
        opaque_Q=np.asarray([ballot.opaque for ballot in votes], np.int32),
        halves_differ_Q=np.asarray([first != second for first, second in halves], bool),
        length_QN=np.asarray(length_QN, np.int32),
        truncated_QN=np.asarray(truncated_QN, bool),
        certainty_QN=np.full(length_QN.shape, np.nan, np.float32) if certainty_QN is None else certainty_QN,
        is_known_Q=np.asarray(is_known, bool),
        right_QN=np.asarray([[bool(gold.is_right(id, key)) for key in keys] for id, keys in zip(ids, keys_QN, strict=True)]),
        label_right_Q=np.asarray([bool(gold.is_right(*of)) for of in zip(ids, labels, strict=True)], bool),
        majority_right_Q=np.asarray([bool(gold.is_right(*of)) for of in zip(ids, majorities, strict=True)], bool),
    )
