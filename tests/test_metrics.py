"""The numbers of a step against loops over samples; the log files through kills, cuts and resumes."""

import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxselftrain.answer_key import AnswerKey
from jaxselftrain.errors import UserError
from jaxselftrain.metrics import METRICS, MetricsLog, metrics_page, read_metrics, vote_metrics
from jaxselftrain.rewards import Feedback, agreement
from jaxselftrain.sections import Log
from jaxselftrain.tallies import count_up
from jaxselftrain.votes import vote

PLAIN = Log(tensorboard=False)


def metrics_of(keys_QN, votes, labels, reward_QN, lengths_QN, truncated_QN, ids, key):
    Q = len(keys_QN)
    decided = Feedback(reward_QN, np.ones_like(reward_QN), np.ones(Q), np.zeros((Q, 1), int), np.asarray(True))
    halves = [(None, None)] * Q
    return vote_metrics(count_up(keys_QN, votes, halves, labels, decided, lengths_QN, truncated_QN, None, ids, key))


def test_the_docs_show_every_metric_as_it_is_explained_here():
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert page == metrics_page()
    for name, meaning in METRICS.items():
        assert f"| `{name}` | {meaning} |" in page
        assert meaning.endswith(".") and "|" not in meaning and 20 < len(meaning) < 200


@settings(deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda N: st.lists(
            st.lists(st.sampled_from([None, "n:1", "n:2", "t:a", "o:b"]), min_size=N, max_size=N), min_size=1, max_size=5
        )
    ),
    st.lists(st.sampled_from(["1", "2.0", "a", "?", None]), min_size=5, max_size=5),
    st.lists(st.sampled_from(["n:1", "n:2", "t:a", None]), min_size=5, max_size=5),
)
def test_vote_metrics_equal_loops_over_samples(keys_QN, golds, labels):
    Q, N = len(keys_QN), len(keys_QN[0])
    ids = [f"q{q}" for q in range(Q)]
    votes = [vote(keys, ties="first", denominator="valid", opaque_may_win=True) for keys in keys_QN]
    reward_QN = np.asarray([agreement(keys, ballot.majority) for keys, ballot in zip(keys_QN, votes, strict=True)], np.float32)
    lengths_QN, truncated_QN = np.arange(Q * N).reshape(Q, N), np.arange(Q * N).reshape(Q, N) % 3 == 0
    key = AnswerKey({id: gold for id, gold in zip(ids, golds, strict=False) if gold is not None})
    got = metrics_of(keys_QN, votes, labels[:Q], reward_QN, lengths_QN, truncated_QN, ids, key)

    everything = [k for keys in keys_QN for k in keys]
    want = {
        "pseudo_reward": reward_QN.sum() / (Q * N),
        "halves_differ_share": 0.0,
        "majority_share": sum(ballot.share for ballot in votes) / Q,
        "saturated_share": sum(len({k for k in keys if k is not None}) == 1 for keys in keys_QN) / Q,
        "same_majority_share": max(sum(ballot.majority == k for ballot in votes) for k in ("n:1", "n:2", "t:a", "o:b")) / Q,
        "distinct_answers": sum(len({k for k in keys if k is not None}) for keys in keys_QN) / Q,
        "no_answer_share": everything.count(None) / (Q * N),
        "opaque_share": everything.count("o:b") / (Q * N),
        "zero_variance_share": sum(len(set(rewards)) == 1 for rewards in reward_QN.tolist()) / Q,
        "dominant_answer_share": max(everything.count(k) for k in ("n:1", "n:2", "t:a", "o:b")) / (Q * N),
        "response_length": sum(range(Q * N)) / (Q * N),
        "truncated_share": sum(i % 3 == 0 for i in range(Q * N)) / (Q * N),
    }
    gold_keys = [{"1": "n:1", "2.0": "n:2", "a": "t:a"}.get(gold) for gold in golds[:Q]]
    known = [q for q in range(Q) if gold_keys[q] is not None]
    if known:
        samples = [(q, n) for q in known for n in range(N)]
        want["true_accuracy"] = sum(keys_QN[q][n] == gold_keys[q] for q, n in samples) / len(samples)
        want["label_accuracy"] = sum(labels[q] == gold_keys[q] for q in known) / len(known)
        want["majority_accuracy"] = sum(votes[q].majority == gold_keys[q] for q in known) / len(known)
        want["reward_accuracy"] = sum((reward_QN[q, n] == 1) == (keys_QN[q][n] == gold_keys[q]) for q, n in samples) / len(
            samples
        )
    assert got == pytest.approx(want) and set(got) <= set(METRICS)
    without = metrics_of(keys_QN, votes, labels[:Q], reward_QN, lengths_QN, truncated_QN, ids, None)
    assert without == {name: value for name, value in got.items() if not name.endswith("_accuracy")}


def test_collapse_shows_as_one_dominant_answer():
    one_for_all = [["n:1"] * 4] * 3
    each_its_own = [[f"n:{q}"] * 4 for q in range(3)]
    shares = []
    for keys_QN in (one_for_all, each_its_own):
        votes = [vote(keys, ties="first", denominator="valid", opaque_may_win=True) for keys in keys_QN]
        zeros, none = np.zeros((3, 4)), [None] * 3
        found = metrics_of(keys_QN, votes, none, np.ones((3, 4)), zeros, zeros, ["a", "b", "c"], None)
        shares.append(found["dominant_answer_share"])
    assert shares == [1.0, pytest.approx(1 / 3)]


