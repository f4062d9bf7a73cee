"""Which of some points of a space is likely to be best: LightGBM's LambdaRank on the choices (Burges 2010; Song 2020).

It learns from what has been evaluated, in the order of time: the first part trains it, the last one says when to stop.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from trainer.distributions import completed, ordered
from trainer.space import Choice, Params

TRAINED = 0.8
"""Share of the history, at its beginning, that the ranker learns from."""
ROUNDS, PATIENCE = 1500, 150
SETTINGS = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [3],
    "max_depth": 3,
    "learning_rate": 0.05,
    "feature_fraction": 0.9,
    "bagging_fraction": 0.8,
    "bagging_freq": 5,
    # Ours: with LightGBM's own 20 and 3 a history of tens of trials would not make a tree.
    "min_data_in_leaf": 3,
    "min_data_in_bin": 1,
    "num_threads": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}


class Encoding:
    """Points as vectors: an index for ordered choices and for those of two options, else a number for each option.

    A choice that was not met counts with its default, so that what does not matter changes nothing.
    """

    def __init__(self, found: Mapping[str, Choice]) -> None:
        self._choices = found

    def __call__(self, params: Params) -> list[float]:
        values: list[float] = []
        for name, index in completed(params, self._choices).items():
            choice = self._choices[name]
            if ordered(choice) or len(choice.labels) == 2:
                values.append(index)
            else:
                values += [float(index == option) for option in range(len(choice.labels))]
        return values


def scores(
    encoding: Encoding, past: Sequence[Params], losses: Sequence[float], points: Sequence[Params], seed: int
) -> npt.NDArray[np.float64]:
    """What is expected of `points`, more is better, after `past` with its losses (inf: failed), oldest first."""
    # Before LightGBM, which needs libgomp.so.1 and brings none; a bare machine has only torch's.
    import torch  # noqa: F401, I001
    import lightgbm

    vector_NC = np.array([encoding(params) for params in past], dtype=np.float64)
    rank_N = rankdata([-loss for loss in losses], method="min").astype(int) - 1
    first = int(TRAINED * len(past))
    gains = [2 * rank for rank in range(len(past))]

    def group(part: slice, reference: lightgbm.Dataset | None = None) -> lightgbm.Dataset:
        rank_M = rank_N[part]
        return lightgbm.Dataset(vector_NC[part], rank_M, group=[len(rank_M)], reference=reference)

    train = group(slice(first))
    ranker = lightgbm.train(
        SETTINGS | {"label_gain": gains, "seed": seed % 2**31},
        train,
        ROUNDS,
        valid_sets=[group(slice(first, None), train)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    vector_PC = np.array([encoding(params) for params in points], dtype=np.float64)
    return np.asarray(ranker.predict(vector_PC, num_iteration=ranker.best_iteration), dtype=np.float64)
