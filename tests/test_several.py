"""Several processes that train together: the same as one with the same devices, and nothing lost when one of them ends."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from pods import Pod
from runs import lines, make_home, without_times
from saved import saved_arrays

STEPS = 8
WITHIN = 150.0  # seconds, in which the others end after one has died


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Questions are left out and replaced, some are probes, and the reference is kept: all that processes must agree on."""
    return make_home(
        tmp_path_factory.mktemp("several"),
        questions=16,
        held_out=10,
        first_held_out=20,
        mesh={"data": -1, "fsdp": 2},
        rollout={"questions": 8, "rows": 8},
        probe={"questions": 3, "every": 2},
        reference={"keep": "always"},
        reward={"minimum_share": 0.4, "refill": 2},
        evaluate={"every": 4, "samples": 3, "batch": 4},
        log={"tensorboard": False},
        train={"steps": STEPS},
    )


def start(home: Path, name: str, count: int, *overrides: str, devices: int, **options) -> Pod:
    settings = f"train.folder={home / name}", *overrides
    return Pod(count, "train", str(home / "config.yaml"), *settings, devices=devices, logs=home / name, **options)


def finished(home: Path, name: str, count: int, *overrides: str, devices: int) -> Path:
    with start(home, name, count, *overrides, devices=devices) as pod:
        assert pod.wait() == [0] * count, pod.told()
    return home / name


@pytest.fixture(scope="module")
def alone(home) -> Path:
    return finished(home, "alone", 1, devices=4)


@pytest.fixture(scope="module")
def two(home) -> Path:
    return finished(home, "two", 2, devices=2)


def same(run: Path, other: Path, *, exactly: bool) -> None:
    """Both went the same way: metrics, responses, evaluations, weights."""
    ours, theirs = without_times(lines(run)), without_times(lines(other))
    assert [line["step"] for line in ours] == list(range(STEPS + 1))
    for line, want in zip(ours, theirs, strict=True):
        assert line == (want if exactly else pytest.approx(want, rel=1e-4, abs=2e-6))
    for file in ("responses.jsonl", *(f"evaluations/step_{step:06d}.jsonl" for step in (0, 4, STEPS))):
        assert (run / file).stat().st_size > 0
    for step in (0, STEPS):
        file = f"evaluations/step_{step:06d}.jsonl"
        assert lines(run, file) == lines(other, file) and len(lines(run, file)) == 10
    assert any(line.get("refilled_share", 0) > 0 for line in ours) and any("probe_agreement" in line for line in ours)
    want = saved_arrays(other, STEPS)
    for name, x in saved_arrays(run, STEPS).items():
        if exactly:
            np.testing.assert_array_equal(x, want[name], err_msg=name)
        elif "params" in name:
            np.testing.assert_allclose(x, want[name], rtol=0, atol=2e-5, err_msg=name)


def test_two_processes_train_as_one_with_the_same_devices(two, alone):
    same(two, alone, exactly=False)
    kept = {path.name for path in two.iterdir()}
    assert {"config.yaml", "metrics.jsonl", "summary.json", "picture.png"} <= kept
    assert not list((two / "evaluations").glob("*.part"))
    rows = {(row["step"], row["id"]) for row in lines(two, "responses.jsonl")}
    assert rows == {(row["step"], row["id"]) for row in lines(alone, "responses.jsonl")}


def test_four_processes_train_as_one_with_the_same_devices(home, alone):
    same(finished(home, "four", 4, devices=1), alone, exactly=False)


def test_a_run_that_loses_processes_goes_on_as_if_it_had_not(home, two):
    run = home / "lost"
    with start(home, "lost", 2, devices=2) as pod:  # one is told to stop: all save at the same step
        pod.wait_for_step(run, 1)
        pod.signal(1, signal.SIGTERM)
        assert pod.wait() == [75, 75], pod.told()
        assert "everything is saved" in pod.told(0) and ", in all processes" in pod.told(0)
    for number in (1, 0):  # one is killed, then the one that keeps the run folder
        saved = max(int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit())
        with start(home, "lost", 2, devices=2) as pod:
            pod.wait_for_step(run, saved + 1)
            began = time.monotonic()
            pod.signal(number, signal.SIGKILL)
            codes = pod.wait(WITHIN)
            assert time.monotonic() - began < WITHIN
            assert codes[number] == -signal.SIGKILL and codes[1 - number] in (75, -signal.SIGABRT), pod.told()
            assert "another process of this run has ended" in pod.told(1 - number) or "another task died" in pod.told(1 - number)
    same(finished(home, "lost", 2, devices=2), two, exactly=True)


