"""Paired t-tests between all models of a comparison, on their losses of the same rows."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

Vector = npt.NDArray[np.float64]

LEVEL = 0.05
"""Share of wins, among all that are told, that may be chance."""


class PairedLosses:
    """Losses (rows,) of each of `names`; in a file, for those of many models on many rows are no matter of memory."""

    def __init__(self, file: Path, names: Sequence[str], rows: int) -> None:
        self._losses = np.memmap(file, np.float64, "w+", shape=(len(names), rows))
        self._places = {name: place for place, name in enumerate(names)}

    def __setitem__(self, name: str, losses: Vector) -> None:
        self._losses[self._places[name]] = losses

    def test(self, name: str, other: str) -> dict[str, float] | None:
        """How much greater the losses of `name` are than those of `other`, and how likely that is by chance.

        The test is two-sided; None if all losses are equal.
        """
        difference = self._losses[self._places[name]] - self._losses[self._places[other]]
        if not difference.any():
            return None
        result: Any = stats.ttest_1samp(difference, 0.0)
        return {"difference": float(difference.mean()), "t": float(result.statistic), "p": float(result.pvalue)}

    def beaten(self) -> dict[str, list[str]]:
        """The models whose losses are greater than each one's, at a false discovery rate of LEVEL over all pairs.

        Rates are controlled after Benjamini and Hochberg (1995).
        """
        tests = [(pair, test) for pair in combinations(self._places, 2) if (test := self.test(*pair))]
        rates = stats.false_discovery_control([test["p"] for _, test in tests]) if tests else []
        beaten: dict[str, list[str]] = {name: [] for name in self._places}
        for (pair, test), rate in zip(tests, rates, strict=True):
            if rate < LEVEL:
                winner, loser = pair if test["difference"] < 0 else reversed(pair)
                beaten[winner].append(loser)
        return beaten
