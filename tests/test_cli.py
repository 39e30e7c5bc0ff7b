"""The command line: exit codes, one-sentence errors, and a help that is there at once."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from jaxselftrain import cli
from jaxselftrain.config import load_config
from jaxselftrain.errors import Resumable, UserError
from jaxselftrain.run_folder import run_folder

CONFIG = "questions: {source: jsonl, path: questions.jsonl}\nvote: {samples: 4}\ntrain: {folder: 'runs/{name}'}\n"


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def stand_in(monkeypatch):
    """Puts a function in the place of one that a command imports, and gives the list of its calls."""

    def place(module: str, name: str, error: BaseException | None = None):
        calls: list[tuple[tuple, dict]] = []

        def function(*args, **kwargs):
            calls.append((args, kwargs))
            if error is not None:
                raise error

        fake = types.ModuleType(module)
        setattr(fake, name, function)
        monkeypatch.setitem(sys.modules, module, fake)
        return calls

    return place


def the_sentence(capsys) -> str:
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("jaxselftrain: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["tran"], "did you mean 'train'?"),
        (["train"], "missing argument"),
        (["train", "a.yaml", "--fast"], "--fast"),
        (["train", "absent.yaml"], "config file absent.yaml does not exist"),
        (["evaluate", "model", "--samples", "0"], "--samples"),
        (["export", "run", "out", "--step", "last"], "--step"),
        (["compare", "absent"], "absent holds no held-out evaluation"),
    ],
)
def test_a_wrong_command_line_is_one_sentence_and_exit_code_2(arguments, part, capsys):
    assert cli.main(arguments) == 2
    assert part in the_sentence(capsys).lower()


@pytest.mark.parametrize(
    "override, parts",
    [
        ("vote.sampels=8", ["vote.sampels", "8", "did you mean vote.samples?"]),
        ("vote.samples=0", ["vote.samples = 0", "greater than or equal to 1"]),
        ("vote.samples=many", ["vote.samples = 'many'", "integer"]),
        ("vote.samples", ["'vote.samples'", "section.field=value"]),
    ],
)
def test_a_wrong_setting_is_one_sentence_with_field_and_value(override, parts, config, capsys):
    assert cli.main(["train", str(config), override]) == 2
    sentence = the_sentence(capsys)
    assert all(part in sentence for part in parts), sentence


def test_print_config_is_a_config_that_reads_back_equal(config, tmp_path, capsys):
    assert (
        cli.main(["train", str(config), "vote.samples=6", "--print-config", "mesh.data=-1", "prompt.few_shot='1 + 1 = 2\n'"]) == 0
    )
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_config(printed) == load_config(config, ["vote.samples=6", "prompt.few_shot='1 + 1 = 2\n'"])
    assert load_config(printed).vote.samples == 6


def test_train_runs_the_resolved_config_in_its_folder(config, stand_in):
    calls = stand_in("jaxselftrain.training", "run")
    assert cli.main(["train", str(config), "train.seed=3", "train.folder=runs/{name}-{seed}"]) == 0
    ((resolved, name), _) = calls[0]
    assert resolved == load_config(config, ["train.seed=3", "train.folder=runs/{name}-{seed}"])
    assert str(run_folder(resolved, name)) == "runs/small-3"


def test_a_stopped_run_tells_the_command_that_resumes_it_and_exits_75(config, stand_in, capsys):
    stand_in("jaxselftrain.training", "run", Resumable("stopped after step 3"))
    assert cli.main(["train", str(config), "prompt.few_shot=a b"]) == 75
    assert f"stopped after step 3; resume with: jaxselftrain train {config} 'prompt.few_shot=a b'" in the_sentence(capsys)


def test_a_user_error_from_a_command_is_exit_code_2(config, stand_in, capsys):
    stand_in("jaxselftrain.training", "run", UserError("model.path = x does not exist"))
    assert cli.main(["train", str(config)]) == 2
    assert the_sentence(capsys) == "jaxselftrain: error: model.path = x does not exist\n"


def test_an_unexpected_error_keeps_its_traceback(config, stand_in):
    stand_in("jaxselftrain.training", "run", ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError, match="a bug"):
        cli.main(["train", str(config)])


def test_ctrl_c_outside_the_loop_ends_without_a_traceback(config, stand_in):
    stand_in("jaxselftrain.training", "run", KeyboardInterrupt())
    assert cli.main(["train", str(config)]) == 130


def test_evaluate_and_export_pass_their_arguments_on(stand_in):
    evaluations = stand_in("jaxselftrain.evaluate_command", "run_evaluation")
    exports = stand_in("jaxselftrain.exporting", "export_run")
    assert (
        cli.main(
            ["evaluate", "model", "--questions", "q.jsonl", "--questions", "r.jsonl", "--samples", "4", "evaluate.top_p=0.9"]
        )
        == 0
    )
    assert cli.main(["export", "run", "out", "--step", "7"]) == 0
    given = {name: str(value) if name == "out" else value for name, value in evaluations[0][1].items()}
    files = [Path("q.jsonl"), Path("r.jsonl")]
    assert given == dict(
        target="model", questions=files, samples=4, overrides=("evaluate.top_p=0.9",), config_path=None, out="None"
    )
    assert {name: str(value) for name, value in exports[0][1].items()} == dict(
        run="run", out="out", step="7", newest="False", overrides="()"
    )


def test_help_and_bad_settings_import_no_jax(config):
    script = (
        "import sys; from jaxselftrain import cli\n"
        "code = cli.main(sys.argv[1:])\n"
        "heavy = {'jax', 'flax', 'numpy', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    for arguments, code in ([["--help"], 0], [["train", "--help"], 0], [["train", str(config), "--print-config"], 0]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)
        assert done.returncode == code, done.stderr
    wrong = subprocess.run([sys.executable, "-c", script, "train", str(config), "vote.samples=1"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "Traceback" not in wrong.stderr


def test_help_explains_itself(capsys):
    assert cli.main(["--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("without answers", "2505.21444", "train configs/quickstart.yaml", "evaluate", "export", "docs/"):
        assert part in text


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "CONFIG", "--print-config"], ["vote", "VOTES"]])
def test_output_without_a_reader_or_without_room_is_no_traceback(arguments, config, tmp_path):
    (tmp_path / "votes.jsonl").write_text('{"id": 1, "completions": ["\\\\boxed{4}"]}\n')
    places = {"CONFIG": str(config), "VOTES": str(tmp_path / "votes.jsonl")}
    command = [sys.executable, "-m", "jaxselftrain.cli", *(places.get(argument, argument) for argument in arguments)]
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as closed:
        done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (cli.CLOSED_PIPE, "")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("jaxselftrain: error: the output cannot be written: No space left on device")


def test_a_full_disk_names_the_file_and_other_errors_of_files_keep_their_traceback(config, stand_in, capsys):
    stand_in("jaxselftrain.training", "run", OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl"))
    assert cli.main(["train", str(config)]) == 2
    assert "runs/a/metrics.jsonl cannot be written: No space left on device" in the_sentence(capsys)
    stand_in("jaxselftrain.training", "run", PermissionError(errno.EACCES, "a bug"))
    with pytest.raises(PermissionError, match="a bug"):
        cli.main(["train", str(config)])


def test_as_a_program():
    done = subprocess.run([sys.executable, "-m", "jaxselftrain.cli", "train", "absent.yaml"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jaxselftrain: error: config file absent.yaml does not exist\n"
