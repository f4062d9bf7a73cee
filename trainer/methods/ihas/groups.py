"""Groups of rows that are alike in what their gates leave of their embeddings, and the coordinates that each keeps.

Gates and embeddings follow from the categories of a row, and so does its squared distance to a centroid c, field by
field: Σ_f ||x_f - c_f||². What a row's group is decided by is therefore a number for each category and group, and that
is all that a router holds. It is rounded to a byte before anything else is made of it: the rounded router is the one
that groups rows here, in training and when the model is served.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits
from torch import Tensor

from trainer.data import Table, mixed
from trainer.index import packed
from trainer.modules.router import Router
from trainer.processes import gather_rows, summed

SAMPLE = 50_000
"""Training rows that K-means sees, about; with fewer rows, all."""
STARTS = 4
"""Of K-means, of which the best counts."""
MOST = 127
"""The greatest vote."""

Vector = npt.NDArray[np.float64]
Place = tuple[str, str]
"""(view, field)"""


@dataclass(frozen=True)
class Coded:
    """What the gates make of a field's R categories in one view."""

    field: str
    x: Tensor
    """(R, D), zero where a gate is closed."""
    open: Tensor
    """(R, D) bool"""


@dataclass(frozen=True)
class Groups:
    """K groups of the training rows."""

    router: dict[str, str]
    """Packed votes by field; of one group there are none."""
    rows: Vector
    """(K,): their numbers."""
    label: Vector
    """(K,): their mean labels."""
    open: dict[Place, Tensor]
    """(K, D): the share of a group's rows for which a coordinate's gate is open."""
    agreement: float
    """Share of rows that exact distances to the centroids send to the same group."""

    @property
    def count(self) -> int:
        return len(self.rows)

    def kept(self, place: Place, group: int) -> list[int]:
        """The coordinates that are open for half of the group's rows or more."""
        return (self.open[place][group] >= 0.5).nonzero().flatten().tolist()


def searched(coded: Mapping[Place, Coded], train: Table, groups: int, least: float, seed: int) -> Groups:
    """K-means on the rows' masked embeddings; a group with a share of the rows below `least` joins its neighbour."""
    centre_KN = _centres(coded, train, groups, seed)
    while True:
        vote_FRK = _votes(coded, centre_KN, train)
        found = _described(coded, train, vote_FRK)
        if found.count == 1 or found.rows.min() >= max(least * train.total, 1):
            return _compared(found, coded, centre_KN, train)
        centre_KN = _joined(centre_KN, found.rows)


def blind(coded: Mapping[Place, Coded], train: Table, groups: int, seed: Sequence[int]) -> Groups:
    """Groups that mean nothing: votes are drawn."""
    rng = np.random.default_rng(list(seed))
    vote_FRK = {}
    for code in coded.values():
        drawn_RK = rng.integers(0, MOST + 1, (len(code.x), groups))
        vote_FRK[code.field] = torch.from_numpy(drawn_RK[:, 1:] - drawn_RK[:, :1]).to(torch.int8)
    return _described(coded, train, vote_FRK)


