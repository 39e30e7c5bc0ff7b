"""Takes the rollouts of a sampling call, gives the host's decision on them: of a batch's places, and of the probe questions.

Each process reads the samples that lie on its own devices; all of them know the decision on the whole batch.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxselftrain.answer_key import AnswerKey
from jaxselftrain.assembly import Parts
from jaxselftrain.judge import Verdict, conclude, judge
from jaxselftrain.probes import agreement
from jaxselftrain.processes import fetch, gather, own_rows
from jaxselftrain.prompts import Encoded
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Rollouts
from jaxselftrain.start import Host
from jaxselftrain.supervised import GoldResponses
from jaxselftrain.tallies import Tally, fingerprint, no_tally
from jaxselftrain.voter import Voter
from jaxselftrain.votes import Vote, vote

PROBE = "probe_agreement"


@dataclass(frozen=True)
class Fetched:
    """What the host reads of the rollouts, in one transfer a step: those of its own places of the batch."""

    tokens_QNT: Any
    length_QN: Any
    ended_QN: Any
    confidence: Any  # Confidence | None
    taught: Any  # Taught | None

    def at(self, rows: Sequence[int]) -> Fetched:
        """Only these rows."""
        return jax.tree.map(lambda x: x[list(rows)], self)

    @classmethod
    def of(cls, rollouts: Rollouts) -> Fetched:
        return cls(rollouts.tokens_QNT, rollouts.length_QN, rollouts.ended_QN, rollouts.confidence, rollouts.taught)


jax.tree_util.register_dataclass(Fetched)


@dataclass(frozen=True)
class Decision:
    """What the next update learns from some places of the batch."""

    feedback: Feedback
    metrics: dict[str, float]
    tokens: int  # drawn for it
    votes: dict[int, Vote]  # place -> vote, and
    responses: list[dict[str, Any]]  # rows of responses.jsonl: both of the process's own places


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
        self.Q = self.config.rollout.questions
        self.own = own_rows(parts.mesh, "questions", self.Q)

    def decide(self, host: Host, indices: list[int], fetched: Fetched) -> tuple[Feedback, dict[int, Vote]]:
        """Reads the answers of the new rollouts and decides what the next update learns from them."""
        filled = float(self.training.length_Q[indices].mean()) / self.width
        host.pending = {"prompt_padding_share": 1.0 - filled}
        if self.gold is not None:
            length_QN = self._gather(self.own, fetched.length_QN)
            host.tokens = int(length_QN.sum())
            host.pending |= {"response_length": float(length_QN.mean())}
            return self.gold.feedback(), {}
        decision = self.decision(host, dict(enumerate(indices)), fetched)
        host.tokens = decision.tokens
        host.pending |= decision.metrics
        host.responses = decision.responses
        return decision.feedback, decision.votes

    def decision(self, host: Host, asked: Mapping[int, int], fetched: Fetched) -> Decision:
        """The decision on the samples at some places: place -> index of its question. Nothing is noted in the Host."""
        started = time.perf_counter()
        mine = [place for place in asked if place in self.own]
        verdict = self._verdict(host, [asked[place] for place in mine], fetched.at([place - self.own.start for place in mine]))
        killed_Q = np.zeros(len(mine), np.int32)
        killed_Q[:1] = verdict.killed
        arrays, killed_Q = self._gather(mine, (verdict.tally.arrays(), killed_Q))
        tally = Tally(**arrays).at(list(asked))
        feedback, metrics = conclude(self.config, tally)
        metrics |= {"voter_kills": int(killed_Q.sum()), "voter_seconds": time.perf_counter() - started}
        votes = dict(zip(mine, verdict.votes, strict=True))
        return Decision(feedback, metrics, int(tally.length_QN.sum()), votes, verdict.responses)

    def _gather(self, places: Sequence[int], tree: Any) -> Any:
        return gather(places, tree, most=len(self.own), total=self.Q)

    def _verdict(self, host: Host, indices: Sequence[int], fetched: Fetched) -> Verdict:
        if not indices:  # of a refill, all places may be of other processes
            return Verdict(no_tally(N=self.config.vote.samples, M=self.config.samples_trained), [], [], killed=0)
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
        count, settings = len(self.probes.questions), self.config.vote
        mine = [place for place in self.own if place < count]
        fetched = fetch(Fetched.of(rollouts)).at(range(len(mine)))
        reading = self.voter.read(self.parts.texts(fetched.tokens_QNT, fetched.length_QN))
        votes = [
            vote(keys, ties=settings.ties, denominator=settings.denominator, opaque_may_win=settings.opaque_may_win)
            for keys in (reading.keys[i : i + settings.samples] for i in range(0, len(reading.keys), settings.samples))
        ]
        now = self._gather(mine, np.asarray([fingerprint(ballot.majority) for ballot in votes], np.uint64))[:count].tolist()
        if host.probes is None:
            host.probes = now
        return {PROBE: agreement(host.probes, now)}
