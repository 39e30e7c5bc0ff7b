"""The study of collapse: its rules on runs made by hand, and the whole campaign on policies that learn in seconds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import environment

from jaxselftrain.alarm import SIGNALS
from jaxselftrain.sections import Alarm
from jaxselftrain.trends import TRENDS

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import calibration  # noqa: E402
import campaign  # noqa: E402
import collapse  # noqa: E402

SETTINGS = Alarm(window=4, patience=2)


def made(accuracy, *, task="a", condition="srt", seed=0, **signals) -> campaign.Run:
    """A run with held-out accuracy at every tenth step and the given metrics, functions of the step, at all of them."""
    steps = list(range(10 * len(accuracy) - 9))
    values = {"step": steps, "loss": [None] + [0.0] * (len(steps) - 1)}
    values["heldout/avg"] = [accuracy[step // 10] if step % 10 == 0 else None for step in steps]
    values |= {name: [None, *(float(of(step)) for step in steps[1:])] for name, of in signals.items()}
    return campaign.Run(task, condition, seed, [], [], values)


@pytest.mark.parametrize(
    ("accuracy", "at"),
    [
        ([0.5, 0.6, 0.6, 0.6, 0.6], None),
        ([0.5, 0.6, 0.56, 0.56, 0.56], None),  # four points are no collapse
        ([0.5, 0.6, 0.54, 0.5, 0.4], 20),
        ([0.5, 0.6, 0.5, 0.6, 0.6, 0.6], None),  # it came back
        ([0.5, 0.6, 0.5, 0.6, 0.5, 0.5, 0.5], 20),  # lost at 20, and at the end
        ([0.5, 0.6, 0.6, 0.6, 0.6, 0.5], None),  # one evaluation may be chance
        ([0.5, 0.4, 0.3, 0.2], 10),  # never rose
        ([0.5, 0.45, 0.42, 0.44, 0.8], None),
    ],
)
def test_a_collapse_is_a_loss_that_is_there_at_the_end(accuracy, at):
    assert calibration.collapse_step(made(accuracy)) == at


def rising(start, stop):
    return lambda step: min(max((step - start) / (stop - start), 0.0), 1.0)


HEALTHY = {"no_answer_share": lambda step: 0.1 + 0.001 * step, "entropy": lambda step: 1 - 0.01 * step}
FALLING = {"no_answer_share": rising(12, 25), "entropy": lambda step: 1 - 0.005 * step}


def some_runs(task, *, onset=30, seeds=3):
    fallen = [0.5, 0.6] + [0.6] * (onset // 10 - 2) + [0.1] * 4
    healthy = [
        made([0.5, 0.6, 0.61, 0.62, 0.63, 0.64], task=task, condition="gold", seed=seed, **HEALTHY) for seed in range(seeds)
    ]
    return healthy + [made(fallen, task=task, condition="hard", seed=seed, **FALLING) for seed in range(seeds)]


def test_the_signal_that_tells_is_found_with_a_threshold_that_loses_nothing():
    runs = some_runs("a")
    alarm = calibration.calibrate(runs, SETTINGS)
    assert set(alarm.signals) == {"no_answer_drift"}, "the entropy of healthy runs falls further"
    found = calibration.outcomes(runs, alarm)
    assert not any(outcome.is_false for outcome in found) and sum(outcome.is_caught for outcome in found) == 3
    assert all(outcome.kept == 0.6 for outcome in found if outcome.is_caught), "not so early that the best is still to come"


def test_a_second_signal_is_taken_where_it_catches_what_the_first_does_not():
    still = {name: lambda step: 1.0 for name in HEALTHY}
    other = [
        made([0.5, 0.6, 0.6, 0.1, 0.1, 0.1, 0.1], condition="harder", seed=seed, truncated_share=rising(16, 28), **still)
        for seed in range(3)
    ]
    calm = {"truncated_share": lambda step: 0.0}
    runs = [made(list(run.curve("heldout/avg").values()), condition=run.condition, seed=run.seed,
                 **(HEALTHY if run.condition == "gold" else FALLING), **calm) for run in some_runs("a")]  # fmt: skip
    alarm = calibration.calibrate([*runs, *other], SETTINGS)
    assert set(alarm.signals) == {"no_answer_drift", "truncated_drift"} and alarm.count == 1
    assert sum(outcome.is_caught for outcome in calibration.outcomes([*runs, *other], alarm)) == 6


def test_regret_is_what_the_best_had_more_than_the_evaluation_before():
    regrets = calibration.regrets(made([0.5, 0.75, 0.25, 0.25, 0.25]))
    assert len(regrets) == 42, "a place for each step from 0, and one for the whole run"
    assert (regrets[:10] == 0.25).all() and (regrets[10:20] == 0).all() and (regrets[20:] == 0.5).all()
    healthy = calibration.regrets(made([0.5, 0.5, 0.5, 0.5]))
    assert healthy[:-1] == pytest.approx(calibration.FALSE) and healthy[-1] == 0


@pytest.mark.parametrize("name", ["kl", "pseudo_reward", "distinct_answers", "halves_differ_share"])
def test_the_search_sees_an_alarm_at_the_step_at_which_the_loop_would_raise_it(name):
    rng = np.random.default_rng(0)
    for _ in range(20):
        noise = rng.random(61)
        run = made([0.5] * 7, **{name: lambda step, noise=noise: noise[step]})
        threshold = float(np.quantile(noise, 0.5))
        alarm = SETTINGS.model_copy(update={"signals": {name: threshold}, "count": 1})
        (outcome,) = calibration.outcomes([run], alarm)
        seen = calibration.held(run, window=alarm.window, patience=alarm.patience)
        assert calibration.first_past(seen[name], SIGNALS[name][0], threshold) == outcome.raised


def test_leaving_a_task_out_takes_nothing_from_it():
    runs = some_runs("a") + some_runs("b")
    left = calibration.leave_one_out(runs, SETTINGS)
    changed = [run for run in runs if run.task == "a"] + some_runs("b", onset=40, seeds=2)
    again = calibration.leave_one_out(changed, SETTINGS)
    assert left["b"][0] == again["b"][0], "thresholds for b are found on a alone"
    assert {outcome.run.task for outcome in left["a"][1]} == {"a"}


def test_outcomes_say_in_time_late_missed_and_false():
    late = made([0.5, 0.6, 0.3, 0.3, 0.3, 0.3], kl=rising(30, 31))
    early = made([0.5, 0.6, 0.6, 0.3, 0.3, 0.3], kl=rising(2, 3))
    missed = made([0.5, 0.6, 0.3, 0.3, 0.3], kl=lambda step: 0)
    false = made([0.5, 0.6, 0.6, 0.6], kl=rising(2, 3))
    alarm = SETTINGS.model_copy(update={"signals": {"kl": 0.5}, "count": 1})
    found = calibration.outcomes([late, early, missed, false], alarm)
    assert [(o.is_caught, o.is_late, o.is_false) for o in found] == [
        (False, True, False),
        (True, False, False),
        (False, False, False),
        (False, False, True),
    ]
    assert found[0].lead < 0 < found[1].lead
    assert found[1].kept == 0.5, "the evaluation before the alarm"
    assert found[2].raised is None and found[2].kept is None


def test_intervals_are_student_t():
    mean, half = collapse.mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert half == pytest.approx(4.302653 / 3**0.5, rel=1e-5)  # t(0.975, 2), standard deviation 1
    assert np.isnan(collapse.mean_interval([1.0])[1])


def test_every_condition_is_a_run_that_may_be():
    from jaxselftrain.config import load_config, override_config
    from jaxselftrain.stages import plan

    for name, task in collapse.TASKS.items():
        config = load_config(task.config)
        last = plan(config, Path("unused"))[-1].config if config.stages else config
        for condition in task.conditions:
            settings = [setting.replace(campaign.LABELS, "labels.jsonl") for setting in condition.settings]
            assert override_config(last, [*task.settings, *settings]) != last, (name, condition.name)


def test_results_that_are_kept_are_whole():
    runs = campaign.read_runs(collapse.RESULTS)
    assert len(runs) >= 24
    for run in runs:
        steps = run.values["step"]
        assert steps == sorted(set(steps)) and all(len(series) == len(steps) for series in run.values.values()), run.name
        is_stopped = bool(run.alarms) and run.alarms[-1]["action"] == "stop"
        evaluated = run.curve("heldout/avg")
        assert 0 in evaluated and (is_stopped or steps[-1] in evaluated), run.name
        assert is_stopped or steps[-1] >= (12 if run.task.startswith("smollm2") else 300), run.name


TASK = """
model: {path: "new://layers=1,width=16,heads=2", remat: none}
questions: &questions
  source: reasoning_gym
  count: 60
  seed: 1
  fields: {question: metadata.expression}
  tasks: [{name: chain_sum, parameters: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}]
