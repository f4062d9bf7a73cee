"""AutoEmb: how wide each category's embedding should be, by how often it occurs (Zhao et al., ICDM 2021).

One table per field, whose prefixes are candidates, mapped and normalised as AutoDim's are; the weights of their sum
come from a small network, the controller, that sees the popularity of the row's category: the logarithm of its number
of training rows (plus 1), less its mean over these rows, divided by their deviation. Controllers learn on validation
rows, all else on training rows.

Ours: the paper is about streams of users and items, its controller also sees a context, and it serves the soft sum, so
that no table gets smaller. Here every category keeps the width of the greatest weight, which depends on nothing but its
popularity, and what is trained from scratch has tables of these widths. A deviation less than 1, that of fields whose
categories are all about as frequent, counts as 1.
"""

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.architecture import Architecture
from trainer.data import Batch, Table
from trainer.engines.gradient import Level
from trainer.engines.supernet import Schedule, Trace
from trainer.errors import UserError
from trainer.figures import Figure, curves
from trainer.methods.autodim import prefixes
from trainer.methods.base import Data, OpenedView, Opening, backbone, sized_rows, tables_of_width, with_dims
from trainer.methods.settings import AutoEmbSettings, MixtureSettings
from trainer.modules.interactions import dense
from trainer.modules.mixture import ControlledMixture
from trainer.processes import summed
from trainer.schema import DatasetSchema
from trainer.space import choice

SHOWN = (0, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000, 30_000, 100_000)
"""Numbers of training rows for which the report shows widths."""


def space(schema: DatasetSchema, settings: AutoEmbSettings) -> Data:
    widest = max(settings.dims)
    return with_dims("autoemb", backbone(schema, settings), dict.fromkeys(schema.names("categorical"), widest), widest)


def plan(settings: AutoEmbSettings) -> Data:
    return {
        "method": "autoemb",
        "dims": sorted(settings.dims),
        "align": choice("autoemb.align", settings.align),
        **settings.model_dump(include=set(MixtureSettings.model_fields)),
    }


class AutoEmb:
    """The backbone with a choice of widths for every category of its fields."""

    level: Level = "bilevel"

    def __init__(self, opening: Opening) -> None:
        self.plan, self.backbone = opening.plan, opening.backbone
        self.dims: list[int] = opening.plan["dims"]
        self.model = opening.build(opening.backbone)
        opened = tables_of_width(opening.backbone, max(self.dims))
        if not opened:
            raise UserError("autoemb: the backbone has no tables as wide as the widest of autoemb.dims")
        with opening.draws():
            self.choices = {name: self._open(name, fields, opening.train) for name, fields in opened.items()}
        self.gates: dict[str, nn.Parameter] = {
            f"{part} of {name}": getattr(opened.mixture, part)
            for name, opened in self.choices.items()
            for part in ("first", "second", "bias")
        }
        self.schedule = Schedule(**{name: opening.plan[name] for name in ("epochs", "every", "warm_up", "table_l2")})

    def _open(self, name: str, fields: Sequence[str], train: Table) -> "PopularWidths":
        places = [list(self.backbone.views[name].encoders).index(field) for field in fields]
        opened = PopularWidths(self.model.views[f"view:{name}"], fields, places, self.dims, Popularity(train, fields))
        self.model.views[f"view:{name}"] = opened
        return opened

    def optimizer(self, steps: int) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.gates.values(), lr=self.plan["gate_learning_rate"])

    def relax(self, progress: float, *, frozen: bool, deciding: bool) -> None:
        """Weights are equal until the controllers learn."""
        for opened in self.choices.values():
            opened.mixture.frozen = frozen

    def derive(self) -> Architecture:
        data = self.backbone.to_dict()
        for name, opened in self.choices.items():
            for field, number_R in opened.chosen().items():
                data["views"][name]["encoders"][field] = self._described(number_R)
            data["views"][name] |= {"align": self.plan["align"], "width": max(self.dims)}
        return Architecture.from_dict(data)

    def _described(self, number_R: Tensor) -> Data:
        sizes = bytes(number_R.tolist())
        if len(set(sizes)) == 1:
            return {"kind": "table", "dim": self.dims[sizes[0]]}
        return sized_rows(sizes, self.dims, self.plan["align"])

    def figures(self, trace: Trace) -> list[Figure]:
        return [self._widths(name, opened) for name, opened in self.choices.items()]

    @torch.no_grad()
    def _widths(self, name: str, opened: "PopularWidths") -> Figure:
        count_U, dim_N = torch.tensor(SHOWN, dtype=torch.float32), torch.tensor(self.dims, dtype=torch.float32)
        lines: dict[str, list[float | None]] = {}
        for place, (field, most) in enumerate(zip(opened.fields, opened.popularity.greatest, strict=True)):
            mean_U = opened.logits(place, opened.popularity.standard(place, count_U)).softmax(dim=1) @ dim_N
            shown = [number == 0 or number <= most for number in SHOWN]
            lines[field] = [width if there else None for width, there in zip(mean_U.tolist(), shown, strict=True)]
        note = "Widths weighed by the controllers, as far as a field has categories so frequent."
        places = ("training rows of a category", [float(number) for number in SHOWN])
        return curves(f"Widths over popularity (view {name})", note, places, "width", lines)


