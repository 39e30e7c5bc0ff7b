"""Takes questions with gold answers, gives rollouts that say them, for supervised steps.

A supervised step is the update of every other run, on one response a question that nobody sampled: with reward 1 and no baseline
its gradient is that of the tokens' mean log-likelihood. It is how a policy of random weights learns the level below the one that
it is to teach itself.
"""

from __future__ import annotations

import numpy as np

from jaxselftrain.answer_key import AnswerKey
from jaxselftrain.assembly import Parts
from jaxselftrain.errors import UserError
from jaxselftrain.processes import own_rows, own_share, put
from jaxselftrain.prompts import Encoded, pad
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Rollouts
from jaxselftrain.step import rollout_shardings


class GoldResponses:
    """Every question's gold answer as the response that it should get.

    Raises UserError for a question without one, or with one that is too long; of several processes each sees its share of them.
    """

    def __init__(self, parts: Parts, training: Encoded, answer_key: AnswerKey, width: int):
        self.parts, self.training, self.width = parts, training, width
        self.answer_key = answer_key
        self._known: dict[int, list[int]] = {}  # responses worked out so far
        for index in own_share(len(training.questions)):
            self.response(index)

    def rollouts(self, indices: list[int], *, draw: int) -> Rollouts:
        """These questions with their responses, on device. Their behaviour log-probs are 0: nobody sampled them.

        A share of them, supervised.mistakes, drawn anew for every draw, says the answer of another question: a text with mistakes
        in it, as people write them, leaves a policy that knows more than it says.
        """
        config = self.parts.config
        rng = np.random.default_rng([config.train.seed, draw])
        others = rng.integers(len(self.training.questions), size=len(indices))
        said = np.where(rng.random(len(indices)) < config.supervised.mistakes, others, indices)
        own = own_rows(self.parts.mesh, "questions", len(indices))
        responses = [self.response(int(index)) if place in own else [] for place, index in enumerate(said)]
        prompt_QC, prompt_length_Q = self.parts.padded(self.training.tokens, indices, self.width)
        tokens_QT, length_Q = pad(responses, self.parts.config.rollout.max_tokens)
        made = Rollouts(
            prompt_QC=prompt_QC,
            prompt_length_Q=prompt_length_Q,
            tokens_QNT=tokens_QT[:, None],
            length_QN=length_Q[:, None],
            ended_QN=np.ones((len(indices), 1), bool),
            logp_QNT=np.zeros((len(indices), 1, tokens_QT.shape[1]), np.float32),
            temperature_N=np.ones(1, np.float32),
        )
        return put(made, rollout_shardings(self.parts.mesh))

    def feedback(self) -> Feedback:
        """Reward 1 for every response."""
        Q = self.parts.config.rollout.questions
        return Feedback(
            reward_QN=np.ones((Q, 1), np.float32),
            weight_QN=np.ones((Q, 1), np.float32),
            kl_weight_Q=np.ones(Q, np.float32),
            chosen_QM=np.zeros((Q, 1), np.int32),
            learn=np.asarray(True),
        )

    def response(self, index: int) -> list[int]:
        """The tokens of a question's response; they are kept."""
        if index not in self._known:
            id = self.training.questions[index].id
            self._known[index] = self._worked_out(id, self.answer_key.gold(id))
        return self._known[index]

    def _worked_out(self, id: str, gold: str | None) -> list[int]:
        """The tokens of the text that supervised.response makes of the answer, up to where sampling would have stopped."""
        settings, most = self.parts.config.supervised, self.parts.config.rollout.max_tokens
        if gold is None:
            raise UserError(f"question {id} has no gold answer, which supervised.response needs; give it one or leave it out")
        text = str(settings.response).replace("{answer}", gold)
        tokens = self.parts.tokenizer.continuation(text)
        if not any(stop in text for stop in self.parts.config.rollout.stop):
            tokens = [*tokens, self.parts.tokenizer.eos_ids[0]]
        if len(tokens) > most:
            raise UserError(
                f"question {id}: its gold answer {text!r} takes {len(tokens)} tokens; raise rollout.max_tokens (now {most})"
            )
        return tokens
