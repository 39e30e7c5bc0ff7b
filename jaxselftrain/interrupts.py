"""Takes SIGTERM and Ctrl-C, gives a flag that the host loop reads between steps: stop, but save first."""

from __future__ import annotations

import signal
import sys
import threading


class Interrupts:
    """While entered, the first SIGTERM or SIGINT only sets `requested`; a second one acts as it always did.

    Outside the main thread Python delivers no signals, and nothing is changed.
    """

    def __init__(self):
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *_):
        self._restore()

    def _request(self, number, _frame):
        self.requested = True
        self._restore()
        print("\nstopping after this step; once more to stop at once, without saving", file=sys.stderr, flush=True)

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
