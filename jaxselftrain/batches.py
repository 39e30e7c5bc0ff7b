"""Takes the encoded questions of a run, gives the prompts of a sampling call: the next batch, fresh places, probes, nothing."""

from __future__ import annotations

from collections.abc import Sequence

from jaxselftrain.assembly import PROBES, TRAINING, Parts
from jaxselftrain.prompts import Encoded
from jaxselftrain.questions import QuestionOrder
from jaxselftrain.rollouts import Prompts
from jaxselftrain.start import Host


class Batches:
    """Places of a batch and the questions in them; what has been asked so far stands in the Host."""

    def __init__(self, parts: Parts, training: Encoded, probes: Encoded, width: int):
        config = parts.config
        self.parts, self.training, self.width, self.Q = parts, training, width, config.rollout.questions
        self.sampling = parts.sampling(
            temperatures=[config.rollout.temperature] * config.vote.samples,
            top_p=config.rollout.top_p,
            top_k=config.rollout.top_k,
        )
        self.order = QuestionOrder(len(training.questions), config.train.seed)
        self.nothing = self._prompts(training.tokens[:1], stream=TRAINING, draw=0, wanted=0)  # for a call that only learns
        self.probes = self._prompts(probes.tokens, stream=PROBES, draw=0, wanted=len(probes.tokens)) if probes.questions else None

    def next(self, host: Host) -> tuple[list[int], Prompts]:
        """(indices of the next questions, their prompts on device)."""
        indices = self.fresh(host, self.Q)
        return indices, self.at_places(indices, range(self.Q), draw=host.draws)

    def fresh(self, host: Host, count: int) -> list[int]:
        """The indices of the next `count` questions."""
        return self.order.take(host.asked, count)

    def at_places(self, indices: Sequence[int], places: Sequence[int], *, draw: int) -> Prompts:
        """The prompts of a whole batch, of which only these places are sampled."""
        wanted = [place in places for place in range(self.Q)]
        tokens, width = self.training.tokens, self.width
        return self.parts.prompts(tokens, indices, wanted, width, stream=TRAINING, draw=draw, sampling=self.sampling)

    def _prompts(self, tokens: Sequence[list[int]], *, stream: int, draw: int, wanted: int) -> Prompts:
        """Fewer prompts than a batch has places: the first is repeated, and the first `wanted` are sampled."""
        filled = [*range(len(tokens)), *[0] * (self.Q - len(tokens))]
        asked = [place < wanted for place in range(self.Q)]
        return self.parts.prompts(tokens, filled, asked, self.width, stream=stream, draw=draw, sampling=self.sampling)
