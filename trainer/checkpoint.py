"""Weights and training states on disk or in an object store: whole or not counted, and free of pickled code.

A model's weights are one safetensors file by the names of its `state_dict`. A training's state is a folder:

    epoch-00003-step-000000480/      480 steps into epoch 3
        shard-00000.safetensors      pieces of tensors, by the process that wrote them
        shard-00001.safetensors
        commit.json                  written last: which piece is where, all that is no tensor, sizes and checksums

`torch.distributed.checkpoint` decides who writes what and who has to read what, so that any number of processes reads
what any other number wrote. Its own file formats are not used: they are read by unpickling. A folder without a commit,
or with a file that is not what the commit says, does not count; the one before it is kept for that.
"""

import hashlib
import io
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
import torch.distributed as dist
from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from trainer.pieces import Piece, Shape
from trainer.processes import rank_and_world
from trainer.sharding import pieces as pieces_of

COMMIT = "commit.json"
_PREFIX = "epoch-"
_ALL = "tensors"
"""DCP sees a state as one entry: it would write several log records for each."""
_BLOCK = 1 << 26
"""Bytes read or written at a time."""
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names that safetensors has for them."""
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

T = TypeVar("T")


def save_weights(model: nn.Module, path: Path) -> None:
    """Write all weights as one safetensors file. Of a sharded model the first process does (all must call)."""
    rank, world = rank_and_world()
    spread = pieces_of(model)
    if world == 1:
        weights = {name: piece.tensor for name, [piece] in spread.items()}
    else:
        aside = path.with_name(f".{path.name}.pieces")
        place = _Place(*url_to_fs(str(aside)))
        _save(place, spread, {})
        if rank > 0:
            return
        commit = place.commit()
        assert commit is not None
        weights = {name: piece.tensor for name, [piece] in _load(place, commit, _whole, alone=True).items()}
        shutil.rmtree(aside)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        _pack(file, weights)
    partial.replace(path)
    _flush_folder(path.parent)


def load_weights(model: nn.Module, path: Path) -> None:
    """Copy the weights of a file of `save_weights` into a model of the same architecture."""
    model.load_state_dict(load_file(path))


@dataclass(frozen=True)
class State:
    """A training's state. Two processes may hold different tensors, or different pieces of one."""

    tensors: dict[str, list[Piece]]
    facts: dict[str, Any]
    """The rest, as JSON can hold it; the first process's count."""


Room = Callable[[str, Shape, torch.dtype], list[Piece]]
"""Name, whole shape and type of a saved tensor -> the pieces that this process wants to have filled with it."""


class Checkpoints:
    """The states of one training in one folder."""

    def __init__(self, folder: Path | str, key: str) -> None:
        """
        Args:
            folder: a path or any fsspec URL; all processes must see the same one.
            key: names the training (its settings and seed); states of another training in the folder do not count.
        """
        self._root = _Place(*url_to_fs(str(folder)))
        self.key = key

    def save(self, epoch: int, step: int, state: State) -> None:
        """Commit the state after `step` steps of `epoch`; it and the one before it are kept. All processes must call.

        Raises:
            OSError: it could not be written; the states before are left as they were.
        """
        name = f"{_PREFIX}{epoch:05d}-step-{step:09d}"
        _save(self._root / name, state.tensors, {"key": self.key, "facts": state.facts})
        if rank_and_world()[0] == 0:
            self._drop_all_but(name)

    def newest(self, room: Room) -> State | None:
        """The newest whole state, if there is one, read into what `room` offers. All processes must call."""
        for name in _by_first(self._newest_first):
            place = self._root / name
            commit = _by_first(place.commit)
            if commit is not None and commit["key"] == self.key and _intact(place, commit["files"]):
                return State(_load(place, commit, room), commit["facts"])
        return None

    def _newest_first(self) -> list[str]:
        return sorted((name for name in self._root.names() if name.startswith(_PREFIX)), reverse=True)

    def _drop_all_but(self, newest: str) -> None:
        """What is newer is torn, or left of another future; what has no commit was left by a kill."""
        before = (name for name in self._newest_first() if name < newest and (self._root / name).has(COMMIT))
        kept = {newest, next(before, newest)}
        for name in set(self._newest_first()) - kept:
            (self._root / name).remove()


