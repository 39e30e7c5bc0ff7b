"""Takes a Config and its run folder, gives the host loop around the one compiled step.

A call of the step learns from the rollouts of the call before (update i) and samples the questions of update i + 1.
Between two calls the host fetches the responses once, writes the metrics of update i, evaluates where due, votes, and
saves. The next prompts are prepared while the device works.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
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
from jaxselftrain.rollouts import Prompts, Rollouts, empty_rollouts
from jaxselftrain.run_folder import CHECKPOINTS, EVALUATIONS, write_environment
from jaxselftrain.sharding import check_mesh, named
from jaxselftrain.step import (
    abstract_state,
    compile_step,
    feedback_shardings,
    make_transform,
    rollout_shardings,
    state_shardings,
)
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
    tokens: int = 0  # response tokens in the rollouts that await their update
    questions: str = ""  # fingerprint of the training questions and their order


@dataclass(frozen=True)
class Fetched:
    """What the host reads of the rollouts, in one transfer a step."""

    tokens_QNT: Any
    length_QN: Any
    ended_QN: Any

    @classmethod
    def of(cls, rollouts: Rollouts) -> Fetched:
        return cls(rollouts.tokens_QNT, rollouts.length_QN, rollouts.ended_QN)


jax.tree_util.register_dataclass(Fetched)


def _speed(line: dict[str, float], device: float, wall: float, tokens: int) -> dict[str, float]:
    host = max(wall - device - line.get("voter_seconds", 0.0), 0.0)
    return {"device_seconds": device, "host_seconds": host, "tokens_per_second": tokens / wall}


class Loop:
    """The loaded parts of one run, and the steps over them."""

    def __init__(self, config: Config, folder: Path, notes: list[str], *, say: Callable[[str], None]):
        self.config, self.folder, self.say = config, folder, say
        for note in notes:
            say(f"changed since the run started: {note}")
        say(f"run folder {folder}; opening {config.model.path}")
        self.answer_key = load_answer_key(config.questions)
        if config.reward.source == "gold" and not len(self.answer_key):
            raise UserError("reward.source = gold needs answers: questions.fields.answer names no field that holds one")
        self.parts = open_parts(config, cache=folder.parent / ".compilation_cache")
        training, held_out = self._load_questions()
        self.encoded = training
        self.texts_of = {question.id: question.text for question in training.questions}
        self.tokens_of = dict(zip(self.texts_of, training.tokens, strict=True))
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
        self.inner_steps = config.update.epochs * config.update.minibatches
        self.learning_rate = schedule(config.optimizer, steps=config.train.steps * self.inner_steps)
        self.voter = Voter(config.answer, config.vote)
        self.evaluator = None
        if held_out is not None and config.evaluate.questions is not None:
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
        if host.step < steps:
            self.say("compiling the training step (a minute or so; later runs beside this one reuse it)")
        ids, prompts = self._prompts(host.step + host.sampled)
        last = time.perf_counter()
        while host.step < steps or not host.sampled:
            learn = host.sampled
            wanted = host.step + learn < steps
            dispatched = time.perf_counter()
            state, rollouts, metrics = self._call(state, rollouts, votes, prompts, learn=learn, wanted=wanted)
            sampled_ids = ids
            if wanted:  # the device is busy: the time to prepare what comes next
                ids, prompts = self._prompts(host.step + learn + 1)
            fetched, metrics = jax.device_get((Fetched.of(rollouts), metrics))
            device_seconds = time.perf_counter() - dispatched
            line: dict[str, float] = {}
            if learn:
                line = self._learned(host, metrics)
                line |= _speed(line, device_seconds, time.perf_counter() - last, host.tokens)
            last = time.perf_counter()
            if learn or host.step == 0:
                line |= self._evaluate(host, state)
                self._write(host, line)
            ballots: list[Vote] = []
            if wanted:
                evaluated = time.perf_counter() - last
                votes, ballots = self._vote(host, sampled_ids, fetched)
                host.tokens = int(fetched.length_QN.sum())
                last += evaluated  # evaluation is no part of a step's time
            resampled = not learn and host.step > 0  # a finished run goes on: nothing new has happened yet
            host.sampled = wanted
            self._stop_if_bad(host)
            stopping = interrupts.requested and wanted
            if learn or stopping:
                self._save(host, state, rollouts, votes, line.get(METRIC), now=stopping)
            if not resampled:
                yield Report(host.step, line, ballots)
            if stopping:
                self.checkpoints.wait()
                raise Resumable(f"stopped after step {host.step} of {steps}; everything is saved in {self.folder}")
            if not wanted:
                break
        self.checkpoints.wait()

    def _load_questions(self) -> tuple[Encoded, Encoded | None]:
        """(training prompts, held-out prompts); a training question that is also held out is removed by its text."""
        held_out_at = self.config.evaluate.questions
        training = load_questions(self.config.questions)
        held_out = None
        if held_out_at is not None:
            questions = load_questions(held_out_at)
            if not self.config.evaluate.allow_overlap:
                training, removed = without_overlap(training, questions)
                if removed:
                    self.say(f"{removed} training questions are held out for evaluation, and were removed")
            held_out = self.parts.encode(questions, held_out_at.too_long)
        if not training:
            raise UserError("no training question is left: every one is also in evaluate.questions")
        encoded = self.parts.encode(training, self.config.questions.too_long)
        if encoded.dropped_ids:
            first = ", ".join(encoded.dropped_ids[:3])
            self.say(f"{len(encoded.dropped_ids)} prompts are longer than prompt.max_tokens and were dropped: {first}, ...")
        return encoded, held_out

    def _check_batches(self, available: int, evaluates: bool) -> None:
        batches = {"rollout__questions": self.config.rollout.questions // self.config.update.minibatches}
        if evaluates:
            batches["evaluate__batch"] = self.config.evaluate.batch
        check_mesh(self.parts.mesh, self.parts.architecture, **batches)
        if available < self.config.rollout.questions:
            raise UserError(f"rollout.questions = {self.config.rollout.questions}, but there are only {available} questions")

    def _start(self) -> tuple[State, Rollouts, Feedback, Host]:
        """The state to go on from: the newest checkpoint's, or the initial policy's."""
        config, parts = self.config, self.parts
        M, N, Q = config.samples_trained, config.vote.samples, config.rollout.questions
        shapes = dict(Q=Q, N=N, C=self.width, T=config.rollout.max_tokens)
        rollouts_at = rollout_shardings(parts.mesh)
        nothing = Feedback(
            reward_QN=np.zeros((Q, N), np.float32),
            weight_QN=np.zeros((Q, N), np.float32),
            kl_weight_Q=np.zeros(Q, np.float32),
            chosen_QM=np.tile(np.arange(M, dtype=np.int32), (Q, 1)),
            learn=np.asarray(False),
        )
        reference = parts.params() if config.keeps_reference else None
        steps = self.checkpoints.steps()
        if steps:
            abstract = abstract_state(config, parts.architecture), jax.eval_shape(lambda: empty_rollouts(**shapes))
            at_state = state_shardings(config, parts.architecture, parts.mesh)
            placed_state, placed_rollouts = jax.tree.map(
                lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), abstract, (at_state, rollouts_at)
            )
            saved = self.checkpoints.restore(steps[-1], placed_state, placed_rollouts, nothing)
            host = Host(**saved.host)
            self.say(f"resuming after step {host.step}")
            self._check_reference(host, reference)
            if host.questions != self._questions_fingerprint():
                raise UserError(
                    f"the training questions are not those that {self.folder} started from (their source has changed); "
                    "put the old ones back, or choose another train.folder"
                )
            self.log.cut_back(host.step)
            return replace(saved.state, reference=reference), saved.rollouts, saved.feedback, host
        self.log.cut_back(-1)
        params = parts.params()
        at = state_shardings(config, parts.architecture, parts.mesh)
        transform, dtype = make_transform(config), config.optimizer.state_dtype
        moments = jax.jit(lambda p: init_moments(transform, p, dtype=dtype), out_shardings=at.moments)(params)
        count, seed = jax.device_put((np.int32(0), np.uint32(config.train.seed)), named(parts.mesh))
        rollouts = jax.jit(lambda: empty_rollouts(**shapes), out_shardings=rollouts_at)()
        host = Host(reference=_fingerprint(reference), questions=self._questions_fingerprint())
        return State(params, moments, count, seed, reference), rollouts, nothing, host

    def _questions_fingerprint(self) -> str:
        texts = "\0".join(f"{question.id}\0{question.text}" for question in self.encoded.questions)
        return hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()

    def _check_reference(self, host: Host, reference: dict[str, jax.Array] | None) -> None:
        now = _fingerprint(reference)
        for name, value in (host.reference or {}).items():
            if now is not None and not np.isclose(now[name], value, rtol=1e-4):
                raise UserError(
                    f"the weights at model.path = {self.config.model.path} are not those this run started from ({name} "
                    "differs), so the KL reference cannot be kept; put the old ones back"
                )

    def _prompts(self, batch: int) -> tuple[list[str], Prompts]:
        """(question ids, prompts on device) of the batch-th sampling call."""
        indices = self.order.batch_at(batch)
        tokens = [self.encoded.tokens[i] for i in indices]
        prompts = self.parts.prompts(tokens, self.width, stream=TRAINING, draw=batch, sampling=self.sampling)
        return [self.encoded.questions[i].id for i in indices], prompts

    def _call(self, state: State, rollouts: Rollouts, votes: Feedback, prompts: Prompts, *, learn: bool, wanted: bool):
        at, whole = feedback_shardings(self.parts.mesh), named(self.parts.mesh)
        votes = jax.device_put(replace(votes, learn=np.asarray(learn)), at)
        return self.step(state, rollouts, votes, replace(prompts, wanted=jax.device_put(np.asarray(wanted), whole)))

    def _learned(self, host: Host, metrics: dict[str, float]) -> dict[str, float]:
        """The metrics line of the update just made; counts updates that were skipped for NaN or Inf."""
        bad = float(metrics.pop("bad_update")) > 0
        line = {"learning_rate": float(self.learning_rate((host.step - host.bad_updates) * self.inner_steps)), **host.pending}
        host.step += 1
        host.bad_updates += int(bad)
        host.bad_in_a_row = host.bad_in_a_row + 1 if bad else 0
        return line | {name: float(value) for name, value in metrics.items()} | {"bad_updates": host.bad_updates}

    def _evaluate(self, host: Host, state: State) -> dict[str, float]:
        """Held-out metrics where an evaluation is due at this step, else nothing."""
        every, step = self.config.evaluate.every, host.step
        due = step in (0, self.config.train.steps) or (every and step % every == 0)
        if self.evaluator is None or not due:
            return {}
        started = time.perf_counter()
        self.say(f"step {step}: evaluating on {len(self.evaluator.questions.tokens)} held-out questions")
        evaluation = self.evaluator.run(state.params)
        evaluation.write(self.folder / EVALUATIONS, f"step_{step:06d}")
        return evaluation.metrics() | {"heldout/seconds": time.perf_counter() - started}

    def _write(self, host: Host, line: dict[str, float]) -> None:
        every, steps = self.config.log.every, self.config.train.steps
        if line and (host.step % every == 0 or host.step == steps or METRIC in line):
            self.log.write(host.step, line)
            self.log.write_responses(host.step, host.responses)

    def _vote(self, host: Host, ids: list[str], fetched: Fetched) -> tuple[Feedback, list[Vote]]:
        """Reads the answers of the new rollouts and decides what the next update learns from them."""
        config, started = self.config, time.perf_counter()
        texts = self.parts.texts(fetched.tokens_QNT, fetched.length_QN)
        Q, N = fetched.length_QN.shape
        reading = self.voter.read(texts)
        keys = [list(reading.keys[q * N : (q + 1) * N]) for q in range(Q)]
        settings = config.vote
        votes = [
            vote(k, ties=settings.ties, denominator=settings.denominator, opaque_may_win=settings.opaque_may_win) for k in keys
        ]
        decided = feedback(
            keys,
            votes,
            source=config.reward.source,
            labels=self._gold(ids) if config.reward.source == "gold" else None,
            samples_trained=config.samples_trained,
            ids=ids,
            seed=config.train.seed,
            step=host.step,
        )
        host.pending = vote_metrics(
            keys,
            votes,
            decided.reward_QN,
            fetched.length_QN,
            ~fetched.ended_QN,
            ids,
            self.answer_key if len(self.answer_key) else None,
        )
        host.pending |= {
            "voter_kills": reading.killed,
            "prompt_padding_share": 1.0 - float(np.mean([len(self.tokens_of[i]) for i in ids])) / self.width,
            "voter_seconds": time.perf_counter() - started,
        }
        host.responses = self._logged(ids, texts, reading.answers, votes, decided, fetched)
        return decided, votes

    def _gold(self, ids: list[str]) -> list[str | None]:
        """Gold answers' keys, for the labelled baseline alone."""
        golds = [self.answer_key.gold(i) for i in ids]
        return [None if gold is None else canonical_key(gold) for gold in golds]

    def _logged(self, ids, texts, answers, votes, decided: Feedback, fetched: Fetched) -> list[dict]:
        """Rows of responses.jsonl: the first questions of the batch with every sample, its answer and its reward."""
        N = fetched.length_QN.shape[1]
        rows = []
        for q in range(min(self.config.log.responses, len(ids))):
            samples = [
                {
                    "text": texts[q * N + n],
                    "answer": answers[q * N + n],
                    "reward": float(decided.reward_QN[q, n]),
                    "tokens": int(fetched.length_QN[q, n]),
                    "truncated": not bool(fetched.ended_QN[q, n]),
                }
                for n in range(N)
            ]
            row = {"id": ids[q], "question": self.texts_of[ids[q]], "majority": votes[q].majority, "share": votes[q].share}
            rows.append(row | {"classes": [list(c) for c in votes[q].classes], "samples": samples})
        return rows

    def _save(self, host: Host, state: State, rollouts: Rollouts, votes: Feedback, score: float | None, *, now: bool) -> None:
        settings = self.config.checkpoint
        best = settings.keep_best and score is not None and (host.best is None or score > host.best)
        if best:
            host.best = score
        if now or best or host.step % settings.every == 0 or host.step == self.config.train.steps:
            self.checkpoints.save(host.step, Saved(state, rollouts, votes, asdict(host)), metric=score)

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


def _fingerprint(params: dict[str, jax.Array] | None) -> dict[str, float] | None:
    """One number per parameter, to tell whether it is still the same; None without parameters."""
    if params is None:
        return None
    sums = jax.jit(lambda p: {name: jnp.abs(x.astype(jnp.float32)).mean() for name, x in p.items()})(params)
    return {name: float(x) for name, x in jax.device_get(sums).items()}