prompt: {template: "{question} = "}
rollout: {questions: 4, max_tokens: 4, stop: ["\\n"]}
answer: {format: regex, pattern: "([0-9])"}
vote: {samples: 4}
reference: {keep: always}
evaluate: {every: 2, samples: 2, batch: 8, greedy: false, questions: {<<: *questions, count: 8, seed: 2}}
log: {tensorboard: false}
train: {steps: 6, folder: "runs/{name}"}
optimizer: {learning_rate: 1.0e-3}
stages:
  - name: below
    settings:
      supervised: {response: "{answer}\\n"}
      vote: {samples: 1}
      update: {estimator: no_baseline}
      train: {steps: 4}
  - name: votes
"""


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A small task's config, and a place for what comes of it."""
    (tmp_path / "one.yaml").write_text(TASK)
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    return campaign.Place(tmp_path / "work", tmp_path / "results"), tmp_path / "one.yaml"


def test_a_campaign_runs_what_is_missing_and_nothing_else(small):
    place, config = small
    conditions = (
        campaign.Condition("teacher", "a teacher", ("label.source=teacher", "label.file={labels}")),
        campaign.Condition("back", "votes", (), action="rollback"),
    )

    def again():
        campaign.run_missing(
            {"one": campaign.Task(config, conditions, ("probe.questions=4", "probe.every=2"))},
            [0],
            place=place,
            jobs=1,
            overrides=["train.steps=6"],
            thresholds=lambda task: ["alarm.signals={kl: -1.0}", "alarm.count=1", "alarm.window=2", "alarm.patience=1"],
        )

    again()
    runs = {run.condition: run for run in campaign.read_runs(place.results)}
    assert set(runs) == {"teacher", "back"}
    assert runs["teacher"].values["step"] == list(range(7))
    assert list(runs["teacher"].curve("heldout/avg")) == [0, 2, 4, 6]
    assert {"pseudo_reward", "kl", "probe_agreement", "true_accuracy"} <= runs["teacher"].values.keys()
    assert runs["teacher"].settings == ["label.source=teacher", "label.file=one/labels.jsonl"], "no path of this machine"
    assert runs["back"].alarms[0]["action"] == "rollback"
    written = {path: path.stat().st_mtime_ns for path in place.results.rglob("*.json")}
    again()
    assert {path: path.stat().st_mtime_ns for path in place.results.rglob("*.json")} == written, "nothing is run again"
    gone = place.result("one", "back", 0)
    before = gone.read_text()
    gone.unlink()
    again()
    assert gone.read_text() == before, "a run that is whole is read again"


