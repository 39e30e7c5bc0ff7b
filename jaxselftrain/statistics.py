"""Takes which samples are right, gives avg@k, maj@k, pass@k and their kin, each with a bootstrap interval over questions.

Everything is computed per question first and averaged over questions then: questions are what was drawn at random, and
the samples of one question are not independent of each other, so the bootstrap resamples whole questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from jaxselftrain.votes import vote

if TYPE_CHECKING:
    from rich.table import Table

RESAMPLES = 4000  # bootstrap draws: the ends of a 95% interval are known to about a twentieth of its width
CONFIDENCE = 0.95
PERMUTATIONS = 9999
BOOTSTRAP_SEED = 0
BLOCK = 2**22  # indices drawn at a time, to bound memory

EXPLANATIONS = {
    "avg": "avg@k: share of right samples",
    "maj": "maj@k: share of questions whose majority answer is right",
    "pass": "pass@k: chance that at least one of k samples is right",
    "greedy": "greedy: share of right answers at temperature 0",
    "no_answer": "samples without an answer",
    "truncated": "samples cut at the token limit",
}


class Interval(TypedDict):
    """A mean over questions and its bootstrap interval."""

    value: float
    low: float
    high: float


def avg_at_k(right_QN: np.ndarray) -> np.ndarray:
    """Share of each question's samples that are right. [Q, N] -> [Q]."""
    return np.asarray(right_QN, float).mean(1)


def maj_at_k(right_QN: np.ndarray, keys_QN: Sequence[Sequence[str | None]], *, ties: str, opaque_may_win: bool) -> np.ndarray:
    """1 where the majority answer of the question's samples is right, 0 where it is wrong or there is none. [Q, N] -> [Q].

    A sample whose key is the majority's tells whether the majority is right: equal keys are equal answers.
    """
    ballots = [vote(keys, ties=ties, denominator="valid", opaque_may_win=opaque_may_win) for keys in keys_QN]
    winners = [
        None if ballot.majority is None else list(keys).index(ballot.majority)
        for keys, ballot in zip(keys_QN, ballots, strict=True)
    ]
    return np.asarray([0.0 if n is None else float(right_QN[q][n]) for q, n in enumerate(winners)])


def pass_at_k(right_QN: np.ndarray, k: int) -> np.ndarray:
    """Chance that at least one of k samples drawn from the N is right. [Q, N] -> [Q]. Raises ValueError unless 1 <= k <= N.

    The unbiased estimator 1 - C(N - c, k) / C(N, k) of Chen et al. 2021 (arXiv 2107.03374, eq. 1), as a product of
    ratios that stay in [0, 1]; c of the N samples are right.
    """
    right_QN = np.asarray(right_QN, bool)
    N = right_QN.shape[1]
    if not 1 <= k <= N:
        raise ValueError(f"pass@{k} needs at least {k} samples per question and k >= 1; there are {N}")
    wrong_Q1 = N - right_QN.sum(1, keepdims=True)
    drawn_k = np.arange(k)
    return 1.0 - (np.maximum(wrong_Q1 - drawn_k, 0) / (N - drawn_k)).prod(1)


