"""The three sections of a pipeline that steer search, training and evaluation (`dataset:` lives in `components.dataset`)."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from trainer.settings import TrainSettings, TuneSettings

Method = Literal["autorec", "none"]
Sampler = Literal["random", "greedy", "bayesian"]
Metric = Literal["auc", "logloss", "mse", "rmse"]


class SearchSpec(BaseModel):
    """What is searched, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: Method = Field("autorec", description="search method; none: train the baselines only")
    sampler: Sampler = Field("bayesian", description="how the next trial is chosen")
    trials: int = Field(10, ge=1, description="candidates to try")
    workers: int = Field(1, ge=1, description="candidates trained at the same time, each in a process of its own")
    seed: int = Field(2026, ge=0, description="seed of the sampler and of every trial")
    prune: bool = Field(True, description="stop a trial early when it is clearly behind the others")
    tune: TuneSettings = Field(default_factory=TuneSettings, description="training settings tried beside the model")
    autorec: dict[str, Any] = Field(default_factory=dict, description="search space of the method autorec")


class Baseline(BaseModel):
    """A hand-made model of the zoo, tuned and trained beside what the search finds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(description="model of the zoo, such as deepfm")
    trials: int | None = Field(None, ge=1, description="trials over its own hyper-parameters; search.trials if not set")


class TrainSpec(TrainSettings):
    """Final training from scratch: which models, how many seeds, and the settings that are not tuned."""

    candidates: int = Field(1, ge=1, description="best architectures of the search to train")
    seeds: int = Field(3, ge=1, description="runs per model; the leaderboard shows their mean and deviation")
    baselines: list[str | Baseline] = Field(default=[], description="models of the zoo to compare with")

    def settings(self) -> TrainSettings:
        """The training settings alone."""
        return TrainSettings.model_validate(self.model_dump(include=set(TrainSettings.model_fields)))

    def tuned_baselines(self, trials: int) -> tuple[Baseline, ...]:
        """Every baseline with its number of trials; `trials` (search.trials) where the file gives none."""
        baselines = (Baseline(name=item) if isinstance(item, str) else item for item in self.baselines)
        return tuple(item if item.trials else item.model_copy(update={"trials": trials}) for item in baselines)


class EvaluateSpec(BaseModel):
    """How models are compared, and under which name the champion is registered."""

    # `register` is a method of every pydantic class, so the attribute cannot carry the name of its key.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)

    metric: Metric | None = Field(None, description="ranks the leaderboard; logloss for ctr and mse for rating if not set")
    register_as: str | None = Field(
        None, alias="register", min_length=1, description="name of the registered MLflow model; not registered if not set"
    )