class _Place:
    """A folder, wherever it is."""

    def __init__(self, files: AbstractFileSystem, path: str) -> None:
        self._files, self._path = files, path

    def __truediv__(self, name: str) -> "_Place":
        return _Place(self._files, f"{self._path}/{name}")

    def names(self) -> list[str]:
        """Of all that is in it; none if there is no such folder."""
        self._files.invalidate_cache()  # other processes write too
        try:
            return [path.rstrip("/").rsplit("/", 1)[-1] for path in self._files.ls(self._path, detail=False)]
        except FileNotFoundError:
            return []

    def has(self, name: str) -> bool:
        return bool(self._files.exists(f"{self._path}/{name}"))

    def remove(self) -> None:
        if self._files.exists(self._path):
            self._files.rm(self._path, recursive=True)

    def make(self) -> None:
        self._files.makedirs(self._path, exist_ok=True)

    def open(self, name: str, mode: str) -> IO[bytes]:
        file: IO[bytes] = self._files.open(f"{self._path}/{name}", mode)
        return file

    def commit(self) -> dict[str, Any] | None:
        """What the commit says; None if it is missing or torn."""
        try:
            with self.open(COMMIT, "rb") as file:
                signed = json.loads(file.read())
            commit: dict[str, Any] = signed["commit"]
            return commit if signed["sha256"] == _digest(json.dumps(commit)) else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def _save(place: _Place, tensors: Mapping[str, Sequence[Piece]], commit: dict[str, Any]) -> None:
    with _own_errors():
        dcp_save({_ALL: tensors}, storage_writer=_Writer(place, commit), planner=_SavePlanner())


def _load(place: _Place, commit: dict[str, Any], room: Room, *, alone: bool = False) -> dict[str, list[Piece]]:
    """All tensors of which `room` wants something; `alone`: the other processes have no part in it."""
    wanted = {
        name: room(name, tuple(saved["shape"]), _DTYPES[saved["dtype"]]) for name, saved in commit["tensors"].items()
    }
    with _own_errors():
        dcp_load({_ALL: wanted}, storage_reader=_Reader(place, commit), planner=_LoadPlanner(), no_dist=alone)
    return {name: pieces for name, pieces in wanted.items() if pieces}


def _whole(name: str, shape: Shape, dtype: torch.dtype) -> list[Piece]:
    return [Piece.whole(torch.empty(shape, dtype=dtype))]


@contextmanager
def _own_errors() -> Iterator[None]:
    """Every process raises what one of them met, not DCP's wrapper of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process is no mistake
        try:
            yield
        except CheckpointException as failed:
            error, _ = next(iter(failed.failures.values()))
            raise error from None


def _by_first(ask: Callable[[], T]) -> T:
    """What the first process gets as the answer, on all."""
    rank, world = rank_and_world()
    if world == 1:
        return ask()
    answer = [ask() if rank == 0 else None]
    dist.broadcast_object_list(answer)
    return answer[0]  # type: ignore[return-value]


def _intact(place: _Place, files: dict[str, dict[str, Any]]) -> bool:
    """Whether all files are what was written; each process reads its share of them."""
    rank, world = rank_and_world()
    mine = sorted(files)[rank::world]
    intact = torch.tensor(all(_checksum(place, name, files[name]["bytes"]) == files[name]["sha256"] for name in mine))
    if world > 1:
        dist.all_reduce(intact, dist.ReduceOp.MIN)
    return bool(intact)


def _checksum(place: _Place, name: str, size: int) -> str | None:
    """None if the file is missing or of another size."""
    digest, left = hashlib.sha256(), size
    try:
        with place.open(name, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                left -= len(block)
    except FileNotFoundError:
        return None
    return digest.hexdigest() if left == 0 else None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


# ---- what torch.distributed.checkpoint asks for ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """Where a piece went: its first byte, and the file with its size and checksum."""

    file: str
    begin: int
    bytes: int
    sha256: str


class _SavePlanner(DefaultSavePlanner):
    """DCP's way to choose among equal pieces of several processes and to check the whole, for `Piece`s."""

    def __init__(self) -> None:
        # What processes hold alike may differ in batch norm's statistics: those of the first count.
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False, dedup_save_to_lowest_rank=True)

    def create_local_plan(self) -> SavePlan:
        tensors: dict[str, list[Piece]] = self.state_dict[_ALL]
        self._held = _by_index(tensors)
        return SavePlan([_write_item(name, piece) for name, held in tensors.items() for piece in held])

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self._held[index]


