"""Starts this command again with huge pages for its large arrays, where the C library can give them.

XLA's CPU backend takes its arrays from malloc, afresh for every step, and the kernel hands them out in pages of 4 KiB: one
fault for every page took a tenth of a step (docs/performance.md). glibc asks for pages of 2 MiB where a tunable says so,
which it reads at the start of a process and never again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
SWITCH = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Replaces this process by the same command with the tunable set; does nothing where it is set, or of no use."""
    given = environment(os.environ)
    if given is not None and is_useful():
        sys.stdout.flush()
        os.execve(sys.executable, again(sys.executable, sys.orig_argv), given)


def environment(old: Mapping[str, str]) -> dict[str, str] | None:
    """The environment with the tunable added to those that are there, or None where it is set already, to whatever value."""
    tunables = [part for part in old.get("GLIBC_TUNABLES", "").split(":") if part]
    if any(part.split("=")[0] == TUNABLE for part in tunables):
        return None
    return {**old, "GLIBC_TUNABLES": ":".join([*tunables, f"{TUNABLE}=1"])}


def is_useful() -> bool:
    """Whether this process runs on glibc 2.35 or newer and the kernel gives huge pages to those who ask."""
    try:
        name, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").split()
        major, minor = (int(part) for part in version.split(".")[:2])
        return name == "glibc" and (major, minor) >= (2, 35) and "[madvise]" in SWITCH.read_text()
    except (AttributeError, OSError, ValueError):  # another system, another C library
        return False


def again(executable: str, arguments: Sequence[str]) -> list[str]:
    """The command line that starts this process once more, interpreter options included."""
    return [executable, *arguments[1:]]
