"""Raw logs to a dataset: every row checked, split, and encoded with what training rows teach.

Three passes, each frame by frame, so that memory does not grow with rows (vocabularies aside):
read and check into a working file; learn from training rows; encode into the splits' shards.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from components.check import LABEL, TRUTH, checked
from components.dataset import DatasetSpec
from components.encode import Encoder, Vocabulary
from components.formats import FORMATS, Layout
from components.histories import Grouping, grouped
from components.learn import Learned, Progress, check_splits, learn
from components.plan import Plan, plan
from components.rejects import HeldRejects, Rejects
from components.shards import write_shards
from components.source import ahead, list_files
from components.splits import SPLIT, Assign, random_assign, settled_assign, time_assign
from components.stage import Stage
from trainer import metrics
from trainer.errors import UserError, disk_errors
from trainer.schema import TIME, DatasetSchema

_HOPELESS = 1000
"""Bad rows without a single good one after which reading on is pointless."""


def ingest(spec: DatasetSpec, output: Path, progress: Progress) -> DatasetSchema:
    """Write the dataset that `spec` describes into the empty folder `output`.

    It gets schema.json, statistics.json, rejected.parquet, examples.parquet, vocabulary/<field>.parquet and
    part-*.parquet under train/, valid/ and test/.

    Raises:
        UserError: something is wrong with the source, its rows or the spec.
        NoSpaceError: the output folder is full.
    """
    work = output / ".work"
    with disk_errors(output):
        work.mkdir(parents=True)
        schema = _ingest(spec, output, work, progress)
        shutil.rmtree(work)
    return schema


def _ingest(spec: DatasetSpec, output: Path, work: Path, progress: Progress) -> DatasetSchema:
    files = _files(spec)
    layout = FORMATS[spec.format].describe(spec, [url for url, _ in files])
    planned = plan(spec, layout)
    with Rejects(output / "rejected.parquet") as rejects:
        stage = _read(spec, layout, planned, files, rejects, work, progress)
    stage = _grouped(spec, planned, stage, work, progress)
    _check_labels(spec, planned, stage)
    learned = learn(stage, planned, _assign(spec, stage), spec.split.seed, progress)
    encoder = Encoder.of(learned.fields, _write_vocabularies(learned, output), stage.texts)
    keep = [LABEL, TRUTH] if planned.truth else [LABEL]
    target = planned.target.name if planned.target else None
    _check_target(learned, target)
    written = write_shards(stage, encoder, _assign(spec, stage), output, keep, target, progress)
    statistics = learned.statistics() | {"rejected": dict(rejects.reasons)}
    rows = {split: count - written.unknown[split] for split, count in learned.labels.rows.items()}
    if planned.truth:
        statistics["planted"] = _truth(spec, written.test)
    if target is not None:
        statistics |= {"rows": rows, "unknown_target": written.unknown}
        check_splits(rows)
    schema = learned.schema(spec, planned, rows, rejects.count)
    (output / "statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
    (output / "schema.json").write_text(schema.model_dump_json(indent=1) + "\n")
    return schema


def _files(spec: DatasetSpec) -> list[tuple[str, int]]:
    """(URL, split code, should the user give the splits as files)"""
    if spec.source is None:
        return [(spec.format, 0)]
    pattern = FORMATS[spec.format].files
    given = {0: spec.source, 1: spec.split.valid, 2: spec.split.test}
    return [(file, code) for code, url in given.items() if url for file in list_files(url, pattern)]


def _read(
    spec: DatasetSpec,
    layout: Layout,
    planned: Plan,
    files: list[tuple[str, int]],
    rejects: Rejects,
    work: Path,
    progress: Progress,
) -> Stage:
    """The first pass: every good row into the working file."""
    stage = Stage(work / "rows.arrow", planned.with_vocabulary)
    source = spec.source or spec.format
    for url, code in files:
        for frame in _frames(spec, layout, url, rejects):
            rows = checked(frame, spec, planned, rejects)
            if spec.split.by == "files":
                rows = rows.with_columns(pl.lit(code, pl.Int8).alias(SPLIT))
            stage.append(rows)
            progress(stage.rows, None, "reading")
            if stage.rows == 0 and rejects.count >= _HOPELESS:
                rejects.check(0, spec.max_rejected, source)
    stage.close()
    rejects.check(stage.rows, spec.max_rejected, source)
    if stage.rows == 0:
        raise UserError(f"{source}: there are no rows in it")
    return stage


def _frames(spec: DatasetSpec, layout: Layout, url: str, rejects: Rejects) -> Iterator[pl.DataFrame]:
    """One file's rows, read and cut into columns while the frame before is checked."""
    held = HeldRejects(url)

    def read() -> Iterator[tuple[pl.DataFrame | None, list[tuple[str, pl.DataFrame, str]]]]:
        for frame in FORMATS[spec.format].rows(spec, layout, url, held):
            yield frame, held.release()
        yield None, held.release()

    for frame, rejected in ahead(read()):
        for file, rows, reason in rejected:
            rejects.file = file
            rejects.add(rows, reason)
        rejects.file = url
        if frame is not None:
            yield frame


