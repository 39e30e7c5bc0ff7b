"""The demo as people run it, with the real model: minutes long, so it is run by `make long`."""

import json
from pathlib import Path

import pytest
from runs import command, lines

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


@pytest.mark.long
def test_the_model_teaches_itself_and_random_rewards_do_not(tmp_path):
    gains = {}
    for source, kind in {"vote": "agreement", "random": "random"}.items():
        folder = tmp_path / source
        code, _, err = command("train", str(CONFIG), f"reward.kind={kind}", f"train.folder={folder}", timeout=1800)
        assert code == 0, err
        summary = json.loads((folder / "summary.json").read_text())
        gains[source] = {name: summary["after"][name] - summary["before"][name] for name in ("avg", "maj", "greedy")}
        assert [line["step"] for line in lines(folder)] == list(range(13))
        assert summary["compiled"] == {name: {**found, "times": 1} for name, found in summary["compiled"].items()}
        assert set(summary["compiled"]) == {"step", "sample"}
    assert gains["vote"]["avg"] >= 0.08 and gains["vote"]["greedy"] >= 0.03
    assert gains["random"]["avg"] < 0.08 and gains["random"]["greedy"] < 0.03
    assert gains["vote"]["avg"] > gains["random"]["avg"] + 0.08
