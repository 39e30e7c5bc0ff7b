"""Takes weights and held-out questions, gives avg@k, maj@k, pass@k and greedy accuracy with bootstrap intervals.

Besides metrics, and labelling, which notes how often votes were right, the only reader of gold answers. One program draws
k samples and one greedy response to each question: the greedy one is simply a sample at temperature 0. Of several processes each
asks, and judges, the questions that lie on its devices; all of them know the result.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxselftrain.answer_key import AnswerKey
from jaxselftrain.asking import Asker
from jaxselftrain.assembly import EVALUATION, Parts
from jaxselftrain.cross_check import CrossCheck, Judged, cross_check, require_math_verify
from jaxselftrain.errors import UserError
from jaxselftrain.metrics import METRICS
from jaxselftrain.processes import are_several, gather, is_first, wait_for_all
from jaxselftrain.prompts import Encoded
from jaxselftrain.run_folder import replace_text
from jaxselftrain.statistics import BOOTSTRAP_SEED, Interval, Threshold, intervals, majority_shares, scores, thresholds
from jaxselftrain.voter import Voter


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation."""

    summary: dict[str, Interval]  # metric -> value, low, high (95% bootstrap interval over questions)
    per_question: dict[str, np.ndarray]  # metric -> the question's own value
    rows: list[dict[str, Any]]  # one a question of this process: every response with its answer, and whether it is right
    thresholds: list[Threshold]  # accuracy and coverage over the least majority share
    cross_check: CrossCheck | None = None  # only with evaluate.cross_check

    def metrics(self) -> dict[str, float]:
        """What of the summary has a name in metrics.METRICS: heldout/avg, heldout/avg_low, heldout/avg_high, ..."""
        out: dict[str, float] = {}
        for name, found in self.summary.items():
            out |= {f"heldout/{name}": found["value"], f"heldout/{name}_low": found["low"], f"heldout/{name}_high": found["high"]}
        if self.cross_check is not None:
            out["heldout/cross_check_differs"] = self.cross_check.differs
            out["heldout/cross_check_failed"] = self.cross_check.failed
        return {name: value for name, value in out.items() if name in METRICS}

    def write(self, folder: Path, name: str) -> None:
        """NAME.json with the summary, NAME.jsonl with the responses, NAME.thresholds.json with accuracy over agreement.

        With a cross-check NAME.differences.jsonl has what it found.
        """
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row, ensure_ascii=False) for row in self.rows]
        replace_text(folder / f"{name}.jsonl", "\n".join(lines) + "\n")
        replace_text(folder / f"{name}.json", json.dumps(self.summary, indent=2) + "\n")
        replace_text(folder / f"{name}.thresholds.json", json.dumps(self.thresholds, indent=1) + "\n")
        if self.cross_check is not None:
            replace_text(folder / f"{name}.differences.jsonl", self.cross_check.jsonl())


