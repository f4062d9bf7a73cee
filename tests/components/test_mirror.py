"""Folders in an object store: what one pod sends another one finds, whole, and nobody takes away what is not theirs."""

import uuid
from pathlib import Path

import pytest

from components.artifacts import MANIFEST
from components.mirror import Mirror, local_folder


@pytest.fixture
def store() -> str:
    return f"memory://{uuid.uuid4().hex}/runs"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def read(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_text() for path in paths}


def test_what_is_sent_is_found(store: str, tmp_path: Path) -> None:
    write(tmp_path / "mine" / "ingest" / "train", a="1", b="22")
    Mirror(store, tmp_path / "mine").push("ingest")
    Mirror(store, tmp_path / "yours").pull("ingest")
    assert read(tmp_path / "yours" / "ingest") == {"train/a": "1", "train/b": "22"}


def test_only_what_has_changed_is_sent_again(store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(store, tmp_path)
    write(tmp_path / "step", a="1", b="2")
    mirror.push("step")
    sent: list[str] = []
    put = mirror._files.put_file
    monkeypatch.setattr(mirror._files, "put_file", lambda here, there: (sent.append(Path(here).name), put(here, there)))
    write(tmp_path / "step", b="three")
    mirror.push("step")
    assert sent == ["b"]


def test_the_manifest_is_sent_last_and_taken_away_first(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror, order = Mirror(store, tmp_path), list[str]()
    put, remove = mirror._files.put_file, mirror._remove
    monkeypatch.setattr(
        mirror._files, "put_file", lambda here, there: (order.append(Path(here).name), put(here, there))
    )
    monkeypatch.setattr(mirror, "_remove", lambda path: (order.append(f"no {Path(path).name}"), remove(path)))
    write(tmp_path / "step", **{MANIFEST: "{}", "zebra": "1"})
    mirror.push("step")
    assert order[-2:] == ["zebra", MANIFEST]
    (tmp_path / "step" / MANIFEST).unlink()
    write(tmp_path / "step", zebra="another")
    order.clear()
    mirror.push("step")
    assert order[:2] == [f"no {MANIFEST}", "zebra"]


def test_what_is_gone_here_goes_there_but_not_what_others_sent(store: str, tmp_path: Path) -> None:
    mine, yours = Mirror(store, tmp_path / "mine"), Mirror(store, tmp_path / "yours")
    write(tmp_path / "mine" / "step", old="1", kept="2")
    write(tmp_path / "yours" / "step", theirs="3")
    mine.push("step")
    yours.push("step")
    (tmp_path / "mine" / "step" / "old").unlink()
    mine.push("step")
    Mirror(store, tmp_path / "third").pull("step")
    assert read(tmp_path / "third" / "step") == {"kept": "2", "theirs": "3"}


def test_a_single_file(store: str, tmp_path: Path) -> None:
    mine, yours = Mirror(store, tmp_path / "mine"), Mirror(store, tmp_path / "yours")
    write(tmp_path / "mine" / "tracking", key="k")
    mine.push("tracking/key")
    yours.pull("tracking/key")
    assert read(tmp_path / "yours") == {"tracking/key": "k"}
    (tmp_path / "mine" / "tracking" / "key").unlink()
    mine.push("tracking/key")
    Mirror(store, tmp_path / "third").pull("tracking/key")
    assert read(tmp_path / "third") == {}


def test_nothing_there_is_nothing_here(store: str, tmp_path: Path) -> None:
    Mirror(store, tmp_path).pull("search")
    assert read(tmp_path) == {}


def test_a_folder_behind_a_url() -> None:
    assert local_folder("file:///artifacts") == Path("/artifacts")
    assert local_folder("/artifacts") == Path("/artifacts")
    assert local_folder("s3://bucket/runs") is None
