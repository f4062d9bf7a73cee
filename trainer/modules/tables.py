"""All embedding tables of a model, held by TorchRec so that `DistributedModelParallel` can shard them.

Tables that sequences use live in one `EmbeddingCollection` per width, all others in one `EmbeddingBagCollection`. A
table may hold only some of its field's categories (a block of NIS or ESAPN); for the others it gives zeros.

Unsharded, both collections walk jagged tensors in Python, table by table, though here every bag holds exactly one id
and its sum is the row itself. So as long as nothing has sharded them, the tables of a view that have one width lie one
behind the other in one tensor, a `Pool`, of which TorchRec's parameters are views: one look-up serves all of them, and
an optimizer has one tensor to update instead of dozens (docs/performance.md).
"""

import itertools
import zlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec import (
    EmbeddingBagCollection,
    EmbeddingBagConfig,
    EmbeddingCollection,
    EmbeddingConfig,
    KeyedJaggedTensor,
    KeyedTensor,
)
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from trainer.cpu import zeros
from trainer.data import Batch
from trainer.index import unpacked
from trainer.modules.router import Router, Share
from trainer.modules.values import StepGroups, Steps

Key = tuple[str, str]
"""(table, field that reads it)"""

_META = torch.device("meta")
BOUNDS = tuple(4 << power for power in range(16))
"""Greatest lengths of the groups in which sequences are computed."""
FEW_ROWS = 64
"""Fewer rows are not worth groups."""


@dataclass(frozen=True)
class Held:
    """Which of a field's categories a block holds: those from position `first` on, in the order of ids or of an index.

    `number`: of the block among those of its encoder. `index`: that of its encoder (`trainer.index`).
    """

    number: int
    first: int
    index: str | None = None

    def feature(self, field: str, rows: int) -> str:
        """A name for these categories: the same for blocks that hold the same ones."""
        order = "" if self.index is None else f"#{zlib.crc32(self.index.encode()):08x}"
        return f"{field}[{self.first}:{self.first + rows}]{order}"


@dataclass(frozen=True)
class TableSpec:
    """One table: its name, the view it belongs to, who looks rows up in it, and its size."""

    name: str
    view: str
    rows: int
    dim: int
    field: str | None
    """The categorical field with one id per row, if one reads the table."""
    sequences: tuple[str, ...] = ()
    """Sequence fields that read the table."""
    block: Held | None = None
    """Set where it holds only some of its field's categories."""
    whole: bool = False
    """All of its rows are read at once (`Tables.whole`)."""
    part: int | None = None
    """The part of a routed model that it belongs to: only rows of that group are looked up in it."""

    @property
    def alone(self) -> bool:
        """Whether it lies in a tensor of its own, and on every process: more is read of it than one row per row."""
        return self.whole or bool(self.sequences)

    @property
    def parameter(self) -> str:
        """Name of its parameter within `Tables`."""
        collection = f"embeddings.{self.dim}.embeddings" if self.alone else "bags.embedding_bags"
        return f"{collection}.{self.name}.weight"

    @property
    def features(self) -> list[str]:
        """The names under which TorchRec gets the ids to look up, for each of the readers."""
        part = "" if self.part is None else f"@{self.part}"
        single = self.block.feature(self.field or "", self.rows) if self.block else self.field
        return [f"{name}{part}" for name in (*([single] if single else []), *self.sequences)]

    @property
    def readers(self) -> list[str]:
        """The fields that look rows up in it."""
        return [*([self.field] if self.field else []), *self.sequences]

    @property
    def held(self) -> range | Tensor:
        """The categories that have a row, in the order of the rows."""
        if self.block is None:
            return range(self.rows)
        if self.block.index is None:
            return range(self.block.first, self.block.first + self.rows)
        return (_numbers(self.block.index) == self.block.number).nonzero().squeeze(1)


