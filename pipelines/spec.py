"""The pipeline file: its typed model, and everything that turns a file into it.

The model is the single source: validation, `dalil render`, the CRD's schema and the reference page all come from it.
Light on purpose (pydantic and YAML only): `dalil validate` must answer at once.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.dataset import DatasetSpec
from components.settings import EvaluateSpec, Metric, SearchSpec, TrackingSpec, TrainSpec
from pipelines.document import Document, Override
from pipelines.messages import MEMORY_PATTERN, NAME_PATTERN, KeyPath, Problem, SpecError, explain, suggest
from trainer import zoo
from trainer.methods.settings import TRAINED, BackboneSettings, IHASSettings, methods_for
from trainer.schema import Task

API_VERSION = "dalil.dev/v1alpha1"
KIND = "SearchPipeline"

METRICS: dict[Task, tuple[Metric, ...]] = {
    "ctr": ("logloss", "auc"),
    "rating": ("mse", "rmse"),
    "next_item": (
        "ndcg_at_10",
        "hr_at_10",
        "mrr",
        "nll",
        "sampled_ndcg_at_10",
        "sampled_hr_at_10",
        "sampled_mrr",
    ),
}
"""Metrics of each task, the default one first."""

TRIALS = 10
"""Trials of each method and baseline, if the file says neither how many nor what they may cost."""
NAME_LENGTH = 40
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=NAME_LENGTH)]
"""As Kubernetes wants it for a label, with room for what the names of the pipeline's Jobs add."""


class Metadata(BaseModel):
    """Name and Kubernetes labels of the pipeline."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="names the folder of the run, the MLflow experiment and the cluster's objects")
    namespace: str | None = Field(default=None, description="Kubernetes namespace; of no effect on one machine")
    labels: dict[str, str] = Field(default={}, description="Kubernetes labels")
    annotations: dict[str, str] = Field(default={}, description="Kubernetes annotations")


class Resources(BaseModel):
    """What each pod of a pipeline gets; of no effect on one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: float = Field(default=1, gt=0, description="processor cores, such as 2 or 0.5")
    memory: str = Field(default="2Gi", pattern=MEMORY_PATTERN, description="memory, such as 4Gi")
    gpus: int = Field(default=0, ge=0, description="GPUs")


class PipelineSpec(BaseModel):
    """The five sections, in the order in which the data meets them, and how a cluster runs them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: DatasetSpec = Field(description="the rows: where they are, what they mean, how they are split")
    search: SearchSpec = Field(default=SearchSpec(), description="what is searched, and how")
    train: TrainSpec = Field(default=TrainSpec(), description="final training, and the models to compare with")
    evaluate: EvaluateSpec = Field(default=EvaluateSpec(), description="comparison and registration")
    tracking: TrackingSpec = Field(default=TrackingSpec(), description="records of the run")
    resources: Resources = Field(default=Resources(), description="cluster: what each pod gets")
    retries: int = Field(default=3, ge=0, description="cluster: attempts after one that failed by nobody's mistake")
    suspend: bool = Field(default=False, description="cluster: stop the pods; nothing is lost, false goes on")

    @model_validator(mode="after")
    def _filled(self) -> "PipelineSpec":
        """With the defaults that depend on other keys, so that a rendered file shows them."""
        search, evaluate = self.search, self.evaluate
        if evaluate.metric is None:
            evaluate = evaluate.model_copy(update={"metric": METRICS[self.dataset.task][0]})
        if search.trials is None and search.budget is None:
            search = search.model_copy(update={"trials": TRIALS})
        return self.model_copy(update={"search": search, "evaluate": evaluate})


class SearchPipeline(BaseModel):
    """One file: data in, registered model out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    apiVersion: Literal["dalil.dev/v1alpha1"] = Field(description="version of this format")  # noqa: N815
    kind: Literal["SearchPipeline"] = Field(description="kind of object, as Kubernetes names it")
    metadata: Metadata = Field(description="name and labels")
    spec: PipelineSpec = Field(description="what to do")

    @model_validator(mode="before")
    @classmethod
    def _in_one_order(cls, data: Any) -> Any:
        """Names in one order: the API server sorts them, and what is drawn for one after the other follows it."""
        return _sorted(data)


