"""Takes slices of our parameters, gives their values out of the tensors that Hugging Face and GGUF files hold.

Both kinds of file hold one matrix [outputs, inputs] per layer and projection; ours have their axes apart and in the order
the einsums use, stacked on L. PLACES is the one table of where each parameter stands; reading and export both follow it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import Architecture


class Place(NamedTuple):
    """Where one parameter stands: tensor names ({} is the layer) and the letters of each stored axis, outermost first."""

    huggingface: str
    gguf: str
    axes: tuple[str, ...]


PLACES = {
    "embed_VD": Place("model.embed_tokens.weight", "token_embd.weight", ("V", "D")),
    "unembed_DV": Place("lm_head.weight", "output.weight", ("V", "D")),
    "final_norm_D": Place("model.norm.weight", "output_norm.weight", ("D",)),
    "attn_norm_LD": Place("model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", ("D",)),
    "mlp_norm_LD": Place("model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", ("D",)),
    "w_q_LDHK": Place("model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", ("HK", "D")),
    "w_k_LDGK": Place("model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", ("GK", "D")),
    "w_v_LDGK": Place("model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", ("GK", "D")),
    "w_o_LHKD": Place("model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", ("D", "HK")),
    "b_q_LHK": Place("model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", ("HK",)),
    "b_k_LGK": Place("model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", ("GK",)),
    "b_v_LGK": Place("model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", ("GK",)),
    "q_norm_LK": Place("model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", ("K",)),
    "k_norm_LK": Place("model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", ("K",)),
    "w_gate_LDF": Place("model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", ("F", "D")),
    "w_up_LDF": Place("model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", ("F", "D")),
    "w_down_LFD": Place("model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", ("D", "F")),
}


@dataclass(frozen=True)
class Weights:
    """An opened model: what it is, and its parameters, read slice by slice.

    config and generation hold what config.json and generation_config.json say (for GGUF, the same made from its metadata).
    stored: name and shape of every tensor in the files. read_block(tensor, slices) -> float32 or bfloat16 values of it.
    """

    where: str
    architecture: Architecture
    config: dict[str, Any]
    generation: dict[str, Any]
    stored: dict[str, tuple[int, ...]]
    templates: dict[str, str]
    read_block: Callable[[str, tuple[slice, ...]], np.ndarray]

    def read(self, name: str, index: tuple[slice, ...]) -> np.ndarray:
        """parameter[index] of one of Architecture.shapes(), as float32 or bfloat16; reads nothing beyond the slice.

        (A slice inside heads reads whole heads. Slices must have step 1.)
        """
        letters, sizes = _letters(name), self.architecture.shapes()[name]
        spans = {letter: range(*part.indices(size)) for letter, part, size in zip(letters, index, sizes, strict=True)}
        layers = spans.get("L")
        if layers is None:
            return self._read_layer(name, 0, spans)
        first = self._read_layer(name, layers[0], spans)
        out = np.empty((len(layers), *first.shape), first.dtype)
        out[0] = first
        for i, layer in enumerate(layers[1:], 1):
            out[i] = self._read_layer(name, layer, spans)
        return out

    def _read_layer(self, name: str, layer: int, spans: dict[str, range]) -> np.ndarray:
        """One layer's slice of a parameter: the axes' outer letters narrow the read, the inner ones what was read."""
        axes = PLACES[name].axes
        where, shape, inside = [], [], []
        for axis in axes:
            outer, inner = spans[axis[0]], [getattr(self.architecture, letter) for letter in axis[1:]]
            width = int(np.prod(inner, dtype=int))
            where.append(slice(outer.start * width, outer.stop * width))
            shape += [len(outer), *inner]
            inside += [slice(None), *(slice(spans[letter].start, spans[letter].stop) for letter in axis[1:])]
        block = self.read_block(self.templates[name].format(layer), tuple(where))
        return block.reshape(shape)[tuple(inside)].transpose(_order(name))

    def check(self) -> None:
        """Raises UserError unless the files hold exactly the tensors that the config asks for, in the right shapes."""
        expected = stored_shapes(self.architecture, self.templates)
        missing = [name for name in expected if name not in self.stored]
        if missing:
            raise UserError(f"{self.where}: {_several('tensor', missing)} missing, which {self.architecture.name} needs")
        for name, shape in expected.items():
            if tuple(self.stored[name]) != shape:
                raise UserError(
                    f"{self.where}: tensor {name} has shape {list(self.stored[name])}, but the config asks for {list(shape)}"
                )
        copy = {self.templates["unembed_DV"]} if self.architecture.tied else set()
        unused = [name for name in self.stored if name not in expected and name not in copy]
        if unused:
            raise UserError(f"{self.where}: {_several('tensor', unused)} not part of {self.architecture.name} as supported here")
        if copy & self.stored.keys():
            self._check_tied()

    def _check_tied(self) -> None:
        """Tied models may store the output matrix too; where it differs from the embedding, the config is wrong."""
        embed, unembed = self.templates["embed_VD"], self.templates["unembed_DV"]
        if self.stored[embed] == self.stored[unembed]:
            V, D = self.architecture.V, self.architecture.D
            rows = [(slice(start, min(start + 4096, V)), slice(0, D)) for start in range(0, V, 4096)]
            if all(np.array_equal(self.read_block(embed, part), self.read_block(unembed, part)) for part in rows):
                return
        raise UserError(
            f"{self.where}: the config ties the embeddings (tie_word_embeddings), but {unembed} differs from {embed}; "
            "set tie_word_embeddings to false in config.json if the model was trained untied"
        )


def stored_shapes(architecture: Architecture, templates: dict[str, str]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a file of this architecture holds, in the order of our parameters."""
    shapes = {}
    for name in architecture.shapes():
        shape = tuple(int(np.prod([getattr(architecture, letter) for letter in axis])) for axis in PLACES[name].axes)
        for layer in range(architecture.L if _letters(name)[0] == "L" else 1):
            shapes[templates[name].format(layer)] = shape
    return shapes


def to_stored(name: str, value: np.ndarray) -> np.ndarray:
    """One layer of a parameter (without its L axis) -> the contiguous matrix or vector that files hold."""
    back = value.transpose(np.argsort(_order(name)))
    sizes = iter(back.shape)
    return np.ascontiguousarray(back).reshape([int(np.prod([next(sizes) for _ in axis])) for axis in PLACES[name].axes])


def _letters(name: str) -> str:
    return name.rsplit("_", 1)[1]


def _order(name: str) -> list[int]:
    """The transposition from stored axes, their letters taken apart, to ours."""
    stored = "".join(PLACES[name].axes)
    return [stored.index(letter) for letter in _letters(name).removeprefix("L")]


def _several(noun: str, names: list[str]) -> str:
    if len(names) == 1:
        return f"{noun} {names[0]} is"
    return f"{noun} {names[0]} and {len(names) - 1} more are"