class Evaluator:
    """Evaluates any weights of one policy on one set of questions; several may share the program of the first."""

    def __init__(
        self, parts: Parts, questions: Encoded, answer_key: AnswerKey, voter: Voter, width: int, *, like: Evaluator | None = None
    ):
        missing = [question.id for question in questions.questions if answer_key.is_right(question.id, None) is None]
        if missing:
            raise UserError(
                f"{len(missing)} evaluation questions have no gold answer to compare with (first: {missing[0]}); "
                "set evaluate.questions.fields.answer"
            )
        if parts.config.evaluate.cross_check == "math_verify":
            require_math_verify()
        self.parts, self.questions, self.answer_key, self.voter, self.width = parts, questions, answer_key, voter, width
        settings = parts.config.evaluate
        if are_several():
            self._check_several(len(questions.questions))
        if like is not None:
            self.asker: Asker = like.asker
            return
        temperatures = [settings.temperature] * settings.samples + [0.0] * settings.greedy
        self.asker = Asker(parts, width, temperatures=temperatures, top_p=settings.top_p, top_k=0, stream=EVALUATION)

    def _check_several(self, total: int) -> None:
        """Raises UserError for what several processes cannot do together."""
        settings = self.parts.config.evaluate
        if settings.cross_check is not None:
            raise UserError(
                "evaluate.cross_check needs a process alone: set it to null here, and run `jaxselftrain evaluate` later"
            )
        if total < settings.batch:
            raise UserError(
                f"evaluate.batch = {settings.batch} is more than the {total} evaluation questions, and some process would have "
                "none of them; lower it"
            )

    def run(self, params: dict[str, jax.Array], *, tick: Callable[[int], object] = lambda done: None) -> Evaluation:
        """Samples every question; `tick` hears how many are done so far. The noise is the same at every call."""
        asked: list[int] = []
        texts: list[str] = []
        ended: list[np.ndarray] = []
        for done, responses in enumerate(self.asker.ask(params, self.questions.tokens), 1):
            asked += responses.asked
            texts += responses.texts
            ended.append(responses.ended_QN)
            tick(min(done * self.asker.batch, len(self.questions.questions)))
        return self._judge(asked, texts, np.concatenate(ended))

    def _judge(self, asked: list[int], texts: list[str], ended_QN: np.ndarray) -> Evaluation:
        config, total = self.parts.config, len(self.questions.questions)
        k, N = config.evaluate.samples, ended_QN.shape[1]
        reading = self.voter.read(texts)
        keys = [reading.keys[i : i + N] for i in range(0, len(texts), N)]
        questions = [self.questions.questions[q] for q in asked]
        ids = [question.id for question in questions]
        right_QN = np.asarray([[bool(self.answer_key.is_right(i, key)) for key in row] for i, row in zip(ids, keys, strict=True)])
        sampled, ties, opaque = [row[:k] for row in keys], config.vote.ties, config.vote.opaque_may_win
        share_Q = majority_shares(sampled, ties=ties, opaque_may_win=opaque)
        per_question = scores(
            right_QN=right_QN[:, :k],
            keys_QN=sampled,
            truncated_QN=~ended_QN[:, :k],
            k=k,
            ties=ties,
            opaque_may_win=opaque,
        )
        if config.evaluate.greedy:
            per_question["greedy"] = right_QN[:, k].astype(float)
        rows = [
            {
                "id": question.id,
                "question": question.text,
                "gold": self.answer_key.gold(question.id),
                "scores": {name: float(score_Q[q]) for name, score_Q in per_question.items()},
                "responses": [
                    {
                        "text": texts[q * N + n],
                        "answer": reading.answers[q * N + n],
                        "right": bool(right_QN[q, n]),
                        "greedy": n == k,
                        "truncated": not bool(ended_QN[q, n]),
                    }
                    for n in range(N)
                ],
            }
            for q, question in enumerate(questions)
        ]
        most = -(-total // self.asker.batch) * len(self.asker.own)
        per_question, share_Q = gather(asked, (per_question, share_Q), most=most, total=total)
        over_shares = thresholds(share_Q, per_question["maj"], per_question["avg"])
        summary = intervals(per_question, seed=BOOTSTRAP_SEED)
        return Evaluation(summary, per_question, rows, over_shares, self._cross_check(rows))

    def _cross_check(self, rows: list[dict[str, Any]]) -> CrossCheck | None:
        config = self.parts.config
        if config.evaluate.cross_check is None:
            return None
        judged = [
            Judged(row["id"], row["gold"], response["answer"], response["right"])
            for row in rows
            for response in row["responses"]
            if response["answer"] is not None
        ]
        return cross_check(judged, workers=config.vote.workers)


def all_rows(rows: list[dict[str, Any]], ids: Sequence[str], folder: epath.Path) -> list[dict[str, Any]]:
    """The rows of all processes in the order of `ids`, for the first one; they pass through files in `folder`, which all see."""
    if not are_several():
        return rows
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rows_{jax.process_index()}.part").write_text("".join(json.dumps(row) + "\n" for row in rows))
    wait_for_all()
    if not is_first():
        return rows
    parts = [folder / f"rows_{number}.part" for number in range(jax.process_count())]
    found = {row["id"]: row for part in parts for row in map(json.loads, part.read_text().rstrip("\n").split("\n"))}
    for part in parts:
        part.unlink()
    return [found[id] for id in ids]


def cut_back_evaluations(folder: Path, step: int) -> None:
    """Takes away the evaluations inside a run that are later than a step; those of the evaluate command stay."""
    for file in folder.glob("step_??????.*"):
        if int(file.name[5:11]) > step:
            file.unlink()
