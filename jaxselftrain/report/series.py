"""Gives the pictures over the steps that a report has: which metrics, under which title, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxselftrain.plots import HELD_OUT, TRAINING

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#4D4D4D")  # Okabe and Ito


@dataclass(frozen=True)
class Series:
    """Which metrics go into a picture over the steps."""

    name: str
    title: str
    metrics: Mapping[str, tuple[str, str]]  # metric -> (label, colour)
    caption: str
    why: str  # why there may be nothing to show
    unit: str = "share"
    is_share: bool = True  # between 0 and 1
    panels: bool = False  # a panel for each metric, as their units differ
    smooth: bool = True  # whether a long curve gets a running mean


def _colours(labels: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    return {name: (label, COLOURS[number % len(COLOURS)]) for number, (name, label) in enumerate(labels.items())}


NO_REFERENCE = "no copy of the initial policy was kept; reference.keep=always keeps one"
NO_GOLD = "the training questions have no gold answers"
SERIES = (
    Series(
        "held_out",
        "Accuracy on held-out questions",
        HELD_OUT,
        "What training is for: questions that are never trained on, with gold answers that only this curve sees.",
        "no held-out questions were evaluated; evaluate.questions names some",
    ),
    Series(
        "reward",
        "Reward and accuracy in training",
        TRAINING,
        "Healthy where accuracy rises with the reward. When the reward goes to 1 and accuracy does not follow, or falls, the "
        "model is learning to agree with itself on wrong answers.",
        "no reward was logged",
    ),
    Series(
        "labels",
        "How often labels are right",
        _colours(
            {
                "label_accuracy": "label is right",
                "majority_accuracy": "majority answer is right",
                "reward_accuracy": "reward is right",
            }
        ),
        "Labels that are right more often than single samples are what self-training lives on.",
        NO_GOLD,
    ),
    Series(
        "agreement",
        "Signs of collapse that need no gold answers",
        _colours(
            {
                "dominant_answer_share": "samples with the most frequent answer",
                "same_majority_share": "questions with one and the same majority",
                "saturated_share": "questions whose samples all agree",
                "halves_differ_share": "questions whose halves disagree",
                "probe_agreement": "probe questions answered as at first",
            }
        ),
        "A rise of the first two is a policy that answers different questions alike.",
        "none of these was logged",
    ),
    Series(
        "entropy",
        "Entropy of the next token",
        _colours({"entropy": "entropy"}),
        "It falls as the policy grows sure of itself; near 0 there is nothing left to choose between.",
        "it was not logged",
        unit="nats",
        is_share=False,
    ),
    Series(
        "kl",
        "Distance from the initial policy",
        _colours({"kl": "KL (k3)", "kl_k1": "KL (k1)"}),
        "Mean KL divergence per token. A sudden rise is a policy on its way to somewhere else.",
        NO_REFERENCE,
        unit="nats per token",
        is_share=False,
    ),
    Series(
        "surprise",
        "How much the initial policy is surprised",
        _colours({"surprise": "surprise (entropy + KL)"}),
        "It falls while the policy grows surer of what it tended to say anyway. Where it turns and rises, the policy says what "
        "the initial one would not have said: of the signs of collapse that need no gold answers, the one least often mistaken.",
        NO_REFERENCE,
        unit="nats per token",
        is_share=False,
    ),
    Series(
        "length",
        "Length of the responses",
        _colours({"response_length": "mean length"}),
        "",
        "it was not logged",
        unit="tokens",
        is_share=False,
    ),
    Series(
        "format",
        "Responses without a usable answer",
        _colours(
            {"no_answer_share": "state no answer", "truncated_share": "cut at the token limit", "opaque_share": "not understood"}
        ),
        "",
        "it was not logged",
    ),
    Series(
        "confidence",
        "How sure the policy is of its tokens",
        _colours({"log_prob": "log-probability of the samples", "self_certainty": "self-certainty"}),
        "",
        "neither the reward nor the alarm measured it",
        unit="nats",
        is_share=False,
        panels=True,
    ),
    Series(
        "alarm",
        "What the alarm watches",
        _colours(
            {
                "alarm_score": "signals past their thresholds",
                "pseudo_reward_slope": "pseudo-reward, slope",
                "kl_acceleration": "KL, acceleration",
                "surprise_rise": "surprise, rise",
                "entropy_drift": "entropy, drift",
                "length_drift": "length, drift",
                "no_answer_drift": "no answer, drift",
                "truncated_drift": "truncated, drift",
            }
        ),
        "The upper panel counts the signals that are past their thresholds; it fires when enough of them are for long enough.",
        "none of its signals was logged, as where the alarm is off",
        unit="",
        is_share=False,
        panels=True,
        smooth=False,
    ),
)
