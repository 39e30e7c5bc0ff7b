"""Takes a job of a comparison, gives repetitions of our own sampling program or whole steps, by the path that a run takes.

The parts come from `assembly`, the programs from `step.compile_step` and `step.compile_sample`, votes from `judge`: what the
loop around them does, less log files and checkpoints. The one difference is the stop table, which ends no response.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from peers.worker import Turns
from shapes import SHAPES, random_params, word_tokenizer

from jaxselftrain.answer_key import AnswerKey
from jaxselftrain.assembly import TRAINING, Parts, open_parts, set_runtime
from jaxselftrain.config import Config, override_config, parse_config
from jaxselftrain.huge_pages import restart_with_huge_pages
from jaxselftrain.judge import Verdict, conclude, judge
from jaxselftrain.loop import Fetched
from jaxselftrain.memory import device_limit, fit_memory
from jaxselftrain.model.loading import Weights
from jaxselftrain.prompts import prompt_width
from jaxselftrain.questions import Question
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Prompts, Rollouts, Sampling, empty_rollouts
from jaxselftrain.sampler import rows_per_question
from jaxselftrain.sharding import make_mesh, named
from jaxselftrain.step import (
    compile_sample,
    compile_step,
    feedback_shardings,
    new_state,
    prompt_shardings,
    rollout_shardings,
    state_shardings,
)
from jaxselftrain.stopping import stop_table
from jaxselftrain.update import State
from jaxselftrain.voter import Voter


def make_config(*, model: str, dtype: str, workload: Sequence[int], settings: Sequence[str] = ()) -> Config:
    """The config of a run over this workload, by the defaults but for `settings`."""
    Q, N, _, T = workload
    values = {
        "model": {"path": model, "compute_dtype": dtype},
        "questions": {"source": "jsonl", "path": "none"},
        "rollout": {"questions": Q, "max_tokens": T},
        "answer": {"format": "regex", "pattern": "([a-z])"},  # nearly every response has an answer, and samples disagree
        "vote": {"samples": N},
    }
    return override_config(parse_config(values), list(settings))


def open_model(config: Config, shape: str | None) -> Parts:
    """The parts of a run; with a shape, random weights of it, and no file is read."""
    if shape is None:
        return open_parts(config, cache=None)
    set_runtime(config, None)
    architecture = SHAPES[shape]
    weights = Weights("random weights", architecture, {}, {}, {}, {}, read_block=None)
    return Parts(config, make_mesh(config.mesh), word_tokenizer(architecture.V), weights)


def initial_params(parts: Parts, shape: str | None) -> dict[str, jax.Array]:
    return parts.params() if shape is None else random_params(parts)


def endless(parts: Parts) -> Sampling:
    """How a run samples by default, but no token ends a response."""
    table = stop_table((), [b""] * parts.architecture.V, [])
    settings = parts.config.rollout
    temperatures = [settings.temperature] * parts.config.vote.samples
    sampling = parts.sampling(temperatures=temperatures, top_p=settings.top_p, top_k=settings.top_k)
    return replace(sampling, stop_SV=jax.device_put(table, named(parts.mesh)))


class Batches:
    """The questions of every step, on device when asked for; the last ones come again when there are no more."""

    def __init__(self, parts: Parts, prompts: Sequence[list[int]]):
        self.parts, self.tokens = parts, prompts
        self.Q = parts.config.rollout.questions
        self.width = prompt_width(max(map(len, prompts)))  # as in a run: rounded up, which costs us and nobody else
        self.sampling = endless(parts)

    def batch(self, step: int) -> Prompts:
        first = min(step * self.Q, len(self.tokens) - self.Q)
        indices, wanted = range(first, first + self.Q), [True] * self.Q
        return self.parts.prompts(self.tokens, indices, wanted, self.width, stream=TRAINING, draw=step, sampling=self.sampling)


class Run:
    """A run's state, program and voter, for whole steps and for their two halves."""

    def __init__(self, parts: Parts, params: dict[str, jax.Array], prompts: Sequence[list[int]]):
        if not parts.config.is_decided:
            width = prompt_width(max(map(len, prompts)))
            parts = fit_memory(parts, width, limit=device_limit(), say=lambda text: print(text, file=sys.stderr, flush=True))
        config = self.config = parts.config
        self.parts, self.batches = parts, Batches(parts, prompts)
        at = state_shardings(config, parts.architecture, parts.mesh)
        reference = jax.tree.map(np.asarray, params) if config.keeps_reference else None
        self.state: State = jax.jit(partial(new_state, config), donate_argnums=0, out_shardings=at)(params, reference)
        Q, N, M = config.rollout.questions, config.vote.samples, config.samples_trained
        shapes = dict(Q=Q, N=N, C=self.batches.width, T=config.rollout.max_tokens, confidence=False)
        self.rollouts: Rollouts = jax.jit(lambda: empty_rollouts(**shapes), out_shardings=rollout_shardings(parts.mesh))()
        nothing = np.zeros((Q, N), np.float32)
        chosen_QM = np.tile(np.arange(M, dtype=np.int32), (Q, 1))
        self.feedback = Feedback(nothing, nothing, np.zeros(Q, np.float32), chosen_QM, np.asarray(False))
        self.voter = Voter(config.answer, config.vote)
        self.asked = [Question(f"q{q}", f"q{q}") for q in range(Q)]
        self.done = 0
        self.prompts = self.batches.batch(0)
        self.program = compile_step(parts.graph, config, parts.architecture, parts.mesh)

    def inputs(self, *, learn: bool, wanted: bool) -> tuple[State, Rollouts, Feedback, Prompts]:
        """What the program is called with."""
        feedback = jax.device_put(replace(self.feedback, learn=np.asarray(learn)), feedback_shardings(self.parts.mesh))
        wanted_Q = np.full(len(self.asked), wanted)
        asked = replace(self.prompts, wanted_Q=jax.device_put(wanted_Q, prompt_shardings(self.parts.mesh).wanted_Q))
        return self.state, self.rollouts, feedback, asked

    def call(self, *, learn: bool, wanted: bool) -> float:
        """One call of the program, to its end, and the next prompts meanwhile; gives its seconds.

        A call that only learns takes the rollouts and gives empty ones: a call that samples must come next.
        """
        started = time.perf_counter()
        self.state, self.rollouts, metrics = self.program(*self.inputs(learn=learn, wanted=wanted))
        if wanted:
            self.done += 1
            self.prompts = self.batches.batch(self.done)  # while the device works
        fetched, metrics = jax.device_get((Fetched.of(self.rollouts), metrics))
        seconds = time.perf_counter() - started
        assert not learn or np.isfinite(metrics["loss"]), "the loss is not finite"
        if wanted:
            assert (fetched.length_QN == self.config.rollout.max_tokens).all()
            self.fetched = fetched
        return seconds

    def vote(self) -> float:
        """Votes on the rollouts just fetched; gives the seconds that the device waits for it."""
        started = time.perf_counter()
        texts = self.parts.texts(self.fetched.tokens_QNT, self.fetched.length_QN)
        verdict: Verdict = judge(
            self.config,
            self.asked,
            texts,
            self.fetched.length_QN,
            self.fetched.ended_QN,
            {},
            voter=self.voter,
            answer_key=AnswerKey({}),
            teacher={},
            taught=None,
            step=self.done,
        )
        self.feedback, _ = conclude(self.config, verdict.tally)
        return time.perf_counter() - started

    def step(self) -> None:
        """A whole step, as the loop makes it: learn and sample in one call, then vote. The first one has to sample first."""
        if not self.done:
            self.call(learn=False, wanted=True)
            self.vote()
        self.call(learn=True, wanted=True)
        self.vote()


