"""Takes a GGUF file, gives the tokenizer that its metadata describes, without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxselftrain.errors import UserError
from jaxselftrain.model.gguf import read_gguf

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

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


def load(path: Path) -> tuple[PreTrainedTokenizerFast, tuple[int, ...]]:
    """(tokenizer, ids that end a response) of a GGUF file with a byte-level BPE vocabulary.

    Raises UserError for other vocabularies, naming what the file holds and what to do.
    """
    from transformers import PreTrainedTokenizerFast

    metadata = read_gguf(path).metadata
    ggml = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    instead = "set model.tokenizer to the Hugging Face folder or hub id of this model's tokenizer"
    if "tokens" not in ggml:
        raise UserError(f"{path} holds no tokenizer; {instead}")
    if ggml.get("model") != "gpt2":
        raise UserError(
            f"{path}: a vocabulary of kind {ggml.get('model')} is not read from GGUF (byte-level BPE, gpt2, is); {instead}"
        )
    if ggml.get("pre") not in _PRE:
        raise UserError(f"{path}: pre-tokenizer {ggml.get('pre')} is not known (known: {', '.join(_PRE)}); {instead}")
    tokens = ggml["tokens"]
    if "merges" not in ggml or len(ggml.get("token_type", tokens)) != len(tokens):
        raise UserError(f"{path}: the tokenizer has no merges, or not one token_type a token; {instead}")
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
    cuts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if pre.digits else []
    if pre.split is not None:
        cuts.append(pre_tokenizers.Split(Regex(pre.split), behavior="isolated"))
    cuts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pre.split is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = ggml.get("token_type", [1] * len(tokens))
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL]
    whole = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _USER_DEFINED]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in whole])
    if bos is not None and ggml.get("add_bos_token", pre.adds_bos):
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])])
    return tokenizer