def bootstrap(values_QS: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(low_S, high_S): percentile intervals of the means over questions of S statistics, resampled together.

    Deterministic in the seed. When all questions score alike the interval has no width: the data show no spread.
    """
    return _interval(_resampled_means(values_QS, seed=seed))


def _resampled_means(values_QS: np.ndarray, *, seed: int) -> np.ndarray:
    """[RESAMPLES, S]: means over questions drawn with replacement, the same ones for all statistics."""
    Q = len(values_QS)
    random = np.random.default_rng(seed)
    means = []
    for start in range(0, RESAMPLES, max(1, BLOCK // Q)):
        rows = min(max(1, BLOCK // Q), RESAMPLES - start)
        index_RQ = random.integers(0, Q, (rows, Q))
        means.append(np.stack([values_QS[:, s][index_RQ].mean(1) for s in range(values_QS.shape[1])], 1))
    return np.concatenate(means)


def _interval(means_RS: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    tail = (1 - CONFIDENCE) / 2
    low_S, high_S = np.quantile(means_RS, [tail, 1 - tail], axis=0)
    return low_S, high_S


def intervals(per_question: Mapping[str, np.ndarray], *, seed: int) -> dict[str, Interval]:
    """Mean and bootstrap interval of each named statistic; all are given per question, in the same order."""
    if not per_question or not all(len(values_Q) for values_Q in per_question.values()):
        raise ValueError("no question to take a mean over")
    values_QS = np.stack([np.asarray(values_Q, float) for values_Q in per_question.values()], 1)
    low_S, high_S = bootstrap(values_QS, seed=seed)
    return {
        name: Interval(value=float(values_QS[:, s].mean()), low=float(low_S[s]), high=float(high_S[s]))
        for s, name in enumerate(per_question)
    }


def macro_average(sets: Sequence[Mapping[str, np.ndarray]], *, seed: int) -> dict[str, Interval]:
    """Mean over sets of questions of each statistic's mean in the set: every set counts the same, whatever its size.

    The interval resamples the questions of every set on its own. Only statistics that all sets have.
    """
    if not sets:
        raise ValueError("no set to take a mean over")
    names = [name for name in sets[0] if all(name in per_question for per_question in sets)]
    values = [np.stack([np.asarray(per_question[name], float) for name in names], 1) for per_question in sets]
    means = [_resampled_means(values_QS, seed=seed + number) for number, values_QS in enumerate(values)]
    low_S, high_S = _interval(np.mean(means, 0))
    value_S = np.mean([values_QS.mean(0) for values_QS in values], 0)
    return {name: Interval(value=float(value_S[s]), low=float(low_S[s]), high=float(high_S[s])) for s, name in enumerate(names)}


def paired_difference(before_Q: np.ndarray, after_Q: np.ndarray, *, seed: int) -> Interval:
    """Mean of after - before over the same questions, with its bootstrap interval.

    Much narrower than the difference of two intervals: how hard a question is cancels.
    """
    before_Q, after_Q = np.asarray(before_Q, float), np.asarray(after_Q, float)
    if before_Q.shape != after_Q.shape:
        raise ValueError(f"the same questions are needed before and after, not {len(before_Q)} and {len(after_Q)}")
    return intervals({"difference": after_Q - before_Q}, seed=seed)["difference"]


def paired_p_value(before_Q: np.ndarray, after_Q: np.ndarray, *, seed: int) -> float:
    """How often a difference as large would come by chance alone, if each question were as likely to change either way.

    Two-sided permutation test: the signs of the questions' differences are drawn anew PERMUTATIONS times, and the observed
    ones count as one draw more. Deterministic in the seed; its standard error is at most 0.005, and 0.0022 at 0.05.
    """
    difference_Q = np.asarray(after_Q, float) - np.asarray(before_Q, float)
    random, extreme = np.random.default_rng(seed), 1
    observed = abs(difference_Q.sum()) * (1 - 1e-9)  # float sums of the same terms may differ in their last bits
    step = max(1, BLOCK // len(difference_Q))
    for start in range(0, PERMUTATIONS, step):
        signs_RQ = random.integers(0, 2, (min(step, PERMUTATIONS - start), len(difference_Q))) * 2 - 1
        extreme += int((np.abs(signs_RQ @ difference_Q) >= observed).sum())
    return extreme / (PERMUTATIONS + 1)


class Threshold(TypedDict):
    """What is left when only questions with at least this majority share are answered."""

    share: float  # the least majority share
    coverage: float  # share of the questions that have it
    majority: float  # of these: share whose majority answer is right
    sample: float  # of these: share of right samples


def majority_shares(keys_QN: Sequence[Sequence[str | None]], *, ties: str, opaque_may_win: bool) -> np.ndarray:
    """Share of each question's answers that are its majority answer; 0 without any answer. [Q, N] -> [Q]."""
    return np.asarray([vote(keys, ties=ties, denominator="valid", opaque_may_win=opaque_may_win).share for keys in keys_QN])


def thresholds(share_Q: np.ndarray, majority_Q: np.ndarray, sample_Q: np.ndarray) -> list[Threshold]:
    """Accuracy and coverage as functions of the least majority share, one entry for each share that occurs, from small to large.

    Of each question it takes the majority share, whether the majority is right (`maj_at_k`), and the share of right samples
    (`avg_at_k`). This is what a filter such as reward.minimum_share would keep, and how right it is.
    """
    found = []
    for share in np.unique(share_Q):
        is_in_Q = share_Q >= share
        found.append(
            Threshold(
                share=float(share),
                coverage=float(is_in_Q.mean()),
                majority=float(majority_Q[is_in_Q].mean()),
                sample=float(sample_Q[is_in_Q].mean()),
            )
        )
    return found


def scores(
    *,
    right_QN: np.ndarray,
    keys_QN: Sequence[Sequence[str | None]],
    truncated_QN: np.ndarray,
    k: int,
    ties: str,
    opaque_may_win: bool,
) -> dict[str, np.ndarray]:
    """Each question's avg, maj (over all N samples), pass (at k), no_answer and truncated, [Q] each.

    Between them stand pass_2, pass_4, ... at the powers of two below k. right_QN: bool, whether the sample's answer equals
    gold; keys_QN: the samples' answer keys. Raises ValueError without questions or for k > N.
    """
    if not len(keys_QN):
        raise ValueError("no question to evaluate")
    curve = {f"pass_{2**power}": pass_at_k(right_QN, 2**power) for power in range(1, k.bit_length()) if 2**power < k}
    return {
        "avg": avg_at_k(right_QN),
        "maj": maj_at_k(right_QN, keys_QN, ties=ties, opaque_may_win=opaque_may_win),
        **curve,
        "pass": pass_at_k(right_QN, k),
        "no_answer": np.asarray([[key is None for key in keys] for keys in keys_QN], float).mean(1),
        "truncated": np.asarray(truncated_QN, float).mean(1),
    }


def render(columns: Mapping[str, Mapping[str, Interval]], *, title: str) -> Table:
    """A rich table: a row per statistic, a column per evaluation ("before", "after"), in percent with the interval."""
    from rich.table import Table

    table = Table(title=title, caption=f"percent; in brackets the {CONFIDENCE:.0%} bootstrap interval over questions")
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right")
    for statistic in dict.fromkeys(name for column in columns.values() for name in column):
        cells = [_cell(column.get(statistic)) for column in columns.values()]
        table.add_row(EXPLANATIONS.get(statistic, statistic.replace("pass_", "pass@")), *cells)
    return table


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "-"
    return f"{100 * interval['value']:.1f} \\[{100 * interval['low']:.1f}, {100 * interval['high']:.1f}]"
