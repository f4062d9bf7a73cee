"""What ingest makes of a spec and a format's layout: which columns become which fields."""

import difflib
from dataclasses import dataclass, field

from components.dataset import HISTORY, ITEM, WITH_ITEMS, DatasetSpec, FieldSpec
from components.formats import Layout
from trainer.errors import UserError
from trainer.schema import FieldKind, TimePart, Transform

RESERVED = ("label", "row", "truth")
"""Columns that ingest writes beside the fields."""


@dataclass(frozen=True)
class PlannedField:
    name: str
    kind: FieldKind
    settings: FieldSpec
    transform: Transform
    min_count: int
    column: str
    """The raw column; of a history that is not read, its name."""
    part: TimePart | None = None
    of: str | None = None
    history: bool = False
    """Made from earlier rows of the group, not read."""


@dataclass(frozen=True)
class Plan:
    """Fields in order, and the columns that are no fields."""

    fields: tuple[PlannedField, ...]
    label: str | None
    """None: every row is an event."""
    time: str | None
    group: str | None
    truth: str | None
    target: PlannedField | None
    """next_item: what is predicted, the field that the first sequence is of."""
    histories: tuple[PlannedField, ...] = field(default=())

    @property
    def read(self) -> tuple[PlannedField, ...]:
        """Fields that stand in the files, one for each raw column."""
        return tuple({planned.column: planned for planned in self.fields if not planned.history}.values())

    @property
    def with_vocabulary(self) -> set[str]:
        """Raw columns of the fields that learn a vocabulary: their distinct values fit into memory."""
        categorical = [planned for planned in self.fields if planned.kind == "categorical"]
        return {planned.column for planned in categorical if planned.settings.hash_buckets is None}


def plan(spec: DatasetSpec, layout: Layout) -> Plan:
    """Settle every field.

    Raises:
        UserError: the spec names a column that is not there, or something it needs is missing.
    """
    time, group = spec.time or layout.time, spec.group or layout.group
    label = spec.label.column or layout.label
    if spec.task == "next_item" and spec.label.threshold is None:
        label = None
    stored = [name for name in layout.kinds if name not in layout.parts]
    columns = [*stored, *layout.others, *filter(None, (layout.label, layout.time))]
    for key, name in {"label.column": label, "time": time, "group": group}.items():
        if name is not None:
            _require(spec, key, name, columns)
    names = _selected(spec, layout, label, time)
    fields = tuple(_field(spec, layout, name) for name in names)
    made = Plan(fields, label, time, group, layout.truth, _target(spec, fields), tuple(f for f in fields if f.history))
    _check(spec, made)
    return made


def _target(spec: DatasetSpec, fields: tuple[PlannedField, ...]) -> PlannedField | None:
    if spec.task != "next_item":
        return None
    of = next((field.of for field in fields if field.kind == "sequence"), None)
    if of is None:
        raise UserError("dataset: task next_item needs a sequence field, and 'select' or 'drop' leaves none")
    return next((field for field in fields if field.name == of), None)  # `_check` refuses what is no field


def _histories(spec: DatasetSpec, layout: Layout) -> dict[str, str]:
    """Sequence fields that are made though nobody declares them: name -> the field whose values they hold."""
    declared = any(settings.of for settings in spec.fields.values())
    if spec.task == "next_item" and spec.format in WITH_ITEMS and not declared:
        return {HISTORY: ITEM}
    return layout.histories


def _selected(spec: DatasetSpec, layout: Layout, label: str | None, time: str | None) -> list[str]:
    """Names of the fields: the layout's but the label and (unless it is declared) the time, then the histories."""
    known = [name for name in layout.kinds if name != label and (name != time or name in spec.fields)]
    declared = [name for name, settings in spec.fields.items() if settings.kind == "sequence"]
    known = list(dict.fromkeys([*known, *_histories(spec, layout), *declared]))
    for key, wanted in {"fields": spec.fields, "select": spec.select, "drop": spec.drop}.items():
        for name in wanted:
            _require(spec, key, name, known)
    chosen = [name for name in known if (not spec.select or name in spec.select) and name not in spec.drop]
    if not chosen:
        raise UserError(f"{spec.source}: no field is left; known are {known}")
    return chosen


def _field(spec: DatasetSpec, layout: Layout, name: str) -> PlannedField:
    settings = spec.fields.get(name, FieldSpec())
    kind = settings.kind or layout.kinds.get(name, "sequence")
    column, part = layout.parts.get(name, (name, None))
    return PlannedField(
        name,
        kind,
        settings,
        column=column,
        part=part,
        transform=settings.transform or layout.transform,
        min_count=settings.min_count or spec.min_count,
        of=settings.of or _histories(spec, layout).get(name),
        history=kind == "sequence" and name not in layout.kinds,
    )


def _check(spec: DatasetSpec, made: Plan) -> None:
    kinds = {planned.name: planned.kind for planned in made.fields if planned.part is None}
    for planned in made.fields:
        if planned.name in RESERVED or planned.name.startswith("__") or "/" in planned.name or not planned.name:
            raise UserError(f"dataset: a field cannot be named {planned.name!r}; rename the column or drop it")
        if planned.part is not None and planned.kind != "categorical":
            raise UserError(f"dataset.fields.{planned.name}.kind: {planned.kind}: a part of a time is categorical")
        if planned.kind == "sequence" and kinds.get(planned.of or "") != "categorical":
            raise UserError(
                f"dataset.fields.{planned.name}.of: {planned.of!r} is no categorical field here; the fields are {kinds}"
            )
        if planned.history and made.group is None:
            raise UserError(f"dataset.fields.{planned.name}: a history needs dataset.group, the column of the user")
    if made.target is not None and (made.target.settings.hash_buckets or made.target.part):
        raise UserError(
            f"dataset.fields.{made.target.name}: what is predicted needs a name for every id: no hash_buckets, and no"
            " part of a time"
        )
    if spec.split.by == "time" and made.time is None:
        raise UserError("dataset.split.by: time needs dataset.time, the column that orders the rows")
    if spec.split.by == "leave_last_out" and made.group is None:
        raise UserError("dataset.split.by: leave_last_out needs dataset.group, the column of the user")


def _require(spec: DatasetSpec, key: str, name: str, known: list[str]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {known}"
        raise UserError(f"dataset.{key}: {spec.source} has no column {name!r}; {hint}")
