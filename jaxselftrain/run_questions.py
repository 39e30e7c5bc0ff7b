"""Takes a config, gives the questions of its run: those to train on, without held-out and harder ones, and those held out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.label_file import easiest
from jaxselftrain.questions import Question, load_questions, without_overlap


def load_run_questions(config: Config, *, say: Callable[[str], None]) -> tuple[list[Question], list[Question]]:
    """(training questions, held-out questions); a training question that is also held out is removed by its text."""
    settings, held_out_at = config.questions, config.evaluate.questions
    training = load_questions(settings)
    held_out = load_questions(held_out_at) if held_out_at else []
    if not config.evaluate.allow_overlap:
        training, removed = without_overlap(training, held_out)
        if removed:
            say(f"{removed} training questions are held out for evaluation, and were removed")
    if settings.labels is not None:
        ids = [question.id for question in training]
        kept = easiest(Path(settings.labels), ids, part=settings.easiest, by=settings.easiest_by)
        say(f"the easiest {len(kept)} of {len(training)} training questions are kept, by {settings.easiest_by}")
        training = [training[i] for i in kept]
    if not training:
        raise UserError("no training question is left: every one is also in evaluate.questions")
    return training, held_out
