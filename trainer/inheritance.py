"""Tables that pass from trial to trial (AutoCTR, Song 2020), in a file each until no trial can begin with them.

Light to import: the process that hands out trials only removes files.
"""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from torch import Tensor, nn


def save_tables(model: "nn.Module", path: Path) -> None:
    """Write the tables of a model on one process as one safetensors file, whole or not at all."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid4().hex}")  # a worker taken for dead may still write it too
    save_file({name: value.contiguous() for name, value in _tables(model).items()}, partial)
    partial.replace(path)


def inherit(model: "nn.Module", path: Path) -> None:
    """Begin with the tables in a file of `save_tables`, where name and shape are the same; others stay as they are."""
    from safetensors.torch import load_file

    parents = load_file(path)
    for name, value in _tables(model).items():
        if name in parents and parents[name].shape == value.shape:
            value.copy_(parents[name])


def keep(folder: Path, trials: Collection[int]) -> None:
    """Remove the files of all other trials."""
    for file in folder.glob("*.safetensors"):
        if int(file.stem) not in trials:
            file.unlink(missing_ok=True)


def _tables(model: "nn.Module") -> "dict[str, Tensor]":
    from trainer.sharding import local_weights

    return {name: value.detach() for name, value in local_weights(model).items() if name.startswith("tables.")}