class PopularWidths(OpenedView):
    """A view whose table fields are mixtures of their own prefixes, weighed by popularity."""

    def __init__(
        self,
        view: nn.Module,
        fields: Sequence[str],
        places: Sequence[int],
        dims: Sequence[int],
        popularity: "Popularity",
    ) -> None:
        super().__init__(view, fields, places)
        self.popularity = popularity
        self.maps = nn.ModuleList(dense(dim, max(dims)) for dim in dims)
        self.mixture = ControlledMixture(len(places), len(dims), max(dims))

    def made(self, x_BFD: Tensor, batch: Batch) -> Tensor:
        mixed_BFD: Tensor = self.mixture(prefixes(self.maps, x_BFD), self.popularity(batch))
        return mixed_BFD

    @torch.no_grad()
    def chosen(self) -> dict[str, Tensor]:
        """The candidate of every category of each field, (R,) int64."""
        found = {}
        for place, (field, popularity_R) in enumerate(zip(self.fields, self.popularity.by_field(), strict=True)):
            # Many categories are equally frequent.
            popularity_U, place_R = torch.unique(popularity_R.cpu(), return_inverse=True)
            found[field] = self.logits(place, popularity_U).argmax(dim=1)[place_R]
        return found

    def logits(self, place: int, popularity_U: Tensor) -> Tensor:
        """Those of one field's candidates, (U, N)."""
        return self.mixture.logits(popularity_U[:, None].expand(-1, len(self.fields)))[:, place]


class Popularity(nn.Module):
    """How popular each row's categories are, (B, M)."""

    def __init__(self, train: Table, fields: Sequence[str]) -> None:
        super().__init__()
        names = train.schema.names("categorical")
        counts = [summed(train.visits([field], range(train.schema.field(field).cardinality))) for field in fields]
        self.greatest = [int(count_R.max()) for count_R in counts]
        """Training rows of each field's most frequent category."""
        logs = [count_R.log1p() for count_R in counts]
        shares = [count_R / count_R.sum() for count_R in counts]
        self.means = [float(share_R @ log_R) for share_R, log_R in zip(shares, logs, strict=True)]
        squares = [share_R @ (log_R - m).square() for share_R, log_R, m in zip(shares, logs, self.means, strict=True)]
        self.deviations = [max(math.sqrt(square), 1.0) for square in squares]
        self.rows = [len(count_R) for count_R in counts]
        values = torch.cat([self.standard(place, count_R) for place, count_R in enumerate(counts)])
        self.register_buffer("values", values, persistent=False)
        first_M = torch.tensor([0, *itertools.accumulate(self.rows)][:-1])
        self.register_buffer("first_M", first_M, persistent=False)
        self.register_buffer("columns", torch.tensor([names.index(field) for field in fields]), persistent=False)
        self.values: Tensor
        self.first_M: Tensor
        self.columns: Tensor

    def forward(self, batch: Batch) -> Tensor:
        row_BM = batch.categorical[:, self.columns] + self.first_M
        popularity_BM: Tensor = self.values[row_BM]
        return popularity_BM

    def standard(self, place: int, count_N: Tensor) -> Tensor:
        """What categories of a field with so many rows are given."""
        return (count_N.log1p() - self.means[place]) / self.deviations[place]

    def by_field(self) -> Sequence[Tensor]:
        """Of every category of each field, (R,)."""
        return torch.split(self.values, self.rows)
