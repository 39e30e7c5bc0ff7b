"""Every shipped config loads, opens with its command, and the published recipe has the published numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from jaxselftrain.answer_key import load_answer_key
from jaxselftrain.config import load_config, parse_config, to_yaml
from jaxselftrain.questions import load_questions, without_overlap

CONFIGS = Path(__file__).parent.parent / "configs"
NAMES = sorted(path.name for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_config_loads_and_opens_with_its_command(name):
    config = load_config(CONFIGS / name)
    comment = "".join(line for line in (CONFIGS / name).read_text().splitlines(keepends=True) if line.startswith("#"))
    assert (CONFIGS / name).read_text().startswith("#")
    assert f"configs/{name}" in comment
    assert config.train.steps >= 1 and config.reward_name == "vote"


@pytest.mark.parametrize("name", NAMES)
def test_resolved_config_reads_back_equal(name, tmp_path):
    config = load_config(CONFIGS / name)
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(tmp_path / "again.yaml") == config == parse_config(config.model_dump())


def test_srt_recipe_has_the_published_numbers():
    config = load_config(CONFIGS / "srt_qwen2.5_math_7b.yaml")
    rollout, update, optimizer = config.rollout, config.update, config.optimizer
    assert (rollout.questions, config.vote.samples, config.samples_trained) == (16, 32, 32)
    assert (config.prompt.max_tokens, rollout.max_tokens) == (1024, 3072)
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, 0)
    assert (update.estimator, update.kl_in, update.kl_estimator, update.kl_coefficient) == ("rloo", "reward", "k3", 0.001)
    assert (update.clip_low, update.clip_high, update.epochs, update.minibatches) == (0.2, 0.2, 1, 1)
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.clip_norm) == (1e-6, 0.01, 1.0)
    assert (config.evaluate.every, config.evaluate.samples) == (100, 32)
    assert config.keeps_reference and config.questions.fields.answer is None


def test_test_time_training_measures_the_questions_it_trains_on():
    config = load_config(CONFIGS / "test_time.yaml")
    assert config.evaluate.questions == config.questions and config.evaluate.allow_overlap
    asked = load_questions(config.questions)
    assert len(asked) == config.train.steps * config.rollout.questions  # every question once
    assert config.vote.samples == 2 * config.samples_trained


def test_no_example_of_the_quickstarts_prompt_is_a_question():
    config = load_config(CONFIGS / "quickstart.yaml")
    training, held_out = load_questions(config.questions), load_questions(config.evaluate.questions)
    kept, removed = without_overlap(training, held_out)
    asked = {question.text for question in (*training, *held_out)}
    shown = [line.split(" = ") for line in config.prompt.few_shot.splitlines()]
    assert len(held_out) >= 200 and len(kept) >= 300 and removed == len(training) - len(kept)
    assert len(shown) == 4 and not asked & {text for text, _ in shown}
    for text, answer in [*shown, *((q.text, load_answer_key(config.evaluate.questions).gold(q.id)) for q in held_out[:5])]:
        left, right = text.split(" + ")
        assert int(left) + int(right) == int(answer)
