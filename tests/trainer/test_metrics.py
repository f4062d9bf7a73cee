"""Metrics against scikit-learn and against counting by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss, mean_squared_error, roc_auc_score

from trainer import metrics

Rows = list[tuple[int, int, int]]
rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 6)), min_size=1, max_size=60)


def columns(drawn: Rows) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    groups, labels, scores = np.array(drawn).T
    return groups, labels.astype(np.float32), scores / 7


@given(rows)
def test_auc_is_sklearns_also_with_ties(drawn: Rows) -> None:
    _, labels, scores = columns(drawn)
    if len(set(labels)) == 1:
        assert np.isnan(metrics.auc(labels, scores))
    else:
        assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


@given(rows)
def test_gauc_is_the_row_weighted_mean_of_the_groups_auc(drawn: Rows) -> None:
    groups, labels, scores = columns(drawn)
    parts = [groups == group for group in np.unique(groups) if len(set(labels[groups == group])) == 2]
    if not parts:
        assert np.isnan(metrics.gauc(labels, scores, groups))
    else:
        each = [roc_auc_score(labels[part], scores[part]) for part in parts]
        expected = np.average(each, weights=[part.sum() for part in parts])
        assert metrics.gauc(labels, scores, groups) == pytest.approx(expected, abs=1e-12)


def test_log_loss_is_sklearns_also_for_certain_predictions() -> None:
    random = np.random.default_rng(0)
    labels, chances = random.integers(0, 2, 500), random.random(500)
    chances[:5] = [0, 1, 0, 1, 1e-30]
    assert metrics.logloss(labels, chances) == pytest.approx(log_loss(labels, chances), rel=1e-12)
    assert metrics.log_losses(labels, chances).mean() == metrics.logloss(labels, chances)


def test_rating_errors() -> None:
    labels, ratings = np.array([1.0, 4.0, 5.0]), np.array([2.0, 4.0, 3.0])
    assert metrics.evaluate("rating", labels, ratings) == {
        "mse": pytest.approx(mean_squared_error(labels, ratings)),
        "rmse": pytest.approx(np.sqrt(5 / 3)),
    }


def test_every_task_reports_what_it_is_judged_by() -> None:
    for task, metric in metrics.MAIN.items():
        prediction = [[0.7, 2.0, 1.0]] * 2 if task == "next_item" else [0.5, 0.5]
        measured = metrics.evaluate(task, [0.0, 1.0], prediction)
        assert measured[metric] == pytest.approx(metrics.losses(task, [0.0, 1.0], prediction).mean())
        assert metric not in metrics.HIGHER_IS_BETTER
