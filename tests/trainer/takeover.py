"""Help for tests of derived models: small rows, supernets on them, and models that take over a supernet's weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.trainer.mixed import batch_of, mixed_schema
from trainer import zoo
from trainer.architecture import MLP, Architecture, Groups
from trainer.build import Model, build
from trainer.data import Batch, Table
from trainer.methods.base import Opening
from trainer.schema import DatasetSchema, Field
from trainer.settings import TrainSettings
from trainer.shapes import F, Shape, infer
from trainer.space import fill_params

FIELDS = ("a", "b", "c", "d", "e")
CATEGORIES = 4


def planted(rows: int, *, seed: int = 0) -> Table:
    """Five fields of four categories; a and b together decide the label, neither does alone, the others are noise."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, CATEGORIES, (rows, len(FIELDS)))
    chance = np.where(ids[:, 0] % 2 == ids[:, 1] % 2, 0.9, 0.1)
    fields = tuple(Field(name=name, kind="categorical", cardinality=CATEGORIES) for name in FIELDS)
    schema = DatasetSchema(
        task="ctr", label="y", fields=fields, rows={"train": rows}, label_mean=0.5, label_min=0, label_max=1
    )
    label = torch.from_numpy((random.random(rows) < chance).astype(np.float32))
    return Table(schema, torch.from_numpy(ids.astype(np.int32)), torch.empty(rows, 0), label, {})


def mixed_rows(rows: int) -> Table:
    """Three categorical and two numeric fields, labels without meaning."""
    schema = mixed_schema()
    schema = schema.model_copy(update={"fields": tuple(f for f in schema.fields if f.kind != "sequence")})
    batch = batch_of(schema, rows)
    return Table(schema, batch.categorical.int(), batch.numeric, batch.label, {})


def opening(backbone: str, plan: Mapping[str, Any], rows: Table, *, seed: int = 1, table_init: float = 0.5) -> Opening:
    """A model of the zoo with narrow embeddings and one narrow layer, opened by the defaults of `plan`."""
    narrow = {"embedding.dim": 0, "mlp.units": 0}
    description = Architecture.from_dict(fill_params(zoo.template(backbone, rows.schema), narrow)).live()
    training = TrainSettings(batch_size=100, learning_rate=0.02, table_init=table_init, table_l2=0.0, precision="fp32")
    return Opening(description, fill_params(plan, {}), training, rows, rows, seed)


def exact(batch: Batch) -> Batch:
    """For models in float64."""
    return replace(batch, numeric=batch.numeric.double(), label=batch.label.double())


def settled(model: Model, rows: Table) -> Model:
    """In float64, with running statistics as a training leaves them behind, in evaluation."""
    model.double().train()
    for batch in rows.batches(20):
        model(exact(batch))
    return model.eval()


def taken_over(source: Model, derived: Architecture, own: Mapping[str, Tensor], kept: Mapping[str, Any]) -> Model:
    """The derived model with the weights of the supernet's, in evaluation.

    `own`: what gated nodes have instead, by parameter; `kept`: gated node -> the places of its output that are left.
    """
    model = build(derived, label_mean=0.5, table_init=0.1, seed=77).double()
    weights = {**source.state_dict(), **_reading(source, derived, kept), **_narrowed(source, model), **own}
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval()


def _narrowed(source: Model, derived: Model) -> dict[str, Tensor]:
    """What views and groups keep of their weights and statistics, where fields that nobody reads are gone."""
    weights, found = source.state_dict(), {}
    for name, view in derived.architecture.views.items():
        old, new = source.views[f"view:{name}"], derived.views[f"view:{name}"]
        for position, columns in new.numeric_columns().items():  # type: ignore[operator]
            if f"views.view:{name}.numbers.{position}.weight" in derived.state_dict():
                place, whole = next(
                    (place, whole)
                    for place, whole in old.numeric_columns().items()  # type: ignore[operator]
                    if columns[0] in whole
                )
                taken = weights[f"views.view:{name}.numbers.{place}.weight"]
                found[f"views.view:{name}.numbers.{position}.weight"] = taken[[whole.index(one) for one in columns]]
                for key in weights:
                    start = f"views.view:{name}.numbers.{place}.missing"
                    if key.startswith(start):
                        found[key.replace(f"numbers.{place}.", f"numbers.{position}.")] = weights[key]
        fields = list(source.architecture.views[name].encoders)
        places = [fields.index(field) for field in view.encoders]
        for node in derived.architecture.nodes:
            if isinstance(node, Groups) and node.inputs == (name,):
                for statistic in ("running_mean", "running_var"):
                    key = f"nodes.groups:{node.id}.op.norm.{statistic}"
                    found[key] = weights[key].view(len(fields), -1)[places].flatten()
    return found


def _reading(source: Model, derived: Architecture, kept: Mapping[str, Any]) -> dict[str, Tensor]:
    """First layers and the head's maps, without the inputs that are gone."""
    before, after, weights = infer(source.architecture), infer(derived), source.state_dict()
    inputs = {node.id: node.inputs for node in source.architecture.nodes}
    found = {}
    for node in derived.nodes:
        if isinstance(node, MLP):
            name = f"nodes.mlp:{node.id}.op.0.weight"
            found[name] = weights[name][:, _places(inputs[node.id], before, kept)]
    old, new = source.architecture.head, derived.head
    if new.mode == "linear":
        found["head.maps.0.weight"] = weights["head.maps.0.weight"][:, _places(old.inputs, before, kept)]
        return found
    number = {ref: place for place, ref in enumerate(ref for ref in old.inputs if _mapped(before[ref]))}
    for place, ref in enumerate(ref for ref in new.inputs if _mapped(after[ref])):
        found[f"head.maps.{place}.weight"] = weights[f"head.maps.{number[ref]}.weight"][:, _places([ref], before, kept)]
    return found


def _places(refs: Sequence[str], shapes: Mapping[str, Shape], kept: Mapping[str, Any]) -> list[int]:
    places: list[int] = []
    start = 0
    for ref in refs:
        width = shapes[ref].width  # type: ignore[union-attr]
        places += [start + place for place in kept.get(ref, range(width))]
        start += width
    return places


def _mapped(shape: Shape) -> bool:
    return shape.width > 1 and not (isinstance(shape, F) and set(shape.widths) == {1})  # type: ignore[union-attr]
