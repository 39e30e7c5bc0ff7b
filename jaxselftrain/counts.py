"""Takes an architecture and a workload, gives the operations, bytes and memory that sampling and the update cannot do without.

An operation is one multiplication or one addition of a matrix product; attention counts the keys that a query sees.
What moves, at the least: weights once per pass, a prompt's keys and values once per question ("lane") and decode step, a
row's own keys and values once per decode step, logits once. How a program does more than that is its own business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxselftrain.config import Config
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.scoring import LOGIT_BYTES

WIDE = 4  # bytes of a float32: logits, gradients


@dataclass(frozen=True)
class Work:
    """Operations and bytes of one phase."""

    operations: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def least_seconds(self, rate: float, bandwidth: float) -> float:
        """No machine of these limits is faster, however well it computes while it moves."""
        return max(self.operations / rate, self.bytes / bandwidth)


def layer_weights(a: Architecture) -> int:
    """Entries of all layers' matrices: what every token is multiplied with."""
    return a.L * (2 * a.D * a.H * a.K + 2 * a.D * a.G * a.K + 3 * a.D * a.F)


def parameters(a: Architecture) -> int:
    return sum(math.prod(shape) for shape in a.shapes().values())


def moved_weights(a: Architecture) -> int:
    """Entries that a pass reads: all but an embedding that is looked up and not multiplied with."""
    return parameters(a) - (0 if a.tied else a.V * a.D)


def cache_bytes(a: Architecture, itemsize: int) -> int:
    """Keys and values of one token."""
    return 2 * a.L * a.G * a.K * itemsize


def _attention(a: Architecture, pairs: float) -> float:
    """Operations of scores and values, for so many (query, key) pairs."""
    return 4 * a.L * a.H * a.K * pairs


def prefill(a: Architecture, *, Q: int, C: int, itemsize: int) -> Work:
    """Q prompts of C tokens, and the logits of their last ones."""
    operations = 2 * layer_weights(a) * Q * C + _attention(a, Q * C * (C + 1) / 2) + 2 * a.D * a.V * Q
    moved = moved_weights(a) * itemsize + Q * C * cache_bytes(a, itemsize) + Q * a.V * WIDE
    return Work(operations, moved)


def decode(a: Architecture, *, Q: int, N: int, C: int, T: int, W: int, itemsize: int) -> Work:
    """Tokens 2 to T of N samples a question, W of them at a time; token 1 is drawn from the prefill's logits.

    A row that takes another sample spends a decode step on its first token, so that there are ceil(N / W) T - 1 of them.
    """
    fed = Q * N * (T - 1)  # the last token of a response is read by nobody
    own = Q * N * T * (T - 1) / 2  # token j of a response sees j of its own, the newest included
    steps = math.ceil(N / W) * T - 1
    operations = (2 * layer_weights(a) + 2 * a.D * a.V) * fed + _attention(a, fed * C + own)
    moved: float = steps * (moved_weights(a) * itemsize + Q * C * cache_bytes(a, itemsize))
    moved += own * cache_bytes(a, itemsize) + fed * a.V * WIDE
    return Work(operations, moved)


def update(a: Architecture, *, Q: int, M: int, C: int, T: int, config: Config) -> Work:
    """One optimizer step over M samples a question: a forward pass, and a backward pass of twice its operations.

    Recomputed activations are not counted: they are a choice, and the utilisation should show what it costs.
    """
    forward = sum(forward_operations(a, Q=Q, M=M, C=C, T=T))
    passes = 2 * config.micro_batches * moved_weights(a) * _sizes(config)["compute"]
    return Work(3 * forward, passes + optimizer_bytes(a, config) + Q * M * T * a.V * WIDE)


def forward_operations(a: Architecture, *, Q: int, M: int, C: int, T: int) -> tuple[float, float, float]:
    """Operations of (layers' matrices, attention, logits) in one forward pass over M responses to each of Q prompts."""
    fed = Q * M * (T - 1)
    pairs = Q * C * (C + 1) / 2 + fed * C + Q * M * T * (T - 1) / 2
    return 2 * layer_weights(a) * (Q * C + fed), _attention(a, pairs), 2 * a.D * a.V * Q * M * T


def optimizer_bytes(a: Architecture, config: Config) -> int:
    """Gradients written and read; weights and both moments read and written."""
    sizes = _sizes(config)
    return parameters(a) * (2 * WIDE + 2 * sizes["weights"] + 4 * sizes["moments"])


def tokens(*, Q: int, N: int, C: int, T: int, shared: bool) -> int:
    """Tokens that go through the layers in a forward pass over Q x N samples, their prompts shared or not."""
    return Q * (C if shared else N * C) + Q * N * (T - 1)


def memory(a: Architecture, *, Q: int, N: int, M: int, C: int, T: int, W: int, config: Config) -> dict[str, dict[str, float]]:
    """Bytes that must be there at once: {"always", "sampling", "update"}, each by what they are.

    Of activations, what model.remat keeps of one micro-batch: the layers' inputs, with them the results of weight matrices, or
    all that a layer's backward pass reads.
    """
    sizes = _sizes(config)
    compute, micro = sizes["compute"], config.micro_batches
    copied = 0 if sizes["weights"] == compute else parameters(a) * compute
    projected = 2 * a.D + a.H * a.K + 2 * a.G * a.K + 2 * a.F
    kept = {"layers": a.D, "dots": a.D + projected, "none": 6 * a.D + 2 * a.H * a.K + 2 * a.G * a.K + 3 * a.F}[config.model.remat]
    rows = (max(Q / micro, 1) * C + Q * M / micro * T) * a.L
    logits = min(LOGIT_BYTES, Q * M / micro * T * a.V * WIDE)
    state: dict[str, float] = {
        "weights": parameters(a) * sizes["weights"],
        "moments": 2 * parameters(a) * sizes["moments"],
        "weights in the compute dtype": copied,
    }
    return {
        "always": state,
        "sampling": {
            "prompts' keys and values": Q * C * cache_bytes(a, compute),
            "responses' keys and values": Q * W * (T - 1) * cache_bytes(a, compute),
            "logits": Q * W * a.V * WIDE,
        },
        "update": {
            "gradients": parameters(a) * WIDE,
            "activations": rows * kept * compute,
            "logits and their gradients": 2 * logits,
        },
    }


def _sizes(config: Config) -> dict[str, int]:
    bytes_of = {"float32": 4, "bfloat16": 2}
    model = config.model
    return {
        "compute": bytes_of[model.compute_dtype],
        "weights": bytes_of[model.weights_dtype],
        "moments": bytes_of[config.optimizer.state_dtype],
    }
