"""The configuration: what it refuses and in which words, overrides, the round trip through YAML, fixed and free fields."""

import pytest
import yaml

from jaxselftrain.config import Config, changed_fields, load_config, parse_config, to_yaml
from jaxselftrain.errors import UserError
from jaxselftrain.sections import Section

MINIMAL = {"questions": {"source": "jsonl", "path": "x.jsonl"}}


def refusal(values):
    with pytest.raises(UserError) as error:
        parse_config({**MINIMAL, **values}, "run.yaml")
    message = str(error.value)
    assert "\n" not in message and message.startswith("run.yaml: ")
    return message.removeprefix("run.yaml: ")


def loaded(tmp_path, *overrides, text=None):
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(MINIMAL) if text is None else text)
    return load_config(file, overrides)


GENERATED = {"source": "reasoning_gym", "count": 3}


@pytest.mark.parametrize(
    "values, message",
    [
        ({"rollout": {"temprature": 0.7}}, "unknown field rollout.temprature (value 0.7); did you mean rollout.temperature?"),
        ({"rolout": {"top_k": 1}}, "unknown field rolout (value {'top_k': 1}); did you mean rollout?"),
        ({"reference": {"zzz": 1}}, "unknown field reference.zzz (value 1); known here: keep"),
        (
            {"evaluate": {"questions": {"sorce": "jsonl"}}},
            "unknown field evaluate.questions.sorce (value 'jsonl'); did you mean evaluate.questions.source?",
        ),
        (
            {"questions": {"fields": {"anwer": "a"}}},
            "unknown field questions.fields.anwer (value 'a'); did you mean questions.fields.answer?",
        ),
        (
            {"questions": {**GENERATED, "tasks": [{"name": "chain_sum", "wieght": 2}]}},
            "unknown field questions.tasks.0.wieght (value 2); did you mean questions.tasks.0.weight?",
        ),
    ],
)
def test_an_unknown_field_is_named_with_its_value_and_the_nearest_name(values, message):
    assert refusal(values) == message


@pytest.mark.parametrize(
    "values, says",
    [
        ({"vote": {"samples": "many"}}, "vote.samples = 'many': input should be a valid integer"),
        ({"vote": {"samples": 2.5}}, "vote.samples = 2.5: input should be a valid integer"),
        ({"vote": {"samples": None}}, "vote.samples = None: input should be a valid integer"),
        ({"vote": {"samples": {"x": 3}}}, "vote.samples = {'x': 3}: input should be a valid integer"),
        ({"log": {"every": True}}, "log.every = True: must not be true or false"),
        ({"update": {"samples": True}}, "update.samples = True: must not be true or false"),
        ({"optimizer": {"learning_rate": True}}, "optimizer.learning_rate = True: must not be true or false"),
        ({"evaluate": {"greedy": "perhaps"}}, "evaluate.greedy = 'perhaps': input should be a valid boolean"),
        ({"model": {"path": 3}}, "model.path = 3: input should be a valid string"),
        ({"rollout": {"stop": "x"}}, "rollout.stop = 'x': input should be a list"),
        ({"rollout": {"stop": ["x", ""]}}, "rollout.stop.1 = '': string should have at least 1 character"),
        ({"vote": 5}, "vote = 5: must be a section, with fields of its own"),
        ({"vote": None}, "vote = None: must be a section, with fields of its own"),
        (
            {"questions": {"source": "hf"}},
            "questions.source = 'hf': input should be 'jsonl', 'parquet', 'tfds' or 'reasoning_gym'",
        ),
        ({"questions": {**GENERATED, "tasks": [{"weight": 1}]}}, "field questions.tasks.0.name is required"),
    ],
)
def test_a_wrong_type_is_named_with_its_value(values, says):
    assert refusal(values).startswith(says)


@pytest.mark.parametrize(
    "values, says",
    [
        ({"vote": {"opaque_may_win": 2}}, "vote.opaque_may_win = 2: input should be a valid boolean"),
        ({"evaluate": {"cross_check": "mathverify"}}, "evaluate.cross_check = 'mathverify': input should be 'math_verify'"),
        ({"vote": {"samples": 1}}, "vote.samples = 1 leaves nothing to compare; use 2 or more"),
        ({"optimizer": {"learning_rate": 0}}, "optimizer.learning_rate = 0: input should be greater than 0"),
        ({"optimizer": {"learning_rate": float("inf")}}, "optimizer.learning_rate = inf: must be a finite number"),
        ({"update": {"importance_cap": float("nan")}}, "update.importance_cap = nan: must be a finite number"),
        ({"rollout": {"top_p": 0}}, "rollout.top_p = 0: input should be greater than 0"),
        ({"rollout": {"top_p": 1.5}}, "rollout.top_p = 1.5: input should be less than or equal to 1"),
        ({"train": {"seed": 2**31}}, "train.seed = 2147483648: input should be less than 2147483648"),
        (
            {"questions": {**GENERATED, "tasks": [{"name": "x", "weight": 0}]}},
            "questions.tasks.0.weight = 0: input should be greater",
        ),
        (
            {"questions": {**GENERATED, "tasks": [{"name": "x", "weight": float("inf")}]}},
            "questions.tasks.0.weight = inf: must be a finite number",
        ),
        ({"mesh": {"data": 0}}, "mesh: data must be -1 or at least 1"),
    ],
)
def test_a_value_out_of_bounds_is_named_with_the_bound(values, says):
    assert refusal(values).startswith(says)


