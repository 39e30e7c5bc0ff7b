"""Every source against the records that were written into it, and the sentence that each kind of bad input gets."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest

from jaxselftrain.errors import UserError
from jaxselftrain.sections import Questions
from jaxselftrain.sources import as_text, read_rows, value_at

ONE_DIGIT_SUMS = {"name": "chain_sum", "parameters": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}


def values(**settings):
    return [row.values for row in read_rows(Questions(**settings))]


def refusal(**settings):
    with pytest.raises(UserError) as error:
        list(read_rows(Questions(**settings)))
    assert "\n" not in str(error.value)
    return str(error.value)


# JSONL


def test_jsonl_gives_back_the_written_records_and_their_lines(tmp_path):
    records = [{"question": f"Wie groß ist {n}?\u2028", "answer": n, "more": {"deep": [n]}} for n in range(5)]
    file = tmp_path / "questions.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in records).encode())
    rows = list(read_rows(Questions(source="jsonl", path=str(file))))
    assert [row.values for row in rows] == records
    assert [row.where for row in rows] == [f"{file}:{line}" for line in (1, 3, 5, 7, 9)]
    assert values(source="jsonl", path=str(file), count=2) == records[:2]


@pytest.mark.parametrize(
    "line, says",
    [
        (b'{"question": "a",}', "malformed JSON at column"),
        (b'{"question": ', "malformed JSON at column 14"),
        (b'{"question": \r', "malformed JSON at column 14"),
        (b'["a"]', "one JSON object, not list"),
        (b'"a"', "one JSON object, not str"),
        (b'{"question": "\xff"}', "byte 15 of the line is not UTF-8"),
        (b'{"n": ' + b"9" * 5000 + b"}", "malformed JSON: an integer of more than 4300 digits; write it as a string"),
        (b"[" * 100_000, "malformed JSON: brackets are nested too deep"),
        (b'{"question": "a", "question": "b"}', "key 'question' stands twice"),
    ],
)
def test_a_bad_jsonl_line_is_named_by_file_and_line(tmp_path, line, says):
    file = tmp_path / "bad.jsonl"
    file.write_bytes(b'{"question": "fine"}\n' + line + b"\n")
    message = refusal(source="jsonl", path=str(file))
    assert message.startswith(f"{file}:2: ") and says in message


@pytest.mark.parametrize("source", ["jsonl", "parquet"])
def test_a_missing_file_a_folder_and_an_empty_file_are_refused(tmp_path, source):
    assert "does not exist" in refusal(source=source, path=str(tmp_path / "none"))
    assert "is a folder" in refusal(source=source, path=str(tmp_path))
    empty = tmp_path / "empty"
    if source == "jsonl":
        empty.write_text("\n \n")
    else:
        pyarrow.parquet.write_table(pyarrow.table({"question": pyarrow.array([], pyarrow.string())}), empty)
    assert refusal(source=source, path=str(empty)) == f"questions.path = {empty}: there is not one row in it"


# Parquet


def test_parquet_in_the_chat_layout_gives_messages_nested_answers_and_ids(tmp_path):
    records = [
        {
            "data_source": "math",
            "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{n} + 1?"}],
            "reward_model": {"ground_truth": str(n + 1), "style": "rule"},
            "extra_info": {"index": n, "split": "train"},
        }
        for n in range(3)
    ]
    file = tmp_path / "train.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file, row_group_size=2)
    rows = list(read_rows(Questions(source="parquet", path=str(file))))
    assert [row.values for row in rows] == records
    assert [row.where for row in rows] == [f"{file} row {n}" for n in (1, 2, 3)]
    assert [value_at(row.values, "reward_model.ground_truth") for row in rows] == ["1", "2", "3"]
    assert [value_at(row.values, "extra_info.index") for row in rows] == [0, 1, 2]


def test_files_that_are_no_parquet_are_refused(tmp_path):
    file = tmp_path / "text.parquet"
    file.write_text("question,answer\n" * 10)
    assert "cannot be read as Parquet" in refusal(source="parquet", path=str(file))
    not_utf8 = pyarrow.Array.from_buffers(
        pyarrow.string(), 1, [None, pyarrow.array([0, 1], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"\xff")]
    )
    pyarrow.parquet.write_table(pyarrow.table({"question": not_utf8}), file)
    assert refusal(source="parquet", path=str(file)) == f"{file}: a text after row 0 is not UTF-8"


def test_dots_reach_into_records_unless_a_field_has_that_name():
    record = {"a": {"b": {"c": 1}, "n": None}, "a.b": 2, "s": "text"}
    assert value_at(record, "a.b.c") == 1
    assert value_at(record, "a.b") == 2
    assert value_at(record, "a.n") is None
    assert value_at(record, "a.x") is None
    assert (
        value_at(record, "a.x", absent=0) == value_at(record, "s.x", absent=0) == 0 and value_at(record, "a.n", absent=0) is None
    )
    assert value_at(record, "s.x") is None


def test_numbers_and_bytes_become_text_and_other_things_are_refused():
    numpy = pytest.importorskip("numpy")
    given = ["x", b"\xc3\xa9", 142.0, 18, numpy.int64(7), numpy.float64(0.5), numpy.array(b"y")]
    assert [as_text(value, "row", "answer") for value in given] == ["x", "é", "142.0", "18", "7", "0.5", "y"]
    for value, says in [
        (["18"], "not list"),
        (True, "not bool"),
        ("\ud800", "not valid Unicode"),
        (b"\xff", "not valid Unicode"),
    ]:
        with pytest.raises(UserError, match=f"^row: field answer .*{says}"):
            as_text(value, "row", "answer")


# TensorFlow Datasets

BUILDER = """
import numpy as np
import tensorflow_datasets.public_api as tfds

