"""Checkpoint files: whole or not counted, and never code."""

import pickle
from pathlib import Path

import pytest
import torch

from trainer.checkpoint import Checkpoints


def state(number: int) -> dict[str, object]:
    return {"weights": {"a": torch.full((50, 4), float(number))}, "history": [{"epoch": number}], "best_epoch": number}


def store(folder: Path, key: str = "k") -> Checkpoints:
    return Checkpoints(folder / "states", key)


def test_the_newest_state_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    assert store(tmp_path).newest() is None
    for epoch in range(5):
        store(tmp_path).save(epoch, state(epoch))
    newest = store(tmp_path).newest()
    assert newest is not None
    assert newest["best_epoch"] == 4
    assert torch.equal(newest["weights"]["a"], torch.full((50, 4), 4.0))
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == ["epoch-00003.pt", "epoch-00004.pt"]


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    position = content.index(bytes.fromhex("0000803f") * 8)  # 1.0 in the weights
    return content[:position] + b"\xff" + content[position + 1 :]


def empty(content: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("tear", [cut, flip, empty])
def test_torn_files_are_passed_over(tmp_path: Path, tear: object) -> None:
    store(tmp_path).save(0, state(0))
    store(tmp_path).save(1, state(1))
    newest = tmp_path / "states" / "epoch-00001.pt"
    newest.write_bytes(tear(newest.read_bytes()))  # type: ignore[operator]
    found = store(tmp_path).newest()
    assert found is not None
    assert found["best_epoch"] == 0


def test_files_left_behind_by_a_kill_do_not_count(tmp_path: Path) -> None:
    store(tmp_path).save(0, state(0))
    (tmp_path / "states" / ".epoch-00001.pt.0.partial").write_bytes(b"half")
    found = store(tmp_path).newest()
    assert found is not None
    assert found["best_epoch"] == 0


def test_states_of_another_training_do_not_count(tmp_path: Path) -> None:
    store(tmp_path, "k").save(0, state(0))
    assert store(tmp_path, "other").newest() is None


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("evil"),)


def test_pickled_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "states").mkdir()
    torch.save({"key": "k", "state": Evil()}, tmp_path / "states" / "epoch-00000.pt")
    with pytest.raises(pickle.UnpicklingError):
        store(tmp_path).newest()
    assert not (tmp_path / "evil").exists()


def test_a_full_disk_is_an_os_error_and_leaves_the_state_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store(tmp_path).save(0, state(0))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trainer.checkpoint.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store(tmp_path).save(1, state(1))
    found = store(tmp_path).newest()
    assert found is not None
    assert found["best_epoch"] == 0