def _sorted(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _sorted(data[key]) for key in sorted(data)}
    return [_sorted(item) for item in data] if isinstance(data, list) else data


def load(path: Path, overrides: tuple[str, ...] = ()) -> SearchPipeline:
    """Read, override (`dataset.source=...`) and check a pipeline file.

    Raises:
        SpecError: the file cannot be read or is not valid; one line per mistake, with file, line, key and remedy.
    """
    document = Document.read(path)
    for text in overrides:
        document.apply(Override.parse(text))
    try:
        pipeline = SearchPipeline.model_validate(document.data, strict=True)
        problems = _contradictions(pipeline.spec)
    except ValidationError as error:
        problems = explain(SearchPipeline, document.data, error)
    if problems:
        raise SpecError("\n".join(document.locate(problem) for problem in _in_order(document, problems)))
    return pipeline


def check(data: Mapping[str, Any]) -> tuple[SearchPipeline | None, str]:
    """A pipeline object as the API server has it, or what is wrong with it in one line."""
    about = {key: value for key, value in data["metadata"].items() if key in Metadata.model_fields}
    plain = {"apiVersion": data["apiVersion"], "kind": data["kind"], "metadata": about, "spec": data["spec"]}
    try:
        pipeline = SearchPipeline.model_validate(plain, strict=True)
        problems = _contradictions(pipeline.spec)
    except ValidationError as error:
        return None, "; ".join(map(str, explain(SearchPipeline, plain, error)))
    return (None, "; ".join(map(str, problems))) if problems else (pipeline, "")


