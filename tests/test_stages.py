"""Stages: what each run is given, one command from end to end, stopped and given again, and what is refused."""

import json
import subprocess
import sys

import pytest
import yaml
from runs import command, environment, final_weights, lines, make_home, without_times

from jaxselftrain.config import load_config
from jaxselftrain.errors import UserError
from jaxselftrain.stages import plan

STAGES = [
    {"name": "gold", "settings": {"label": {"source": "gold"}, "train": {"steps": 2}}},
    {"name": "votes", "labels": 4, "settings": {"questions": {"easiest": 0.5}, "optimizer": {"learning_rate": 5e-4}}},
    {"name": "taught", "labels": 2, "settings": {"label": {"source": "teacher"}, "model": {"weights_dtype": "bfloat16"}}},
]

# the command line, where Ctrl-C comes as the second stage's run begins
STOPPED = """
import sys
from jaxselftrain import training
from jaxselftrain.cli import main
from jaxselftrain.errors import Resumable

def stopped(config, name, real=training.run):
    if name == "2-votes":
        raise Resumable("stopped")
    real(config, name)

training.run = stopped
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    sections = {"train": {"steps": 1}, "stages": STAGES, "mesh": {"data": 1}, "log": {"tensorboard": False}}
    return make_home(tmp_path_factory.mktemp("stages"), questions=24, held_out=4, first_held_out=22, **sections)


def test_a_stage_is_the_config_with_its_own_settings_and_the_model_of_the_one_before(home, tmp_path):
    config = load_config(home / "config.yaml")
    gold, votes, taught = plan(config, tmp_path)
    assert gold.config == config.model_copy(
        update={
            "stages": (),
            "label": config.label.model_copy(update={"source": "gold"}),
            "train": config.train.model_copy(update={"steps": 2, "folder": str(tmp_path / "1-gold")}),
        }
    )
    assert gold.labels is None and gold.model == tmp_path / "1-gold.model"
    assert votes.config.model.path == str(gold.model) and taught.config.model.path == str(votes.model)
    assert votes.config.questions == config.questions.model_copy(
        update={"easiest": 0.5, "labels": str(tmp_path / "2-votes.labels.jsonl")}
    )
    assert votes.config.optimizer.learning_rate == 5e-4 and votes.config.label == config.label and votes.votes == 4
    assert taught.config.label.file == str(tmp_path / "3-taught.labels.jsonl")


def test_one_command_runs_all_stages_and_goes_on_where_it_was_stopped(home, tmp_path):
    whole, twice = tmp_path / "whole", tmp_path / "twice"
    code, out, err = command("train", str(home / "config.yaml"), f"train.folder={whole}")
    assert code == 0, err
    assert [line.split(",")[0] for line in out.splitlines() if line.startswith("stage ")] == [
        f"stage {n} of 3" for n in (1, 2, 3)
    ]
    assert len(lines(whole, "2-votes.labels.jsonl")) == len(lines(whole, "3-taught.labels.jsonl")) == 24
    assert all(len(row["answers"]) == 4 for row in lines(whole, "2-votes.labels.jsonl"))
    assert json.loads((whole / "3-taught" / "summary.json").read_text())["steps"] == 1
    given = ["train", str(home / "config.yaml"), f"train.folder={twice}"]
    stopped = subprocess.run([sys.executable, "-c", STOPPED, *given], env=environment(), capture_output=True, text=True)
    assert stopped.returncode == 75 and "stopped; resume with: jaxselftrain train" in stopped.stderr, stopped.stderr
    assert (twice / "1-gold.model").is_dir() and (twice / "2-votes.labels.jsonl").is_file() and not (twice / "2-votes").exists()
    code, out, err = command(*given)
    assert code == 0 and out.count(": done, its model is") == 1, err
    for name in ("1-gold", "2-votes", "3-taught"):
        assert without_times(lines(whole / name)) == without_times(lines(twice / name))
    ours, theirs = (final_weights(folder / "3-taught", 1) for folder in (whole, twice))
    assert ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    code, out, _ = command(*given)
    assert code == 0 and out.count(": done, its model is") == 3
    code, _, err = command(*given, "vote.samples=2")
    assert code == 2 and "is a finished stage with other settings: vote.samples: 4 -> 2" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([{"name": "a b"}], "stages.0.name = 'a b': string should match pattern"),
        ([{"name": "a", "settings": {"vote": {"sample": 3}}}], "stages.0 (a): unknown field vote.sample (value 3); did you mean"),
        ([{"name": "a"}, {"name": "b", "settings": {"rollout": {"temperature": 0}}}], "stages.1 (b): rollout.temperature = 0"),
        ([{"name": "a", "labels": 4}], "stages.0 (a): labels are made and nothing reads them"),
        ([{"name": "a", "settings": {"stages": [{"name": "b"}]}}], "stages.0 (a): a stage has no stages of its own"),
        ([{"name": "a", "settings": {"model": None}}], "stages.0 (a): model = None: must be a section"),
        ([{"name": "a", "labels": 2, "settings": {"label": 3}}], "stages.0 (a): label = 3: must be a section"),
        ([{"name": "a", "settings": {"train": {"folder": "x"}}}], "stages.0 (a): train.folder is given by the stage's name"),
        (
            [{"name": "a"}, {"name": "b", "settings": {"model": {"path": "x"}}}],
            "stages.1 (b): a stage starts from the model of the",
        ),
    ],
)
def test_a_stage_that_cannot_be_is_named(home, tmp_path, stages, says):
    values = yaml.safe_load((home / "config.yaml").read_text()) | {"stages": stages}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError) as caught:
        plan(load_config(tmp_path / "config.yaml"), tmp_path / "runs")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    code, _, err = command("train", str(tmp_path / "config.yaml"), "--print-config")
    assert code == 2 and says in err
