"""Takes a config, gives what its run is made of: the opened model, questions as tokens, answers and labels, all of it checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from jaxselftrain.answer_key import AnswerKey, load_answer_key
from jaxselftrain.assembly import Parts, open_parts
from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.label_file import teacher_keys
from jaxselftrain.labels import NEED_GOLD
from jaxselftrain.memory import device_limit, fit_memory
from jaxselftrain.probes import set_aside
from jaxselftrain.processes import least_of, same_in_all, together
from jaxselftrain.prompts import Encoded, prompt_width
from jaxselftrain.questions import Question
from jaxselftrain.run_questions import load_run_questions
from jaxselftrain.sections import Questions
from jaxselftrain.sharding import check_mesh, shards


@dataclass(frozen=True)
class Material:
    """What a run is made of, before anything is written."""

    parts: Parts  # whose config leaves nothing to `auto`
    training: Encoded
    probes: Encoded  # set aside from these
    held_out: Encoded | None
    width: int  # the one prompt length
    answer_key: AnswerKey  # of the training questions
    teacher: dict[str, str | None]  # question id -> key of a frozen teacher's label, where one is named


@dataclass(frozen=True)
class Opened:
    """What each process opens by itself."""

    parts: Parts
    training: list[Question]
    held_out: list[Question]
    answer_key: AnswerKey
    teacher: dict[str, str | None]


def open_material(config: Config, *, cache: Path, say: Callable[[str], None]) -> Material:
    """Opens and checks everything; what is cheap comes first. Raises UserError for what the user can change.

    What one of several processes cannot open ends all of them, and what the config left to `auto` is decided by the smallest
    memory of all their devices.
    """
    opened = together(lambda: _open(config, cache=cache, say=say))
    parts = opened.parts
    _check_questions_are_the_same(opened)
    probes, training = set_aside(_encode(parts, opened.training, config.questions, say), config.probe.questions)
    asked = _encode(parts, opened.held_out, config.evaluate.questions, say) if config.evaluate.questions else None
    width = prompt_width(max(encoded.longest for encoded in (probes, training, *([asked] if asked else []))))
    parts.check_context(width)
    _check_batches(parts, len(training.questions), evaluates=asked is not None)
    if not config.is_decided:
        say("compiling the training step to see what fits the memory (a minute or so for each choice)")
        parts = fit_memory(parts, width, limit=least_of(device_limit()), say=say)
    _tell_of_idle_devices(parts, say)
    return Material(parts, training, probes, asked, width, opened.answer_key, opened.teacher)


def _open(config: Config, *, cache: Path, say: Callable[[str], None]) -> Opened:
    answer_key = load_answer_key(config.questions)
    if config.label.source in NEED_GOLD and not len(answer_key):
        raise UserError(
            f"label.source = {config.label.source} needs answers: questions.fields.answer names no field that holds one"
        )
    # before the model, because a mistake in a file is found sooner than a model is read
    training, held_out = load_run_questions(config, say=say)
    labels = config.label.file or config.alarm.labels
    teacher = {} if labels is None else teacher_keys(Path(labels), [question.id for question in training])
    return Opened(open_parts(config, cache=cache), training, held_out, answer_key, teacher)


def _check_questions_are_the_same(opened: Opened) -> None:
    """Raises UserError where processes have read different questions, or a teacher's labels, from what their config names."""
    questions = (*opened.training, *opened.held_out)
    if not same_in_all(lambda: json.dumps([[(q.id, q.text, q.messages) for q in questions], opened.teacher])):
        raise UserError(
            "the processes of this run have read different questions or labels: the files that the config names differ between "
            "their machines; copy them again"
        )


def _encode(parts: Parts, questions: list[Question], source: Questions, say: Callable[[str], None]) -> Encoded:
    encoded = parts.encode(questions, source.too_long)
    if encoded.dropped_ids:
        say(encoded.dropped())
    return encoded


def _check_batches(parts: Parts, available: int, *, evaluates: bool) -> None:
    """Raises UserError where the devices cannot share a batch evenly, or there are fewer questions than one takes."""
    config = parts.config
    minibatches = config.update.minibatches
    name = "rollout.questions" if minibatches == 1 else "rollout.questions / update.minibatches"
    check_mesh(
        parts.mesh,
        parts.architecture,
        questions={name: config.rollout.questions // minibatches},
        rows={"evaluate.batch": config.evaluate.batch} if evaluates else {},
    )
    if available < config.rollout.questions:
        raise UserError(f"rollout.questions = {config.rollout.questions}, but there are only {available} questions")


def _tell_of_idle_devices(parts: Parts, say: Callable[[str], None]) -> None:
    config, devices = parts.config, shards(parts.mesh, "questions")
    fit = config.rollout.questions // config.update.minibatches // devices
    if devices > 1 and config.micro_batches > fit:
        say(
            f"update.micro_batches = {config.micro_batches} leaves devices idle in the update: "
            f"up to {fit}, each part holds a question for every one of the {devices}"
        )
