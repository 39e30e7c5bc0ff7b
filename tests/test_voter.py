"""The worker processes: equal to reading in this process, and whole whatever a response or an operator does to them."""

import gc
import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from processes import alive, children, wait_until

from jaxselftrain import voter_worker, worker_pool
from jaxselftrain.answers import answer_key, extract
from jaxselftrain.errors import UserError
from jaxselftrain.sections import Answer, Vote
from jaxselftrain.voter import Voter

BOXED = Answer(format="boxed")
LINE = Answer(format="regex", pattern=r"^((?:a+)+|\d+)$")
HANG = "a" * 60 + "!"  # exponential in the number of a's for the pattern of LINE


def in_this_process(texts, answer):
    answers = [extract(text, answer) for text in texts]
    return answers, [None if found is None else answer_key(found) for found in answers]


def slow_text(seconds):
    """A text without an answer in the format of LINE that takes at least so long here, and the time it took."""
    length, took = 16, 0.0
    while took < seconds:
        length += 1
        start = time.monotonic()
        extract("a" * length + "!", LINE)
        took = time.monotonic() - start
    return "a" * length, took


@pytest.fixture(scope="module")
def boxed_voter():
    with Voter(BOXED, Vote(seconds=20, workers=2)) as voter:
        yield voter


PIECES = st.sampled_from(["\\boxed{", "\\fbox{", "}", "{", "1", "1/2", " ", "\n", "\0", "x", "é", "\ud800", "\\", "$"])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.text(max_size=20), st.lists(PIECES, max_size=12).map("".join)), max_size=40))
def test_equals_reading_in_this_process(boxed_voter, texts):
    answers, keys = in_this_process(texts, BOXED)
    got = boxed_voter.read(texts)
    assert (got.answers, got.keys, got.killed) == (answers, keys, 0)


def test_large_batches_and_large_texts_pass_the_pipes(boxed_voter):
    texts = [f"\\boxed{{{i % 700}}}" for i in range(3000)] + ["é" * 1_000_000 + f"\\boxed{{{i}}}" for i in range(4)]
    got = boxed_voter.read(texts)
    assert got.keys == [f"n:{i % 700}" for i in range(3000)] + [f"n:{i}" for i in range(4)] and got.killed == 0


@pytest.mark.parametrize(
    "answer, text, key",
    [
        (Answer(format="hash"), "#### 7", "n:7"),
        (Answer(format="last_line"), "a\n7.0", "n:7"),
        (Answer(format="letter"), "the answer is (b)", "t:B"),
        (Answer(format="regex", pattern="=(.)"), "=1 =7", "n:7"),
        (Answer(format="first_line", max_characters=1), "77", None),
    ],
)
def test_every_setting_reaches_the_workers(answer, text, key):
    with Voter(answer, Vote()) as voter:
        assert voter.read([text]).keys == [key] == in_this_process([text], answer)[1]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_response_that_never_ends_costs_its_own_vote_and_at_most_its_time(workers):
    with Voter(LINE, Vote(seconds=0.5, workers=workers)) as voter:
        voter.read(["1"])  # the workers are up
        texts = [*map(str, range(30)), HANG, *map(str, range(100, 130)), HANG, "aaa"]
        start = time.monotonic()
        got = voter.read(texts)
        seconds = time.monotonic() - start
        assert got.keys == [f"n:{i}" for i in range(30)] + [None] + [f"n:{i}" for i in range(100, 130)] + [
            None,
            answer_key("aaa"),
        ]
        assert got.killed == 2  # both samples; the text itself ran once
        assert 0.5 <= seconds < 3.0
        assert voter.read(texts[:10]).keys == got.keys[:10]


def test_the_limit_is_for_each_response_not_for_the_batch():
    text, one = slow_text(0.1)
    slow = [text + "!" * (1 + i) for i in range(16)]
    with Voter(LINE, Vote(seconds=8 * one)) as voter:
        voter.read(["1"])
        start = time.monotonic()
        got = voter.read(slow)
        assert time.monotonic() - start > 8 * one
    assert got.killed == 0 and got.keys == [None] * 16


def test_equal_texts_are_read_once(monkeypatch):
    sent = []
    send = worker_pool._Worker.send
    monkeypatch.setattr(
        worker_pool._Worker, "send", lambda self, texts, seconds: (sent.extend(texts), send(self, texts, seconds))[1]
    )
    monkeypatch.setattr(worker_pool, "CACHED_TEXTS", 3)
    with Voter(BOXED, Vote()) as voter:
        a, b, c, d = (f"\\boxed{{{i}}}" for i in "1234")
        assert voter.read([a, b, a, a]).keys == ["n:1", "n:2", "n:1", "n:1"] and sent == [a, b]
        assert voter.read([b, c, a]).keys == ["n:2", "n:3", "n:1"] and sent == [a, b, c]
        assert voter.read([d]).keys == ["n:4"] and voter.read([c, a]).keys == ["n:3", "n:1"] and sent == [a, b, c, d]
        assert voter.read([b]).keys == ["n:2"] and sent == [a, b, c, d, b]  # the one used longest ago had to go