def test_a_run_goes_on_with_fewer_processes(home, two):
    with start(home, "fewer", 2, devices=2) as pod:
        pod.wait_for_step(home / "fewer", 2)
        pod.signal(0, signal.SIGTERM)
        assert pod.wait() == [75, 75], pod.told()
    same(finished(home, "fewer", 1, devices=4), two, exactly=False)


SLOW = """
import os, sys, time
from jaxselftrain import cli, voter
read = voter.Voter.read
def slow(self, texts):
    time.sleep(1.5 * (os.environ["JAX_PROCESS_ID"] == "1"))
    return read(self, texts)
voter.Voter.read = slow
sys.exit(cli.console())
"""


def test_a_slow_voter_is_waited_for(home, two):
    program = (sys.executable, "-c", SLOW)
    with start(home, "slow", 2, "evaluate.every=8", devices=2, program=program) as pod:
        assert pod.wait() == [0, 0], pod.told()
    assert all(line["voter_seconds"] >= 1.5 for line in lines(home / "slow")[1:])
    ours, theirs = (saved_arrays(home / name, STEPS) for name in ("slow", "two"))
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name], err_msg=name)


@pytest.mark.parametrize(
    "overrides, sentence",
    [
        (["mesh.data=1", "mesh.fsdp=1", "mesh.tensor=4"], "choose samples and tensor so that their product divides"),
        (["evaluate.batch=12"], "evaluate.batch = 12 is more than the 10 evaluation questions"),
        (["model.path=/nowhere"], "/nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_of_each_process(overrides, sentence, home):
    with start(home, "wrong", 2, *overrides, devices=2) as pod:
        assert pod.wait(120) == [2, 2], pod.told()
        for number in range(2):
            assert sentence in pod.told(number) and "Traceback" not in pod.told(number)
    assert not (home / "wrong").exists() or not (home / "wrong" / "metrics.jsonl").exists()


OTHER_QUESTIONS = """
import os, sys
from jaxselftrain import cli, material
load = material.load_run_questions
def other(config, say):
    training, held_out = load(config, say=say)
    return (training[1:] if os.environ["JAX_PROCESS_ID"] == "1" else training), held_out
material.load_run_questions = other
sys.exit(cli.console())
"""


OTHER_SETTINGS = """
import os, sys
from jaxselftrain import cli
sys.argv.append("train.seed=" + os.environ["JAX_PROCESS_ID"])
sys.exit(cli.console())
"""


@pytest.mark.parametrize(
    "program, sentence",
    [
        (OTHER_QUESTIONS, "have read different questions or labels"),
        (OTHER_SETTINGS, "were started with different settings; start all with the same command"),
    ],
)
def test_what_differs_between_machines_is_one_sentence_of_each_process(program, sentence, home):
    with start(home, "different", 2, devices=2, program=(sys.executable, "-c", program)) as pod:
        assert pod.wait(120) == [2, 2], pod.told()
        for number in range(2):
            assert sentence in pod.told(number) and "Traceback" not in pod.told(number)


OWN_FOLDERS = """
import os, sys
from jaxselftrain import cli, training
training.SEEN_WITHIN = 1.0
os.chdir(os.path.join(sys.argv.pop(1), os.environ["JAX_PROCESS_ID"]))
sys.exit(cli.console())
"""


def test_a_folder_that_is_not_shared_is_one_sentence_of_each_process(home, tmp_path):
    for number in range(2):
        (tmp_path / str(number)).mkdir()
    program = (sys.executable, "-c", OWN_FOLDERS, str(tmp_path))
    arguments = "train", str(home / "config.yaml"), "train.folder=runs/own"
    with Pod(2, *arguments, devices=2, logs=tmp_path / "own", program=program) as pod:
        assert pod.wait(120) == [2, 2], pod.told()
        for number in range(2):
            assert "the processes do not share runs/own" in pod.told(number) and "Traceback" not in pod.told(number)
    assert not list(tmp_path.glob("*/runs/own"))


def test_stages_are_refused(home, tmp_path):
    config = json.loads(json.dumps({"stages": [{"name": "one"}]}))
    made = make_home(tmp_path, questions=8, held_out=4, first_held_out=20, **config)
    with Pod(2, "train", str(made / "config.yaml"), devices=1, logs=tmp_path / "stages") as pod:
        assert pod.wait(60) == [2, 2]
        assert "a config with stages is trained by one process so far" in pod.told(1)
