"""Prompts, few-shot and chat, against the texts written out; too long ones; padding."""

import numpy as np
import pytest

from jaxselftrain.errors import UserError
from jaxselftrain.probes import set_aside
from jaxselftrain.prompts import encode_prompts, first_of, pad, prompt_width
from jaxselftrain.questions import Question
from jaxselftrain.sections import Prompt


class Letters:
    """A tokenizer whose ids are code points and whose chat template is one line a message."""

    def encode(self, text):
        return [ord(character) for character in text]

    def chat(self, messages, arguments):
        return self.encode("".join(f"<{role}>{content}\n" for role, content in messages) + "<assistant>" + str(arguments or ""))


def texts(questions, too_long="drop", **settings):
    encoded = encode_prompts(questions, tokenizer=Letters(), prompt=Prompt(**settings), too_long=too_long)
    return ["".join(map(chr, ids)) for ids in encoded.tokens]


CHAT = Question("c", "3?", (("system", "Old."), ("user", "2?"), ("assistant", "2."), ("user", "3?")))


def test_few_shot_text_is_examples_template_question_and_instruction():
    question = Question("q", r"\frac{1}{2} of {question} = {x}?")
    found = texts([question], few_shot="{question} stays\n", template="Q: {question}\nA: \\boxed{", instruction=" Think.")
    assert found == ["{question} stays\n" + r"Q: \frac{1}{2} of {question} = {x}? Think." + "\nA: \\boxed{"]
    assert texts([CHAT], template="{question} =") == ["3? ="]


def test_chat_puts_the_system_message_first_and_the_instruction_after_the_last_user():
    plain = Question("q", "1?")
    assert texts([plain], format="chat") == ["<user>1?\n<assistant>"]
    found = texts([plain], format="chat", system="Be kind.", instruction=" Box it.")
    assert found == ["<system>Be kind.\n<user>1? Box it.\n<assistant>"]
    assert texts([CHAT], format="chat", instruction="!") == ["<system>Old.\n<user>2?\n<assistant>2.\n<user>3?!\n<assistant>"]
    assert texts([CHAT], format="chat", system="New.") == ["<system>New.\n<user>2?\n<assistant>2.\n<user>3?\n<assistant>"]
    ends_with_assistant = Question("e", "2?", (("user", "2?"), ("assistant", "Well,")))
    assert texts([ends_with_assistant], format="chat", instruction="!") == ["<user>2?!\n<assistant>Well,\n<assistant>"]
    assert texts([plain], format="chat", chat_template_arguments={"enable_thinking": False})[0].endswith(
        "{'enable_thinking': False}"
    )
    assert CHAT.messages[-1] == ("user", "3?")


def test_prompts_beyond_the_limit_are_dropped_with_their_ids_or_refused():
    questions = [Question(str(n), "x" * n) for n in range(1, 11)]
    encoded = encode_prompts(questions, tokenizer=Letters(), prompt=Prompt(max_tokens=3), too_long="drop")
    assert [question.id for question in encoded.questions] == ["1", "2", "3"]
    assert [len(ids) for ids in encoded.tokens] == [1, 2, 3]
    assert encoded.dropped_ids == [str(n) for n in range(4, 11)]
    assert first_of(encoded.dropped_ids) == "4, 5, 6, 7, 8 ..." and first_of(["4"]) == "4"
    with pytest.raises(UserError, match=r"^7 of 10 prompts are longer than prompt.max_tokens = 3, ids 4, 5, 6, 7, 8 \.\.\.;"):
        texts(questions, too_long="error", max_tokens=3)
    assert texts(questions[:3], too_long="error", max_tokens=3) == ["x", "xx", "xxx"]


def test_no_question_left_is_an_error():
    with pytest.raises(UserError, match="no question is left: all 1 prompts are longer than prompt.max_tokens = 1"):
        texts([CHAT], max_tokens=1)
    with pytest.raises(UserError, match="^no question is left$"):
        texts([])


def test_a_process_tokenizes_its_share_and_what_it_asks(monkeypatch):
    asked, questions = [], [Question(str(n), "x" * n) for n in range(1, 9)]
    lengths = {str(n): n for n in range(1, 9)}

    class Counting(Letters):
        def encode(self, text):
            asked.append(len(text))
            return super().encode(text)

    def gathered(rows, length_Q, *, most, total):  # the other process tells the lengths of the rest
        assert [*rows] == [1, 3, 5, 7] and length_Q.tolist() == [2, 4, 6, 8] and (most, total) == (4, 8)
        return np.asarray([*lengths.values()], np.int32)

    monkeypatch.setattr("jaxselftrain.prompts.own_share", lambda total: range(1, total, 2))
    monkeypatch.setattr("jaxselftrain.prompts.most_share", lambda total: total // 2)
    monkeypatch.setattr("jaxselftrain.prompts.gather", gathered)
    encoded = encode_prompts(questions, tokenizer=Counting(), prompt=Prompt(max_tokens=6), too_long="drop")
    assert asked == [2, 4, 6, 8] and encoded.dropped_ids == ["7", "8"] and encoded.longest == 6
    probes, others = set_aside(encoded, 2)
    assert others.length_Q.tolist() == [3, 4, 5, 6] and len(others.tokens) == 4
    assert others.tokens[1] == encoded.tokens[3] == [ord("x")] * 4 and asked == [2, 4, 6, 8]
    assert probes.tokens[0] == others.tokens[-4][:1] and asked == [2, 4, 6, 8, 1, 3]
    assert encoded.tokens[0] == [ord("x")] and asked == [2, 4, 6, 8, 1, 3]


@pytest.mark.parametrize("longest, width", [(1, 16), (16, 16), (17, 32), (33, 64), (64, 64), (65, 128), (129, 192)])
def test_the_width_is_the_longest_prompt_rounded_up(longest, width):
    assert prompt_width(longest) == width


def test_padding_keeps_tokens_and_lengths():
    tokens = [[5, 6, 7], [8], []]
    tokens_QC, length_Q = pad(tokens, 4)
    assert tokens_QC.dtype == length_Q.dtype == np.int32
    assert tokens_QC.tolist() == [[5, 6, 7, 0], [8, 0, 0, 0], [0, 0, 0, 0]]
    assert [row[:length].tolist() for row, length in zip(tokens_QC, length_Q, strict=True)] == tokens
    with pytest.raises(ValueError, match="a prompt of 3 tokens does not fit the width 2"):
        pad(tokens, 2)
