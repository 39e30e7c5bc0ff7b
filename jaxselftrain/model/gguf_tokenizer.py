"""Takes a GGUF file, gives the tokenizer that its metadata describes, without torch.

The metadata is read here and not by `gguf.GGUFReader`, which makes a NumPy view of every vocabulary string: 2 s for
SmolLM2's 49k tokens, against 0.1 s here, at every start.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxselftrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CONTROL, _USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_SPLIT = _LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")


@dataclass(frozen=True)
class _Pre:
    """How text is cut before BPE, as the tokenizer.json of the models behind a `tokenizer.ggml.pre` does it."""

    split: str | None = None  # None: GPT-2's own pattern
    digits: bool = False  # every digit on its own, cut before all else
    nfc: bool = False
    whole_words: bool = False  # a piece that is a token as it stands is not merged up
    adds_bos: bool = False  # where the file does not say


_LLAMA3 = _Pre(split=_LLAMA3_SPLIT, whole_words=True, adds_bos=True)
_QWEN2 = _Pre(split=_QWEN2_SPLIT, nfc=True)
_PRE = {
    "gpt-2": _Pre(),
    "smollm": _Pre(digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
}


def read_metadata(path: Path) -> dict[str, Any]:
    """Key -> value of a GGUF file's metadata. Raises UserError when the file is not GGUF version 2 or 3, or is cut short."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] != b"GGUF":
                raise UserError(f"{path} is not a GGUF file: it does not start with GGUF")
            version, _, count = struct.unpack_from("<IQQ", data, 4)
            if version not in (2, 3):
                raise UserError(f"{path} is GGUF version {version} (or big-endian); versions 2 and 3 are read")
            metadata, position = {}, 24
            for _ in range(count):
                key, position = _string(data, position)
                (kind,) = struct.unpack_from("<I", data, position)
                metadata[key], position = _value(data, position + 4, kind)
            return metadata
    except (struct.error, KeyError, ValueError, OSError) as error:  # ValueError: an empty file, or text that is not UTF-8
        raise UserError(f"{path} cannot be read as GGUF: {error}") from None


def _string(data: mmap.mmap, position: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, position)
    start, end = position + 8, position + 8 + length
    if end > len(data):
        raise ValueError("the file is cut short")
    return data[start:end].decode("utf-8"), end


def _value(data: mmap.mmap, position: int, kind: int) -> tuple[Any, int]:
    """One value and the offset behind it."""
    if kind == _STRING:
        return _string(data, position)
    if kind != _ARRAY:
        form = "<" + _SCALARS[kind]
        return struct.unpack_from(form, data, position)[0], position + struct.calcsize(form)
    kind, count = struct.unpack_from("<IQ", data, position)
    position += 12
    if kind in _SCALARS:
        form = f"<{count}{_SCALARS[kind]}"
        return list(struct.unpack_from(form, data, position)), position + struct.calcsize(form)
    values = []
    for _ in range(count):
        value, position = _value(data, position, kind)
        values.append(value)
    return values, position


def load(path: Path) -> tuple[PreTrainedTokenizerFast, tuple[int, ...]]:
    """(tokenizer, ids that end a response) of a GGUF file with a byte-level BPE vocabulary.

    Raises UserError for other vocabularies, naming what the file holds and what to do.
    """
    from transformers import PreTrainedTokenizerFast

    metadata = read_metadata(path)
    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    instead = "set model.tokenizer to the Hugging Face folder or hub id of this model's tokenizer"
    if "tokens" not in ggml:
        raise UserError(f"{path} holds no tokenizer; {instead}")
    if ggml.get("model") != "gpt2":
        raise UserError(f"{path}: a vocabulary of kind {ggml.get('model')} is not read from GGUF (byte-level BPE, gpt2, is); {instead}")
    if ggml.get("pre") not in _PRE:
        raise UserError(f"{path}: pre-tokenizer {ggml.get('pre')} is not known (known: {', '.join(_PRE)}); {instead}")
    if "merges" not in ggml:
        raise UserError(f"{path}: the tokenizer has no merges; {instead}")
    tokens = ggml["tokens"]
    special = {
        f"{name}_token": tokens[ggml[f"{key}_token_id"]]
        for name, key in {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}.items()
        if ggml.get(f"{key}_token_id", len(tokens)) < len(tokens)
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_build(ggml, special.get("bos_token")),
        clean_up_tokenization_spaces=False,
        model_max_length=metadata.get(f"{metadata.get('general.architecture')}.context_length", 2**31),
        **special,
    )
    tokenizer.chat_template = metadata.get("tokenizer.chat_template")
    eos_ids = tuple(ggml[f"{key}_token_id"] for key in ("eos", "eot", "eom") if f"{key}_token_id" in ggml)
    return tokenizer, eos_ids


def _build(ggml: dict[str, Any], bos: str | None) -> Any:
    """The `tokenizers.Tokenizer` of a gpt2-kind vocabulary."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pre, tokens = _PRE[ggml["pre"]], ggml["tokens"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = [tuple(merge.split(" ", 1)) for merge in ggml["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.whole_words))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.split is not None:
        cuts.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = ggml.get("token_type", [])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t, k in zip(tokens, kinds) if k == _CONTROL])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t, k in zip(tokens, kinds) if k == _USER_DEFINED])
    if bos is not None and ggml.get("add_bos_token", pre.adds_bos):
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    return tokenizer