class _LoadPlanner(DefaultLoadPlanner):
    """Reads into `Piece`s."""

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        assert metadata is not None
        self._wanted: dict[str, list[Piece]] = state_dict[_ALL]
        self._held, self._saved = _by_index(self._wanted), metadata.state_dict_metadata

    def create_local_plan(self) -> LoadPlan:
        items = []
        for name, held in self._wanted.items():
            saved = self._saved[name]
            assert isinstance(saved, TensorStorageMetadata)
            if any(piece.shape != saved.size for piece in held):
                raise ValueError(f"{name} is of another shape in the checkpoint, {tuple(saved.size)}")
            items += create_read_items_for_chunk_list(name, saved, [_chunk(piece) for piece in held])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self._held[index]


def _by_index(tensors: Mapping[str, Sequence[Piece]]) -> dict[MetadataIndex, Tensor]:
    return {MetadataIndex(name, piece.offsets): piece.tensor for name, held in tensors.items() for piece in held}


class _Writer(StorageWriter):
    """One file per process, then the commit by the first."""

    def __init__(self, place: _Place, commit: dict[str, Any]) -> None:
        self._place, self._commit = place, commit

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        # Before anybody writes: whatever a killed process has left here goes.
        self._place.remove()
        self._place.make()
        return [replace(plan, storage_data=f"shard-{rank:05d}.safetensors") for rank, plan in enumerate(plans)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        done: Future[list[WriteResult]] = Future()
        done.set_result(self._write(plan, planner) if plan.items else [])
        return done

    def _write(self, plan: SavePlan, planner: SavePlanner) -> list[WriteResult]:
        name: str = plan.storage_data
        tensors = {_entry(item.index): planner.resolve_data(item) for item in plan.items}
        with self._place.open(name, "wb") as file:
            begin, size, checksum = _pack(file, tensors)  # type: ignore[arg-type]
        return [
            WriteResult(item.index, 0, _Stored(name, begin[_entry(item.index)], size, checksum)) for item in plan.items
        ]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        stored: dict[MetadataIndex, _Stored] = {}
        for written in results:
            stored |= {result.index: result.storage_data for result in written}
        tensors = {
            name: {
                "dtype": _NAMES[saved.properties.dtype],
                "shape": list(saved.size),
                "pieces": [_described(name, chunk, stored) for chunk in saved.chunks],
            }
            for name, saved in metadata.state_dict_metadata.items()
            if isinstance(saved, TensorStorageMetadata)
        }
        files = {piece.file: {"bytes": piece.bytes, "sha256": piece.sha256} for piece in stored.values()}
        text = json.dumps({**self._commit, "tensors": tensors, "files": files})
        with self._place.open(COMMIT, "wb") as file:
            file.write(f'{{"sha256": "{_digest(text)}", "commit": {text}}}'.encode())
            _flush(file)

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


class _Reader(StorageReader):
    def __init__(self, place: _Place, commit: dict[str, Any]) -> None:
        self._place, self._tensors = place, commit["tensors"]

    def read_metadata(self) -> Metadata:
        return Metadata(
            {
                name: TensorStorageMetadata(
                    TensorProperties(dtype=_DTYPES[saved["dtype"]]),
                    torch.Size(saved["shape"]),
                    [
                        ChunkStorageMetadata(torch.Size(piece["offsets"]), torch.Size(piece["shape"]))
                        for piece in saved["pieces"]
                    ],
                )
                for name, saved in self._tensors.items()
            }
        )

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        stored = {
            MetadataIndex(name, piece["offsets"]): piece
            for name, saved in self._tensors.items()
            for piece in saved["pieces"]
        }
        for name in sorted({stored[item.storage_index]["file"] for item in plan.items}):
            with self._place.open(name, "rb") as file:
                for item in plan.items:
                    piece = stored[item.storage_index]
                    if piece["file"] == name:
                        target = planner.resolve_tensor(item)
                        _unpack(file, piece["begin"], piece["shape"], item.storage_offsets, target)
                        planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None: ...

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def _chunk(piece: Piece) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(piece.offsets), piece.tensor.shape)


