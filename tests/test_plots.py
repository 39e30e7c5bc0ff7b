"""The picture holds every curve, and its numbers are those of the metrics file."""

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from jaxselftrain.config import parse_config, to_yaml
from jaxselftrain.errors import UserError
from jaxselftrain.metrics import MetricsLog
from jaxselftrain.plots import plot_run, plot_thresholds, running_mean
from jaxselftrain.sections import Log
from jaxselftrain.statistics import Threshold
from jaxselftrain.summary import show_summary


@pytest.fixture
def figure(monkeypatch):
    """The last figure saved."""
    saved = {}
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *given, **named: (saved.update(figure=self), save(self, *given, **named)))
    return lambda: saved["figure"]


def write_run(folder: Path, steps: int, *, held_out: bool = True, rise: float = 0.3) -> Path:
    folder.mkdir()
    with MetricsLog(folder, Log(tensorboard=False)) as log:
        for step in range(steps + 1):
            part = step / steps
            line = {}
            if step:
                line = {
                    "pseudo_reward": 0.5 + rise * part,
                    "majority_share": 0.6 + rise * part,
                    "true_accuracy": 0.3 + rise * part,
                }
            if held_out and step in (0, steps):
                for place, name in enumerate(("avg", "maj", "greedy")):
                    value = 0.3 + 0.1 * place + rise * part
                    line |= {f"heldout/{name}": value, f"heldout/{name}_low": value - 0.05, f"heldout/{name}_high": value + 0.05}
            log.write(step, line)
    return folder


def texts(axis):
    return [text.get_text() for text in axis.texts]


def test_a_run_and_its_control(tmp_path, figure):
    runs = {"run": write_run(tmp_path / "a", 20), "control": write_run(tmp_path / "b", 20, rise=0.0)}
    out = plot_run(runs, tmp_path / "plot.png", title="a title")
    assert out.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    training, held_out = figure().axes
    assert figure().get_suptitle() == "a title" and training.get_xlabel() and held_out.get_ylabel()
    want = [0.3, 0.5, 0.6]  # true accuracy, pseudo-reward, majority share at step 0 of their straight lines
    assert texts(training) == [f"{value + 0.3 / 20:.2f}" for value in want] + [f"{value + 0.3:.2f}" for value in want]
    assert texts(held_out) == ["0.30", "0.40", "0.50", "0.60", "0.70", "0.80"]  # before, then after
    for axis in (training, held_out):
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert len(labels) == 6 and sum(label.startswith("control: ") for label in labels) == 3
        coloured, grey = axis.lines[:3], axis.lines[3:]
        assert all(line.get_linestyle() == "-" for line in coloured) and all(line.is_dashed() for line in grey)
        assert {line.get_color() for line in grey} == {"#7F7F7F"} and len({line.get_color() for line in coloured}) == 3
    assert list(held_out.lines[2].get_ydata()) == pytest.approx([0.3, 0.6])  # avg@k


def test_without_evaluation_there_is_one_panel(tmp_path, figure):
    plot_run({"run": write_run(tmp_path / "a", 5, held_out=False)}, tmp_path / "plot.png", title="t")
    assert len(figure().axes) == 1 and len(figure().axes[0].lines) == 3


def test_a_long_run_is_smoothed(tmp_path, figure):
    plot_run({"run": write_run(tmp_path / "a", 200)}, tmp_path / "plot.png", title="t")
    raw, smooth = figure().axes[0].lines[:2]
    assert raw.get_alpha() < 1 and list(smooth.get_ydata()) == pytest.approx(running_mean(list(raw.get_ydata()), 200 // 30))
    assert running_mean([1.0, 2.0, 6.0, 3.0], 3) == [1.5, 3.0, 11 / 3, 4.5]


def test_a_single_point_a_missing_value_and_an_empty_run(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    with MetricsLog(folder, Log(tensorboard=False)) as log:
        log.write(0, {"heldout/avg": 0.5})
        log.write(1, {"pseudo_reward": math.nan, "majority_share": 0.5})
    assert plot_run({"run": folder}, tmp_path / "plot.png", title="t").stat().st_size > 5_000
    empty = tmp_path / "b"
    empty.mkdir()
    with pytest.raises(UserError, match="holds no metrics"):
        plot_run({"run": empty}, tmp_path / "none.png", title="t")
    (empty / "metrics.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
    with pytest.raises(UserError, match="nothing to plot"):
        plot_run({"run": empty}, tmp_path / "none.png", title="t")
    assert not (tmp_path / "none.png").exists()


def test_the_threshold_picture_holds_every_number(tmp_path, figure):
    curve = [Threshold(share=s, coverage=1 - s / 2, majority=0.4 + s / 2, sample=0.3 + s / 2) for s in (0.25, 0.5, 1.0)]
    out = plot_thresholds({"after": curve, "before": curve[:2]}, tmp_path / "t.png", title="agreement")
    assert out.read_bytes().startswith(b"\x89PNG")
    drawn = {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure().axes[0].lines}
    assert drawn["majority answer right (of these questions)"] == ([0.25, 0.5, 1.0], [0.525, 0.65, 0.9])
    assert drawn["coverage (of all questions)"][1] == [0.875, 0.75, 0.5]
    assert drawn["before: sample right"] == ([0.25, 0.5], [0.425, 0.55])
    with pytest.raises(UserError, match="cannot be written"):
        plot_thresholds({"after": curve}, tmp_path / "no" / "t.png", title="agreement")


def test_a_run_with_nothing_to_draw_is_summed_up_without_a_picture(tmp_path, capsys):
    """Supervised steps without held-out questions measure a loss alone."""
    config = parse_config({"questions": {"source": "jsonl", "path": "q.jsonl"}})
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n')
    show_summary(tmp_path)
    assert f"run folder: {tmp_path}" in capsys.readouterr().out and not (tmp_path / "picture.png").exists()