class TinySums(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        text = {name: tfds.features.Text() for name in ("question", "answer")}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({**text, "n": np.int64}))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 20), "test": self._generate_examples(20, 25)}

    def _generate_examples(self, start, end):
        for n in range(start, end):
            yield n, {"question": f"{n} + {n} = é", "answer": f"twice {n} #### {2 * n}", "n": n}
"""


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


PREPARE = """
import json, pathlib, sys
import tensorflow_datasets as tfds
import tiny_sums.tiny_sums
import tensorflow_datasets.text.gsm8k.gsm8k

tfds.builder("tiny_sums", file_format="array_record").download_and_prepare()

def local(manager, urls):  # the files that gsm8k's builder would download
    line = json.dumps({"question": "How many clips?", "answer": "48 / 2 = 24 and 48 + 24 = 72\\n#### 72"})
    files = {split: pathlib.Path(f"{split}.jsonl") for split in urls}
    for file in files.values():
        file.write_text(line + "\\n")
    return files

tfds.download.DownloadManager.download_and_extract = local
tfds.builder("gsm8k", file_format="array_record").download_and_prepare()
assert "tensorflow" not in sys.modules
"""

READ = """
import json, socket, sys

def refuse(*_, **__):
    raise AssertionError("the network was asked")

socket.getaddrinfo = socket.socket.connect = refuse
from jaxselftrain.sections import Questions
from jaxselftrain.errors import UserError
from jaxselftrain.sources import as_text, read_rows

try:
    rows = [row.values for row in read_rows(Questions(source="tfds", path=sys.argv[1]))]
    print(json.dumps([{name: as_text(value, "", name) for name, value in row.items()} for row in rows]))
except UserError as error:
    print(json.dumps(str(error)))
