"""Takes the questions section of the config, gives rows: JSONL, Parquet, TensorFlow Datasets, reasoning-gym."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import itertools
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxselftrain.errors import UserError
from jaxselftrain.sections import Questions, Task

_BLOCK = 500  # reasoning-gym examples drawn at a time: the size its tasks have by default


class Row(NamedTuple):
    """One record of a source; `where` names it for a person, as in `train.jsonl:12`."""

    where: str
    values: dict[str, Any]


def read_rows(config: Questions) -> Iterator[Row]:
    """The rows of `config`'s source in their own order, at most `count` of them. Equal configs give equal rows.

    Raises UserError naming the file and line, the dataset or the task, and what to change.
    """
    if config.source == "reasoning_gym":
        return _generated(config)
    read = {"jsonl": _jsonl, "parquet": _parquet, "tfds": _tfds}[config.source]
    return itertools.islice(_some(read(config), f"questions.path = {config.path}"), config.count)


def read_jsonl(path: Path) -> Iterator[Row]:
    """The rows of a JSONL file that no setting names; at least one. Raises UserError naming the file, and the line."""
    return _some(_json_lines(path, str(path)), str(path))


def value_at(values: dict[str, Any], name: str, absent: Any = None) -> Any:
    """The value of the field `name`, or `absent`; dots reach into records, unless a field is so named itself."""
    if name in values:
        return values[name]
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return absent
        values = values[part]
    return values


def is_missing(value: Any) -> bool:
    """Whether a field holds nothing: null, or the NaN that table programs write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: Any, where: str, name: str) -> str:
    """A field's string or number as text. Raises UserError for anything else, and for text that is not Unicode."""
    if hasattr(value, "dtype") and getattr(value, "ndim", None) == 0:  # NumPy scalars of tfds
        value = value.item()
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        if isinstance(value, str):
            value.encode("utf-8")  # JSON can spell half of a surrogate pair, which no tokenizer takes
            return value
    except UnicodeError:
        raise UserError(f"{where}: field {name} is not valid Unicode text") from None
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise UserError(f"{where}: field {name} must be text or a number, not {type(value).__name__}")


def _some(rows: Iterator[Row], named: str) -> Iterator[Row]:
    first = next(rows, None)
    if first is None:
        raise UserError(f"{named}: there is not one row in it")
    yield first
    yield from rows


def _file(config: Questions) -> Path:
    path = Path(str(config.path)).expanduser()
    if not path.exists():
        raise UserError(f"questions.path = {config.path}: the file does not exist")
    if path.is_dir():
        raise UserError(f"questions.path = {config.path} is a folder; source {config.source} reads one file")
    return path


# JSONL and Parquet


def _jsonl(config: Questions) -> Iterator[Row]:
    return _json_lines(_file(config), f"questions.path = {config.path}")


def _json_lines(path: Path, named: str) -> Iterator[Row]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # a byte-order mark
                if line.strip():
                    yield Row(f"{path}:{number}", _json_object(line, f"{path}:{number}"))
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror or error}") from None


def _json_object(line: bytes, where: str) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            raise UserError(f"{where}: key {twice[:80]!r} stands twice in one object; only the last would count")
        return values

    try:
        text = line.decode("utf-8").rstrip("\r\n")  # else an error at its end is in column 1
        values = json.loads(text, object_pairs_hook=once)
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: byte {error.start + 1} of the line is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: malformed JSON at column {error.colno}: {error.msg}") from None
    except ValueError:
        most = sys.get_int_max_str_digits()
        raise UserError(f"{where}: malformed JSON: an integer of more than {most} digits; write it as a string") from None
    except RecursionError:
        raise UserError(f"{where}: malformed JSON: brackets are nested too deep") from None
    if not isinstance(values, dict):
        raise UserError(f"{where}: each line must be one JSON object, not {type(values).__name__}")
    return values


