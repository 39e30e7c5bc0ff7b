"""evaluate and export on a finished run, against torch transformers."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from runs import command, environment, lines, make_run, write_config, write_questions
from small_models import save_folder, torch_model

from jaxselftrain.cli import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("commands"))


def test_evaluating_the_run_gives_what_the_run_itself_measured(run, tmp_path):
    code, out, err = command("evaluate", str(run), "--out", str(tmp_path / "out"))
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "step_2.json").read_text())
    assert found["avg"]["value"] == lines(run)[-1]["heldout/avg"]
    assert "avg@k" in out
    rows = [json.loads(line) for line in (tmp_path / "out" / "step_2.jsonl").read_text().splitlines()]
    assert len(rows) == 6 and len(rows[0]["responses"]) == 3 and sum(r["greedy"] for r in rows[0]["responses"]) == 1


def test_evaluating_a_model_with_other_questions_and_samples(run, tmp_path):
    held_out = write_questions(tmp_path / "other.jsonl", 5)
    code, _, err = command(
        "evaluate", str(run.parent / "model"), "--questions", str(held_out), "--samples", "3",
        "--config", str(run.parent / "config.yaml"), "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out" / "model.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(5)] and len(rows[0]["responses"]) == 4


def test_a_cross_check_reports_where_math_verify_differs(run, tmp_path):
    code, out, err = command("evaluate", str(run), "--out", str(tmp_path / "out"), "evaluate.cross_check=math_verify")
    assert code == 0, err
    rows = [json.loads(line) for line in (tmp_path / "out" / "step_2.differences.jsonl").read_text().splitlines()]
    responses = [r for row in lines(tmp_path / "out", "step_2.jsonl") for r in row["responses"] if r["answer"] is not None]
    assert f"math-verify judges {sum(row['samples'] for row in rows)} of {len(responses)} answers differently" in out


def test_several_sets_are_measured_apart_and_count_the_same(run, tmp_path):
    few, many = write_questions(tmp_path / "few.jsonl", 3), write_questions(tmp_path / "many.jsonl", 9)
    sets = ["--questions", str(few), "--questions", str(many)]
    code, out, err = command("evaluate", str(run), *sets, "--out", str(tmp_path / "out"))
    assert code == 0, err
    names = "few", "many", "macro-average"
    found = {name: json.loads((tmp_path / "out" / f"step_2_{name}.json").read_text()) for name in names}
    for metric in ("avg", "maj", "greedy", "no_answer"):
        one, other, both = (found[name][metric]["value"] for name in names)
        assert both == pytest.approx((one + other) / 2)
    assert len(lines(tmp_path / "out", "step_2_many.jsonl")) == 9 and (tmp_path / "out" / "step_2_few.thresholds.png").is_file()
    assert all(name in out for name in names)
    code, _, err = command("evaluate", str(run), "--questions", str(many), "--out", str(tmp_path / "alone"))
    assert code == 0, err
    assert json.loads((tmp_path / "alone" / "step_2.json").read_text()) == found["many"]
    shutil.copy(few, tmp_path / "out" / "few.jsonl")
    code, _, err = command("evaluate", str(run), *sets, "--questions", str(tmp_path / "out" / "few.jsonl"))
    assert code == 2 and "another set is called few already; rename the file" in err


def test_the_exported_model_is_the_trained_one(run, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    code, out, err = command("export", str(run), str(tmp_path / "exported"))
    assert code == 0, err
    assert "step 2" in out
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "exported")
    row = lines(run / "evaluations", "step_000002.jsonl")[0]
    greedy = next(r for r in row["responses"] if r["greedy"])
    ids = tokenizer("1 + 1 = 2\n" + row["question"], return_tensors="pt")["input_ids"]
    new = model.generate(ids, do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
    assert tokenizer.decode(new, skip_special_tokens=True).split("\n")[0] == greedy["text"]
    start = AutoModelForCausalLM.from_pretrained(run.parent / "model", dtype=torch.float32)
    moved = [float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), start.parameters(), strict=True)]
    assert np.min(moved) > 0
    card = (tmp_path / "exported" / "README.md").read_text()
    assert "2 steps" in card and "vote" in card


def test_the_best_evaluated_checkpoint_is_exported(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    for step in ("0", "1"):  # that of step 0 is there where a run was stopped before its first update
        shutil.copytree(copy / "checkpoints" / "2", copy / "checkpoints" / step)
    rows = lines(copy)
    for row, score in zip(rows, (0.9, 0.5, 0.25), strict=True):
        row["heldout/avg"], row["heldout/maj"] = score, 0.0
    (copy / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    best = "step 1 of {}, the best checkpoint that was evaluated (held-out avg@2 0.500), exported to"
    for options, told in {
        (): best,
        ("--newest",): "step 2 of {} exported to",
        ("--step", "2"): "step 2 of {} exported to",
    }.items():
        code, out, err = command("export", str(copy), str(tmp_path / f"model{len(options)}"), *options)
        assert code == 0 and " ".join(out.split()).startswith(told.format(copy)), (out, err)
    code, _, err = command("export", str(copy), str(tmp_path / "x"), "--step", "2", "--newest")
    assert code == 2 and "--step and --newest name two checkpoints; give one of them" in err


def test_missing_steps_and_taken_folders_are_refused(run, tmp_path):
    code, _, err = command("export", str(run), str(tmp_path / "x"), "--step", "7")
    assert code == 2 and "step 7" in err and not (tmp_path / "x").exists()
    code, _, err = command("export", str(tmp_path), str(tmp_path / "x"))
    assert code == 2 and "not a run folder" in err


def test_compare_shows_and_draws_the_run(run, tmp_path):
    code, out, err = command("compare", str(run), str(run), "--picture", str(tmp_path / "both.png"))
    assert code == 0, err
    assert out.count("avg@k") == 2 and str(tmp_path / "both.png") in out
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "both.png").stat().st_size > 20_000


def test_reading_a_run_that_trains_clears_nothing_away(run, tmp_path):
    half = run / "checkpoints" / "5.orbax-checkpoint-tmp"
    half.mkdir()
    try:
        code, _, err = command("export", str(run), str(tmp_path / "exported"))
        assert code == 0 and half.is_dir(), err
    finally:
        half.rmdir()


def _without_arrays(state):
    shutil.rmtree(state)


def _with_arrays_cut_short(state):
    for file in (path for path in state.rglob("*") if path.is_file() and "/d/" in str(path)):
        os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize("damage", [_without_arrays, _with_arrays_cut_short])
def test_a_damaged_checkpoint_is_named(run, tmp_path, damage):
    shutil.copytree(run, tmp_path / "run")
    damage(tmp_path / "run" / "checkpoints" / "2" / "state")
    for arguments in (["export", str(tmp_path / "run"), str(tmp_path / "x")], ["evaluate", str(tmp_path / "run")]):
        code, _, err = command(*arguments)
        assert code == 2 and "checkpoint of step 2" in err and "is damaged" in err and "Traceback" not in err


def test_the_model_of_an_evaluation_is_the_runs(run, tmp_path):
    other = save_folder(torch_model("qwen2_tied"), tmp_path / "other")
    config = write_config(tmp_path, model={"path": str(other)}, questions={"path": str(run.parent / "train.jsonl")})
    code, _, err = command("evaluate", str(run), "--config", str(config), "--questions", str(run.parent / "held_out.jsonl"))
    assert code == 0, err  # the config's prompt and answer, the run's model
    code, _, err = command("evaluate", str(run), f"model.path={other}")
    assert code == 2 and "is not the model that" in err and "Traceback" not in err


def test_overrides_come_after_the_questions_and_an_answer_field_is_assumed(run, tmp_path):
    config = write_config(
        tmp_path, questions={"path": str(run.parent / "train.jsonl"), "fields": {"answer": None}}, evaluate={"questions": None}
    )
    code, _, err = command(
        "evaluate", str(run), "--config", str(config), "--questions", str(run.parent / "held_out.jsonl"),
        "--out", str(tmp_path / "out"), "evaluate.questions.count=3", "prompt.max_tokens=9",
    )  # fmt: skip
    assert code == 2 and "all 3 prompts are longer than prompt.max_tokens = 9" in err
    code, _, err = command(
        "evaluate", str(run), "--config", str(config), "--questions", str(run.parent / "held_out.jsonl"),
        "--out", str(tmp_path / "out"), "evaluate.questions.count=3",
    )  # fmt: skip
    assert code == 0 and len(lines(tmp_path / "out", "step_2.jsonl")) == 3, err


def test_an_output_that_is_a_file_is_told_before_the_work(run, tmp_path):
    (tmp_path / "taken").write_text("")
    code, out, err = command("evaluate", str(run), "--out", str(tmp_path / "taken"))
    assert code == 2 and "cannot be made a folder" in err and "avg@k" not in out


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["evaluate", "{run}", "evaluate.questions=null"], "the config has no evaluate.questions"),
        (["evaluate", "/nowhere"], "/nowhere does not exist: name a run folder or a model"),
        (["compare", "{run}", "--picture", "{tmp}"], "name a file that ends in .png"),
        (["compare", "{run}", "--picture", "{tmp}/p.txt"], "name a file that ends in .png"),
        (["evaluate", "{run}", "--out", "/proc/none", "evaluate.batch=8"], "/proc/none cannot be made a folder for results"),
    ],
)
def test_a_wrong_command_line_says_what_is_wrong(run, tmp_path, capsys, arguments, says):
    assert main([part.format(run=run, tmp=tmp_path) for part in arguments]) == 2
    assert says in capsys.readouterr().err


def test_a_full_disk_after_an_evaluation_gets_a_sentence(run, tmp_path):
    limit = ("import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (64, 64)); from jaxselftrain.cli import main; "
             "sys.exit(main(sys.argv[1:]))")  # fmt: skip
    arguments = ["evaluate", str(run), "--samples", "1", "--out", str(tmp_path / "out"), "runtime.compilation_cache=false"]
    done = subprocess.run(
        [sys.executable, "-c", limit, *arguments], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "no room on the disk" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert "avg@k" in done.stdout and list((tmp_path / "out").iterdir()) == []


def test_no_device_gets_a_sentence(run):
    code = "import sys; from jaxselftrain.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "evaluate", str(run)],
        env={**environment(), "JAX_PLATFORMS": "cuda"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "JAX finds no device to run on (JAX_PLATFORMS: cuda" in done.stderr
    assert "Traceback" not in done.stderr
