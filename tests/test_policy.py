"""The decoder against torch transformers: every family, every way through it, and the real SmolLM2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_models import FAMILIES, V, policy_logits, save_folder, smollm2, smollm2_torch, torch_model

from jaxselftrain.model.loading import load_params, open_weights
from jaxselftrain.model.policy import abstract_policy, ready

LENGTHS = (3, 40, 64, 1, 17)


def _tokens(lengths, vocabulary, *, seed=0):
    """Random right-padded tokens_QC."""
    rng = np.random.default_rng(seed)
    tokens_QC = np.zeros((len(lengths), max(lengths)), np.int32)
    for row, length in zip(tokens_QC, lengths, strict=True):
        row[:length] = rng.integers(1, vocabulary, length)
    return tokens_QC


def _torch_logits(model, tokens):
    """Each row by itself, so that padding has no part in the reference. Rows [length] -> [length, V]."""
    with torch.no_grad():
        return [model(torch.tensor(np.asarray(row)[None], dtype=torch.long)).logits[0].numpy() for row in tokens]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    """(torch model, our architecture, our float32 parameters)."""
    model = torch_model(request.param)
    weights = open_weights(save_folder(model, tmp_path_factory.mktemp(request.param)))
    return model, weights.architecture, load_params(weights, shardings=None, dtype="float32")


def test_logits_of_a_padded_batch(family):
    model, architecture, params = family
    tokens_QC = _tokens(LENGTHS, V)
    got_QCV = np.asarray(policy_logits(architecture, params, tokens_QC, np.asarray(LENGTHS)))
    want = _torch_logits(model, [row[:length] for row, length in zip(tokens_QC, LENGTHS, strict=True)])
    for got_CV, want_CV, length in zip(got_QCV, want, LENGTHS, strict=True):
        assert want_CV.std() > 0.3  # logits that differ enough for 1e-4 to mean something
        np.testing.assert_allclose(got_CV[:length], want_CV, rtol=0, atol=1e-4)
        assert not got_CV[length:].any()


def test_prefill_decode_and_responses_agree_with_torch(family):
    """Prompts of different lengths in one batch, N samples each: their response's logits by all three ways."""
    model, architecture, params = family
    N, T = 2, 5
    prompt_QC = _tokens(LENGTHS, V)
    length_Q = np.asarray(LENGTHS)
    response_QNT = np.random.default_rng(1).integers(1, V, (len(LENGTHS), N, T)).astype(np.int32)
    graph = abstract_policy(architecture, compute_dtype="float32", remat="layers")

    def policy(params):
        return ready(graph, params)

    @jax.jit
    def responses(params):
        return policy(params).logits(policy(params).responses(prompt_QC, length_Q, response_QNT))

    @jax.jit
    def prefill(params):
        first_QD, prompt = policy(params).prefill(prompt_QC, length_Q)
        return policy(params).logits(first_QD), prompt, policy(params).empty_cache(*response_QNT.shape)

    @jax.jit
    def decode(params, token_QN, slot, cache, prompt):
        hidden_QND, cache = policy(params).decode(token_QN, jnp.full(token_QN.shape, slot + 1), slot, cache, prompt, length_Q)
        return policy(params).logits(hidden_QND), cache

    first_QV, prompt, cache = prefill(params)
    decoded = [np.repeat(first_QV[:, None], N, 1)]
    for t in range(T - 1):
        logits_QNV, cache = decode(params, response_QNT[:, :, t], t, cache, prompt)
        decoded.append(np.asarray(logits_QNV))
    got = np.asarray(responses(params)), np.stack(decoded, 2)
    for q, length in enumerate(LENGTHS):
        rows = [np.concatenate([prompt_QC[q, :length], response]) for response in response_QNT[q]]
        want_NTV = np.stack(_torch_logits(model, rows))[:, length - 1 : -1]
        for got_QNTV in got:
            np.testing.assert_allclose(got_QNTV[q], want_NTV, rtol=0, atol=1e-4)


def test_positions_beyond_the_scaled_range(tmp_path):
    """Llama 3's scaling and large angles over the model's whole context."""
    model = torch_model("llama")
    weights = open_weights(save_folder(model, tmp_path))
    params = load_params(weights, shardings=None, dtype="float32")
    tokens_QC = _tokens((256,), V, seed=2)
    got_QCV = np.asarray(policy_logits(weights.architecture, params, tokens_QC, np.asarray([256])))
    np.testing.assert_allclose(got_QCV[0], _torch_logits(model, tokens_QC)[0], rtol=0, atol=1e-4)


def test_smollm2_logits_equal_transformers_own_gguf_loading():
    weights = open_weights(smollm2())
    params = load_params(weights, shardings=None, dtype="float32")
    lengths = (5, 33, 64)
    tokens_QC = _tokens(lengths, weights.architecture.V)
    got_QCV = np.asarray(policy_logits(weights.architecture, params, tokens_QC, np.asarray(lengths)))
    want = _torch_logits(smollm2_torch(), [row[:length] for row, length in zip(tokens_QC, lengths, strict=True)])
    for got_CV, want_CV, length in zip(got_QCV, want, lengths, strict=True):
        np.testing.assert_allclose(got_CV[:length], want_CV, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(got_CV[:length].argmax(-1), want_CV.argmax(-1))
