"""Takes weights and questions, gives a file of labels: each question's vote, by id, made once and read by later runs.

A line is one question; it is there or it is not, so a labelling that was killed goes on where it stood.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from tqdm.auto import tqdm

from jaxselftrain.answer_key import AnswerKey, load_answer_key
from jaxselftrain.asking import Asker
from jaxselftrain.assembly import LABELS, Parts, open_parts
from jaxselftrain.checkpoints import checkpoint_params
from jaxselftrain.config import Config, changed_fields, load_config, override_config, parse_config, to_yaml
from jaxselftrain.errors import Resumable, UserError
from jaxselftrain.evaluate_command import BOXED
from jaxselftrain.prompts import Encoded, prompt_width
from jaxselftrain.questions import load_questions
from jaxselftrain.resources import told_of_limits
from jaxselftrain.run_folder import CONFIG, read_config, replace_text
from jaxselftrain.sections import Mesh
from jaxselftrain.sharding import check_mesh
from jaxselftrain.sources import read_jsonl
from jaxselftrain.voter import Voter
from jaxselftrain.votes import vote

NEEDED = ("id", "key", "share")  # what a line cannot be read without
SHARES = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.01))  # rows of the summary


def run_label(
    *, target: str, questions: Path, out: Path, samples: int | None, overrides: tuple[str, ...], config_path: Path | None
) -> None:
    """`jaxselftrain label`: a run's newest checkpoint or any model votes on questions; a progress bar, the file, a summary.

    Beside the file OUT lies OUT.config.yaml, by which a second start knows whether it goes on with the same work.
    """
    run = Path(target) if (Path(target) / CONFIG).is_file() else None
    config = _label_config(target, run, questions, samples, overrides, config_path)
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"{out} cannot be written: name a file in a folder that exists")
    with _alone(out):
        try:
            _label(target, run, config, out)
        except KeyboardInterrupt:
            raise Resumable(f"stopped; the labels so far are in {out}, and the same command goes on") from None


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    lock = FileLock(out.with_name(f"{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is writing {out}; stop it or name another file") from None
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


def _label(target: str, run: Path | None, config: Config, out: Path) -> None:
    settings = out.with_name(f"{out.name}.config.yaml")
    if out.exists() and not settings.is_file():
        raise UserError(f"{out} is there already and was not made by jaxselftrain label; name another file")
    if out.exists():
        _same_work(load_config(settings), config, out)
    asked, answer_key = load_questions(config.questions), load_answer_key(config.questions)
    parts = open_parts(config, cache=None)
    encoded = parts.encode(asked, config.questions.too_long)
    if encoded.dropped_ids:
        print(encoded.dropped(), file=sys.stderr)
    width = prompt_width(encoded.longest)
    parts.check_context(width)
    check_mesh(parts.mesh, parts.architecture, rows={"evaluate.batch": config.evaluate.batch})
    replace_text(settings, to_yaml(config))
    params = parts.params() if run is None else checkpoint_params(parts, run, step=None)[0]
    total = len(encoded.questions)
    limits = told_of_limits(out.absolute().parent, settings=f"lower evaluate.batch (now {config.evaluate.batch}) or vote.samples")
    with Voter(config.answer, config.vote) as voter, limits:
        with tqdm(total=total, desc="labelling", unit="question", dynamic_ncols=True) as bar:
            rows = write_labels(parts, params, encoded, answer_key, voter, width, out, tick=lambda done: bar.update(done - bar.n))
    Console().print(summary(rows, title=f"{target}: {total} questions, {config.vote.samples} votes each"))
    print(f"labels: {out}")


def summary(rows: list[dict[str, Any]], *, title: str) -> Table:
    """How many questions have a label, how far the votes agree, and how often they are right where gold answers are known."""
    table = Table("majority share", "questions", "right labels", title=title)
    for low, high in SHARES:
        inside = [row for row in rows if low <= row["share"] < high]
        known = [row for row in inside if "pass_rate" in row]
        right = f"{sum(row['is_right'] for row in known) / len(known):.0%}" if known else "-"
        table.add_row(f"{low:.1f} to {min(high, 1.0):.1f}", str(len(inside)), right)
    table.caption = f"{sum(row['key'] is None for row in rows)} without a label"
    return table


def _label_config(target, run, questions, samples, overrides, config_path) -> Config:
    """The settings of a labelling: those of the config given, or the run's own, or a chat with an answer in a box."""
    given = load_config(questions) if questions.suffix in (".yaml", ".yml") else None
    if given is None and questions.suffix not in (".jsonl", ".parquet"):
        raise UserError(f"{questions}: name a file of questions (.jsonl, .parquet), or a config (.yaml) with its questions")
    if given is not None and config_path is not None:
        raise UserError(f"{questions} is a config already; leave --config out, or name a file of questions")
    if given is None:
        base = load_config(config_path) if config_path is not None else None if run is None else read_config(run)
        file = {"source": questions.suffix[1:], "path": str(questions)}
        if base is None:
            given = parse_config({"questions": file, "prompt": {"format": "chat", "instruction": BOXED}})
        else:
            fields = base.questions.fields.model_dump()
            given = parse_config(base.model_dump() | {"questions": file | {"fields": fields}}, str(config_path or run))
    values = given.model_dump()
    if run is not None:
        values |= {"model": read_config(run).model.model_dump(), "mesh": Mesh().model_dump()}
    else:
        values["model"]["path"] = target
    if samples is not None:
        values["vote"]["samples"] = samples
        values["update"]["samples"] = values["rollout"]["rows"] = None
    return override_config(parse_config(values, "label"), overrides)


