"""`jaxselftrain vote`: the same votes as the library's, errors by file and line, a terminal that no model's text acts on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jaxselftrain import cli
from jaxselftrain.answers import answer_key
from jaxselftrain.vote_file import TABLE_ROWS, printable
from jaxselftrain.votes import vote


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def refusal(capsys, *arguments):
    assert cli.main(["vote", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    return printed.err.removeprefix("jaxselftrain: error: ").strip()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def votes(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_the_output_is_the_vote_of_the_library(tmp_path, out, capsys):
    said = {"a": ["4", "4.0", "5", None], "b": ["x", None, "x", "y"], "c": [None, None], "d": []}
    rows = [
        {"id": id, "completions": ["no" if s is None else f"so \\boxed{{{s}}}" for s in answers], "more": 1}
        for id, answers in said.items()
    ]
    file = write(tmp_path / "in.jsonl", *rows)
    assert cli.main(["vote", file, "--output", str(out)]) == 0
    found = votes(out)
    assert [row["id"] for row in found] == list(said)
    for row, answers in zip(found, said.values(), strict=True):
        keys = [None if s is None else answer_key(s) for s in answers]
        want = vote(keys, ties="first", denominator="valid", opaque_may_win=False)
        assert row["keys"] == keys and row["key"] == want.majority and row["share"] == want.share
        assert [(c["key"], c["count"]) for c in row["classes"]] == list(want.classes)
        assert row["rewards"] == [float(key is not None and key == want.majority) for key in keys]
        assert (row["valid"], row["samples"], row["killed"]) == (want.valid, len(keys), 0)
        assert row["majority"] == (None if want.majority is None else answers[keys.index(want.majority)])
    shown = capsys.readouterr().out
    assert "0.67" in shown and str(out) in shown.replace("\n", "")


def test_formats_patterns_and_settings_of_the_config(tmp_path, out):
    file = write(tmp_path / "in.jsonl", {"id": 7, "completions": ["#### 1", "#### 2", "= 3 =", "#### 2", "#### 1", "= 3 ="]})
    assert cli.main(["vote", file, "--format", "hash", "--output", str(out), "vote.denominator=all"]) == 0
    assert (votes(out)[0]["id"], votes(out)[0]["majority"], votes(out)[0]["share"]) == (7, "1", 2 / 6)
    assert cli.main(["vote", file, "--format", "hash", "--output", str(out), "vote.ties=abstain"]) == 0
    assert votes(out)[0]["majority"] is None and votes(out)[0]["rewards"] == [0.0] * 6
    assert cli.main(["vote", file, "--pattern", "= (.) =", "--output", str(out)]) == 0
    assert (votes(out)[0]["majority"], votes(out)[0]["valid"]) == ("3", 2)


def test_a_completion_that_hangs_costs_its_own_vote(tmp_path, out, capsys):
    hang = "a" * 60 + "!"
    file = write(tmp_path / "in.jsonl", {"id": "q", "completions": [hang, "1", "aa", "1"]})
    assert cli.main(["vote", file, "--pattern", r"^((?:a+)+|\d+)$", "--output", str(out), "vote.seconds=0.3"]) == 0
    assert (votes(out)[0]["majority"], votes(out)[0]["killed"], votes(out)[0]["valid"]) == ("1", 1, 3)
    assert "completions given up: 1 " in capsys.readouterr().out


@pytest.mark.parametrize(
    "line, part",
    [
        ("{", "malformed JSON"),
        ("[1]", "one JSON object"),
        ({"completions": []}, "no field id"),
        ({"id": "b"}, "no field completions"),
        ({"id": "b", "completions": "x"}, "completions must be a list of strings"),
        ({"id": "b", "completions": ["x", None]}, "completions must be a list of strings"),
        ({"id": ["b"], "completions": []}, "field id must be a string or an integer, not list"),
        ('{"id": 1.5, "completions": []}', "field id must be a string or an integer, not float"),
        ('{"id": NaN, "completions": []}', "field id must be a string or an integer, not float"),
        ('{"id": -Infinity, "completions": []}', "field id must be a string or an integer, not float"),
        ({"id": True, "completions": []}, "field id must be a string or an integer, not bool"),
        ({"id": None, "completions": []}, "field id must be a string or an integer, not NoneType"),
        ('{"id": 1' + "0" * 10_000 + ', "completions": []}', "an integer of more than 4300 digits; write it as a string"),
        ('{"id": "b", "id": "c", "completions": []}', "key 'id' stands twice"),
        ('{"id": "b", "completions": [], "more": {"x": 1, "x": 1}}', "key 'x' stands twice"),
        ({"id": "\ud800", "completions": []}, "field id is not valid Unicode"),
        ({"id": "a", "completions": []}, "in.jsonl:1"),
        ("[" * 100_000, "malformed JSON"),
    ],
)
def test_a_line_that_is_no_question_is_named(line, part, tmp_path, capsys):
    file = write(tmp_path / "in.jsonl", {"id": "a", "completions": []}, "", line)
    sentence = refusal(capsys, file)
    assert sentence.startswith(f"{file}:3: ") and part in sentence and "sys." not in sentence


def test_other_mistakes_are_one_sentence_too(tmp_path, capsys):
    file = write(tmp_path / "in.jsonl", {"id": "a", "completions": []})
    assert "absent.jsonl does not exist" in refusal(capsys, str(tmp_path / "absent.jsonl"))
    empty = write(tmp_path / "empty.jsonl")
    assert refusal(capsys, empty) == f"{empty}: there is not one row in it"
    assert refusal(capsys, str(tmp_path)) == f"{tmp_path} is a folder; name a JSONL file whose lines hold id and completions"
    assert "answer.format = 'box'" in refusal(capsys, file, "--format", "box")
    assert "pattern goes with format regex" in refusal(capsys, file, "--format", "boxed", "--pattern", "(x)")
    assert "answer.pattern" in refusal(capsys, file, "--pattern", "(")
    assert "did you mean vote.ties?" in refusal(capsys, file, "vote.tie=first")
    assert "the folder" in refusal(capsys, file, "--output", str(tmp_path / "absent" / "out.jsonl"))


@pytest.mark.parametrize(
    "arguments, part",
    [
        (["train.steps=4"], "train.steps changes nothing here"),
        (["vote.samples=64"], "vote.samples changes nothing here; the settings that do are answer.format, "),
        (["vote={samples: 64}"], "vote.samples changes nothing here"),
        (["questions.count=1"], "questions.count changes nothing here"),
        (["answer={}"], "answer changes nothing here"),
        (["answer=boxed"], "answer = 'boxed': must be a section"),
        (["vote.samples=1"], "vote.samples = 1"),
        (["--format", "hash", "answer.format=letter"], "--format and answer.format are the same setting"),
        (["--pattern", "(a)", "answer={format: regex, pattern: (b)}"], "--pattern and answer.pattern are the same setting"),
        (["--pattern", "(a)", "answer.format=letter"], "pattern goes with format regex"),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(arguments, part, tmp_path, capsys):
    assert part in refusal(capsys, write(tmp_path / "in.jsonl", {"id": "a", "completions": []}), *arguments)


def test_settings_in_two_places_that_agree_are_joined(tmp_path, out):
    file = write(tmp_path / "in.jsonl", {"id": "a", "completions": ["= 3 ="]})
    for arguments in (["--format", "regex", "answer.pattern== (.) ="], ["--pattern", "= (.) =", "answer.format=regex"]):
        assert cli.main(["vote", file, "--output", str(out), *arguments]) == 0
        assert votes(out)[0]["majority"] == "3"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_the_votes_are_written_although_nobody_reads_the_table(tmp_path, out):
    file = write(tmp_path / "in.jsonl", {"id": "a", "completions": ["\\boxed{3}"]})
    command = [sys.executable, "-m", "jaxselftrain.cli", "vote", file, "--output", str(out)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr
    assert votes(out)[0]["majority"] == "3"


def test_what_a_model_wrote_is_shown_and_never_acts(tmp_path, out, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    nasty = "[bold]\\boxed{[red]x[/red][link=http://x]}"
    texts = [nasty, "\\boxed{\u202e5}", "\\boxed{\x1b[2J}", "\\boxed{\ud800}"]
    rows = [{"id": f"[blink]\x1b]0;title\x07 {i}", "completions": [text]} for i, text in enumerate(texts)]
    assert cli.main(["vote", write(tmp_path / "in[b].jsonl", *rows), "vote.opaque_may_win=true", "--output", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert "[red]x[/red]" in shown and "[blink]" in shown and "in[b].jsonl" in shown
    assert [row["id"] for row in votes(out)] == [row["id"] for row in rows]
    assert printable("a\x00\n\ud800\u202e" + "b" * 100) == "a\\x00\\n\\ud800\\u202e" + "b" * 54 + "…"


def test_a_long_file_shows_its_first_questions_and_says_how_many_more(tmp_path, out, capsys):
    rows = [{"id": i, "completions": ["\\boxed{1}"]} for i in range(TABLE_ROWS + 5)]
    assert cli.main(["vote", write(tmp_path / "in.jsonl", *rows), "--output", str(out)]) == 0
    assert "and 5 more questions" in capsys.readouterr().out and len(votes(out)) == TABLE_ROWS + 5


def test_it_imports_no_jax(tmp_path):
    file = write(tmp_path / "in.jsonl", {"id": "a", "completions": ["\\boxed{1}"]})
    script = (
        "import sys; from jaxselftrain import cli\n"
        "code = cli.main(['vote', sys.argv[1]])\n"
        "heavy = {'jax', 'jaxlib', 'flax', 'torch', 'transformers'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run([sys.executable, "-c", script, file], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
