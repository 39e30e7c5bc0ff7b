"""Several processes are refused until they can train together, and so is a folder that is not on a local disk."""

import pytest
from runs import command, make_home

from jaxselftrain.errors import UserError
from jaxselftrain.processes import refuse_several, several_by


@pytest.mark.parametrize(
    "environment", [{"JAX_NUM_PROCESSES": "2"}, {"SLURM_STEP_NUM_TASKS": "4"}, {"TPU_WORKER_HOSTNAMES": "a,b"}]
)
def test_one_of_several_processes_is_told_to_start_alone(environment):
    ((name, value),) = environment.items()
    with pytest.raises(UserError, match=f"{name} = {value} says that this is one of several processes"):
        refuse_several(environment)


@pytest.mark.parametrize(
    "environment", [{}, {"JAX_NUM_PROCESSES": "1"}, {"SLURM_STEP_NUM_TASKS": "x"}, {"TPU_WORKER_HOSTNAMES": "a"}]
)
def test_a_process_alone_is_let_through(environment):
    assert several_by(environment) is None
    assert several_by(environment | {"JAX_NUM_PROCESSES": "3"}) == "JAX_NUM_PROCESSES"


@pytest.mark.parametrize("stages", [[], [{"name": "one"}]], ids=["a run", "stages"])
def test_a_bucket_is_refused_and_nothing_is_made(stages, tmp_path, monkeypatch):
    make_home(tmp_path, questions=8, held_out=4, first_held_out=20, stages=stages)
    monkeypatch.chdir(tmp_path)
    code, _, err = command("train", str(tmp_path / "config.yaml"), "train.folder=gs://bucket/runs/first")
    assert code == 2 and "train.folder = gs://bucket/runs/first: a run is kept on a local disk so far" in err
    assert "Traceback" not in err and not (tmp_path / "gs:").exists()
