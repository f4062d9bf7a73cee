"""DPQ and MGQE: categories that share centroids (Chen, Li and Sun, ICML 2020; Kang et al., WWW 2020 companion).

The supernet has the full table of every categorical field. After a warm-up without it, each of the D sub-vectors of
a row is replaced by the nearest of K centroids of its field and sub-space (`modules.quantized.Quantizer`; DPQ's
variant by vector quantisation). What is derived has the codes of all categories, which are fixed, and K centroids for
each sub-space, which are trained from scratch like any other table. MGQE is the same, but for rare categories only the
first few of the centroids may stand: categories are numbered by falling frequency in the training rows, and the first
`head` of a field's are frequent.

Ours: the warm-up; centroids that begin at the vectors of K categories, drawn by their frequency, so that few of them
are dead; distances without the normalisation over the batch that the authors' code has, so that codes are the same
in training and after it; and the second training, without which the centroids would be those of a table that is not
kept. A field with no more categories than centroids keeps its table.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer import figures
from trainer.architecture import Architecture, QuantizedEncoder
from trainer.data import Batch
from trainer.device import device_of
from trainer.engines.gradient import Level
from trainer.engines.supernet import Schedule, Trace
from trainer.errors import UserError
from trainer.figures import Cell, Figure
from trainer.index import packed
from trainer.methods.base import (
    WIDTH,
    Data,
    OpenedView,
    Opening,
    backbone,
    check_sizable,
    every_category,
    tables_of_width,
    these_categories,
)
from trainer.methods.settings import DPQSettings, MGQESettings
from trainer.modules.quantized import Quantizer
from trainer.processes import summed
from trainer.schema import DatasetSchema
from trainer.shapes import PARAMETER_BITS, index_bits
from trainer.space import choice, pinned


def space(schema: DatasetSchema, settings: DPQSettings) -> Data:
    check_sizable(_name(settings), schema)
    template: Data = pinned(backbone(schema, settings), {WIDTH: settings.dim})
    return template


def plan(settings: DPQSettings) -> Data:
    name = _name(settings)
    rare: Data = {"head": None, "tail_centroids": None}
    if isinstance(settings, MGQESettings):
        rare = {"head": settings.head, "tail_centroids": choice("mgqe.tail_centroids", settings.tail_centroids)}
    return {
        "method": name,
        "dim": settings.dim,
        "subspaces": choice(f"{name}.subspaces", settings.subspaces),
        "centroids": choice(f"{name}.centroids", settings.centroids),
        **rare,
        **settings.model_dump(include={"centroid_learning_rate", "warm_up", "table_l2", "epochs"}),
    }


def _name(settings: DPQSettings) -> str:
    return "mgqe" if isinstance(settings, MGQESettings) else "dpq"


class DPQ:
    """The backbone with centroids for the tables of its categorical fields."""

    level: Level = "single"

    def __init__(self, opening: Opening) -> None:
        self.plan, self.backbone, self.train, self.seed = opening.plan, opening.backbone, opening.train, opening.seed
        self.model = opening.build(opening.backbone)
        opened = tables_of_width(opening.backbone, opening.plan["dim"])
        if not opened:
            raise UserError(f"{opening.plan['method']}: the backbone has no tables of the width 'dim'")
        large = {name: [field for field in fields if self._large(field)] for name, fields in opened.items()}
        self.views = {name: self._open(name, fields) for name, fields in large.items() if fields}
        self.gates: dict[str, nn.Parameter] = {
            f"centroids of {name}": view.quantizer.centroids for name, view in self.views.items()
        }
        self.schedule = Schedule(**{name: opening.plan[name] for name in ("epochs", "warm_up", "table_l2")})

    def _large(self, field: str) -> bool:
        return self.backbone.fields[field].cardinality > int(self.plan["centroids"])

    def _open(self, name: str, fields: Sequence[str]) -> "QuantizedView":
        places = [list(self.backbone.views[name].encoders).index(field) for field in fields]
        columns = [self.train.schema.names("categorical").index(field) for field in fields]
        quantizer = Quantizer(len(fields), *(self.plan[size] for size in ("dim", "subspaces", "centroids")))
        tails = [self._tail(field) for field in fields]
        opened = QuantizedView(self.model.views[f"view:{name}"], fields, places, columns, tails, quantizer)
        self.model.views[f"view:{name}"] = opened
        return opened

    def _tail(self, field: str) -> tuple[int, int]:
        """The first rare category, and how many centroids may stand for such."""
        rows, tail = self.backbone.fields[field].cardinality, self.plan["tail_centroids"]
        if tail in (None, self.plan["centroids"]):
            return rows, self.plan["centroids"]
        return math.ceil(self.plan["head"] * rows), tail

    def optimizer(self, steps: int) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.gates.values(), lr=self.plan["centroid_learning_rate"])

    def relax(self, progress: float, *, frozen: bool, deciding: bool) -> None:
        """Centroids come to work after the warm-up."""
        for view in self.views.values():
            begins = not frozen and not view.quantizer.at_work
            view.quantizer.at_work = not frozen
            if begins and not view.quantizer.placed:
                self._place(view)

    @torch.no_grad()
    def _place(self, view: "QuantizedView") -> None:
        """Let centroids begin at the vectors of categories, drawn with chances in proportion to their rows (plus 1)."""
        schema, generator = self.train.schema, torch.Generator().manual_seed(self.seed)
        id_KC = torch.zeros(self.plan["centroids"], len(schema.names("categorical")), dtype=torch.int64)
        for field, column in zip(view.fields, view.columns.tolist(), strict=True):
            visit_R = summed(self.train.visits([field], range(schema.field(field).cardinality)))
            # Who comes first in a race of exponential clocks is a draw in proportion to their rates.
            time_R = torch.empty_like(visit_R).exponential_(generator=generator) / (visit_R + 1)
            id_KC[:, column] = time_R.topk(len(id_KC), largest=False).indices
        batch = these_categories(schema, id_KC).to(device_of(self.model))
        x_KMD = view.plain(batch, self.model.tables(batch)).to(view.quantizer.centroids)
        for place in range(len(view.fields)):
            view.quantizer.place(place, x_KMD[:, place].contiguous())
        view.quantizer.placed.fill_(True)

    @torch.no_grad()
    def codes(self, view: "QuantizedView") -> dict[str, Tensor]:
        """Of every category of each field, (R, S) uint8."""
        parts = []
        for categories in every_category(self.train.schema, view.fields):
            batch = categories.to(device_of(self.model))
            x_BMD = view.plain(batch, self.model.tables(batch)).to(view.quantizer.centroids)
            allowed_BM = view.allowed(batch).to(x_BMD.device)
            parts.append(view.quantizer.codes(x_BMD.contiguous(), allowed_BM).to("cpu", torch.uint8))
        code_RMS = torch.cat(parts)
        rows = [self.backbone.fields[field].cardinality for field in view.fields]
        return {field: code_RMS[: rows[place], place] for place, field in enumerate(view.fields)}

    def derive(self) -> Architecture:
        data = self.backbone.to_dict()
        for name, view in self.views.items():
            for field, code_RS in self.codes(view).items():
                data["views"][name]["encoders"][field] = self._described(field, code_RS)
        return Architecture.from_dict(data)

    def _described(self, field: str, code_RS: Tensor) -> Data:
        first, tail = self._tail(field)
        sizes = {name: self.plan[name] for name in ("dim", "subspaces", "centroids")}
        rare = {"first": first, "centroids": tail} if first < len(code_RS) else None
        return {"kind": "quantized", **sizes, "index": packed(code_RS.contiguous().numpy().tobytes()), "tail": rare}

    def figures(self, trace: Trace) -> list[Figure]:
        return [self._table(name, view) for name, view in self.views.items()]

    def _table(self, name: str, view: "QuantizedView") -> Figure:
        rows: list[list[Cell]] = []
        centroids, dim = self.plan["centroids"], self.plan["dim"]
        for field, code_RS in self.codes(view).items():
            share_SK = torch.stack([torch.bincount(code_R, minlength=centroids) for code_R in code_RS.T.int()])
            share_SK = share_SK / len(code_RS)
            used, bits = float((share_SK > 0).sum(dim=1).double().mean()), -share_SK.xlogy(share_SK).sum() / math.log(2)
            encoder = QuantizedEncoder.model_validate(self._described(field, code_RS))
            kept = centroids * dim + math.ceil(index_bits(encoder, len(code_RS)) / PARAMETER_BITS)
            full = len(code_RS) * dim
            rows.append([field, len(code_RS), used, float(bits) / len(share_SK), full, kept, kept / full])
        note = (
            f"How many of the {centroids} centroids of a sub-space stand for some category, and the bits that a code"
            f" says (the entropy over categories; {math.log2(centroids):.3g} if all are used alike): means over the"
            f" {self.plan['subspaces']} sub-spaces. Kept are centroids and codes, 32 bits of which count as one."
        )
        heads = ["field", "categories", "centroids used", "bits of a code", "parameters of the table", "kept", "share"]
        return figures.table(f"Centroids of view {name}", note, heads, rows)


class QuantizedView(OpenedView):
    """A view whose large tables are quantised."""

    def __init__(
        self,
        view: nn.Module,
        fields: Sequence[str],
        places: Sequence[int],
        columns: Sequence[int],
        tails: Sequence[tuple[int, int]],
        quantizer: Quantizer,
    ) -> None:
        """`columns`: of the fields in a batch. `tails`: of each its first rare category, and the centroids of such."""
        super().__init__(view, fields, places)
        self.quantizer = quantizer
        first_M, few_M = torch.tensor(tails).T
        for name, value_M in (("columns", torch.tensor(columns)), ("first_M", first_M), ("few_M", few_M)):
            self.register_buffer(name, value_M, persistent=False)
        self.columns: Tensor
        self.first_M: Tensor
        self.few_M: Tensor

    def allowed(self, batch: Batch) -> Tensor:
        """How many centroids may stand for each row's category, (B, M)."""
        all_M = torch.full_like(self.few_M, self.quantizer.centroids.shape[2])
        return torch.where(batch.categorical[:, self.columns] < self.first_M, all_M, self.few_M)

    def made(self, x_BFD: Tensor, batch: Batch) -> Tensor:
        quantized_BFD: Tensor = self.quantizer(x_BFD, self.allowed(batch), batch.of)
        return quantized_BFD
