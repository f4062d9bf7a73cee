"""`dalil plan`: what a pipeline file and its run say of the model to be trained, made a problem for the planner."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from components.outline import outline, resized
from pipelines.spec import SearchPipeline
from trainer import zoo
from trainer.architecture import Architecture, fields_of
from trainer.capacity import Problem, TablePrecision
from trainer.errors import UserError
from trainer.schema import DatasetSchema
from trainer.shapes import infer
from trainer.space import fill_params, pinned

DEFAULT_MODEL = "deepfm"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT])(?:i?B?)", re.IGNORECASE)
_POWERS = {"K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Subject:
    """The model that is planned, and where it and its fields are from."""

    model: str
    origin: str
    fields: str
    problem: Problem


def size(option: str, text: str) -> int:
    """Bytes of `80GB`, `80GiB`, `1TB`: units are powers of 1024 with and without the i, as makers of GPUs mean them.

    Raises UserError for anything else.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise UserError(f"{option} {text}: not a size; write a number and a unit, such as 80GB or 1TB")
    return int(float(found[1]) * 1024 ** _POWERS[found[2].upper()])


def table_rows(texts: Sequence[str]) -> dict[str, int]:
    """`FIELD=N` as given with --rows; N may be written 1000000, 1_000_000 or 1e6. Raises UserError."""
    rows: dict[str, int] = {}
    for text in texts:
        name, mark, number = text.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = 0.0
        if not (mark and name and 1 <= value <= 1e15 and value == int(value)):
            raise UserError(f"--rows {text}: write FIELD=N, N being the rows of the field's table, such as user=1e9")
        rows[name] = int(value)
    return rows


def subject(pipeline: SearchPipeline, folder: Path, model: str | None, rows: dict[str, int], precision: str) -> Subject:
    """The problem that the file describes; sizes and a found architecture from the run in `folder`, if it has them.

    Raises:
        UserError: a size is not known, the model does not fit the fields, or there is no such model or format.
    """
    if precision not in get_args(TablePrecision):
        raise UserError(f"--table-precision {precision}: write one of {', '.join(get_args(TablePrecision))}")
    spec = pipeline.spec
    if spec.dataset.task == "next_item":
        raise UserError("dalil plan: task next_item has its table of items whole on every process; nothing to plan")
    ingested = folder / "ingest" / "schema.json"
    if ingested.exists():
        schema, fields = resized(DatasetSchema.load(ingested.parent), rows), str(ingested)
    else:
        schema, fields = outline(spec.dataset, rows), "the pipeline file"
    name, origin, architecture = _model(pipeline, schema, folder, model)
    infer(architecture)
    problem = Problem(architecture.live(), spec.train.settings(), cast(TablePrecision, precision))
    return Subject(name, origin, fields, problem)


def _model(
    pipeline: SearchPipeline, schema: DatasetSchema, folder: Path, model: str | None
) -> tuple[str, str, Architecture]:
    """Name, origin and architecture: the model asked for, what the search found, the first baseline, or a default."""
    found = folder / "search" / "architectures.json"
    if model is None and found.exists():
        candidates: list[dict[str, Any]] = json.loads(found.read_text())
        champion = next((one for one in candidates if one["origin"] == "found"), candidates[0])
        return champion["name"], str(found), _for_schema(champion["architecture"], schema, found)
    train = pipeline.spec.train
    first = next((name for name in train.baselines if name != "all"), None)
    name = model or first or DEFAULT_MODEL
    origin = "--model" if model else "the first of train.baselines" if first else "the default"
    template = pinned(zoo.template(name, schema), train.baseline(name).choices)
    return name, f"zoo, {origin}", Architecture.from_dict(fill_params(template, {}))


def _for_schema(data: dict[str, Any], schema: DatasetSchema, found: Path) -> Architecture:
    fields = fields_of(schema)
    if list(fields) != list(data["fields"]):
        raise UserError(
            f"{found}: its fields are not those of the dataset now; run the pipeline again, or give --model"
        )
    return Architecture.from_dict({**data, "fields": fields})