class Rows:
    """Looked-up rows: (B, n, dim) for n (table, categorical field) at a time, a Q per (table, sequence field)."""

    def __init__(
        self,
        blocks: Mapping[tuple[Key, ...], Tensor],
        steps: Mapping[Key, Steps | StepGroups],
        held: Mapping[Key, Tensor] | None = None,
        shares: Sequence[Share] = (),
    ) -> None:
        self._blocks = dict(blocks)
        self.steps = dict(steps)
        self.held = dict(held or {})
        """For each block that was looked up the rows of the batch that it holds a category of, (B,) bool."""
        self.shares = list(shares)
        """The rows of each part, for a part's tables were looked up for no others."""

    def __contains__(self, key: Key) -> bool:
        """Whether a block was looked up; it is not while it rests (`Tables.resting`)."""
        return (key,) in self._blocks

    def fields(self, keys: Sequence[Key]) -> Tensor:
        """Rows of tables of one width, (B, len(keys), dim)."""
        block = self._blocks.get(tuple(keys))
        return torch.stack([self._single[key] for key in keys], dim=1) if block is None else block

    def double(self) -> "Rows":
        """The same in float64."""
        blocks = {keys: x_BND.double() for keys, x_BND in self._blocks.items()}
        steps = {key: _double(value) for key, value in self.steps.items()}
        return Rows(blocks, steps, self.held, self.shares)

    @cached_property
    def _single(self) -> dict[Key, Tensor]:
        # All of a block at once: a gradient for each field cut out alone would be as large as the block.
        return {
            key: x_BD for keys, x_BND in self._blocks.items() for key, x_BD in zip(keys, x_BND.unbind(1), strict=True)
        }


