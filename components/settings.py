"""The sections of a pipeline that steer search, training, evaluation and records (`components.dataset` has the data).

Light on purpose (pydantic only): validating a file must not load a tensor library.
"""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from components.dataset import Url
from trainer.methods.settings import (
    SECTIONS,
    AMEIRSettings,
    AutoCTRSettings,
    AutoDimSettings,
    AutoDisSettings,
    AutoEmbSettings,
    AutoFISSettings,
    AutoGroupSettings,
    AutoRecSettings,
    DPQSettings,
    ESAPNSettings,
    FieldDimsSettings,
    IHASSettings,
    MDESettings,
    MGQESettings,
    NISSettings,
    methods_for,
)
from trainer.schema import Task
from trainer.settings import Budget, FidelitySettings, TrainSettings, TuneSettings

Method = Literal[
    "autorec",
    "autofis",
    "autodim",
    "autodis",
    "autogroup",
    "nis",
    "esapn",
    "ameir",
    "ihas",
    "autoctr",
    "field_dims",
    "mde",
    "dpq",
    "mgqe",
    "autoemb",
    "random",
    "all",
]
Sampler = Literal["random", "greedy", "bayesian", "grid", "evolution", "unguided_evolution", "nsga2"]
Metric = Literal[
    "auc",
    "logloss",
    "mse",
    "rmse",
    "ndcg_at_10",
    "hr_at_10",
    "mrr",
    "nll",
    "sampled_ndcg_at_10",
    "sampled_hr_at_10",
    "sampled_mrr",
]

METRIC_NAMES = {
    "auc": "AUC",
    "gauc": "GAUC",
    "logloss": "log loss",
    "mse": "MSE",
    "rmse": "RMSE",
    "nll": "negative log-likelihood",
    "ndcg_at_10": "NDCG@10",
    "hr_at_10": "HR@10",
    "mrr": "MRR",
    "sampled_ndcg_at_10": "sampled NDCG@10",
    "sampled_hr_at_10": "sampled HR@10",
    "sampled_mrr": "sampled MRR",
}
"""As people write them; gauc is shown, but ranks nothing."""


def _expanded(names: Sequence[str], everything: Sequence[str]) -> tuple[str, ...]:
    """The names in their order, each once; `all` stands for everything."""
    return tuple(dict.fromkeys(one for name in names for one in (everything if name == "all" else [name])))


