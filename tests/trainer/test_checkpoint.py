"""Checkpoints: whole or not counted, readable in any other cut, anywhere, and never code."""

import json
import math
import os
import pickle
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE, Popen
from uuid import uuid4

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.object_store import s3_files
from tests.trainer.checkpoint_script import MODELS, SETTINGS
from trainer.checkpoint import COMMIT, Checkpoints, State
from trainer.pieces import Piece

SHARD = "shard-00000.safetensors"


def state(number: int) -> State:
    tensors = {"a": torch.full((50, 4), float(number)), "step": torch.tensor(number), "none": torch.empty(0, 3)}
    return State({name: [Piece.whole(t)] for name, t in tensors.items()}, {"number": number, "loss": 0.1 + number})


def whole(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> list[Piece]:
    return [Piece.whole(torch.empty(shape, dtype=dtype))]


def store(folder: Path | str, key: str = "k") -> Checkpoints:
    return Checkpoints(folder, key)


def found(folder: Path | str) -> int | None:
    """The number of the state that is found there; it must be that state."""
    newest = store(folder).newest(whole)
    if newest is None:
        return None
    number: int = newest.facts["number"]
    expected = state(number)
    assert newest.facts == expected.facts
    assert newest.tensors.keys() == expected.tensors.keys()
    for name, [piece] in newest.tensors.items():
        assert piece.tensor.dtype == expected.tensors[name][0].tensor.dtype
        assert torch.equal(piece.tensor, expected.tensors[name][0].tensor)
    return number


def test_the_newest_state_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    assert found(tmp_path / "states") is None
    for number, (epoch, step) in enumerate([(0, 480), (1, 0), (1, 16), (1, 1_000), (9, 0), (10, 0)]):
        store(tmp_path / "states").save(epoch, step, state(number))
        assert found(tmp_path / "states") == number
    left = sorted(path.name for path in (tmp_path / "states").iterdir())
    assert left == ["epoch-00009-step-000000000", "epoch-00010-step-000000000"]
    # Any reader of safetensors can open a shard.
    assert torch.equal(load_file(tmp_path / "states" / left[1] / SHARD)["a@0,0"], torch.full((50, 4), 5.0))


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    """One bit of the last 2.0 in a shard; of the facts in a commit."""
    for what in (bytes.fromhex("00000040"), b'"number": 2'):
        if what in content:
            position = content.rindex(what) + len(what) - 1
            return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
    raise AssertionError


TEARS: dict[str, Callable[[bytes], bytes] | None] = {"cut": cut, "flip": flip, "empty": lambda _: b"", "missing": None}


@pytest.mark.parametrize("name", [SHARD, COMMIT])
@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_state_is_passed_over_and_replaced(tmp_path: Path, name: str, tear: str) -> None:
    for number in range(3):
        store(tmp_path).save(number, 0, state(number))
    torn = tmp_path / "epoch-00002-step-000000000" / name
    how = TEARS[tear]
    torn.unlink() if how is None else torn.write_bytes(how(torn.read_bytes()))
    assert found(tmp_path) == 1
    store(tmp_path).save(1, 16, state(7))
    assert found(tmp_path) == 7
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "epoch-00001-step-000000000",
        "epoch-00001-step-000000016",
    ]


def test_states_of_another_training_do_not_count(tmp_path: Path) -> None:
    store(tmp_path).save(0, 0, state(0))
    assert store(tmp_path, "other").newest(whole) is None


def test_nothing_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a pickle")

    store(tmp_path).save(0, 0, state(0))
    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, forbidden)
    assert found(tmp_path) == 0


def test_a_full_disk_is_an_os_error_and_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path).save(0, 0, state(0))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store(tmp_path).save(1, 0, state(1))
    assert found(tmp_path) == 0


def test_a_state_of_another_model_is_an_error(tmp_path: Path) -> None:
    store(tmp_path).save(0, 0, state(0))
    with pytest.raises(ValueError, match=r"a is of another shape in the checkpoint, \(50, 4\)"):
        store(tmp_path).newest(lambda name, shape, dtype: [Piece.whole(torch.empty(60, 4))] if name == "a" else [])


