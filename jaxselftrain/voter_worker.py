"""Takes chunks of response texts on standard input, gives each one's answer and key on standard output, one at a time.

Started by `voter.Voter` as `python -m jaxselftrain.voter_worker`, a fresh process that imports neither JAX nor NumPy nor
the user's own main module. JSON lines, strings only. In: first the settings, then lists of texts. Out: "ready" after each
line of input, and for each text [answer, key], or null when reading it failed. A text costs its own line and nothing else:
what hangs is killed by the parent, or by the alarm set here should the parent be gone.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from types import SimpleNamespace

from jaxselftrain.answers import answer_key, extract

MEMORY_BYTES = 512 * 2**20  # address space: a regex or a number that wants more fails and costs its own vote


def main() -> None:
    """Serve until standard input ends."""
    requests = sys.stdin.buffer
    settings = json.loads(requests.readline())
    replies = os.fdopen(os.dup(1), "wb")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # a stray print must not be taken for a reply
    _confine(settings["parent"])
    answer = SimpleNamespace(**settings["answer"])  # stands for config.Answer, whose module needs pydantic
    _reply(replies, "ready")
    for line in requests:
        _reply(replies, "ready")
        for text in json.loads(line):
            # Twice the parent's patience: it acts only when the parent was killed or stopped while this text hangs.
            signal.setitimer(signal.ITIMER_REAL, 2 * settings["seconds"] + 1)
            try:
                found = extract(text, answer)  # type: ignore[arg-type]
                result = [found, None if found is None else answer_key(found)]
            except Exception:  # hostile text must not be able to end the worker: MemoryError, RecursionError, ...
                result = None
            _reply(replies, result)
        signal.setitimer(signal.ITIMER_REAL, 0)


def _reply(replies, value) -> None:
    replies.write(json.dumps(value).encode("ascii") + b"\n")
    replies.flush()  # the parent's clock for the next text starts when it sees this line


def _confine(parent: int) -> None:
    """Limit memory and files, and end with the parent. Each limit is set where the platform has it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process even inside a C loop that never returns to Python
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, Linux
    except (AttributeError, OSError):
        pass
    if os.getppid() != parent:  # it died before the line above
        os._exit(1)
    try:
        import resource
    except ImportError:
        return
    for kind, limit in (("RLIMIT_AS", MEMORY_BYTES), ("RLIMIT_FSIZE", 0), ("RLIMIT_CORE", 0)):
        try:
            hard = resource.getrlimit(getattr(resource, kind))[1]
            limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(getattr(resource, kind), (limit, limit))
        except (AttributeError, ValueError, OSError):
            pass  # macOS has no enforceable address-space limit


if __name__ == "__main__":
    main()
