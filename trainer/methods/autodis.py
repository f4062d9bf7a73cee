"""AutoDis: numeric fields in soft, learned bins (Guo et al., KDD 2021), beside the fixed encodings it is held against.

`bins` is an encoder and trained like any other part of a model; there is nothing to derive. With several encoders under
`encoders` a supernet holds them side by side for each numeric field of the backbone, weighs them as AutoDim weighs
widths, on validation rows, and each field keeps the likeliest.

Ours, where the sources leave it open: values are mapped from their 1st to 99th percentile to [0, 1]; the bins' network
has biases and starts as equal-width bins (`modules.numbers.Bins`); equal-width and logarithm buckets span the same
range as the bins; tree buckets are the thresholds of one decision tree per field on the training labels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from torch import Tensor, nn

from trainer.architecture import Architecture, BinsEncoder, BucketsEncoder, ScaleEncoder
from trainer.data import Batch, Table
from trainer.engines.supernet import Trace
from trainer.errors import UserError
from trainer.figures import Figure, curves
from trainer.methods.base import Data, MixtureSearch, Opening, backbone
from trainer.methods.settings import AutoDisSettings, MixtureSettings, NumberEncoder
from trainer.modules.mixture import Mixture
from trainer.modules.numbers import NumberSource, numbers
from trainer.modules.tables import Rows
from trainer.processes import gather_rows
from trainer.schema import DatasetSchema, Task
from trainer.space import choice

TREE_ROWS = 200_000
"""Training rows that a tree is grown on at most."""

Floats = npt.NDArray[np.float64]


def space(schema: DatasetSchema, settings: AutoDisSettings) -> Data:
    if not schema.names("numeric"):
        raise UserError("search.methods: autodis encodes numeric fields, and the dataset has none")
    return backbone(schema, settings)


def plan(settings: AutoDisSettings) -> Data:
    soft = "bins" in settings.encoders
    fixed = set(settings.encoders) - {"bins", "scale"}
    return {
        "method": "autodis",
        "encoders": settings.encoders,
        "bins": choice("autodis.bins", settings.bins) if soft else None,
        "temperature": choice("autodis.temperature", settings.temperature) if soft else None,
        "adaptive": choice("autodis.adaptive", settings.adaptive) if soft else None,
        "aggregation": choice("autodis.aggregation", settings.aggregation) if soft else None,
        "buckets": choice("autodis.buckets", settings.buckets) if fixed else None,
        **settings.model_dump(include=set(MixtureSettings.model_fields)),
    }


class AutoDis(MixtureSearch):
    """The backbone with a choice of encoders for every numeric field that it scales."""

    def __init__(self, opening: Opening) -> None:
        self.backbone = opening.backbone
        self.kinds: list[NumberEncoder] = opening.plan["encoders"]
        self.model = opening.build(opening.backbone)
        self.options = {
            name: {
                field: _encoders(self.kinds, encoder.dim, opening.plan, opening.train, field)
                for field, encoder in view.encoders.items()
                if isinstance(encoder, ScaleEncoder) and encoder.dim > 1
            }
            for name, view in opening.backbone.views.items()
        }
        self.options = {name: options for name, options in self.options.items() if options}
        if not self.options:
            raise UserError("autodis: the backbone encodes no numeric field, or the dataset has none")
        self.choices: dict[str, EncoderChoice] = {}
        if len(self.kinds) > 1:
            self.choices = {name: self._open(name, opening) for name in self.options}
        super().__init__(opening.plan, {name: opened.mixture for name, opened in self.choices.items()}, "bilevel")

    def derive(self) -> Architecture:
        data = self.backbone.to_dict()
        for name, fields in self.options.items():
            for place, (field, options) in enumerate(fields.items()):
                best = int(self.gates[name][place].argmax()) if name in self.gates else 0
                data["views"][name]["encoders"][field] = options[best].model_dump(mode="json")
        return Architecture.from_dict(data)

    def figures(self, trace: Trace) -> list[Figure]:
        drawn = []
        for name, opened in self.choices.items():
            weight_TMN = trace.values[name].softmax(dim=2)
            for place, field in enumerate(opened.fields):
                lines: dict[str, list[float]] = {
                    kind: weight_TMN[:, place, n].tolist() for n, kind in enumerate(self.kinds)
                }
                axis = ("epoch", trace.epochs)
                drawn.append(curves(f"Encoders of {field}", "Weights over training.", axis, "weight", lines))
        return drawn

    def _open(self, name: str, opening: Opening) -> "EncoderChoice":
        columns, fields = opening.train.schema.names("numeric"), self.backbone.fields
        sources = {
            field: [NumberSource(columns.index(field), fields[field].missing, one.dim, one) for one in options]
            for field, options in self.options[name].items()
        }
        view, names = self.model.views[f"view:{name}"], list(self.backbone.views[name].encoders)
        with opening.draws():
            opened = EncoderChoice(view, names, sources, opening.training.table_init)
        self.model.views[f"view:{name}"] = opened
        return opened


class EncoderChoice(nn.Module):
    """A view whose numeric fields are mixtures of several encoders: (B, M, D).

    `names`: all fields of the view; `sources`: what is to choose from for each numeric one, equally many for all.
    """

    def __init__(
        self, view: nn.Module, names: Sequence[str], sources: Mapping[str, Sequence[NumberSource]], init: float
    ) -> None:
        super().__init__()
        options = [source for of_field in sources.values() for source in of_field]
        self.view, self.fields = view, list(sources)
        self.encoders = nn.ModuleList(numbers([source], init) for source in options)
        self.columns = [source.column for source in options]
        self.mixture = Mixture(len(sources), len(options) // len(sources), options[0].width)
        self.register_buffer("places", torch.tensor([names.index(field) for field in sources]), persistent=False)
        self.places: Tensor

    def forward(self, batch: Batch, rows: Rows) -> Tensor:
        value = self.view(batch, rows)
        x_BMD = value if isinstance(value, Tensor) else torch.stack(value, 1)
        encoded = [
            encoder(batch.numeric[:, column : column + 1])
            for encoder, column in zip(self.encoders, self.columns, strict=True)
        ]
        candidate_BMND = torch.stack(encoded, dim=1).view(len(x_BMD), len(self.fields), -1, x_BMD.shape[2])
        return x_BMD.index_copy(1, self.places, self.mixture(candidate_BMND).to(x_BMD.dtype))


def _encoders(kinds: Sequence[NumberEncoder], dim: int, plan: Any, train: Table, field: str) -> list[Any]:
    """The encoder of each kind, from the field's known values."""
    column = train.numeric[:, train.schema.names("numeric").index(field)]
    values, label = gather_rows(column.contiguous()).double().numpy(), gather_rows(train.label).double().numpy()
    known = ~np.isnan(values)
    values, label = values[known], label[known]
    return [_encoder(kind, dim, plan, values, label, train.schema.task) for kind in kinds]