def _parquet(config: Questions) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("questions.source = parquet needs the package pyarrow; install it with `pip install pyarrow`") from None
    path, number = _file(config), 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(f"{path} row {number}", values)
    except UnicodeDecodeError:
        raise UserError(f"{path}: a text after row {number} is not UTF-8") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"questions.path = {config.path} cannot be read as Parquet: {' '.join(str(error).split())}") from None


# TensorFlow Datasets, through its ArrayRecord data source, which needs no TensorFlow


def _tfds(config: Questions) -> Iterator[Row]:
    try:
        import array_record  # noqa: F401  (tfds imports it when the first row is read, with a message of its own)
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            f"questions.source = tfds needs packages; install them with "
            f"`pip install tensorflow-datasets array_record importlib_resources` ({error})"
        ) from None
    builder = _tfds_builder(config, tfds)
    where = f"questions.path = {config.path}"
    if not builder.is_prepared():
        raise UserError(
            f"{where}: the dataset is not prepared here; prepare it once with: {_how_to_prepare(builder, config, tfds)}"
        )
    try:
        source = builder.as_data_source(split=config.split)
    except (KeyError, ValueError, AssertionError):
        raise UserError(
            f"questions.split = {config.split}: {config.path} has the splits {', '.join(builder.info.splits)}"
        ) from None
    except NotImplementedError:
        raise UserError(
            f"{where} is prepared as {builder.info.file_format.value}, which has no random access; "
            f"prepare it again with: {_how_to_prepare(builder, config, tfds)}"
        ) from None
    return (Row(f"{config.path}[{config.split}] example {index}", source[index]) for index in range(len(source)))


def _how_to_prepare(builder: Any, config: Questions, tfds: Any) -> str:
    name = builder.name if Path(str(config.path)).expanduser().is_dir() else config.path
    module = _tfds_modules(tfds).get(builder.name)  # imported by name for the reason that _tfds_builder gives
    return (
        f'python -c "import tensorflow_datasets as tfds; {f"import {module}; " if module else ""}'
        f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\""
    )


