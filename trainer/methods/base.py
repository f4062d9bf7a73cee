"""What the methods that open a backbone share."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer import zoo
from trainer.architecture import Architecture, TableEncoder, View
from trainer.build import Model, build
from trainer.data import Batch, Table
from trainer.engines.gradient import Level
from trainer.engines.supernet import Schedule
from trainer.errors import UserError
from trainer.index import packed
from trainer.methods.settings import BackboneSettings
from trainer.modules.mixture import Mixture
from trainer.modules.tables import Rows
from trainer.schema import DatasetSchema
from trainer.settings import TrainSettings
from trainer.space import choice, choices, pinned

Data = dict[str, Any]


@dataclass(frozen=True)
class Opening:
    """What a supernet is made of: a backbone, the settings of one search, and the rows."""

    backbone: Architecture
    plan: Mapping[str, Any]
    training: TrainSettings
    train: Table
    valid: Table
    seed: int

    def build(self, architecture: Architecture) -> Model:
        """The supernet's model, its open parts not yet replaced."""
        mean = self.train.schema.label_mean
        return build(architecture, label_mean=mean, table_init=self.training.table_init, seed=self.seed)

    @contextmanager
    def draws(self) -> Iterator[None]:
        """Within it parts are drawn from the seed; the caller's random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            yield


def backbone(schema: DatasetSchema, settings: BackboneSettings) -> Data:
    """The space of a method that opens a hand-made model: that model's, as far as it is not pinned."""
    template: Data = pinned(zoo.template(settings.backbone, schema), settings.choices)
    return template


def draw(method: str) -> Data:
    """Which of a thousand blind selections a trial takes."""
    return choice(f"{method}.draw", range(1000))


ATTENTION = "attention.units"
"""The choice by which AFM calls its attention, which gated products do without."""


def closed(template: Data, *names: str) -> Data:
    """`template` without the choices that no longer matter once a method has opened it: they take their default."""
    found = choices(template)
    made = {name: found[name].labels[found[name].default] for name in names if name in found}
    filled: Data = pinned(template, made)
    return filled


def without(data: Data, gone: Collection[str]) -> Architecture:
    """The architecture described without these nodes, views or `view.field`s, and without nodes left with no input.

    Raises UserError if nothing is left.
    """
    gone = set(gone)
    views = {name: _without_fields(name, view, gone) for name, view in data["views"].items()}
    gone |= {name for name, view in views.items() if not view["encoders"]}
    nodes = []
    for node in data["nodes"]:
        inputs = [ref for ref in node["in"] if ref not in gone]
        if node["id"] in gone or not inputs:
            gone.add(node["id"])
        else:
            nodes.append({**node, "in": inputs})
    head = [ref for ref in data["head"]["in"] if ref not in gone]
    if not head:
        raise UserError("the search closed every part of the model: nothing is left to derive")
    kept = {name: view for name, view in views.items() if name not in gone}
    return Architecture.from_dict({**data, "views": kept, "nodes": nodes, "head": {**data["head"], "in": head}}).live()


def _without_fields(name: str, view: Data, gone: Collection[str]) -> Data:
    encoders = {field: encoder for field, encoder in view["encoders"].items() if f"{name}.{field}" not in gone}
    return {**view, "encoders": encoders}


def copied_views(views: Data, inputs: Sequence[str], suffix: str, *, of: str, dim: int | None = None) -> list[str]:
    """References to copies of the views that `inputs` refer to, with tables of their own and, if set, `dim` wide.

    The copies are added to `views`. Raises UserError if an input is no view; `of` says what needs the copies.
    """
    refs = []
    for ref in inputs:
        view, dot, field = ref.partition(".")
        if view not in views:
            raise UserError(f"{of} have tables of their own, but '{ref}' is no view")
        copy = views[view]
        if dim is not None:
            copy = {"encoders": {name: {**encoder, "dim": dim} for name, encoder in copy["encoders"].items()}}
        views[f"{view}-{suffix}"] = copy
        refs.append(f"{view}-{suffix}{dot}{field}")
    return refs


class MixtureSearch:
    """What supernets of mixtures share: gates that are annealed from equal weights to a choice, and updated by Adam."""

    def __init__(self, plan: Mapping[str, Any], mixtures: Mapping[str, Mixture], level: Level) -> None:
        self.plan, self._mixtures = plan, list(mixtures.values())
        self.gates = {name: mixture.logits for name, mixture in mixtures.items()}
        timing = {name: plan[name] for name in ("epochs", "every", "warm_up", "table_l2")}
        self.level, self.schedule = level, Schedule(**timing)

    def optimizer(self, steps: int) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.gates.values(), lr=self.plan["gate_learning_rate"])

    def relax(self, progress: float, *, frozen: bool, deciding: bool) -> None:
        for mixture in self._mixtures:
            mixture.anneal(progress, frozen=frozen)


WIDTH = "embedding.dim"
"""The choice by which the models of the zoo call the width of their embedding."""


def check_sizable(method: str, schema: DatasetSchema) -> None:
    """Raises UserError if there is no categorical field."""
    _check_sizable(method, schema.names("categorical"))


def _check_sizable(method: str, fields: Collection[str]) -> None:
    if not fields:
        raise UserError(f"search.methods: {method} sizes the tables of categorical fields, and the dataset has none")


def with_dims(method: str, template: Data, dims: Mapping[str, Any], width: int, align: Any = "lift") -> Data:
    """A template whose embeddings are `width` wide, each categorical field's table being `dims[field]` and aligned.

    `dims` and `align` may hold choices. First-order weights stay as they are. Raises UserError if there is no
    categorical field.
    """
    _check_sizable(method, dims)
    template = pinned(template, {WIDTH: width})
    views = {name: _with_dims(view, dims, width, align) for name, view in template["views"].items()}
    return {**template, "views": views}


