"""ESAPN: a size for every category, which grows while rows pass once in time order (Liu et al., SIGIR 2020).

Every category of the opened fields has one of some sizes, at first the smallest; there is a table for each size, and a
row enters a chain of affine maps at its size (`align: chain` of a rows encoder). What grows gets W e + b in the next
table, so that nothing changes until it is learned from. One policy for each field says how likely a category grows, by
how often it has been met and by its size; the engine (`engines.streamed`) draws, scores and learns. What is derived
has the sizes at the end of the stream, in an index, and a map for every step between sizes that are there.

Ours, where the published procedure cannot work or is open: docs/methods/esapn.md.

Two rules that learn nothing pass the same stream within a budget: `fixed`, one size for all, and `frequency`, sizes by
thresholds of the count so far that double from one to the next.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trainer import figures
from trainer.architecture import Architecture
from trainer.engines.streamed import BAND_NAMES, BANDS, Growth, bucket
from trainer.engines.supernet import Schedule, Trace
from trainer.errors import UserError
from trainer.figures import Cell, Figure
from trainer.methods.base import Data, Opening, backbone, sized_rows, tables_of_width, with_dims
from trainer.methods.settings import ESAPNSettings
from trainer.modules.blocks import Chain
from trainer.modules.encoders import FieldsView
from trainer.modules.interactions import BatchNorm, dense
from trainer.schema import DatasetSchema
from trainer.space import choice

EMBEDDING, HIDDEN = 32, 512
"""Width of a bucket's vector and of the policies' one layer, as published."""
NEVER = -1e9
"""Logit of growing beyond the greatest size."""


def space(schema: DatasetSchema, settings: ESAPNSettings) -> Data:
    names = schema.names("categorical")
    for field in settings.fields:
        if field not in names:
            known = ", ".join(names) or "none"
            raise UserError(f"search.esapn.fields: there is no categorical field '{field}'; there are {known}")
    return with_dims("esapn", backbone(schema, settings), dict.fromkeys(names, settings.sizes[-1]), settings.sizes[-1])


def plan(settings: ESAPNSettings) -> Data:
    learned = settings.select == "policy"
    return {
        "method": "esapn",
        "fields": settings.fields,
        "sizes": settings.sizes,
        "select": settings.select,
        "first_chance": choice("esapn.first_chance", settings.first_chance) if learned else None,
        "budget": None if learned else choice("esapn.budget", settings.budget),
        **settings.model_dump(include={"last", "policy_learning_rate", "batch_size", "learning_rate", "table_l2"}),
    }


class Policy(nn.Module):
    """P(grow | frequency, size) for every state, the frequency in logarithmic buckets (`streamed.bucket`).

    A bucket's vector, normalised, beside the one-hot size; Linear, normalisation, tanh, Linear to keep and grow. States
    are few, so all of them pass at once and are what is normalised over: acting and learning see one function.
    """

    def __init__(self, rows: int, sizes: int, first_chance: float) -> None:
        """`rows`: of the stream. Fresh, the chance is the same in all states."""
        super().__init__()
        self.buckets, self.sizes = int(bucket(torch.tensor([rows]))) + 1, sizes
        self.frequency = nn.Parameter(torch.randn(self.buckets, EMBEDDING))
        self.hidden = dense(EMBEDDING + sizes, HIDDEN)
        self.norms = nn.ModuleList(BatchNorm(width, track_running_stats=False) for width in (EMBEDDING, HIDDEN))
        self.out = nn.Linear(HIDDEN, 2)
        nn.init.zeros_(self.out.weight)
        self.out.bias.data = torch.tensor([0.0, math.log(first_chance / (1 - first_chance))])

    def logs(self) -> Tensor:
        frequency_FD, size_SS = self.norms[0](self.frequency), torch.eye(self.sizes)
        state_FSD = torch.cat(
            [
                frequency_FD[:, None].expand(-1, self.sizes, -1),
                size_SS.expand(self.buckets, -1, -1),
            ],
            dim=2,
        )
        hidden = self.norms[1](self.hidden(state_FSD.flatten(0, 1))).tanh()
        logits = self.out(hidden).view(self.buckets, self.sizes, 2)
        barred = torch.zeros(self.sizes, 2)
        barred[-1, 1] = NEVER
        log_FSA: Tensor = (logits + barred).log_softmax(dim=2)
        return log_FSA.flatten(0, 1)

    def states(self, count_N: Tensor, size_N: Tensor) -> Tensor:
        return bucket(count_N) * self.sizes + size_N


@dataclass(frozen=True)
class Thresholds:
    """A category of size k grows as soon as it has been met `least` * 2^k times; never without `least`."""

    least: int | None
    sizes: int

    def logs(self) -> Tensor:
        return torch.tensor([[1.0, 0.0], [0.0, 1.0]]).log()

    def states(self, count_N: Tensor, size_N: Tensor) -> Tensor:
        if self.least is None:
            return torch.zeros_like(size_N)
        return ((count_N >= self.least << size_N) & (size_N < self.sizes - 1)).long()

    def reached(self, count_R: Tensor) -> Tensor:
        """The greatest size that categories can have grown to after so many rows."""
        assert self.least is not None
        thresholds = torch.tensor([self.least << size for size in range(self.sizes - 1)])
        return torch.bucketize(count_R, thresholds, right=True)


class ESAPN:
    """The backbone with a table of every size for each opened field, of which every category has a row in one now."""

    def __init__(self, opening: Opening) -> None:
        self.plan, self.backbone, self.train = opening.plan, opening.backbone, opening.train
        self.widths: list[int] = opening.plan["sizes"]
        self.views = _views(opening.backbone, opening.plan)
        self.rows = {field: opening.backbone.fields[field].cardinality for field in self.views}
        self.model = opening.build(_opened(opening.backbone, self.views, self.widths))
        self.tables = {
            (s.view, s.field, s.block.number): s.name for s in self.model.tables.specs if s.block and s.field
        }
        self.full = self.widths[-1] * sum(self.rows[field] * len(views) for field, views in self.views.items())
        start, rule = self._rule()
        self.model.tables.sizes = {field: torch.full((rows,), start) for field, rows in self.rows.items()}
        with opening.draws():
            policies = {
                field: Policy(opening.train.rows, len(self.widths), opening.plan["first_chance"])
                for field in (self.views if rule is None else ())
            }
        self.growth: dict[str, Growth] = dict(policies) if rule is None else dict.fromkeys(self.views, rule)
        self.policy = {
            f"{field}.{name}": value for field, one in policies.items() for name, value in one.named_parameters()
        }
        self.rate, self.last = opening.plan["policy_learning_rate"], opening.plan["last"]
        own = {name: opening.plan[name] for name in ("batch_size", "learning_rate", "table_l2")}
        self.schedule = Schedule(epochs=1, in_order=True, **own)

    def sizes(self, field: str) -> Tensor:
        return self.model.tables.sizes[field]

    @torch.no_grad()
    def enlarge(self, field: str, id_N: Tensor) -> None:
        size_N = self.sizes(field)[id_N]
        for size in sorted(set(size_N.tolist())):
            id_K = id_N[size_N == size]
            for view in self.views[field]:
                small, large = (self.tables[view, field, number] for number in (size, size + 1))
                row_KD = self.model.tables.whole(small)[id_K]
                self.model.tables.whole(large)[id_K] = self.chain(view, field).maps[size](row_KD)
        self.sizes(field)[id_N] += 1

    def chain(self, view: str, field: str) -> Chain:
        """The maps from each size to the next."""
        module = self.model.views[f"view:{view}"]
        assert isinstance(module, FieldsView)
        number = next(
            number for number, [source, *_] in enumerate(module.runs) if getattr(source, "field", "") == field
        )
        chain = module.blocks[str(number)]
        assert isinstance(chain, Chain)
        return chain

    def kept(self, sizes: Mapping[str, Tensor]) -> dict[str, int]:
        """Embedding parameters of each field when its categories have these sizes; what is allocated is more."""
        widths = torch.tensor(self.widths)
        return {field: len(self.views[field]) * int(widths[size_R.cpu()].sum()) for field, size_R in sizes.items()}

    def derive(self) -> Architecture:
        data = self.backbone.to_dict()
        for field, views in self.views.items():
            encoder = sized_rows(bytes(self.sizes(field).tolist()), self.widths, "chain")
            for view in views:
                data["views"][view]["encoders"][field] = encoder
        return Architecture.from_dict(data).live()

    def figures(self, trace: Trace) -> list[Figure]:
        shown = [self._by_frequency(field, counted[-1]) for field, counted in trace.values.items()]
        shown += [self._shares(field, counted, trace.epochs) for field, counted in trace.values.items()]
        shown += [self._chances(field, one) for field, one in self.growth.items() if isinstance(one, Policy)]
        return [*shown, self._mean_sizes(trace), self._table()]

    def _by_frequency(self, field: str, counted: Tensor) -> Figure:
        """`counted` (bands, sizes): number of categories."""
        values = [_numbers(line) for line in counted / counted.sum(dim=1, keepdim=True)]
        names = [f"{name} ({int(number):,})" for name, number in zip(BAND_NAMES, counted.sum(dim=1), strict=True)]
        note = (
            "Share of the categories that were met so often by the end of the stream (their number) which have a size."
        )
        title = f"Sizes of {field} by frequency"
        return figures.heatmap(title, note, ("met", names), ("size", list(map(str, self.widths))), values)

    def _shares(self, field: str, counted: Tensor, epochs: list[float]) -> Figure:
        met = counted[:, 1:].sum(dim=1).double()
        share = (met / met.sum(dim=1, keepdim=True)).T
        lines = {str(width): _numbers(line) for width, line in zip(self.widths, share, strict=True)}
        note = "Share of the categories met so far which have a size."
        return figures.curves(f"Sizes of {field} over the stream", note, ("stream", epochs), "share", lines)

    def _chances(self, field: str, policy: Policy) -> Figure:
        counts = torch.tensor([start for start in (*BANDS[:2], 3, *BANDS[2:]) if start <= self.train.rows])
        chance = policy.logs()[:, 1].exp().view(policy.buckets, -1)[bucket(counts)].tolist()
        names = [f"{int(count):,}" for count in counts]
        note = "How likely a category grows when it is met, by how often it has been met and by its size."
        columns = ("size", list(map(str, self.widths)))
        return figures.heatmap(f"Policy of {field}", note, ("met before", names), columns, chance)

    def _mean_sizes(self, trace: Trace) -> Figure:
        widths = torch.tensor(self.widths, dtype=torch.double)
        lines = {}
        for field, counted in trace.values.items():
            met = counted[:, 1:].sum(dim=1).double()
            lines[field] = _numbers(met @ widths / met.sum(dim=1))
        note = "Mean width over the categories met so far."
        return figures.curves("Mean size over the stream", note, ("stream", trace.epochs), "width", lines)

    def _table(self) -> Figure:
        kept = self.kept(self.model.tables.sizes)
        rows: list[list[Cell]] = []
        for field, views in self.views.items():
            full = self.widths[-1] * self.rows[field] * len(views)
            rows.append([field, self.rows[field], full, kept[field], kept[field] / full])
        total = sum(kept.values())
        maps = sum(weight.numel() for weight in self.model.lift_parameters())
        note = (
            f"{total:,} of {self.full:,} embedding parameters ({total / self.full:.1%}), and {maps:,} of maps. Counted"
            " is what the sizes need; on the stream every category has a row of every size."
        )
        return figures.table("Sizes", note, ["field", "categories", "parameters at the widest", "kept", "share"], rows)

    def _rule(self) -> tuple[int, Thresholds | None]:
        """The size at the start, and the rule for growing where no policy learns it."""
        if self.plan["select"] == "policy":
            return 0, None
        budget, sizes = self.plan["budget"] * self.full, len(self.widths)
        if self.plan["select"] == "fixed":
            fitting = [
                place for place, width in enumerate(self.widths) if width <= self.plan["budget"] * self.widths[-1]
            ]
            return max(fitting, default=0), Thresholds(None, sizes)
        counts = {field: self.train.visits([field], range(rows)).long() for field, rows in self.rows.items()}

        def fits(least: int) -> bool:
            reached = {field: Thresholds(least, sizes).reached(count_R) for field, count_R in counts.items()}
            return sum(self.kept(reached).values()) <= float(budget)

        low, high = 0, self.train.rows + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if fits(middle) else (middle, high)
        return 0, Thresholds(high, sizes)


def _numbers(value_N: Tensor) -> list[float | None]:
    """As a figure has them: None where nothing has been met, whose share is 0 / 0."""
    return [None if math.isnan(one) else one for one in value_N.tolist()]


def _views(architecture: Architecture, plan: Any) -> dict[str, list[str]]:
    """The views in which each opened field has a table of the greatest size."""
    views: dict[str, list[str]] = {}
    for view, fields in tables_of_width(architecture, plan["sizes"][-1]).items():
        for field in fields:
            if not plan["fields"] or field in plan["fields"]:
                views.setdefault(field, []).append(view)
    if not views:
        raise UserError("esapn: the backbone has no tables as wide as the greatest of esapn.sizes")
    return views


def _opened(architecture: Architecture, views: Mapping[str, list[str]], widths: list[int]) -> Architecture:
    """The supernet: for each size a table of all categories."""
    data = architecture.to_dict()
    for field, names in views.items():
        rows = architecture.fields[field].cardinality
        blocks = [{"first": 0, "rows": rows, "dim": width} for width in widths]
        encoder = {"kind": "rows", "dim": widths[-1], "blocks": blocks, "align": "chain"}
        for name in names:
            data["views"][name]["encoders"][field] = encoder
    return Architecture.from_dict(data)
