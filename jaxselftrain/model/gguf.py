"""Takes a GGUF file, gives its metadata and its Weights, dequantized slice by slice.

The header is parsed here and not by gguf.GGUFReader, which makes a NumPy array of every string: on a 49k-token
vocabulary it takes 1.2 s to 2.4 s, this parser 0.07 s. Dequantization is the `gguf` package's.
"""

from __future__ import annotations

import functools
import math
import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import from_huggingface
from jaxselftrain.model.layout import PLACES, Weights

ARCHITECTURES = {  # general.architecture -> class and model_type in a config.json (Mistral's files say llama)
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
}
# Llama 3.1 to 3.3 all scale with these; files store only the factors that follow from them and from `factor`.
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
CHUNK = 8192  # blocks dequantized at a time: ten times faster on embeddings than the package's groups of 16 rows

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies: shape outermost first (GGUF writes it innermost first), offset and size in bytes of the file."""

    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class Gguf:
    """A parsed header: metadata values are str, int, float, bool or lists of them."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read_gguf(path: Path) -> Gguf:
    """The header of a GGUF file (version 2 or 3, little-endian), parsed once per file. UserError when it is damaged."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"GGUF file {path} cannot be read: {error.strerror}") from None
    return _read_gguf(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _read_gguf(path: Path, modified: int, size: int) -> Gguf:
    del modified  # part of the cache's key only
    if size < 24:
        raise UserError(f"{path} is no GGUF file: it is {size} bytes long")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:4] != b"GGUF":
            raise UserError(f"{path} is no GGUF file: it does not begin with GGUF")
        version, tensor_count, value_count = struct.unpack_from("<IQQ", data, 4)
        if version not in (2, 3):
            raise UserError(f"{path} is GGUF version {version} or big-endian; read are versions 2 and 3, little-endian")
        header = _Header(data, 24)
        try:
            metadata = {header.string(): header.value(header.scalar("I")) for _ in range(value_count)}
            found = [(header.string(), header.tensor()) for _ in range(tensor_count)]
        except (struct.error, ValueError, KeyError, OverflowError, MemoryError):
            raise UserError(f"{path} is a damaged or incomplete GGUF file: its header cannot be read") from None
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    start = -(-header.at // alignment) * alignment
    tensors = {}
    for name, (shape, kind, offset) in found:
        block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        tensors[name] = GgufTensor(shape, kind, start + offset, math.prod(shape) // block * block_bytes)
        if shape[-1] % block or tensors[name].offset + tensors[name].size > size:
            raise UserError(f"{path} is a damaged or incomplete GGUF file: tensor {name} does not fit into it")
    return Gguf(path, metadata, tensors)


class _Header:
    """A cursor over the header's bytes; running past their end raises struct.error or ValueError."""

    def __init__(self, data: mmap.mmap, at: int):
        self.data = data
        self.at = at

    def scalar(self, letter: str) -> Any:
        (value,) = struct.unpack_from("<" + letter, self.data, self.at)
        self.at += struct.calcsize("<" + letter)
        return value

    def string(self) -> str:
        (length,) = struct.unpack_from("<Q", self.data, self.at)
        start, self.at = self.at + 8, self.at + 8 + length
        if self.at > len(self.data):
            raise ValueError("a string runs past the end")
        return str(self.data[start : self.at], "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.scalar(_SCALARS[kind])
        item, count = self.scalar("I"), self.scalar("Q")
        if item in (_STRING, _ARRAY):
            return [self.value(item) for _ in range(count)]
        start, self.at = self.at, self.at + count * struct.calcsize("<" + _SCALARS[item])
        return list(struct.unpack(f"<{count}{_SCALARS[item]}", self.data[start : self.at]))

    def tensor(self) -> tuple[tuple[int, ...], gguf.GGMLQuantizationType, int]:
        shape = tuple(self.scalar("Q") for _ in range(self.scalar("I")))
        return shape[::-1], gguf.GGMLQuantizationType(self.scalar("I")), self.scalar("Q")


def open_gguf(path: Path) -> Weights:
    """The Weights in a GGUF file of architecture llama, qwen2 or qwen3, of any type the gguf package dequantizes.

    Raises UserError for other architectures and types, and for what a config.json of ours cannot express.
    """
    file = read_gguf(path)
    for name, tensor in file.tensors.items():
        _check_type(path, name, tensor.kind)
    config = _config(file)
    generation: dict[str, Any] = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key in config}
    architecture = from_huggingface(config, str(path))
    interleaved = {}
    if config["model_type"] == "llama":
        places = [PLACES[name].gguf for name in ("w_q_LDHK", "w_k_LDGK")]
        interleaved = {place.format(layer): architecture.K for place in places for layer in range(architecture.L)}
    data = np.memmap(path, np.uint8, "r")

    def read_block(name: str, index: tuple[slice, ...]) -> np.ndarray:
        return _read_block(data, file.tensors[name], index, interleaved.get(name))

    return Weights(
        where=str(path),
        architecture=architecture,
        config=config,
        generation=generation,
        stored={name: tensor.shape for name, tensor in file.tensors.items() if name != "rope_freqs.weight"},
        templates={name: place.gguf for name, place in PLACES.items()},
        read_block=read_block,
    )


