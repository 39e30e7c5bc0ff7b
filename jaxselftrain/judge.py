"""Takes the responses of one sampling call, gives what the host decides: who is rewarded, with its metrics and rows for the log.

`judge` reads and votes, on the questions of one process; `conclude` looks at the whole batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from jaxselftrain.answer_key import AnswerKey
from jaxselftrain.answers import answer_key as canonical_key
from jaxselftrain.config import Config
from jaxselftrain.labels import NEED_GOLD, choose_labels
from jaxselftrain.metrics import vote_metrics
from jaxselftrain.questions import Question
from jaxselftrain.rewards import Feedback, feedback, keep, kept_share
from jaxselftrain.tallies import Tally, count_up
from jaxselftrain.voter import Voter
from jaxselftrain.votes import Vote, vote


@dataclass(frozen=True)
class Verdict:
    """What was read in the samples of some questions, and how they voted."""

    tally: Tally
    votes: list[Vote]
    responses: list[dict[str, Any]]  # rows of responses.jsonl
    killed: int  # responses given up


def judge(
    config: Config,
    questions: Sequence[Question],
    texts: Sequence[str],
    length_QN: np.ndarray,
    ended_QN: np.ndarray,
    confidence: Mapping[str, np.ndarray],
    *,
    voter: Voter,
    answer_key: AnswerKey,
    teacher: Mapping[str, str | None],
    taught: Sequence[str] | None,
    step: int,
    source: str | None = None,
) -> Verdict:
    """Reads the answers, votes, and rewards; `texts` are question-major, Q * N of them.

    `confidence` has the sampler's statistics where the rewards ask for them; `teacher` the key of each question's label where
    these come from a frozen teacher, `taught` the texts of one that answers along. The answer key is watched by metrics, and
    reaches a label only where the source asks for gold. `source` stands in the place of `label.source` where it is given.
    """
    Q, N = length_QN.shape
    ids = [question.id for question in questions]
    reading = voter.read([*texts, *(taught or ())])
    keys, taught_keys = ([list(reading.keys[q * N : (q + 1) * N]) for q in range(*part)] for part in ((0, Q), (Q, 2 * Q)))
    count = partial(vote, ties=config.vote.ties, denominator=config.vote.denominator, opaque_may_win=config.vote.opaque_may_win)
    votes = [count(k) for k in keys]
    source = source or config.label.source
    known = _gold(answer_key, ids) if source in NEED_GOLD else None
    if source == "teacher":
        known = [teacher[id] for id in ids]
    if source == "ema":
        known = [count(k).majority for k in taught_keys]
    labels = choose_labels(source, votes, known, noise=config.label.noise, ids=ids, seed=config.train.seed)
    decided = feedback(
        keys,
        votes,
        labels,
        confidence,
        parts=config.reward.parts,
        choose=config.update.choose,
        samples_trained=config.samples_trained,
        ids=ids,
        seed=config.train.seed,
        step=step,
    )
    halves = [(count(k[: N // 2]).majority, count(k[N // 2 :]).majority) for k in keys]
    certainty_QN = confidence.get("self_certainty")
    tally = count_up(keys, votes, halves, labels, decided, length_QN, ~ended_QN, certainty_QN, ids, answer_key)
    logged = range(min(config.log.responses, Q))
    responses = [_row(questions[q], votes[q], _samples(q, texts, reading.answers, decided, length_QN, ended_QN)) for q in logged]
    return Verdict(tally, votes, responses, reading.killed)


def conclude(config: Config, tally: Tally) -> tuple[Feedback, dict[str, float]]:
    """(what the next update learns from a whole batch, its metrics)."""
    reward = config.reward
    feedback = keep(tally.feedback(), list(tally.share_Q), minimum_share=reward.minimum_share, keep_fraction=reward.keep_fraction)
    return feedback, vote_metrics(tally) | {"kept_question_share": kept_share(feedback)}


def _gold(answer_key: AnswerKey, ids: Sequence[str]) -> list[str | None]:
    """Gold answers' keys, for the label sources that ask for them alone."""
    golds = [answer_key.gold(i) for i in ids]
    return [None if gold is None else canonical_key(gold) for gold in golds]


def _row(question: Question, counted: Vote, samples: list[dict[str, Any]]) -> dict[str, Any]:
    row = {"id": question.id, "question": question.text, "majority": counted.majority, "share": counted.share}
    return row | {"classes": [list(c) for c in counted.classes], "samples": samples}


def _samples(q: int, texts, answers, decided: Feedback, length_QN, ended_QN) -> list[dict[str, Any]]:
    """Every sample of question q with its answer and its reward."""
    N = length_QN.shape[1]
    return [
        {
            "text": texts[q * N + n],
            "answer": answers[q * N + n],
            "reward": float(decided.reward_QN[q, n]),
            "tokens": int(length_QN[q, n]),
            "truncated": not bool(ended_QN[q, n]),
        }
        for n in range(N)
    ]
