"""Takes a train.folder that is not on this machine, gives the folder that a run works in here, and keeps the two alike.

A bucket cannot be appended to, and metrics are. So all small files of a run are written here and copied to the bucket whenever a
checkpoint is saved, under the same names; checkpoints are written there by Orbax itself, and by all processes. A machine that has
never seen the run fetches the files first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

from etils import epath

from jaxselftrain.errors import UserError

CHECKPOINTS, LOCK, MARK, TENSORBOARD, METRICS = "checkpoints", ".lock", ".shared", "tensorboard", "metrics.jsonl"
STAY = (
    CHECKPOINTS,
    LOCK,
    MARK,
    TENSORBOARD,
    "report",
    "wandb",
)  # TensorBoard's events and the report are made anew from the rest
SCHEMES = ("gs", "s3", "file")
HERE = "runs"


def place_of(folder: str) -> str | None:
    """The part of gs://PLACE, s3://PLACE or file://PLACE after the scheme; None for a folder of this machine's.

    Raises UserError for another scheme. One letter is a drive.
    """
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", folder)
    if found is None:
        return None
    scheme, place = found.groups()
    if scheme not in SCHEMES or not place:
        raise UserError(f"train.folder = {folder}: name a local folder, or one at {', '.join(f'{s}://' for s in SCHEMES)}")
    if scheme == "file" and not folder.startswith("file:///"):
        raise UserError(f"train.folder = {folder}: after file:// comes a path from the root, file:///{place}")
    return place


def here(folder: str) -> Path:
    """The local folder of a run whose folder may be elsewhere."""
    place = place_of(folder)
    return Path(folder) if place is None else Path(HERE, *Path(place).parts)


def home(folder: str, local: Path) -> epath.Path:
    """Where a run is kept: its folder elsewhere, or the local one. Raises UserError where that cannot be reached."""
    place = place_of(folder)
    if place is None:
        return epath.Path(local)
    if folder.startswith("file:"):
        return epath.Path("/" + place)
    there = epath.Path(f"{folder.partition(':')[0]}://{place}")
    _reach(there)
    return there


def _reach(folder: epath.Path) -> None:
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it tells a traceback of every try
    try:
        folder.exists()
    except Exception as error:  # whatever a storage service says: no package for it, no credentials, no such bucket
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(
            f"train.folder = {folder} cannot be reached ({text}); gs:// needs the extra [gcs] and the credentials of "
            "`gcloud auth application-default login`, s3:// the package s3fs and AWS's own"
        ) from error


class Copy:
    """The small files of one run, here and where it is kept; the same folder, where it is kept here."""

    def __init__(self, local: Path, kept: epath.Path, *, say: Callable[[str], None]):
        self.local, self.kept, self.say = local, kept, say
        self.is_elsewhere = str(epath.Path(local)) != str(kept)
        self._seen: dict[str, tuple[int, int]] = {}

    def fetch(self) -> None:
        """Copies what is kept to this machine, where this machine has nothing of the run, or less. UserError if it fails."""
        if not self.is_elsewhere:
            return
        try:
            self.kept.mkdir(parents=True, exist_ok=True)
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            raise UserError(f"the run cannot be kept in {self.kept} ({text}); choose another train.folder") from error
        try:
            self._fetch()
        except Exception as error:  # of a storage service, which has many
            text = " ".join(str(error).split())[:200]
            raise UserError(f"the run's files could not be fetched from {self.kept} ({text}); start again") from error

    def _fetch(self) -> None:
        ours, theirs = epath.Path(self.local) / METRICS, self.kept / METRICS
        if not self.kept.exists() or (ours.exists() and (not theirs.exists() or ours.stat().length >= theirs.stat().length)):
            return
        # metrics last: by their length it is told whether everything is here
        for file in sorted(_files(self.kept), key=lambda file: file.name == METRICS):
            name = str(file.relative_to(self.kept))
            to = self.local / name
            to.parent.mkdir(parents=True, exist_ok=True)
            to.write_bytes(file.read_bytes())
            self._seen[name] = _stamp(to)
        if self._seen:
            self.say(f"fetched the run's files from {self.kept}")

    def keep(self) -> None:
        """Copies what is new here to where the run is kept. A failure is told, and made up for at the next call."""
        if not self.is_elsewhere:
            return
        try:
            for file in _files(epath.Path(self.local)):
                name, stamp = str(file.relative_to(self.local)), _stamp(Path(file))
                if self._seen.get(name) != stamp:
                    to = self.kept / name
                    to.parent.mkdir(parents=True, exist_ok=True)
                    to.write_bytes(file.read_bytes())
                    self._seen[name] = stamp
        except Exception as error:  # of a storage service, which has many; the run itself is not in danger
            text = " ".join(str(error).split())[:200]
            self.say(f"the run's files could not be copied to {self.kept} ({text}); trying again at the next checkpoint")


def _files(folder: epath.Path) -> list[epath.Path]:
    """All small files of a run, finished ones only."""
    found: list[epath.Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.name in STAY or entry.name.startswith(CHECKPOINTS) or entry.name.endswith((".tmp", ".part")):
            continue
        found += _files(entry) if entry.is_dir() else [entry]
    return found


def _stamp(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