def _same_work(old: Config, new: Config, out: Path) -> None:
    """Raises UserError when labels of `out` were made in another way."""
    fixed, free = changed_fields(old, new)
    changed = fixed + [field for field in free if field.startswith("evaluate.batch:")]  # a label depends on its batch
    if changed:
        raise UserError(f"{out} was begun with other settings: {'; '.join(changed)}. Set them back, or name another file")


def write_labels(
    parts: Parts,
    params: dict[str, jax.Array],
    questions: Encoded,
    answer_key: AnswerKey,
    voter: Voter,
    width: int,
    out: Path,
    *,
    tick: Callable[[int], object] = lambda done: None,
) -> list[dict[str, Any]]:
    """Samples `vote.samples` answers to each question and appends its vote to `out`; gives all lines, old ones included.

    Raises UserError when `out` holds lines that are no labels of these questions in their order.
    """
    config = parts.config
    settings = config.rollout
    asker = Asker(
        parts,
        width,
        temperatures=[settings.temperature] * config.vote.samples,
        top_p=settings.top_p,
        top_k=settings.top_k,
        stream=LABELS,
    )
    rows = finished(out, [question.id for question in questions.questions], batch=asker.batch)
    replace_text(out, "".join(_line(row) for row in rows))  # without what a kill tore
    tick(len(rows))
    with out.open("a", encoding="utf-8") as file:
        for responses in asker.ask(params, questions.tokens, first=len(rows)):
            asked = questions.questions[len(rows) : len(rows) + len(responses.ended_QN)]
            reading, N = voter.read(responses.texts), config.vote.samples
            for q, question in enumerate(asked):
                keys, answers = reading.keys[q * N : (q + 1) * N], reading.answers[q * N : (q + 1) * N]
                row = label_row(question.id, question.text, keys, answers, responses.ended_QN[q], parts=parts)
                right = [answer_key.is_right(question.id, key) for key in keys]
                if None not in right:
                    row["pass_rate"] = sum(map(bool, right)) / N
                    row["is_right"] = bool(answer_key.is_right(question.id, row["key"]))
                rows.append(row)
                file.write(_line(row))
            file.flush()
            os.fsync(file.fileno())
            tick(len(rows))
    return rows


def label_row(id: str, text: str, keys, answers, ended_N, *, parts: Parts) -> dict[str, Any]:
    """One question's line: its label, the share of votes for it, and how all answers are distributed."""
    settings = parts.config.vote
    counted = vote(keys, ties=settings.ties, denominator=settings.denominator, opaque_may_win=settings.opaque_may_win)
    first: dict[str, str] = {}
    for key, answer in zip(keys, answers, strict=True):
        if key is not None:
            first.setdefault(key, answer)
    return {
        "id": id,
        "question": text,
        "label": None if counted.majority is None else first[counted.majority],
        "key": counted.majority,
        "share": counted.share,
        "classes": [{"key": key, "answer": first[key], "count": count} for key, count in counted.classes],
        "answers": answers,
        "truncated": int((~ended_N).sum()),
    }


def finished(out: Path, ids: list[str], *, batch: int) -> list[dict[str, Any]]:
    """The lines of whole batches that an earlier labelling left in `out`."""
    if not out.exists():
        return []
    rows = []
    whole, _, _ = out.read_text(encoding="utf-8").rpartition("\n")  # the rest was torn by a kill
    for text in whole.split("\n") if whole else []:  # splitlines would also break at U+2028, which a question may hold
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if row is None:
            break
        rows.append(row)
    if [row["id"] if isinstance(row, dict) and {*NEEDED} <= row.keys() else None for row in rows] != ids[: len(rows)]:
        raise UserError(f"{out} holds something else than labels of these questions in their order; name another file")
    return rows if len(rows) == len(ids) else rows[: len(rows) // batch * batch]


def read_labels(file: Path) -> dict[str, dict[str, Any]]:
    """Question id -> its line. Raises UserError with file and line."""
    found: dict[str, dict[str, Any]] = {}
    for where, row in read_jsonl(file):
        missing = next((name for name in NEEDED if name not in row), None)
        if missing is not None:
            raise UserError(f"{where}: there is no field {missing}; make the file with jaxselftrain label")
        if not (row["key"] is None or isinstance(row["key"], str)) or not isinstance(row["share"], int | float):
            raise UserError(f"{where}: key must be a string or null, and share a number; make the file with jaxselftrain label")
        found[str(row["id"])] = row
    return found


def easiest(file: Path, ids: Sequence[str], *, part: float, by: str) -> list[int]:
    """The indices of the part of the questions (rounded up) whose `by` is highest, in their order; of equal ones the first.

    Raises UserError for a question that has no label in the file, or no such field.
    """
    labels = read_labels(file)
    _all_there(labels, ids, file)
    lacking = next((id for id in ids if not isinstance(labels[id].get(by), int | float)), None)
    if lacking is not None:
        raise UserError(f"{file}: question {lacking} has no {by}; label questions with gold answers, or set easiest_by=share")
    most = math.ceil(part * len(ids) - 1e-9)
    return sorted(sorted(range(len(ids)), key=lambda i: -labels[ids[i]][by])[:most])


def teacher_keys(file: Path, ids: Sequence[str]) -> dict[str, str | None]:
    """Question id -> key of the teacher's label. Raises UserError for a question that has none in the file."""
    labels = read_labels(file)
    _all_there(labels, ids, file)
    return {id: labels[id]["key"] for id in ids}


def _all_there(labels: dict[str, dict[str, Any]], ids: Sequence[str], file: Path) -> None:
    missing = [id for id in ids if id not in labels]
    if missing:
        raise UserError(
            f"{file} has no label for {len(missing)} of {len(ids)} questions (first: {missing[0]}); label them with "
            "jaxselftrain label"
        )


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