class SearchSpec(BaseModel):
    """What is searched, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    methods: list[Method] = Field(
        default=["autorec"],
        description="search methods, one after the other; []: only the baselines; random: random search in autorec's"
        " space; all: every method that fits the task and the fields",
    )
    sampler: Sampler | None = Field(
        default=None,
        description="how the next trial is chosen; if not set evolution for autoctr, bayesian for all others",
    )
    trials: int | None = Field(
        default=None, ge=1, description="most candidates of each method and each baseline; 10 if no budget is set"
    )
    budget: Budget | None = Field(default=None, description="what each method and each baseline may spend on trials")
    workers: int = Field(default=1, ge=1, description="candidates trained at the same time, a process each")
    seed: int = Field(default=2026, ge=0, description="of the sampler and of every training")
    warm_start: Url | None = Field(
        default=None,
        min_length=1,
        description="trials.parquet of an earlier search with the same choices: samplers know its trials as well",
    )
    prune: bool = Field(default=True, description="stop a trial early when it is clearly behind the others")
    tune: TuneSettings = Field(default=TuneSettings(), description="training settings tried beside the architecture")
    fidelity: FidelitySettings = Field(
        default=FidelitySettings(), description="rows and tables of trials, for methods whose trial is one training"
    )
    inherit: bool = Field(
        default=False, description="begin the tables of a trial with those of the best one before it; same methods"
    )
    autorec: AutoRecSettings = Field(default=AutoRecSettings(), description="search space of the method autorec")
    autofis: AutoFISSettings = Field(default=AutoFISSettings(), description="the method autofis: pairs of fields")
    autodim: AutoDimSettings = Field(default=AutoDimSettings(), description="the method autodim: widths by gradient")
    autodis: AutoDisSettings = Field(default=AutoDisSettings(), description="the method autodis: numeric fields")
    autogroup: AutoGroupSettings = Field(default=AutoGroupSettings(), description="the method autogroup: groups")
    nis: NISSettings = Field(default=NISSettings(), description="the method nis: sizes of tables by a policy")
    esapn: ESAPNSettings = Field(default=ESAPNSettings(), description="the method esapn: sizes that grow on a stream")
    ameir: AMEIRSettings = Field(
        default=AMEIRSettings(), description="the method ameir: histories, products and layers, one after the other"
    )
    ihas: IHASSettings = Field(
        default=IHASSettings(), description="the method ihas: groups of rows, each with a model of its own size"
    )
    autoctr: AutoCTRSettings = Field(default=AutoCTRSettings(), description="the method autoctr: blocks wired freely")
    field_dims: FieldDimsSettings = Field(
        default=FieldDimsSettings(), description="the method field_dims: drawn widths"
    )
    mde: MDESettings = Field(default=MDESettings(), description="the method mde: widths by a power law")
    dpq: DPQSettings = Field(default=DPQSettings(), description="the method dpq: shared vectors, named by codes")
    mgqe: MGQESettings = Field(
        default=MGQESettings(), description="the method mgqe: dpq with fewer for rare categories"
    )
    autoemb: AutoEmbSettings = Field(
        default=AutoEmbSettings(), description="the method autoemb: widths by how often categories occur"
    )

    def named(self, task: Task) -> tuple[str, ...]:
        """The methods in the order of the file; `all` stands for those that do the task."""
        return _expanded(self.methods, methods_for(task))

    def section(self, method: str) -> Any:
        """The settings of a method."""
        return getattr(self, SECTIONS.get(method, method))

    def sampler_of(self, method: str | None = None) -> Sampler:
        """What chooses the trials of a method, or of a baseline."""
        return "random" if method == "random" else self.sampler or ("evolution" if method == "autoctr" else "bayesian")


class BaselineSettings(BaseModel):
    """How one hand-made model of the zoo is tuned, where that differs from what is searched."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    trials: int | None = Field(default=None, ge=1, description="trials of its own search; search.trials if not set")
    choices: dict[str, Any] = Field(
        default={},
        description="values of the model's own choices, such as {mlp.units: [128, 128]}",
    )


class TrainSpec(TrainSettings):
    """Final training from scratch: which models, how many seeds, and the settings that are not tuned."""

    candidates: int = Field(default=1, ge=1, description="best architectures of the search to train")
    seeds: int = Field(default=3, ge=1, description="trainings per model; the leaderboard shows mean and deviation")
    baselines: list[str] = Field(
        default=[],
        description="models of the zoo to tune and train beside what is found; all: every one that fits the task and"
        " the fields",
    )
    baseline_settings: dict[str, BaselineSettings] = Field(
        default={}, description="settings of a baseline, by its name"
    )
    nodes: int = Field(default=1, ge=1, description="machines of one training; on one machine they are processes")
    processes: int = Field(default=1, ge=1, description="processes of one training on each machine")

    def named(self, zoo: Sequence[str]) -> tuple[str, ...]:
        """The baselines in the order of the file; `all` stands for the whole `zoo`."""
        return _expanded(self.baselines, zoo)

    def baseline(self, name: str) -> BaselineSettings:
        """The settings of one of `baselines`."""
        return self.baseline_settings.get(name, BaselineSettings())

    def settings(self) -> TrainSettings:
        """The settings of one training, without what is repeated around it."""
        return TrainSettings.model_validate(self.model_dump(include=set(TrainSettings.model_fields)))


class EvaluateSpec(BaseModel):
    """How models are compared, and under which name the champion is registered."""

    # `register` is a method of every pydantic class, so the attribute cannot carry the name of its key.
    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)

    metric: Metric | None = Field(
        default=None,
        description="ranks the leaderboard; logloss (ctr), mse (rating) or ndcg_at_10 (next_item) if not set",
    )
    register_as: str | None = Field(
        default=None,
        alias="register",
        min_length=1,
        description="name of the champion in MLflow's model registry; not registered if not set",
    )


class TrackingSpec(BaseModel):
    """Where MLflow keeps the records of the run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: Url | None = Field(
        default=None, min_length=1, description="MLflow tracking URI; a SQLite file beside the runs if not set"
    )
