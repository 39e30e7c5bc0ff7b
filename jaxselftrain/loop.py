"""Takes a Config and its run folder, gives the host loop around the one compiled step.

A call of the step learns from the rollouts of the call before (update i) and samples the questions of update i + 1.
Between two calls the host fetches the responses once, writes the metrics of update i, evaluates where due, votes, and
saves. The next prompts are prepared while the device works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxselftrain.answer_key import load_answer_key
from jaxselftrain.assembly import open_parts
from jaxselftrain.batches import Batches
from jaxselftrain.checkpoints import METRIC, Checkpoints, Saved
from jaxselftrain.config import Config
from jaxselftrain.errors import Resumable, UserError
from jaxselftrain.evaluate import Evaluator, cut_back_evaluations
from jaxselftrain.interrupts import Interrupts
from jaxselftrain.judge import Verdict, judge
from jaxselftrain.label_file import teacher_keys
from jaxselftrain.labels import NEED_GOLD
from jaxselftrain.memory import device_limit, fit_memory
from jaxselftrain.metrics import MetricsLog
from jaxselftrain.probes import agreement, set_aside
from jaxselftrain.prompts import Encoded, prompt_width
from jaxselftrain.questions import Question
from jaxselftrain.rewards import Feedback, with_questions
from jaxselftrain.rollouts import Prompts, Rollouts
from jaxselftrain.run_folder import CHECKPOINTS, EVALUATIONS, SUMMARY, begin_folder
from jaxselftrain.run_questions import load_run_questions
from jaxselftrain.sections import Questions
from jaxselftrain.sharding import check_mesh, shards
from jaxselftrain.start import Host, begin
from jaxselftrain.step import compile_step, feedback_shardings
from jaxselftrain.update import State
from jaxselftrain.voter import Voter
from jaxselftrain.votes import Vote, vote

PROBE = "probe_agreement"


@dataclass(frozen=True)
class Report:
    """What `train` yields before the first update (step 0) and after every one."""

    step: int
    metrics: dict[str, float]  # the names of metrics.METRICS
    votes: list[Vote]  # on the rollouts sampled with the weights of this step; empty after the last


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


def _speed(line: dict[str, float], device: float, wall: float, tokens: int) -> dict[str, float]:
    host = max(wall - device - line.get("voter_seconds", 0.0) - line.get("refill_seconds", 0.0), 0.0)
    return {"device_seconds": device, "host_seconds": host, "tokens_per_second": tokens / wall}


class Loop:
    """The loaded parts of one run, and the steps over them."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        notes: list[str],
        *,
        say: Callable[[str], None],
        watch: Callable[[str], None],
    ):
        self.began = time.monotonic()
        self.config, self.folder, self.say, self.watch = config, folder, say, watch
        for note in notes:
            say(f"changed since the run started: {note}")
        say(f"run folder {folder}; opening {config.model.path}")
        self.answer_key = load_answer_key(config.questions)
        if config.label.source in NEED_GOLD and not len(self.answer_key):
            raise UserError(
                f"label.source = {config.label.source} needs answers: questions.fields.answer names no field that holds one"
            )
        # first, because a mistake in a file is found sooner than a model is read
        training, held_out = load_run_questions(config, say=say)
        self.teacher: dict[str, str | None] = {}
        if config.label.file is not None:
            self.teacher = teacher_keys(Path(config.label.file), [question.id for question in training])
        self.parts = open_parts(config, cache=folder.parent / ".compilation_cache")
        self.probes, self.encoded = set_aside(self._encode(training, config.questions), config.probe.questions)
        asked = self._encode(held_out, config.evaluate.questions) if config.evaluate.questions else None
        self.width = prompt_width(self.probes.tokens + self.encoded.tokens + (asked.tokens if asked else []))
        self.parts.check_context(self.width)
        self._check_batches(len(self.encoded.questions), asked is not None)
        if not config.is_decided:
            say("compiling the training step to see what fits the memory (a minute or so for each choice)")
            self.parts = fit_memory(self.parts, self.width, limit=device_limit(), say=say)
            self.config = config = self.parts.config
        self._tell_of_idle_devices()
        self.batches = Batches(self.parts, self.encoded, self.probes, self.width)
        self.step = compile_step(self.parts.graph, config, self.parts.architecture, self.parts.mesh)
        with ExitStack() as opened:  # what is open is closed again when a later line fails
            self.voter = opened.enter_context(Voter(config.answer, config.vote))
            self.evaluator = None
            if asked is not None and config.evaluate.questions is not None:
                self.evaluator = Evaluator(self.parts, asked, load_answer_key(config.evaluate.questions), self.voter, self.width)
            self.log = opened.enter_context(closing(MetricsLog(folder, config.log)))
            begin_folder(folder, config, sorted({f"{d.platform}: {d.device_kind}" for d in jax.devices()}))
            self.checkpoints = opened.enter_context(closing(Checkpoints(folder / CHECKPOINTS, config.checkpoint)))
            self.opened = opened.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.opened.close()

    def run(self, interrupts: Interrupts) -> Iterator[Report]:
        questions = self.encoded.questions
        state, rollouts, votes, host = begin(
            self.parts, self.checkpoints, questions, self.teacher, width=self.width, say=self.say
        )
        self._cut_back(host)
        self.seconds_before = host.seconds
        steps = self.config.train.steps
        if 0 < host.step >= steps:
            self.say(f"step {host.step} of {steps}: there is nothing left to do")
            return
        if self._told_to_stop(host):
            return
        self.say("compiling the training step (a minute or so; later runs beside this one reuse it)")
        indices, prompts = self.batches.next(host)
        last = time.perf_counter()
        while host.step < steps or not host.sampled:
            learn = host.sampled
            wanted = host.step + learn < steps
            dispatched = time.perf_counter()
            probed: dict[str, float] = {}
            if self.batches.probes is not None and self._is_probed(host, learn=learn):
                state, rollouts, metrics = self._call(state, rollouts, votes, self.batches.probes, learn=learn)
                probed = self._probe(host, rollouts)
                if wanted:  # in the same places
                    state, rollouts, _ = self._call(state, rollouts, votes, prompts, learn=False)
            else:
                asked = prompts if wanted else self.batches.nothing
                state, rollouts, metrics = self._call(state, rollouts, votes, asked, learn=learn)
            sampled = indices
            if wanted:  # the device is busy: the time to prepare what comes next
                host.note_call(len(sampled))
                indices, prompts = self.batches.next(host)
            fetched, metrics = jax.device_get((Fetched.of(rollouts), metrics))
            device_seconds = time.perf_counter() - dispatched
            line: dict[str, float] = {}
            is_best = False
            if learn:
                line = self._learned(host, metrics)
                line |= _speed(line, device_seconds, time.perf_counter() - last, host.tokens)
            last = time.perf_counter()
            if learn or host.step == 0:
                line |= probed | self._evaluate(host, state)
                last += line.get("heldout/seconds", 0.0)  # evaluation is no part of a step's time
                is_best = host.note_score(line.get(METRIC))
                host.seconds = self.seconds_before + time.monotonic() - self.began
                self._write(host, line)
            ballots: list[Vote] = []
            if wanted:
                votes, ballots = self._vote(host, sampled, fetched)
                calls = host.draws
                state, rollouts, votes = self._refill(host, state, rollouts, votes, ballots, sampled)
                if host.draws > calls:  # what was prepared has been asked already
                    indices, prompts = self.batches.next(host)
            resampled = not learn and host.step > 0  # a finished run goes on: nothing new has happened yet
            host.sampled = wanted
            self._stop_if_bad(host)
            stopping, ending = interrupts.requested and wanted, False
            if learn or stopping:
                ending = wanted and self._told_to_stop(host)
                best = is_best and self.config.checkpoint.keep_best
                self._save(host, state, rollouts, votes, line.get(METRIC), now=stopping or ending or best)
            if not resampled:
                yield Report(host.step, line, ballots)
            if stopping:
                self.checkpoints.wait()
                raise Resumable(f"stopped after step {host.step} of {steps}; everything is saved in {self.folder}")
            if ending or not wanted:
                break
        self.checkpoints.wait()

    def _cut_back(self, host: Host) -> None:
        """Takes away what was written after the checkpoint that the run goes on from."""
        resumed = bool(self.checkpoints.steps())
        if not resumed and (self.folder / SUMMARY).is_file():
            raise UserError(
                f"{self.folder} holds a finished run without its checkpoints; put them back, or choose another train.folder"
            )
        if not resumed and self.log.has_lines():
            self.say("there is no checkpoint yet: starting over")
        self.log.cut_back(host.step if resumed else -1)
        cut_back_evaluations(self.folder / EVALUATIONS, host.step if resumed else -1)

    def _encode(self, questions: list[Question], source: Questions) -> Encoded:
        encoded = self.parts.encode(questions, source.too_long)
        if encoded.dropped_ids:
            self.say(encoded.dropped())
        return encoded

    def _check_batches(self, available: int, evaluates: bool) -> None:
        minibatches = self.config.update.minibatches
        name = "rollout.questions" if minibatches == 1 else "rollout.questions / update.minibatches"
        check_mesh(
            self.parts.mesh,
            self.parts.architecture,
            questions={name: self.config.rollout.questions // minibatches},
            rows={"evaluate.batch": self.config.evaluate.batch} if evaluates else {},
        )
        if available < self.config.rollout.questions:
            raise UserError(f"rollout.questions = {self.config.rollout.questions}, but there are only {available} questions")

    def _tell_of_idle_devices(self) -> None:
        devices = shards(self.parts.mesh, "questions")
        fit = self.config.rollout.questions // self.config.update.minibatches // devices
        if devices > 1 and self.config.micro_batches > fit:
            self.say(
                f"update.micro_batches = {self.config.micro_batches} leaves devices idle in the update: "
                f"up to {fit}, each part holds a question for every one of the {devices}"
            )

    def _call(self, state: State, rollouts: Rollouts, votes: Feedback, prompts: Prompts, *, learn: bool):
        votes = jax.device_put(replace(votes, learn=np.asarray(learn)), feedback_shardings(self.parts.mesh))
        return self.step(state, rollouts, votes, prompts)

    def _learned(self, host: Host, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics line of the update just made; counts updates that were skipped for NaN or Inf."""
        bad = float(metrics.pop("bad_update")) > 0
        host.step += 1
        host.bad_updates += int(bad)
        host.bad_in_a_row = host.bad_in_a_row + 1 if bad else 0
        return host.pending | {name: float(value) for name, value in metrics.items()} | {"bad_updates": host.bad_updates}

    def _evaluate(self, host: Host, state: State) -> dict[str, float]:
        """Held-out metrics where an evaluation is due at this step, else nothing."""
        every, step = self.config.evaluate.every, host.step
        due = step in (0, self.config.train.steps) or (every and step % every == 0)
        if self.evaluator is None or not due:
            return {}
        started = time.perf_counter()
        total = len(self.evaluator.questions.tokens)
        self.say(f"step {step}: evaluating on {total} held-out questions")
        evaluation = self.evaluator.run(state.params, tick=lambda done: self.watch(f"evaluating {done}/{total}"))
        evaluation.write(self.folder / EVALUATIONS, f"step_{step:06d}")
        return evaluation.metrics() | {"heldout/seconds": time.perf_counter() - started}

    def _write(self, host: Host, line: dict[str, float]) -> None:
        every, steps = self.config.log.every, self.config.train.steps
        if line and (host.step % every == 0 or host.step == steps or {METRIC, PROBE} & line.keys()):
            self.log.write(host.step, line | {"elapsed_seconds": host.seconds})
            self.log.write_responses(host.step, host.responses)

    def _vote(self, host: Host, indices: list[int], fetched: Fetched) -> tuple[Feedback, list[Vote]]:
        """Reads the answers of the new rollouts and decides what the next update learns from them."""
        verdict = self._judge(host, indices, fetched)
        filled = float(np.mean([len(self.encoded.tokens[i]) for i in indices])) / self.width
        host.pending = verdict.metrics | {"prompt_padding_share": 1.0 - filled}
        host.responses = verdict.responses
        host.tokens = int(fetched.length_QN.sum())
        return verdict.feedback, verdict.votes

    def _is_probed(self, host: Host, *, learn: bool) -> bool:
        step = host.step + learn
        return (learn or step == 0) and (step % self.config.probe.every == 0 or step == self.config.train.steps)

    def _probe(self, host: Host, rollouts: Rollouts) -> dict[str, float]:
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

    def _judge(self, host: Host, indices: list[int], fetched: Fetched) -> Verdict:
        taught = fetched.taught
        return judge(
            self.config,
            [self.encoded.questions[i] for i in indices],
            self.parts.texts(fetched.tokens_QNT, fetched.length_QN),
            fetched.length_QN,
            fetched.ended_QN,
            {} if fetched.confidence is None else fetched.confidence.by_kind(),
            voter=self.voter,
            answer_key=self.answer_key,
            teacher=self.teacher,
            taught=None if taught is None else self.parts.texts(taught.tokens_QNT, taught.length_QN),
            step=host.step,
        )

    def _refill(self, host: Host, state: State, rollouts: Rollouts, votes: Feedback, ballots: list[Vote], indices: list[int]):
        """(state, rollouts, votes) after fresh questions have been sampled in the place of those that are left out.

        `ballots` and `indices` are changed in place; metrics go on describing the batch as it was sampled first.
        """
        seconds, replaced = 0.0, set()
        for _ in range(self.config.reward.refill):
            places = [int(q) for q in np.flatnonzero(~(votes.weight_QN > 0).any(1))]
            if not places:
                break
            started = time.perf_counter()
            for place, index in zip(places, self.batches.fresh(host, len(places)), strict=True):
                indices[place] = index
            prompts = self.batches.at_places(indices, places, draw=host.draws)
            host.note_call(len(places))
            state, rollouts, _ = self._call(state, rollouts, votes, prompts, learn=False)
            fetched = jax.device_get(Fetched.of(rollouts)).at(places)
            seconds += time.perf_counter() - started
            verdict = self._judge(host, [indices[place] for place in places], fetched)
            votes = with_questions(votes, places, verdict.feedback)
            for place, ballot in zip(places, verdict.votes, strict=True):
                ballots[place] = ballot
            host.tokens += int(fetched.length_QN.sum())
            for name in ("voter_seconds", "voter_kills"):
                host.pending[name] += verdict.metrics[name]
            replaced.update(places)
        if self.config.reward.refill:
            host.pending["kept_question_share"] = float((votes.weight_QN > 0).any(1).mean())
            host.pending |= {"refilled_share": len(replaced) / len(indices), "refill_seconds": seconds}
        return state, rollouts, votes

    def _save(self, host: Host, state: State, rollouts: Rollouts, votes: Feedback, score: float | None, *, now: bool) -> None:
        if now or host.step % self.config.checkpoint.every == 0 or host.step == self.config.train.steps:
            self.checkpoints.save(host.step, Saved(state, rollouts, votes, asdict(host)), metric=score)

    def _told_to_stop(self, host: Host) -> bool:
        """Whether evaluate.patience is at its end; says so."""
        patience = self.config.evaluate.patience
        if patience is None or host.since_best < patience:
            return False
        self.say(
            f"step {host.step}: no better held-out avg@{self.config.evaluate.samples} in {host.since_best} evaluations, the best "
            f"is that of step {host.best_step}; raise evaluate.patience (now {patience}) to go on"
        )
        return True

    def _stop_if_bad(self, host: Host) -> None:
        if host.bad_in_a_row < self.config.runtime.bad_steps:
            return
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        where = f"the last checkpoint is step {steps[-1]} in {self.checkpoints.folder}" if steps else "there is no checkpoint yet"
        raise UserError(
            f"{host.bad_in_a_row} updates in a row had NaN or Inf in their loss or gradient and were skipped; {where}. "
            "Lower optimizer.learning_rate, or use model.compute_dtype=float32"
        )