def _write_item(name: str, piece: Piece) -> WriteItem:
    data = TensorWriteData(_chunk(piece), TensorProperties(dtype=piece.tensor.dtype), torch.Size(piece.shape))
    return WriteItem(MetadataIndex(name, piece.offsets), WriteItemType.SHARD, tensor_data=data)


def _entry(index: MetadataIndex) -> str:
    """A piece's name in its file, which may hold several of one tensor."""
    return f"{index.fqn}@{','.join(map(str, index.offset or ()))}"


def _described(name: str, chunk: ChunkStorageMetadata, stored: dict[MetadataIndex, _Stored]) -> dict[str, Any]:
    where = stored[MetadataIndex(name, chunk.offsets)]
    return {"offsets": list(chunk.offsets), "shape": list(chunk.sizes), "file": where.file, "begin": where.begin}


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _pack(file: IO[bytes], tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], int, str]:
    """Write tensors in the format of safetensors without a second copy of all; where each begins, size and SHA-256."""
    # Wide types first, so that every value is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header: dict[str, Any] = {}
    end = 0
    for name, tensor in ordered:
        offsets = [end, end := end + tensor.numel() * tensor.itemsize]
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    digest = hashlib.sha256()
    for block in _blocks([len(text).to_bytes(8, "little"), text], (tensor for _, tensor in ordered)):
        file.write(block)
        digest.update(block)
    _flush(file)
    return {name: start + header[name]["data_offsets"][0] for name in header}, start + end, digest.hexdigest()


def _blocks(head: Sequence[bytes], tensors: Iterator[Tensor]) -> Iterator[bytes | memoryview]:
    yield from head
    for tensor in tensors:
        content = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for first in range(0, len(content), _BLOCK):
            yield content[first : first + _BLOCK]


def _unpack(file: IO[bytes], begin: int, shape: Sequence[int], offsets: Sequence[int], target: Tensor) -> None:
    """Copy into `target` a box of the same size out of the saved piece of `shape` that begins at byte `begin`."""
    if target.numel() == 0:
        return
    if target.dim() == 0:
        shape, offsets, target = (1,), (0,), target.view(1)
    row = math.prod(shape[1:]) * target.itemsize
    at_once = max(1, _BLOCK // row)
    for first in range(0, target.shape[0], at_once):
        rows = target[first : first + at_once]
        file.seek(begin + (offsets[0] + first) * row)
        content = torch.frombuffer(bytearray(file.read(rows.shape[0] * row)), dtype=target.dtype)
        box = content.view(rows.shape[0], *shape[1:])
        for dim in range(1, target.dim()):
            box = box.narrow(dim, offsets[dim], target.shape[dim])
        rows.copy_(box)


def _flush(file: IO[bytes]) -> None:
    file.flush()
    with suppress(io.UnsupportedOperation):  # a file of an object store
        os.fsync(file.fileno())


def _flush_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
