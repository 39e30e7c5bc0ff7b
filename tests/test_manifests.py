"""launch/gke and launch/skypilot.yaml: valid YAML with known fields, and commands that the program takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from jaxselftrain.config import load_config

ROOT = Path(__file__).parent.parent
LAUNCH = ROOT / "launch"


@pytest.fixture(scope="module")
def jobset() -> dict:
    [manifest] = yaml.safe_load_all((LAUNCH / "gke" / "jobset.yaml").read_text())
    return manifest


@pytest.fixture(scope="module")
def task() -> dict:
    return yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())


def check_command(command: list[str]) -> None:
    """Each is `jaxselftrain train CONFIG SETTING ...`, whose settings leave a valid config that is saved in a bucket."""
    program, verb, config, *settings = command
    assert Path(program).name == "jaxselftrain" and verb == "train"
    assert load_config(ROOT / config, settings).train.folder.startswith("gs://")


def test_the_jobset_runs_train_on_all_machines_of_the_slice(jobset):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [replicated] = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    [container] = pod["containers"]
    check_command(container["command"] + container["args"])
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    sides = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    assert job["parallelism"] == job["completions"] == int(sides[0]) * int(sides[1]) // chips
    assert {port["containerPort"] for port in container["ports"]} >= {8482}  # where JAX's coordinator listens on TPUs


def test_the_jobset_starts_again_after_anything_but_a_wrong_setting(jobset):
    # Fields: https://jobset.sigs.k8s.io/docs/reference/jobset.v1alpha2/ and the Job's pod failure policy of Kubernetes, which
    # asks for restartPolicy Never.
    policy = jobset["spec"]["failurePolicy"]
    assert set(policy) == {"maxRestarts", "rules"}
    [rule] = policy["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    [rule] = job["podFailurePolicy"]["rules"]
    pod = job["template"]["spec"]
    assert rule == {"action": "FailJob", "onExitCodes": {"containerName": "train", "operator": "In", "values": [2]}}
    assert [container["name"] for container in pod["containers"]] == ["train"]
    assert job["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"


def test_the_image_installs_what_the_extra_is_called(capsys):
    lines = (LAUNCH / "gke" / "Dockerfile").read_text().splitlines()
    words = {line.split()[0] for line in lines if line and not line.startswith((" ", "#"))}
    assert words <= {"FROM", "WORKDIR", "COPY", "RUN", "ENTRYPOINT"}
    python = re.search(r"FROM python:3\.(\d+)", "\n".join(lines))
    assert python and f"constraints/py3{python[1]}.txt" in "\n".join(lines)
    assert (ROOT / "constraints" / f"py3{python[1]}.txt").exists() and "-e '.[tpu]'" in "\n".join(lines)


def test_the_skypilot_task_has_known_fields_and_runs_train(task):
    # https://docs.skypilot.co/en/latest/reference/yaml-spec.html
    assert set(task) == {"name", "workdir", "resources", "envs", "secrets", "setup", "run"}
    assert set(task["resources"]) == {"infra", "accelerators", "accelerator_args", "use_spot", "job_recovery"}
    assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 134]
    assert task["envs"]["FOLDER"] is None  # so that SkyPilot asks for it
    assert set(re.findall(r"\$\{?([A-Z]+)", task["run"])) <= set(task["envs"]) | {"HOME"}
    line = task["run"].strip().removeprefix("exec ")
    given = {"$CONFIG": task["envs"]["CONFIG"], "$FOLDER": "gs://bucket/run", "$SETTINGS": task["envs"]["SETTINGS"]}
    for name, value in given.items():
        line = line.replace(name, value)
    bash, script, verb, *arguments = shlex.split(line)
    check_command(["jaxselftrain", verb, *arguments])
    assert shlex.split(task["setup"]) == [bash, script, "install"] == ["bash", "launch/tpu_worker.sh", "install"]
    assert {f"  {verb})", "  install)"} <= {line.split(")")[0] + ")" for line in (ROOT / script).read_text().splitlines()}
