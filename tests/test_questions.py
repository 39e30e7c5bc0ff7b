"""Questions, their ids, the overlap with held-out ones and the order in which training draws them."""

import collections
import dataclasses
import json
import subprocess
import sys

import pytest

from jaxselftrain.errors import UserError
from jaxselftrain.questions import Question, QuestionOrder, load_questions, without_overlap
from jaxselftrain.sections import Questions


def written(tmp_path, records, **settings):
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return Questions(source="jsonl", path=str(file), **settings)


def refusal(config):
    with pytest.raises(UserError) as error:
        load_questions(config)
    return str(error.value)


def test_questions_carry_their_text_and_id_and_nothing_of_the_answer(tmp_path):
    records = [{"question": f"{n} + 1 =", "answer": f"secret {n}", "id": n} for n in range(3)]
    questions = load_questions(written(tmp_path, records))
    assert questions == [Question(id=str(n), text=f"{n} + 1 =") for n in range(3)]
    assert [field.name for field in dataclasses.fields(Question)] == ["id", "text", "messages"]
    assert "secret" not in repr(questions)


def test_the_answer_has_no_part_in_a_question_or_its_id(tmp_path):
    questions = [load_questions(written(tmp_path, [{"question": "1 + 1 =", "answer": a}])) for a in ("2", 7, None, ["poison"])]
    assert all(each == questions[0] for each in questions)


def test_chat_prompts_keep_their_messages_and_the_last_user_text(tmp_path):
    conversation = [("system", "Be brief."), ("user", "2?"), ("assistant", "2."), ("user", "3?")]
    record = {"prompt": [{"role": role, "content": content} for role, content in conversation], "extra_info": {"index": 17}}
    config = written(tmp_path, [record], fields={"question": "prompt", "id": "extra_info.index"})
    assert load_questions(config) == [Question(id="17", text="3?", messages=tuple(conversation))]


def test_rows_without_an_id_get_one_from_their_content_alone(tmp_path):
    records = [{"question": "a"}, {"question": "b", "id": None}, {"question": "c", "id": " "}, {"question": "d", "id": "own"}]
    ids = [question.id for question in load_questions(written(tmp_path, records))]
    assert ids[3] == "own"
    assert len(set(ids)) == 4 and all(len(id) == 16 and int(id, 16) >= 0 for id in ids[:3])
    reversed_ids = [question.id for question in load_questions(written(tmp_path, records[::-1]))]
    assert reversed_ids == ids[::-1]
    assert [question.id for question in load_questions(written(tmp_path, records, fields={"id": None}))][:3] == ids[:3]
    chat = written(tmp_path, [{"question": [{"role": "user", "content": "a"}]}])
    assert load_questions(chat)[0].id != ids[0]  # a conversation is not the text of its last question


@pytest.mark.parametrize(
    "records, says",
    [
        ([{"question": "a", "id": 1}, {"question": "b", "id": "1"}], "id 1 stands twice: {file}:1 and {file}:2"),
        ([{"question": "a"}, {"question": "b"}, {"question": "a"}], "stands twice: {file}:1 and {file}:3"),
        ([{"text": "a", "n": 1}], "{file}:1: there is no field question (questions.fields.question); it has text, n"),
        ([{"question": None}], "{file}:1: field question (questions.fields.question) is null"),
        ([{"question": float("nan")}], "{file}:1: field question (questions.fields.question) is null"),  # as pandas writes it
        ([{"question": " \n"}], "{file}:1: field question is empty"),
        ([{"question": {"a": 1}}], "{file}:1: field question must be text or a number, not dict"),
        ([{"question": "a", "id": [1]}], "{file}:1: field id must be text or a number, not list"),
        ([{"question": []}], "{file}:1: field question holds no message of role user"),
        ([{"question": [{"role": "system", "content": "x"}]}], "holds no message of role user"),
        ([{"question": [{"role": "user"}]}], "{file}:1: field question, message 0 must have a role and a content"),
        ([{"question": ["x"]}], "message 0 must have a role and a content"),
        ([{"question": [{"role": "user", "content": ["x"]}]}], "message 0: field content must be text or a number, not list"),
        ([{"question": "\ud800"}], "{file}:1: field question is not valid Unicode text"),
    ],
)
def test_bad_rows_are_named(tmp_path, records, says):
    config = written(tmp_path, records)
    assert says.format(file=config.path) in refusal(config)


def test_overlap_is_found_by_text_whatever_the_white_space_and_the_ids():
    training = [Question("1", "a  b\nc"), Question("2", "a b d"), Question("3", "A b c"), Question("4", "a b c ")]
    kept, removed = without_overlap(training, [Question("x", " a b c"), Question("2", "something else")])
    assert ([question.id for question in kept], removed) == (["2", "3"], 2)
    assert without_overlap(training, []) == (training, 0)


@pytest.mark.parametrize("count, batch", [(10, 4), (7, 7), (3, 8), (1, 1), (100, 33)])
def test_every_epoch_draws_every_question_once_and_in_another_order(count, batch):
    order = QuestionOrder(count, seed=5)
    epochs = 6
    batches = [order.take(step * batch, batch) for step in range(-(-epochs * count // batch))]
    assert all(len(each) == batch for each in batches)
    stream = [index for each in batches for index in each][: epochs * count]
    per_epoch = [tuple(stream[start : start + count]) for start in range(0, epochs * count, count)]
    assert all(collections.Counter(epoch) == collections.Counter(range(count)) for epoch in per_epoch)
    if count >= 7:
        assert len(set(per_epoch)) == epochs


def test_what_comes_depends_on_seed_and_place_alone():
    places = [(8 * step, 8) for step in range(20)]
    order = QuestionOrder(50, seed=1)
    forwards = [order.take(*place) for place in places]
    assert [QuestionOrder(50, seed=1).take(*place) for place in reversed(places)] == forwards[::-1]
    assert [QuestionOrder(50, seed=2).take(*place) for place in places] != forwards
    assert order.take(3, 20) == [index for batch in forwards for index in batch][3:23]
    code = "from jaxselftrain.questions import QuestionOrder as O; o = O(50, 1); print([o.take(8 * s, 8) for s in range(20)])"
    there = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(there.stdout) == forwards


def test_the_order_looks_random():
    order, epochs = QuestionOrder(10, seed=0), 100
    firsts = collections.Counter(order.take(10 * step, 1)[0] for step in range(epochs))
    chi_square = sum((firsts[index] - epochs / 10) ** 2 / (epochs / 10) for index in range(10))
    assert chi_square < 34  # 9 degrees of freedom: 1 in 10,000
