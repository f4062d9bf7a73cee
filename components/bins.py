"""The soft bins that a model has learned for its numeric fields, as figures for the report."""

from collections.abc import Iterator

import torch

from trainer.build import Model
from trainer.figures import Figure, heatmap
from trainer.modules.encoders import FieldsView
from trainer.modules.numbers import Bins
from trainer.schema import DatasetSchema

PLACES = 25
"""Values per field, over the range that holds all but the outermost hundredths of the training rows."""
LEAST = 0.05
"""A bin that no value weighs more than this is left out."""


def learned_bins(model: Model, schema: DatasetSchema) -> list[Figure]:
    """One heat map per field that the model encodes in soft bins: how much each value belongs to each bin."""
    names = schema.names("numeric")
    return [
        _figure(names[column], module, place)
        for module, columns in _modules(model)
        for place, column in enumerate(columns)
    ]


def _modules(model: Model) -> Iterator[tuple[Bins, list[int]]]:
    """Every module of soft bins with the columns of its fields."""
    for view in model.views.modules():
        if isinstance(view, FieldsView):
            for position, columns in view.numeric_columns().items():
                module = view.numbers[position]
                if isinstance(module, Bins):
                    yield module, columns


@torch.no_grad()
def _figure(name: str, module: Bins, place: int) -> Figure:
    low, high = float(module.low[place]), float(module.low[place] + module.span[place])
    values_P = torch.linspace(low, high, PLACES, dtype=module.low.dtype)
    x_PN = values_P[:, None].expand(-1, module.vectors.shape[0])
    weight_PH = module.weights(x_PN)[:, place]
    kept = (weight_PH.amax(dim=0) > LEAST).nonzero().flatten()
    middle_H = (weight_PH * values_P[:, None]).sum(dim=0) / weight_PH.sum(dim=0)
    order = kept[middle_H[kept].argsort()].tolist()
    note = f"How much a value (as encoded) belongs to each bin; {len(order)} of {weight_PH.shape[1]} bins are in use."
    labels = [f"{value:.3g}" for value in values_P.tolist()]
    rows = [weight_PH[:, bin_].tolist() for bin_ in order]
    bins = ("bin", [str(bin_ + 1) for bin_ in order])
    return heatmap(f"Learned bins of {name}", note, bins, ("value", labels), rows)
