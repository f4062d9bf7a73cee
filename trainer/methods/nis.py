"""NIS: how many categories of a field get an embedding, and how wide, within a budget (Joglekar et al., KDD 2020).

Categories are ordered by their frequency in the training rows. A grid of row groups and column groups cuts each field's
largest table into blocks, each a table of its own. A choice takes some blocks: with a single size those of the first s
row groups and the first t column groups, or none; with many sizes a number of row groups for every column group. A
category beyond the chosen rows has the zero vector; one field may be dropped. The policy has a softmax over the choices
of each field (of each of its columns), and is rewarded with the quality on validation rows less a price for what is
over the budget. What the derived model keeps are tables of exactly the chosen sizes, a width for each range of rows.

Ours, where the sources leave it open: column groups are equally wide and exchangeable, so the numbers of row groups are
put in falling order before they are used, and a vector of them and its reorderings are one choice, in the supernet too.
Each block has a linear map to the full width of its own (`align: lift`) or lies in its columns (`pad`). Small fields
have fewer row groups (`LEAST_ROWS`). The budget counts embeddings and not maps, which do not grow with the vocabulary.
What is derived are the likeliest choices that fit the budget together. First-order weights stay as they are.

Two ways to choose that cost no search, on the same grid and within the same budget: `random`, and `frequency`, by which
a row group's width follows a power of its mean frequency, as in MDE (Ginart et al. 2021) for popular and rare rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer import figures
from trainer.architecture import Architecture
from trainer.engines.sampled import Choice, Reinforce, generator, uniform
from trainer.engines.supernet import Schedule, Trace
from trainer.errors import UserError
from trainer.figures import Cell, Figure
from trainer.methods.base import (
    Data,
    Opening,
    backbone,
    draw,
    fullest,
    tables_of_width,
    with_dims,
    within_budget,
    without,
)
from trainer.methods.settings import NISSettings
from trainer.metrics import Vector
from trainer.processes import summed
from trainer.schema import DatasetSchema
from trainer.space import choice

LEAST_ROWS = 20
"""Row groups are at least so large, but for the last one: a table of 7 weekdays is not worth cutting."""
BLIND_DRAWS = 1_000
TIE = 1e-6
"""Log weight of a whole table over none, between options that are equally likely."""
NEVER = -1e9
"""Log weight of what a rule has not chosen."""


def space(schema: DatasetSchema, settings: NISSettings) -> Data:
    dims = dict.fromkeys(schema.names("categorical"), settings.dim)
    return with_dims("nis", backbone(schema, settings), dims, settings.dim)


def plan(settings: NISSettings) -> Data:
    timing = {"epochs", "every", "warm_up", "table_l2", "draws", "policy_learning_rate", "entropy", "sample"}
    return {
        "method": "nis",
        "sizes": settings.sizes,
        "dim": settings.dim,
        "columns": settings.columns,
        "rows": settings.rows,
        "align": choice("nis.align", settings.align),
        "budget": choice("nis.budget", settings.budget),
        "price": settings.price,
        "select": settings.select,
        "draw": draw("nis") if settings.select == "random" else None,
        **settings.model_dump(include=timing),
    }


@dataclass(frozen=True)
class Grid:
    """The blocks of one field's largest table: row groups end at `ends`, and all column groups are `width` wide."""

    view: str
    field: str
    ends: tuple[int, ...]
    columns: int
    width: int

    @property
    def name(self) -> str:
        return f"{self.view}.{self.field}"

    @property
    def full(self) -> int:
        """Parameters of the whole table."""
        return self.ends[-1] * self.columns * self.width

    @property
    def ranges(self) -> list[range]:
        """The categories of each row group."""
        return [range(start, end) for start, end in pairwise((0, *self.ends))]

    def blocks(self) -> list[tuple[int, int]]:
        """(row group, column group) of each block, in the order of the supernet's tables."""
        return [(row, column) for column in range(self.columns) for row in range(len(self.ends))]

    def described(self) -> list[Data]:
        """All blocks as those of a rows encoder."""
        held = [{"first": group.start, "rows": len(group), "dim": self.width} for group in self.ranges]
        return [held[row] for row, _ in self.blocks()]

    def derived(self, taken: Sequence[int]) -> list[Data]:
        """Ranges of rows of falling width, as blocks of a rows encoder: what `taken` keeps of the table."""
        found: list[Data] = []
        for row, group in enumerate(self.ranges):
            dim = self.width * sum(rows > row for rows in taken)
            if found and found[-1]["dim"] == dim:
                found[-1]["rows"] += len(group)
            elif dim:
                found.append({"first": group.start, "rows": len(group), "dim": dim})
        return found

    def sizes(self, multi: bool) -> Tensor:
        """Parameters of each option of a decision, (options,); those of a field's decisions add up."""
        kept = torch.tensor([0, *self.ends]) * self.width
        return (
            kept if multi else torch.cat([kept[:1], torch.outer(kept[1:], torch.arange(1, self.columns + 1)).flatten()])
        )

    def taken(self, option_D: Tensor, multi: bool) -> tuple[int, ...]:
        """How many row groups each column group keeps, falling; options as in `sizes`."""
        if multi:
            return tuple(sorted(option_D.tolist(), reverse=True))
        rows, columns = divmod(int(option_D) - 1, self.columns)
        return tuple((rows + 1) * (int(option_D) > 0 and column <= columns) for column in range(self.columns))

    def option(self, taken: Sequence[int], multi: bool) -> list[int]:
        """The opposite of `taken`; with a single size for one that has a single size."""
        if multi:
            return list(taken)
        columns = sum(rows > 0 for rows in taken)
        return [(taken[0] - 1) * self.columns + columns if columns else 0]


