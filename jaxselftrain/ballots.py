"""Takes the rollouts of a sampling call, gives the host's decision on them: of a batch's places, and of the probe questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxselftrain.answer_key import AnswerKey
from jaxselftrain.assembly import Parts
from jaxselftrain.judge import Verdict, judge
from jaxselftrain.probes import agreement
from jaxselftrain.prompts import Encoded
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Rollouts
from jaxselftrain.start import Host
from jaxselftrain.supervised import GoldResponses
from jaxselftrain.voter import Voter
from jaxselftrain.votes import Vote, vote

PROBE = "probe_agreement"


@dataclass(frozen=True)
class Fetched:
    """What the host reads of the rollouts, in one transfer a step."""

    tokens_QNT: Any
    length_QN: Any
    ended_QN: Any
    confidence: Any  # Confidence | None
    taught: Any  # Taught | None

    def at(self, places: Sequence[int]) -> Fetched:
        """Only what was asked at these places of the batch."""
        return jax.tree.map(lambda x: x[list(places)], self)

    @classmethod
    def of(cls, rollouts: Rollouts) -> Fetched:
        return cls(rollouts.tokens_QNT, rollouts.length_QN, rollouts.ended_QN, rollouts.confidence, rollouts.taught)


jax.tree_util.register_dataclass(Fetched)


class Ballots:
    """Votes on what was sampled; the metrics of the vote wait in the Host for the update that they belong to."""

    def __init__(
        self,
        parts: Parts,
        training: Encoded,
        probes: Encoded,
        width: int,
        *,
        voter: Voter,
        answer_key: AnswerKey,
        teacher: Mapping[str, str | None],
        gold: GoldResponses | None,
    ):
        self.parts, self.config, self.training, self.probes, self.width = parts, parts.config, training, probes, width
        self.voter, self.answer_key, self.teacher, self.gold = voter, answer_key, teacher, gold

    def decide(self, host: Host, indices: list[int], fetched: Fetched) -> tuple[Feedback, list[Vote]]:
        """Reads the answers of the new rollouts and decides what the next update learns from them."""
        filled = float(np.mean([len(self.training.tokens[i]) for i in indices])) / self.width
        host.pending = {"prompt_padding_share": 1.0 - filled}
        host.tokens = int(fetched.length_QN.sum())
        if self.gold is not None:
            host.pending |= {"response_length": float(fetched.length_QN.mean())}
            return self.gold.feedback(), []
        verdict = self.verdict(host, indices, fetched)
        host.pending |= verdict.metrics
        host.responses = verdict.responses
        return verdict.feedback, verdict.votes

    def verdict(self, host: Host, indices: Sequence[int], fetched: Fetched) -> Verdict:
        """The decision on these questions' samples; nothing is noted in the Host."""
        taught = fetched.taught
        return judge(
            self.config,
            [self.training.questions[i] for i in indices],
            self.parts.texts(fetched.tokens_QNT, fetched.length_QN),
            fetched.length_QN,
            fetched.ended_QN,
            {} if fetched.confidence is None else fetched.confidence.by_kind(),
            voter=self.voter,
            answer_key=self.answer_key,
            teacher=self.teacher,
            taught=None if taught is None else self.parts.texts(taught.tokens_QNT, taught.length_QN),
            step=host.step,
            source=host.label_source,
        )

    def probe(self, host: Host, rollouts: Rollouts) -> dict[str, float]:
        """How many of the probe questions have the majority answer that they had at the start."""
        fetched, settings = jax.device_get(Fetched.of(rollouts)).at(range(len(self.probes.tokens))), self.config.vote
        reading = self.voter.read(self.parts.texts(fetched.tokens_QNT, fetched.length_QN))
        votes = [
            vote(keys, ties=settings.ties, denominator=settings.denominator, opaque_may_win=settings.opaque_may_win)
            for keys in (reading.keys[i : i + settings.samples] for i in range(0, len(reading.keys), settings.samples))
        ]
        if host.probes is None:
            host.probes = [ballot.majority for ballot in votes]
        return {PROBE: agreement(host.probes, votes)}