def _grouped(spec: DatasetSpec, planned: Plan, stage: Stage, work: Path, progress: Progress) -> Stage:
    """The working file again, group by group, where histories, last rows or negatives ask for it."""
    grouping = Grouping(
        histories=planned.histories,
        clicks=spec.task == "ctr",
        last_out=spec.split.by == "leave_last_out",
        negatives=(spec.negatives or 1) if spec.format == "sequence" and spec.task == "ctr" else 0,
        seed=spec.split.seed,
    )
    if not (grouping.histories or grouping.last_out or grouping.negatives):
        return stage
    result = Stage(work / "grouped.arrow", planned.with_vocabulary)
    for frame in grouped(map(stage.texted, stage.frames()), stage.rows, work, grouping):
        result.append(frame)
        progress(result.rows, stage.rows * (1 + grouping.negatives), "bringing groups together")
    result.close()
    stage.delete()
    return result


def _check_target(learned: Learned, target: str | None) -> None:
    known = 2 if target is None else learned.vocabularies[target].height
    if known < 2:
        raise UserError(
            f"dataset: training rows have {known} known values of {target!r}, so there is nothing to predict; check the"
            " sequence's 'of' and min_count"
        )


def _check_labels(spec: DatasetSpec, planned: Plan, stage: Stage) -> None:
    values = stage.labels.by_value
    if spec.task != "next_item" and values is not None and len(values) == 1:
        raise UserError(
            f"{spec.source or spec.format}: the label {planned.label!r} is {next(iter(values)):g} in every row, so"
            " there is nothing to learn; check dataset.label"
        )


def _assign(spec: DatasetSpec, stage: Stage) -> Assign:
    """A fresh assignment: each pass over the rows needs its own, and all give the same splits."""
    split = spec.split
    labels = stage.labels.by_value if split.stratify else None
    if split.by == "time":
        return time_assign(lambda: (frame[TIME].to_numpy() for frame in stage.frames([TIME])), stage.rows, split.ratios)
    if split.by == "random":
        return random_assign(stage.labels.rows, labels, split.ratios, split.seed)
    if split.by == "files" and split.valid is None:
        train_valid = [*split.ratios[:2], 0.0]
        return settled_assign(random_assign(stage.labels.rows, labels, train_valid, split.seed))
    return settled_assign(None)


def _write_vocabularies(learned: Learned, output: Path) -> dict[str, Vocabulary]:
    folder = output / "vocabulary"
    folder.mkdir()
    for name, vocabulary in learned.vocabularies.items():
        pq.write_table(vocabulary.to_arrow(), folder / f"{name}.parquet")
    return {name: Vocabulary(vocabulary["token"]) for name, vocabulary in learned.vocabularies.items()}


def _truth(spec: DatasetSpec, test: pl.DataFrame) -> dict[str, float]:
    """How good the hidden architecture itself is on the test rows: no model can do better but by luck."""
    return metrics.evaluate(spec.task, test[LABEL].to_numpy(), test[TRUTH].to_numpy())
