"""Takes a tokenizer's path, gives a Tokenizer: text to ids with one BOS, ids to text, the bytes and the EOS ids."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxselftrain.errors import UserError
from jaxselftrain.model import gguf_tokenizer
from jaxselftrain.model.fresh import character_tokenizer, is_fresh
from jaxselftrain.model.paths import local_tokenizer


class Tokenizer:
    """A fast transformers tokenizer (`hf`) with the rules this project needs; made by `load_tokenizer`."""

    def __init__(self, hf: Any, *, eos_ids: Sequence[int], where: str):
        self.hf = hf
        self.eos_ids: tuple[int, ...] = tuple(sorted(set(eos_ids) | ({hf.eos_token_id} - {None})))
        self.vocab_size: int = 1 + max(hf.get_vocab().values())
        self._where = where
        with_specials = hf("a").input_ids
        self._bos = [hf.bos_token_id] if hf.bos_token_id is not None and with_specials[:1] == [hf.bos_token_id] else []

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; BOS stands in front exactly once when the tokenizer uses one, also if `text` already has it. No EOS."""
        ids = self.hf(text, add_special_tokens=False).input_ids
        return ids if ids[:1] == self._bos else self._bos + ids

    def continuation(self, text: str) -> list[int]:
        """Ids of a text that stands behind a prompt: neither BOS nor EOS."""
        return self.hf(text, add_special_tokens=False).input_ids

    def chat(self, messages: Sequence[tuple[str, str]], arguments: Mapping[str, Any]) -> list[int]:
        """Ids of (role, content) messages in the chat template, up to where the assistant's answer starts.

        `arguments` go to the template (Qwen3's enable_thinking, say). Raises UserError when the tokenizer has no chat
        template or the template refuses the messages.
        """
        if not self.hf.chat_template:
            raise UserError(f"the tokenizer at {self._where} has no chat template; use prompt.format=few_shot")
        conversation = [{"role": role, "content": content} for role, content in messages]
        fixed = {"tokenize": False, "add_generation_prompt": True}
        if clash := sorted(fixed.keys() & arguments.keys()):
            raise UserError(f"prompt.chat_template_arguments: {clash[0]} is set by the program; remove it")
        try:
            return self.encode(self.hf.apply_chat_template(conversation, **fixed, **arguments))
        except ImportError as error:
            raise UserError(f"chat templates need the package jinja2; install it with `pip install jinja2` ({error})") from None
        except Exception as error:  # a template is a program of its own: it may raise anything
            roles = ", ".join(role for role, _ in messages)
            raise UserError(f"the chat template of {self._where} refuses messages of the roles {roles}: {error}") from None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, without special tokens."""
        return self.hf.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def token_bytes(self) -> list[bytes]:
        """The raw bytes each id (0 .. vocab_size - 1) adds to a text; b"" for special tokens and ids without one.

        Read off byte-level BPE and sentencepiece vocabularies; UserError for other kinds.
        """
        to_bytes = _reader(self.hf.backend_tokenizer.decoder, self._where)
        pieces = [b""] * self.vocab_size
        for token, index in self.hf.get_vocab().items():
            pieces[index] = to_bytes(token)
        for index, token in self.hf.added_tokens_decoder.items():  # these stand in the text as they are written
            pieces[index] = b"" if token.special else token.content.encode()
        return pieces

    def save(self, folder: str | Path) -> None:
        """Writes tokenizer.json, tokenizer_config.json and the chat template, as transformers reads them."""
        self.hf.save_pretrained(str(folder))


def load_tokenizer(path: str, *, revision: str | None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder, a hub id, a .gguf file or package://PACKAGE/FILE, or that of a
    new:// policy. Raises UserError."""
    if is_fresh(path):
        return Tokenizer(character_tokenizer(), eos_ids=[], where=path)
    local = local_tokenizer(path, revision)
    if local.is_file():
        if local.suffix != ".gguf":
            raise UserError(f"tokenizer path {path} is a file; give the folder it is in, or a .gguf file")
        hf, eos_ids = gguf_tokenizer.load(local)
        return Tokenizer(hf, eos_ids=eos_ids, where=path)
    return Tokenizer(_from_folder(local, path), eos_ids=_eos_ids(local), where=path)


def _from_folder(folder: Path, path: str) -> Any:
    from transformers import AutoTokenizer

    instead = "set model.tokenizer to the folder or hub id of one"
    if not any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")):
        raise UserError(f"{path} holds no tokenizer files; {instead}")
    try:
        hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # malformed JSON, a missing converter, an unknown class: transformers raises many kinds
        raise UserError(f"the tokenizer at {path} cannot be read: {' '.join(str(error).split())}; {instead}") from None
    if not getattr(hf, "is_fast", False):
        raise UserError(f"the tokenizer at {path} has no fast version (tokenizer.json); {instead}")
    return hf


def _eos_ids(folder: Path) -> list[int]:
    """All ids that end a response: generation_config.json's, or config.json's where there is none."""
    for name in ("generation_config.json", "config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token_id")
        except FileNotFoundError:
            continue
        except (ValueError, AttributeError) as error:
            raise UserError(f"{folder / name} is not a JSON object: {error}") from None
        if found is not None:
            return found if isinstance(found, list) else [found]
    return []


def _reader(decoder: Any, where: str) -> Any:
    """The function from a token as its vocabulary spells it to the bytes it stands for."""
    state = json.loads(decoder.__getstate__()) if decoder is not None else {}
    kinds = {part["type"] for part in state.get("decoders", [state]) if "type" in part}
    if "ByteLevel" in kinds:
        return _byte_level
    if kinds & {"ByteFallback", "Metaspace"}:
        return _sentencepiece
    raise UserError(f"the tokenizer at {where} is neither byte-level BPE nor sentencepiece; its tokens have no plain bytes")


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that print stand for themselves, the others for the characters from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(rest)}


_BYTE_OF = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF[character] for character in token)
    except KeyError:  # not spelt in the byte alphabet: a reserved entry that text never becomes
        return b""


def _sentencepiece(token: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()
