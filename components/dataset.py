"""`dataset:` of a pipeline file: where the rows are, what they mean, and how they are split.

Light on purpose (pydantic only): validating a file must not load a data library.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from trainer.schema import FieldKind, Task, Transform

FormatName = Literal["movielens", "netflix", "criteo", "avazu", "libfm", "sequence", "csv", "parquet", "planted"]
HISTORY, ITEM = "history", "item"
"""The sequence field that a dataset of next items gets if it declares none, and the field whose values it holds."""
WITH_ITEMS: tuple[FormatName, ...] = ("movielens", "netflix", "sequence")
"""Formats whose rows say which `ITEM` a user chose."""


SECRET_URL = r"://[^/?#]*@"
"""Of a URL that holds a user name or a password."""


def without_credentials(url: str) -> str:
    """The URL as it is: what is written in a pipeline file is shown to everybody.

    Raises:
        ValueError: it holds credentials.
    """
    if re.search(SECRET_URL, url):
        raise ValueError("a URL must not hold credentials: storage libraries read them from the environment")
    return url


Url = Annotated[str, AfterValidator(without_credentials)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LabelSpec(_Settings):
    """What is predicted."""

    column: str | None = Field(
        default=None, description="column of the label; known for every format but csv and parquet"
    )
    threshold: float | None = Field(
        default=None,
        description="ctr: the label is 1 where the column is at least this value; next_item: only such rows are events",
    )


class FieldSpec(_Settings):
    """Settings of one input field; what is not set follows the format or is inferred."""

    kind: FieldKind | None = Field(default=None, description="what the column holds")
    transform: Transform | None = Field(
        default=None, description="numeric: log is sign(x) log(1 + |x|); log_sq is floor(log(x)^2) where x > 2"
    )
    min_count: int | None = Field(
        default=None, ge=1, description="categorical: rarer values in training rows are unknown"
    )
    hash_buckets: int | None = Field(
        default=None, ge=1, description="categorical: hash into this many ids, no vocabulary"
    )
    of: str | None = Field(default=None, description="sequence: the categorical field whose values it holds")
    max_len: int = Field(default=50, ge=1, description="sequence: only the newest values are kept")
    separator: str = Field(
        default="|", min_length=1, description="sequence read from a text column: between two values"
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "FieldSpec":
        if self.kind == "sequence" and self.of is None:
            raise ValueError("a sequence needs 'of': the field whose values it holds")
        if self.kind not in (None, "numeric") and self.transform is not None:
            raise ValueError("'transform' is for numeric fields")
        if self.kind not in (None, "categorical") and (self.min_count or self.hash_buckets):
            raise ValueError("'min_count' and 'hash_buckets' are for categorical fields")
        return self


class SplitSpec(_Settings):
    """How rows are divided into train, valid and test."""

    by: Literal["random", "time", "leave_last_out", "files"] | None = Field(
        default=None,
        description="random; time: oldest rows train, newest test; leave_last_out: of each group (user) the last row"
        " is test and the one before it valid; files: the source is train, `test` and `valid` are given; random if not"
        " set, leave_last_out for task next_item",
    )
    ratios: list[float] = Field(default=[8, 1, 1], min_length=3, max_length=3, description="train, valid, test")
    stratify: bool = Field(default=True, description="random: the same share of every label value in every split")
    seed: int = Field(default=2026, ge=0, description="of the random split and of drawn negatives")
    valid: Url | None = Field(
        default=None, description="files: URL of the validation rows; drawn from the source if not set"
    )
    test: Url | None = Field(default=None, description="files: URL of the test rows")

    @model_validator(mode="after")
    def _is_complete(self) -> "SplitSpec":
        if min(self.ratios) <= 0:
            raise ValueError("'ratios' must be three positive numbers, such as [8, 1, 1]")
        if self.by == "files" and self.test is None:
            raise ValueError("by: files needs 'test': the URL of the test rows")
        if self.by != "files" and (self.valid or self.test):
            raise ValueError("'valid' and 'test' are for by: files")
        return self


class PlantedField(_Settings):
    """One field of the generated rows: categorical with a cardinality, else numeric (standard normal)."""

    cardinality: int | None = Field(default=None, ge=2, description="number of categories; numeric if not set")
    zipf: float = Field(default=0.0, ge=0, description="category k is drawn in proportion to k^-zipf; 0: uniformly")
    effect: float = Field(default=0.0, ge=0, description="standard deviation of the field's own share of the score")
    waves: float | None = Field(
        default=None,
        ge=1,
        description="numeric: the field's own share is a sine with this many periods over the values' quantiles (its"
        " deviation is `effect` for a whole number, else within 8 % of it); linear if not set",
    )
    missing: float = Field(
        default=0.0, ge=0, lt=1, description="share of values left out (their share of the score is 0)"
    )

    @model_validator(mode="after")
    def _fits_its_kind(self) -> "PlantedField":
        if self.waves is not None and self.cardinality is not None:
            raise ValueError("'waves' is for numeric fields, 'cardinality' for categorical ones: give one of them")
        return self


class PlantedInteraction(_Settings):
    """One product of hidden vectors: sum over d of the product over the fields of v[field][d]."""

    fields: list[str] = Field(min_length=2, max_length=3, description="a pair or a triple of fields")
    rank: int = Field(default=4, ge=1, description="length of the hidden vectors")
    strength: float = Field(
        default=1.0,
        description="standard deviation of its share of the score; negative: the share with its sign turned",
    )
    vectors: str | None = Field(
        default=None,
        description="a name: interactions of the same name share one hidden vector per value of a field, so that the"
        " signs of `strength` can contradict each other (+ab, +ac, -bc); vectors of its own if not set",
    )

    @model_validator(mode="after")
    def _adds_something(self) -> "PlantedInteraction":
        if self.strength == 0:
            raise ValueError("'strength' must not be 0: leave the interaction out")
        if len(set(self.fields)) < len(self.fields):
            raise ValueError(f"interaction {self.fields}: a field stands there twice; name different fields")
        return self


class PlantedSpec(_Settings):
    """The known architecture that `planted` rows are drawn from: score = own effects + interactions."""

    rows: int = Field(default=100_000, ge=100, description="rows to generate")
    seed: int = Field(default=2026, ge=0, description="of hidden weights and rows")
    fields: dict[str, PlantedField] = Field(min_length=1, description="fields by name; one without effect is noise")
    interactions: list[PlantedInteraction] = Field(default=[], description="which fields interact")
    mean: float = Field(default=0.3, description="ctr: share of clicks; rating: mean rating")
    noise: float = Field(
        default=0.0,
        ge=0,
        description="ctr: share of rows (below 1) clicked blindly; rating: deviation of what is added",
    )

    @model_validator(mode="after")
    def _is_sound(self) -> "PlantedSpec":
        for interaction in self.interactions:
            for name in interaction.fields:
                if name not in self.fields:
                    raise ValueError(f"interaction {interaction.fields}: there is no field {name!r} in 'fields'")
        self._check_shared_vectors()
        return self

    def _check_shared_vectors(self) -> None:
        firsts: dict[str, PlantedInteraction] = {}
        for interaction in self.interactions:
            if interaction.vectors is None:
                continue
            first = firsts.setdefault(interaction.vectors, interaction)
            if first.rank != interaction.rank:
                both = f"{first.fields} (rank {first.rank}) and {interaction.fields} (rank {interaction.rank})"
                raise ValueError(f"interactions {both} share the vectors {interaction.vectors!r}: give both one rank")


class DatasetSpec(_Settings):
    """The rows a pipeline learns from."""

    source: Url | None = Field(
        default=None, description="URL of the rows (file, s3, gs, http, ...); netflix: a folder or a pattern"
    )
    format: FormatName = Field(description="the layout of the files, gzip or not; planted: generated rows")
    task: Task = Field(
        default="ctr",
        description="ctr: log loss on a 0/1 label; rating: squared error; next_item: which item follows a history",
    )
    label: LabelSpec = Field(default=LabelSpec(), description="what is predicted")
    fields: dict[str, FieldSpec] = Field(
        default={}, max_length=1000, description="settings by field; a sequence may be added here"
    )
    select: list[str] = Field(default=[], description="only these fields; all if empty")
    drop: list[str] = Field(default=[], description="all fields but these")
    min_count: int = Field(default=1, ge=1, description="min_count of categorical fields that do not set their own")
    time: str | None = Field(default=None, description="column that orders the rows (a number or an ISO date)")
    group: str | None = Field(default=None, description="column that groups the rows, the user: histories, GAUC")
    split: SplitSpec = Field(default=SplitSpec(), description="train, valid and test")
    max_rejected: float = Field(default=0.01, ge=0, le=1, description="largest share of bad rows before ingest fails")
    delimiter: str | None = Field(default=None, min_length=1, description="csv: between columns; found out if not set")
    columns: list[str] = Field(default=[], description="csv: names of the columns of a file without header line")
    negatives: int | None = Field(
        default=None,
        ge=1,
        description="sequence: items drawn per event that the user never chose, label 0; 1 if not set",
    )
    planted: PlantedSpec | None = Field(default=None, description="format planted: what to generate")

    @model_validator(mode="before")
    @classmethod
    def _split_follows_task(cls, data: Any) -> Any:
        """Give `split.by` the task's own default, so that a rendered file shows it."""
        if not isinstance(data, dict):
            return data
        split, by = data.get("split", {}), "leave_last_out" if data.get("task") == "next_item" else "random"
        if isinstance(split, SplitSpec):
            return {**data, "split": split if split.by else split.model_copy(update={"by": by})}
        if not isinstance(split, dict) or split.get("by") is not None:
            return data
        return {**data, "split": {**split, "by": by}}

    @model_validator(mode="after")
    def _fits_its_format(self) -> "DatasetSpec":
        if self.format == "planted":
            if self.planted is None:
                raise ValueError("format: planted needs 'planted': what to generate")
            self._check_planted(self.planted)
        elif self.source is None:
            raise ValueError("'source' is missing: the URL of the rows")
        self._check_format_keys()
        if self.task == "next_item":
            self._check_next_item()
        if self.task == "rating" and self.label.threshold is not None:
            raise ValueError("'label.threshold' makes clicks out of ratings: use it with task: ctr")
        if self.select and self.drop:
            raise ValueError("give 'select' or 'drop', not both")
        return self

    def _check_planted(self, planted: PlantedSpec) -> None:
        if self.split.by != "random":
            raise ValueError("planted rows have no time, group or files: use split.by: random")
        if self.task == "ctr" and not (0 < planted.mean < 1 and planted.noise < 1):
            raise ValueError("planted clicks need a mean between 0 and 1 and noise below 1")

    def _check_format_keys(self) -> None:
        if self.planted is not None and self.format != "planted":
            raise ValueError("'planted' is for format: planted")
        if self.negatives is not None and self.format != "sequence":
            raise ValueError("'negatives' is for format: sequence")
        if (self.delimiter or self.columns) and self.format != "csv":
            raise ValueError("'delimiter' and 'columns' are for format: csv")
        if self.format == "sequence" and (self.task == "rating" or self.label != LabelSpec()):
            raise ValueError("a sequence file has no labels: use task: next_item, or ctr, without 'label'")

    def _check_next_item(self) -> None:
        if self.format == "planted":
            raise ValueError("planted rows have no sequences: use task: ctr or rating")
        if self.format not in WITH_ITEMS and not any(field.of for field in self.fields.values()):
            raise ValueError(
                "task next_item predicts the field that a sequence is 'of': declare one in 'fields', such as"
                " history: {kind: sequence, of: item}"
            )
        if self.label.column is not None and self.label.threshold is None:
            raise ValueError(
                "task next_item has no label: leave 'label.column' out, or add 'label.threshold', from which on a row"
                " is an event"
            )
        if self.negatives is not None:
            raise ValueError("task next_item meets all items, so it draws no 'negatives': leave them out")
        if self.split.by == "random":
            raise ValueError(
                "task next_item cannot be split by: random, which puts the items to predict into histories of training"
                " rows: use leave_last_out or time"
            )
        if self.split.by == "files" and self.split.valid is None:
            raise ValueError("task next_item draws no validation rows at random: by: files needs 'valid' as well")
