"""AutoDim: how wide each field's embedding should be, by relaxed choices between widths (Zhao et al., WWW 2021).

One table per field, as wide as the widest candidate; the n-th candidate is its first d_n columns (weight sharing),
mapped to the full width by one linear map per candidate, shared by all fields, and normalised. The sum of the
candidates, weighed per field by a Gumbel-softmax, is what the backbone reads. Gates are updated on validation rows, one
step after `every` steps of the weights, after a warm-up with equal weights. Each field keeps its likeliest width.

Ours, where the sources leave it open: one batch normalisation per candidate, its statistics pooled over fields; noise
only while gates learn; a shared scale behind it (`Mixture`); the retrained model lifts narrow tables by bias-free maps,
or pads them with zeros (`align`). Numeric fields keep the full width. With a `budget` the widths are the likeliest that
fit it together; the paper has nothing but the validation loss to make tables small. `update: training` is AutoDim-s,
which learns gates on the weights' own batches; `select: random` is what any choice of the same size has to beat.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import metrics
from trainer.architecture import Architecture
from trainer.data import Batch, Table
from trainer.engines.gradient import Level
from trainer.engines.supernet import Trace
from trainer.errors import UserError
from trainer.figures import Cell, Figure, curves, table
from trainer.methods.base import (
    Data,
    MixtureSearch,
    OpenedView,
    Opening,
    backbone,
    draw,
    fullest,
    tables_of_width,
    with_dims,
    within_budget,
)
from trainer.methods.settings import AutoDimSettings, MixtureSettings
from trainer.modules.interactions import dense
from trainer.modules.mixture import Mixture
from trainer.processes import gather_rows, summed
from trainer.schema import DatasetSchema
from trainer.space import choice

BLIND_DRAWS = 1_000


def space(schema: DatasetSchema, settings: AutoDimSettings) -> Data:
    widest = max(settings.dims)
    dims = dict.fromkeys(schema.names("categorical"), widest)
    return with_dims("autodim", backbone(schema, settings), dims, widest)


def plan(settings: AutoDimSettings) -> Data:
    return {
        "method": "autodim",
        "dims": sorted(settings.dims),
        "align": choice("autodim.align", settings.align),
        "budget": choice("autodim.budget", settings.budget),
        "select": settings.select,
        "draw": draw("autodim") if settings.select == "random" else None,
        "update": settings.update,
        **settings.model_dump(include=set(MixtureSettings.model_fields)),
    }


class AutoDim(MixtureSearch):
    """The backbone with a choice of widths for every categorical field."""

    def __init__(self, opening: Opening) -> None:
        self.backbone = opening.backbone
        self.dims: list[int] = opening.plan["dims"]
        self.train, self.valid = opening.train, opening.valid
        self.model = opening.build(opening.backbone)
        with opening.draws():
            opened = tables_of_width(opening.backbone, max(self.dims))
            self.choices = {name: self._open(name, fields) for name, fields in opened.items()}
        if not self.choices:
            raise UserError("autodim: the backbone has no tables as wide as the widest of autodim.dims")
        level: Level = "bilevel" if opening.plan["update"] == "validation" else "single"
        super().__init__(opening.plan, {name: opened.mixture for name, opened in self.choices.items()}, level)
        if opening.plan["select"] == "random":
            self._draw(opening.seed)

    def _draw(self, seed: int) -> None:
        """Weights that stand for blind widths, of many drawn those that fill the budget best: nothing is searched."""
        self.gates = {}
        rng = np.random.default_rng([seed, self.plan["draw"]])
        for opened in self.choices.values():
            size_MN, budget = self._sizes(opened)
            place_TM = torch.from_numpy(rng.integers(len(self.dims), size=(BLIND_DRAWS, len(opened.fields))))
            size_T = size_MN.gather(1, place_TM.T).sum(dim=0)
            best_M = place_TM[fullest(size_T, budget)]
            opened.mixture.logits.detach().copy_(functional.one_hot(best_M, len(self.dims)))

    def derive(self) -> Architecture:
        data = self.backbone.to_dict()
        for name, opened in self.choices.items():
            for field, dim in self._dims(name).items():
                data["views"][name]["encoders"][field]["dim"] = dim
            data["views"][name] |= {"align": self.plan["align"], "width": opened.width}
        return Architecture.from_dict(data)

    def figures(self, trace: Trace) -> list[Figure]:
        drawn = []
        single = single_field_scores(self.train, self.valid)
        score = "AUC alone" if self.train.schema.task == "ctr" else "MSE alone"
        for name, opened in self.choices.items() if self.gates else ():
            dims, weight_MN = self._dims(name), opened.mixture.logits.detach().softmax(dim=1)
            rows: list[list[Cell]] = [
                [field, self.backbone.fields[field].cardinality, dims[field], single[field], *weights]
                for field, weights in zip(opened.fields, weight_MN.tolist(), strict=True)
            ]
            heads = ["field", "categories", "dim", score, *(f"weight of {dim}" for dim in self.dims)]
            note = "Fields with the width that was chosen, and how well each predicts alone (mean label per category)."
            drawn.append(table(f"Widths of view {name}", note, heads, rows))
            mean_TM = trace.values[name].softmax(dim=2) @ torch.tensor(self.dims, dtype=torch.float32)
            lines = {field: mean_TM[:, place].tolist() for place, field in enumerate(opened.fields)}
            title = f"Mean width over training ({name})"
            drawn.append(curves(title, "Widths weighed by their gates.", ("epoch", trace.epochs), "width", lines))
        return drawn

    def _sizes(self, opened: "WidthChoice") -> tuple[Tensor, float]:
        """Parameters of each candidate, (M, N), and how many there may be together."""
        rows_M = torch.tensor([self.backbone.fields[field].cardinality for field in opened.fields])
        size_MN = rows_M[:, None] * torch.tensor(self.dims)
        return size_MN, self.plan["budget"] * float(size_MN[:, -1].sum())

    def _open(self, name: str, fields: Sequence[str]) -> "WidthChoice":
        view = self.backbone.views[name]
        places = [list(view.encoders).index(field) for field in fields]
        opened = WidthChoice(self.model.views[f"view:{name}"], fields, places, self.dims)
        self.model.views[f"view:{name}"] = opened
        return opened

    def _dims(self, name: str) -> dict[str, int]:
        opened = self.choices[name]
        size_MN, budget = self._sizes(opened)
        weight_MN = opened.mixture.logits.detach().log_softmax(dim=1)
        best = within_budget(list(weight_MN), list(size_MN), budget)
        return {field: self.dims[place] for field, place in zip(opened.fields, best, strict=True)}


class WidthChoice(OpenedView):
    """A view whose table fields are mixtures of their own prefixes."""

    def __init__(self, view: nn.Module, fields: Sequence[str], places: Sequence[int], dims: Sequence[int]) -> None:
        super().__init__(view, fields, places)
        self.width = max(dims)
        self.maps = nn.ModuleList(dense(dim, self.width) for dim in dims)
        self.mixture = Mixture(len(places), len(dims), self.width)

    def made(self, x_BFD: Tensor, batch: Batch) -> Tensor:
        mixed_BFD: Tensor = self.mixture(self.candidates(x_BFD))
        return mixed_BFD

    def candidates(self, x_BMD: Tensor) -> Tensor:
        """(B, M, N, D): every prefix, mapped to the full width."""
        return prefixes(self.maps, x_BMD)


def prefixes(maps: nn.ModuleList, x_BMD: Tensor) -> Tensor:
    """(B, M, N, D): for each of N maps as many columns as it takes, mapped."""
    return torch.stack([mapped(x_BMD[..., : mapped.in_features]) for mapped in maps], dim=2)


def single_field_scores(train: Table, valid: Table) -> dict[str, float]:
    """How well each categorical field predicts the validation labels alone: AUC (ctr) or MSE (rating).

    The prediction is the category's mean label in the training rows, drawn to the overall mean by 20 rows of it.
    """
    main = "auc" if train.schema.task == "ctr" else "mse"
    mean, label = train.schema.label_mean, gather_rows(valid.label)
    scores = {}
    for name in train.schema.names("categorical"):
        rows = train.schema.field(name).cardinality
        ids = train.ids(name).long()
        count = summed(torch.bincount(ids, minlength=rows))
        total = summed(torch.bincount(ids, weights=train.label.double(), minlength=rows))
        known = (total + 20 * mean) / (count + 20)
        predicted = gather_rows(known[valid.ids(name).long()])
        measured = metrics.evaluate(train.schema.task, label.numpy(), predicted.numpy())
        scores[name] = measured[main]
    return scores