class Tables(nn.Module):
    """The tables, and the look-up of a batch in all of them."""

    def __init__(
        self,
        specs: Iterable[TableSpec],
        columns: Mapping[str, int],
        table_init: float,
        seed: int,
        empty: bool = False,
        router: Router | None = None,
    ) -> None:
        """Rows start normal; those of a table depend on the seed and the table's name alone, not on where it lives.

        Args:
            specs: the tables.
            columns: position of each categorical field in `Batch.categorical`.
            table_init: standard deviation of fresh rows.
            seed: of their draw.
            empty: tables are on the meta device, to be sharded and drawn where they are put (`draw`).
            router: of a routed model.
        """
        super().__init__()
        self.router = router
        self.columns = dict(columns)
        self.table_init, self.seed = table_init, seed
        self.specs = ordered = list(specs)
        pooled = [spec for spec in ordered if not spec.alone]
        self.bags: Any = EmbeddingBagCollection(list(map(_bag_config, pooled)), device=_META) if pooled else None
        self.embeddings = nn.ModuleDict()
        self._bag_lookup = _Lookup.of(pooled)
        self._lookups: dict[str, _Lookup] = {}
        for dim in sorted({spec.dim for spec in ordered if spec.alone}):
            group = [spec for spec in ordered if spec.alone and spec.dim == dim]
            self.embeddings[str(dim)] = EmbeddingCollection([EmbeddingConfig(**_config(spec)) for spec in group], _META)
            self._lookups[str(dim)] = _Lookup.of(group)
        self._blocks = [spec for spec in ordered if spec.block]
        self.resting: frozenset[str] = frozenset()
        """Blocks, by their tables' names, that are left out of look-ups, and so of training too."""
        self.sizes: dict[str, Tensor] = {}
        """Field -> (cardinality,) number of the one block that holds each category now, of those that could."""
        self._positions = {
            spec.block.index: _positions(spec.block.index) for spec in ordered if spec.block and spec.block.index
        }
        self.sharded = False
        self._sent: dict[int, tuple[Batch, Any, Any]] = {}  # the batch too, so that its id is nobody else's
        self.pools: list[Pool] = []
        if not empty:
            self._pool(fresh=True)

    def forward(self, batch: Batch) -> Rows:
        blocks: dict[tuple[Key, ...], Tensor] = {}
        steps: dict[Key, Steps | StepGroups] = {}
        held: dict[Key, Tensor] = {}
        shares = self._shares(batch)
        if not self.sharded:
            for share, part in zip(shares, self._parts, strict=True):
                self._read(share, [pool for pool in self.pools if pool.part == part], blocks, steps, held)
            return Rows(blocks, steps, held, shares)
        if self.bags is not None:
            self._ask_bags(batch, shares, blocks, held)
        for dim, module in self.embeddings.items():
            self._ask(batch, shares, self._lookups[dim], module, blocks, steps)
        return Rows(blocks, steps, held, shares)

    @property
    def _parts(self) -> list[int | None]:
        return [None] if self.router is None else list(range(self.router.groups))

    def _shares(self, batch: Batch) -> list[Share]:
        """The rows of each part; all of them, if there are no parts."""
        return [Share(batch)] if self.router is None else self.router.shares(batch)

    def resting_parameters(self) -> list[str]:
        """Names in the model of the parameters of what rests; sharded ones have gradients all the same."""
        return [f"tables.{spec.parameter}" for spec in self._blocks if spec.name in self.resting]

    def release(self) -> None:
        """Before the collections are sharded: from now on they are asked, and own their parameters."""
        self.sharded = True
        self.pools = []

    def draw(self, spec: TableSpec, weight_RD: Tensor) -> None:
        """Fill a table with its fresh rows."""
        state = np.random.SeedSequence([self.seed, zlib.crc32(spec.name.encode())]).generate_state(1, np.uint64)
        generator = torch.Generator(weight_RD.device).manual_seed(int(state[0] >> 1))
        nn.init.normal_(weight_RD, std=self.table_init, generator=generator)

    def groups(self) -> list[list[TableSpec]]:
        """Tables that are looked up and trained together: those of a view that have one width. Blocks are alone."""
        groups: dict[tuple[str, int], list[TableSpec]] = {}
        for spec in self.specs:
            if not (spec.alone or spec.block):
                groups.setdefault((spec.view, spec.dim), []).append(spec)
        return [*groups.values(), *([spec] for spec in self.specs if spec.alone or spec.block)]

    def whole(self, table: str) -> Tensor:
        """All rows of a table, (rows, dim), where gradients arrive."""
        spec = next(spec for spec in self.specs if spec.name == table)
        pool = next((pool for pool in self.pools if spec in pool.specs), None)
        weight: Tensor = self._module(spec).weight if pool is None else pool.weight
        return weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Tables":
        before = self._storages()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.sizes = {field: fn(size_R) for field, size_R in self.sizes.items()}
        self._positions = {index: fn(position_R) for index, position_R in self._positions.items()}
        if not self.sharded and self._storages() != before:  # a move gives every parameter a storage of its own
            self._pool(fresh=False)
        return self

    def _storages(self) -> list[int]:
        return [parameter.untyped_storage()._cdata for parameter in self.parameters()]

    def _pool(self, fresh: bool) -> None:
        self.pools = [self._pooled(group, fresh) for group in self.groups()]

    def _pooled(self, specs: list[TableSpec], fresh: bool) -> "Pool":
        modules = [self._module(spec) for spec in specs]
        if fresh:
            weight = zeros(sum(spec.rows for spec in specs), specs[0].dim)
        else:
            weight = torch.cat([module.weight.detach() for module in modules])
        pool = Pool(specs, weight)
        for spec, module, rows in zip(specs, modules, pool.parts.values(), strict=True):
            if fresh:
                self.draw(spec, weight[rows])
            module.weight = nn.Parameter(weight[rows])
        return pool

    def _module(self, spec: TableSpec) -> Any:
        """The module that holds a table's weight."""
        if spec.alone:
            return self.embeddings[str(spec.dim)].embeddings[spec.name]  # type: ignore[index]
        return self.bags.embedding_bags[spec.name]

    def _read(
        self,
        share: Share,
        pools: Sequence["Pool"],
        blocks: dict[tuple[Key, ...], Tensor],
        steps: dict[Key, Steps | StepGroups],
        held: dict[Key, Tensor],
    ) -> None:
        """Rows straight from the pools of one part."""
        batch, masks = share.batch, share.masks
        asked: dict[tuple[tuple[str, int], ...], Ids] = {}
        hits: dict[Hashable, Hits] = {}
        for pool in pools:
            if pool.specs[0].block:
                self._read_block(batch, pool, hits, blocks, held)
            elif pool.layout:
                if pool.layout not in asked:  # views of the same fields ask for the same rows
                    columns = [self.columns[field] for field, _ in pool.layout]
                    asked[pool.layout] = Ids(_columns(batch.categorical, columns) + pool.first_F)
                blocks[pool.keys] = pool.look_up(asked[pool.layout])
            for spec in pool.specs:
                for name in spec.sequences:
                    # Valid steps only: padding must not touch row 0, not even with a gradient of zero.
                    valid_N = batch.sequences[name][masks[name]]
                    x_ND = pool.look_up(Ids(valid_N[:, None])).squeeze(1)
                    steps[spec.name, name] = in_groups(x_ND, masks[name])

    def _read_block(
        self,
        batch: Batch,
        pool: "Pool",
        hits: dict[Hashable, "Hits"],
        blocks: dict[tuple[Key, ...], Tensor],
        held: dict[Key, Tensor],
    ) -> None:
        [spec] = pool.specs
        block, field = spec.block, spec.field
        assert block is not None
        if spec.name in self.resting:
            return
        alike = (field, spec.rows, block.first, block.index, block.number if field in self.sizes else None)
        if alike not in hits:  # blocks of the same categories are asked for the same rows
            hits[alike] = Hits.of(*self._held(batch, spec))
        hit = hits[alike]
        held[pool.keys[0]] = hit.held
        # As with steps, what a block does not hold must not touch a row of it.
        x_ND = pool.look_up(hit.ids).squeeze(1)
        blocks[pool.keys] = x_ND.new_zeros(batch.size, spec.dim).index_copy(0, hit.places, x_ND)[:, None]

    def _held(self, batch: Batch, spec: TableSpec) -> tuple[Tensor, Tensor]:
        """The row numbers of a block that the batch's ids stand for, (N,), and which of its rows have them, (B,)."""
        assert spec.block is not None
        assert spec.field is not None
        id_B, index = batch.categorical[:, self.columns[spec.field]], spec.block.index
        row_B = (id_B if index is None else self._positions[index][id_B]) - spec.block.first
        held_B = (row_B >= 0) & (row_B < spec.rows)
        if spec.field in self.sizes:
            held_B &= self.sizes[spec.field][id_B] == spec.block.number
        return row_B[held_B], held_B

    def send(self, batch: Batch) -> None:
        """Of sharded tables: begin to exchange the batch's ids with the other processes; `forward` will need them."""
        if isinstance(self.bags, EmbeddingBagCollection) or self.bags is None:
            return
        context = self.bags.create_context()
        # Waits for the sizes of what will come; the ids themselves travel while something else is computed.
        arriving = self.bags.input_dist(context, self._jagged(batch, self._shares(batch), self._bag_lookup)).wait()
        self._sent[id(batch)] = (batch, context, arriving)

    def _ask_bags(
        self,
        batch: Batch,
        shares: Sequence[Share],
        blocks: dict[tuple[Key, ...], Tensor],
        held: dict[Key, Tensor],
    ) -> None:
        """Rows of tables with one id per row from a collection that may be sharded."""
        if isinstance(self.bags, EmbeddingBagCollection):
            answer = self.bags(self._jagged(batch, shares, self._bag_lookup))
        else:
            if id(batch) not in self._sent:
                self.send(batch)
            _, context, arriving = self._sent.pop(id(batch))
            answer = self.bags.compute_and_output_dist(context, arriving.wait()).wait()
        names = {spec.name: found for spec, [found] in zip(self._bag_lookup.specs, self._bag_lookup.names, strict=True)}
        groups = [group for group in self.groups() if not group[0].alone]
        values = KeyedTensor.regroup([answer], [[names[spec.name] for spec in group] for group in groups])
        for group, x in zip(groups, values, strict=True):
            if group[0].name not in self.resting:
                share = shares[group[0].part or 0]
                x_BN = x if share.places is None else x.index_select(0, share.places)
                blocks[_keys(group)] = x_BN.view(len(x_BN), len(group), group[0].dim)
                if group[0].block:
                    [key] = _keys(group)
                    held[key] = self._held(share.batch, group[0])[1]

    def _ask(
        self,
        batch: Batch,
        shares: Sequence[Share],
        lookup: "_Lookup",
        collection: nn.Module,
        blocks: dict[tuple[Key, ...], Tensor],
        steps: dict[Key, Steps | StepGroups],
    ) -> None:
        """Rows of tables that sequences read, through TorchRec's own format."""
        found = collection(self._jagged(batch, shares, lookup))
        for spec, names in zip(lookup.specs, lookup.names, strict=True):
            for field, name in zip(spec.readers, names, strict=True):
                x_ND = found[name].values()
                if field == spec.field:
                    blocks[((spec.name, field),)] = x_ND[:, None]
                else:
                    steps[spec.name, field] = in_groups(x_ND, shares[spec.part or 0].masks[field])

    def _jagged(self, batch: Batch, shares: Sequence[Share], lookup: "_Lookup") -> KeyedJaggedTensor:
        values, lengths = [], []
        for spec, field in lookup.features.values():
            share = shares[spec.part or 0]
            id_N, length_B = self._ids(share, spec, field)
            values.append(id_N)
            lengths.append(share.spread(length_B, batch.size))
        return KeyedJaggedTensor(
            keys=list(lookup.features), values=torch.cat(values), lengths=torch.cat(lengths), stride=batch.size
        )

    def _ids(self, share: Share, spec: TableSpec, field: str) -> tuple[Tensor, Tensor]:
        """The row numbers that a field looks up in a table, (N,), and how many each of the share's rows does, (B,)."""
        batch = share.batch
        if spec.block:
            row_N, held_B = self._held(batch, spec)
            return row_N, held_B.long()
        if field == spec.field:
            id_B = batch.categorical[:, self.columns[field]]
            return id_B, torch.ones_like(id_B)
        return batch.sequences[field][share.masks[field]], batch.lengths[field]


