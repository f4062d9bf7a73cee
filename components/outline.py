"""The schema that a dataset will have, before it is ingested: fields from the file, sizes from the user.

A plan of capacity needs no more than names, kinds and numbers of rows; statistics stay empty.
"""

import difflib
from collections.abc import Mapping

from components.dataset import DatasetSpec
from components.formats import FORMATS, Layout
from components.plan import Plan, PlannedField, plan
from components.source import list_files
from trainer.errors import UserError
from trainer.schema import DatasetSchema, Field, FieldKind, TimePart

FIXED = ("criteo", "avazu", "netflix", "sequence", "planted")
"""Formats whose fields are known without a look at the files."""
PARTS: dict[TimePart, int] = {"hour_of_day": 24, "weekday": 7}


def outline(spec: DatasetSpec, rows: Mapping[str, int]) -> DatasetSchema:
    """The dataset's schema as far as it can be known.

    A table has the rows given in `rows`; else 1 + `hash_buckets`, or 1 + what the file says of generated fields and of
    parts of a time. Where the source is not there, the fields are those that `dataset.fields` declares.

    Raises:
        UserError: the size of some fields is not known; or `rows` names what is no categorical field.
    """
    planned = plan(spec, _layout(spec))
    _check_names(rows, [field.name for field in planned.fields if field.kind == "categorical"])
    sizes = {field.name: rows.get(field.name) or _rows(spec, field) for field in planned.fields}
    unknown = [field.name for field in planned.fields if field.kind == "categorical" and not sizes[field.name]]
    if unknown:
        options = " ".join(f"--rows {name}=N" for name in unknown)
        raise UserError(
            f"dataset.fields: the number of categories of {', '.join(unknown)} is not known before ingest; write"
            f" {options}, or set their hash_buckets"
        )
    return _schema(spec, planned, sizes)


def resized(schema: DatasetSchema, rows: Mapping[str, int]) -> DatasetSchema:
    """An ingested dataset's schema with other numbers of rows. Raises UserError for an unknown field."""
    _check_names(rows, list(schema.names("categorical")))
    fields = [
        field.model_copy(update={"cardinality": rows.get(field.of or field.name, field.cardinality)})
        for field in schema.fields
    ]
    return schema.model_copy(update={"fields": tuple(fields)})


def _check_names(rows: Mapping[str, int], known: list[str]) -> None:
    for name in rows:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known) or 'none'}"
            raise UserError(f"--rows {name}: no categorical field of that name; {hint}")


def _layout(spec: DatasetSpec) -> Layout:
    described = FORMATS[spec.format]
    if spec.format in FIXED:
        return described.describe(spec, [])
    assert spec.source is not None
    try:
        return described.describe(spec, list_files(spec.source, described.files))
    except UserError:
        if spec.format == "movielens":
            return described.describe(spec, [spec.source])
        kinds: dict[str, FieldKind] = {
            name: field.kind or ("numeric" if field.transform else "categorical") for name, field in spec.fields.items()
        }
        if not kinds:
            raise
        others = {name for name in (spec.time, spec.group) if name and name not in kinds}
        return Layout(kinds, label=spec.label.column or "label", others=tuple(others))


def _rows(spec: DatasetSpec, field: PlannedField) -> int:
    """Rows of the field's table, the unknown included; 0 if that is not known."""
    if field.settings.hash_buckets:
        return 1 + field.settings.hash_buckets
    if field.part:
        return 1 + PARTS[field.part]
    if spec.planted is not None:
        generated = spec.planted.fields[field.name]
        return 1 + generated.cardinality + (generated.missing > 0) if generated.cardinality else 0
    return 0


def _schema(spec: DatasetSpec, planned: Plan, sizes: Mapping[str, int]) -> DatasetSchema:
    fields = tuple(
        Field(
            name=field.name,
            kind=field.kind,
            cardinality=0 if field.kind == "numeric" else sizes[field.of or field.name],
            missing=field.kind == "numeric",
            of=field.of,
            max_len=field.settings.max_len if field.kind == "sequence" else 0,
        )
        for field in planned.fields
    )
    categorical = [field.name for field in fields if field.kind == "categorical"]
    return DatasetSchema(
        task=spec.task,
        label=planned.label or "",
        target=planned.target.name if planned.target else None,
        fields=fields,
        group=planned.group if planned.group in categorical else None,
        rows={"train": 0, "valid": 0, "test": 0},
        label_mean=0.5,
        label_min=0.0,
        label_max=1.0,
    )