@pytest.mark.parametrize(
    "values, says",
    [
        ({"questions": {"source": "jsonl"}}, "questions: source jsonl needs path"),
        (
            {"questions": {"source": "reasoning_gym", "count": 4}},
            "questions: source reasoning_gym needs at least one entry in tasks",
        ),
        ({"questions": {"source": "reasoning_gym", "tasks": [{"name": "x"}]}}, "questions: source reasoning_gym needs count"),
        ({"evaluate": {"questions": {"source": "tfds"}}}, "evaluate.questions: source tfds needs path"),
        ({"answer": {"format": "regex"}}, "answer: pattern goes with format regex"),
        ({"answer": {"format": "boxed", "pattern": "(x)"}}, "answer: pattern goes with format regex"),
        ({"prompt": {"template": "no place"}}, "prompt: template must hold {question}"),
        (
            {"prompt": {"format": "chat", "few_shot": "1 + 1 = 2"}},
            "prompt: few_shot is read by format few_shot alone and format is chat; remove it or set format=few_shot",
        ),
        ({"prompt": {"format": "chat", "template": "Q: {question}"}}, "prompt: template is read by format few_shot alone"),
        (
            {"prompt": {"system": ""}},
            "prompt: system is read by format chat alone and format is few_shot; remove it or set format=chat",
        ),
        (
            {"prompt": {"chat_template_arguments": {"enable_thinking": False}}},
            "prompt: chat_template_arguments is read by format chat alone",
        ),
        ({"rollout": {"temperature": 0}}, "rollout.temperature = 0 gives equal samples"),
        ({"update": {"samples": 64}}, "update.samples = 64 is more than vote.samples = 32"),
        (
            {"update": {"kl_coefficient": 0.1}, "reference": {"keep": "never"}},
            "update.kl_coefficient above 0 needs the initial policy",
        ),
        ({"update": {"minibatches": 3}}, "update.minibatches = 3 does not divide rollout.questions = 16"),
        ({"update": {"micro_batches": 5}}, "update.micro_batches = 5 must divide the 16 questions of an optimizer step"),
        ({"update": {"micro_batches": 16 * 3}}, "update.micro_batches = 48 must divide"),
        ({"mesh": {"samples": 3}}, "mesh.samples = 3 does not divide vote.samples = 32"),
        ({"mesh": {"samples": 4}, "update": {"samples": 6}}, "mesh.samples = 4 does not divide update.samples = 6"),
        (
            {"mesh": {"samples": 2}, "rollout": {"rows": 16}},
            "rollout.rows = 16 must be a multiple of rollout.questions = 16 x mesh.samples = 2, and at most",
        ),
        (
            {"mesh": {"samples": 4}, "update": {"micro_batches": 16 * 16}},
            "update.micro_batches = 256 must divide the 16 questions of an optimizer step, or be a multiple of them that splits "
            "the 8 samples of a device evenly",
        ),
    ],
)
def test_an_impossible_combination_is_one_sentence_with_the_fields(values, says):
    assert refusal(values).startswith(says)


def test_micro_batches_split_questions_or_a_questions_samples():
    for count in (1, 2, 4, 8, 16, 32, 64, 16 * 32):
        assert parse_config({**MINIMAL, "update": {"micro_batches": count}}).update.micro_batches == count


def test_overrides_reach_every_kind_of_field(tmp_path):
    config = loaded(
        tmp_path,
        "vote={samples: 4, ties: abstain}",
        "vote.samples=8",
        "vote.workers=3",
        "optimizer.learning_rate=1e-5",  # YAML 1.1 reads this as text
        "questions.path=a=b.jsonl",
        "rollout.stop=[\"\\n\\n\", 'Q:']",
        "update.samples=null",
        "model.remat=none",
        "questions.fields.answer=reward_model.ground_truth",
    )
    assert (config.vote.samples, config.vote.ties, config.vote.workers) == (8, "abstain", 3)
    assert config.optimizer.learning_rate == 1e-5
    assert config.questions.path == "a=b.jsonl"
    assert config.rollout.stop == ("\n\n", "Q:")
    assert config.update.samples is None and config.model.remat == "none"
    assert config.questions.fields.answer == "reward_model.ground_truth"
    assert loaded(tmp_path) == parse_config(MINIMAL)