class Pool:
    """Tables of one width, one behind the other in one tensor, which takes the place of their parameters in training.

    The parameters keep their names and are views of `weight`; gradients arrive at `weight`, and only there.
    """

    def __init__(self, specs: Sequence[TableSpec], weight: Tensor, sharded: bool = False) -> None:
        """`weight`: (rows of all tables, dim). `sharded`: as part of a sharded collection."""
        self.specs = list(specs)
        self.part = specs[0].part
        self.sharded = sharded
        self.sparse = sharded
        """Whether gradients are sparse tensors (coalesced) of the rows that were looked up."""
        bounds = np.cumsum([0, *(spec.rows for spec in specs)]).tolist()
        self.parts = {
            spec.parameter: slice(*rows) for spec, rows in zip(specs, itertools.pairwise(bounds), strict=True)
        }
        """Each table's rows, by the name of its parameter within `Tables`."""
        self.keys = _keys(specs)
        self.layout = tuple((spec.field, spec.rows) for spec in specs if spec.field is not None)
        """The fields that read one row each, and how many rows each chooses from."""
        self.weight = weight.detach().requires_grad_()
        self.first_F = torch.tensor(bounds[:-1], device=weight.device)

    @property
    def once(self) -> bool:
        """Whether a batch is looked up in one go; then each row has one gradient."""
        return not any(spec.sequences for spec in self.specs)

    def look_up(self, ids: "Ids") -> Tensor:
        """(B, F) row numbers within the pool -> (B, F, dim)"""
        rows: Tensor = _Gather.apply(self.weight, ids, self.sparse)  # type: ignore[no-untyped-call]
        return rows