def test_a_worker_that_someone_kills_is_replaced(boxed_voter):
    for round in range(3):
        boxed_voter.read(["up"])
        for pid in boxed_voter.pids():  # also the warm one
            os.kill(pid, signal.SIGKILL)
        got = boxed_voter.read([f"\\boxed{{{round}{i}}}" for i in range(200)])
        assert got.killed == 0 and got.keys == [answer_key(f"{round}{i}") for i in range(200)]


def test_a_worker_killed_while_it_reads_gives_its_text_a_second_chance():
    medium = slow_text(1.0)[0] + "!"
    with Voter(LINE, Vote(seconds=60)) as voter:
        voter.read(["1"])
        victims = voter.pids()[:1]
        killer = threading.Timer(0.2, lambda: [os.kill(pid, signal.SIGKILL) for pid in victims])
        killer.start()
        got = voter.read([medium, "5"])
        killer.join()
        assert not set(victims) & set(voter.pids())
        assert got.killed == 0 and got.keys == [None, "n:5"]


def test_a_worker_that_runs_out_of_memory_goes_on(monkeypatch):
    grow = Answer(format="regex", pattern=r"(?s)((?:(?=(x))|y|.)*)=1")
    monkeypatch.setattr("jaxselftrain.voter.MAX_CHARACTERS", 10**8)
    with Voter(grow, Vote(seconds=20)) as voter:
        got = voter.read(["x" * 20_000_000, "5=1"])
        assert got.keys[1] == "n:5" and got.keys[0] is None and got.killed == 1


def test_any_thread_may_read(boxed_voter):
    wrong = []

    def read(thread):
        for round in range(5):
            numbers = [f"{thread}{round}{i}" for i in range(30)]
            if boxed_voter.read([f"\\boxed{{{n}}}" for n in numbers]).keys != [answer_key(n) for n in numbers]:
                wrong.append(thread)

    threads = [threading.Thread(target=read, args=(thread,)) for thread in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and boxed_voter.read(["\\boxed{1}"]).keys == ["n:1"]  # the threads that used them first are gone


@pytest.fixture
def interruptible():
    """Ctrl-C as in a program started by hand: test runners and shells may have started this process with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_leaves_no_stale_result(interruptible):
    with Voter(LINE, Vote(seconds=30)) as voter:
        voter.read(["1"])
        timer = threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            voter.read([HANG, "2"])
        timer.join()
        assert voter.read(["3", "4"]).keys == ["n:3", "n:4"]


def test_close_leaves_no_process_behind():
    before = set(children())
    voter = Voter(LINE, Vote(seconds=0.3, workers=2))
    voter.read([HANG, "1"])
    assert len(set(children()) - before) >= 2
    voter.close()
    voter.close()
    assert set(children()) <= before  # no zombies either
    with Voter(BOXED, Vote()):
        pass  # closed before a worker is up
    assert set(children()) <= before
    with pytest.raises(ValueError, match="closed"):
        voter.read(["1"])


@pytest.mark.parametrize("text", ["5", HANG], ids=["idle", "hanging"])
def test_workers_end_when_the_parent_is_killed(text):
    code = f"""
        import threading, time
        from jaxselftrain.sections import Answer, Vote
        from jaxselftrain.voter import Voter
        voter = Voter(Answer(format="regex", pattern={LINE.pattern!r}), Vote(seconds=600))
        voter.read(["1"])
        while len(voter.pids()) < 2:
            time.sleep(0.05)
        print(*voter.pids(), flush=True)
        voter.read([{text!r}])
        time.sleep(600)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.3)
        assert len(pids) == 2 and all(map(alive, pids))
        parent.kill()
    assert wait_until(lambda: not any(map(alive, pids)))