def test_lines_come_back_as_written(tmp_path):
    with MetricsLog(tmp_path, PLAIN) as log:
        log.write(0, {"heldout/avg": np.float32(0.5)})
        log.write(1, {"pseudo_reward": 0.25, "loss": math.nan, "grad_norm": math.inf, "step": 1})
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2  # on disk before it is closed
        log.write_responses(1, [{"text": "a\ud800é\n", "reward": 1.0}, {"text": "b"}])
    for text in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    first, second = read_metrics(tmp_path)
    assert first == {"step": 0, "heldout/avg": 0.5} and isinstance(first["step"], int)
    assert second["pseudo_reward"] == 0.25 and math.isnan(second["loss"]) and math.isnan(second["grad_norm"])
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{"step": 1, "text": "a\ud800é\n", "reward": 1.0}, {"step": 1, "text": "b"}]
    assert not (tmp_path / "tensorboard").exists()


def test_an_unknown_name_or_a_step_twice_is_an_error_and_writes_nothing(tmp_path):
    with MetricsLog(tmp_path, PLAIN) as log:
        log.write(3, {"loss": 1.0})
        with pytest.raises(ValueError, match="speed has no explanation"):
            log.write(4, {"loss": 1.0, "speed": 2.0})
        with pytest.raises(ValueError, match="step 3 is already"):
            log.write(3, {"loss": 1.0})
    with MetricsLog(tmp_path, PLAIN) as log, pytest.raises(ValueError, match="step 2 is already"):
        log.write(2, {"loss": 1.0})  # also after a restart
    assert [line["step"] for line in read_metrics(tmp_path)] == [3]


def scalars(folder):
    """{tag: [(step, value), ...]} of all TensorBoard event files in a folder."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    found: dict[str, list] = {}
    for path in sorted(folder.glob("events*")):
        data = path.read_bytes()
        while data:  # each record: length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
            data = data[16 + length :]
    return found


@pytest.mark.parametrize("torn", [False, True])
def test_cutting_back_leaves_each_step_once_everywhere(tmp_path, torn):
    log = MetricsLog(tmp_path, Log())
    for step in range(6):
        log.write(step, {"loss": float(step), "heldout/avg": 0.5} if step % 2 else {"loss": float(step)})
        log.write_responses(step, [{"text": f"{step}a"}, {"text": f"{step}b"}])
    log.close()
    if torn:
        for name in ("metrics.jsonl", "responses.jsonl"):
            with (tmp_path / name).open("a") as file:
                file.write('{"step": 6, "lo')
    log = MetricsLog(tmp_path, Log())
    log.cut_back(3)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0, 1, 2, 3]
    log.write(4, {"loss": 40.0})
    log.write_responses(4, [{"text": "again"}])
    log.close()
    assert [line["loss"] for line in read_metrics(tmp_path)] == [0.0, 1.0, 2.0, 3.0, 40.0]
    rows = [json.loads(line) for line in (tmp_path / "responses.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b", "again"]
    board = scalars(tmp_path / "tensorboard")
    assert board["loss"] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert board["heldout/avg"] == [(1, 0.5), (3, 0.5)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "responses.jsonl", "tensorboard"]


def test_cutting_back_everything_and_nothing(tmp_path):
    log = MetricsLog(tmp_path, Log())
    log.cut_back(-1)  # a fresh folder
    log.write(0, {"loss": 1.0})
    log.cut_back(7)
    assert [line["step"] for line in read_metrics(tmp_path)] == [0]
    log.cut_back(-1)
    log.write(0, {"loss": 2.0})
    log.close()
    assert [line["loss"] for line in read_metrics(tmp_path)] == [2.0]
    assert scalars(tmp_path / "tensorboard") == {"loss": [(0, 2.0)]}


def test_a_failed_cut_leaves_the_old_file(tmp_path, monkeypatch):
    with MetricsLog(tmp_path, PLAIN) as log:
        log.write(0, {"loss": 1.0})
        log.write(1, {"loss": 1.0})
        before = (tmp_path / "metrics.jsonl").read_bytes()

        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("jaxselftrain.metrics.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            log.cut_back(0)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_a_line_after_a_torn_one_is_whole_even_without_a_cut(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    with MetricsLog(tmp_path, PLAIN) as log:
        log.write(1, {"loss": 2.0})
    assert read_metrics(tmp_path) == [{"step": 0, "loss": 1.0}, {"step": 1, "loss": 2.0}]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl:2 is not a line of JSON"):
        read_metrics(tmp_path)
    with pytest.raises(UserError, match=r"holds no metrics\.jsonl"):
        read_metrics(tmp_path / "elsewhere")


def test_a_missing_logger_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"log\.tensorboard"):
        MetricsLog(tmp_path, Log())
    with pytest.raises(UserError, match=r"log\.wandb = 'project'"):
        MetricsLog(tmp_path, Log(tensorboard=False, wandb="project"))


def test_wandb_gets_every_line_and_a_resumed_run_keeps_its_id(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finish"))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **given: (calls.append(given), run)[1]))
    for step in (1, 2):
        with MetricsLog(tmp_path, Log(tensorboard=False, wandb="project")) as log:
            log.write(step, {"loss": 0.5})
    first, one, end, second, two, _ = calls
    assert first == second and first["project"] == "project" and first["resume"] == "allow" and first["id"]
    assert (one, two, end) == ((1, {"loss": 0.5}), (2, {"loss": 0.5}), "finish")