assert "tensorflow" not in sys.modules
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A data folder with two datasets as ArrayRecord, written by tfds itself: tiny_sums (builder above) and gsm8k."""
    root = tmp_path_factory.mktemp("tfds")
    package = root / "tiny_sums"  # tfds wants a builder in a package folder
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "tiny_sums.py").write_text(BUILDER)
    run_python(PREPARE, TFDS_DATA_DIR=root / "data", PYTHONPATH=root, cwd=root)
    return root / "data"


def run_python(code, *arguments, cwd=None, **environment):
    """What a fresh process prints; for tfds, whose default data folder and registry belong to the process."""
    environment = {**os.environ, **{name: str(value) for name, value in environment.items()}}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_tfds_reads_a_prepared_folder_and_its_splits_offline(prepared, no_network):
    folder = str(prepared / "tiny_sums" / "1.0.0")
    rows = list(read_rows(Questions(source="tfds", path=folder)))
    found = {
        as_text(row.values["question"], "", ""): (as_text(row.values["answer"], "", ""), int(row.values["n"])) for row in rows
    }
    assert found == {f"{n} + {n} = é": (f"twice {n} #### {2 * n}", n) for n in range(20)}
    assert {int(row["n"]) for row in values(source="tfds", path=folder, split="test")} == set(range(20, 25))
    assert len(values(source="tfds", path=folder, split="train[:10%]")) == 2
    assert len(values(source="tfds", path=folder, count=3)) == 3
    assert "has the splits" in refusal(source="tfds", path=folder, split="validation")
    assert "tensorflow" not in sys.modules


def test_tfds_reads_prepared_datasets_by_name_offline(prepared):
    sums = json.loads(run_python(READ, "tiny_sums", TFDS_DATA_DIR=prepared))  # its code is not at hand: read from files
    assert {int(row["n"]) for row in sums} == set(range(20))
    (row,) = json.loads(run_python(READ, "gsm8k", TFDS_DATA_DIR=prepared))
    assert row["question"] == "How many clips?" and row["answer"].endswith("#### 72")


def test_unprepared_and_unknown_tfds_names_say_what_to_do_and_ask_no_network(tmp_path):
    message = json.loads(run_python(READ, "gsm8k", TFDS_DATA_DIR=tmp_path))
    assert "not prepared" in message and "import tensorflow_datasets.text.gsm8k" in message and "download_and_prepare" in message
    assert "download_and_prepare" in json.loads(run_python(READ, "math_qa", TFDS_DATA_DIR=tmp_path))
    assert "did you mean gsm8k?" in json.loads(run_python(READ, "gsmk8", TFDS_DATA_DIR=tmp_path))
    assert "only: 1.0.0" in json.loads(run_python(READ, "gsm8k:9.9.9", TFDS_DATA_DIR=tmp_path))
    assert "dataset_info.json" in refusal(source="tfds", path=str(tmp_path))


def test_a_dataset_in_a_format_without_random_access_says_how_to_prepare_it(prepared, tmp_path):
    folder = tmp_path / "1.0.0"
    shutil.copytree(prepared / "tiny_sums" / "1.0.0", folder)
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
    message = refusal(source="tfds", path=str(folder))
    assert "prepared as tfrecord" in message and "tfds.builder('tiny_sums', file_format='array_record')" in message


# reasoning-gym


def test_generated_questions_are_distinct_equal_for_equal_seeds_and_their_answers_right():
    tasks = [ONE_DIGIT_SUMS, {"name": "products", "parameters": {"max_digits": 2}}]
    settings = dict(source="reasoning_gym", tasks=tasks, count=150)
    first, again, other = (values(**settings, seed=seed) for seed in (3, 3, 4))
    texts = [row["question"] for row in first]
    assert first == again
    assert len(set(texts)) == 150
    assert texts != [row["question"] for row in other]
    for row in first:
        expression = row["metadata"]["expression"]
        assert set(expression) <= set("0123456789+-* ")
        assert int(row["answer"]) == eval(expression)  # our own generated arithmetic, checked to hold nothing else


def test_a_longer_mixture_starts_with_the_shorter_one_and_follows_the_weights():
    tasks = [{"name": "chain_sum", "weight": 3}, {"name": "products", "weight": 1}]
    settings = dict(source="reasoning_gym", tasks=tasks)
    short, long = values(**settings, count=50), values(**settings, count=800)
    assert long[:50] == short
    sums = sum(row["metadata"]["source_dataset"] == "chain_sum" for row in long)
    assert abs(sums - 600) < 5 * (800 * 0.75 * 0.25) ** 0.5


def test_neighbouring_seeds_share_few_questions():
    settings = dict(source="reasoning_gym", tasks=[{"name": "chain_sum"}], count=300)
    a, b = ({row["question"] for row in values(**settings, seed=seed)} for seed in (0, 1))
    assert len(a & b) < 30  # the task draws example i with seed + i: taken as they are, the two would share 299


def test_a_whole_task_space_can_be_drawn_and_one_question_more_is_refused():
    settings = dict(source="reasoning_gym", tasks=[ONE_DIGIT_SUMS])  # a + b and a - b, digits 0 to 9: 200 questions
    assert len({row["question"] for row in values(**settings, count=200)}) == 200
    message = refusal(**settings, count=201)
    assert "questions.tasks[0] (chain_sum) has only about 200 distinct questions" in message
    assert "questions.count = 201" in message


def test_tasks_that_make_their_examples_at_once_are_read_too():
    for task in ("gsm_symbolic", "word_ladder"):
        assert len(values(source="reasoning_gym", tasks=[{"name": task}], count=3)) == 3


@pytest.mark.parametrize(
    "task, says",
    [
        ({"name": "chain_sums"}, "questions.tasks[0].name = chain_sums: reasoning-gym has no such task; did you mean chain_sum?"),
        ({"name": "chain_sum", "parameters": {"min_term": 3}}, "no parameter min_term; did you mean min_terms?"),
        ({"name": "chain_sum", "parameters": {"zzz": 3}}, "no parameter zzz; it has min_terms, max_terms,"),
        ({"name": "chain_sum", "parameters": {"seed": 3}}, "parameter seed is set through questions.seed"),
        ({"name": "chain_sum", "parameters": {"size": 3}}, "parameter size is set through questions.count"),
        ({"name": "chain_sum", "parameters": {"min_terms": 9}}, "max_terms must be >= min_terms"),
        ({"name": "chain_sum", "parameters": {"min_terms": "many"}}, "not accepted: TypeError"),
    ],
)
def test_a_wrong_task_or_parameter_is_named(task, says):
    assert says in refusal(source="reasoning_gym", tasks=[task], count=5)


def test_generated_questions_are_the_same_in_another_process():
    settings = dict(source="reasoning_gym", tasks=[{"name": "chain_sum"}, {"name": "gsm_symbolic"}], count=40)
    code = (
        "import hashlib, json, sys; from jaxselftrain.sections import Questions; from jaxselftrain.sources import read_rows\n"
        "rows = read_rows(Questions(**json.loads(sys.argv[1])))\n"
        "print(hashlib.sha256(repr([r.values['question'] for r in rows]).encode()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", code, json.dumps(settings)], check=True, capture_output=True, text=True)
    here = hashlib.sha256(repr([row["question"] for row in values(**settings)]).encode()).hexdigest()
    assert there.stdout.strip() == here


@pytest.mark.parametrize(
    "package, settings",
    [
        ("pyarrow", dict(source="parquet", path="x.parquet")),
        ("tensorflow_datasets", dict(source="tfds", path="gsm8k")),
        ("array_record", dict(source="tfds", path="gsm8k")),
        ("reasoning_gym", dict(source="reasoning_gym", tasks=[{"name": "chain_sum"}], count=3)),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch, package, settings):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    message = refusal(**settings)
    assert "pip install" in message and package.replace("_", "-") in message.replace("_", "-")