def _centres(coded: Mapping[Place, Coded], train: Table, groups: int, seed: int) -> Tensor:
    """(K, N), N being the width of all fields; the group with the most rows of the sample first."""
    rows = np.arange(train.first, train.first + train.rows, dtype=np.uint64)
    chosen = torch.from_numpy(np.flatnonzero(mixed(rows) % np.uint64(-(-train.total // SAMPLE)) == 0))
    x_RN = torch.cat([code.x[train.ids(code.field)[chosen].long()] for code in coded.values()], dim=1)
    x_RN = gather_rows(x_RN)
    # With one thread, for the order of sums must not depend on which is faster.
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than groups
        means = KMeans(min(groups, len(x_RN)), n_init=STARTS, random_state=seed).fit(x_RN.double().numpy())
    order = np.argsort(-np.bincount(means.labels_, minlength=len(means.cluster_centers_)), kind="stable")
    return torch.from_numpy(means.cluster_centers_[order])


def _joined(centre_KN: Tensor, rows_K: Vector) -> Tensor:
    """The smallest group and the nearest of the others as one."""
    small = int(rows_K.argmin())
    distance_K = (centre_KN - centre_KN[small]).square().sum(dim=1)
    distance_K[small] = torch.inf
    near = int(distance_K.argmin())
    share = rows_K[small] / max(rows_K[small] + rows_K[near], 1)
    joined_KN = centre_KN.clone()
    joined_KN[near] = share * centre_KN[small] + (1 - share) * centre_KN[near]
    return joined_KN[torch.arange(len(centre_KN)) != small]


def _closeness(coded: Mapping[Place, Coded], centre_KN: Tensor) -> dict[str, Tensor]:
    """Field -> (R, K - 1): by how much a category is nearer to each centroid than to the first."""
    found: dict[str, Tensor] = {}
    parts = torch.split(centre_KN, [code.x.shape[1] for code in coded.values()], dim=1)
    for code, centre_KD in zip(coded.values(), parts, strict=True):
        distance_RK = torch.cdist(code.x.double(), centre_KD.double()).square()
        near_RK = distance_RK[:, :1] - distance_RK[:, 1:]
        found[code.field] = found.get(code.field, 0) + near_RK
    return found


def _votes(coded: Mapping[Place, Coded], centre_KN: Tensor, train: Table) -> dict[str, Tensor]:
    """The same as bytes, (R, K - 1) int8, one scale for all: the greatest of a category in the rows is `MOST`."""
    near_FRK = _closeness(coded, centre_KN)
    seen = {field: summed(train.visits([field], range(len(near_RK)))) > 0 for field, near_RK in near_FRK.items()}
    greatest = max(
        (float(near_RK[seen[f]].abs().amax()) for f, near_RK in near_FRK.items() if near_RK.numel()), default=0
    )
    scale = MOST / greatest if greatest else 0.0
    return {field: (near_RK * scale).round().clamp(-MOST, MOST).to(torch.int8) for field, near_RK in near_FRK.items()}


def _described(coded: Mapping[Place, Coded], train: Table, vote_FRK: Mapping[str, Tensor]) -> Groups:
    count = next(iter(vote_FRK.values())).shape[1] + 1
    router = {field: packed(vote_RK.numpy().tobytes()) for field, vote_RK in vote_FRK.items()} if count > 1 else {}
    group_N = grouped(router, count, train)
    rows_K = summed(torch.bincount(group_N, minlength=count).double())
    label_K = summed(torch.bincount(group_N, weights=train.label.double(), minlength=count)) / rows_K.clamp(min=1)
    opened = {}
    for place, code in coded.items():
        categories = len(code.x)
        cell_N = group_N * categories + train.ids(code.field)
        visit_KR = summed(torch.bincount(cell_N, minlength=count * categories).double()).view(count, categories)
        opened[place] = visit_KR @ code.open.double() / rows_K.clamp(min=1)[:, None]
    return Groups(router, rows_K.numpy(), label_K.numpy(), opened, 1.0)


def grouped(router: Mapping[str, str], groups: int, table: Table) -> Tensor:
    """The group of each row, (N,) int64."""
    if groups == 1:
        return torch.zeros(table.rows, dtype=torch.int64)
    columns = {name: column for column, name in enumerate(table.schema.names("categorical"))}
    return Router(router, columns, groups).groups_of(table.categorical)


def _compared(found: Groups, coded: Mapping[Place, Coded], centre_KN: Tensor, train: Table) -> Groups:
    if found.count == 1:
        return found
    near_NK: Any = sum(near_RK[train.ids(field).long()] for field, near_RK in _closeness(coded, centre_KN).items())
    exact_N = torch.cat([near_NK.new_zeros(len(near_NK), 1), near_NK], dim=1).argmax(dim=1)
    same = summed((exact_N == grouped(found.router, found.count, train)).double().sum())
    return Groups(**{**vars(found), "agreement": float(same) / train.total})
