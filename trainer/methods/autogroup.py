"""AutoGroup: which fields interact together, as learned groups per order of interaction (Liu et al., SIGIR 2020).

For each order p the backbone's products give way to n_p groups over tables of their own (`architecture.Groups`).
Whether a field is in a group is a gate of its own: where the group is used it is in if its logit is above 0, and where
gates learn it is drawn by a binary Gumbel-softmax, hard forward and soft backward. Both steps see the same batch: the
weights with fixed memberships first, then the memberships alone.

In the backbone, layers that read the embedding beside its product read the groups instead; without such layers the head
maps the groups' interactions.

Ours, where the sources leave it open: temperature 1 and a rate of 0.02 for memberships (Vega's 0.01 needs rates of 100
and more, since nearly all its gradients are 0); the subtracted powers follow the formula, not Vega's code; and the
derived groups are trained from scratch, where the published network is used as it stands after the search.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trainer.architecture import FM, Architecture, Dot, Pairs
from trainer.engines.gradient import Level
from trainer.engines.supernet import Schedule, Trace
from trainer.errors import UserError
from trainer.figures import Figure, curves, heatmap
from trainer.methods.base import ATTENTION, WIDTH, Data, Opening, backbone, closed, copied_views, without
from trainer.methods.settings import AutoGroupSettings
from trainer.modules import products
from trainer.modules.products import group_interactions
from trainer.schema import DatasetSchema
from trainer.shapes import collected, infer
from trainer.space import choice

ORDERS = ("first", "second", "third")


def space(schema: DatasetSchema, settings: AutoGroupSettings) -> Data:
    return closed(backbone(schema, settings), ATTENTION, WIDTH)


def plan(settings: AutoGroupSettings) -> Data:
    return {
        "method": "autogroup",
        **{name: choice(f"autogroup.{name}", getattr(settings, name)) for name in ORDERS},
        "dims": choice("autogroup.dims", settings.dims),
        "temperature": settings.temperature,
        "gate_learning_rate": settings.gate_learning_rate,
        "epochs": settings.epochs,
    }


class AutoGroup:
    """The backbone with open groups in place of its products."""

    def __init__(self, opening: Opening) -> None:
        self.plan = opening.plan
        numbers = [opening.plan[name] for name in ORDERS]
        if not any(numbers):
            raise UserError("autogroup: first, second and third are all 0: give one of them a group")
        self.open = with_groups(opening.backbone, numbers, opening.plan["dims"])
        self.model = opening.build(self.open)
        with opening.draws():
            self.groups = {node.id: self._opened(node.id) for node in self.open.nodes if node.op == "groups"}
        self.gates = {name: groups.logits for name, groups in self.groups.items()}
        self.level: Level = "alternating"
        self.schedule = Schedule(epochs=opening.plan["epochs"])

    def optimizer(self, steps: int) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.gates.values(), lr=self.plan["gate_learning_rate"])

    def relax(self, progress: float, *, frozen: bool, deciding: bool) -> None:
        for groups in self.groups.values():
            groups.deciding = deciding

    def derive(self) -> Architecture:
        data, empty = self.open.to_dict(), []
        for node in data["nodes"]:
            if node["id"] in self.groups:
                sets = self._sets(node["id"], least=min(node["order"], 2))
                empty += [] if sets else [node["id"]]
                node["sets"] = sets or node["sets"]
        return without(data, empty)

    def figures(self, trace: Trace) -> list[Figure]:
        drawn = []
        for name, groups in self.groups.items():
            chance_GM = groups.logits.detach().sigmoid()
            rows = [str(number) for number in range(1, len(chance_GM) + 1)]
            note = "How likely each field is in each group; above one half it is."
            fields = ("field", self._names(name))
            drawn.append(heatmap(f"Memberships of {name}", note, ("group", rows), fields, chance_GM.tolist()))
            share_TM = (trace.values[name] > 0).float().mean(dim=1)
            lines = {field: share_TM[:, place].tolist() for place, field in enumerate(self._names(name))}
            axis = ("epoch", trace.epochs)
            title = f"Groups of {name} that hold each field"
            drawn.append(curves(title, "Share of groups over training.", axis, "share of groups", lines))
        return drawn

    def _opened(self, node_id: str) -> "OpenGroups":
        module = self.model.nodes[f"groups:{node_id}"]
        assert isinstance(module.op, products.Groups)
        module.op = OpenGroups(module.op, self.plan["temperature"])
        return module.op

    def _names(self, node_id: str) -> tuple[str, ...]:
        node = next(node for node in self.open.nodes if node.id == node_id)
        return collected(node, infer(self.open)).names

    def _sets(self, node_id: str, least: int) -> list[list[str]]:
        """The groups as lists of fields; a group with fewer than `least` is always 0."""
        names = self._names(node_id)
        inside = self.groups[node_id].logits.detach() > 0
        sets = [[name for name, held in zip(names, row, strict=True) if held] for row in inside.tolist()]
        return [one for one in sets if len(one) >= least]


class OpenGroups(nn.Module):
    """`products.Groups` with a gate for every group and field."""

    def __init__(self, groups: products.Groups, temperature: float) -> None:
        super().__init__()
        self.norm, self.order, self.temperature = groups.norm, groups.order, temperature
        self.weight = groups.weight
        self.logits = nn.Parameter(torch.empty(groups.shape).uniform_(-1e-3, 1e-3))
        self.deciding = False

    def forward(self, x_BMD: Tensor) -> Tensor:
        x_BMD = x_BMD if self.norm is None else self.norm(x_BMD)
        return group_interactions(x_BMD, self.weight.view_as(self.logits) * self.members(), self.order)

    def members(self) -> Tensor:
        """(G, M), 1 for a field in a group and 0 for one outside."""
        if not self.deciding:
            return (self.logits > 0).to(self.logits.dtype)
        # The difference of two Gumbel noises is logistic.
        uniform = torch.rand_like(self.logits).clamp(1e-6, 1 - 1e-6)
        noisy = self.logits + uniform.logit()
        soft = (noisy / self.temperature).sigmoid()
        return (noisy > 0).to(soft.dtype) + soft - soft.detach()


def with_groups(architecture: Architecture, numbers: Sequence[int], dim: int) -> Architecture:
    """`architecture` with full groups in place of its products, `numbers[p - 1]` of order p, `dim` wide."""
    data = architecture.to_dict()
    found = [node for node in architecture.nodes if isinstance(node, FM | Dot | Pairs)]
    nodes: list[Data] = []
    instead: dict[str, list[str]] = {}
    for node in found:
        names = list(collected(node, infer(architecture)).names)
        added = []
        for order, number in enumerate(numbers, start=1):
            if number:
                views = copied_views(data["views"], node.inputs, f"order{order}", of="autogroup: groups", dim=dim)
                added.append(_groups(f"{node.id}-order{order}", views, order, [names] * number))
        nodes += added
        instead |= {ref: [one["id"] for one in added] for ref in (node.id, *node.inputs)}
    gone = {node.id for node in found}
    others = [node for node in data["nodes"] if node["id"] not in gone]
    deep = any(ref in instead for node in others for ref in node["in"])
    for node in others:
        node["in"] = _replaced(node["in"], instead)
    head = data["head"]
    head["in"] = [ref for ref in head["in"] if ref not in gone] if deep else _replaced(head["in"], instead)
    return Architecture.from_dict({**data, "nodes": nodes + others}).live()


def _groups(node_id: str, inputs: list[str], order: int, sets: list[list[str]]) -> Data:
    return {"id": node_id, "op": "groups", "in": inputs, "order": order, "sets": sets, "norm": "batch"}


def _replaced(refs: Sequence[str], instead: dict[str, list[str]]) -> list[str]:
    return list(dict.fromkeys(new for ref in refs for new in instead.get(ref, [ref])))
