"""launch/local_processes.sh: several processes on this machine, started, told to stop, and started again together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "launch" / "local_processes.sh"
JAX = ("JAX_PLATFORMS", "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")


class Place:
    """An environment whose jaxselftrain is a script of the test's, and a folder to run in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "my config.yaml"
        self.config.touch()
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XLA", "CUDA", "JAX", "SLURM"))}
        self.environment = kept | {"VENV": str(folder / "venv")}

    def program(self, text: str, interpreter: str = "/usr/bin/env bash") -> None:
        path = self.folder / "venv" / "bin" / "jaxselftrain"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!{interpreter}\n{text}\n")
        path.chmod(0o755)

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [SCRIPT, *map(str, arguments)],
            env=self.environment | environment,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell cannot trap what it was born ignoring
        )

    def run(self, *arguments: object, **environment: str) -> tuple[int, list[str], str]:
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.splitlines(), err


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def test_every_process_is_told_who_it_is_and_where_the_first_one_listens(place):
    place.program(f'echo "${{{"} $".join(JAX).replace("$", "${")}}} $XLA_FLAGS"\nprintf "<%s>" "$@"; echo')
    code, lines, err = place.run(3, "--devices", 2, place.config.name, "a=b c", XLA_FLAGS="--xla_cpu_foo=1")
    assert (code, err) == (0, "")
    ports = set()
    for number in range(3):
        who, arguments = [line.removeprefix(f"[{number}] ") for line in lines if line.startswith(f"[{number}] ")]
        platforms, address, *rest = who.split(" ")
        assert platforms == "cpu" and address.startswith("127.0.0.1:")
        assert rest == ["3", str(number), "--xla_cpu_foo=1", "--xla_force_host_platform_device_count=2"]
        assert arguments == "<train><my config.yaml><a=b c>"
        ports.add(address)
    assert len(ports) == 1 and len(lines) == 6


def test_a_dry_run_prints_every_command_and_runs_none(place):
    code, lines, err = place.run(2, "--dry-run", "--devices=4", place.config.name, "vote.samples=8", JAX_PLATFORMS="cuda")
    assert (code, err) == (0, "")
    make, _, install, *processes = lines
    assert make.startswith("python3 -m venv") and "-m pip install" in install
    for number, line in enumerate(processes):
        assert line.startswith("env JAX_PLATFORMS=cuda XLA_FLAGS=--xla_force_host_platform_device_count=4 ")
        assert f"JAX_NUM_PROCESSES=2 JAX_PROCESS_ID={number} " in line
        assert line.strip().endswith(r"bin/jaxselftrain train my\ config.yaml vote.samples=8")
    assert len(processes) == 2 and [path.name for path in place.folder.iterdir()] == [place.config.name]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "usage: launch/local_processes.sh N "),
        (["2"], "usage: launch/local_processes.sh N "),
        (["0", "my config.yaml"], "the numbers of processes and devices are 1 or more, not '0'"),
        (["my config.yaml", "2"], "1 or more, not 'my config.yaml'"),
        (["2", "--devices=x", "my config.yaml"], "1 or more, not 'x'"),
        (["2", "my config.yaml", "--devices"], "--devices needs a number"),
        (["2", "absent.yaml"], "there is no config file absent.yaml"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, place):
    code, lines, err = place.run(*arguments, PYTHON="false")
    assert (code, lines, err.count("\n")) == (2, [], 1) and sentence in err


def test_help_prints_the_usage(place):
    code, lines, err = place.run("--help")
    assert (code, err) == (0, "") and lines[0].startswith("usage: launch/local_processes.sh N ")


def test_all_start_again_after_exit_75_on_another_port(place):
    place.program(
        'echo "$JAX_COORDINATOR_ADDRESS" >> "port-$JAX_PROCESS_ID"\n'
        '[ "$(wc -l < "port-$JAX_PROCESS_ID")" -lt 3 ] && exit 75\nexit 0'
    )
    code, _, err = place.run(2, place.config)
    assert code == 0 and err.count("the run saved itself and stopped; starting it again") == 2
    ports = (place.folder / "port-0").read_text().split()
    assert ports == (place.folder / "port-1").read_text().split() and len(ports) == 3


@pytest.mark.parametrize("deaf", [False, True])
def test_when_one_dies_the_others_are_ended_and_its_code_is_the_scripts(deaf, place):
    trap = 'trap "" TERM' if deaf else 'trap "exit 75" TERM'
    place.program(f'[ "$JAX_PROCESS_ID" = 1 ] && exit 3\n{trap}\nfor _ in {{1..600}}; do sleep 0.1; done')
    before = time.monotonic()
    code, _, err = place.run(3, place.config, GRACE_SECONDS="2")
    assert code == 3 and "a process ended with code 3; ending the others" in err
    assert time.monotonic() - before < 30


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_each_process_once_and_their_saving_is_waited_for(number, place):
    place.program(
        'trap "echo signal; sleep 0.5; echo saved; exit 75" TERM INT\ntouch "ready-$JAX_PROCESS_ID"\n'
        "for _ in {1..100}; do sleep 0.1; done"
    )
    process = place.start(2, place.config)
    deadline = time.monotonic() + 20
    while len(list(place.folder.glob("ready-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, number)  # as a terminal or a batch system would: the script and what it started
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (75, "")
    for label in ("[0] ", "[1] "):
        said = [line.removeprefix(label) for line in out.splitlines() if line.startswith(label)]
        assert said == ["signal", "saved"]


def test_jax_makes_one_machine_of_them(place):
    place.program(
        "import os, jax\n"
        "e = os.environ\n"
        "jax.distributed.initialize(e['JAX_COORDINATOR_ADDRESS'], int(e['JAX_NUM_PROCESSES']), int(e['JAX_PROCESS_ID']))\n"
        "print(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count())",
        sys.executable,
    )
    code, lines, err = place.run(2, "--devices=2", place.config)
    assert code == 0, err
    assert {"[0] 0 2 2 4", "[1] 1 2 2 4"} <= set(lines)