@pytest.mark.parametrize(
    "override, says",
    [
        ("vote.samples", "override 'vote.samples' is not of the form section.field=value"),
        ("=3", "is not of the form section.field=value"),
        ("vote.=3", "is not of the form section.field=value"),
        (".vote.samples=3", "is not of the form section.field=value"),
        ("vote..samples=3", "is not of the form section.field=value"),
        ("questions.path=[", "override 'questions.path=[': the value is not valid YAML"),
        ("train.folder=2024-13-45", "override 'train.folder=2024-13-45': the value is not valid YAML; put it in quotes"),
        ("vote={samples: 4, samples: 8}", "override 'vote={samples: 4, samples: 8}': samples stands twice"),
        ("prompt.template=Q: {question}", "input should be a valid string; put it in quotes"),
        ("prompt.few_shot=[a]", "prompt.few_shot = ['a']: input should be a valid string; put it in quotes"),
        ("questions.path.x=1", "override 'questions.path.x=1': path is a value, not a section"),
        ("vote.sampels=8", "unknown field vote.sampels (value 8); did you mean vote.samples?"),
        ("vote.samples=0", "vote.samples = 0: input should be greater"),
        ("questions.fields.question=answer", "questions.fields: question and answer are both answer"),
        ("train.steps=0", "train.steps = 0: input should be greater"),
        ("update.micro_batches=Auto", "update.micro_batches = 'Auto': input should be a valid integer"),
        ("update.micro_batches=Auto", ", or 'auto'"),
        ("model.remat=Auto", "model.remat = 'Auto': input should be 'none', 'dots', 'layers' or 'auto'"),
        (
            "reward.kind=agrement",
            "reward.kind = 'agrement': input should be 'agreement', 'soft', 'self_certainty', 'entropy', "
            "'log_prob', 'format', 'random' or 'sum'",
        ),
        ("reward.kind=sum", "reward: kind sum needs weights of two kinds or more, such as {agreement: 1.0, self_certainty: 0.5}"),
        ("reward={kind: sum, weights: {soft: 1, entropy: 0}}", "reward: kind sum needs weights of two kinds or more"),
        ("label.source=teacher", "label: file goes with source teacher, and only with it: make one with jaxselftrain label"),
        ("label.file=labels.jsonl", "label: file goes with source teacher, and only with it"),
        ("questions.easiest=0.5", "questions: labels goes with easiest below 1, and only with it"),
        ("reward.weights={soft: 1}", "reward: weights are read by kind sum alone and kind is agreement"),
        ("reward.weights={certainty: 1}", "reward.weights.certainty"),
        ("vote=", "vote = None: must be a section"),
    ],
)
def test_a_bad_override_is_named(tmp_path, override, says):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, override)
    assert says in str(error.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "must hold sections"),
        ("- a\n", "must hold sections"),
        ("a: [\n", "cannot be read: while parsing"),
        ("a: 2024-13-45\n", "cannot be read: month must be in 1..12; put a text that looks like a date in quotes"),
        ("questions:\n", "questions = None: must be a section"),
        ("train: {steps: 1}\n", "field questions is required"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, text, says):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, text=text)
    assert str(tmp_path / "run.yaml") in str(error.value) and says in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, says",
    [
        ("vote: {samples: 4}\ntrain: {steps: 1}\nvote: {ties: abstain}\n", "{file}:3: vote is in line 1 already"),
        ("vote:\n  samples: 4\n  'samples': 8\n", "{file}:3: samples is in line 2 already"),
        ("questions:\n  tasks:\n  - {name: x, name: y}\n", "{file}:3: name is in line 3 already"),
    ],
)
def test_a_key_given_twice_is_named_with_both_lines(tmp_path, text, says):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, text=text)
    file = tmp_path / "run.yaml"
    want = f"config file {says.format(file=file)}; join them, only the last would count"
    assert str(error.value) == want


def test_anchors_aliases_and_merges_that_replace_a_key_are_no_repetition(tmp_path):
    text = (
        "questions: {source: reasoning_gym, count: 2, tasks: [{name: a, parameters: &one {x: 1, y: 2}},"
        " {name: b, parameters: &two {<<: *one, x: 3}}]}\n"
        "evaluate: {questions: {source: reasoning_gym, count: 2, tasks: [{name: a, parameters: {<<: *two, y: 4}},"
        " {name: b, parameters: *two}]}}\n"
    )
    config = loaded(tmp_path, text=text)
    assert [task.parameters for task in config.questions.tasks] == [{"x": 1, "y": 2}, {"x": 3, "y": 2}]
    assert [task.parameters for task in config.evaluate.questions.tasks] == [{"x": 3, "y": 4}, {"x": 3, "y": 2}]