@pytest.mark.parametrize("url", ["memory://{}/states", "s3://{}/states"])
def test_states_in_an_object_store(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = f"b-{uuid4().hex}"
    with s3_files(monkeypatch) as s3:
        s3.makedirs(bucket)
        folder = url.format(bucket)
        assert found(folder) is None
        for number in range(3):
            store(folder).save(number, 0, state(number))
        assert found(folder) == 2
        files, path = fsspec.core.url_to_fs(folder)
        assert len(files.find(path)) == 4
        shard = f"{path}/epoch-00002-step-000000000/{SHARD}"
        files.pipe(shard, flip(files.cat(shard)))
        assert found(folder) == 1


Cuts = list[int]


def grid(shape: tuple[int, int], rows: Cuts, columns: Cuts, tensor: torch.Tensor) -> list[Piece]:
    """The boxes between these cuts of a tensor, contiguous or not."""
    return [
        Piece(tensor[top:bottom, left:right], shape, (top, left))
        for top, bottom in pairwise([0, *sorted(rows), shape[0]])
        for left, right in pairwise([0, *sorted(columns), shape[1]])
        if top < bottom and left < right
    ]


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_cut_is_read_in_any_other_cut(data: st.DataObject) -> None:
    shape = data.draw(st.tuples(st.integers(1, 12), st.integers(1, 6)))
    cuts = [st.lists(st.integers(0, size), max_size=3) for size in shape]
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int32]))
    saved = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    folder = f"memory://{uuid4().hex}"
    pieces = grid(shape, data.draw(cuts[0]), data.draw(cuts[1]), saved)
    store(folder).save(0, 0, State({"t": pieces}, {}))
    read = torch.zeros(shape, dtype=dtype)
    room = grid(shape, data.draw(cuts[0]), data.draw(cuts[1]), read)
    newest = store(folder).newest(lambda name, shape, dtype: room)
    assert newest is not None
    assert torch.equal(read, saved)


def test_large_tensors_are_read_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.checkpoint._BLOCK", 100)
    store(tmp_path).save(0, 0, state(3))
    assert found(tmp_path) == 3
    assert json.loads((tmp_path / "epoch-00000-step-000000000" / COMMIT).read_text())["commit"]["key"] == "k"


# ---- other numbers of processes --------------------------------------------------------------------------------------


def train(folder: Path, world: int, epoch: int = -1, step: int = -1) -> None:
    """Run the script's trainings up to this step."""
    folder.mkdir(exist_ok=True)
    (folder / "store").unlink(missing_ok=True)
    command = [sys.executable, "-W", "ignore", "-m", "tests.trainer.checkpoint_script", str(folder)]
    processes = [
        Popen(
            [*command, *map(str, (rank, world, epoch, step))],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=PIPE,
        )
        for rank in range(world)
    ]
    errors = [process.communicate(timeout=400)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(errors)


def written(folder: Path) -> State:
    newest = Checkpoints(folder, f"ctr seed 4 {SETTINGS.model_dump_json()}").newest(whole)
    assert newest is not None
    newest.facts["begun"].pop("seconds")
    return newest


@pytest.mark.slow
def test_a_training_goes_on_with_any_other_number_of_processes(tmp_path: Path) -> None:
    """2, 1 and again 2 processes, each stopped in the middle of an epoch of 40 steps; weights, moments and averages are
    read as they were written, also where a process has no table.
    """
    train(tmp_path / "whole", 1)
    train(tmp_path / "cut", 2, 0, 36)
    for world, stop in ((1, (1, 20)), (2, (-1, -1))):
        before = {name: written(tmp_path / "cut" / name / "checkpoints") for name in MODELS}
        train(tmp_path / "cut", world, *stop)
        for name, saved in before.items():
            again = written(tmp_path / "cut" / name / f"again-{world}")
            assert again.facts["begun"]["step"] == 16 * (3 - world)
            assert again.tensors.keys() == saved.tensors.keys()
            assert {kind.split("/")[0] for kind in saved.tensors} >= {"weight", "optimizer", "average"}
            for tensor, [piece] in saved.tensors.items():
                assert torch.equal(again.tensors[tensor][0].tensor, piece.tensor), tensor
            assert again.facts == saved.facts
    for name in MODELS:
        ours, expected = (json.loads((tmp_path / run / name / "losses.json").read_text()) for run in ("cut", "whole"))
        assert ours["samples"] == expected["samples"]
        torch.testing.assert_close(torch.tensor(ours["losses"]), torch.tensor(expected["losses"]), rtol=1e-6, atol=0)
    tables = [json.loads((tmp_path / f"cut/one_table/tables-{rank}-of-2.json").read_text()) for rank in range(2)]
    assert [len(held) for held in tables] == [1, 0]
