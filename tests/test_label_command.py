"""Labels made once: the file against its own answers voted on again, resume, what is refused, and runs that read it."""

import json

import pytest
from etils import epath
from filelock import FileLock
from runs import command, lines, make_home

from jaxselftrain import asking
from jaxselftrain.answers import answer_key
from jaxselftrain.config import load_config
from jaxselftrain.errors import Resumable, UserError
from jaxselftrain.label_file import NEEDED, easiest, finished, read_labels, run_label, teacher_keys
from jaxselftrain.loop import Loop
from jaxselftrain.votes import vote

RESPONSES = "responses.jsonl"
QUESTIONS = 10  # of which evaluate.batch = 4 are asked at a time


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    mesh = {"data": 4, "fsdp": 2}
    evaluate = {"questions": None, "batch": 8}
    return make_home(
        tmp_path_factory.mktemp("label"), questions=QUESTIONS, held_out=4, first_held_out=20, mesh=mesh, evaluate=evaluate,
        rollout={"questions": 8, "max_tokens": 6, "stop": ["\n"]},
    )  # fmt: skip


def label(home, out, *overrides, target=None, questions=None, samples=6):
    run_label(
        target=target or str(home / "model"),
        questions=questions or home / "config.yaml",
        out=out,
        samples=samples,
        overrides=overrides,
        config_path=None,
    )


@pytest.fixture(scope="module")
def made(home):
    label(home, home / "labels.jsonl")
    return home / "labels.jsonl"


def test_a_line_is_the_vote_on_its_own_answers(made):
    rows = [json.loads(line) for line in made.read_text().splitlines()]
    assert [row["id"] for row in rows] == [f"q{i}" for i in range(QUESTIONS)]
    for i, row in enumerate(rows):
        keys = [None if answer is None else answer_key(answer) for answer in row["answers"]]
        counted = vote(keys, ties="first", denominator="valid", opaque_may_win=False)
        assert len(keys) == 6 and (row["key"], row["share"]) == (counted.majority, counted.share)
        assert [(c["key"], c["count"]) for c in row["classes"]] == list(counted.classes)
        assert row["label"] is None or answer_key(row["label"]) == row["key"]
        assert row["pass_rate"] == keys.count(answer_key(str(i + 1))) / 6
        assert row["is_right"] == (row["key"] == answer_key(str(i + 1)))
    assert len({tuple(row["answers"]) for row in rows}) > 1


@pytest.mark.parametrize("left", [0, 5, 8, 9, 10])
def test_a_labelling_goes_on_where_it_was_killed(home, made, tmp_path, monkeypatch, left):
    out, whole = tmp_path / "labels.jsonl", made.read_text()
    kept = whole.splitlines(keepends=True)[:left]
    out.write_text("".join(kept) + (whole.splitlines()[left][:30] if left < QUESTIONS else ""))
    (tmp_path / "labels.jsonl.config.yaml").write_text((home / "labels.jsonl.config.yaml").read_text())
    asked = []
    real = asking.Asker.ask

    def ask(self, params, prompts, *, first):
        for responses in real(self, params, prompts, first=first):
            asked.append(len(responses.ended_QN))
            yield responses

    monkeypatch.setattr(asking.Asker, "ask", ask)
    label(home, out)
    assert out.read_text() == whole
    assert asked == {0: [8, 2], 5: [8, 2], 8: [2], 9: [2], 10: []}[left]  # whole batches are not asked again


def test_what_is_refused(home, made, tmp_path):
    with pytest.raises(UserError, match="labels.jsonl was begun with other settings: vote.samples: 6 -> 8"):
        label(home, made, samples=8)
    with pytest.raises(UserError, match="evaluate.batch: 8 -> 16"):
        label(home, made, "evaluate.batch=16")
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text("{}\n")
    with pytest.raises(UserError, match="was not made by jaxselftrain label"):
        label(home, foreign)
    (tmp_path / "foreign.jsonl.config.yaml").write_text((home / "labels.jsonl.config.yaml").read_text())
    with pytest.raises(UserError, match="holds something else than labels of these questions"):
        label(home, foreign)
    assert foreign.read_text() == "{}\n"
    with pytest.raises(UserError, match="name a file of questions"):
        label(home, tmp_path / "x.jsonl", questions=home / "model")
    with pytest.raises(UserError, match="name a file in a folder that exists"):
        label(home, tmp_path / "nowhere" / "x.jsonl")


def test_one_labelling_at_a_time(home, made):
    with (
        FileLock(made.with_name("labels.jsonl.lock")),
        pytest.raises(UserError, match="another process is writing .*labels.jsonl"),
    ):
        label(home, made)
    label(home, made)
    assert not made.with_name("labels.jsonl.lock").exists()


def test_ctrl_c_keeps_what_is_labelled(home, made, tmp_path, monkeypatch):
    out, real = tmp_path / "labels.jsonl", asking.Asker.ask

    def ask(self, params, prompts, *, first):
        for number, responses in enumerate(real(self, params, prompts, first=first)):
            if number == 1:
                raise KeyboardInterrupt
            yield responses

    monkeypatch.setattr(asking.Asker, "ask", ask)
    with pytest.raises(Resumable, match="stopped; the labels so far are in .*, and the same command goes on"):
        label(home, out)
    assert out.read_text() == "".join(made.read_text().splitlines(keepends=True)[:8])


