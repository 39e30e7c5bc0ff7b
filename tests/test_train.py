"""The host loop: what a run leaves behind, resume after kills and signals, what gold answers may touch, and bad input."""

import json
import shutil
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import command, final_weights, lines, make_home, start, wait_for_step, without_times, write_questions

from jaxselftrain import asking, loop
from jaxselftrain.ballots import Ballots
from jaxselftrain.batches import Batches
from jaxselftrain.checkpoints import Checkpoints
from jaxselftrain.config import load_config, override_config
from jaxselftrain.errors import UserError
from jaxselftrain.training import train


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"), questions=30, held_out=6, first_held_out=28)


@pytest.fixture(scope="module")
def finished(home):
    """A run that nothing interrupted."""
    code, out, err = command("train", str(home / "config.yaml"))
    assert code == 0, err
    return home / "run", out, err


def assert_same_run(folder: Path, whole: Path, *, but: tuple[str, ...] = ()) -> None:
    def kept(rows):
        return [{k: v for k, v in row.items() if k not in but} for row in without_times(rows)]

    assert kept(lines(folder)) == kept(lines(whole))
    assert kept(lines(folder, "responses.jsonl")) == kept(lines(whole, "responses.jsonl"))
    ours, theirs = final_weights(folder), final_weights(whole)
    assert ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_a_finished_run_leaves_metrics_evaluations_a_summary_and_a_picture(finished):
    folder, out, err = finished
    rows = lines(folder)
    assert [row["step"] for row in rows] == list(range(7))
    assert [row["step"] for row in rows if "heldout/avg" in row] == [0, 3, 6]
    assert all(np.isfinite([v for v in row.values() if v is not None]).all() for row in rows)
    assert rows[1].keys() >= {"pseudo_reward", "entropy", "grad_norm", "true_accuracy", "sampler_gap", "device_seconds"}
    assert "kl" not in rows[1]
    assert max(row["sampler_gap"] for row in rows[1:]) < 1e-4
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["before"]["avg"] == rows[0]["heldout/avg"] and summary["after"]["maj"] == rows[6]["heldout/maj"]
    assert summary["seconds"] > 0 and summary["steps"] == 6
    assert (folder / "picture.png").stat().st_size > 10_000
    facts = json.loads((folder / "environment.json").read_text())
    assert facts["packages"]["jax"] == jax.__version__ and "cpu" in facts["devices"][0]
    assert "2 training questions are held out" in err
    assert str(folder / "picture.png") in out
    assert list((folder / "tensorboard").iterdir())
    assert {row["step"] for row in lines(folder, "responses.jsonl")} == set(range(1, 7))