def test_a_worker_without_a_parent_ends_a_hanging_text_by_itself():
    """The second net, for systems without PR_SET_PDEATHSIG: the CPU limit, which the kernel enforces inside a running C loop."""
    process = subprocess.Popen([sys.executable, "-m", "jaxselftrain.voter_worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    settings = {"answer": LINE.model_dump(), "seconds": 0.1, "parent": os.getpid()}
    process.stdin.write(json.dumps(settings).encode() + b"\n" + json.dumps([HANG]).encode() + b"\n")
    process.stdin.flush()
    assert process.wait(timeout=20) == -signal.SIGXCPU
    process.stdin.close()
    process.stdout.close()


def test_workers_import_neither_jax_nor_numpy():
    code = "import sys, jaxselftrain.voter_worker; print([m for m in ('jax', 'numpy', 'pydantic', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    code = "import sys, jaxselftrain.voter; print([m for m in ('jax', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_limits_are_set_in_every_worker():
    with Voter(BOXED, Vote(seconds=20)) as voter:
        voter.read(["1"])
        assert wait_until(lambda: len(voter.pids()) == 2)
        for pid in voter.pids():
            limits = {line[:25].strip(): line[25:].split() for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
            assert limits["Max address space"][:2] == [str(512 * 2**20)] * 2
            assert limits["Max file size"][:2] == limits["Max core file size"][:2] == ["0", "0"]
            assert 2 * 20 < int(limits["Max cpu time"][0]) < 2 * 20 + 30  # twice vote.seconds from what was used so far


def test_a_warm_spare_takes_over_at_once(monkeypatch):
    """A killed worker's successor is up before it is needed: the delay is the budget of the text and nothing more."""
    with Voter(LINE, Vote(seconds=0.3)) as voter:
        voter.read(["1"])
        assert wait_until(lambda: len(voter.pids()) == 2)
        spare = voter.pids()[1]
        monkeypatch.setattr(worker_pool.WorkerPool, "_start", lambda self: None)  # no further worker can come up
        start = time.monotonic()
        got = voter.read([HANG, "2"])
        assert (got.keys, got.killed) == ([None, "n:2"], 1)
        assert 0.3 <= time.monotonic() - start < 3.0
        assert voter.pids() == [spare]


def test_the_answer_that_many_responses_share_is_parsed_once(monkeypatch):
    parsed = []
    monkeypatch.setattr(voter_worker, "answer_key", lambda answer: (parsed.append(answer), answer_key(answer))[1])
    read = voter_worker.reader({"answer": BOXED.model_dump()})
    parsed.clear()  # the warm-up
    assert [read(f"{i} \\boxed{{7}}") for i in range(3)] == [["7", "n:7"]] * 3 and read("?") == [None, None]
    assert parsed == ["7"]


def test_a_voter_outlives_the_thread_that_made_it_and_ends_when_forgotten():
    before, made = set(children()), []
    thread = threading.Thread(target=lambda: made.append(Voter(BOXED, Vote())))
    thread.start()
    thread.join()
    assert made[0].read(["\\boxed{1}"]).keys == ["n:1"]
    assert wait_until(lambda: len(made[0].pids()) == 2)
    pids = made[0].pids()
    assert set(pids) <= set(children()) - before
    made.clear()  # as when a notebook's cell runs again: nothing closed it
    gc.collect()
    assert wait_until(lambda: set(children()) <= before)  # no zombies either


def test_several_voters_in_one_process_and_nothing_printed(boxed_voter, capfd):
    with Voter(Answer(format="hash"), Vote()) as other, Voter(LINE, Vote(seconds=0.3)) as third:
        got = {}
        threads = [
            threading.Thread(target=lambda n=name, v=voter: got.update({n: v.read(["\\boxed{1}", "#### 2", "3", HANG]).keys}))
            for name, voter in (("boxed", boxed_voter), ("hash", other), ("line", third))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    nothing = [None] * 4
    assert got == {"boxed": ["n:1", *nothing[1:]], "hash": [None, "n:2", None, None], "line": [None, None, "n:3", None]}
    assert capfd.readouterr() == ("", "")


def test_order_and_results_do_not_depend_on_the_number_of_workers():
    texts = [f"\\boxed{{{i % 37}/{i % 11}}}" for i in range(500)] + ["no answer"] * 3
    want = in_this_process(texts, BOXED)
    for workers in (1, 3):
        with Voter(BOXED, Vote(workers=workers)) as voter:
            for batch in (texts, texts[::-1]):
                got = voter.read(batch)
                assert (got.answers, got.keys) == (want if batch is texts else (want[0][::-1], want[1][::-1]))


def test_the_main_module_is_not_imported_again(tmp_path):
    """As in a notebook or a script without `if __name__ == "__main__"`."""
    script = tmp_path / "script.py"
    script.write_text(
        "print('imported', __name__)\n"
        "from jaxselftrain.sections import Answer, Vote\n"
        "from jaxselftrain.voter import Voter\n"
        "print(Voter(Answer(), Vote(workers=2)).read(['\\\\boxed{1}']).keys)\n"  # and not closed
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "imported __main__\n['n:1']\n"), done.stderr


def test_workers_have_their_own_session_and_only_their_pipes(boxed_voter):
    with open(__file__) as held:
        os.set_inheritable(held.fileno(), True)
        with Voter(BOXED, Vote()) as voter:
            voter.read(["up"])
            pid = voter.pids()[0]
            assert os.getsid(pid) == pid != os.getsid(0)
            targets = {os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
    assert __file__ not in targets and all(target.startswith(("pipe:", "/dev/null")) for target in targets), targets


def test_a_module_in_the_users_folder_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    with Voter(BOXED, Vote()) as voter:
        assert voter.read(["\\boxed{1}"]).keys == ["n:1"]


def test_workers_that_cannot_start_are_an_error_that_says_what_to_try(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with Voter(BOXED, Vote()) as voter, pytest.raises(ChildProcessError, match=r"did not start.*try /bin/false"):
        voter.read(["1"])


def test_a_bad_pattern_is_refused_at_once():
    with pytest.raises(UserError, match=r"answer\.pattern"):
        Voter(Answer(format="regex", pattern="("), Vote())
