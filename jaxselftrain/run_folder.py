"""Takes a config, gives the run folder it belongs to: locked, with the resolved config and what the run ran on.

A folder that holds a checkpoint is resumed: a changed fixed field is refused by name, changed free ones are returned to
be logged. A folder that is neither empty nor a run folder is refused, so that nothing foreign is overwritten.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from etils import epath
from filelock import FileLock, Timeout

from jaxselftrain.config import Config, changed_fields, load_config, parse_config, to_yaml
from jaxselftrain.errors import UserError
from jaxselftrain.remote import CHECKPOINTS, LOCK, MARK, here, home

CONFIG, ENVIRONMENT, EVALUATIONS = "config.yaml", "environment.json", "evaluations"
SUMMARY = "summary.json"
# What a start leaves that was killed before the folder became a run folder, which config.yaml, written last, makes it.
BEGUN = {LOCK, MARK, ENVIRONMENT, f"{ENVIRONMENT}.tmp", f"{CONFIG}.tmp", "wandb_run"}
PACKAGES = ("jaxselftrain", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "tokenizers", "numpy")


def with_folder(config: Config, name: str, folder: str | None = None) -> Config:
    """The config with {name} and {seed} filled in train.folder, or with another folder."""
    folder = folder or config.train.folder.replace("{name}", name).replace("{seed}", str(config.train.seed))
    return config.model_copy(update={"train": config.train.model_copy(update={"folder": folder})})


def run_folder(config: Config, name: str) -> Path:
    """The folder of train.folder, {name} and {seed} filled in; where that is elsewhere, the one on this machine."""
    return here(with_folder(config, name).train.folder)


def checkpoints_of(run: Path) -> epath.Path:
    """Where the checkpoints of a run folder are: in it, or where the run is kept."""
    if (run / CHECKPOINTS).is_dir() or not (run / CONFIG).is_file():
        return epath.Path(run / CHECKPOINTS)
    return home(read_config(run).train.folder, run) / CHECKPOINTS


def read_config(folder: Path) -> Config:
    """The resolved config of a run folder. Raises UserError when it is none."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} is not a run folder: it holds no {CONFIG}")
    return load_config(folder / CONFIG, ())


def open_folder(folder: Path, kept: epath.Path, config: Config) -> tuple[FileLock, list[str]]:
    """Locks the folder, and writes nothing else; gives the lock and the free fields that changed on resume.

    `kept` is where its checkpoints are.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"run folder {folder} is a file; choose another train.folder")
    known = is_run_folder(folder)
    if folder.is_dir() and not known and not set(os.listdir(folder)) <= BEGUN:
        raise UserError(f"run folder {folder} holds other files and is no run folder; choose another train.folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another process is training in {folder}; stop it or choose another train.folder") from None
    except OSError as error:
        raise UserError(f"run folder {folder} cannot be made: {error.strerror}") from None
    free: list[str] = []
    if known and has_checkpoint(kept):
        fixed, free = changed_fields(read_config(folder), config)
        if fixed:
            lock.release()
            raise UserError(
                f"{folder} holds a run with other settings, which cannot change when it is resumed: "
                f"{'; '.join(fixed)}. Set them back, or choose another train.folder"
            )
    return lock, free


def keep_decided(config: Config, folder: Path, kept: epath.Path) -> Config:
    """The config with what it leaves to `auto` as the run in the folder decided it, so that the run goes on bit for bit."""
    if config.is_decided or not (is_run_folder(folder) and has_checkpoint(kept)):
        return config
    old, model, update = read_config(folder), config.model, config.update
    if model.remat == "auto":
        model = model.model_copy(update={"remat": old.model.remat})
    if update.micro_batches == "auto":
        update = update.model_copy(update={"micro_batches": old.update.micro_batches})
    return parse_config(config.model_copy(update={"model": model, "update": update}).model_dump())


def close_folder(folder: Path, lock: FileLock) -> None:
    """Unlocks the folder, and takes it away again if the run never began."""
    lock.release()
    if os.listdir(folder) == [LOCK]:
        (folder / LOCK).unlink()
        folder.rmdir()


def is_run_folder(folder: Path) -> bool:
    """Whether a run has begun there: a config alone may be anybody's."""
    return (folder / CONFIG).is_file() and (folder / ENVIRONMENT).is_file()


def has_checkpoint(kept: epath.Path) -> bool:
    steps = kept / CHECKPOINTS
    return steps.is_dir() and any(entry.name.isdigit() for entry in steps.iterdir())


def begin_folder(folder: Path, config: Config, devices: list[str]) -> None:
    """Writes environment.json (versions, git commit, device kinds of the run's last start), then config.yaml."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    facts = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "devices": devices,
        "git_commit": _git_commit(),
        "packages": versions,
        "command": sys.argv,
    }
    replace_text(folder / ENVIRONMENT, json.dumps(facts, indent=2) + "\n")
    replace_text(folder / CONFIG, to_yaml(config))


def make_folder(folder: Path) -> None:
    """Makes a folder for results; UserError when that cannot be, or nothing can be written into it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made a folder for results: {error.strerror}") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written to; name another folder for the results")


def replace_text(path: Path, text: str) -> None:
    """Writes a file so that a kill leaves the old one or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)  # on a full disk it is half of the text
        raise


def _git_commit() -> str | None:
    """The commit of the checkout this package runs from; None when it is installed otherwise."""
    here = Path(__file__).resolve().parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        got = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return got.stdout.strip() or None