def test_a_second_start_finds_nothing_to_do(finished):
    folder, *_ = finished
    before = (folder / "metrics.jsonl").read_bytes()
    code, _, err = command("train", str(folder.parent / "config.yaml"))
    assert code == 0, err
    assert (folder / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(("step", "how"), [(3, signal.SIGKILL), (0, signal.SIGTERM)], ids=["killed", "terminated"])
def test_a_run_that_was_stopped_goes_on_as_if_it_never_had(home, finished, step, how, tmp_path):
    arguments = ["train", str(home / "config.yaml"), f"train.folder={tmp_path / 'run'}"]
    process = start(*arguments)
    wait_for_step(tmp_path / "run", step, process)
    process.send_signal(how)
    _, err = process.communicate(timeout=120)
    if how == signal.SIGTERM:
        assert process.returncode == 75, err
        assert "resume with: jaxselftrain train" in err.splitlines()[-1] and "Traceback" not in err
    code, _, err = command(*arguments)
    assert code == 0, err
    assert_same_run(tmp_path / "run", finished[0])


def test_a_longer_run_is_the_shorter_one_continued(home, finished, tmp_path):
    arguments = ["train", str(home / "config.yaml"), f"train.folder={tmp_path / 'run'}"]
    assert command(*arguments, "train.steps=3", "mesh.data=-1")[0] == 0
    code, _, err = command(*arguments)
    assert code == 0 and "train.steps: 3 -> 6" in err and "mesh.data: -1 -> 1" in err
    assert_same_run(tmp_path / "run", finished[0])


def test_gold_answers_change_nothing_but_what_is_watched(home, finished, tmp_path):
    write_questions(tmp_path / "poisoned.jsonl", 30, answer=lambda i: f"poison {i}")
    code, _, err = command(
        "train", str(home / "config.yaml"), f"train.folder={tmp_path / 'run'}", f"questions.path={tmp_path / 'poisoned.jsonl'}"
    )
    assert code == 0, err
    watched = ("true_accuracy", "label_accuracy", "majority_accuracy", "reward_accuracy")
    assert_same_run(tmp_path / "run", finished[0], but=watched)
    assert all(row["true_accuracy"] == 0 for row in lines(tmp_path / "run")[1:])


def test_gold_labels_do_change_the_run_when_they_are_asked_for(home, finished, tmp_path):
    arguments = ["train", str(home / "config.yaml"), f"train.folder={tmp_path / 'run'}", "label.source=gold"]
    assert command(*arguments)[0] == 0
    rows = lines(tmp_path / "run")[1:]
    assert [row["pseudo_reward"] for row in rows] == [row["true_accuracy"] for row in rows]
    assert [row["pseudo_reward"] for row in rows] != [row["pseudo_reward"] for row in lines(finished[0])[1:]]


EIGHT = ("mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2")  # in this process there are eight devices
SPLIT = ("mesh.data=2", "mesh.fsdp=1", "mesh.samples=4")  # each has one sample of every question that is there


def test_a_reward_of_the_samplers_own_statistics_is_kept_when_a_run_is_continued(home, tmp_path):
    reward = "reward={kind: sum, weights: {agreement: 1.0, self_certainty: 0.5}}"
    lines_of = {}
    for name, stops in {"whole": [3], "twice": [1, 3]}.items():
        for steps in stops:
            config = load_config(home / "config.yaml", (reward, f"train.steps={steps}", "evaluate.questions=null", *SPLIT))
            list(train(config, tmp_path / name, say=lambda text: None))
        lines_of[name] = without_times(lines(tmp_path / name))
    assert lines_of["whole"] == lines_of["twice"] and len(lines_of["whole"]) == 3
    for line in lines_of["whole"]:
        assert line["self_certainty"] > 0 > line["log_prob"] and abs(line["pseudo_reward"]) < 1e-6  # standardized
        assert "reward_accuracy" not in line and line["zero_variance_share"] == 0  # no two samples are equally sure


def test_probe_questions_are_asked_again_and_never_trained_on(home, tmp_path):
    settings = (
        "probe.questions=3",
        "probe.every=2",
        "evaluate.questions=null",
        "optimizer.learning_rate=0.05",
        "log.responses=4",
        *EIGHT,
    )
    for name, stops in {"whole": [5], "twice": [3, 5]}.items():
        for steps in stops:
            list(train(load_config(home / "config.yaml", (*settings, f"train.steps={steps}")), tmp_path / name, say=print))
    whole, twice = (without_times(lines(tmp_path / name)) for name in ("whole", "twice"))
    probed = {line["step"]: line["probe_agreement"] for line in whole if "probe_agreement" in line}
    assert probed.keys() == {0, 2, 4, 5} and probed[0] == 1 and probed[5] < 1  # such steps change every answer
    assert [line for line in twice if line["step"] != 3] == [line for line in whole if line["step"] != 3]  # 3 was a last step
    asked = {row["question"] for row in lines(tmp_path / "whole", "responses.jsonl")}
    first = [json.loads(line)["question"] for line in (home / "train.jsonl").read_text().splitlines()]
    assert not asked & set(first[:3]) and asked & set(first[3:])
    plain = load_config(home / "config.yaml", (*settings, "probe.every=1", "train.steps=5"))
    list(train(plain, tmp_path / "often", say=print))
    often = without_times(lines(tmp_path / "often"))
    assert [line["loss"] for line in often[1:]] == [line["loss"] for line in whole[1:]]  # looking changes nothing
    with pytest.raises(UserError, match="probe.questions = 9 is more than rollout.questions = 4"):
        load_config(home / "config.yaml", ("probe.questions=9",))


def test_a_run_without_better_evaluations_stops_and_can_go_on(home, tmp_path):
    said, still = [], ("evaluate.every=1", "evaluate.batch=8", "optimizer.learning_rate=1e-12", *EIGHT)

    def steps(*overrides, name="run"):
        said.clear()
        config = load_config(home / "config.yaml", (*still, *overrides))
        return [report.step for report in train(config, tmp_path / name, say=said.append)]

    assert steps("evaluate.patience=2") == [0, 1, 2]  # the weights do not move, so the first evaluation is the best
    ending = (
        "step 2: no better held-out avg@2 in 2 evaluations, the best is that of step 0; raise evaluate.patience (now 2) to go on"
    )
    assert said[-1] == ending
    assert steps("evaluate.patience=2") == [] and said[-1] == ending
    assert steps("evaluate.patience=3") == [3]
    assert steps("evaluate.patience=null") == [4, 5, 6]
    assert steps(name="whole") == list(range(7))
    assert without_times(lines(tmp_path / "whole")) == without_times(lines(tmp_path / "run"))
    with pytest.raises(UserError, match="evaluate.patience needs evaluate.questions, and evaluate.every above 0"):
        load_config(home / "config.yaml", ("evaluate.every=0", "evaluate.patience=1"))


@pytest.mark.parametrize("mesh", [EIGHT, SPLIT], ids=["questions split", "samples split"])
def test_left_out_questions_are_replaced_until_the_batch_is_full(home, tmp_path, mesh):
    """Half of those that are asked are kept, so three more calls fill a batch of four: 2, 1, 1."""
    filters = "reward.keep_fraction=0.5", "reward.refill=9", "evaluate.questions=null", *mesh
    for name, stops in {"whole": [3], "twice": [1, 3]}.items():
        for steps in stops:
            list(train(load_config(home / "config.yaml", (*filters, f"train.steps={steps}")), tmp_path / name, say=print))
    whole, twice = (without_times(lines(tmp_path / name)) for name in ("whole", "twice"))
    assert whole == twice and len(whole) == 3
    assert [(line["kept_question_share"], line["refilled_share"]) for line in whole] == [(1, 0.5)] * 3
    config = load_config(home / "config.yaml", (*filters, "reward.refill=1", "train.steps=3"))
    list(train(config, tmp_path / "once", say=print))
    once = without_times(lines(tmp_path / "once"))
    assert [(line["kept_question_share"], line["refilled_share"]) for line in once] == [(0.75, 0.5)] * 3
    for name in ("majority_share", "response_length", "true_accuracy"):  # of the batch as it was sampled first
        assert whole[0][name] == once[0][name]
    assert whole[0]["loss"] != once[0]["loss"]
    with pytest.raises(UserError, match="reward: refill takes the place of questions that minimum_share or keep_fraction"):
        load_config(home / "config.yaml", ("reward.refill=1",))


def config_in(home, tmp_path, *overrides):
    return load_config(home / "config.yaml", [f"train.folder={tmp_path / 'run'}", *EIGHT, *overrides])


def guarded(config, folder):
    """The steps of a run; after start-up (reading weights, step 0) no implicit transfer is allowed."""
    runs = train(config, folder, say=lambda text: None)
    steps = [next(runs).step]
    with jax.transfer_guard("disallow"):
        return steps + [report.step for report in runs]


def test_only_explicit_transfers_and_two_programs(home, finished, tmp_path, monkeypatch):
    fetches, programs, saves = [], [], []
    real_get, real_step, real_sample = jax.device_get, loop.compile_step, asking.compile_sample
    monkeypatch.setattr(jax, "device_get", lambda x: fetches.append(1) or real_get(x))
    real_save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", lambda *a, **k: saves.append(1) or real_save(*a, **k))
    monkeypatch.setattr(loop, "compile_step", lambda *a, **k: programs.append(real_step(*a, **k)) or programs[-1])
    monkeypatch.setattr(asking, "compile_sample", lambda *a, **k: programs.append(real_sample(*a, **k)) or programs[-1])
    schedule = ("optimizer.schedule=cosine", "optimizer.warmup_steps=2")  # nothing of it is computed on the host
    assert guarded(config_in(home, tmp_path, "evaluate.every=2", *schedule), tmp_path / "run") == list(range(7))
    rates = [line["learning_rate"] for line in lines(tmp_path / "run")[1:]]
    np.testing.assert_allclose(rates, 1e-3 * np.asarray([1 / 3, 2 / 3, 1, 0.853553, 0.5, 0.146447]), rtol=1e-5)
    evaluations, batches = 4, 2
    # one a step, one a batch of evaluation, the digests of what is saved, and nothing else
    assert len(fetches) == 7 + evaluations * batches + len(saves)
    assert [program._cache_size() for program in programs] == [1, 1]


def test_the_next_prompts_are_prepared_while_the_device_works(home, finished, tmp_path, monkeypatch):
    """Between the dispatch of a step and the wait for what it sampled, not after the votes, when the device has nothing to do."""
    order = []

    def noted(owner, name, event):
        real = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, **k: order.append(event) or real(*a, **k))

    noted(loop.Loop, "_call", "dispatch")
    noted(Batches, "next", "prepare")
    noted(loop, "fetch", "fetch")
    noted(Ballots, "decide", "vote")
    list(train(config_in(home, tmp_path, "evaluate.questions=null"), tmp_path / "run", say=lambda text: None))
    whole, last = ["dispatch", "prepare", "fetch", "vote"], ["dispatch", "fetch"]
    assert order == ["prepare", *whole * 6, *last]


