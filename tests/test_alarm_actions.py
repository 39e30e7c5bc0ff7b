"""What a run does when its alarm is raised: warn, stop, roll back, take the teacher's labels; killed and resumed in between."""

import json
import subprocess
import sys

import numpy as np
import pytest
from runs import command, environment, final_weights, lines, make_home, without_times

from jaxselftrain.alarm import Raised
from jaxselftrain.answers import answer_key
from jaxselftrain.guard import Guard
from jaxselftrain.metrics import read_alarms, read_metrics, read_rolled_back
from jaxselftrain.sections import Alarm
from jaxselftrain.start import Host

STEPS = 8


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A home whose run, warned by nothing, has its metrics measured."""
    folder = make_home(
        tmp_path_factory.mktemp("alarm"),
        questions=12,
        held_out=4,
        first_held_out=20,
        train={"steps": STEPS},
        evaluate={"every": 0},
        checkpoint={"every": 1, "keep": 3},
        log={"tensorboard": False},
        optimizer={"learning_rate": 3e-3},
    )
    code, _, err = command("train", str(folder / "config.yaml"), "alarm.window=2", "alarm.count=1", "alarm.signals={kl: 99}")
    assert code == 0, err
    return folder


def drifts(folder):
    return {int(line["step"]): line["entropy_drift"] for line in read_metrics(folder) if "entropy_drift" in line}


@pytest.fixture(scope="module")
def crossing(home):
    """(a threshold of entropy_drift, the first step past it): some steps are healthy before, and some follow."""
    found = drifts(home / "run")
    for step in range(4, STEPS - 1):
        before = min(value for at, value in found.items() if at < step)
        if found[step] < before - 1e-4:
            return (found[step] + before) / 2, step
    raise AssertionError(f"entropy never falls to a new low: {found}")


def trained(home, name, crossing, *more):
    """(exit code, stderr, run folder) of a run whose alarm is raised at the crossing."""
    signals = f"alarm.signals={{entropy_drift: {crossing[0]}}}"
    given = ["alarm.window=2", "alarm.count=1", "alarm.patience=1", signals, f"train.folder={home / name}", *more]
    code, _, err = command("train", str(home / "config.yaml"), *given)
    return code, err, home / name


def test_a_warning_changes_nothing_but_is_written_down(home, crossing):
    code, err, run = trained(home, "warn", crossing)
    assert code == 0 and f"step {crossing[1]}: the alarm is raised: the policy has grown sure of every token" in err
    (alarm,) = read_alarms(run)[:1]
    assert (alarm["step"], alarm["action"], alarm["healthy"]) == (crossing[1], "warn", crossing[1] - 1)
    assert alarm["signals"]["entropy_drift"] == pytest.approx(drifts(run)[crossing[1]])
    strip = [{k: v for k, v in row.items() if k != "alarm_score"} for row in without_times(lines(run))]
    assert strip == [{k: v for k, v in row.items() if k != "alarm_score"} for row in without_times(lines(home / "run"))]


def test_stop_ends_the_run_and_says_how_to_go_on(home, crossing):
    code, err, run = trained(home, "stop", crossing, "alarm.action=stop")
    assert code == 0 and "stopping; the healthiest checkpoint is that of step" in err
    assert lines(run)[-1]["step"] == crossing[1] and (run / "summary.json").is_file()
    again = trained(home, "stop", crossing, "alarm.action=stop")
    assert again[0] == 0 and lines(run)[-1]["step"] == crossing[1] and "the alarm is raised" in again[1]
    on = trained(home, "stop", crossing, "alarm.action=warn")
    assert on[0] == 0 and lines(run)[-1]["step"] == STEPS
    exported = command("export", str(run), str(home / "stop.model"))
    assert exported[0] == 0


def test_a_rollback_goes_on_from_the_healthy_checkpoint_with_a_lower_rate(home, crossing):
    code, err, run = trained(home, "back", crossing, "alarm.action=rollback", "alarm.rate=0.1", "alarm.rollbacks=1")
    assert code == 0, err
    alarm = read_alarms(run)[0]
    assert (alarm["action"], alarm["to"], alarm["rate"]) == ("rollback", crossing[1] - 1, 0.1)
    taken = read_rolled_back(run)
    assert [row["step"] for row in taken] == [crossing[1]] and {row["alarm"] for row in taken} == {crossing[1]}
    steps = [row["step"] for row in lines(run)]
    assert steps == sorted(set(steps)), "no step appears twice"
    rates = {row["step"]: row["learning_rate"] for row in lines(run) if "learning_rate" in row}
    assert rates[crossing[1] - 1] == pytest.approx(3e-3) and rates[crossing[1]] == pytest.approx(3e-4)


# The command line, where the checkpoint that a rollback wants has lost its rollouts.
TORN = """
import shutil, sys
from jaxselftrain.checkpoints import Checkpoints

real = Checkpoints.restore_newest

def torn(self, *args, last=None, **more):
    if last is not None:
        shutil.rmtree(self.folder / str(last) / "rollouts")
    return real(self, *args, last=last, **more)