def render(pipeline: SearchPipeline) -> str:
    """The pipeline as YAML with every default written out; reading it again gives the same pipeline."""
    return yaml.safe_dump(pipeline.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _in_order(document: Document, problems: list[Problem]) -> list[Problem]:
    return sorted(problems, key=lambda problem: document.line(problem.path))


def _contradictions(spec: PipelineSpec) -> list[Problem]:
    """Mistakes that need more than one section to be seen."""
    problems = []
    task = spec.dataset.task
    if spec.evaluate.metric not in METRICS[task]:
        valid = " or ".join(METRICS[task])
        message = f"{spec.evaluate.metric} does not fit dataset.task {task}; write {valid}"
        problems.append(Problem(("spec", "evaluate", "metric"), message))
    if not spec.search.methods and not spec.train.baselines:
        message = "nothing to train: search.methods is empty; name at least one model of the zoo"
        problems.append(Problem(("spec", "train", "baselines"), message))
    if spec.search.methods and spec.search.trials is not None and spec.train.candidates > spec.search.trials:
        message = f"{spec.train.candidates} candidates cannot come out of search.trials: {spec.search.trials}"
        problems.append(Problem(("spec", "train", "candidates"), message))
    wrong = spec.search.tune.left_out(spec.train)
    problems += [Problem(("spec", "train", name), message) for name, message in wrong.items()]
    return problems + _wrong_methods(spec) + _wrong_baselines(spec)


def _wrong_methods(spec: PipelineSpec) -> list[Problem]:
    """Methods that do not do the task or stand there twice, and settings that do not fit them."""
    search, task = spec.search, spec.dataset.task
    able = methods_for(task)
    problems = []
    for index, method in enumerate(search.methods):
        path: KeyPath = ("spec", "search", "methods", index)
        if method not in (*able, "all"):
            message = f"{method} does not do dataset.task {task}; write {' or '.join([*able, 'all'])}"
            problems.append(Problem(path, f"{message}, or methods: []"))
        if method in search.methods[:index]:
            problems.append(Problem(path, f"{method} stands in the list twice"))
    methods = search.named(task)
    for key, set_ in {"fidelity": not search.fidelity.full, "inherit": search.inherit}.items():
        if set_ and not set(methods) & set(TRAINED):
            message = "none of search.methods has one training for a trial; leave it out, or search"
            problems.append(Problem(("spec", "search", key), f"{message} {' or '.join(TRAINED)}"))
    return problems + [problem for method in methods if method in able for problem in _wrong_settings(spec, method)]


def _wrong_settings(spec: PipelineSpec, method: str) -> list[Problem]:
    """A method that opens a hand-made model needs one that has the part in question."""
    settings, task = spec.search.section(method), spec.dataset.task
    if not isinstance(settings, BackboneSettings):
        return []
    path: KeyPath = ("spec", "search", method)
    able = zoo.names(task)
    fitting = [name for name in able if settings.opens(zoo.parts(name, task))]
    if settings.backbone in fitting:
        wrong = _wrong_choices((*path, "choices"), settings.backbone, task, settings.choices)
        return wrong + _wrong_target(path, settings, fitting)
    known = settings.backbone in able
    if not known:
        what = f"no model {settings.backbone!r}"
    elif type(settings)().opens(zoo.parts(settings.backbone, task)):
        what = f"{method} with these settings cannot open {settings.backbone}"
    else:
        what = f"{method} finds nothing to open in {settings.backbone}"
    return [Problem((*path, "backbone"), f"{what}; {suggest('' if known else settings.backbone, fitting)}")]


def _wrong_target(path: KeyPath, settings: BackboneSettings, fitting: Sequence[str]) -> list[Problem]:
    """What iHAS trains its groups as has an embedding of its backbone's kind."""
    if not isinstance(settings, IHASSettings) or settings.into in (None, *fitting):
        return []
    message = f"groups cannot be trained as {settings.into!r}; {suggest(settings.into or '', fitting)}"
    return [Problem((*path, "into"), message)]


def _wrong_choices(path: KeyPath, model: str, task: Task, choices: Mapping[str, Any]) -> list[Problem]:
    """Pinned choices that the model does not have."""
    known = zoo.choices(model, task)
    return [
        Problem((*path, name), f"{model} has no choice {name!r}; {suggest(name, known)}")
        for name in choices
        if name not in known
    ]


def _wrong_baselines(spec: PipelineSpec) -> list[Problem]:
    task, named = spec.dataset.task, spec.train.baselines
    models = zoo.names(task)
    problems: list[Problem] = []
    for index, name in enumerate(named):
        path: KeyPath = ("spec", "train", "baselines", index)
        if name != "all":
            problems += _wrong_baseline(path, name, spec.dataset)
        if name in named[:index]:
            problems.append(Problem(path, f"{name} stands in the list twice"))
    for name, settings in spec.train.baseline_settings.items():
        path = ("spec", "train", "baseline_settings", name)
        if name not in spec.train.named(models):
            problems.append(Problem(path, f"{name} is none of train.baselines; {suggest(name, named)}"))
        elif name in models:
            problems += _wrong_choices((*path, "choices"), name, task, settings.choices)
    return problems


def _wrong_baseline(path: KeyPath, name: str, dataset: DatasetSpec) -> list[Problem]:
    models = zoo.names(dataset.task)
    if name not in zoo.names():
        return [Problem(path, f"no model {name!r} in the zoo; {suggest(name, models)}")]
    if name not in models:
        message = f"{name} does not do dataset.task {dataset.task}; valid here: {', '.join(models)}"
        return [Problem(path, message)]
    # By `of`, not by `kind`: a parquet column of lists is known for a sequence without being declared one.
    histories = dataset.format == "sequence" or any(field.of for field in dataset.fields.values())
    if "sequence" in zoo.needs(name) and not histories and dataset.task != "next_item":
        return [Problem(path, f"{name} needs a sequence; add one to dataset.fields, or leave {name} out")]
    return []
