"""Which row goes to train, valid or test: exact shares, decided frame by frame in constant memory."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import polars as pl

from components.check import LABEL
from trainer.schema import TIME

SPLIT = "__split"
"""Where it is settled before the last pass: 0 train, 1 valid, 2 test."""

Codes = npt.NDArray[np.int8]
Ints = npt.NDArray[np.int64]
Assign = Callable[[pl.DataFrame], Codes]
"""Frames of all rows in order -> (N,) 0 train, 1 valid, 2 test. Use a fresh one for every pass."""


def random_assign(rows: int, labels: dict[float, int] | None, ratios: list[float], seed: int) -> Assign:
    """Exactly proportional shares, of every label value if `labels` counts them; all partitions are equally likely.

    Selection sampling: each frame takes its rows from what is left of the shares, which is multivariate hypergeometric.
    """
    rng = np.random.default_rng(seed)
    left: dict[float | None, Ints] = {None: _shares(rows, ratios)}
    if labels is not None:
        left = {value: _shares(count, ratios) for value, count in labels.items()}

    def assign(frame: pl.DataFrame) -> Codes:
        label = frame[LABEL].to_numpy()
        codes = np.zeros(len(label), np.int8)
        for value, rest in left.items():
            rows = np.arange(len(label)) if value is None else np.flatnonzero(label == value)
            taken = rng.multivariate_hypergeometric(rest, len(rows), method="marginals")
            rest -= taken
            codes[rows] = rng.permutation(np.repeat(np.arange(3, dtype=np.int8), taken))
        return codes

    return assign


def time_assign(times: Callable[[], Iterable[npt.NDArray[np.float64]]], rows: int, ratios: list[float]) -> Assign:
    """The oldest rows train, the newest test; rows of one moment stay together, on the older side.

    Args:
        times: gives all time values, as often as it is called.
    """
    ends = np.cumsum(ratios)[:2] / np.sum(ratios) * rows
    first, second = (_smallest(times, max(int(np.ceil(end)) - 1, 0)) for end in ends)

    def assign(frame: pl.DataFrame) -> Codes:
        time = frame[TIME].to_numpy()
        return ((time > first).astype(np.int8) + (time > second)).astype(np.int8)

    return assign


def settled_assign(drawn: Assign | None) -> Assign:
    """The column SPLIT; with `drawn`, that one divides the train rows once more."""

    def assign(frame: pl.DataFrame) -> Codes:
        codes = frame[SPLIT].to_numpy().astype(np.int8)
        if drawn is not None:
            codes[codes == 0] = drawn(frame.filter(pl.col(SPLIT) == 0))
        return codes

    return assign


def _shares(count: int, ratios: list[float]) -> Ints:
    """(3,) whole numbers that sum to `count`, by largest remainder."""
    exact = count * np.asarray(ratios) / np.sum(ratios)
    shares: Ints = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: count - shares.sum()]] += 1
    return shares


def _smallest(times: Callable[[], Iterable[npt.NDArray[np.float64]]], rank: int) -> float:
    """The value at this rank (from 0) in sorted order: radix selection, four passes over the values.

    Floats are compared as unsigned integers: their bits in order, once negative ones are flipped.
    """
    prefix = np.uint64(0)
    for shift in (48, 32, 16, 0):
        counts = np.zeros(1 << 16, np.int64)
        for values in times():
            bits = _ordered_bits(values)
            if shift < 48:
                bits = bits[bits >> np.uint64(shift + 16) == prefix]
            counts += np.bincount((bits >> np.uint64(shift)).astype(np.int64) & 0xFFFF, minlength=1 << 16)
        before = np.cumsum(counts)
        digit = int(np.searchsorted(before, rank, side="right"))
        rank -= int(before[digit - 1]) if digit else 0
        prefix = (prefix << np.uint64(16)) | np.uint64(digit)
    return _from_ordered_bits(prefix)


_SIGN = np.uint64(1 << 63)


def _ordered_bits(values: npt.NDArray[np.float64]) -> npt.NDArray[np.uint64]:
    bits = (values + 0.0).view(np.uint64)  # + 0.0: -0.0 becomes 0.0
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _from_ordered_bits(bits: np.uint64) -> float:
    return float(np.asarray(bits ^ _SIGN if bits & _SIGN else ~bits, np.uint64).view(np.float64))