def _tfds_builder(config: Questions, tfds: Any) -> Any:
    """The builder of a prepared folder or of a name; asks no cloud bucket and downloads nothing."""
    path = str(config.path)
    where = f"questions.path = {path}"
    if Path(path).expanduser().is_dir():
        try:
            return tfds.builder_from_directory(str(Path(path).expanduser()))
        except Exception:  # tfds: FileNotFoundError, or a parser's error on a foreign dataset_info.json
            raise UserError(
                f"{where} is a folder but no prepared dataset; give the version folder, the one that holds dataset_info.json"
            ) from None
    name = re.split("[/:]", path)[0]
    modules = _tfds_modules(tfds)
    try:
        if name in modules and not modules[name].startswith("tensorflow_datasets.datasets."):
            # Its older builders tfds registers by importing them all at once, which without TensorFlow stops at the first
            # that needs it; so the one that is asked for is imported here. The newer ones it finds by their folder.
            importlib.import_module(modules[name])
        return tfds.builder(path, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        near = difflib.get_close_matches(name, modules, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise UserError(f"{where} is neither a folder nor a dataset that tensorflow_datasets knows{hint}") from None
    except ImportError as error:
        raise UserError(
            f"{where}: its builder needs a package that is not installed ({error}); "
            "install it, or prepare the dataset elsewhere and give its version folder"
        ) from None
    except Exception as error:  # a builder's constructor: unknown version or config, data in another file format
        raise UserError(f"{where}: {' '.join(str(error).split())}") from None


def _tfds_modules(tfds: Any) -> dict[str, str]:
    """Name -> module of the builders that come with tensorflow_datasets, read off their sources without importing them."""
    root = Path(tfds.__file__).parent
    modules = {}
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if parts[0] in ("core", "scripts", "testing") or file.stem.endswith("_test"):
            continue
        for found in re.finditer(r"^class (\w+)\(([^)]*)\)", file.read_text(encoding="utf-8"), re.MULTILINE):
            if "Builder" in found[2] and "Config" not in found[2]:
                # newer builders are all called Builder, in the module NAME_dataset_builder
                own = tfds.core.naming.camelcase_to_snakecase(found[1]) if found[1] != "Builder" else parts[-2]
                modules[own] = ".".join(("tensorflow_datasets", *parts))
    return modules


# reasoning-gym


def _generated(config: Questions) -> Iterator[Row]:
    """`config.count` questions with distinct texts, each from a task drawn by weight."""
    try:
        import reasoning_gym.factory
    except ImportError:
        raise UserError(
            "questions.source = reasoning_gym needs the package reasoning-gym; install it with `pip install reasoning-gym`"
        ) from None
    known = reasoning_gym.factory.DATASETS
    seen: set[str] = set()
    streams = [_distinct(config, place, task, known, seen) for place, task in enumerate(config.tasks)]
    draw = random.Random(config.seed)
    for _ in range(config.count or 0):
        (stream,) = draw.choices(streams, [task.weight for task in config.tasks])
        yield next(stream)


def _distinct(config: Questions, place: int, task: Task, known: dict, seen: set[str]) -> Iterator[Row]:
    """The questions of one task whose texts are not in `seen`, which it fills; a UserError when no new ones come."""
    where = f"questions.tasks[{place}] ({task.name})"
    found, misses = 0, 0
    for row in _endless(config, place, task, known, where):
        if row.values["question"] not in seen:
            found, misses = found + 1, 0
            seen.add(row.values["question"])
            yield row
            continue
        misses += 1
        # If one more question were as likely as each of those found, so long a wait would have probability e^-20.
        if misses > 1000 + 20 * found:
            raise UserError(
                f"{where} has only about {found} distinct questions with parameters {task.parameters}, too few for its share "
                f"of questions.count = {config.count}; lower questions.count or its weight, or widen its parameters"
            )


def _endless(config: Questions, place: int, task: Task, known: dict, where: str) -> Iterator[Row]:
    """One task's examples, repeated ones too. Drawn in blocks, because some tasks make all of theirs at once."""
    for block in itertools.count():
        # Example i is drawn with seed + i: seeds 0 and 1 would share all their examples but one, so seeds are spread out.
        place_of_seed = f"{config.seed} {place} {task.name} {block}".encode()
        seed = int.from_bytes(hashlib.blake2b(place_of_seed, digest_size=8).digest(), "big") % 2**31
        dataset = _dataset(where, seed, place, task, known)
        for index in range(_BLOCK):
            try:
                example = dataset[index]
            except Exception as error:  # a task's code on parameters that its validation let through
                if index and isinstance(error, IndexError):
                    break  # the end of a task with few examples
                raise UserError(
                    f"{where} gives no question with parameters {task.parameters}: {type(error).__name__}: {error}"
                ) from None
            yield Row(f"{task.name} example {block * _BLOCK + index}", example)


def _dataset(where: str, seed: int, place: int, task: Task, known: dict) -> Any:
    """A block of one task's examples, after checking its name and parameters."""
    if task.name not in known:
        near = difflib.get_close_matches(task.name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else "see reasoning_gym.factory.DATASETS for the names"
        raise UserError(f"questions.tasks[{place}].name = {task.name}: reasoning-gym has no such task; {hint}")
    make, settings = known[task.name]
    parameters = [name for name in settings.__dataclass_fields__ if name not in ("seed", "size")]
    for name in task.parameters:
        if name in ("seed", "size"):
            raise UserError(f"{where}: parameter {name} is set through questions.{'seed' if name == 'seed' else 'count'}")
        if name not in parameters:
            near = difflib.get_close_matches(name, parameters, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(parameters)}"
            raise UserError(f"{where}: the task has no parameter {name}; {hint}")
    try:
        # Tuples, as the task's own defaults are: YAML has only lists.
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in task.parameters.items()}
        return make(settings(**values, seed=seed, size=_BLOCK))
    except Exception as error:  # a task checks its parameters with assertions, or not at all
        raise UserError(f"{where}: parameters {task.parameters} are not accepted: {type(error).__name__}: {error}") from None
