"""Takes a Config and its run folder, gives the host loop around the one compiled step.

A call of the step learns from the rollouts of the call before (update i) and samples the questions of update i + 1.
Between two calls the host fetches the responses once, writes the metrics of update i, evaluates where due, votes, and
saves. The next prompts are prepared while the device works.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath

from jaxselftrain.alarm import Raised
from jaxselftrain.answer_key import load_answer_key
from jaxselftrain.ballots import PROBE, Ballots, Fetched
from jaxselftrain.batches import Batches
from jaxselftrain.checkpoints import HEALTHY, METRIC, Checkpoints, Saved
from jaxselftrain.config import Config
from jaxselftrain.errors import Resumable, UserError
from jaxselftrain.evaluate import Evaluator, all_rows, cut_back_evaluations
from jaxselftrain.guard import Guard, write_alarms
from jaxselftrain.interrupts import Interrupts
from jaxselftrain.labels import NEED_GOLD
from jaxselftrain.material import open_material
from jaxselftrain.metrics import MetricsLog
from jaxselftrain.processes import any_of, compiled_in_all, fetch, put, together
from jaxselftrain.remote import CHECKPOINTS, Copy
from jaxselftrain.rewards import Feedback, kept_share, with_questions
from jaxselftrain.rollouts import Prompts, Rollouts
from jaxselftrain.run_folder import EVALUATIONS, SUMMARY, begin_folder
from jaxselftrain.start import Host, begin
from jaxselftrain.step import compile_step, feedback_shardings
from jaxselftrain.supervised import GoldResponses
from jaxselftrain.update import State
from jaxselftrain.voter import Voter
from jaxselftrain.votes import Vote


@dataclass(frozen=True)
class Report:
    """What `train` yields before the first update (step 0) and after every one."""

    step: int
    metrics: dict[str, float]  # the names of metrics.METRICS
    votes: list[Vote]  # on the rollouts sampled with the weights of this step; empty after the last
    alarm: dict[str, Any] | None = None  # the line of alarms.jsonl, at the step where it was raised


@dataclass
class Control:
    """What a program may tell a run between two steps."""

    is_stopped: bool = False
    label_source: str | None = None
    sources: tuple[str, ...] | None = None  # what labels may come from, once the run has begun


def _speed(line: dict[str, float], device: float, wall: float, tokens: int) -> dict[str, float]:
    host = max(wall - device - line.get("voter_seconds", 0.0) - line.get("refill_seconds", 0.0), 0.0)
    return {"device_seconds": device, "host_seconds": host, "tokens_per_second": tokens / wall}


class Loop:
    """The loaded parts of one run, and the steps over them."""

    # what the steps change
    state: State
    rollouts: Rollouts  # they await their update
    votes: Feedback  # on them
    host: Host
    indices: list[int]  # of the questions that are sampled next
    prompts: Prompts  # theirs
    last: float  # when the last step ended

    def __init__(
        self,
        config: Config,
        kept: epath.Path,
        notes: list[str],
        *,
        own: Path,
        cache: Path,
        copy: Copy | None,
        say: Callable[[str], None],
        watch: Callable[[str], None],
    ):
        """What is written for people goes to `own`: the run folder, or one that nobody reads where another process keeps it.

        `kept` is where checkpoints go, and what processes pass to each other; where it is elsewhere, `copy` keeps the rest there.
        """
        self.began = time.monotonic()
        self.kept, self.copy, self.folder, self.say, self.watch = kept, copy, own, say, watch
        for note in notes:
            say(f"changed since the run started: {note}")
        where = f"run folder {own}, kept in {kept}" if copy is not None and copy.is_elsewhere else f"run folder {own}"
        say(f"{where}; opening {config.model.path}")
        material = open_material(config, cache=cache, say=say)
        self.parts, self.width, self.teacher = material.parts, material.width, material.teacher
        self.config = config = self.parts.config  # what it left to `auto` is decided
        self.answer_key, self.encoded, asked = material.answer_key, material.training, material.held_out
        self.guard = Guard(config.alarm, own, say=say)
        if not config.is_supervised:
            self.guard.tell_of_blindness(keeps_reference=config.keeps_reference)
        self.batches = Batches(self.parts, self.encoded, material.probes, self.width)
        self.gold = None
        if config.is_supervised:
            self.gold = together(lambda: GoldResponses(self.parts, self.encoded, self.answer_key, self.width))
        self.step = compiled_in_all(compile_step(self.parts.graph, config, self.parts.architecture, self.parts.mesh))
        with ExitStack() as opened:  # what is open is closed again when a later line fails
            self.voter = opened.enter_context(Voter(config.answer, config.vote))
            self.ballots = Ballots(
                self.parts,
                self.encoded,
                material.probes,
                self.width,
                voter=self.voter,
                answer_key=self.answer_key,
                teacher=self.teacher,
                gold=self.gold,
            )
            self.evaluator = None
            if asked is not None and config.evaluate.questions is not None:
                self.evaluator = Evaluator(self.parts, asked, load_answer_key(config.evaluate.questions), self.voter, self.width)
            self.log = opened.enter_context(closing(MetricsLog(own, config.log)))
            begin_folder(own, config, sorted({f"{d.platform}: {d.device_kind}" for d in jax.devices()}))
            self.checkpoints = opened.enter_context(closing(Checkpoints(kept / CHECKPOINTS, config.checkpoint)))
            self.opened = opened.pop_all()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.opened.close()

    def sources(self) -> tuple[str, ...]:
        """Where this run can take labels from."""
        gold = NEED_GOLD if len(self.answer_key) else ()
        return ("vote", *gold, *(("teacher",) if self.teacher else ()), *(("ema",) if self.config.keeps_teacher else ()))

    def run(self, interrupts: Interrupts, control: Control) -> Iterator[Report]:
        self._begin()
        self._cut_back()
        self.seconds_before = self.host.seconds
        steps = self.config.train.steps
        if self._is_over():
            return
        self.say("compiling the training step (a minute or so; later runs beside this one reuse it)")
        self._prepare()
        while self.host.step < steps or not self.host.sampled:
            learn = self.host.sampled
            wanted = self.host.step + learn < steps
            sampled = self.indices
            line, fetched, raised = self._advance(learn=learn, wanted=wanted)
            is_best = self._note(line) if learn or self.host.step == 0 else False
            action = None if raised is None else self.guard.act(self.host, raised, is_last=not wanted)
            if action == "rollback":
                yield Report(self.host.step, line, [], self.host.alarms[-1])
                self._roll_back()
                continue
            ballots = self._decide(sampled, fetched, control) if wanted else []
            resampled = not learn and self.host.step > 0  # a finished run goes on: nothing new has happened yet
            self.host.sampled = wanted
            self._stop_if_bad()
            stopping, ending, is_saved = wanted and any_of(interrupts.requested), False, False
            if learn or stopping:
                ending = action == "stop" or (wanted and self._told_to_stop())
                best = is_best and self.config.checkpoint.keep_best
                is_saved = self._save(line.get(METRIC), now=stopping or ending or best)
            if not resampled:
                yield Report(self.host.step, line, ballots, self.host.alarms[-1] if action else None)
            if stopping:
                self.checkpoints.wait()
                raise Resumable(f"stopped after step {self.host.step} of {steps}; everything is saved in {self.kept}")
            told_to_stop = any_of(control.is_stopped)
            if told_to_stop and wanted and not (ending or is_saved):
                self._save(line.get(METRIC), now=True)
            if ending or told_to_stop or not wanted:
                break
        self.checkpoints.wait()

    def _advance(self, *, learn: bool, wanted: bool) -> tuple[dict[str, float], Fetched, Raised | None]:
        """One dispatch: learns from what was voted on, samples the questions that are prepared, and prepares the next ones.

        Gives the metrics of the update, nothing where there was none; what the host reads of the rollouts; the alarm if it rises.
        """
        dispatched = time.perf_counter()
        line: dict[str, float] = {}
        if self.batches.probes is not None and self._is_probed(learn=learn):
            metrics = self._call(self.batches.probes, learn=learn)
            line = self.ballots.probe(self.host, self.rollouts)
            if wanted:  # in the same places
                self._call(self.prompts, learn=False)
        else:
            metrics = self._call(self.prompts if wanted and self.gold is None else self.batches.nothing, learn=learn)
            if wanted and self.gold is not None:
                self.rollouts = self.gold.rollouts(self.indices, draw=self.host.draws)
        if wanted:  # the device is busy: the time to prepare what comes next
            self.host.note_call(len(self.indices))
            self.indices, self.prompts = self.batches.next(self.host)
        fetched, metrics = fetch((Fetched.of(self.rollouts), metrics))
        device_seconds = time.perf_counter() - dispatched
        raised = None
        if learn:
            line = self._learned(metrics) | line
            line |= _speed(line, device_seconds, time.perf_counter() - self.last, self.host.tokens)
            if self.gold is None:
                found, raised = self.guard.watch(self.host, line)
                line |= found
        self.last = time.perf_counter()
        return line, fetched, raised

    def _note(self, line: dict[str, float]) -> bool:
        """Evaluates where it is due, and writes the step's line; whether this is the best step so far."""
        line |= self._evaluate()
        self.last += line.get("heldout/seconds", 0.0)  # evaluation is no part of a step's time
        is_best = self.host.note_score(line.get(METRIC))
        self.host.seconds = self.seconds_before + time.monotonic() - self.began
        self._write(line)
        return is_best

    def _decide(self, sampled: list[int], fetched: Fetched, control: Control) -> list[Vote]:
        """Votes on the new rollouts: the feedback of the next update."""
        self.host.label_source = control.label_source or self.host.label_source
        self.votes, ballots = self.ballots.decide(self.host, sampled, fetched)
        calls = self.host.draws
        self._refill(ballots, sampled)
        if self.host.draws > calls:  # what was prepared has been asked already
            self.indices, self.prompts = self.batches.next(self.host)
        return list(ballots.values())

    def _begin(self, *, last: int | None = None) -> None:
        """Takes up the newest checkpoint, of those up to step `last` where that is given, or the beginning."""
        labels = self.teacher if self.config.label.file is not None else {}
        self.state, self.rollouts, self.votes, self.host = begin(
            self.parts, self.checkpoints, self.encoded.questions, labels, width=self.width, say=self.say, last=last
        )

    def _prepare(self) -> None:
        """The first questions after the beginning, and the clock of steps."""
        self.indices, self.prompts = self.batches.next(self.host)
        self.last = time.perf_counter()

    def _roll_back(self) -> None:
        """Takes up the healthiest checkpoint, or the initial policy; what came after is forgotten, but for the alarm itself."""
        before = self.host
        alarm = before.alarms[-1]
        del self.state, self.rollouts  # their memory is needed
        self.checkpoints.wait()
        self._begin(last=alarm["to"])
        # Now that this one is read, the later ones may go; and they go first: a kill before the next line is a run that goes on
        # from here and comes to the same alarm.
        self.checkpoints.forget_after(self.host.step)
        last = self.host.step or -1  # the beginning is measured again
        self.log.roll_back(last, alarm=alarm["step"], number=before.rollbacks + 1)
        cut_back_evaluations(self.folder / EVALUATIONS, last)
        self.host.alarms, self.host.rollbacks, self.host.rate = before.alarms, before.rollbacks + 1, alarm["rate"]
        self._prepare()

    def _is_over(self) -> bool:
        """Whether the run that the folder holds has nothing left to do; says why."""
        steps = self.config.train.steps
        if 0 < self.host.step >= steps:
            self.say(f"step {self.host.step} of {steps}: there is nothing left to do")
            return True
        if self.guard.stopped(self.host):
            self.say(self.host.alarms[-1]["told"])
            return True
        return self._told_to_stop()

    def _cut_back(self) -> None:
        """Takes away what was written after the checkpoint that the run goes on from."""
        resumed = bool(self.checkpoints.steps())
        if not resumed and (self.folder / SUMMARY).is_file():
            raise UserError(
                f"{self.folder} holds a finished run without its checkpoints; put them back, or choose another train.folder"
            )
        if not resumed and self.log.has_lines():
            self.say("there is no checkpoint yet: starting over")
        self.log.cut_back(self.host.step if resumed else -1)
        self.log.forget_rollbacks(self.host.rollbacks)
        write_alarms(self.folder, self.host.alarms)
        cut_back_evaluations(self.folder / EVALUATIONS, self.host.step if resumed else -1)

    def _call(self, prompts: Prompts, *, learn: bool) -> dict[str, Any]:
        """The compiled step; gives the metrics of its update."""
        told = replace(self.votes, learn=np.asarray(learn), rate=np.asarray(self.host.rate, np.float32))
        votes = put(told, feedback_shardings(self.parts.mesh))
        self.state, self.rollouts, metrics = self.step(self.state, self.rollouts, votes, prompts)
        return metrics

    def _learned(self, metrics: dict[str, Any]) -> dict[str, float]:
        """The metrics line of the update just made; counts updates that were skipped for NaN or Inf."""
        bad = float(metrics.pop("bad_update")) > 0
        if "kl_k1" in metrics:
            metrics["surprise"] = metrics["entropy"] + metrics["kl_k1"]
        if self.gold is not None:
            del metrics["sampler_gap"]  # to a sampler that there was not
        host = self.host
        host.step += 1
        host.bad_updates += int(bad)
        host.bad_in_a_row = host.bad_in_a_row + 1 if bad else 0
        return host.pending | {name: float(value) for name, value in metrics.items()} | {"bad_updates": host.bad_updates}

    def _evaluate(self) -> dict[str, float]:
        """Held-out metrics where an evaluation is due at this step, else nothing."""
        every, step = self.config.evaluate.every, self.host.step
        due = step in (0, self.config.train.steps) or (every and step % every == 0)
        if self.evaluator is None or not due:
            return {}
        started = time.perf_counter()
        total = len(self.evaluator.questions.questions)
        self.say(f"step {step}: evaluating on {total} held-out questions")
        evaluation = self.evaluator.run(self.state.params, tick=lambda done: self.watch(f"evaluating {done}/{total}"))
        ids = [question.id for question in self.evaluator.questions.questions]
        rows = all_rows(evaluation.rows, ids, self.kept / EVALUATIONS)
        replace(evaluation, rows=rows).write(self.folder / EVALUATIONS, f"step_{step:06d}")
        return evaluation.metrics() | {"heldout/seconds": time.perf_counter() - started}

    def _write(self, line: dict[str, float]) -> None:
        host, every, steps = self.host, self.config.log.every, self.config.train.steps
        if line and (host.step % every == 0 or host.step == steps or {METRIC, PROBE} & line.keys()):
            self.log.write(host.step, line | {"elapsed_seconds": host.seconds})
            self.log.write_responses(host.step, host.responses)

    def _is_probed(self, *, learn: bool) -> bool:
        step = self.host.step + learn
        return (learn or step == 0) and (step % self.config.probe.every == 0 or step == self.config.train.steps)

    def _refill(self, ballots: dict[int, Vote], indices: list[int]) -> None:
        """Samples fresh questions in the place of those that are left out, at most reward.refill times.

        `ballots` and `indices` are changed in place; metrics go on describing the batch as it was sampled first.
        """
        host, seconds, replaced = self.host, 0.0, set()
        for _ in range(self.config.reward.refill):
            places = [int(q) for q in np.flatnonzero(~(self.votes.weight_QN > 0).any(1))]
            if not places:
                break
            started = time.perf_counter()
            for place, index in zip(places, self.batches.fresh(host, len(places)), strict=True):
                indices[place] = index
            prompts = self.batches.at_places(indices, places, draw=host.draws)
            host.note_call(len(places))
            self._call(prompts, learn=False)
            fetched = fetch(Fetched.of(self.rollouts))
            seconds += time.perf_counter() - started
            decision = self.ballots.decision(host, {place: indices[place] for place in places}, fetched)
            self.votes = with_questions(self.votes, places, decision.feedback)
            ballots |= decision.votes
            host.tokens += decision.tokens
            for name in ("voter_seconds", "voter_kills"):
                host.pending[name] += decision.metrics[name]
            replaced.update(places)
        if self.config.reward.refill:
            host.pending["kept_question_share"] = kept_share(self.votes)
            host.pending |= {"refilled_share": len(replaced) / len(indices), "refill_seconds": seconds}

    def _save(self, score: float | None, *, now: bool) -> bool:
        """Saves where it is due, or now; whether it did."""
        host = self.host
        due = now or host.step % self.config.checkpoint.every == 0 or host.step == self.config.train.steps
        if due:
            # The beginning is saved only where a run was stopped there, and which checkpoint is best must not depend on that.
            metrics = {} if score is None or host.step == 0 else {METRIC: score}
            if host.note_health():
                metrics[HEALTHY] = float(host.calm or 0.0)
            self.checkpoints.save(host.step, Saved(self.state, self.rollouts, self.votes, asdict(host)), metrics=metrics)
            if self.copy is not None:
                self.copy.keep()
        return due

    def _told_to_stop(self) -> bool:
        """Whether evaluate.patience is at its end; says so."""
        host, patience = self.host, self.config.evaluate.patience
        if patience is None or host.since_best < patience:
            return False
        self.say(
            f"step {host.step}: no better held-out avg@{self.config.evaluate.samples} in {host.since_best} evaluations, the best "
            f"is that of step {host.best_step}; raise evaluate.patience (now {patience}) to go on"
        )
        return True

    def _stop_if_bad(self) -> None:
        host = self.host
        if host.bad_in_a_row < self.config.runtime.bad_steps:
            return
        self.checkpoints.wait()
        steps = self.checkpoints.steps()
        where = f"the last checkpoint is step {steps[-1]} in {self.checkpoints.folder}" if steps else "there is no checkpoint yet"
        raise UserError(
            f"{host.bad_in_a_row} updates in a row had NaN or Inf in their loss or gradient and were skipped; {where}. "
            "Lower optimizer.learning_rate, or use model.compute_dtype=float32"
        )