Checkpoints.restore_newest = torn
from jaxselftrain.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_rollback_to_a_damaged_checkpoint_takes_the_one_before(home, crossing):
    """What the damaged one would have put back is sampled and learned again."""
    run, healthy = home / "torn", crossing[1] - 1
    given = ["alarm.window=2", "alarm.patience=1", "alarm.action=rollback", "alarm.rate=0.1", "alarm.rollbacks=1"]
    given += [f"alarm.signals={{entropy_drift: {crossing[0]}}}", f"train.folder={run}"]
    arguments = ["train", str(home / "config.yaml"), *given]
    done = subprocess.run(
        [sys.executable, "-c", TORN, *arguments], env=environment(), capture_output=True, text=True, timeout=600
    )
    said = done.stderr
    assert done.returncode == 0 and "Traceback" not in said, said
    alarm = read_alarms(run)[0]
    assert (alarm["action"], alarm["to"]) == ("rollback", healthy)
    assert f"the checkpoint of step {healthy} is damaged (" in said and f"resuming after step {healthy - 1}" in said
    assert [row["step"] for row in read_rolled_back(run)] == [healthy, crossing[1]]
    rows = lines(run)
    steps = [row["step"] for row in rows if row["step"]]
    assert steps == list(range(1, steps[-1] + 1)) and steps[-1] >= crossing[1]  # none is missing or twice
    rates = {row["step"]: row["learning_rate"] for row in rows if "learning_rate" in row}
    assert rates[healthy - 1] == pytest.approx(3e-3) and rates[healthy] == pytest.approx(3e-4)


def test_a_rollback_by_surprise_goes_back_to_where_it_was_lowest(home):
    given = ["alarm.window=2", "alarm.patience=1", "reference.keep=always", f"train.folder={home / 'watched'}"]
    assert command("train", str(home / "config.yaml"), *given, "alarm.signals={surprise_rise: 99}")[0] == 0
    watched = read_metrics(home / "watched")
    surprise = {int(line["step"]): line["surprise"] for line in watched if "surprise" in line}
    means = {step: (surprise[step - 1] + value) / 2 for step, value in surprise.items() if step > 1}
    rises = {int(line["step"]): line["surprise_rise"] for line in watched if "surprise_rise" in line}
    first = next(step for step in rises if step > 3 and rises[step] > 1e-4)
    threshold = rises[first] - 1e-6
    at = next(step for step in rises if rises[step] > threshold)
    given = [*given[:-1], f"train.folder={home / 'calm'}", "alarm.action=rollback", "alarm.rollbacks=1"]
    code, _, err = command("train", str(home / "config.yaml"), *given, f"alarm.signals={{surprise_rise: {threshold}}}")
    alarm = read_alarms(home / "calm")[0]
    calmest = min((step for step in means if step < at), key=lambda step: means[step])
    assert code == 0 and (alarm["step"], alarm["to"]) == (at, calmest), err
    assert read_rolled_back(home / "calm")[0]["step"] == calmest + 1


def test_a_rollback_that_has_put_nothing_off_is_followed_by_one_to_the_beginning(tmp_path):
    guard = Guard(Alarm(action="rollback", window=5), tmp_path, say=lambda text: None)
    host = Host(healthy_step=30)

    def raised(step):
        assert guard.act(host, Raised(step, 1, {"surprise_rise": 0.2}), is_last=False) == "rollback"
        host.rollbacks, host.rate = host.rollbacks + 1, host.alarms[-1]["rate"]
        return host.alarms[-1]["to"]

    assert [raised(40), raised(45), raised(49)] == [30, 30, 0]
    assert guard.act(host, Raised(80, 1, {"surprise_rise": 0.2}), is_last=False) == "stop", "three are used up"
    assert [alarm["to"] for alarm in read_alarms(tmp_path)[:3]] == [30, 30, 0]


def test_without_a_healthy_checkpoint_a_rollback_begins_anew(home, crossing):
    code, err, run = trained(home, "anew", crossing, "alarm.action=rollback", "alarm.rollbacks=1", "checkpoint.every=100")
    assert code == 0 and "back to the beginning, and on with 0.3 of the learning rate" in err
    assert [row["step"] for row in read_rolled_back(run)] == list(range(crossing[1] + 1))
    assert lines(run)[0]["step"] == 0 and lines(run)[1]["learning_rate"] == pytest.approx(0.3 * 3e-3)


def test_killed_after_a_rollback_and_resumed_is_as_never_stopped(home, crossing):
    given = ("alarm.action=rollback", "alarm.rate=0.1", "alarm.rollbacks=1")
    whole = trained(home, "whole", crossing, *given)[2]
    trained(home, "part", crossing, *given, f"train.steps={crossing[1] + 1}")
    part = trained(home, "part", crossing, *given)[2]
    assert without_times(lines(part)) == without_times(lines(whole))
    assert read_alarms(part) == read_alarms(whole)
    assert [row["step"] for row in read_rolled_back(part)] == [row["step"] for row in read_rolled_back(whole)]
    last = int(lines(whole)[-1]["step"])
    ours, theirs = final_weights(part, last), final_weights(whole, last)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_teacher_takes_over(home, crossing):
    labels = home / "labels.jsonl"
    made = command("label", str(home / "model"), str(home / "train.jsonl"), str(labels), "--config", str(home / "config.yaml"))
    assert made[0] == 0, made[2]
    code, err, run = trained(home, "teacher", crossing, "alarm.action=teacher", f"alarm.labels={labels}")
    assert code == 0 and "from here on the labels are the frozen teacher's" in err
    keys = {row["id"]: row["key"] for row in map(json.loads, labels.read_text().splitlines()) if "id" in row}
    rows = [json.loads(text) for text in (run / "responses.jsonl").read_text().splitlines()]
    before, after = (
        [
            (keys[row["id"]] if late else row["majority"], {answer_key(s["answer"]) for s in row["samples"] if s["reward"] == 1})
            for row in rows
            if (row["step"] > crossing[1]) == late
        ]
        for late in (False, True)
    )
    for label, rewarded in before + after:
        assert rewarded <= {label}
    assert any(rewarded for _, rewarded in before) and after
