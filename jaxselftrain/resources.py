"""Takes a block of work, gives what it cost this process (compilations, peak memory), or one sentence when a limit ended it."""

from __future__ import annotations

import errno
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

from jaxselftrain.errors import UserError

PROGRAMS = {"train_step": "step", "sample_only": "sample"}  # names of the compiled functions in step.py
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Compilations:
    """Counts and times the compilations of the training and the sampling program while it is entered."""

    def __init__(self) -> None:
        self.times: dict[str, int] = {}
        self.seconds: dict[str, float] = {}

    def __enter__(self) -> Compilations:
        jax.monitoring.register_event_duration_secs_listener(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **about: str | int) -> None:
        name = PROGRAMS.get(str(about.get("fun_name", "")).removeprefix("jit(").removesuffix(")"))
        if event == _COMPILED and name is not None:
            self.times[name] = self.times.get(name, 0) + 1
            self.seconds[name] = self.seconds.get(name, 0.0) + duration_secs

    def summary(self) -> dict[str, dict[str, float]]:
        """Program -> how often it was compiled, or read from the compilation cache, and the seconds that took."""
        return {name: {"times": self.times[name], "seconds": round(self.seconds[name], 1)} for name in sorted(self.times)}


def peak_memory_gib() -> dict[str, float]:
    """Peak resident memory of this process, and where the backend tells it, of its fullest device; GiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    used = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    on_devices = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    if on_devices:
        used["device"] = max(on_devices)
    return {name: round(size / 2**30, 2) for name, size in used.items()}


@contextmanager
def told_of_limits(folder: Path, settings: str) -> Iterator[None]:
    """Turns out of device memory and a full disk into a UserError; `settings` says what to change for the memory's sake."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UserError(f"out of device memory: {settings}") from error
    except OSError as error:
        if not disk_is_full(error):
            raise
        raise UserError(f"no room on the disk for {error.filename or folder}; make room, then start again to resume") from error


def disk_is_full(error: BaseException) -> bool:
    """Whether an error of Python's, or one that Orbax wraps in its own words, says that nothing more can be written."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(sign in str(error) for sign in ("No space left", "File too large", "quota exceeded"))
