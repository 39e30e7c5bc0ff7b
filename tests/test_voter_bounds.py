"""What bounds a voter: the length and the time of a text, the process it belongs to, its own life, the type of its texts."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from processes import children, wait_until

from jaxselftrain import worker_pool
from jaxselftrain.sections import Answer, Vote
from jaxselftrain.voter import MAX_CHARACTERS, Voter

BOXED = Answer(format="boxed")
LINE = Answer(format="regex", pattern=r"^((?:a+)+|\d+)$")
HANG = "a" * 60 + "!"  # exponential in the number of a's for the pattern of LINE


@pytest.fixture(scope="module")
def boxed_voter():
    with Voter(BOXED, Vote(seconds=20)) as voter:
        yield voter


def test_a_voter_forgotten_while_its_workers_start_leaves_none():
    before = set(children())
    for _ in range(3):
        Voter(BOXED, Vote(workers=2))
    gc.collect()
    assert wait_until(lambda: set(children()) <= before, seconds=60)


@pytest.mark.parametrize(
    "texts, part",
    [
        ("ab", "put a single response in a list"),
        (b"ab", "not bytes"),
        (None, "not NoneType"),
        ([5], r"texts\[0\] is int"),
        (["a", None], r"texts\[1\] is NoneType"),
    ],
)
def test_what_is_no_list_of_strings_is_a_type_error_that_says_so(boxed_voter, texts, part):
    with pytest.raises(TypeError, match=part):
        boxed_voter.read(texts)
    assert boxed_voter.read(text for text in ["\\boxed{1}"]).keys == ["n:1"]


@pytest.mark.parametrize(
    "text", ["a" * 50_000_000, "\\boxed{" + "a" * 20_000_000 + "}", "{" * 20_000_000, "\\boxed{5}" * 200_000]
)
def test_a_response_longer_than_any_is_no_answer_and_is_not_looked_at(boxed_voter, text):
    started = time.process_time()
    got = boxed_voter.read([text, "\\boxed{1}"])
    assert (got.keys, got.answers, got.killed) == ([None, "n:1"], [None, "1"], 0)
    assert time.process_time() - started < 0.5  # of this process: neither spelt as JSON nor sent


def test_the_longest_response_is_read(boxed_voter):
    box = "\\boxed{5}"
    assert boxed_voter.read(["x" * (MAX_CHARACTERS - len(box)) + box, "\U0001f600" * 200_000 + box]).keys == ["n:5"] * 2


def test_a_text_has_one_deadline_from_the_moment_that_it_is_sent(monkeypatch):
    """A worker that takes a large text little by little, and says "ready" late, has no more time than another."""
    write = os.write

    def trickle(descriptor, data):
        time.sleep(0.02)
        return write(descriptor, data[:1000])

    with Voter(BOXED, Vote(seconds=0.5)) as voter:
        voter.read(["1"])
        assert wait_until(lambda: len(voter.pids()) == 2)
        monkeypatch.setattr(worker_pool.os, "write", trickle)
        start = time.monotonic()
        got = voter.read(["x" * 1_000_000])
        assert 0.5 <= time.monotonic() - start < 3.0 and got.killed == 1


def test_a_text_that_breaks_its_worker_has_what_is_left_of_its_time_the_second_time(monkeypatch):
    given = []
    send = worker_pool._Worker.send
    monkeypatch.setattr(
        worker_pool._Worker, "send", lambda self, texts, seconds: (given.append(seconds), send(self, texts, seconds))[1]
    )
    with Voter(LINE, Vote(seconds=2)) as voter:
        voter.read(["1"])
        assert wait_until(lambda: len(voter.pids()) == 2)
        killer = threading.Timer(0.5, os.kill, [voter.pids()[0], signal.SIGKILL])
        killer.start()
        start = time.monotonic()
        assert voter.read([HANG]).killed == 1
        assert 2.0 <= time.monotonic() - start < 4.0
        killer.join()
    assert given[:2] == [2, 2] and len(given) == 3 and 0 < given[2] <= 1.5


def test_a_forked_child_is_told_and_its_end_leaves_the_parents_workers_alone():
    code = """
        import gc, os, sys
        from jaxselftrain.sections import Answer, Vote
        from jaxselftrain.voter import Voter
        voter = Voter(Answer(), Vote())
        print(voter.read(["\\\\boxed{1}"]).keys, flush=True)
        pids = voter.pids()
        child = os.fork()
        if not child:
            try:
                voter.read(["\\\\boxed{2}"])
            except RuntimeError as error:
                print(error, flush=True)
            with Voter(Answer(), Vote()) as own:
                print(own.read(["\\\\boxed{3}"]).keys, flush=True)
            voter.close()
            sys.exit()  # with all that runs at exit
        assert os.waitpid(child, 0)[1] == 0
        print(voter.read(["\\\\boxed{4}"]).keys, set(pids) <= set(voter.pids()))
    """
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    first, sentence, *rest = done.stdout.splitlines()
    assert (first, rest, done.returncode) == ("['n:1']", ["['n:3']", "['n:4'] True"], 0), done.stderr
    assert "make a new Voter here, after the fork" in sentence