def test_the_guard_would_catch_an_implicit_transfer(home, finished, tmp_path, monkeypatch):
    real = loop.Loop._call

    def planted(self, prompts, **flags):
        self.state.count + np.ones(3, np.int32)  # a NumPy array slips onto the device
        return real(self, prompts, **flags)

    monkeypatch.setattr(loop.Loop, "_call", planted)
    with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device"):
        guarded(config_in(home, tmp_path), tmp_path / "run")


def test_updates_with_nan_are_counted_and_then_stop_the_run(home, finished, tmp_path):
    config = config_in(home, tmp_path, "optimizer.learning_rate=1e30", "runtime.bad_steps=2", "checkpoint.every=1")
    seen = []
    with pytest.raises(UserError, match=r"2 updates in a row had NaN or Inf .* last checkpoint is step \d"):
        for report in train(config, tmp_path / "run", say=lambda text: None):
            seen.append(report.metrics)
    assert seen[-1]["bad_updates"] >= 1


BAD = [
    (["model.path=/nowhere/model"], "/nowhere/model"),
    (["prompt.max_tokens=2"], "prompt.max_tokens"),
    (["rollout.max_tokens=100000"], "rollout.max_tokens"),
    (["rollout.questions=64"], "there are only"),
    (["mesh.fsdp=3"], "mesh"),
    (["rollout.questions=2", "mesh.data=4", "mesh.tensor=1"], "mesh.samples can split each question's samples instead"),
    (["evaluate.batch=4", "mesh.samples=2", "mesh.tensor=1"], "data x fsdp x samples = 8 devices split the questions"),
    (["questions.fields.answer=null", "label.source=gold"], "label.source = gold"),
    (["questions.path=/nowhere/questions.jsonl"], "/nowhere/questions.jsonl"),
    (["evaluate.questions.fields.answer=nothing"], "gold answer"),
]