def sampler(parts: Parts, prompts: Sequence[list[int]], workload: Sequence[int]) -> Callable[[], None]:
    """A call of the sampling program, its responses fetched."""
    Q, N, _, T = workload
    rows = rows_per_question(parts.config.rollout, parts.mesh, Q=Q, N=N)
    program = compile_sample(parts.graph, parts.architecture, parts.mesh, N=N, T=T, W=rows)
    params, batches = parts.params(), Batches(parts, prompts)
    draws = iter(range(10**9))

    def repeat():
        asked = replace(batches.batch(0), noise=jax.device_put(np.asarray([0, 0, next(draws)], np.uint32), named(parts.mesh)))
        got = jax.device_get(Fetched.of(program(params, asked)))
        assert (got.length_QN == T).all()

    return repeat


def main() -> None:
    turns = Turns()
    job: dict[str, Any] = turns.job
    fastest = ["model.remat=auto", "update.micro_batches=auto"] if job["what"] == "step" else []
    config = make_config(model=job["model"], dtype=job["dtype"], workload=job["workload"], settings=[*fastest, *job["settings"]])
    parts = open_model(config, None)
    if job["what"] == "sampling":
        repeat = sampler(parts, job["prompts"], job["workload"])
    else:
        repeat = Run(parts, parts.params(), job["prompts"]).step
    turns.ready("jax", "flax")
    turns.serve(repeat)


if __name__ == "__main__":
    restart_with_huge_pages()  # as the command jaxselftrain does
    main()