class Ids:
    """The row numbers (B, F) of one look-up, field f's all smaller than field f + 1's."""

    def __init__(self, row_BF: Tensor) -> None:
        self.row_BF = row_BF

    @cached_property
    def by_row(self) -> tuple[Tensor, Tensor, Tensor]:
        """The U distinct rows, rising, (U,); where in the third the places of each begin (U,); the places, (B * F,).

        Places count through (B, F) row by row. Fields are sorted side by side, which is faster than one long sort.
        """
        fields = self.row_BF.shape[1]
        # Half the width sorts faster; a pool of 2**31 rows does not fit a machine whose tables are not sharded.
        sorted_FB, place_FB = self.row_BF.t().int().sort(dim=1)
        row_U, count_U = torch.unique_consecutive(sorted_FB.flatten(), return_counts=True)
        place_FB = place_FB * fields + torch.arange(fields, device=place_FB.device)[:, None]
        return row_U.long(), count_U.cumsum(0) - count_U, place_FB.flatten()


@dataclass(frozen=True)
class Hits:
    """What a block is asked for by the N rows of a batch whose categories it holds."""

    ids: Ids
    """(N, 1)"""
    places: Tensor
    """Of those rows in the batch, (N,)."""
    held: Tensor
    """Which of the batch's rows they are, (B,) bool."""

    @classmethod
    def of(cls, row_N: Tensor, held_B: Tensor) -> "Hits":
        return cls(Ids(row_N[:, None]), held_B.nonzero().squeeze(1), held_B)


