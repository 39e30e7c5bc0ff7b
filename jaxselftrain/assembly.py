"""Takes a config, gives the loaded parts that training and evaluation share: mesh, tokenizer, weights, policy, prompts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from jaxselftrain import prompts as prompt_texts
from jaxselftrain.config import Config
from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.model.loading import Weights, load_params, open_model
from jaxselftrain.model.tokenizer import Tokenizer, load_tokenizer
from jaxselftrain.processes import own_rows, put
from jaxselftrain.questions import Question
from jaxselftrain.rollouts import Prompts, Sampling
from jaxselftrain.sharding import make_mesh, named, param_shardings
from jaxselftrain.step import policy_graph, prompt_shardings
from jaxselftrain.stopping import cut_at_stop, stop_table

TRAINING, EVALUATION, LABELS, PROBES = 0, 1, 2, 4  # noise streams; step.TEACHER is 3


@dataclass(frozen=True)
class Parts:
    """A policy's files, opened, and the mesh it will live on; weights are read when asked for."""

    config: Config
    mesh: Mesh
    tokenizer: Tokenizer
    weights: Weights

    @property
    def architecture(self) -> Architecture:
        return self.weights.architecture

    @cached_property
    def graph(self) -> nnx.GraphDef:
        return policy_graph(self.config, self.architecture, self.mesh)

    @cached_property
    def stop_SV(self) -> jax.Array:
        """The stop table on device; its width is the model's vocabulary, which may be padded beyond the tokenizer's."""
        pieces = list(self.tokenizer.token_bytes())[: self.architecture.V]
        pieces += [b""] * (self.architecture.V - len(pieces))
        own = self.weights.generation.get("eos_token_id", [])
        ends = {*self.tokenizer.eos_ids, *(own if isinstance(own, list) else [own])}
        table = stop_table(self.config.rollout.stop, pieces, [i for i in ends if i is not None and i < len(pieces)])
        return put(table, named(self.mesh))

    def params(self) -> dict[str, jax.Array]:
        """A fresh copy of the initial weights, sharded."""
        at = param_shardings(self.mesh, self.architecture)
        return load_params(self.weights, shardings=at, dtype=self.config.model.weights_dtype)

    def abstract_params(self) -> dict[str, jax.ShapeDtypeStruct]:
        at = param_shardings(self.mesh, self.architecture)
        dtype = self.config.model.weights_dtype
        return {name: jax.ShapeDtypeStruct(shape, dtype, sharding=at[name]) for name, shape in self.architecture.shapes().items()}

    def encode(self, questions: list[Question], too_long: str) -> prompt_texts.Encoded:
        return prompt_texts.encode_prompts(questions, tokenizer=self.tokenizer, prompt=self.config.prompt, too_long=too_long)

    def sampling(self, *, temperatures: list[float], top_p: float, top_k: int) -> Sampling:
        whole = named(self.mesh)
        settings = np.asarray(temperatures, np.float32), np.float32(top_p), np.int32(top_k)
        temperature_N, p, k = put(settings, (whole,) * 3)
        return Sampling(temperature_N=temperature_N, top_p=p, top_k=k, stop_SV=self.stop_SV)

    def prompts(
        self,
        tokens: Sequence[list[int]],
        indices: Sequence[int],
        wanted: list[bool],
        width: int,
        *,
        stream: int,
        draw: int,
        sampling: Sampling,
    ) -> Prompts:
        """One batch on device: the prompts at `indices`, and which of them are sampled; draw numbers the calls of a stream."""
        tokens_QC, length_Q = self.padded(tokens, indices, width)
        noise = np.asarray([self.config.train.seed, stream, draw], np.uint32)
        prompts = Prompts(
            tokens_QC=tokens_QC,
            length_Q=length_Q,
            slot_Q=np.arange(len(indices), dtype=np.int32),
            noise=noise,
            wanted_Q=np.asarray(wanted),
            sampling=sampling,
        )
        return put(prompts, prompt_shardings(self.mesh))

    def padded(self, tokens: Sequence[list[int]], indices: Sequence[int], width: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens_QC, length_Q) of a batch. Rows that lie on other processes' devices are empty: those work them out."""
        own = own_rows(self.mesh, "questions", len(indices))
        return prompt_texts.pad([tokens[i] if place in own else [] for place, i in enumerate(indices)], width)

    def texts(self, tokens_QNT: np.ndarray, length_QN: np.ndarray) -> list[str]:
        """The text of every response, question by question, cut before the stop string that ended it."""
        rows = [tokens[:length].tolist() for tokens, length in zip(_flat(tokens_QNT), length_QN.ravel(), strict=True)]
        return [cut_at_stop(self.tokenizer.decode(row), self.config.rollout.stop) for row in rows]

    def check_context(self, width: int) -> None:
        """Raises UserError when prompt + response do not fit the model's context."""
        longest, limit = width + self.config.rollout.max_tokens, self.architecture.max_positions
        if longest > limit:
            raise UserError(
                f"rollout.max_tokens = {self.config.rollout.max_tokens} and prompts of up to {width} tokens make {longest}, "
                f"beyond the model's context of {limit}; lower rollout.max_tokens or prompt.max_tokens"
            )


def open_parts(config: Config, *, cache: Path | None) -> Parts:
    """Opens what the config names; `cache` is the folder of the persistent compilation cache."""
    set_runtime(config, cache)
    weights = open_model(config.model.path, config.model.revision)  # first: it says what is wrong with a model
    if config.model.tokenizer is None:
        tokenizer = load_tokenizer(config.model.path, revision=config.model.revision)
    else:
        tokenizer = load_tokenizer(config.model.tokenizer, revision=None)
    return Parts(config, make_mesh(config.mesh), tokenizer, weights)


def set_runtime(config: Config, cache: Path | None) -> None:
    """JAX's process-wide settings; XLA's flags only count before the first use of a device."""
    if config.runtime.deterministic:
        flags = os.environ.get("XLA_FLAGS", "")
        if "--xla_gpu_deterministic_ops" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_deterministic_ops=true".strip()
    if cache is not None and config.runtime.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", str(cache.absolute()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _flat(x_QNT: np.ndarray) -> np.ndarray:
    return x_QNT.reshape(-1, x_QNT.shape[-1])
