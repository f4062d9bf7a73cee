"""Low fidelity: trials on some of the rows, with categories that share rows of the tables (AutoCTR, Song 2020).

The model of a trial is that of the candidate with smaller tables; what is found is the candidate.
"""

from dataclasses import replace

import torch
from torch import Tensor

from trainer.architecture import Architecture
from trainer.data import Jagged, Table
from trainer.settings import FidelitySettings


def reduced(architecture: Architecture, fidelity: FidelitySettings) -> Architecture:
    """The architecture with no table of more rows than `fidelity.hash`."""
    if fidelity.hash is None:
        return architecture
    fields = {
        name: field.model_copy(update={"cardinality": min(field.cardinality, fidelity.hash)})
        for name, field in architecture.fields.items()
    }
    return architecture.model_copy(update={"fields": fields})


def share(table: Table, fidelity: FidelitySettings, seed: int) -> Table:
    """A blind share of the rows, which stay in their order."""
    rows = max(1, round(fidelity.rows * table.rows))
    order = torch.randperm(table.rows, generator=torch.Generator().manual_seed(seed))
    return table if rows == table.rows else table.select(order[:rows].sort().values)


def hashed(table: Table, fidelity: FidelitySettings) -> Table:
    """The rows as a `reduced` architecture takes them: ids from `fidelity.hash` on share the rows of those below.

    The unknown, 0, stays by itself. The values of histories follow those of their field.
    """
    size = fidelity.hash
    if size is None:
        return table
    fields = tuple(
        field.model_copy(update={"cardinality": min(field.cardinality, size)}) for field in table.schema.fields
    )
    return replace(
        table,
        schema=table.schema.model_copy(update={"fields": fields}),
        categorical=_hashed(table.categorical, size),
        sequences={
            name: Jagged(_hashed(column.values, size), column.offsets) for name, column in table.sequences.items()
        },
    )


def _hashed(ids: Tensor, size: int) -> Tensor:
    return torch.where(ids > 0, 1 + (ids - 1) % (size - 1), 0).to(ids.dtype)