def test_a_run_that_fails_is_told_with_its_log(small):
    from jaxselftrain.errors import UserError

    place, config = small
    config.write_text(TASK[: TASK.index("stages:")])
    wrong = campaign.Condition("wrong", "cannot be", ("questions.easiest=0.5", "questions.labels=nowhere.jsonl"))
    with pytest.raises(UserError, match=r"nowhere\.jsonl.*\(all of it: .*wrong-0\.log\)"):
        task = campaign.Task(config, (wrong,))
        campaign.run_missing({"one": task}, [0], place=place, jobs=1, overrides=[], thresholds=lambda task: [])
    assert not campaign.read_runs(place.results)


def test_tables_and_pictures_come_from_the_results_alone(tmp_path):
    results = tmp_path / "results"
    for run in (*some_runs("sums"), *some_runs("words", onset=40)):
        file = results / run.task / f"{run.condition}-{run.seed}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        run.values["heldout/maj"] = run.values["heldout/avg"]
        run.values["surprise"] = [None, *(1.0 + value for value in run.values["no_answer_share"][1:])]
        file.write_text(
            json.dumps({name: getattr(run, name) for name in ("task", "condition", "seed", "settings", "alarms", "values")})
        )
    (tmp_path / "pictures").mkdir()
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "benchmarks" / "collapse.py",
            "--tables",
            "--results",
            results,
            "--pictures",
            tmp_path / "pictures",
        ],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in done.stdout.splitlines() if line.startswith("|")]
    together = next(row for row in rows if row[0] == "together")
    assert together[1:4] == ["12", "6", "6"] and together[-1] == "0", "all caught, no false alarm"
    names = {f"dynamics_{name}.png" for name in ("curves", "gains", "surprise", "alarms")}
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "pictures").iterdir())


def test_without_results_there_is_a_sentence(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "collapse.py", "--tables", "--results", tmp_path],
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "holds no results yet" in done.stderr and "Traceback" not in done.stderr


def test_every_signal_can_be_calibrated():
    recorded = set(campaign.KEPT)
    assert set(SIGNALS) <= recorded | set(TRENDS)