@pytest.mark.parametrize(
    ("overrides", "named"), BAD, ids=lambda value: value[0].split("=")[0] if isinstance(value, list) else None
)
def test_bad_input_is_one_sentence_and_leaves_nothing(home, finished, tmp_path, overrides, named):
    with pytest.raises(UserError) as caught:
        list(train(config_in(home, tmp_path, *overrides), tmp_path / "run", say=lambda text: None))
    assert named in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_changed_fixed_field_is_refused_by_name_and_the_run_is_untouched(home, finished):
    folder, *_ = finished
    before = (folder / "config.yaml").read_bytes()
    code, _, err = command("train", str(home / "config.yaml"), "vote.samples=8")
    assert code == 2 and "vote.samples: 4 -> 8" in err and "Traceback" not in err
    assert (folder / "config.yaml").read_bytes() == before
    code, _, err = command("train", str(home / "config.yaml"), "mesh.tensor=7", "train.steps=9")
    assert code == 2 and "mesh" in err and (folder / "config.yaml").read_bytes() == before


def test_a_config_of_ones_own_is_no_run_folder_and_is_not_written_over(home, finished, tmp_path):
    own = tmp_path / "config.yaml"
    own.write_bytes(b"# mine\n" + (home / "config.yaml").read_bytes())
    before = own.read_bytes()
    code, _, err = command("train", str(own), f"train.folder={tmp_path}")
    assert code == 2 and "holds other files" in err and own.read_bytes() == before