class _Gather(torch.autograd.Function):
    """Rows of a tensor. Its gradient is summed row by row: by torch's own rule that takes several times as long."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ids: Ids, sparse: bool) -> Tensor:
        ctx.ids, ctx.sparse, ctx.shape = ids, sparse, weight.shape
        return weight.index_select(0, ids.row_BF.flatten()).view(*ids.row_BF.shape, weight.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient_BFD: Tensor) -> tuple[Tensor, None, None]:
        row_U, start_U, place_N = ctx.ids.by_row
        gradient_ND = gradient_BFD.reshape(-1, ctx.shape[1])
        sum_UD = functional.embedding_bag(place_N, gradient_ND, start_U, mode="sum")
        if ctx.sparse:
            sparse = torch.sparse_coo_tensor(row_U[None], sum_UD, ctx.shape, is_coalesced=True, check_invariants=False)
            return sparse, None, None
        return sum_UD.new_zeros(ctx.shape).index_copy_(0, row_U, sum_UD), None, None


@dataclass(frozen=True, eq=False)
class Leaf:
    """What gradients arrive at and an optimizer updates: a parameter, or a pool of them."""

    weight: Tensor
    parts: dict[str, slice]
    """Name of each parameter in the model -> its rows in `weight`."""
    pool: Pool | None = None

    def split(self, value: Tensor) -> dict[str, Tensor]:
        """A value with a row per row of the weight (or one for all of them), by parameter. Not copies."""
        return {name: value[rows] if value.dim() else value for name, rows in self.parts.items()}

    def joined(self, values: Mapping[str, Tensor]) -> Tensor:
        """The opposite of `split`."""
        parts = [values[name] for name in self.parts]
        return torch.cat(parts) if parts[0].dim() and len(parts) > 1 else parts[0].clone()


def leaves(model: nn.Module) -> list[Leaf]:
    """Everything trainable in the model, each parameter once."""
    return list(_leaves(model))


def _leaves(model: nn.Module) -> Iterator[Leaf]:
    pooled: set[str] = set()
    for prefix, module in model.named_modules():
        if isinstance(module, Tables):
            for pool in module.pools:
                parts = {f"{prefix}.{name}" if prefix else name: rows for name, rows in pool.parts.items()}
                pooled |= parts.keys()
                yield Leaf(pool.weight, parts, pool)
    for name, parameter in model.named_parameters():
        if name not in pooled and parameter.numel():  # a sharded table that lives elsewhere is empty here
            yield Leaf(parameter, {name: slice(None)})


@dataclass(frozen=True)
class _Lookup:
    """The tables of one collection, its distinct features, and TorchRec's name for each (table, feature)."""

    specs: list[TableSpec]
    features: dict[str, tuple[TableSpec, str]]
    """A table that has the feature, and the field whose ids it is."""
    names: list[list[str]]

    @staticmethod
    def of(specs: list[TableSpec]) -> "_Lookup":
        names = get_embedding_names_by_table([_bag_config(spec) for spec in specs])
        features = {
            feature: (spec, field) for spec in specs for feature, field in zip(spec.features, spec.readers, strict=True)
        }
        return _Lookup(specs, features, names)


