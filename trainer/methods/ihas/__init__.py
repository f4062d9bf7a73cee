"""iHAS: which coordinates of its embeddings a row needs, and a model of the right size for each group of rows that need
the same (Yu et al., CIKM 2023, arXiv 2309.07967).

Three stages. Search: the backbone with a Bernoulli gate for every coordinate (`modules.gates`), trained once. Cluster:
rows are grouped by what their gates leave of their embeddings (`groups`). Derive: the backbone once for each group,
with the coordinates that half of the group's rows or more keep, and a router that says which row goes where
(`sizes`): one architecture, which is trained from scratch like any other.

Ours, for of the paper only the abstract and summaries could be had: gates that are a linear map of the field's own
vector, so that the router is a small table; their distribution, schedule and all numbers; the rule for what a group
keeps; the number of groups as a choice; small groups that join their neighbour.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer import zoo
from trainer.architecture import Architecture, TableEncoder
from trainer.data import Batch
from trainer.device import device_of
from trainer.engines.gradient import Level
from trainer.engines.supernet import Schedule, Trace
from trainer.errors import UserError
from trainer.figures import Cell, Figure, heatmap, table
from trainer.methods.base import WIDTH, Data, OpenedView, Opening, backbone, check_sizable, draw, every_category
from trainer.methods.ihas.groups import Coded, Groups, Place, blind, searched
from trainer.methods.ihas.sizes import Target, sized
from trainer.methods.settings import IHASSettings
from trainer.modules.gates import COLDEST, Gates
from trainer.routed import routed
from trainer.schema import DatasetSchema
from trainer.shapes import count
from trainer.space import choice, fill_params, pinned

__all__ = ["IHAS", "plan", "space"]


def space(schema: DatasetSchema, settings: IHASSettings) -> Data:
    check_sizable("ihas", schema)
    return backbone(schema, settings)


def plan(settings: IHASSettings) -> Data:
    own = {"into", "gate_learning_rate", "warm_up", "table_l2", "epochs", "threshold", "least", "select"}
    return {
        "method": "ihas",
        "groups": choice("ihas.groups", settings.groups),
        "sparse": choice("ihas.sparse", settings.sparse),
        "polar": choice("ihas.polar", settings.polar),
        "draw": draw("ihas") if settings.select == "random" else None,
        "choices": settings.choices if settings.into else {},
        **settings.model_dump(include=own),
    }


class IHAS:
    """The backbone with gates on all of its embeddings of categorical fields."""

    level: Level = "single"

    def __init__(self, opening: Opening) -> None:
        self.plan, self.backbone, self.train, self.seed = opening.plan, opening.backbone, opening.train, opening.seed
        self.model = opening.build(opening.backbone)
        opened = _embeddings(opening.backbone)
        if not opened:
            raise UserError("ihas: the backbone has no embeddings of categorical fields to gate")
        self.views = {name: self._open(name, fields) for name, fields in opened.items()}
        parts = {"weights": "weight", "biases": "bias"}
        self.gates: dict[str, nn.Parameter] = {
            f"{what} of {name}": getattr(view.gates, part)
            for name, view in self.views.items()
            for what, part in parts.items()
        }
        self.target = _target(opening, opened)
        timing = {name: opening.plan[name] for name in ("epochs", "warm_up", "table_l2")}
        self.schedule = Schedule(**timing)
        self.groups: Groups | None = None

    def _open(self, name: str, fields: Sequence[str]) -> "GatedView":
        view = self.backbone.views[name]
        width = next(encoder.dim for encoder in view.encoders.values() if isinstance(encoder, TableEncoder))
        places = [list(view.encoders).index(field) for field in fields]
        gates = Gates(len(fields), width, self.plan["threshold"])
        opened = GatedView(self.model.views[f"view:{name}"], fields, places, gates)
        self.model.views[f"view:{name}"] = opened
        return opened

    def optimizer(self, steps: int) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.gates.values(), lr=self.plan["gate_learning_rate"])

    def relax(self, progress: float, *, frozen: bool, deciding: bool) -> None:
        """The temperature falls to `COLDEST`, while the weight of `polar` rises from 0."""
        for view in self.views.values():
            view.gates.at_work = not frozen
            view.gates.temperature = 1 - (1 - COLDEST) * progress
            view.gates.sparse, view.gates.polar = self.plan["sparse"], self.plan["polar"] * progress

    def coded(self) -> dict[Place, Coded]:
        """What the gates make of each category."""
        found: dict[Place, list[tuple[Tensor, Tensor]]] = {}
        fields = [field for view in self.views.values() for field in view.fields]
        for categories in every_category(self.train.schema, fields):
            batch = categories.to(device_of(self.model))
            with torch.no_grad():
                rows = self.model.tables(batch)
                for name, view in self.views.items():
                    x_BMD = view.plain(batch, rows).cpu()
                    open_BMD = view.gates.open(x_BMD)
                    for place, field in enumerate(view.fields):
                        coded = (x_BMD * open_BMD)[:, place], open_BMD[:, place]
                        found.setdefault((name, field), []).append(coded)
        return {place: self._joined(place[1], parts) for place, parts in found.items()}

    def _joined(self, field: str, parts: Sequence[tuple[Tensor, Tensor]]) -> Coded:
        rows = self.backbone.fields[field].cardinality
        return Coded(field, *(torch.cat(list(values))[:rows] for values in zip(*parts, strict=True)))

    def found(self) -> Groups:
        """The groups as the gates say now."""
        if self.plan["select"] == "random":
            return blind(self.coded(), self.train, self.plan["groups"], (self.seed, self.plan["draw"]))
        return searched(self.coded(), self.train, self.plan["groups"], self.plan["least"], self.seed)

    def derive(self) -> Architecture:
        self.groups = groups = self.found()
        parts = [sized(self.target, groups, group) for group in range(groups.count)]
        return routed(groups.router, parts) if groups.count > 1 else parts[0]

    def figures(self, trace: Trace) -> list[Figure]:
        groups = self.groups or self.found()
        return [self._table(groups), *(self._map(name, view, groups) for name, view in self.views.items())]

    def _table(self, groups: Groups) -> Figure:
        rows: list[list[Cell]] = []
        full = sum(len(share_KD[0]) for share_KD in groups.open.values())
        for group in range(groups.count):
            size, kept = int(groups.rows[group]), sum(len(groups.kept(place, group)) for place in groups.open)
            parameters = count(sized(self.target, groups, group)).total
            share = size / self.train.total
            rows.append([group, size, share, float(groups.label[group]), kept, kept / full, parameters])
        heads = ["group", "training rows", "share", "mean label", "coordinates", "kept", "parameters"]
        note = (
            f"The router, whose votes are bytes, sends {groups.agreement:.2%} of the training rows where exact "
            f"distances to the centroids would. All fields together have {full} coordinates."
        )
        return table("Groups", note, heads, rows)

    def _map(self, name: str, view: "GatedView", groups: Groups) -> Figure:
        values = [
            [float(len(groups.kept((name, field), group))) for group in range(groups.count)] for field in view.fields
        ]
        note = f"How many of its {view.gates.bias.shape[1]} coordinates a field keeps in each group."
        labels = [str(group) for group in range(groups.count)]
        return heatmap(f"Coordinates of view {name}", note, ("field", view.fields), ("group", labels), values)


class GatedView(OpenedView):
    """A view whose table fields pass gates."""

    def __init__(self, view: nn.Module, fields: Sequence[str], places: Sequence[int], gates: Gates) -> None:
        super().__init__(view, fields, places)
        self.gates = gates

    def made(self, x_BFD: Tensor, batch: Batch) -> Tensor:
        gated_BFD: Tensor = self.gates(x_BFD, batch.of)
        return gated_BFD


def _embeddings(architecture: Architecture) -> dict[str, list[str]]:
    """The categorical fields with a table in each view of vectors; first-order weights are none."""
    found = {
        name: [field for field, encoder in view.encoders.items() if isinstance(encoder, TableEncoder)]
        for name, view in architecture.views.items()
        if all(architecture.fields[field].kind != "sequence" and _wide(one) for field, one in view.encoders.items())
    }
    return {name: fields for name, fields in found.items() if fields}


def _wide(encoder: Any) -> bool:
    return getattr(encoder, "dim", 1) > 1


def _target(opening: Opening, opened: dict[str, list[str]]) -> Target:
    """What the groups are trained as, and in which of the backbone's views each of its views finds its coordinates."""
    model = opening.plan["into"]
    if model is None:
        return Target(opening.backbone, {name: name for name in opened})
    [name] = opened  # models of the zoo that can be gated have one
    encoders = opening.backbone.views[name].encoders.values()
    width = next(encoder.dim for encoder in encoders if isinstance(encoder, TableEncoder))
    schema = opening.train.schema
    own = {key: value for key, value in opening.plan["choices"].items() if key in zoo.choices(model, schema.task)}
    template = pinned(zoo.template(model, schema), own | {WIDTH: width})
    made = Architecture.from_dict(fill_params(template, {})).live()
    return Target(made, dict.fromkeys(_embeddings(made), name))
