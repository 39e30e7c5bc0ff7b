"""The real model that comes with the demo: its greedy text against torch's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from small_models import smollm2, smollm2_torch

from jaxselftrain.model.loading import load_params, open_weights
from jaxselftrain.model.policy import abstract_policy
from jaxselftrain.model.tokenizer import load_tokenizer
from jaxselftrain.prompts import pad
from jaxselftrain.rollouts import Prompts, Sampling
from jaxselftrain.sampler import sample
from jaxselftrain.stopping import stop_table

LENGTH = 64
WORDS = (
    "The capital of France is Paris and the river that runs through it is the Seine which flows on to the sea at Le Havre".split()
)


def test_greedy_text_equals_torch_for_twenty_prompts_of_different_lengths():
    tokenizer = load_tokenizer(str(smollm2()), revision=None)
    texts = [" ".join(WORDS[start : 2 * start + 2]) for start in range(10)]
    texts += ["".join(f"{a} + {7 + 3 * a} = {4 * a + 7}\n" for a in range(count)) + "2 + 2 =" for count in range(10)]
    tokens = [tokenizer.encode(text) for text in texts]
    assert len(tokens) == 20 and len(set(map(len, tokens))) > 12
    ours, lengths = greedy(tokens, end=tokenizer.eos_ids[0], pieces=tokenizer.token_bytes())
    theirs = torch_greedy(tokens, end=tokenizer.eos_ids[0])
    for row, length, want in zip(ours, lengths, theirs, strict=True):
        end = next((place + 1 for place, token in enumerate(want) if token == tokenizer.eos_ids[0]), LENGTH)
        assert length == end and row[:length].tolist() == want[:length]
    assert (lengths == LENGTH).sum() > 10


def greedy(tokens, *, end, pieces):
    """(tokens [20, LENGTH], lengths) of one batch."""
    weights = open_weights(smollm2())
    params = load_params(weights, shardings=None, dtype="float32")
    graph = abstract_policy(weights.architecture, compute_dtype="float32", remat="none")
    tokens_QC, length_Q = pad(tokens, 128)
    settings = Sampling(jnp.zeros(1), jnp.float32(1), jnp.int32(0), jnp.asarray(stop_table([], list(pieces), [end])))
    slots, noise = jnp.arange(len(tokens), dtype=jnp.int32), jnp.zeros(3, jnp.uint32)
    asked = Prompts(jnp.asarray(tokens_QC), jnp.asarray(length_Q), slots, noise, jnp.ones(len(slots), bool), settings)
    got = jax.jit(partial(sample, graph, N=1, T=LENGTH, W=1))(params, asked)
    return np.asarray(got.tokens_QNT)[:, 0], np.asarray(got.length_QN)[:, 0]


def torch_greedy(tokens, *, end):
    """The continuation of each prompt by transformers, in one batch padded from the left."""
    width = max(map(len, tokens))
    padded = torch.tensor([[0] * (width - len(row)) + row for row in tokens])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens])
    with torch.no_grad():
        out = smollm2_torch().generate(
            padded, attention_mask=mask, max_new_tokens=LENGTH, do_sample=False, eos_token_id=end, pad_token_id=0
        )
    return out[:, width:].tolist()
