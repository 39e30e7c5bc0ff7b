"""Takes a Config, trains: the host loop around the one compiled step.

A call of the step learns from the rollouts of the call before (update i) and samples the questions of update i + 1.
Between two calls the host fetches the responses once, writes the metrics of update i, evaluates where due, votes, and
saves. The next prompts are prepared while the device works.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import jax
import numpy as np

from jaxselftrain.answer_key import load_answer_key
from jaxselftrain.answers import answer_key as canonical_key
from jaxselftrain.assembly import TRAINING, open_parts
from jaxselftrain.checkpoints import METRIC, Checkpoints, Saved
from jaxselftrain.config import Config
from jaxselftrain.errors import Resumable, UserError
from jaxselftrain.evaluate import Evaluator
from jaxselftrain.interrupts import Interrupts
from jaxselftrain.metrics import MetricsLog, vote_metrics
from jaxselftrain.optimizer import init_moments, schedule
from jaxselftrain.prompts import Encoded, prompt_width
from jaxselftrain.questions import QuestionOrder, load_questions, without_overlap
from jaxselftrain.rewards import Feedback, feedback
from jaxselftrain.rollouts import Rollouts, empty_rollouts
from jaxselftrain.run_folder import CHECKPOINTS, open_folder, write_environment
from jaxselftrain.sharding import check_mesh, named
from jaxselftrain.step import (
    abstract_state,
    compile_step,
    feedback_shardings,
    make_transform,
    rollout_shardings,
    state_shardings,
)
from jaxselftrain.stopping import cut_at_stop
from jaxselftrain.update import State
from jaxselftrain.voter import Voter
from jaxselftrain.votes import Vote, vote


@dataclass(frozen=True)
class Report:
    """What `train` yields before the first update (step 0) and after every one."""

    step: int
    metrics: dict[str, float]  # the names of metrics.METRICS
    votes: list[Vote]  # on the rollouts sampled with the weights of this step; empty after the last


@dataclass
class Host:
    """The loop's own memory between steps; a checkpoint keeps all of it."""

    step: int = 0  # updates done
    sampled: bool = False  # whether rollouts and feedback await an update
    pending: dict[str, float] = field(default_factory=dict)  # the metrics of their vote
    responses: list[dict] = field(default_factory=list)  # the samples of theirs that are logged
    bad_updates: int = 0
    bad_in_a_row: int = 0
    best: float | None = None  # highest held-out avg@k so far
    reference: dict[str, float] | None = None  # fingerprint of the frozen initial policy


def train(config: Config, folder: Path) -> Iterator[Report]:
    """Trains in a run folder, resuming what it holds; yields after every step.

    Raises UserError for what the user can change, and Resumable after SIGTERM or Ctrl-C, once everything is saved.
    """
    lock, changed = open_folder(folder, config)
    try:
        with Interrupts() as interrupts, Loop(config, folder, changed) as loop:
            yield from loop.run(interrupts)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(
            f"out of device memory: raise update.micro_batches (now {config.update.micro_batches}) if the update does not "
            "fit; lower rollout.questions, vote.samples or rollout.max_tokens if sampling does not"
        ) from error
    finally:
        lock.release()


class Loop:
    """The loaded parts of one run, and the steps over them."""

    def __init__(self, config: Config, folder: Path, changed: list[str]):
        self.config, self.folder, self.changed = config, folder, changed
        self.answer_key = load_answer_key(config.questions)
        if config.reward.source == "gold" and not len(self.answer_key):
            raise UserError("reward.source = gold needs answers: questions.fields.answer names no field that holds one")
        self.parts = open_parts(config, cache=folder.parent / ".compilation_cache")
        training, held_out = self._load_questions()
        self.questions = {question.id: question for question in training.questions}
        self.encoded = training
        self.width = prompt_width(training.tokens + (held_out.tokens if held_out else []))
        self.parts.check_context(self.width)
        self._check_batches(len(training.questions), held_out is not None)
        self.order = QuestionOrder(len(training.questions), config.rollout.questions, config.train.seed)
        self.sampling = self.parts.sampling(
            temperatures=[config.rollout.temperature] * config.vote.samples,
            top_p=config.rollout.top_p,
            top_k=config.rollout.top_k,
        )
        self.step = compile_step(self.parts.graph, config, self.parts.architecture, self.parts.mesh)
        inner_steps = config.update.epochs * config.update.minibatches
        self.learning_rate = schedule(config.optimizer, steps=config.train.steps * inner_steps)
        self.voter = Voter(config.answer, config.vote)
        self.evaluator = None
        if held_out is not None:
            self.evaluator = Evaluator(self.parts, held_out, load_answer_key(config.evaluate.questions), self.voter, self.width)
        self.checkpoints = Checkpoints(folder / CHECKPOINTS, config.checkpoint)
        self.log = MetricsLog(folder, config.log)
        write_environment(folder, sorted({f"{d.platform}: {d.device_kind}" for d in jax.devices()}))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.voter.close()
        self.log.close()
        self.checkpoints.close()

    def run(self, interrupts: Interrupts) -> Iterator[Report]:
        state, rollouts, votes, host = self._start()
        steps = self.config.train.steps
        prompts = self._prompts(host.step + host.sampled)
        clock = time.perf_counter()
        while host.step < steps or not host.sampled:
            learn, after = host.sampled, host.step + host.sampled
            wanted = after < steps
            state, rollouts, on_device = self.step(
                state, rollouts, self._place(replace(votes, learn=np.asarray(learn))), self._wanted(prompts, wanted)
            )
            dispatched = time.perf_counter()
            if wanted:  # the device is busy: the time to prepare what comes next
                prompts = self._prompts(after + 1)
            fetched, metrics = jax.device_get((self._fetched(rollouts), on_device))
            device_seconds = time.perf_counter() - dispatched
            line = self._learned(host, metrics, device_seconds, clock) if learn else {}
            clock = time.perf_counter()
            if learn or after == 0:
                line |= self._evaluate(host, state)
                self._write(host, line)
            ballots: list[Vote] = []
            if wanted:
                votes, ballots = self._vote(host, after, fetched)
            host.sampled = wanted
            stopping = interrupts.requested and wanted
            if learn or stopping:
                self._save(host, state, rollouts, votes, line.get(METRIC), force=stopping)
            if learn or after == 0:
                yield Report(after, line, ballots)
            if stopping:
                self.checkpoints.wait()
                raise Resumable(f"stopped after step {host.step} of {steps}; everything is saved in {self.folder}")
            if not wanted:
                break
        self.checkpoints.wait()