def _with_dims(view: Data, dims: Mapping[str, Any], width: int, align: Any) -> Data:
    encoders = dict(view["encoders"])
    tables = [name for name, encoder in encoders.items() if encoder["kind"] == "table" and encoder["dim"] == width]
    if not set(tables) & dims.keys():
        return view
    encoders |= {name: {"kind": "table", "dim": dims[name]} for name in tables}
    return {**view, "encoders": encoders, "align": align, "width": width}


def tables_of_width(architecture: Architecture, width: int) -> dict[str, list[str]]:
    """The fields of each view that have a table so wide; views without any are left out."""

    def fields(view: View) -> list[str]:
        tables = [(name, encoder) for name, encoder in view.encoders.items() if isinstance(encoder, TableEncoder)]
        return [name for name, encoder in tables if encoder.dim == width]

    found = {name: fields(view) for name, view in architecture.views.items()}
    return {name: opened for name, opened in found.items() if opened}


class OpenedView(nn.Module):
    """A view some of whose fields a method makes something else of: (B, M, D)."""

    def __init__(self, view: nn.Module, fields: Sequence[str], places: Sequence[int]) -> None:
        """`fields`: those that are opened, and their places in the view."""
        super().__init__()
        self.view, self.fields = view, list(fields)
        self.register_buffer("places", torch.tensor(places), persistent=False)
        self.places: Tensor

    def forward(self, batch: Batch, rows: Rows) -> Tensor:
        x_BMD = self._value(batch, rows)
        made_BFD = self.made(x_BMD[:, self.places], batch)
        return x_BMD.index_copy(1, self.places, made_BFD.to(x_BMD.dtype))

    def made(self, x_BFD: Tensor, batch: Batch) -> Tensor:
        """What the F opened fields become."""
        raise NotImplementedError

    def plain(self, batch: Batch, rows: Rows) -> Tensor:
        """The opened fields as they are, (B, F, D)."""
        return self._value(batch, rows)[:, self.places]

    def _value(self, batch: Batch, rows: Rows) -> Tensor:
        value: Any = self.view(batch, rows)
        return value if isinstance(value, Tensor) else torch.stack(value, 1)


CATEGORIES = 16_384
"""Looked up at once where a method looks at all of them."""


def every_category(schema: DatasetSchema, fields: Iterable[str]) -> Iterator[Batch]:
    """Batches that have the categories of each of these fields in their order, and the last one over and over then."""
    cardinality_C = torch.tensor([schema.field(name).cardinality for name in schema.names("categorical")])
    most = max(schema.field(field).cardinality for field in fields)
    for first in range(0, most, CATEGORIES):
        id_B = torch.arange(first, min(first + CATEGORIES, most))
        yield these_categories(schema, torch.minimum(id_B[:, None], cardinality_C - 1))


def these_categories(schema: DatasetSchema, id_BC: Tensor) -> Batch:
    """A batch of categories, and of nothing else."""
    none_B, sequences = id_BC.new_zeros(len(id_BC)), schema.names("sequence")
    return Batch(
        categorical=id_BC,
        numeric=torch.zeros(len(id_BC), len(schema.names("numeric"))),
        label=torch.zeros(len(id_BC)),
        sequences=dict.fromkeys(sequences, none_B[:, None]),
        lengths=dict.fromkeys(sequences, none_B),
        of=len(id_BC),
    )


def sized_rows(number_R: bytes, widths: Sequence[int], align: str) -> Data:
    """The rows encoder of categories with these sizes (places among `widths`); sizes that none has are left out."""
    used = sorted(set(number_R))
    places = bytes(used.index(number) if number in used else 0 for number in range(256))
    blocks, first = [], 0
    for number in used:
        rows = number_R.count(number)
        blocks.append({"first": first, "rows": rows, "dim": widths[number]})
        first += rows
    index = packed(number_R.translate(places)) if len(used) > 1 else None
    return {"kind": "rows", "dim": widths[-1], "blocks": blocks, "align": align, "index": index}


def fullest(size_T: Tensor, budget: float) -> int:
    """The place of the greatest size within the budget, else of the least of all."""
    return int(torch.where(size_T <= budget, size_T, -size_T).argmax())


def within_budget(weights: Sequence[Tensor], sizes: Sequence[Tensor], budget: float) -> list[int]:
    """For each of M things one of its candidates: the one of the greatest log weight, as far as all fit `budget`.

    Sizes are whole numbers. Where the likeliest do not fit together, parameters get the least price at which the best
    candidates, weight minus price times size, do; at the worst that is the smallest candidate everywhere. What the
    budget then still holds goes to likelier candidates that fit, the greatest gain first.
    """
    weights = [weight_N.double() for weight_N in weights]

    def chosen(price: float) -> list[int]:
        return [int((weight_N - price * size_N).argmax()) for weight_N, size_N in zip(weights, sizes, strict=True)]

    def spare(best: list[int]) -> float:
        return budget - sum(float(size_N[place]) for size_N, place in zip(sizes, best, strict=True))

    best = chosen(0.0)
    if spare(best) >= 0:
        return best
    low, high = 0.0, 1.0 + max(float(weight_N.max() - weight_N.min()) for weight_N in weights)  # sizes differ by 1
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if spare(chosen(middle)) >= 0 else (middle, high)
    best = chosen(high)
    while True:
        gains = [
            (weight_N - weight_N[place]).masked_fill(size_N - size_N[place] > spare(best), 0.0)
            for weight_N, size_N, place in zip(weights, sizes, best, strict=True)
        ]
        thing = max(range(len(gains)), key=lambda number: float(gains[number].max()))
        if gains[thing].max() <= 0:
            return best
        best[thing] = int(gains[thing].argmax())