def _encoder(kind: NumberEncoder, dim: int, plan: Any, values: Floats, label: Floats, task: Task) -> Any:
    if kind == "scale":
        return ScaleEncoder(dim=dim)
    if kind == "bins":
        low, high = spread(values)
        return BinsEncoder(
            dim=dim,
            bins=plan["bins"],
            temperature=plan["temperature"],
            adaptive=plan["temperature"] / 2 if plan["adaptive"] else None,
            aggregation=plan["aggregation"],
            range=(low, high),
        )
    found = boundaries(kind, values, label, plan["buckets"], task)
    return BucketsEncoder(dim=dim, rule=kind, boundaries=tuple(found))


def spread(values: Floats) -> tuple[float, float]:
    """The 1st and 99th percentile in float32, in which they are used; a little more where they are one number."""
    low, high = np.quantile(values, [0.01, 0.99]).astype(np.float32).tolist() if len(values) else (0.0, 1.0)
    return (low, high) if high > low else (low, float(np.float32(low + max(1.0, abs(low) / 1024))))


def boundaries(kind: NumberEncoder, values: Floats, label: Floats, buckets: int, task: Task) -> list[float]:
    """At most `buckets` - 1 boundaries between buckets of known values, ascending; at least one."""
    low, high = spread(values)
    inner = np.arange(1, buckets) / buckets
    match kind:
        case "equal_width":
            found = low + (high - low) * inner
        case "logarithm":
            ends = _logarithm(np.array([low, high]))
            found = _exponential(ends[0] + (ends[1] - ends[0]) * inner)
        case "tree":
            found = _tree(values, label, buckets, task)
        case _:
            # An observed value each: between two of them there may be no row.
            found = np.quantile(values, inner, method="inverted_cdf") if len(values) else inner
    distinct = np.unique(found.astype(np.float32)).tolist()
    return distinct or [low]


def _logarithm(values: Floats) -> Floats:
    return np.asarray(np.sign(values) * np.log1p(np.abs(values)))


def _exponential(values: Floats) -> Floats:
    return np.asarray(np.sign(values) * np.expm1(np.abs(values)))


def _tree(values: Floats, label: Floats, buckets: int, task: Task) -> Floats:
    """Thresholds of a decision tree, whose leaves hold at least half of an even share of the rows."""
    if len(values) == 0:
        return values
    if len(values) > TREE_ROWS:
        drawn = np.random.default_rng(0).choice(len(values), TREE_ROWS, replace=False)
        values, label = values[drawn], label[drawn]
    grower = DecisionTreeClassifier if task == "ctr" else DecisionTreeRegressor
    least = max(1, len(values) // (2 * buckets))
    tree = grower(max_leaf_nodes=max(buckets, 2), min_samples_leaf=least, random_state=0).fit(values[:, None], label)
    return np.asarray(tree.tree_.threshold[tree.tree_.children_left >= 0])