def test_a_run_that_starts_over_forgets_its_later_evaluations(home, tmp_path):
    never_saved = "checkpoint.every=50", "checkpoint.keep_best=false"
    steps = train(config_in(home, tmp_path, "evaluate.every=1", *never_saved), tmp_path / "run", say=lambda text: None)
    for report in steps:
        if report.step == 3:
            break
    steps.close()  # as a kill does, before the first checkpoint
    said = []
    list(train(config_in(home, tmp_path, "train.steps=2"), tmp_path / "run", say=said.append))
    assert "there is no checkpoint yet: starting over" in said
    assert sorted(path.name for path in (tmp_path / "run" / "evaluations").glob("*.jsonl")) == [
        "step_000000.jsonl",
        "step_000002.jsonl",
    ]


def test_a_run_of_eight_devices_is_exported_and_evaluated_on_one(home, finished, tmp_path):
    list(train(config_in(home, tmp_path, "train.steps=1"), tmp_path / "run", say=lambda text: None))
    code, out, err = command("export", str(tmp_path / "run"), str(tmp_path / "exported"))
    assert code == 0 and "step 1" in out and "unsafe" not in err, err
    code, out, err = command("evaluate", str(tmp_path / "run"), "--samples", "1", "evaluate.greedy=false")
    assert code == 0 and "avg@k" in out, err


def test_the_reference_must_be_the_very_weights_the_run_started_from(home, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(home / "model", tmp_path / "model")
    config = config_in(home, tmp_path, f"model.path={tmp_path / 'model'}", "update.kl_coefficient=0.1", "train.steps=1")
    list(train(config, tmp_path / "run", say=lambda text: None))
    (file,) = (tmp_path / "model").glob("*.safetensors")
    weights = load_file(file)
    weights["model.norm.weight"][0] += 1e-6
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match="not those this run started from"):
        list(train(override_config(config, ("train.steps=2",)), tmp_path / "run", say=lambda text: None))


def test_a_folder_of_other_things_is_refused(home, finished, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="holds other files"):
        list(train(config_in(home, tmp_path), tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_start_that_was_killed_half_way_is_started_again(home, finished, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in (".lock", "environment.json", "config.yaml.tmp"):  # config.yaml comes last
        (run / name).write_text("{}")
    steps = train(config_in(home, tmp_path), run, say=lambda text: None)
    assert next(steps).step == 0 and (run / "config.yaml").is_file()
    steps.close()


def test_steps_lowered_to_where_the_run_stopped_leave_nothing_to_compare(home, tmp_path):
    arguments = ["train", str(home / "config.yaml"), f"train.folder={tmp_path / 'run'}", "evaluate.every=0"]
    process = start(*arguments, "train.steps=400", "checkpoint.every=1")
    wait_for_step(tmp_path / "run", 1, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 75, err
    stopped = lines(tmp_path / "run")[-1]["step"]
    code, _, err = command(*arguments, f"train.steps={stopped}")
    assert code == 0 and "there is nothing left to do" in err, err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == stopped and summary["before"] and summary["after"] == {}


def test_a_finished_run_without_its_checkpoints_is_not_started_over(home, finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    code, _, err = command("train", str(home / "config.yaml"), f"train.folder={tmp_path / 'run'}")
    assert code == 2 and "holds a finished run without its checkpoints" in err
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
