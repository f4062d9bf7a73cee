"""Training settings: one typed set for searches, found models and hand-made baselines alike."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["auto", "fp32", "bf16"]
TableOptimizer = Literal["auto", "adam", "lazy_adam"]

SAVE_SECONDS = 600.0
"""A training saves its state after every epoch, and in an epoch as soon as so much time has passed since."""


class TrainSettings(BaseModel):
    """How one candidate is trained. Every value may be tuned beside the architecture (see `TuneSettings`)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch_size: int = Field(4096, ge=1, description="rows per optimizer step, over all processes")
    epochs: int = Field(20, ge=1, description="most passes over the training rows")
    patience: int = Field(2, ge=1, description="epochs without a better validation metric before training stops")
    learning_rate: float = Field(1e-3, gt=0, description="Adam's rate for all weights outside tables")
    weight_decay: float = Field(0.0, ge=0, description="L2 penalty on weights outside tables")
    table_optimizer: TableOptimizer = Field(
        "auto", description="adam: dense; lazy_adam: touched rows only; auto: by the size of the table"
    )
    table_learning_rate: float | None = Field(None, gt=0, description="rate for tables; the learning_rate if not set")
    table_l2: float = Field(1e-5, ge=0, description="L2 penalty on embedding tables")
    table_l2_power: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="a row's table_l2 grows with this power of its training frequency (0: all alike)",
    )
    table_init: float = Field(0.01, gt=0, description="standard deviation of fresh table rows")
    average: float = Field(
        0.995, ge=0, lt=1, description="decay of the running mean of the weights that is evaluated and kept (0: off)"
    )
    precision: Precision = Field("auto", description="number format of the matrix products")


class Budget(BaseModel):
    """What the trials of one study may cost together; the first trial is made whatever it costs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    samples: int | None = Field(None, ge=1, description="rows learned from, each counted in every pass")
    seconds: float | None = Field(None, gt=0, description="training time, summed over the workers")

    @model_validator(mode="after")
    def _says_something(self) -> "Budget":
        if self.samples is None and self.seconds is None:
            raise ValueError("write 'samples' or 'seconds'")
        return self

    def share(self, samples: float, seconds: float) -> float:
        """How much of it is spent: 1 is all."""
        limits = ((samples, self.samples), (seconds, self.seconds))
        return max(spent / limit for spent, limit in limits if limit is not None)


class FidelitySettings(BaseModel):
    """How much of a training a trial of the method is. What is found is trained on all rows with all categories."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rows: float = Field(1.0, gt=0, le=1, description="share of the training rows that trials see")
    hash: int | None = Field(None, ge=2, description="most rows of a table in trials, which categories then share")
    sample: int = Field(
        8, ge=0, description="trials trained in full to see how far the others' values can be trusted; 0: none"
    )

    @property
    def full(self) -> bool:
        """Whether a trial is a whole training."""
        return self.rows == 1 and self.hash is None


class TuneSettings(BaseModel):
    """Values of training settings that a search tries, for found and hand-made models alike; [] keeps the set value."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    learning_rate: list[float] = Field(default=[], description="choices for learning_rate")
    weight_decay: list[float] = Field(default=[], description="choices for weight_decay")
    table_learning_rate: list[float] = Field(default=[], description="choices for table_learning_rate")
    table_l2: list[float] = Field(default=[1e-5, 1e-4, 1e-3], description="choices for table_l2")
    table_l2_power: list[float] = Field(default=[], description="choices for table_l2_power")
    table_init: list[float] = Field(default=[], description="choices for table_init")
    average: list[float] = Field(default=[], description="choices for average")
    batch_size: list[int] = Field(default=[], description="choices for batch_size")

    def left_out(self, settings: TrainSettings) -> dict[str, str]:
        """Settings with a value of the user's own that is none of those to try, by name: what is wrong with each."""
        fields = TrainSettings.model_fields
        return {
            name: f"{kept} is not among search.tune.{name} {values}: add it there, or write {name}: [] there"
            for name, values in self.model_dump().items()
            if values and (kept := getattr(settings, name)) not in (*values, fields[name].default)
        }
