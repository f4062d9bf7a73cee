"""AutoFIS: which pairs (and triples) of fields interact, by gates that end in exact zeros (Liu et al., KDD 2020).

Every inner product of the backbone is normalised (batch normalisation without scale and shift), so that the gate before
it alone says how much it matters. Gates are updated by GRDA from the same gradient as the weights; one that ends at
exactly 0 is closed, a negative one stays. Retrained from scratch, gates are ordinary weights.

Ours: gates wait (`warm_up`). Large tables learn slowly, and a penalty from the first step on closes their pairs, on
MovieLens-1M user with item, before they are worth anything.

Triples have tables of their own. Gates start at 0.6 without the published code's noise of 0.001, which nothing needs.
GRDA's c is calibrated: `threshold` says where the penalty ends, in units of that start.

Two other ways to choose: `top` trains gates by Adam and keeps the greatest (Huawei's Vega); `random` keeps as many
drawn blindly, which is what any selection has to beat.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer import figures
from trainer.architecture import FM, Architecture, Dot, Node, Pairs, Triples
from trainer.engines.gradient import Level
from trainer.engines.supernet import Schedule, Trace
from trainer.figures import Figure
from trainer.grda import GRDA, calibrated
from trainer.methods.base import ATTENTION, Data, Opening, backbone, closed, copied_views, draw, without
from trainer.methods.settings import AutoFISSettings
from trainer.modules.products import GATE, Products
from trainer.schema import DatasetSchema
from trainer.shapes import collected, infer, kept
from trainer.space import choice


def space(schema: DatasetSchema, settings: AutoFISSettings) -> Data:
    return closed(backbone(schema, settings), ATTENTION)


def plan(settings: AutoFISSettings) -> Data:
    return {
        "method": "autofis",
        "select": settings.select,
        "triples": choice("autofis.triples", settings.triples),
        "threshold": choice("autofis.threshold", settings.threshold) if settings.select == "grda" else None,
        "mu": choice("autofis.mu", settings.mu) if settings.select == "grda" else None,
        "gate_learning_rate": settings.gate_learning_rate,
        "keep": choice("autofis.keep", settings.keep) if settings.select != "grda" else None,
        "draw": draw("autofis") if settings.select == "random" else None,
        "warm_up": settings.warm_up,
        "epochs": settings.epochs,
    }


class AutoFIS:
    """The backbone with all products gated."""

    def __init__(self, opening: Opening) -> None:
        self.plan, self.training, self.seed = opening.plan, opening.training, opening.seed
        self.open = gated(opening.backbone, triples=opening.plan["triples"])
        self.model = opening.build(self.open)
        modules = {node.id: self.model.nodes[f"{node.op}:{node.id}"].op for node in _products(self.open)}
        self.weights = {name: _gate(module) for name, module in modules.items()}
        # What is drawn blindly needs no search.
        self.gates = {} if opening.plan["select"] == "random" else self.weights
        self.level: Level = "single"
        self.schedule = Schedule(epochs=self.plan["epochs"], warm_up=self.plan["warm_up"])

    def optimizer(self, steps: int) -> torch.optim.Optimizer:
        gates = list(self.gates.values())
        if self.plan["select"] != "grda":
            return torch.optim.Adam(gates, lr=self.training.learning_rate)
        rate, mu = self.plan["gate_learning_rate"], self.plan["mu"]
        c = calibrated(self.plan["threshold"] * GATE, rate, mu, steps)
        return GRDA(gates, lr=rate, c=c, mu=mu)

    def relax(self, progress: float, *, frozen: bool, deciding: bool) -> None:
        """Nothing: gates are what they are."""

    def derive(self) -> Architecture:
        data, shut = self.open.to_dict(), []
        for node in data["nodes"]:
            if node["id"] in self.weights:
                names = self._sets(node["id"])
                node["keep"] = [names[place] for place in self._kept(node["id"])]
                shut += [] if node["keep"] else [node["id"]]
                node["keep"] = node["keep"] or "all"
        return without(data, shut)

    def figures(self, trace: Trace) -> list[Figure]:
        drawn = []
        for node in _products(self.open) if self.gates else ():
            names, values = self._sets(node.id), trace.values[node.id]
            last = values[-1]
            note = f"{int((last == 0).sum())} of {len(names)} gates of {node.id} are closed (exactly 0)."
            if isinstance(node, Pairs):
                drawn.append(_matrix(f"Gates of field pairs ({node.id})", note, names, last))
            else:
                order = last.abs().argsort(descending=True).tolist()
                rows = [[*names[place], float(last[place])] for place in order]
                heads = ["field", "field", "field", "gate"]
                drawn.append(figures.table(f"Gates of field triples ({node.id})", note, heads, rows))
            series = {" × ".join(one): values[:, place].tolist() for place, one in enumerate(names)}
            axis = ("epoch", trace.epochs)
            drawn.append(figures.curves(f"Gates over training ({node.id})", note, axis, "gate", series))
        return drawn

    def _sets(self, node_id: str) -> list[tuple[str, ...]]:
        """The names of the fields behind each gate."""
        return sets_of(self.open, node_id)

    def _kept(self, node_id: str) -> list[int]:
        gate_S = self.weights[node_id].detach()
        if self.plan["select"] == "grda":
            return gate_S.nonzero().flatten().tolist()
        number = max(1, round(self.plan["keep"] * gate_S.numel()))
        if self.plan["select"] == "top":
            return sorted(gate_S.abs().topk(number).indices.tolist())
        rng = np.random.default_rng([self.seed, self.plan["draw"], list(self.weights).index(node_id)])
        return sorted(rng.choice(gate_S.numel(), number, replace=False).tolist())


def gated(architecture: Architecture, *, triples: bool) -> Architecture:
    """`architecture` with a gate before every inner product; with `triples` beside each product node one of triples."""
    data = architecture.to_dict()
    nodes: list[Data] = []
    added: dict[str, str] = {}
    for node in architecture.nodes:
        form = node.model_dump(mode="json", by_alias=True)
        if isinstance(node, FM | Dot | Pairs):
            form = _gated(node, "pairs", node.inputs)
        nodes.append(form)
        if triples and isinstance(node, FM | Dot | Pairs):
            added[node.id] = f"{node.id}-triples"
            views = copied_views(data["views"], node.inputs, "triples", of="autofis.triples: triples")
            nodes.append(_gated(node, "triples", views, added[node.id]))
    for reader in [*nodes, data["head"]]:
        reader["in"] = [both for ref in reader["in"] for both in (ref, added.get(ref)) if both]
    return Architecture.from_dict({**data, "nodes": nodes})


def sets_of(architecture: Architecture, node_id: str) -> list[tuple[str, ...]]:
    """The field names of each product of a node of pairs or triples, in the order of its weights."""
    node = next(node for node in architecture.nodes if node.id == node_id)
    assert isinstance(node, Pairs | Triples)
    names = collected(node, infer(architecture)).names
    return [tuple(names[place] for place in one) for one in kept(node, names)]


def _gated(node: FM | Dot | Pairs, op: str, inputs: Sequence[str], node_id: str | None = None) -> Data:
    each = isinstance(node, Dot) or (isinstance(node, Pairs) and node.out == "each")
    return {
        "id": node_id or node.id,
        "op": op,
        "in": list(inputs),
        "align": node.align,
        "dim": node.dim,
        "keep": "all",
        "weight": "scalar",
        "norm": "batch",
        "out": "each" if each else "sum",
    }


def _products(architecture: Architecture) -> list[Node]:
    return [node for node in architecture.nodes if isinstance(node, Pairs | Triples)]


def _gate(module: Any) -> nn.Parameter:
    assert isinstance(module, Products)
    assert module.weight is not None
    return module.weight


def _matrix(title: str, note: str, pairs: Sequence[tuple[str, ...]], gate_S: Tensor) -> Figure:
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    values = dict(zip(pairs, gate_S.tolist(), strict=True))
    cells = {(a, b): values.get((a, b), values.get((b, a))) for a, b in product(names, names)}
    rows = [[cells[a, b] for b in names] for a in names]
    return figures.heatmap(title, note, ("field", names), ("field", names), rows)