def test_each_prompt_format_takes_its_own_settings():
    few_shot = {"few_shot": "1 + 1 = 2\n", "template": "{question} =", "instruction": "!", "system": None}
    chat = {"format": "chat", "system": "s", "chat_template_arguments": {"a": 1}, "few_shot": "", "template": "{question}"}
    for section in (few_shot, chat):
        prompt = parse_config({**MINIMAL, "prompt": section}).prompt
        assert {name: getattr(prompt, name) for name in section} == section


def test_missing_folders_and_bytes_that_are_no_text_are_named(tmp_path):
    file = tmp_path / "run.yaml"
    with pytest.raises(UserError, match=r"run\.yaml does not exist"):
        load_config(file)
    with pytest.raises(UserError, match="is a folder; name the YAML file in it"):
        load_config(tmp_path)
    file.write_bytes(b"questions: \xff\xfe")
    with pytest.raises(UserError, match=r"run\.yaml cannot be read"):
        load_config(file)


RICH = {
    "questions": {**GENERATED, "tasks": [{"name": "chain_sum", "weight": 2.5, "parameters": {"max_terms": 3, "names": ["a"]}}]},
    "prompt": {
        "few_shot": "7 * 8 = 56\n\n  é: {x}\n",
        "template": "{question} =",
    },
    "rollout": {"stop": ["\n", "Q: "], "top_p": 0.1 + 0.2},
    "optimizer": {"learning_rate": 3e-7, "eps": 1e-8},
    "evaluate": {"questions": {"source": "jsonl", "path": "held out.jsonl", "fields": {"id": None}}},
    "update": {"importance_cap": 2.0, "samples": 16},
}
CHAT = {**MINIMAL, "prompt": {"format": "chat", "system": "é\n", "chat_template_arguments": {"enable_thinking": False}}}


@pytest.mark.parametrize("values", [MINIMAL, RICH, CHAT])
def test_a_resolved_config_reads_back_equal(tmp_path, values):
    config = parse_config(values)
    text = to_yaml(config)
    assert loaded(tmp_path, text=text) == config
    assert set(yaml.safe_load(text)) == set(Config.model_fields)
    assert changed_fields(config, loaded(tmp_path, text=text)) == ([], [])


def test_a_config_is_frozen():
    config = parse_config(MINIMAL)
    with pytest.raises(ValueError, match="frozen"):
        config.vote.samples = 4


def test_changes_are_told_apart_into_fixed_and_free():
    old = parse_config(MINIMAL)
    new = parse_config(
        {
            **MINIMAL,
            "vote": {"samples": 8, "workers": 4},
            "train": {"steps": 7, "seed": 5},
            "mesh": {"fsdp": 2},
            "update": {"micro_batches": 2},
            "evaluate": {"questions": MINIMAL["questions"], "every": 10},
            "checkpoint": {"keep": 9},
        }
    )
    fixed, free = changed_fields(old, new)
    assert fixed[:1] == ["vote.samples: 32 -> 8"] and "train.seed: 0 -> 5" in fixed
    assert [change.partition(":")[0] for change in fixed] == ["vote.samples", "evaluate.questions", "train.seed"]
    assert free == [
        "vote.workers: 1 -> 4",
        "update.micro_batches: 1 -> 2",
        "mesh.fsdp: 1 -> 2",
        "evaluate.every: 0 -> 10",
        "checkpoint.keep: 2 -> 9",
        "train.steps: 100 -> 7",
    ]
    assert changed_fields(old, old) == ([], [])


def test_a_change_inside_a_nested_section_or_a_list_is_named():
    old = parse_config(RICH)
    values = {**RICH, "questions": {**GENERATED, "tasks": [{"name": "products"}], "fields": {"id": None}}}
    fixed, free = changed_fields(old, parse_config(values))
    assert [change.partition(":")[0] for change in fixed] == ["questions.fields.id", "questions.tasks"]
    assert fixed[0] == "questions.fields.id: 'id' -> None" and free == []


def test_derived_values():
    config = parse_config(MINIMAL)
    assert (config.samples_trained, config.keeps_reference) == (32, False)
    assert parse_config({**MINIMAL, "update": {"samples": 4}}).samples_trained == 4
    for keep, coefficient, kept in [("auto", 0.0, False), ("auto", 0.1, True), ("always", 0.0, True), ("never", 0.0, False)]:
        values = {**MINIMAL, "reference": {"keep": keep}, "update": {"kl_coefficient": coefficient}}
        assert parse_config(values).keeps_reference is kept


def test_every_field_says_what_it_is():
    def walk(section, prefix):
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                yield from walk(field.annotation, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", field.description

    descriptions = dict(walk(Config, ""))
    assert len(descriptions) > 60
    assert [name for name, description in descriptions.items() if not description] == []
