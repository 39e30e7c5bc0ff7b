"""Takes a job on standard input, gives one JSON line for every repetition that the parent asks for; works only when asked.

The sides of a comparison take turns: while one works, the others wait for a line. Standard library alone, because this runs
in the peers' own environments.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Turns:
    """The worker's end of the pipes; `job` is what the parent wants measured."""

    def __init__(self):
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is not an answer
        self.job: dict[str, Any] = json.loads(sys.stdin.readline())

    def ready(self, *packages: str, **about: Any) -> None:
        """Everything is loaded; `packages` are those whose versions belong beside the figures."""
        self._answer({"versions": {name: version(name) for name in packages}, **about})

    def begin(self) -> None:
        """Waits for this side's turn. The process ends here when there is none left."""
        if sys.stdin.readline().strip() != "go":
            self._answers.flush()
            os._exit(0)  # some peers wait in a thread of theirs, in the middle of their training loop
        self._busy, self._own, self._started = machine_seconds(), own_seconds(os.getpid()), time.perf_counter()

    def end(self, **found: Any) -> None:
        """The repetition is done: says how long it took, and how much other processes worked meanwhile."""
        seconds = time.perf_counter() - self._started
        others = machine_seconds() - self._busy - (own_seconds(os.getpid()) - self._own)
        self._answer({"seconds": seconds, "others": others / seconds, "peak_mib": peak_mib(os.getpid()), **found})

    def serve(self, repeat: Callable[[], dict[str, Any] | None]) -> None:
        """Answers every turn with one call."""
        while True:
            self.begin()
            found = repeat() or {}
            self.end(**found)

    def _answer(self, line: dict[str, Any]) -> None:
        print(json.dumps(line), file=self._answers, flush=True)


def machine_seconds() -> float:
    """CPU seconds that the whole machine has used; 0 where /proc does not tell."""
    try:
        ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    except OSError:
        return 0.0
    return (sum(ticks[:3]) + sum(ticks[5:8])) / os.sysconf("SC_CLK_TCK")


def own_seconds(pid: int) -> float:
    """CPU seconds of a process, of the children it has now and of those it has waited for; 0 where /proc does not tell."""
    try:
        ticks = [int(field) for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    return sum(ticks) / os.sysconf("SC_CLK_TCK") + sum(own_seconds(int(child)) for child in children)


def peak_mib(pid: int) -> float:
    """Peak resident memory of a process and of the children it has now, each at its own peak.

    getrusage would not do: it starts from the size of the process that this one was forked from.
    """
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        if Path("/proc").exists():
            return 0.0  # a child that has just ended
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    own = next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)
    return own + sum(peak_mib(int(child)) for child in children)


def spread_reward(tokens: list[int]) -> float:
    """A reward that differs inside a group of samples and costs nothing: the share of even tokens."""
    return sum(token % 2 == 0 for token in tokens) / max(len(tokens), 1)
