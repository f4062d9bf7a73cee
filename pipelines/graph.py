"""The four steps of a pipeline as data: what each reads, and when its result is still good.

A step's digest covers the settings it depends on, the files that its input steps have made, the state of its source
files and its code. Equal digests mean equal results, so a complete folder with the digest of today is not made again.
Where a step is made again and comes to the same files (rows that were copied to another place, code that was tidied),
the steps behind it are kept.
"""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import components
from components.artifacts import digest_of
from components.dataset import DatasetSpec
from pipelines.spec import SearchPipeline

ROOT = Path(components.__file__).parents[1]
PACKAGES = ("components", "trainer")
WITHOUT_EFFECT = {"components.events", "components.tracking"}
"""Modules that report what a step does, and cannot change what it makes."""


@dataclass(frozen=True)
class Step:
    """One step. Paths such as `train.seeds` name keys below `spec`."""

    name: str
    inputs: tuple[str, ...]
    """Earlier steps whose folders it reads."""
    settings: tuple[str, ...]
    """The parts of the file that its result depends on."""
    without: tuple[str, ...] = ()
    """Keys in these parts that have no effect on the result."""
    resumable: bool = False
    """Goes on in the folder that a killed run has left. Otherwise it starts in an empty one."""
    extends: tuple[str, ...] = ()
    """Keys whose change leaves finished work valid, so that the step goes on from an earlier result."""
    data: str = ""
    """Files below the repository's root, as a pattern, that belong to its code."""


STEPS = (
    Step("ingest", inputs=(), settings=("dataset",)),
    Step(
        "search",
        inputs=("ingest",),
        settings=("search", "train"),
        without=("train.seeds",),
        resumable=True,
        extends=("search.trials", "search.budget", "train.baselines", "train.baseline_settings", "train.candidates"),
        data="trainer/zoo/*.yaml",
    ),
    Step("train", inputs=("ingest", "search"), settings=("train",), resumable=True),
    Step(
        "evaluate",
        inputs=("ingest", "search", "train"),
        settings=("dataset", "search", "train", "evaluate", "tracking"),  # its report tells them all
        data="components/report.[cj]s*",
    ),
)


@dataclass(frozen=True)
class Plan:
    """A step of one pipeline, with the digests that its result must carry now."""

    step: Step
    digest: str
    resume: str
    """The digest without the keys that the step `extends`."""
    inputs: dict[str, str]
    """Digest of the files of every input step."""
    parts: dict[str, str]
    """Digest of each thing that the result depends on, by its name, to say what has changed."""


def plan(pipeline: SearchPipeline, step: Step, inputs: Mapping[str, str]) -> Plan:
    """What the step's result must carry. `inputs`: digest of the files of every input step.

    Raises:
        UserError: a source cannot be reached.
    """
    spec = pipeline.spec.model_dump(mode="json")
    parts = {
        "its settings": digest_of(_chosen(spec, step.settings, step.without)),
        "its source": _source(pipeline, step),
        "Dalil's code": code_version(step),
        **{f"the result of {name}": digest for name, digest in inputs.items()},
    }
    digest = digest_of(step.name, parts)
    basis = digest_of(_chosen(spec, step.settings, step.without + step.extends))
    resume = digest_of(step.name, parts | {"its settings": basis})
    return Plan(step, digest, resume, dict(inputs), parts)


def _source(pipeline: SearchPipeline, step: Step) -> str:
    """What a step reads besides its settings and its input steps."""
    if step.name == "ingest":
        return digest_of(source_state(pipeline.spec.dataset))
    return digest_of(pipeline.metadata.name) if step.name == "evaluate" else ""


def keys(pipeline: SearchPipeline) -> dict[str, str]:
    """Step -> digest of the settings that it and the steps before it depend on: what the file alone can tell."""
    spec = pipeline.spec.model_dump(mode="json")
    found: dict[str, str] = {}
    for step in STEPS:
        before = {name: found[name] for name in step.inputs}
        found[step.name] = digest_of(step.name, _chosen(spec, step.settings, step.without), before)
    return found


def source_state(dataset: DatasetSpec) -> list[dict[str, str]]:
    """What storage says about the source files (size, time, tag), so that changed files are read again.

    Raises:
        UserError: a source is missing or cannot be read.
    """
    if dataset.format == "planted":
        return []
    from components.source import beside, list_files

    urls = [url for url in (dataset.source, dataset.split.valid, dataset.split.test) if url]
    if dataset.format == "movielens":
        joined = (beside(urls[0], f"{name}.dat", f"{name}.dat.gz") for name in ("users", "movies"))
        urls += [url for url in joined if url]
    return [_file_state(file) for url in urls for file in list_files(url)]


def _file_state(url: str) -> dict[str, str]:
    from fsspec.core import url_to_fs

    files, path = url_to_fs(url)
    info = files.info(path)
    marks = ("size", "mtime", "ETag", "LastModified", "updated", "md5Hash")
    return {"url": url} | {mark: str(info[mark]) for mark in marks if mark in info}


def code_version(step: Step) -> str:
    """Digest of every module of ours that the step imports, directly or not; comments and docstrings do not count."""
    version = sha256()
    for module in sorted(_imported(f"components.{step.name}")):
        version.update(module.encode() + _parsed(module).content)
    for file in sorted(ROOT.glob(step.data)) if step.data else []:
        version.update(file.read_bytes())
    return version.hexdigest()


@dataclass(frozen=True)
class _Module:
    imports: frozenset[str]
    content: bytes


def _imported(entry: str) -> set[str]:
    seen: set[str] = set()
    waiting = [entry]
    while waiting:
        module = waiting.pop()
        if module not in seen | WITHOUT_EFFECT and _file(module):
            seen.add(module)
            waiting += _parsed(module).imports
    return seen


@cache
def _parsed(module: str) -> _Module:
    file = _file(module)
    tree = ast.parse(file.read_bytes()) if file else ast.Module([], [])
    imports = frozenset(name for name in _names(tree) if name.split(".")[0] in PACKAGES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            node.body = [item for item in node.body if not _is_text(item)]
    return _Module(imports, ast.dump(tree).encode())


def _names(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _file(module: str) -> Path | None:
    base = ROOT.joinpath(*module.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def _chosen(spec: dict[str, Any], settings: tuple[str, ...], without: tuple[str, ...]) -> dict[str, Any]:
    """The named parts of the file, without the named keys."""
    parts = {name: dict(spec[name]) for name in settings}
    for path in without:
        part, key = path.split(".")
        parts[part].pop(key)
    return parts
