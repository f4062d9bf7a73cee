"""Ranks against sorting by hand, metrics against their definitions, and what the drawn negatives promise."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from trainer import metrics, ranking

ITEMS = 9
scores = st.lists(
    st.tuples(st.lists(st.integers(-3, 3), min_size=ITEMS - 1, max_size=ITEMS - 1), st.integers(1, ITEMS - 1)),
    min_size=1,
    max_size=8,
)
ranks = st.lists(st.integers(2, 60).map(lambda halves: halves / 2), min_size=1, max_size=30)


def logits_of(rows: list[tuple[list[int], int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Small whole numbers, so that many are equal; item 0 is never predicted."""
    logits_BI = torch.tensor([[-math.inf, *values] for values, _ in rows], dtype=torch.float64)
    return logits_BI, torch.tensor([target for _, target in rows])


def mean_place(right: float, others: list[float]) -> float:
    """The mean of the places that the target has over all orders of the sorted list that ties allow."""
    ordered = sorted([*others, right], reverse=True)
    return float(np.mean([place for place, value in enumerate(ordered, start=1) if value == right]))


@given(scores)
def test_ranks_are_those_of_a_sorted_list_and_ties_take_their_mean_place(rows: list[tuple[list[int], int]]) -> None:
    logits_BI, target_B = logits_of(rows)
    found = ranking.ranked(logits_BI, target_B, first=5)
    drawn_BN = ranking.negatives(target_B, ITEMS, first=5)
    for (values, target), row, drawn in zip(rows, found, drawn_BN.tolist(), strict=True):
        right, others = values[target - 1], values[: target - 1] + values[target:]
        assert row[1] == mean_place(right, others)  # type: ignore[arg-type]
        assert row[2] == mean_place(right, [values[item - 1] for item in drawn])
    torch.testing.assert_close(found[:, 0], functional.cross_entropy(logits_BI, target_B, reduction="none"))


@given(scores)
def test_a_model_that_knows_nothing_gains_nothing(rows: list[tuple[list[int], int]]) -> None:
    _, target_B = logits_of(rows)
    equal_BI = torch.zeros(len(rows), ITEMS, dtype=torch.float64).index_fill_(1, torch.tensor([0]), -math.inf)
    nll_B, rank_B, sampled_B = ranking.ranked(equal_BI, target_B, first=0).T
    assert set(rank_B.tolist()) == {ITEMS / 2}
    assert set(sampled_B.tolist()) == {1 + ranking.NEGATIVES / 2}
    torch.testing.assert_close(nll_B, torch.full_like(nll_B, math.log(ITEMS - 1)))


@given(st.lists(st.integers(1, 29), min_size=1, max_size=30), st.integers(0, 1000))
def test_negatives_are_known_items_other_than_the_target_and_follow_the_row(targets: list[int], first: int) -> None:
    target_B = torch.tensor(targets)
    drawn_BN = ranking.negatives(target_B, 30, first)
    assert drawn_BN.shape == (len(targets), ranking.NEGATIVES)
    assert drawn_BN.min() >= 1
    assert drawn_BN.max() <= 29
    assert not (drawn_BN == target_B[:, None]).any()
    for row in range(len(targets)):
        assert torch.equal(ranking.negatives(target_B[row : row + 1], 30, first + row)[0], drawn_BN[row])


def test_negatives_are_uniform() -> None:
    target_B = torch.full((4000,), 3)
    counts = torch.bincount(ranking.negatives(target_B, 12, 0).flatten(), minlength=12).double()
    others = torch.tensor([1, 2, *range(4, 12)])
    expected = 4000 * ranking.NEGATIVES / 10
    assert (counts[others] - expected).square().sum() / expected < 27.9  # chi-square, 9 degrees, 0.1 %


@given(ranks)
def test_metrics_are_their_definitions(drawn: list[float]) -> None:
    hits = [rank <= 10 for rank in drawn]
    gains = [1 / math.log2(rank + 1) if hit else 0 for rank, hit in zip(drawn, hits, strict=True)]
    prediction = np.array([[0.5, rank, 1.0] for rank in drawn])
    found = metrics.evaluate("next_item", np.zeros(len(drawn)), prediction)
    assert found["hr_at_10"] == pytest.approx(np.mean(hits))
    assert found["ndcg_at_10"] == pytest.approx(np.mean(gains))
    assert found["mrr"] == pytest.approx(np.mean([1 / rank for rank in drawn]))
    assert found["nll"] == pytest.approx(0.5)
    assert (found["sampled_hr_at_10"], found["sampled_ndcg_at_10"], found["sampled_mrr"]) == (1, 1, 1)
    assert set(found) - {"nll"} <= metrics.HIGHER_IS_BETTER


def test_a_half_place_below_the_tenth_is_a_miss() -> None:
    assert metrics.hit_rate([10.0, 10.5]) == 0.5


@given(scores, st.integers(1, 20))
def test_the_best_items_are_the_greatest_and_never_the_unknown(rows: list[tuple[list[int], int]], count: int) -> None:
    logits_BI, _ = logits_of(rows)
    found = ranking.best(logits_BI, count)
    assert found.ids.shape == (len(rows), min(count, ITEMS - 1))
    assert found.ids.min() >= 1
    chance_BI = logits_BI.softmax(dim=1)
    torch.testing.assert_close(found.probabilities, chance_BI.gather(1, found.ids))
    for row, ids in zip(logits_BI, found.ids, strict=True):
        values = row[ids].tolist()
        assert all(one >= other for one, other in pairwise(values))
        assert sorted(row.tolist(), reverse=True)[: len(ids)] == values