def test_the_command(home, tmp_path):
    out = tmp_path / "labels.jsonl"
    given = "label", str(home / "model"), str(home / "config.yaml"), str(out), "--samples", "4", "mesh.data=1", "mesh.fsdp=1"
    code, printed, err = command(*given)
    assert code == 0 and f"labels: {out}" in printed and "majority share" in printed, err
    assert len(read_labels(out)) == QUESTIONS
    code, _, err = command(*given[:3], str(home / "config.yaml"))
    assert code == 2 and "Traceback" not in err and "was not made by jaxselftrain label" in err


def test_reading_labels_names_what_is_wrong(tmp_path):
    file = tmp_path / "labels.jsonl"
    for text, said in {
        '{"id": "a", "key": "n:1"}': "labels.jsonl:1: there is no field share",
        '{"id": "a", "key": 3, "share": 1}': "key must be a string or null",
    }.items():
        file.write_text(text + "\n")
        with pytest.raises(UserError, match=said):
            read_labels(file)
    file.write_text('{"id": "a", "key": "n:1", "share": 0.5}\n{"id": "b", "key": null, "share": 0.0}\n')
    assert teacher_keys(file, ["b", "a"]) == {"b": None, "a": "n:1"}
    with pytest.raises(UserError, match=r"has no label for 2 of 3 questions \(first: c\)"):
        teacher_keys(file, ["a", "c", "d"])
    with pytest.raises(UserError, match="question a has no pass_rate"):
        easiest(file, ["a", "b"], part=0.5, by="pass_rate")


def test_the_easiest_questions_are_kept_in_their_order(tmp_path):
    file = tmp_path / "labels.jsonl"
    shares = {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.9, "e": 0.1, "f": 0.5}
    file.write_text("".join(json.dumps({"id": id, "key": "n:1", "share": share}) + "\n" for id, share in shares.items()))
    for part, kept in {0.17: [1, 3], 0.16: [1], 1 / 3: [1, 3], 0.5: [1, 2, 3], 1.0: [0, 1, 2, 3, 4, 5]}.items():
        assert easiest(file, list(shares), part=part, by="share") == kept


def test_a_run_learns_from_a_teacher_and_on_the_easiest_questions(home, made, tmp_path):
    rows = read_labels(made)
    settings = ("label.source=teacher", f"label.file={made}", "train.steps=2", "questions.easiest=0.8")
    config = load_config(home / "config.yaml", (*settings, f"questions.labels={made}"))
    said = []
    (tmp_path / "run").mkdir()
    run = tmp_path / "run"
    where = {"own": run, "cache": tmp_path / "cache", "copy": None}
    with Loop(config, epath.Path(run), [], **where, say=said.append, watch=lambda doing: None) as loop:
        kept = [question.id for question in loop.encoded.questions]
        assert loop.teacher == {id: rows[id]["key"] for id in kept}
    assert "the easiest 8 of 10 training questions are kept, by share" in said
    assert sorted(kept) == sorted(sorted(rows, key=lambda id: -rows[id]["share"])[:8])


def test_rewards_are_for_the_teachers_label(home, made, tmp_path):
    given = "train", str(home / "config.yaml"), "train.steps=1", "mesh.data=1", "mesh.fsdp=1", "log.responses=8"
    assert command(*given, f"train.folder={tmp_path / 'own'}")[0] == 0
    said = {
        row["id"]: [answer_key(s["answer"]) for s in row["samples"] if s["answer"]] for row in lines(tmp_path / "own", RESPONSES)
    }
    labels = {id: row | {"key": said[id][-1] if said.get(id) else None} for id, row in read_labels(made).items()}
    (tmp_path / "teacher.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labels.values()))
    taught = "label.source=teacher", f"label.file={tmp_path / 'teacher.jsonl'}", f"train.folder={tmp_path / 'taught'}"
    code, _, err = command(*given, *taught)
    assert code == 0, err
    rewarded = 0
    (tmp_path / "teacher.jsonl").write_text(made.read_text())
    code, _, err = command(*given, *taught, "train.steps=2")
    assert code == 2 and "their labels in label.file, are not those that" in err and "Traceback" not in err
    for row in lines(tmp_path / "taught", RESPONSES):  # the same samples: nothing has been learned before them
        for sample in row["samples"]:
            key = None if sample["answer"] is None else answer_key(sample["answer"])
            assert sample["reward"] == (key is not None and key == labels[row["id"]]["key"])
            rewarded += sample["reward"]
    assert rewarded >= 4  # many state no answer


def test_a_label_file_is_whole_whatever_its_questions_hold(tmp_path):
    out, ids = tmp_path / "labels.jsonl", ["q0", "q1\u2028", "q2"]
    rows = [dict.fromkeys(NEEDED, None) | {"id": id, "text": "a\u2028b\x85"} for id in ids]
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert finished(out, ids, batch=2) == rows
    out.write_text(out.read_text(encoding="utf-8") + '{"id": "q3', encoding="utf-8")  # torn
    assert finished(out, [*ids, "q3"], batch=2) == rows[:2]