@functools.cache
def _dequantizes(kind: gguf.GGMLQuantizationType) -> bool:
    try:
        gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _check_type(path: Path, name: str, kind: gguf.GGMLQuantizationType) -> None:
    if not _dequantizes(kind):
        raise UserError(f"{path}: tensor {name} is of type {kind.name}, which the gguf package does not dequantize")


def _read_block(data: np.ndarray, tensor: GgufTensor, index: tuple[slice, ...], head: int | None) -> np.ndarray:
    """tensor[index], dequantizing only the rows and blocks that the slices touch; head: undo Llama's order of Q and K rows."""
    block, block_bytes = gguf.GGML_QUANT_SIZES[tensor.kind]
    bytes_RB = data[tensor.offset : tensor.offset + tensor.size].reshape(-1, tensor.shape[-1] // block * block_bytes)
    columns = index[-1]
    rows: Any = index[0] if len(index) > 1 else slice(None)
    if head is not None:  # each head's two halves (i) stand interleaved: row (j, i) of the file is row (i, j) of ours
        ours = np.arange(rows.start, rows.stop)
        i, j = np.divmod(ours % head, head // 2)
        rows = ours - ours % head + 2 * j + i
    first, last = columns.start // block, -(-columns.stop // block)
    raw_RB = np.array(bytes_RB[rows, first * block_bytes : last * block_bytes])  # a copy: device arrays may keep bfloat16 as is
    values_RD = _dequantize(raw_RB, tensor.kind)[:, columns.start - first * block : columns.stop - first * block]
    return values_RD if len(index) > 1 else values_RD[0]


def _dequantize(raw_RB: np.ndarray, kind: gguf.GGMLQuantizationType) -> np.ndarray:
    if kind == gguf.GGMLQuantizationType.BF16:
        return raw_RB.view(ml_dtypes.bfloat16)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw_NB = raw_RB.reshape(-1, block_bytes)
    out_N = np.empty((len(raw_NB), block), np.float32)
    chunk = CHUNK * max(1, 32 // block)
    for start in range(0, len(raw_NB), chunk):
        out_N[start : start + chunk] = gguf.dequantize(raw_NB[start : start + chunk].reshape(1, -1), kind).reshape(-1, block)
    return out_N.reshape(len(raw_RB), -1)


def _config(file: Gguf) -> dict[str, Any]:
    """The config.json that the metadata amounts to."""
    metadata, path = file.metadata, file.path
    kind = metadata.get("general.architecture")
    if kind not in ARCHITECTURES:
        raise UserError(f"{path}: GGUF architecture {kind} is not supported; supported are {', '.join(ARCHITECTURES)}")
    if metadata.get("split.count", 1) > 1:
        raise UserError(f"{path} is one part of {metadata['split.count']}; merge them into one file first (gguf-split --merge)")

    def field(name: str) -> Any:
        value = metadata.get(f"{kind}.{name}")
        if isinstance(value, list):  # one value per layer
            if len(set(value)) != 1:
                raise UserError(f"{path}: {kind}.{name} differs by layer, which is not supported")
            value = value[0]
        return _shortest(value) if isinstance(value, float) else value

    if field("expert_count"):
        raise UserError(f"{path}: mixtures of experts ({kind}.expert_count = {field('expert_count')}) are not supported")
    embedding = file.tensors.get(PLACES["embed_VD"].gguf)
    if embedding is None:
        raise UserError(f"{path}: tensor {PLACES['embed_VD'].gguf} is missing")
    name, model_type = ARCHITECTURES[kind]
    config = {
        "architectures": [name],
        "model_type": model_type,
        "vocab_size": embedding.shape[0],
        "hidden_size": field("embedding_length"),
        "intermediate_size": field("feed_forward_length"),
        "num_hidden_layers": field("block_count"),
        "num_attention_heads": field("attention.head_count"),
        "num_key_value_heads": field("attention.head_count_kv") or field("attention.head_count"),
        "max_position_embeddings": field("context_length"),
        "rms_norm_eps": field("attention.layer_norm_rms_epsilon"),
        "rope_theta": field("rope.freq_base") or 10_000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": PLACES["unembed_DV"].gguf not in file.tensors,
    }
    missing = [key for key, value in config.items() if value is None]
    if missing:
        raise UserError(f"{path}: the metadata lacks what config.json calls {missing[0]}")
    config["head_dim"] = field("attention.key_length") or config["hidden_size"] // config["num_attention_heads"]
    for other in ("attention.value_length", "rope.dimension_count"):
        if (field(other) or config["head_dim"]) != config["head_dim"]:
            raise UserError(
                f"{path}: {kind}.{other} = {field(other)} differs from the head size {config['head_dim']}; not supported"
            )
    if field("attention.sliding_window"):
        config |= {"sliding_window": field("attention.sliding_window"), "use_sliding_window": True, "max_window_layers": 0}
    scaling = _rope_scaling(file, config, field)
    if scaling is not None:
        config["rope_scaling"] = scaling
    return config | _token_ids(metadata)


def _rope_scaling(file: Gguf, config: dict[str, Any], field: Callable[[str], Any]) -> dict[str, Any] | None:
    kind = field("rope.scaling.type")
    if kind not in (None, "none"):
        return {"rope_type": kind, "factor": field("rope.scaling.factor")}  # judged with the rest of the config
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is None:
        return None
    factors = _read_block(np.memmap(file.path, np.uint8, "r"), tensor, (slice(0, tensor.shape[0]),), None).astype(np.float64)
    if np.all(factors == 1):
        return None
    scaling = {"rope_type": "llama3", "factor": round(float(factors.max()), 4), **LLAMA3}
    if factors.shape != (config["head_dim"] // 2,) or not np.allclose(factors, _llama3_factors(config, scaling), rtol=1e-4):
        raise UserError(f"{file.path}: rope_freqs.weight is not Llama 3's rope scaling; no other is supported")
    return scaling


def _llama3_factors(config: dict[str, Any], scaling: dict[str, Any]) -> np.ndarray:
    """What Llama 3's scaling divides each rotary frequency by, [K/2] float64; rope_freqs.weight holds exactly this."""
    K = config["head_dim"]
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(0, K, 2) / K)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    smooth = np.clip((scaling["original_max_position_embeddings"] / wavelength - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / scaling["factor"] + smooth)


def _token_ids(metadata: dict[str, Any]) -> dict[str, Any]:
    """bos, eos and pad ids as config.json has them; end of turn and of message end a response as well."""
    ids = {kind: metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "eos", "eot", "eom", "padding")}
    ends = list(dict.fromkeys(ids[kind] for kind in ("eos", "eot", "eom") if ids[kind] is not None))
    config = {
        "bos_token_id": ids["bos"],
        "eos_token_id": ends[0] if len(ends) == 1 else ends or None,
        "pad_token_id": ids["padding"],
    }
    return {key: value for key, value in config.items() if value is not None}


def _shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))
