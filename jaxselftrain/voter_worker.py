"""Takes response texts on standard input, gives each one's answer and key on standard output, one at a time.

Started by `worker_pool.WorkerPool` as `python -m jaxselftrain.voter_worker`, a fresh process that imports neither JAX nor
NumPy nor the user's own main module. JSON lines, strings only. In: first the settings, then lists of texts. Out: "ready"
after each line of input, and for each text [answer, key], or null when reading it failed. A text costs its own line and
nothing else: what hangs is killed by the parent, or by the CPU limit set here should the parent be gone.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

from jaxselftrain.answers import answer_key, extract

MEMORY_BYTES = 512 * 2**20  # address space: a regex or a number that wants more fails and costs its own vote
CACHED_ANSWERS = 8192  # responses differ where their answers are alike; at most 1,000 characters each, as configured

# One answer of each kind, read before the first response: what the parser imports or tabulates late is not on its clock.
WARM_UP = (
    "5", "1,000.50", r"\frac{1}{2}", r"2\sqrt{3}+\pi", "x^2-2x+1", "y=2x+1", r"\sin(x)", r"(1, 2)", r"\{1, 2\}", "10!",
    r"[0, 1) \cup (2, \infty)", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", "x > 3", "3+4i", r"\text{Tuesday}",
    r"5\text{ cm}^2",
)  # fmt: skip


def main() -> None:
    """Serve until standard input ends."""
    serve(reader)


def reader(settings: dict[str, Any]) -> Callable[[str], list[str | None]]:
    """The function from a response's text to [answer, key], for the `answer` section in `settings`."""
    answer = SimpleNamespace(**settings["answer"])  # stands for sections.Answer, whose module needs pydantic
    key = lru_cache(CACHED_ANSWERS)(answer_key)
    for example in WARM_UP:
        answer_key(example)

    def read(text: str) -> list[str | None]:
        found = extract(text, answer)  # type: ignore[arg-type]
        return [found, None if found is None else key(found)]

    return read


def serve(make_read: Callable[[dict[str, Any]], Callable[[str], Any]]) -> None:
    """Answer the parent's requests with the function that `make_read` makes of the settings, until standard input ends."""
    requests = sys.stdin.buffer
    settings = json.loads(requests.readline())
    replies = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # a stray print must not be taken for a reply
    _follow(settings["parent"])
    read = make_read(settings)  # before the limits: they would keep Python from storing what it compiles on import
    _limit()
    _allow_cpu(settings["seconds"])
    _reply(replies, "ready")
    for line in requests:
        _allow_cpu(settings["seconds"])
        _reply(replies, "ready")
        for text in json.loads(line):
            _allow_cpu(settings["seconds"])
            try:
                result = read(text)
            except Exception:  # hostile text must not be able to end the worker: MemoryError, RecursionError, ...
                result = None
            _reply(replies, result)


def _reply(replies, value) -> None:
    replies.write(json.dumps(value).encode("ascii") + b"\n")
    replies.flush()  # the parent's clock for the next text starts when it sees this line


def _follow(parent: int) -> None:
    """End with the parent, also when it is killed while a text hangs here; leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)  # ends the process even inside a C loop that never returns to Python
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGXCPU})
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, Linux
    except (AttributeError, OSError):
        pass
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)


def _limit() -> None:
    """Limit memory and files. Each limit is set where the platform has it: macOS enforces none on the address space."""
    for kind, limit in (("RLIMIT_AS", MEMORY_BYTES), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        try:
            hard = resource.getrlimit(getattr(resource, kind))[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(getattr(resource, kind), (limit, limit))
        except (AttributeError, ValueError, OSError):
            pass


def _allow_cpu(seconds: float) -> None:
    """Limit the CPU time from now on to twice the parent's patience: it acts when the parent was killed or stopped."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    limit = math.ceil(time.process_time() + 2 * seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


if __name__ == "__main__":
    main()
