"""Weights and training states on disk: whole or absent, and free of pickled code.

A model's weights are one safetensors file by the names of its `state_dict`. A training's state after an epoch is one
file, written aside, flushed to the disk and renamed, so a kill leaves the state before it. Whatever else may have torn
a file (a broken disk, a copied folder), checksums show it, and the newest whole state counts.
"""

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import nn

from trainer.sharding import gather, local_weights, rank_and_world

_KEPT = 2
"""States kept at a time: the newest, and the one before should the newest be torn."""


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all weights as safetensors. Of a sharded model the first process writes those of all (all must call)."""
    merged = gather(local_weights(model))
    if merged is not None:
        tensors = {name: value.contiguous() for name, value in merged.items()}
        _write(path, save(tensors))


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights of a file of `save_weights` into a model of the same architecture."""
    model.load_state_dict(load_file(path))


class Checkpoints:
    """The states of one training in one folder, `epoch-00003.pt` being that after epoch 3."""

    def __init__(self, folder: Path, key: str) -> None:
        """`key` names the training (its settings and seed); states of another training in the folder do not count."""
        self.folder = folder
        self.key = key

    def save(self, epoch: int, state: dict[str, Any]) -> None:
        """Commit the state after `epoch` (tensors, numbers, strings, lists and dicts) and drop the old ones.

        Of a sharded training the first process commits the parts of all (all must call).
        """
        merged = gather(state)
        if merged is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        memory = io.BytesIO()
        torch.save({"key": self.key, "state": merged}, memory)
        _write(self.folder / f"epoch-{epoch:05d}.pt", memory.getbuffer())
        for old in self._newest_first()[_KEPT:]:
            old.unlink()

    def newest(self) -> dict[str, Any] | None:
        """The newest whole state, if there is one."""
        return next(self._whole(), None)

    def _whole(self) -> Iterator[dict[str, Any]]:
        for path in self._newest_first():
            saved = _read(path)
            if saved is not None and saved["key"] == self.key:
                yield saved["state"]

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("epoch-*.pt"), reverse=True)


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a state file, or None if it is torn (its parts carry CRC-32 sums)."""
    try:
        with zipfile.ZipFile(path) as parts:
            if parts.testzip() is not None:
                return None
    except zipfile.BadZipFile:
        return None
    saved: dict[str, Any] = torch.load(path, weights_only=True)
    return saved


def _write(path: Path, content: bytes | memoryview) -> None:
    """Write aside, flush and rename: afterwards `path` is the old file or the new one, also after a power cut."""
    aside = path.with_name(f".{path.name}.{rank_and_world()[0]}.partial")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
