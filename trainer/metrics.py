"""What a model is measured by: exact, in float64, on whole splits."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from trainer.schema import Task

Vector = npt.NDArray[np.float64]
Metric = Literal[
    "auc",
    "logloss",
    "gauc",
    "mse",
    "rmse",
    "nll",
    "ndcg_at_10",
    "hr_at_10",
    "mrr",
    "sampled_ndcg_at_10",
    "sampled_hr_at_10",
    "sampled_mrr",
]

MAIN: dict[Task, Metric] = {"ctr": "logloss", "rating": "mse", "next_item": "nll"}
"""What training minimises, stops by and is compared by on the validation split."""
HIGHER_IS_BETTER = frozenset[str](
    ("auc", "gauc", "ndcg_at_10", "hr_at_10", "mrr", "sampled_ndcg_at_10", "sampled_hr_at_10", "sampled_mrr")
)
CUT = 10
"""The places of a ranking that HR and NDCG look at."""
NEGATIVES = 100
"""Items that a target is ranked against for the sampled metrics."""


def evaluate(task: Task, label: npt.ArrayLike, prediction: npt.ArrayLike) -> dict[str, float]:
    """The task's metrics (all but `gauc`, which needs groups).

    Args:
        label: (N,) 0 or 1 (ctr), ratings, or ids (next_item).
        prediction: (N,) probabilities (ctr), or ratings; next_item: (N, 3), what `ranked` gives for each row.
    """
    if task == "next_item":
        return _of_ranks(_vector(prediction))
    measures: dict[Task, dict[str, Callable[[Any, Any], float]]] = {
        "ctr": {"logloss": logloss, "auc": auc},
        "rating": {"mse": mse, "rmse": rmse},
    }
    return {name: measure(label, prediction) for name, measure in measures[task].items()}


def losses(task: Task, label: npt.ArrayLike, prediction: npt.ArrayLike) -> Vector:
    """The loss of each row, (N,), whose mean is the task's main metric."""
    if task == "next_item":
        nll: Vector = _vector(prediction)[:, 0]
        return nll
    return log_losses(label, prediction) if task == "ctr" else np.square(_vector(label) - _vector(prediction))


def hit_rate(rank: npt.ArrayLike) -> float:
    """HR@10: the share of rows whose target ranks among the first ten."""
    return float((_vector(rank) <= CUT).mean())


def ndcg(rank: npt.ArrayLike) -> float:
    """NDCG@10 with one right item: the mean of 1 / log2(1 + rank), 0 below the tenth place."""
    ranks = _vector(rank)
    return float(np.where(ranks <= CUT, 1 / np.log2(1 + ranks), 0.0).mean())


def mrr(rank: npt.ArrayLike) -> float:
    """Mean reciprocal rank, over the whole ranking."""
    return float((1 / _vector(rank)).mean())


def _of_ranks(prediction_N3: Vector) -> dict[str, float]:
    """By full ranking, and `sampled_` against `NEGATIVES` drawn items.

    The latter are what many papers report. They are far greater, and may order models otherwise (Krichene and Rendle,
    "On Sampled Metrics for Item Recommendation", KDD 2020).
    """
    nll, rank, sampled = prediction_N3.T
    return {
        "nll": float(nll.mean()),
        **{"ndcg_at_10": ndcg(rank), "hr_at_10": hit_rate(rank), "mrr": mrr(rank)},
        **{"sampled_ndcg_at_10": ndcg(sampled), "sampled_hr_at_10": hit_rate(sampled), "sampled_mrr": mrr(sampled)},
    }


def logloss(label: npt.ArrayLike, probability: npt.ArrayLike) -> float:
    """Mean binary cross-entropy in nats; probabilities are kept off 0 and 1 by float64's spacing, as sklearn does."""
    return float(log_losses(label, probability).mean())


def log_losses(label: npt.ArrayLike, probability: npt.ArrayLike) -> Vector:
    """The log loss of each row, (N,)."""
    truth, eps = _vector(label), np.finfo(np.float64).eps
    chance = np.clip(_vector(probability), eps, 1 - eps)
    losses: Vector = -(truth * np.log(chance) + (1 - truth) * np.log1p(-chance))
    return losses


def mse(label: npt.ArrayLike, rating: npt.ArrayLike) -> float:
    """Mean squared error."""
    return float(np.square(_vector(label) - _vector(rating)).mean())


def rmse(label: npt.ArrayLike, rating: npt.ArrayLike) -> float:
    """Square root of the mean squared error."""
    return float(np.sqrt(mse(label, rating)))


def auc(label: npt.ArrayLike, score: npt.ArrayLike) -> float:
    """Area under the ROC curve: the chance that a positive row scores above a negative one, ties counting half.

    NaN where one of the two classes is missing.
    """
    return gauc(label, score, np.zeros(len(_vector(label)), dtype=np.int64))


def gauc(label: npt.ArrayLike, score: npt.ArrayLike, group: npt.ArrayLike) -> float:
    """Mean AUC of the groups (users), weighted by their rows; groups with only one class are left out.

    NaN where every group has only one class. (Zhu et al., "Optimized Cost per Click in Taobao", KDD 2017, section 4.)
    """
    truth, scores, groups = _vector(label), _vector(score), np.asarray(group)
    order = np.lexsort((scores, groups))
    truth, scores, groups = truth[order], scores[order], groups[order]
    first = np.flatnonzero(_starts(groups))
    rank = _mean_ranks(_starts(groups) | _starts(scores))
    rows = np.diff(np.append(first, len(truth)))
    positives = np.add.reduceat(truth, first)
    negatives = rows - positives
    rank_sum = np.add.reduceat(rank * truth, first) - positives * first
    usable = (positives > 0) & (negatives > 0)
    if not usable.any():
        return float("nan")
    wins = rank_sum[usable] - positives[usable] * (positives[usable] + 1) / 2
    return float(np.average(wins / (positives * negatives)[usable], weights=rows[usable]))


def _vector(values: npt.ArrayLike) -> Vector:
    return np.asarray(values, dtype=np.float64)


def _starts(ordered: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """True where a run of equal values begins."""
    return np.concatenate([[True], ordered[1:] != ordered[:-1]])


def _mean_ranks(start: npt.NDArray[np.bool_]) -> Vector:
    """Ranks 1..N by position, where all of a run of ties get their mean."""
    first = np.flatnonzero(start)
    size = np.diff(np.append(first, len(start)))
    return np.repeat(first + (size + 1) / 2, size)