def grid(view: str, field: str, cardinality: int, shares: Sequence[float], columns: int, dim: int) -> Grid:
    """The grid of a field; row groups that would be too small are joined to the next one."""
    ends: list[int] = []
    for share in shares:
        end = round(share * cardinality)
        if end - (ends[-1] if ends else 0) >= LEAST_ROWS:
            ends.append(end)
    return Grid(view, field, (*ends[:-1], cardinality), columns, dim // columns)


class NIS:
    """The backbone with all blocks of its tables, any of which can rest."""

    def __init__(self, opening: Opening) -> None:
        self.plan, self.backbone, self.train = opening.plan, opening.backbone, opening.train
        self.multi = opening.plan["sizes"] == "multi"
        self.grids = _grids(opening.backbone, opening.plan)
        self.model = opening.build(_opened(opening.backbone, self.grids, opening.plan["align"]))
        self.tables = {
            one.name: [
                s.name for s in self.model.tables.specs if s.block and (s.view, s.field) == (one.view, one.field)
            ]
            for one in self.grids
        }
        self.sizes = {one.name: one.sizes(self.multi) for one in self.grids}
        self.full = sum(one.full for one in self.grids)
        decisions = opening.plan["columns"] if self.multi else 1
        self.logits = {name: nn.Parameter(torch.zeros(decisions, len(size))) for name, size in self.sizes.items()}
        self.policy = self.logits if opening.plan["select"] == "policy" else {}
        if opening.plan["select"] == "random":
            self._decide(self._blind(opening.seed))
        if opening.plan["select"] == "frequency":
            self._decide(self._frequent())
        timing = {name: opening.plan[name] for name in ("epochs", "every", "warm_up", "table_l2")}
        self.schedule, self.sample = Schedule(**timing), opening.plan["sample"]
        self.teaching = Reinforce(opening.plan["policy_learning_rate"], opening.plan["draws"], opening.plan["entropy"])

    def take(self, choice: Choice | None) -> None:
        resting = [] if choice is None else [table for one in self.grids for table in self._left(one, choice)]
        self.model.tables.resting = frozenset(resting)

    def _left(self, one: Grid, choice: Choice) -> list[str]:
        """The tables of the blocks that a choice leaves out."""
        taken = one.taken(choice[one.name], self.multi)
        blocks = zip(one.blocks(), self.tables[one.name], strict=True)
        return [table for (row, column), table in blocks if row >= taken[column]]

    def size(self, choice: Choice) -> int:
        """Embedding parameters of a choice."""
        return sum(int(size[choice[name]].sum()) for name, size in self.sizes.items())

    def price(self, choice: Choice) -> float:
        over: float = max(self.size(choice) / (self.plan["budget"] * self.full) - 1, 0.0)
        return float(self.plan["price"]) * over

    def architecture(self, choice: Choice) -> Architecture:
        data = self.backbone.to_dict()
        dropped = []
        for one in self.grids:
            view, blocks = data["views"][one.view], one.derived(one.taken(choice[one.name], self.multi))
            view |= {"align": self.plan["align"], "width": one.columns * one.width}
            if not blocks:
                dropped.append(one.name)
            elif blocks[0]["rows"] == self.backbone.fields[one.field].cardinality:
                view["encoders"][one.field] = {"kind": "table", "dim": blocks[0]["dim"]}
            else:
                rows = {"kind": "rows", "dim": view["width"], "blocks": blocks, "align": self.plan["align"]}
                view["encoders"][one.field] = rows
        return without(data, dropped)

    def best(self) -> Choice:
        """The likeliest options that fit the budget together; of equally likely ones the largest."""
        decisions = [
            (name, row + TIE * self.sizes[name] / self.full)
            for name, logits in self.logits.items()
            for row in logits.detach().log_softmax(dim=1)
        ]
        sizes = [self.sizes[name] for name, _ in decisions]
        found = within_budget([row for _, row in decisions], sizes, self.plan["budget"] * self.full)
        options: dict[str, list[int]] = {}
        for (name, _), option in zip(decisions, found, strict=True):
            options.setdefault(name, []).append(option)
        return {name: torch.tensor(taken) for name, taken in options.items()}

    def derive(self) -> Architecture:
        return self.architecture(self.best())

    def figures(self, trace: Trace) -> list[Figure]:
        if not self.policy:
            return []
        best = self.best()
        return [*self._maps(best), self._table(best), self._sizes_over(trace)]

    def _maps(self, best: Choice) -> list[Figure]:
        """For each view the block grid of all its fields, one row group below the other."""
        drawn = []
        for view in dict.fromkeys(one.view for one in self.grids):
            names: list[str] = []
            values: list[list[float]] = []
            marked: list[tuple[int, int]] = []
            for one in (one for one in self.grids if one.view == view):
                taken, chance_ST = one.taken(best[one.name], self.multi), self._chance(one)
                for row, group in enumerate(one.ranges):
                    marked += [(len(names), column) for column in range(one.columns) if row < taken[column]]
                    names.append(f"{one.field} {group.start:,}–{group.stop - 1:,}")
                    values.append(chance_ST[row].tolist())
            width = self.grids[0].width
            columns = [f"{width * column + 1}–{width * (column + 1)}" for column in range(self.plan["columns"])]
            note = (
                "How likely the policy takes each block of rows (categories by falling frequency; 0 is unknown) and "
                "columns. Outlined: what was derived, the likeliest that fits the budget."
            )
            title = f"Blocks of view {view}"
            drawn.append(figures.heatmap(title, note, ("categories", names), ("columns", columns), values, marked))
        return drawn

    def _chance(self, one: Grid) -> Tensor:
        """How likely each block is in a draw of the policy, (row groups, column groups)."""
        chance_DN = self.logits[one.name].detach().softmax(dim=1)
        chance_ST = torch.zeros(len(one.ends), one.columns)
        if not self.multi:
            for option, chance in enumerate(chance_DN[0]):
                for column, rows in enumerate(one.taken(torch.tensor([option]), multi=False)):
                    chance_ST[:rows, column] += chance
            return chance_ST
        for row in range(len(one.ends)):
            # The number of columns that reach this row group is a sum of coin tosses.
            count_N = torch.ones(1)
            for reach in chance_DN[:, row + 1 :].sum(dim=1):
                count_N = functional.pad(count_N, (0, 1)) * (1 - reach) + functional.pad(count_N, (1, 0)) * reach
            chance_ST[row] = count_N[1:].flip(0).cumsum(0).flip(0)
        return chance_ST

    def _table(self, best: Choice) -> Figure:
        rows: list[list[Cell]] = []
        for one in self.grids:
            blocks = one.derived(one.taken(best[one.name], self.multi))
            kept = sum(block["rows"] * block["dim"] for block in blocks)
            words = ", ".join(f"{block['rows']:,} × {block['dim']}" for block in blocks) or "dropped"
            rows.append([one.field, one.ends[-1], words, one.full, kept, kept / one.full])
        total = self.size(best)
        note = f"{total:,} of {self.full:,} embedding parameters; the budget is {self.plan['budget'] * self.full:,.0f}."
        heads = ["field", "categories", "rows × width", "parameters before", "after", "kept"]
        return figures.table("Sizes", note, heads, rows)

    def _sizes_over(self, trace: Trace) -> Figure:
        sizes = {
            one.name: (trace.values[one.name].softmax(dim=2) @ self.sizes[one.name].float()).sum(dim=1)
            for one in self.grids
        }
        shares = {one.name: (sizes[one.name] / one.full).tolist() for one in self.grids}
        shares["all"] = (torch.stack(list(sizes.values())).sum(dim=0) / self.full).tolist()
        note = "Mean share of each field's largest table in a draw of the policy."
        return figures.curves("Size over training", note, ("epoch", trace.epochs), "share kept", shares)

    def _decide(self, choice: Choice) -> None:
        """Logits that stand for one choice: nothing is searched."""
        for name, option_D in choice.items():
            chosen = functional.one_hot(option_D, self.logits[name].shape[1]).bool()
            self.logits[name].data.masked_fill_(~chosen, NEVER)

    def _blind(self, seed: int) -> Choice:
        """Of many blind draws the one that fills the budget best."""
        draws = [uniform(self.logits, generator(seed, "blind", self.plan["draw"], n)) for n in range(BLIND_DRAWS)]
        return self._fullest(draws)

    def _frequent(self) -> Choice:
        """Widths in proportion to a power of the row groups' mean frequency: the power that fills the budget best."""
        frequencies = [self._frequency(one) for one in self.grids]
        most = max(float(frequency[0]) for frequency in frequencies)

        def rule(power: float) -> Choice:
            found = {}
            for one, frequency in zip(self.grids, frequencies, strict=True):
                columns = np.rint(one.columns * (np.maximum(frequency, 1e-9) / most) ** power)
                taken = [int((columns > column).sum()) for column in range(one.columns)]
                found[one.name] = torch.tensor(one.option(taken, self.multi))
            return found

        return self._fullest([rule(power) for power in np.linspace(0, 3, BLIND_DRAWS)])

    def _frequency(self, one: Grid) -> Vector:
        """How often a category of each row group is met in the training rows, (row groups,), made to fall.

        With a single size that is the mean over the whole field.
        """
        visits = summed(self.train.visits([one.field], range(one.ends[-1]))).double().numpy()
        groups = one.ranges if self.multi else [range(one.ends[-1])] * len(one.ends)
        mean: Vector = np.minimum.accumulate([visits[group.start : group.stop].mean() for group in groups])
        return mean

    def _fullest(self, choices: Sequence[Choice]) -> Choice:
        """The largest choice within the budget, else the smallest of all."""
        sizes = torch.tensor([self.size(choice) for choice in choices])
        return choices[fullest(sizes, self.plan["budget"] * self.full)]


def _grids(architecture: Architecture, plan: Any) -> list[Grid]:
    opened = tables_of_width(architecture, plan["dim"])
    if not opened:
        raise UserError("nis: the backbone has no tables as wide as nis.dim")
    return [
        grid(view, field, architecture.fields[field].cardinality, plan["rows"], plan["columns"], plan["dim"])
        for view, fields in opened.items()
        for field in fields
    ]


def _opened(architecture: Architecture, grids: Sequence[Grid], align: str) -> Architecture:
    """The supernet: every table in blocks."""
    data = architecture.to_dict()
    for one in grids:
        rows = {"kind": "rows", "dim": one.columns * one.width, "blocks": one.described(), "align": align}
        data["views"][one.view]["encoders"][one.field] = rows
    return Architecture.from_dict(data)