def _keys(specs: Iterable[TableSpec]) -> tuple[Key, ...]:
    return tuple((spec.name, spec.field) for spec in specs if spec.field is not None)


def _numbers(index: str) -> Tensor:
    """The block of each category, (cardinality,) uint8."""
    return torch.frombuffer(bytearray(unpacked(index)), dtype=torch.uint8)


def _positions(index: str) -> Tensor:
    """The place of each category in the order of an index, (cardinality,) int64."""
    order_R = _numbers(index).argsort(stable=True)
    return torch.empty_like(order_R).scatter_(0, order_R, torch.arange(len(order_R)))


def _columns(id_BC: Tensor, columns: list[int]) -> Tensor:
    return id_BC if columns == list(range(id_BC.shape[1])) else id_BC[:, columns]


def in_groups(x_ND: Tensor, mask_BT: Tensor) -> Steps | StepGroups:
    """N valid steps, row by row, put into their places among rows of like length.

    The bounds of the groups double, so that at most half of a group is padding (beyond the first). A GPU, which would
    have to wait for the lengths, gets all rows as long as the longest; so do a few rows.
    """
    length_B = mask_BT.sum(dim=1)
    if mask_BT.device.type != "cpu" or len(mask_BT) < FEW_ROWS:
        return padded(x_ND, mask_BT)
    group_B = torch.bucketize(length_B, torch.tensor(BOUNDS))
    order_B = group_B.argsort(stable=True)
    step_BT = torch.zeros_like(mask_BT, dtype=torch.int64).masked_scatter(mask_BT, torch.arange(len(x_ND)))
    parts = []
    for rows in torch.split(order_B, [size for size in torch.bincount(group_B).tolist() if size]):
        longest = max(int(length_B[rows].max()), 1)
        held = mask_BT[rows, :longest]
        parts.append(padded(x_ND.index_select(0, step_BT[rows, :longest][held]), held))
    return StepGroups(parts, order_B)


def _double(value: Steps | StepGroups) -> Steps | StepGroups:
    if isinstance(value, StepGroups):
        return replace(value, parts=[replace(part, x=part.x.double()) for part in value.parts])
    return replace(value, x=value.x.double())


def padded(x_ND: Tensor, mask_BT: Tensor) -> Steps:
    """N valid steps, row by row, put into their places; zeros elsewhere."""
    zeros_BTD = x_ND.new_zeros(*mask_BT.shape, x_ND.shape[1])
    return Steps(zeros_BTD.masked_scatter(mask_BT[..., None], x_ND), mask_BT)


def _bag_config(spec: TableSpec) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(**_config(spec))


def _config(spec: TableSpec) -> dict[str, Any]:
    return {
        "name": spec.name,
        "embedding_dim": spec.dim,
        "num_embeddings": spec.rows,
        "feature_names": spec.features,
    }
