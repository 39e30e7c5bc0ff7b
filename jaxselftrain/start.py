"""Takes a run's config, parts and checkpoints, gives what its loop goes on from: the newest checkpoint, or the beginning."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxselftrain.assembly import Parts
from jaxselftrain.checkpoints import Checkpoints
from jaxselftrain.digests import bits
from jaxselftrain.errors import UserError
from jaxselftrain.optimizer import init_moments
from jaxselftrain.processes import put
from jaxselftrain.questions import Question
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Rollouts, empty_rollouts
from jaxselftrain.sharding import named
from jaxselftrain.step import abstract_state, make_transform, new_teacher, rollout_shardings, state_shardings
from jaxselftrain.update import State


@dataclass
class Host:
    """The loop's own memory between steps; a checkpoint keeps all of it."""

    step: int = 0  # updates done
    sampled: bool = False  # whether rollouts and feedback await an update
    draws: int = 0  # sampling calls so far
    asked: int = 0  # questions that these have taken from the stream
    pending: dict[str, float] = field(default_factory=dict)  # the metrics of their vote
    responses: list[dict] = field(default_factory=list)  # the samples of theirs that are logged
    bad_updates: int = 0
    bad_in_a_row: int = 0
    probes: list[int] | None = None  # the initial policy's majority answers to the probe questions, as fingerprints
    best: float | None = None  # highest held-out avg@k so far
    best_step: int = 0
    since_best: int = 0  # evaluations after that
    reference: dict[str, int] | None = None  # fingerprint of the frozen initial policy
    tokens: int = 0  # response tokens in the rollouts that await their update
    questions: str = ""  # fingerprint of the training questions and their order
    rate: float = 1.0  # the learning rate is multiplied by this; rollbacks lower it
    rollbacks: int = 0
    label_source: str | None = None  # in the place of label.source, since the alarm or a program changed it
    watch: dict[str, Any] = field(default_factory=dict)  # alarm.Watch
    alarms: list[dict[str, Any]] = field(default_factory=list)  # the lines of alarms.jsonl
    is_healthy: bool = True  # no signal past its threshold at this step
    calm: float | None = None  # how healthy this step is beside others, see guard.calm
    healthy_step: int | None = None  # the healthiest checkpoint
    healthy_calm: float | None = None
    is_stopped: bool = False  # by the alarm
    seconds: float = 0.0  # wall time of all the processes that worked on this run

    def note_score(self, score: float | None) -> bool:
        """Takes down an evaluation's score; whether it is the best so far."""
        if score is None:
            return False
        if self.best is None or score > self.best:
            self.best, self.best_step, self.since_best = score, self.step, 0
            return True
        self.since_best += 1
        return False

    def note_health(self) -> bool:
        """Takes down that this step has a checkpoint; whether it is a healthy one, to go back to if none is healthier."""
        if not self.is_healthy or self.step == 0 or self.calm is None:
            return False
        if self.healthy_calm is None or self.calm > self.healthy_calm:
            self.healthy_step, self.healthy_calm = self.step, self.calm
        return True

    def note_call(self, questions: int) -> None:
        """One more sampling call, with so many of the stream's questions."""
        self.draws += 1
        self.asked += questions


def begin(
    parts: Parts,
    checkpoints: Checkpoints,
    questions: Sequence[Question],
    teacher: Mapping[str, str | None],
    *,
    width: int,
    say: Callable[[str], None],
    last: int | None = None,
) -> tuple[State, Rollouts, Feedback, Host]:
    """The newest checkpoint's state, rollouts, feedback and counters; without one, the initial policy's and empty ones.

    Checkpoints after step `last`, where it is given, are passed over; one that is damaged is told, and the one before is taken.
    Raises UserError when none is whole, and when the questions, a teacher's labels of them (by id) or the reference weights are
    no longer those that the run started from.
    """
    config = parts.config
    M, N, Q = config.samples_trained, config.vote.samples, config.rollout.questions
    confidence = config.measures_confidence

    def empty() -> Rollouts:
        return empty_rollouts(Q=Q, N=N, C=width, T=config.rollout.max_tokens, confidence=confidence, taught=config.keeps_teacher)

    rollouts_at = rollout_shardings(parts.mesh, confidence=confidence, taught=config.keeps_teacher)
    nothing = Feedback(
        reward_QN=np.zeros((Q, N), np.float32),
        weight_QN=np.zeros((Q, N), np.float32),
        kl_weight_Q=np.zeros(Q, np.float32),
        chosen_QM=np.tile(np.arange(M, dtype=np.int32), (Q, 1)),
        learn=np.asarray(False),
    )
    reference = parts.params() if config.keeps_reference else None
    abstract = abstract_state(config, parts.architecture), jax.eval_shape(empty)
    at = state_shardings(config, parts.architecture, parts.mesh), rollouts_at
    state, rollouts = jax.tree.map(lambda x, to: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=to), abstract, at)
    saved = checkpoints.restore_newest(state, rollouts, nothing, say=say, last=last)
    if saved is None:
        rollouts = jax.jit(empty, out_shardings=rollouts_at)()
        host = Host(reference=_sums(reference), questions=_fingerprint(questions, teacher))
        return _initial_state(parts, reference), rollouts, nothing, host
    host = Host(**saved.host)
    say(f"resuming after step {host.step}")
    _check_reference(host, reference, config.model.path)
    if host.questions != _fingerprint(questions, teacher):
        raise UserError(
            f"the training questions, or their labels in label.file, are not those that {checkpoints.folder.parent} started from "
            "(a file has changed); put the old ones back, or choose another train.folder"
        )
    return replace(saved.state, reference=reference), saved.rollouts, saved.feedback, host


def _initial_state(parts: Parts, reference: dict[str, jax.Array] | None) -> State:
    config = parts.config
    params = parts.params()
    at = state_shardings(config, parts.architecture, parts.mesh)
    transform, dtype = make_transform(config), config.optimizer.state_dtype
    moments = jax.jit(lambda p: init_moments(transform, p, dtype=dtype), out_shardings=at.moments)(params)
    count, seed = put((np.int32(0), np.uint32(config.train.seed)), (named(parts.mesh),) * 2)
    teacher = jax.jit(new_teacher, out_shardings=at.teacher)(params) if config.keeps_teacher else None
    return State(params, moments, count, seed, reference, teacher)


def _fingerprint(questions: Sequence[Question], teacher: Mapping[str, str | None]) -> str:
    texts = "\0".join(f"{question.id}\0{question.text}" for question in questions)
    if teacher:
        texts += "\0".join(str(teacher[question.id]) for question in questions)
    return hashlib.blake2b(texts.encode(), digest_size=8).hexdigest()


def _check_reference(host: Host, reference: dict[str, jax.Array] | None, path: str) -> None:
    now = _sums(reference)
    for name, value in (host.reference or {}).items():
        if now is not None and now[name] != value:
            raise UserError(
                f"the weights at model.path = {path} are not those this run started from ({name} differs), so the KL "
                "reference cannot be kept; put the old ones back"
            )


def _sums(params: dict[str, jax.Array] | None) -> dict[str, int] | None:
    """The sum of each parameter's bits, modulo 2^32: exact, and the same on every mesh. None without parameters."""
    if params is None:
        return None

    sums = jax.jit(lambda p: {name: bits(x).sum(dtype=jnp.uint32) for name, x in p.items()})(params)
    return {name: int(x) for name, x in jax.device_get(sums).items()}
