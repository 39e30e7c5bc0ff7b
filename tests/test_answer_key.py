"""Gold answers find their questions; and the import graph keeps them out of everything but metrics and evaluation."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import jaxselftrain
from jaxselftrain import answers
from jaxselftrain.answer_key import AnswerKey, load_answer_key
from jaxselftrain.errors import UserError
from jaxselftrain.questions import load_questions
from jaxselftrain.sections import Questions

PACKAGE = Path(jaxselftrain.__file__).parent
MAY_READ_GOLD = {
    "answer_key",
    "tallies",
    "evaluate",
    "evaluate_command",
    "label_file",
    "judge",
    "ballots",
    "material",
    "supervised",
    "loop",
}
WITHOUT_JAX = [
    "answers",
    "votes",
    "voter",
    "voter_worker",
    "rewards",
    "questions",
    "sources",
    "answer_key",
    "config",
    "errors",
    "trends",
    "alarm",
]


def written(tmp_path, records, **settings):
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Questions(source="jsonl", path=str(file), **settings)


def test_every_gold_answer_stands_under_the_id_of_its_question(tmp_path):
    records = [{"question": f"{n} + 1 =", "answer": n + 1, "id": f"q{n}" if n % 2 else None} for n in range(6)]
    config = written(tmp_path, records)
    key = load_answer_key(config)
    assert [key.gold(question.id) for question in load_questions(config)] == [str(n + 1) for n in range(6)]
    assert len(key) == 6


@pytest.mark.parametrize(
    "answer, gold",
    [
        ("72", "72"),
        (142.0, "142.0"),
        (55, "55"),
        ("48/2 = 24\n48+24 = 72\n#### 72", "72"),
        ("#### 1\n#### -2,000 ", "-2,000"),
        (" \\frac{1}{2}\n", "\\frac{1}{2}"),
        (None, None),
        ("", None),
        ("so ####", None),
    ],
)
def test_gold_answers_are_text_and_of_a_worked_solution_its_result(tmp_path, answer, gold):
    config = written(tmp_path, [{"question": "?", "answer": answer, "id": "a"}])
    assert load_answer_key(config).gold("a") == gold


def test_nested_answers_and_sources_without_answers(tmp_path):
    records = [{"question": "?", "reward_model": {"ground_truth": "7"}, "id": "a"}]
    assert load_answer_key(written(tmp_path, records, fields={"answer": "reward_model.ground_truth"})).gold("a") == "7"
    assert len(load_answer_key(written(tmp_path, records))) == 0
    assert len(load_answer_key(written(tmp_path, records, fields={"answer": None}))) == 0


def test_an_answer_field_that_was_asked_for_and_is_in_no_row_is_named(tmp_path):
    records = [{"question": "a", "answer": 1, "more": {}}, {"question": "b", "answer": 2, "more": {"gold": None}}]
    for name in ("anwser", "more.gold.x"):
        config = written(tmp_path, records, fields={"answer": name})
        with pytest.raises(UserError) as error:
            load_answer_key(config)
        assert str(error.value).startswith(f"questions.fields.answer = {name}: no row of {config.path} has that field")
    assert len(load_answer_key(written(tmp_path, records, fields={"answer": "more.gold"}))) == 0  # one row has it, as null


def test_an_answer_that_is_no_text_is_named(tmp_path):
    config = written(tmp_path, [{"question": "?", "answer": ["7"]}])
    with pytest.raises(UserError, match=":1: field answer must be text or a number, not list"):
        load_answer_key(config)


def test_generated_answers_find_their_questions():
    config = Questions(source="reasoning_gym", tasks=[{"name": "products", "parameters": {"max_digits": 2}}], count=30)
    key = load_answer_key(config)
    for question in load_questions(config):
        left, right = (int(part) for part in question.text.split(": ")[1].split(". ")[0].split(" * "))
        assert int(key.gold(question.id)) == left * right


def test_right_means_equal_keys_and_questions_without_gold_say_nothing():
    key = AnswerKey({"a": "142.0", "b": "7"})
    assert key.is_right("a", answers.answer_key("142")) is True
    assert key.is_right("a", answers.answer_key("7")) is False
    assert key.is_right("b", answers.answer_key("7")) is True
    assert key.is_right("b", None) is False
    assert key.is_right("c", answers.answer_key("7")) is None
    assert key.is_right("c", None) is None
    assert (key.gold("a"), key.gold("c"), len(key)) == ("142.0", None, 2)


def imported_modules(file):
    """Names, within the package, of the modules that a module's source imports anywhere, also inside functions."""
    names = set()
    here = ("jaxselftrain", *file.relative_to(PACKAGE).with_suffix("").parts)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*here[: len(here) - node.level], *filter(None, [node.module])]) if node.level else node.module
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            names.add(node.value)  # importlib.import_module("..."), a lazy table
    return {name.removeprefix("jaxselftrain.") for name in names if name.startswith("jaxselftrain.")}


MODULES = {
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): imported_modules(file)
    for file in sorted(PACKAGE.rglob("*.py"))
}


def test_only_tallies_evaluation_and_the_host_loop_import_the_answer_key():
    assert "questions" in MODULES["answer_key"]  # the walk sees what is there
    assert {name for name, imports in MODULES.items() if "answer_key" in imports} <= MAY_READ_GOLD


@pytest.mark.parametrize(
    "start",
    ["answers", "votes", "voter", "voter_worker", "rewards", "questions", "sources", "prompts", "step", "trends", "alarm"],
)
def test_the_path_of_the_reward_reaches_no_answer_key(start):
    reached, waiting = set(), [start]
    while waiting:
        name = waiting.pop()
        if name not in reached and name in MODULES:
            reached.add(name)
            waiting += MODULES[name]
    assert start in reached
    assert not reached & {"answer_key", "metrics", "evaluate"}


@pytest.mark.parametrize("name", WITHOUT_JAX)
def test_the_host_modules_import_no_jax(name):
    code = f"import sys; import jaxselftrain.{name}; sys.exit('jax was imported' if 'jax' in sys.modules else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
