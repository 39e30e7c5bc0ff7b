"""Takes what each step measured, gives metrics.jsonl, TensorBoard and W&B; here each metric is explained, once.

`METRICS` is the only list of names: writing an unknown one is an error, and docs/metrics.md is printed from it. A metric
that could not be measured (KL without a reference, accuracy without gold answers) is absent, never 0.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from jaxselftrain.errors import UserError
from jaxselftrain.tallies import NONE, Tally

if TYPE_CHECKING:
    from jaxselftrain.sections import Log

METRICS: dict[str, str] = {
    "step": "Updates of the policy done; a line describes the samples of that update, and step 0 is before any.",
    # what the vote said
    "pseudo_reward": "Mean reward over all samples (0 to 1 where it comes from votes): how far the model agrees with its "
    "own label, not how right it is.",
    "majority_share": "Mean over questions of the share of answers that agree with the most frequent one (0 to 1); near 1 "
    "votes say nothing new, and a policy that says the same of everything is there as well.",
    "saturated_share": "Share of questions whose samples with an answer all agree: nothing is left to learn from them; where "
    "it rises faster than accuracy the policy is growing sure of itself rather than right.",
    "same_majority_share": "Largest share of questions with one and the same majority answer; where questions have different "
    "answers, its rise is a policy that answers them alike.",
    "halves_differ_share": "Share of questions where the first and the second half of the samples have different majority "
    "answers: how far the label is chance; 0 with a policy that always says the same.",
    "probe_agreement": "Share of the probe questions (probe.questions), which are never trained on, whose majority answer is "
    "still that of the initial policy: how far the policy has moved from what it said.",
    "distinct_answers": "Mean number of different answers per question; at 1 nothing is left to vote on, right or wrong.",
    "no_answer_share": "Share of samples that state no answer in the configured format.",
    "opaque_share": "Share of samples whose answer could not be understood and counts as its exact text alone.",
    "kept_question_share": "Share of questions that were learned from: the others had too small a majority share "
    "(reward.minimum_share, reward.keep_fraction).",
    "refilled_share": "Share of questions that are fresh ones in the place of others that were left out (reward.refill); the "
    "other metrics of responses describe the batch as it was sampled first.",
    "refill_seconds": "Seconds spent sampling these.",
    "zero_variance_share": "Share of questions whose samples all got the same reward, and so teach nothing.",
    "dominant_answer_share": "Largest share of all samples, over different questions, that give one and the same answer; near 1 "
    "the policy answers every question alike.",
    # how these move: over windows of alarm.window steps
    "pseudo_reward_slope": "Slope per step of the pseudo-reward over the last alarm.window steps; a jump is what reward hacking "
    "looks like from outside, and so does a task that is being learned fast.",
    "kl_acceleration": "Slope of the KL over the last alarm.window steps minus its slope over those before; where it rises, "
    "the policy moves away ever faster. Absent when no reference is kept.",
    "surprise_rise": "Mean `surprise` over the last alarm.window steps minus the lowest such mean so far, as a part of the "
    "first one: where it rises, the policy says what the initial one would not have said.",
    "entropy_drift": "Mean entropy over the last alarm.window steps as a part of that over the first, minus 1; -1 is a policy "
    "that is sure of every token, right or wrong. Tasks with short answers get there without harm.",
    "length_drift": "The same of the response length; collapse makes responses short, or long where length is rewarded.",
    "no_answer_drift": "Share of samples without an answer over the last alarm.window steps minus that over the first; it rises "
    "where a policy loses the format, and those who answer decide alone.",
    "truncated_drift": "The same of responses cut at rollout.max_tokens; it rises where a policy rambles and cannot end.",
    "alarm_score": "Signals of alarm.signals that are past their thresholds at this step; absent until there are steps enough "
    "for one.",
    # what the update did
    "loss": "Negative objective of the update, KL and entropy terms included; its level means little, a jump means much.",
    "entropy": "Mean entropy of the next-token distribution over response tokens, in nats.",
    "log_prob": "Mean log-probability of the response tokens, in nats: of what was sampled, or of the gold answers in supervised "
    "steps.",
    "kl": "Mean KL divergence per token from the policy to the initial policy, in nats (k3); absent without a reference. It "
    "rises in healthy runs too; a jump beside a rising reward is a collapse.",
    "kl_k1": "The same KL by the unbiased but noisier k1 estimate, in nats; single steps can be negative.",
    "surprise": "Cross-entropy to the initial policy, `entropy` + `kl_k1`, in nats a token: it falls while a policy grows "
    "surer of what it tended to say anyway. Absent when no reference is kept.",
    "ratio_mean": "Mean over tokens of the probability ratio between the policy and the one that the clipping compares with; 1 "
    "with one inner step.",
    "clip_fraction": "Share of tokens whose ratio is clipped, and which therefore give no gradient.",
    "sampler_gap": "Mean absolute difference per token between the trainer's and the sampler's log-probability, in nats.",
    "grad_norm": "Global norm of the gradient before it is clipped.",
    "learning_rate": "Learning rate of the update.",
    "bad_updates": "Updates skipped since the start of the run because loss or gradient was NaN or infinite.",
    "self_certainty": "Mean KL divergence from the uniform to the next-token distribution over response tokens, in nats; only "
    "where a reward is made of such statistics.",
    # how the responses look
    "response_length": "Mean length of a response, in tokens, the end-of-sequence token included.",
    "truncated_share": "Share of responses cut at rollout.max_tokens.",
    "prompt_padding_share": "Share of prompt positions that are padding, because one run has one prompt length.",
    # how fast it went
    "tokens_per_second": "Response tokens sampled per second of the whole step, on all devices together.",
    "device_seconds": "Seconds the host waited for sampling and update.",
    "voter_seconds": "Seconds spent reading and voting on the responses.",
    "host_seconds": "Seconds of the rest of the step on the host.",
    "elapsed_seconds": "Wall time of the run so far, start-up and compiling included, over all the processes that resumed it.",
    "voter_kills": "Responses given up because reading their answer took longer than vote.seconds, needed too much memory "
    "or failed.",
    # only where gold answers exist: to watch with, never to train on
    "true_accuracy": "Share of samples whose answer equals the gold answer; only with an answer key, and never used in training.",
    "label_accuracy": "Share of questions whose label, wherever label.source takes it from, equals the gold answer (TTRL); a "
    "question without a label counts as wrong; only with an answer key.",
    "majority_accuracy": "Share of questions whose majority answer equals the gold answer, whether it is their label or not; "
    "only with an answer key.",
    "reward_accuracy": "Share of samples that are rewarded exactly when they are right; only with an answer key and "
    "rewards of 0 or 1.",
    # held-out questions
    "heldout/avg": "avg@k on held-out questions: share of samples that are right.",
    "heldout/maj": "maj@k on held-out questions: share of questions whose majority answer is right.",
    "heldout/pass": "pass@k on held-out questions: unbiased estimate of the chance that at least one of k samples is right.",
    "heldout/greedy": "Share of held-out questions answered right at temperature 0.",
    "heldout/no_answer": "Share of held-out samples that state no answer.",
    "heldout/truncated": "Share of held-out samples cut at the token limit.",
    "heldout/cross_check_differs": "Held-out samples whose answer math-verify judges differently; only with "
    "evaluate.cross_check.",
    "heldout/cross_check_failed": "Held-out samples on which math-verify failed or took too long; only with "
    "evaluate.cross_check.",
    "heldout/seconds": "Seconds the held-out evaluation took.",
}
METRICS |= {
    f"heldout/{name}_{end}": f"{which} end of the 95% bootstrap interval over questions, for `heldout/{name}`."
    for name in ("avg", "maj", "pass", "greedy", "no_answer", "truncated")
    for end, which in (("low", "Lower"), ("high", "Upper"))
}

METRICS_FILE, RESPONSES_FILE, TENSORBOARD_FOLDER = "metrics.jsonl", "responses.jsonl", "tensorboard"
ALARMS_FILE, ROLLED_BACK_FILE = "alarms.jsonl", "rolled_back.jsonl"


def metrics_page() -> str:
    """docs/metrics.md: every metric with its explanation, as a markdown table."""
    rows = "".join(f"| `{name}` | {meaning} |\n" for name, meaning in METRICS.items())
    return (
        "# Metrics\n\n"
        "Each training step writes one line of JSON to `metrics.jsonl` in the run folder, and the same numbers to TensorBoard "
        "and, where configured, to Weights & Biases. A metric that could not be measured is absent from the line, never 0; "
        "`null` is a value that was NaN or infinite. Sampled responses with their votes are in `responses.jsonl`.\n\n"
        "Read `pseudo_reward` with suspicion: it measures agreement. When it jumps to 1 while `kl` or `dominant_answer_share` "
        "rises sharply, the model is learning to agree with itself on wrong answers.\n\n"
        "| metric | meaning |\n| --- | --- |\n" + rows + "\n"
        "This page is printed from `METRICS` in `jaxselftrain/metrics.py`: "
        "`python -c \"from jaxselftrain import metrics; print(metrics.metrics_page(), end='')\" > docs/metrics.md`.\n"
    )


def vote_metrics(tally: Tally) -> dict[str, float]:
    """The metrics of one step's samples.

    The accuracies are over the questions that have a gold answer, and absent when none has one.
    """
    reward_QN, known_Q, right_QN = tally.reward_QN, tally.is_known_Q, tally.right_QN
    samples = reward_QN.size
    metrics = {
        "pseudo_reward": float(reward_QN.mean(dtype=float)),
        "majority_share": float(tally.share_Q.mean()),
        "saturated_share": float((tally.classes_Q == 1).mean()),
        "same_majority_share": _most_common(tally.majority_Q) / len(reward_QN),
        "distinct_answers": float(tally.classes_Q.mean()),
        "no_answer_share": float((tally.key_QN == NONE).mean()),
        "opaque_share": float(tally.opaque_Q.sum() / samples),
        "zero_variance_share": float((reward_QN.min(1) == reward_QN.max(1)).mean()),
        "dominant_answer_share": _most_common(tally.key_QN) / samples,
        "response_length": float(tally.length_QN.mean()),
        "truncated_share": float(tally.truncated_QN.mean()),
        "halves_differ_share": float(tally.halves_differ_Q.mean()),
    }
    if not np.isnan(tally.certainty_QN).all():
        metrics["self_certainty"] = float(tally.certainty_QN.mean())
    if known_Q.any():
        metrics["true_accuracy"] = float(right_QN[known_Q].mean())
        metrics["label_accuracy"] = float(tally.label_right_Q[known_Q].mean())
        metrics["majority_accuracy"] = float(tally.majority_right_Q[known_Q].mean())
        if np.isin(reward_QN, (0.0, 1.0)).all():
            metrics["reward_accuracy"] = float(((reward_QN == 1.0) == right_QN)[known_Q].mean())
    return metrics


def _most_common(fingerprints: np.ndarray) -> int:
    """How often the answer that is given most often is given."""
    given = fingerprints[fingerprints != NONE]
    return int(np.unique(given, return_counts=True)[1].max()) if given.size else 0


class MetricsLog:
    """metrics.jsonl, responses.jsonl, TensorBoard and W&B of one run folder.

    The caller decides which steps to log (`log.every`, `log.responses`); each step is written once, in rising order.
    Raises UserError when a configured logger is not installed; a full disk is an OSError, left to the caller.
    """

    def __init__(self, folder: Path, log: Log):
        self.folder = folder
        self._files: dict[str, IO[str]] = {}
        self._last_step = -math.inf
        self._new_board = _tensorboard_writer() if log.tensorboard else None
        self._board: Any = None
        self._wandb: Any = None
        if log.wandb is not None:
            self._wandb = _wandb_run(folder, log.wandb)
        for line in _whole_lines(folder / METRICS_FILE):
            self._last_step = line["step"]

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line for one step. Raises ValueError on a name that METRICS does not explain, or a step that is not new."""
        unknown = sorted(set(values) - set(METRICS))
        if unknown:
            raise ValueError(f"metric {unknown[0]} has no explanation: add it to METRICS in jaxselftrain/metrics.py")
        if step <= self._last_step:
            raise ValueError(f"step {step} is already in {self.folder / METRICS_FILE}; its last step is {self._last_step}")
        line = {"step": step} | {name: float(value) for name, value in values.items() if name != "step"}
        self._append(METRICS_FILE, {name: value if math.isfinite(value) else None for name, value in line.items()})
        self._last_step = step
        self._to_board(line)
        if self._wandb is not None:
            self._wandb.log({name: value for name, value in line.items() if name != "step"}, step=step)

    def has_lines(self) -> bool:
        """Whether an earlier attempt has left a metrics.jsonl that is not empty."""
        path = self.folder / METRICS_FILE
        return path.is_file() and path.stat().st_size > 0

    def write_responses(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """One line for each row: {"step": step, ...row}."""
        for row in rows:
            self._append(RESPONSES_FILE, {"step": step, **row})

    def cut_back(self, step: int) -> None:
        """Forget every line of a later step, as a resumed run will write it again; -1 forgets all.

        Each file is replaced in one move, so a kill leaves the old or the new one; a last line that a kill tore is
        dropped. TensorBoard cannot forget, so its folder is made anew from metrics.jsonl. (W&B keeps the first value of
        each step, and a resumed run computes the same.)
        """
        self._close_files()
        for name in (METRICS_FILE, RESPONSES_FILE):
            _rewrite(self.folder / name, step)
        self._last_step = -math.inf
        if self._new_board is not None:
            shutil.rmtree(self.folder / TENSORBOARD_FOLDER, ignore_errors=True)
        for line in _whole_lines(self.folder / METRICS_FILE):
            self._last_step = line["step"]
            self._to_board(line)

    def roll_back(self, to: int, *, alarm: int, number: int) -> None:
        """Moves every line of a later step than `to` to rolled_back.jsonl and forgets it here.

        There it has the step of the alarm as `alarm`, and how many rollbacks there have been, this one included, as `rollback`.
        """
        for line in _whole_lines(self.folder / METRICS_FILE):
            if line["step"] > to:
                self._append(ROLLED_BACK_FILE, {**line, "alarm": alarm, "rollback": number})
        self.cut_back(to)

    def forget_rollbacks(self, number: int) -> None:
        """Forget what rollbacks after the first `number` have moved, as a resumed run will move it again."""
        self._close_files()
        lines = list(_whole_lines(self.folder / ROLLED_BACK_FILE))
        kept = [line for line in lines if line["rollback"] <= number]
        if len(kept) < len(lines):
            _replace(self.folder / ROLLED_BACK_FILE, [json.dumps(line) + "\n" for line in kept])

    def close(self) -> None:
        """Close all files. May be called more than once."""
        self._close_files()
        if self._wandb is not None:
            self._wandb.finish()
            self._wandb = None

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        if name not in self._files:
            path = self.folder / name
            if path.exists() and not _ends_with_newline(path):
                _rewrite(path, None)  # a kill tore the last line; the next must not be glued to it
            self._files[name] = path.open("a", encoding="utf-8", errors="backslashreplace")  # lone surrogates stay JSON
        self._files[name].write(json.dumps(line, ensure_ascii=False) + "\n")
        self._files[name].flush()

    def _to_board(self, line: Mapping[str, float | None]) -> None:
        if self._new_board is None:
            return
        if self._board is None:
            self._board = self._new_board(str(self.folder / TENSORBOARD_FOLDER))
        for name, value in line.items():
            if name != "step" and value is not None and math.isfinite(value):
                self._board.add_scalar(name, value, line["step"])
        self._board.flush()

    def _close_files(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._board is not None:
            self._board.close()
            self._board = None


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl in order; null becomes NaN and a torn last line is left out.

    Raises UserError when there is no such file or a line before the last is no JSON.
    """
    path = folder / METRICS_FILE
    if not path.is_file():
        raise UserError(f"{folder} holds no {METRICS_FILE}: it is not a run folder, or its run has not logged a step yet")
    return _numbers(path)


def read_responses(folder: Path) -> list[dict[str, Any]]:
    """The logged questions of a run in order, each with its votes and every sample; empty where none were logged."""
    return list(each_response(folder))


def each_response(folder: Path) -> Iterator[dict[str, Any]]:
    """What `read_responses` gives, one at a time: a long run's responses need not fit into memory."""
    return _whole_lines(folder / RESPONSES_FILE)


def read_alarms(folder: Path) -> list[dict[str, Any]]:
    """Where the alarm of a run fired, in order: step, score, signals, action and told, a sentence; empty where it never did."""
    return list(_whole_lines(folder / ALARMS_FILE))


def read_rolled_back(folder: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl that alarms took back, as `read_metrics` gives them; `alarm` is the step of the alarm."""
    return _numbers(folder / ROLLED_BACK_FILE)


def _numbers(path: Path) -> list[dict[str, float]]:
    return [{name: math.nan if value is None else value for name, value in line.items()} for line in _whole_lines(path)]


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        yield from (line for line, _ in _parsed(path))


def _parsed(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """(value, text) of each line that ends; only what follows the last line end may be torn."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith("\n"):
                return
            try:
                line = json.loads(text)
                line["step"] + 0
            except (ValueError, TypeError, KeyError):
                raise UserError(f"{path}:{number} is not a line of JSON with a step; remove it, or move the file away") from None
            yield line, text


def _rewrite(path: Path, last_step: int | None) -> None:
    """Keep the whole lines with a step up to `last_step` (None: all), in one atomic move."""
    if not path.is_file():
        return
    _replace(path, (text for line, text in _parsed(path) if last_step is None or line["step"] <= last_step))


def _replace(path: Path, lines: Iterable[str]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read() in (b"", b"\n")


def _tensorboard_writer():
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise UserError(
            "log.tensorboard = true needs the package tensorboardX: install it, or set log.tensorboard=false"
        ) from None
    return SummaryWriter


def _wandb_run(folder: Path, project: str):
    try:
        import wandb
    except ImportError:
        raise UserError(
            f"log.wandb = {project!r} needs the package wandb: install jaxselftrain[wandb], or set log.wandb=null"
        ) from None
    path = folder / "wandb_run"  # a resumed run goes on in the same W&B run
    if not path.is_file():
        path.write_text(uuid.uuid4().hex, encoding="utf-8")
    return wandb.init(
        project=project, name=folder.resolve().name, id=path.read_text(encoding="utf-8"), resume="allow", dir=str(folder)
    )
