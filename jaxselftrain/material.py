"""Takes a config, gives what its run is made of: the opened model, questions as tokens, answers and labels, all of it checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from jaxselftrain.answer_key import AnswerKey, load_answer_key
from jaxselftrain.assembly import Parts, open_parts
from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.label_file import teacher_keys
from jaxselftrain.labels import NEED_GOLD
from jaxselftrain.memory import device_limit, fit_memory
from jaxselftrain.probes import set_aside
from jaxselftrain.processes import least_of
from jaxselftrain.prompts import Encoded, prompt_width
from jaxselftrain.questions import Question
from jaxselftrain.run_questions import load_run_questions
from jaxselftrain.sections import Questions
from jaxselftrain.sharding import check_mesh, shards


@dataclass(frozen=True)
class Material:
    """What a run is made of, before anything is written."""

    parts: Parts  # whose config leaves nothing to `auto` once it is `fitted`
    training: Encoded
    probes: Encoded  # set aside from these
    held_out: Encoded | None
    width: int  # the one prompt length
    answer_key: AnswerKey  # of the training questions
    teacher: dict[str, str | None]  # question id -> key of a frozen teacher's label, where one is named


def open_material(config: Config, *, cache: Path, say: Callable[[str], None]) -> Material:
    """Opens and checks everything; what is cheap comes first. Raises UserError for what the user can change.

    No process waits for another in here, since each may fail by itself: see `fitted` for what they decide together.
    """
    answer_key = load_answer_key(config.questions)
    if config.label.source in NEED_GOLD and not len(answer_key):
        raise UserError(
            f"label.source = {config.label.source} needs answers: questions.fields.answer names no field that holds one"
        )
    # before the model, because a mistake in a file is found sooner than a model is read
    training, held_out = load_run_questions(config, say=say)
    labels = config.label.file or config.alarm.labels
    teacher = {} if labels is None else teacher_keys(Path(labels), [question.id for question in training])
    parts = open_parts(config, cache=cache)
    probes, encoded = set_aside(_encode(parts, training, config.questions, say), config.probe.questions)
    asked = _encode(parts, held_out, config.evaluate.questions, say) if config.evaluate.questions else None
    width = prompt_width(probes.tokens + encoded.tokens + (asked.tokens if asked else []))
    parts.check_context(width)
    _check_batches(parts, len(encoded.questions), evaluates=asked is not None)
    return Material(parts, encoded, probes, asked, width, answer_key, teacher)


def fitted(material: Material, *, say: Callable[[str], None]) -> Material:
    """The material with what the config left to `auto` decided, by the memory of the smallest device of all processes."""
    parts = material.parts
    if not parts.config.is_decided:
        say("compiling the training step to see what fits the memory (a minute or so for each choice)")
        parts = fit_memory(parts, material.width, limit=least_of(device_limit()), say=say)
    _tell_of_idle_devices(parts, say)
    return replace(material, parts=parts)


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
