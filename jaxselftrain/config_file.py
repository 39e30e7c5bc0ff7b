"""Takes a YAML file or an override as a person wrote it, gives nested dicts; and a refusal of them as one sentence."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from jaxselftrain.errors import UserError


class _GivenTwice(yaml.YAMLError):
    """A key that stands twice in one mapping, where YAML would silently take the last."""

    def __init__(self, key: str, first: int, line: int):
        super().__init__(f"key {key} stands twice")
        self.key, self.first, self.line = key, first, line


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor):
        """Looks at the keys as they are written: later on, `<<` has mixed in those that a mapping may well replace."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise _GivenTwice(key.value, lines[key.value], line)
                lines[key.value] = line
        return node


def _load(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except ValueError as error:  # what looks like a date but is none: 2024-13-45
        raise yaml.YAMLError(f"{error}; put a text that looks like a date in quotes") from None


def read_settings(path: Path) -> dict[str, Any]:
    """The nested dicts of a YAML file. Raises UserError that names it, and the line of a key given twice."""
    try:
        values = _load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"config file {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"config file {path} is a folder; name the YAML file in it") from None
    except _GivenTwice as twice:
        raise UserError(
            f"config file {path}:{twice.line}: {twice.key} is in line {twice.first} already; join them, only the last would count"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"config file {path} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"config file {path} must hold sections such as 'questions:' and 'train:'")
    return values


def apply_override(values: dict[str, Any], override: str) -> None:
    """Puts `section.field=value` into the nested dicts; the value is YAML. Raises UserError that names the override."""
    name, equals, text = override.partition("=")
    if not equals or not all(part.strip() for part in name.split(".")):
        raise UserError(f"override {override!r} is not of the form section.field=value")
    try:
        value = _load(text)
    except _GivenTwice as twice:
        raise UserError(f"override {override!r}: {twice.key} stands twice; only the last would count") from None
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not valid YAML; put it in quotes") from None
    *sections, field = name.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"override {override!r}: {section} is a value, not a section")
    values[field] = value


def sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem that pydantic found in the values of a `root`, as one sentence."""
    problem = error.errors()[0]
    # what follows the field's own name says which of its types was tried
    location = [part for part in problem["loc"] if not str(part).startswith(("literal[", "constrained-")) and part != "bool"]
    name = ".".join(str(part) for part in location) or "the config"
    if problem["type"] == "extra_forbidden":
        *sections, last = problem["loc"]
        known = list(_section_at(sections, root).model_fields)
        near = difflib.get_close_matches(str(last), known, n=1, cutoff=0.5)
        meant = ".".join(str(part) for part in (*sections, *near))
        hint = f"did you mean {meant}?" if near else f"known here: {', '.join(known)}"
        return f"unknown field {name} (value {problem['input']!r}); {hint}"
    if problem["type"] == "missing":
        return f"field {name} is required"
    message = problem["msg"].removeprefix("Value error, ").replace("valid tuple", "list")
    if len(location) < len(problem["loc"]):
        words = [other["ctx"]["expected"] for other in error.errors() if other["type"] == "literal_error"]
        message += "".join(f", or {word}" for word in words)
    if problem["type"] == "model_type":
        message = "must be a section, with fields of its own"
    if problem["type"] == "string_type" and isinstance(problem["input"], dict | list):  # `Q: {question}` is a mapping to YAML
        message += "; put it in quotes (on a command line, within those of the shell)"
    if problem["type"] == "value_error" and isinstance(problem["input"], dict | BaseModel):  # about several fields at once
        return message if name == "the config" else f"{name}: {message}"
    return f"{name} = {problem['input']!r}: {message[0].lower() + message[1:]}"


def _section_at(location: list, root: type[BaseModel]) -> type[BaseModel]:
    section: Any = root
    for part in location:
        if isinstance(part, int):
            continue
        section = section.model_fields[part].annotation
        for candidate in getattr(section, "__args__", ()):  # Questions | None, tuple[Task, ...]
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                section = candidate
                break
    return section
