"""Takes a JSONL file of completions from any source, gives the vote on each question: a table and, where wanted, JSONL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm.auto import tqdm

from jaxselftrain.config import Config, parse_config
from jaxselftrain.config_file import apply_override
from jaxselftrain.errors import UserError
from jaxselftrain.rewards import agreement
from jaxselftrain.run_folder import replace_text
from jaxselftrain.sections import Answer
from jaxselftrain.sections import Vote as VoteSettings
from jaxselftrain.sources import as_text, read_jsonl
from jaxselftrain.voter import Voter
from jaxselftrain.votes import Vote, vote

TABLE_ROWS = 40  # questions shown; the output file holds all
SHOWN_CHARACTERS = 60  # of an answer in the table
SETTINGS = (
    *(f"answer.{name}" for name in Answer.model_fields),
    *(f"vote.{name}" for name in VoteSettings.model_fields if name != "samples"),  # the file says how many there are
)


class Completions(NamedTuple):
    """One line of the file."""

    id: str | int
    texts: list[str]


class Ballot(NamedTuple):
    """The vote on one question."""

    id: str | int
    vote: Vote
    answers: dict[str, str]  # key -> the first answer that has it, as it stands in its completion
    keys: list[str | None]  # of each completion
    killed: int  # completions given up because reading them took too long or broke the worker


def run_vote(*, file: Path, format: str | None, pattern: str | None, overrides: tuple[str, ...], output: Path | None) -> None:
    """`jaxselftrain vote`: prints a table, writes a line of JSON per question to `output`.

    Raises UserError for settings as everywhere, and for a line that is no question with completions, by file and line.
    """
    config = _settings(file, format, pattern, overrides)
    if file.is_dir():
        raise UserError(f"{file} is a folder; name a JSONL file whose lines hold id and completions")
    if not file.exists():
        raise UserError(f"{file} does not exist; name a JSONL file whose lines hold id and completions")
    if output is not None and not output.absolute().parent.is_dir():
        raise UserError(f"--output {output}: the folder {output.parent} does not exist")
    if output is not None and (output.is_dir() or (output.exists() and not output.is_file())):
        raise UserError(f"--output {output} is no ordinary file; name one to write")
    if output is not None and output.exists() and output.samefile(file):
        raise UserError(f"--output {output} is the file of completions itself; name another one")
    ballots = list(count_votes(read_completions(file), config))
    if output is not None:  # before anything is printed: what reads the table may be gone
        try:
            replace_text(output, "".join(json.dumps(_row(ballot)) + "\n" for ballot in ballots))
        except OSError as error:
            raise UserError(f"--output {output} cannot be written: {error.strerror}") from None
    Console().print(_table(ballots, title=file.name))
    given_up = sum(ballot.killed for ballot in ballots)
    if given_up:
        print(
            f"completions given up: {given_up} (reading one took over vote.seconds = {config.vote.seconds:g} or broke the worker)"
        )
    if output is not None:
        print(f"votes: {output}")


def read_completions(file: Path) -> list[Completions]:
    """The questions of a JSONL file in order. Raises UserError with file and line."""
    questions: list[Completions] = []
    lines: dict[str, str] = {}
    for where, values in read_jsonl(file):
        for name in ("id", "completions"):
            if name not in values:
                raise UserError(f"{where}: there is no field {name}; a line holds id and completions, a list of strings")
        texts = values["completions"]
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{where}: field completions must be a list of strings")
        if not isinstance(values["id"], str | int) or isinstance(values["id"], bool):
            raise UserError(f"{where}: field id must be a string or an integer, not {type(values['id']).__name__}")
        id = as_text(values["id"], where, "id")
        if id in lines:
            raise UserError(f"{where}: id {id[:80]!r} is also that of {lines[id]}; give each question one line")
        lines[id] = where
        questions.append(Completions(values["id"] if isinstance(values["id"], int) else id, texts))
    return questions


def count_votes(questions: list[Completions], config: Config) -> Iterator[Ballot]:
    """The vote on each question, in order, with `config.answer` and `config.vote`."""
    settings = config.vote
    with Voter(config.answer, settings) as voter:
        for id, texts in tqdm(questions, desc="voting", unit="question", dynamic_ncols=True, disable=None, leave=False):
            reading = voter.read(texts)
            answers: dict[str, str] = {}
            for key, answer in zip(reading.keys, reading.answers, strict=True):
                if key is not None and answer is not None:
                    answers.setdefault(key, answer)
            counted = vote(
                reading.keys,
                ties=settings.ties,
                denominator=settings.denominator,
                opaque_may_win=settings.opaque_may_win,
            )
            yield Ballot(id, counted, answers, reading.keys, reading.killed)


def _settings(file: Path, format: str | None, pattern: str | None, overrides: tuple[str, ...]) -> Config:
    """The config of the command line. Raises UserError for a setting unknown, idle here or given in two ways."""
    given: dict[str, Any] = {}
    values: dict[str, Any] = {"questions": {"source": "jsonl", "path": str(file)}}  # no config is without; read here is the file
    for override in overrides:
        apply_override(given, override)
        apply_override(values, override)
    options = {"format": format or (None if pattern is None else "regex"), "pattern": pattern}
    answer = {name: value for name, value in options.items() if value is not None}
    if isinstance(given.get("answer", {}), dict):
        values["answer"] = answer | given.get("answer", {})
    config = parse_config(values, "the command line")
    for name in _leaves(given):
        if name not in SETTINGS:
            raise UserError(f"{name} changes nothing here; the settings that do are {', '.join(SETTINGS)}")
    for name, option in (("format", format), ("pattern", pattern)):
        if option is not None and name in given.get("answer", {}):
            raise UserError(f"--{name} and answer.{name} are the same setting; give one of them")
    return config


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted names of the settings in nested dicts."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def _row(ballot: Ballot) -> dict[str, Any]:
    """One line of the output: all that another trainer needs, the reward of each completion included."""
    counted = ballot.vote
    return {
        "id": ballot.id,
        "majority": None if counted.majority is None else ballot.answers[counted.majority],
        "key": counted.majority,
        "share": counted.share,
        "valid": counted.valid,
        "opaque": counted.opaque,
        "samples": counted.samples,
        "killed": ballot.killed,
        "classes": [{"key": key, "answer": ballot.answers[key], "count": count} for key, count in counted.classes],
        "keys": ballot.keys,
        "rewards": agreement(ballot.keys, counted.majority),
    }


def _table(ballots: list[Ballot], *, title: str) -> Table:
    more = len(ballots) - TABLE_ROWS
    table = Table(title=Text(printable(title)), caption=f"and {more} more questions" if more > 0 else None)
    for name in ("question", "majority", "share", "votes", "answers", "no answer", "opaque"):
        table.add_column(name, justify="left" if name in ("question", "majority") else "right", overflow="fold")
    for ballot in ballots[:TABLE_ROWS]:
        counted = ballot.vote
        winner = counted.majority
        table.add_row(
            Text(printable(str(ballot.id))),
            Text("-" if winner is None else printable(ballot.answers[winner])),
            f"{counted.share:.2f}",
            str(0 if winner is None else dict(counted.classes)[winner]),
            str(len(counted.classes)),
            str(counted.samples - counted.valid),
            str(counted.opaque),
        )
    return table


def printable(text: str) -> str:
    """Untrusted text on one line for a terminal: what is not printable is written as its escape, long text is cut."""
    cut = text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in cut)
