"""Takes short programs and strings, gives what worker processes made of each string; any of them may be killed at any moment.

Model output is untrusted: a response may make a regular expression run for ever or a parser exhaust memory, and a policy
that is rewarded for it will find out. So strings are worked on in separate processes over pipes, this module watches the
clock of each single string, and one that overruns costs its own result and nothing else.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import Any

from jaxselftrain.errors import UserError

START_SECONDS = 60.0  # for a worker to come up; a loaded machine needs a second
CACHED_TEXTS = 65_536  # results remembered across batches, by the text's hash
CHUNK_TEXTS = 64  # texts sent at a time; the clock runs for each of them alone
CHUNK_CHARACTERS = 200_000


class WorkerPool:
    """Runs texts through `workers` persistent processes, with one more warm to replace a killed one at once.

    `module` is what they run: one whose main calls `voter_worker.serve`; `settings` go to it as JSON; `seconds` is the
    wall-clock limit for one text, from the moment it is next to be sent to a worker that is up: sending counts, a worker's
    start does not. Usable from any thread (calls take turns) and in notebooks; the main module is not imported again. Close
    it, or use it as a context manager; the workers also end when the pool is garbage, and by themselves when this process
    dies. A forked child must make its own. Linux and macOS: UserError elsewhere.
    """

    def __init__(self, module: str, settings: Mapping[str, Any], *, workers: int, seconds: float):
        if os.name != "posix":
            raise UserError("the voter's worker processes need Linux or macOS; on Windows, run inside WSL")
        self._module = module
        self._seconds = seconds
        self._settings = _line({**settings, "seconds": seconds, "parent": os.getpid()})
        self._cache: OrderedDict[bytes, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._closed = False
        # One thread starts all workers and lives as long as the pool: on Linux a worker's "die with your parent" means
        # the parent *thread*, and the callers of `run` may come and go.
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="workers")
        self._starting: deque[Any] = deque()
        for _ in range(workers + 1):
            self._start()
        self._workers: list[_Worker] = []
        self._count = workers
        self._pid = os.getpid()
        self._end = weakref.finalize(self, _end, self._pid, self._starter, self._starting, self._workers)

    def run(self, texts: Sequence[str]) -> list[Any | None]:
        """The results of `texts`, in their order; equal texts are worked on once, also across calls.

        None for a text that was given up: it took more than `seconds`, failed, or broke two workers. The others are
        unaffected. Raises ChildProcessError when no worker can be started, RuntimeError in a forked child.
        """
        self._refuse_forks()
        with self._lock:
            if self._closed:
                raise ValueError("this pool of workers is closed")
            results: dict[str, Any | None] = {}
            unknown: list[str] = []
            for text in dict.fromkeys(texts):
                known = self._cache.get(_digest(text))
                if known is None:
                    unknown.append(text)
                else:
                    self._cache.move_to_end(_digest(text))
                    results[text] = known
            results.update(self._run(unknown))
            for text in unknown:
                if results[text] is not None:  # what was given up is not remembered: the machine may just have been busy
                    self._cache[_digest(text)] = results[text]
            while len(self._cache) > CACHED_TEXTS:
                self._cache.popitem(last=False)
        return [results[text] for text in texts]

    def pids(self) -> list[int]:
        """Process ids of the workers that are up, the warm one included; for diagnosis."""
        self._refuse_forks()
        with self._lock:
            started = [future.result() for future in self._starting if future.done() and future.exception() is None]
            return [worker.process.pid for worker in [*self._workers, *started]]

    def close(self) -> None:
        """End all workers; no process is left behind. May be called more than once. A `run` in another thread ends first.

        In a forked child it does nothing: the workers are the parent's.
        """
        if os.getpid() != self._pid:  # before the lock, which another of the parent's threads may have held at the fork
            return
        with self._lock:
            self._closed = True
            self._end()
            self._starter.shutdown(wait=True)  # a worker that was starting is ended as soon as it is up

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def _refuse_forks(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"these voter workers belong to process {self._pid} and this is its forked child {os.getpid()}: "
                "make a new Voter here, after the fork"
            )

    def _run(self, texts: list[str]) -> dict[str, Any | None]:
        """Hand out chunks, collect results and watch the clocks until every text has a result; None: given up."""
        results: dict[str, Any | None] = {}
        waiting = deque(_chunks(texts, math.ceil(len(texts) / self._count)))
        # Texts that a worker died on, with what is left of their time; once may be anybody's fault, such as an operator's.
        broke_one: dict[str, float] = {}
        unbegun: Counter[str] = Counter()  # how often a text was sent to a worker that was already dying
        try:
            while len(results) < len(texts):
                started = time.monotonic()
                self._fill(len(waiting))
                for worker in self._workers:
                    worker.was_not_served(time.monotonic() - started)
                for worker in self._workers:
                    if waiting and not worker.chunk:
                        chunk = waiting.popleft()
                        worker.send(chunk, broke_one.get(chunk[0], self._seconds))
                lost = [
                    worker
                    for worker in _ready([w for w in self._workers if w.chunk])
                    if not worker.advance(results, self._seconds)
                ]
                for worker in lost:
                    text = worker.chunk[0]
                    if text in broke_one or unbegun[text] > self._count:  # all workers and the warm one may die at once
                        results[worker.chunk.popleft()] = None
                    elif worker.began:
                        broke_one[text] = max(0.0, worker.deadline - time.monotonic())
                    else:
                        unbegun[text] += 1
                overdue = [w for w in self._workers if w.chunk and w not in lost and time.monotonic() >= w.deadline]
                # Only a worker with nothing to say is late: results that wait in the pipe were in time.
                late = [worker for worker in overdue if not worker.has_spoken()]
                for worker in late:
                    results[worker.chunk.popleft()] = None
                for worker in lost + late:
                    self._remove(worker)
                    if worker.chunk:
                        waiting.appendleft(list(worker.chunk))
        except BaseException:  # Ctrl-C: replies still on their way would be taken for those of the next call
            for worker in [worker for worker in self._workers if worker.chunk]:
                self._remove(worker)
            raise
        return results

    def _fill(self, chunks: int) -> None:
        """Bring as many live workers into service as the waiting chunks can use, at most `vote.workers`."""
        for worker in [worker for worker in self._workers if not worker.chunk and worker.process.poll() is not None]:
            self._remove(worker)
        busy = sum(bool(worker.chunk) for worker in self._workers)
        failures = 0
        while len(self._workers) < min(self._count, busy + chunks):
            if not self._starting:  # Ctrl-C came between taking a worker and ordering the next
                self._start()
            try:
                worker = self._starting.popleft().result()
            except OSError:  # killed while it started, or it cannot start here at all
                failures += 1
                self._start()
                if failures == 3:
                    raise
                continue
            if worker.process.poll() is None:
                self._workers.append(worker)
            else:  # died while it waited
                worker.kill()
                self._start()

    def _remove(self, worker: _Worker) -> None:
        worker.kill()
        self._workers.remove(worker)
        self._start()

    def _start(self) -> None:
        self._starting.append(self._starter.submit(_Worker, self._module, self._settings))


class _Worker:
    """One worker process, the texts it was sent and when the one that it reads now is late."""

    def __init__(self, module: str, settings: bytes):
        command = [sys.executable, "-P", "-m", module]  # -P: no module of the user's folder gets in
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env=_environment(),
            start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, and killing the group kills all of it
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._to, self._from = self.process.stdin.fileno(), self.process.stdout.fileno()
        os.set_blocking(self._to, False)
        os.set_blocking(self._from, False)
        self.chunk: deque[str] = deque()  # sent and not yet answered; the first is being read
        self.began = False  # whether the worker said that it has the chunk
        self.deadline = time.monotonic() + START_SECONDS
        self._unsent = memoryview(settings)
        self._received = b""
        while True:
            alive = bool(_ready([self])) and self._transfer()
            if self._received.endswith(b"\n"):
                break
            if not alive:
                self.kill()
                raise ChildProcessError(
                    f"a voter worker did not start (status {self.process.returncode}): try {' '.join(command)}"
                )
        self._received = b""

    def send(self, texts: list[str], seconds: float) -> None:
        """Give an idle worker its next texts; the clock of the first one, `seconds`, starts and runs while it is being sent."""
        self.deadline = time.monotonic() + seconds
        self.chunk.extend(texts)
        self.began = False
        self._unsent = memoryview(_line(texts))

    def advance(self, results: dict[str, Any | None], seconds: float) -> bool:
        """Take what the pipes have to offer: results go to `results`, and each restarts the clock. False: the worker died."""
        alive = self._transfer()
        *lines, self._received = self._received.split(b"\n")
        for line in lines:
            result = json.loads(line)
            if result == "ready":
                self.began = True
                continue
            results[self.chunk.popleft()] = result
            self.deadline = time.monotonic() + seconds  # of the next text, and of nothing else: each has one deadline
        return alive or not self.chunk

    def was_not_served(self, seconds: float) -> None:
        """A text that is half sent does not pay for the time in which this process waited for another worker's start."""
        if self._unsent:
            self.deadline += seconds

    def has_spoken(self) -> bool:
        """Whether there is something to read from the worker, were it only that it died."""
        poll = select.poll()
        poll.register(self._from, select.POLLIN)
        return bool(poll.poll(0))

    def wants(self) -> list[tuple[int, int]]:
        """(file descriptor, poll event) to wait for."""
        return [(self._from, select.POLLIN)] + ([(self._to, select.POLLOUT)] if self._unsent else [])

    def kill(self) -> None:
        """End the process and everything it may have started, and reap it."""
        if self.process.poll() is None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):  # it is just ending by itself
                self.process.kill()
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _transfer(self) -> bool:
        """Write and read what is possible without waiting; False when the other end is closed."""
        try:
            if self._unsent:
                self._unsent = self._unsent[os.write(self._to, self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._unsent = self._unsent[:0]  # there may be results to read still
        try:
            received = os.read(self._from, 65536)
        except BlockingIOError:
            return True
        self._received += received
        return bool(received)


def _end(pid: int, starter: ThreadPoolExecutor, starting: deque[Any], workers: list[_Worker]) -> None:
    """End what a pool started; waits for nothing but the dead. Runs when it is closed, garbage, or at the interpreter's exit."""
    if os.getpid() != pid:  # the exit of a forked child, whose parent goes on using them
        return
    starter.shutdown(wait=False, cancel_futures=True)
    for future in starting:
        future.add_done_callback(_end_started)  # at once where it is done
    for worker in workers:
        worker.kill()
    starting.clear()
    workers.clear()


def _end_started(future: Future[_Worker]) -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().kill()


def _ready(workers: list[_Worker]) -> list[_Worker]:
    """The workers whose pipes can be served, as soon as there is one; none when the first deadline passes before that."""
    poll = select.poll()  # select() cannot take the high file descriptors of a process with many files
    owner = {}
    for worker in workers:
        for descriptor, event in worker.wants():
            poll.register(descriptor, event)
            owner[descriptor] = worker
    first = min((worker.deadline for worker in workers), default=0.0)
    events = poll.poll(1000 * max(0.0, first - time.monotonic()) + 1)
    return list(dict.fromkeys(owner[descriptor] for descriptor, _ in events))


def _chunks(texts: list[str], share: int) -> Iterable[list[str]]:
    """Texts in order, in groups small enough for one line on a pipe and no larger than one worker's share."""
    chunk: list[str] = []
    characters = 0
    for text in texts:
        if chunk and (len(chunk) == min(CHUNK_TEXTS, share) or characters + len(text) > CHUNK_CHARACTERS):
            yield chunk
            chunk, characters = [], 0
        chunk.append(text)
        characters += len(text)
    if chunk:
        yield chunk


def _line(value: Any) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _environment() -> dict[str, str]:
    """This process's environment, with this package importable also when it was found by a change of sys.path alone."""
    changes = {"PYTHONHASHSEED": "0"}  # sets iterate alike in every worker on every host: equal texts give equal results
    home = Path(__file__).resolve().parent.parent
    if home.name not in ("site-packages", "dist-packages"):
        known = os.environ.get("PYTHONPATH")
        changes["PYTHONPATH"] = str(home) if not known else os.pathsep.join([known, str(home)])
    return os.environ | changes
