"""Takes weights and prompts, gives N responses to each prompt, batch by batch, by one sampling program.

Each process has the responses that lie on its own devices.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxselftrain.assembly import Parts
from jaxselftrain.processes import compiled_in_all, fetch, own_rows
from jaxselftrain.sampler import rows_per_question
from jaxselftrain.step import compile_sample


class Responses(NamedTuple):
    """Of one batch of questions, question-major."""

    asked: range  # their places among the prompts
    texts: list[str]
    length_QN: np.ndarray
    ended_QN: np.ndarray


class Asker:
    """Asks any weights of one policy, `evaluate.batch` questions at a time."""

    def __init__(self, parts: Parts, width: int, *, temperatures: list[float], top_p: float, top_k: int, stream: int):
        self.parts, self.width, self.stream = parts, width, stream
        self.batch = parts.config.evaluate.batch
        self.own = own_rows(parts.mesh, "rows", self.batch)
        self.sampling = parts.sampling(temperatures=temperatures, top_p=top_p, top_k=top_k)
        N = len(temperatures)
        W = rows_per_question(parts.config.rollout, parts.mesh, Q=self.batch, N=N)
        T = parts.config.rollout.max_tokens
        self.sample = compiled_in_all(compile_sample(parts.graph, parts.architecture, parts.mesh, N=N, T=T, W=W))

    def ask(self, params: dict[str, jax.Array], prompts: Sequence[list[int]], *, first: int = 0) -> Iterator[Responses]:
        """The responses to prompts[first:], batch by batch; `first` must be the beginning of a batch.

        A response depends on the batch its prompt stands in and on nothing that was asked before, so work can be taken up again.
        """
        for start in range(first, len(prompts), self.batch):
            real = min(len(prompts) - start, self.batch)
            indices = [*range(start, start + real), *[start] * (self.batch - real)]  # the last batch is filled up to the shape
            wanted = [place < real for place in range(self.batch)]
            draw = start // self.batch
            asked = self.parts.prompts(
                prompts, indices, wanted, self.width, stream=self.stream, draw=draw, sampling=self.sampling
            )
            rollouts = self.sample(params, asked)
            mine = self.own[: max(real - self.own.start, 0)]
            fetched = fetch((rollouts.tokens_QNT, rollouts.length_QN, rollouts.ended_QN))
            tokens_QNT, length_QN, ended_QN = (x[: len(mine)] for x in fetched)
            places = range(start + mine.start, start + mine.stop)
            yield Responses(places, self.parts.texts(tokens_QNT, length_QN), length_QN, ended_QN)
