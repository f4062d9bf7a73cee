"""Artifacts on disk: a step's output folder is complete or absent, and says by digests what it was made from."""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
BLOCK = 1 << 20


@dataclass(frozen=True)
class Manifest:
    """What a complete folder holds, and what it was made from.

    `digest` covers the step's settings, inputs and code; `resume` covers the same but for settings whose change leaves
    finished work valid (see `pipelines.graph`).
    """

    step: str
    digest: str
    resume: str
    inputs: dict[str, str]
    """Digest of the files of every input step."""
    parts: dict[str, str]
    """What went into `digest`, by name."""
    files: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Size in bytes and sha256 of every file, by path within the folder."""

    @staticmethod
    def load(folder: Path) -> "Manifest | None":
        """The folder's manifest; None where there is none that can be read."""
        try:
            return Manifest(**json.loads((folder / MANIFEST).read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def result(self) -> str:
        """Digest of the files: what the steps behind this one depend on."""
        return digest_of(self.files)

    def matches(self, folder: Path) -> bool:
        """Every file is there with its size. Contents are not read again: a rename made them visible all at once."""
        try:
            return all((folder / name).stat().st_size == size for name, (size, _) in self.files.items())
        except OSError:
            return False


def commit(partial: Path, final: Path, manifest: Manifest) -> None:
    """Turn `partial` into `final` so that `final` is complete or absent whenever the machine stops.

    `manifest` comes without its files, which are listed here.
    """
    manifest = replace(manifest, files={name: _seal(partial / name) for name in _files(partial)})
    write_whole(partial / MANIFEST, json.dumps(asdict(manifest), indent=1))
    for folder in (partial, *(path for path in partial.rglob("*") if path.is_dir())):
        sync_folder(folder)
    publish(partial, final)


def publish(partial: Path, final: Path) -> None:
    """Give a sealed folder its final name, in place of what was there."""
    old = final.with_name(final.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    partial.rename(final)
    sync_folder(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    aside = path.with_name(path.name + ".new")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def copy_whole(source: Path, target: Path) -> None:
    """Copy a file so that the copy is there whole or not at all."""
    aside = target.with_name(target.name + ".new")
    shutil.copyfile(source, aside)
    aside.replace(target)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest_of(*parts: Any) -> str:
    """sha256 of JSON data, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _files(folder: Path) -> list[str]:
    """Files of a step's output; names with a leading dot are notes of the machinery, not output."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))


def _seal(path: Path) -> tuple[int, str]:
    """Size and sha256, after the content has reached the disk."""
    sha, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while block := file.read(BLOCK):
            sha.update(block)
            size += len(block)
    return size, sha.hexdigest()
