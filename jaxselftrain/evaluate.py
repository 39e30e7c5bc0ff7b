"""Takes weights and held-out questions, gives avg@k, maj@k, pass@k and greedy accuracy with bootstrap intervals.

Besides metrics, and labelling, which notes how often votes were right, the only reader of gold answers. One program draws
k samples and one greedy response to each question: the greedy one is simply a sample at temperature 0.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from tqdm.auto import tqdm

from jaxselftrain.answer_key import AnswerKey, load_answer_key
from jaxselftrain.asking import Asker
from jaxselftrain.assembly import EVALUATION, Parts, open_parts
from jaxselftrain.checkpoints import checkpoint_params
from jaxselftrain.config import Config, load_config, override_config, parse_config
from jaxselftrain.cross_check import CrossCheck, Judged, cross_check, require_math_verify
from jaxselftrain.errors import UserError
from jaxselftrain.metrics import METRICS
from jaxselftrain.plots import plot_thresholds
from jaxselftrain.prompts import Encoded, prompt_width
from jaxselftrain.questions import load_questions
from jaxselftrain.resources import told_of_limits
from jaxselftrain.run_folder import CONFIG, EVALUATIONS, make_folder, read_config, replace_text
from jaxselftrain.sections import Mesh
from jaxselftrain.sharding import check_mesh
from jaxselftrain.statistics import BOOTSTRAP_SEED, Interval, Threshold, intervals, render, scores, thresholds
from jaxselftrain.voter import Voter

BOXED = "\n\nPlease reason step by step, and put your final answer within \\boxed{}."


@dataclass(frozen=True)
class Evaluation:
    """The result of one evaluation."""

    summary: dict[str, Interval]  # metric -> value, low, high (95% bootstrap interval over questions)
    rows: list[dict[str, Any]]  # one a question: every response with its answer, and whether it is right
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
    """Evaluates any weights of one policy on one set of questions."""

    def __init__(self, parts: Parts, questions: Encoded, answer_key: AnswerKey, voter: Voter, width: int):
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
        temperatures = [settings.temperature] * settings.samples + [0.0] * settings.greedy
        self.asker = Asker(parts, width, temperatures=temperatures, top_p=settings.top_p, top_k=0, stream=EVALUATION)

    def run(self, params: dict[str, jax.Array], *, tick: Callable[[int], object] = lambda done: None) -> Evaluation:
        """Samples every question; `tick` hears how many are done so far. The noise is the same at every call."""
        texts: list[str] = []
        ended: list[np.ndarray] = []
        done = 0
        for responses in self.asker.ask(params, self.questions.tokens):
            texts += responses.texts
            ended.append(responses.ended_QN)
            done += len(responses.ended_QN)
            tick(done)
        return self._judge(texts, np.concatenate(ended))

    def _judge(self, texts: list[str], ended_QN: np.ndarray) -> Evaluation:
        config = self.parts.config
        k, N = config.evaluate.samples, ended_QN.shape[1]
        reading = self.voter.read(texts)
        keys = [reading.keys[i : i + N] for i in range(0, len(texts), N)]
        ids = [question.id for question in self.questions.questions]
        right_QN = np.asarray([[bool(self.answer_key.is_right(i, key)) for key in row] for i, row in zip(ids, keys, strict=True)])
        per_question = scores(
            right_QN=right_QN[:, :k],
            keys_QN=[row[:k] for row in keys],
            truncated_QN=~ended_QN[:, :k],
            k=k,
            ties=config.vote.ties,
            opaque_may_win=config.vote.opaque_may_win,
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
            for q, question in enumerate(self.questions.questions)
        ]
        over_shares = thresholds(
            right_QN[:, :k], [row[:k] for row in keys], ties=config.vote.ties, opaque_may_win=config.vote.opaque_may_win
        )
        return Evaluation(intervals(per_question, seed=BOOTSTRAP_SEED), rows, over_shares, self._cross_check(rows))

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


def cut_back_evaluations(folder: Path, step: int) -> None:
    """Takes away the evaluations inside a run that are later than a step; those of the evaluate command stay."""
    for file in folder.glob("step_??????.*"):
        if int(file.name[5:11]) > step:
            file.unlink()


def run_evaluation(
    *,
    target: str,
    questions: Path | None,
    samples: int | None,
    overrides: tuple[str, ...],
    config_path: Path | None,
    out: Path | None,
) -> Evaluation:
    """`jaxselftrain evaluate`: a run's newest checkpoint or any model, with a progress bar, a table and files.

    Without `out`, a run's results go to its evaluations folder and a model's are only shown.
    """
    run = Path(target) if (Path(target) / CONFIG).is_file() else None
    config = _evaluation_config(target, run, questions, samples, overrides, config_path)
    folder = out or (run / EVALUATIONS if run else None)
    if config.evaluate.questions is None:
        raise UserError("the config has no evaluate.questions; name a file with --questions")
    questions_asked, answer_key = load_questions(config.evaluate.questions), load_answer_key(config.evaluate.questions)
    parts = open_parts(config, cache=None)
    encoded = parts.encode(questions_asked, config.evaluate.questions.too_long)
    if encoded.dropped_ids:
        print(encoded.dropped(), file=sys.stderr)
    width = prompt_width(encoded.tokens)
    parts.check_context(width)
    check_mesh(parts.mesh, parts.architecture, rows={"evaluate.batch": config.evaluate.batch})
    if folder is not None:
        make_folder(folder)  # before what takes long, after what may be refused
    params, name = _weights(parts, run)
    limits_told = partial(told_of_limits, settings=f"lower evaluate.batch (now {config.evaluate.batch}) or evaluate.samples")
    with Voter(config.answer, config.vote) as voter:
        evaluator = Evaluator(parts, encoded, answer_key, voter, width)
        with (
            limits_told(out or Path(target)),
            tqdm(total=len(encoded.tokens), desc="evaluating", unit="question", dynamic_ncols=True) as bar,
        ):
            evaluation = evaluator.run(params, tick=lambda done: bar.update(done - bar.n))
    title = f"{target}: {len(encoded.tokens)} questions, k = {config.evaluate.samples}, T = {config.evaluate.temperature:g}"
    Console().print(render({name: evaluation.summary}, title=title))
    checked = evaluation.cross_check
    if checked is not None:
        print(f"math-verify judges {checked.differs} of {checked.compared} answers differently; it failed on {checked.failed}")
    if folder is not None:
        label = name.replace(" ", "_") if out else f"{name.replace(' ', '_')}_command"
        with limits_told(folder):
            evaluation.write(folder, label)
            picture = plot_thresholds({name: evaluation.thresholds}, folder / f"{label}.thresholds.png", title=target)
        print(f"results: {folder / label}.json, responses: {folder / label}.jsonl, accuracy over agreement: {picture}")
    return evaluation


def _evaluation_config(target, run, questions, samples, overrides, config_path) -> Config:
    """What to evaluate and how: a run's own config, or the given one, or for any other model a chat with an answer in a box.

    The model is the run's whatever the config says, on a mesh of its own; overrides come last.
    """
    if config_path is not None:
        values = load_config(config_path, ()).model_dump()
    elif run is not None:
        values = read_config(run).model_dump()
    elif questions is not None:
        prompt = {"format": "chat", "instruction": BOXED}
        values = parse_config({"questions": _file_source(questions), "prompt": prompt}).model_dump()
    elif target.startswith(("/", ".")) and not Path(target).exists():
        raise UserError(f"{target} does not exist: name a run folder or a model")
    else:
        raise UserError("name the questions to evaluate on: --questions FILE, or --config with evaluate.questions")
    evaluate = values["evaluate"]
    if questions is not None:
        like = evaluate["questions"] or values["questions"]
        fields = like["fields"] | {"answer": like["fields"]["answer"] or "answer"}
        evaluate["questions"] = _file_source(questions) | {"fields": fields, "too_long": like["too_long"]}
    if evaluate["questions"] is None:
        raise UserError("the config has no evaluate.questions; name a file with --questions")
    if samples is not None:
        evaluate["samples"] = samples
    if run is not None:
        values |= {"model": read_config(run).model.model_dump(), "mesh": Mesh().model_dump()}
    else:
        values["model"]["path"] = target
    return override_config(parse_config(values, "evaluate"), overrides)


def _file_source(path: Path) -> dict[str, Any]:
    if path.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"--questions {path}: the file must end in .jsonl or .parquet")
    return {"source": path.suffix[1:], "path": str(path)}


def _weights(parts: Parts, run: Path | None) -> tuple[dict[str, jax.Array], str]:
    if run is None:
        return parts.params(), "model"
    return checkpoint_params(parts, run, step=None)
