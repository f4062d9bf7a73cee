"""All embedding tables of a model, held by TorchRec so that `DistributedModelParallel` can shard them.

Tables that sequences use live in one `EmbeddingCollection` per width, all others in one `EmbeddingBagCollection`.

Unsharded, both collections walk jagged tensors in Python, table by table, though here every bag holds exactly one id
and its sum is the row itself. So as long as nothing has sharded them, rows are read straight from their parameters
(a quarter faster for eight fields on one CPU thread; same numbers). Setting `sparse` on the `nn.EmbeddingBag` and
`nn.Embedding` modules inside gives sparse gradients on this way as well.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, EmbeddingCollection, EmbeddingConfig, KeyedJaggedTensor
from torchrec.modules.embedding_modules import get_embedding_names_by_table

from trainer.data import Batch
from trainer.modules.values import Steps


@dataclass(frozen=True)
class TableSpec:
    """One table: its name, who looks rows up in it, and its size."""

    name: str
    rows: int
    dim: int
    field: str | None
    """The categorical field with one id per row, if one reads the table."""
    sequences: tuple[str, ...] = ()
    """Sequence fields that read the table."""

    @property
    def features(self) -> list[str]:
        return [*([self.field] if self.field else []), *self.sequences]


@dataclass(frozen=True)
class Rows:
    """Looked-up rows: one (B, dim) per (table, categorical field), one Steps per (table, sequence field)."""

    single: dict[tuple[str, str], Tensor]
    steps: dict[tuple[str, str], Steps]


class Tables(nn.Module):
    """The tables, and the look-up of a batch in all of them."""

    def __init__(self, specs: Iterable[TableSpec], columns: Mapping[str, int], table_init: float) -> None:
        """`columns`: position of each categorical field in `Batch.categorical`. Rows start normal, std `table_init`."""
        super().__init__()
        self.columns = dict(columns)
        self.specs = ordered = list(specs)
        pooled = [spec for spec in ordered if not spec.sequences]
        self.bags: Any = _bags(pooled, table_init) if pooled else None
        self.embeddings = nn.ModuleDict()
        self._bag_lookup = _Lookup.of(pooled)
        self._lookups: dict[str, _Lookup] = {}
        for dim in sorted({spec.dim for spec in ordered if spec.sequences}):
            group = [spec for spec in ordered if spec.sequences and spec.dim == dim]
            self.embeddings[str(dim)] = _embeddings(group, table_init)
            self._lookups[str(dim)] = _Lookup.of(group)

    def forward(self, batch: Batch) -> Rows:
        rows = Rows({}, {})
        masks = {name: _mask(batch.sequences[name], lengths) for name, lengths in batch.lengths.items()}
        if isinstance(self.bags, EmbeddingBagCollection):
            self._read(batch, masks, self._bag_lookup, self.bags.embedding_bags, rows)
        elif self.bags is not None:
            self._ask(batch, masks, self._bag_lookup, self.bags, rows)
        for dim, module in self.embeddings.items():
            if isinstance(module, EmbeddingCollection):
                self._read(batch, masks, self._lookups[dim], module.embeddings, rows)
            else:
                self._ask(batch, masks, self._lookups[dim], module, rows)
        return rows

    def _read(
        self, batch: Batch, masks: Mapping[str, Tensor], lookup: "_Lookup", modules: nn.ModuleDict, rows: Rows
    ) -> None:
        """Rows straight from the parameters of unsharded tables."""
        for spec in lookup.specs:
            module: Any = modules[spec.name]
            if spec.field is not None:
                ids_B = batch.categorical[:, self.columns[spec.field]]
                rows.single[spec.name, spec.field] = _rows(module, ids_B)
            for name in spec.sequences:
                # Valid steps only: padding must not touch row 0, not even with a gradient of zero.
                valid_N = batch.sequences[name][masks[name]]
                x_ND = _rows(module, valid_N)
                rows.steps[spec.name, name] = _padded(x_ND, masks[name])

    def _ask(
        self, batch: Batch, masks: Mapping[str, Tensor], lookup: "_Lookup", collection: nn.Module, rows: Rows
    ) -> None:
        """Rows from a sharded collection, through TorchRec's own format."""
        answer = collection(self._jagged(batch, masks, lookup))
        pooled = collection is self.bags
        found = answer.to_dict() if pooled else answer
        for spec, names in zip(lookup.specs, lookup.names, strict=True):
            for feature, name in zip(spec.features, names, strict=True):
                x = found[name] if pooled else found[name].values()
                if feature == spec.field:
                    rows.single[spec.name, feature] = x
                else:
                    rows.steps[spec.name, feature] = _padded(x, masks[feature])

    def _jagged(self, batch: Batch, masks: Mapping[str, Tensor], lookup: "_Lookup") -> KeyedJaggedTensor:
        ones_B = torch.ones(batch.size, dtype=torch.int64, device=batch.label.device)
        values, lengths = [], []
        for feature in lookup.features:
            single = feature in self.columns
            values.append(batch.categorical[:, self.columns[feature]] if single else _valid(batch, masks, feature))
            lengths.append(ones_B if single else batch.lengths[feature])
        return KeyedJaggedTensor(
            keys=list(lookup.features), values=torch.cat(values), lengths=torch.cat(lengths), stride=batch.size
        )


@dataclass(frozen=True)
class _Lookup:
    """The tables of one collection, its distinct features, and TorchRec's name for each (table, feature)."""

    specs: list[TableSpec]
    features: list[str]
    names: list[list[str]]

    @staticmethod
    def of(specs: list[TableSpec]) -> "_Lookup":
        names = get_embedding_names_by_table([_bag_config(spec, 1.0) for spec in specs])
        return _Lookup(specs, list(dict.fromkeys(feature for spec in specs for feature in spec.features)), names)


def _rows(module: Any, ids_N: Tensor) -> Tensor:
    """Rows of an unsharded table, (N, dim)."""
    if module.sparse:
        return functional.embedding(ids_N, module.weight, sparse=True)
    # Its dense gradient costs a third of `functional.embedding`'s on a CPU.
    return module.weight.index_select(0, ids_N)  # type: ignore[no-any-return]


def _mask(ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
    return torch.arange(ids_BT.shape[1], device=ids_BT.device) < lengths_B[:, None]


def _valid(batch: Batch, masks: Mapping[str, Tensor], name: str) -> Tensor:
    return batch.sequences[name][masks[name]]


def _padded(x_ND: Tensor, mask_BT: Tensor) -> Steps:
    """N valid steps, row by row, put into their places; zeros elsewhere."""
    zeros_BTD = x_ND.new_zeros(*mask_BT.shape, x_ND.shape[1])
    return Steps(zeros_BTD.masked_scatter(mask_BT[..., None], x_ND), mask_BT)


def _bags(specs: Iterable[TableSpec], table_init: float) -> EmbeddingBagCollection:
    return EmbeddingBagCollection(tables=[_bag_config(spec, table_init) for spec in specs])


def _bag_config(spec: TableSpec, table_init: float) -> EmbeddingBagConfig:
    return EmbeddingBagConfig(**_config(spec, table_init))


def _embeddings(specs: Iterable[TableSpec], table_init: float) -> EmbeddingCollection:
    return EmbeddingCollection(tables=[EmbeddingConfig(**_config(spec, table_init)) for spec in specs])


def _config(spec: TableSpec, table_init: float) -> dict[str, Any]:
    return {
        "name": spec.name,
        "embedding_dim": spec.dim,
        "num_embeddings": spec.rows,
        "feature_names": spec.features,
        "init_fn": partial(nn.init.normal_, std=table_init),
    }
