"""The CustomResourceDefinition of `SearchPipeline`, made from the model of the file: `dalil schema`.

The schema refuses unknown keys and wrong types; the rules below (CEL) refuse at admission what contradicts itself, in
the words of the model's own validators. What needs more than the object (a source that is not there, a model that has
no such choice) fails the pipeline with one condition.
"""

from typing import Any, get_args

from components.dataset import SECRET_URL, WITH_ITEMS, SplitSpec
from components.settings import EvaluateSpec, SearchSpec, TrainSpec
from pipelines.schema import structural_schema
from pipelines.spec import METRICS, NAME_LENGTH
from pipelines.status import GROUP, PLURAL, VERSION
from trainer import zoo
from trainer.methods.settings import TASKS, TRAINED, BackboneSettings, IHASSettings, methods_for
from trainer.schema import Task
from trainer.settings import TrainSettings, TuneSettings

Schema = dict[str, Any]
Rules = tuple[tuple[str, str], ...]


def _plain(key: str) -> str:
    return f"!has(self.{key}) || !self.{key}.matches('{SECRET_URL}')"


NAME = (
    f"size(self.metadata.name) <= {NAME_LENGTH}",
    f"metadata.name: at most {NAME_LENGTH} characters, for the names of its Jobs are longer",
)
NO_CREDENTIALS = "a URL must not hold credentials: storage libraries read them from the environment"
DATASET: Rules = (
    (_plain("source"), f"source: {NO_CREDENTIALS}"),
    ("self.format != 'planted' || has(self.planted)", "format: planted needs 'planted': what to generate"),
    ("self.format == 'planted' || has(self.source)", "'source' is missing: the URL of the rows"),
    ("self.format == 'planted' || !has(self.planted)", "'planted' is for format: planted"),
    ("self.format == 'sequence' || !has(self.negatives)", "'negatives' is for format: sequence"),
    (
        "self.format == 'csv' || (!has(self.delimiter) && (!has(self.columns) || size(self.columns) == 0))",
        "'delimiter' and 'columns' are for format: csv",
    ),
    (
        "self.task != 'rating' || !has(self.label) || !has(self.label.threshold)",
        "'label.threshold' makes clicks out of ratings: use it with task: ctr",
    ),
    (
        "self.format != 'sequence' || (self.task != 'rating' && (!has(self.label)"
        " || (!has(self.label.column) && !has(self.label.threshold))))",
        "a sequence file has no labels: use task: next_item, or ctr, without 'label'",
    ),
    (
        "self.task != 'next_item' || self.format != 'planted'",
        "planted rows have no sequences: use task: ctr or rating",
    ),
    (
        f"self.task != 'next_item' || self.format in {list(WITH_ITEMS)}"
        " || (has(self.fields) && self.fields.exists(name, has(self.fields[name].of)))",
        "task next_item predicts the field that a sequence is 'of': declare one in 'fields', such as"
        " history: {kind: sequence, of: item}",
    ),
    (
        "self.task != 'next_item' || !has(self.label) || !has(self.label.column) || has(self.label.threshold)",
        "task next_item has no label: leave 'label.column' out, or add 'label.threshold', from which on a row is an"
        " event",
    ),
    (
        "self.task != 'next_item' || !has(self.negatives)",
        "task next_item meets all items, so it draws no 'negatives': leave them out",
    ),
    (
        "self.task != 'next_item' || !has(self.split) || !has(self.split.by) || self.split.by != 'random'",
        "task next_item cannot be split by: random, which puts the items to predict into histories of training rows:"
        " use leave_last_out or time",
    ),
    (
        "self.task != 'next_item' || !has(self.split) || !has(self.split.by) || self.split.by != 'files'"
        " || has(self.split.valid)",
        "task next_item draws no validation rows at random: by: files needs 'valid' as well",
    ),
    (
        "self.format != 'planted' || !has(self.split) || !has(self.split.by) || self.split.by == 'random'",
        "planted rows have no time, group or files: use split.by: random",
    ),
    (
        "self.format != 'planted' || self.task != 'ctr' || !has(self.planted)"
        " || (self.planted.mean > 0.0 && self.planted.mean < 1.0 && self.planted.noise < 1.0)",
        "planted clicks need a mean between 0 and 1 and noise below 1",
    ),
    (
        "!has(self.select) || !has(self.drop) || size(self.select) == 0 || size(self.drop) == 0",
        "give 'select' or 'drop', not both",
    ),
)
FIELD: Rules = (
    (
        "!has(self.kind) || self.kind != 'sequence' || has(self.of)",
        "a sequence needs 'of': the field whose values it holds",
    ),
    (
        "!has(self.kind) || self.kind == 'numeric' || !has(self.transform)",
        "'transform' is for numeric fields",
    ),
    (
        "!has(self.kind) || self.kind == 'categorical' || (!has(self.min_count) && !has(self.hash_buckets))",
        "'min_count' and 'hash_buckets' are for categorical fields",
    ),
)
SPLIT: Rules = (
    (_plain("valid"), f"valid: {NO_CREDENTIALS}"),
    (_plain("test"), f"test: {NO_CREDENTIALS}"),
    ("self.ratios.all(ratio, ratio > 0.0)", "'ratios' must be three positive numbers, such as [8, 1, 1]"),
    (
        "!has(self.by) || self.by != 'files' || has(self.test)",
        "by: files needs 'test': the URL of the test rows",
    ),
    (
        "(has(self.by) && self.by == 'files') || (!has(self.valid) && !has(self.test))",
        "'valid' and 'test' are for by: files",
    ),
)
SEQUENCE_MODELS = [name for name in zoo.names() if "sequence" in zoo.needs(name)]
SPEC: Rules = (
    (
        "!has(self.train.baseline_settings) || 'all' in self.train.baselines"
        " || self.train.baseline_settings.all(name, name in self.train.baselines)",
        "train.baseline_settings: settings of a model that is none of train.baselines",
    ),
    (
        f"!self.train.baselines.exists(name, name in {SEQUENCE_MODELS}) || self.dataset.format == 'sequence'"
        " || self.dataset.task == 'next_item'"
        " || (has(self.dataset.fields) && self.dataset.fields.exists(name, has(self.dataset.fields[name].of)))",
        f"train.baselines: {', '.join(SEQUENCE_MODELS)} need a sequence; add one to dataset.fields",
    ),
    *(
        (
            f"self.dataset.task != '{task}' || self.search.methods.all(method, method in {methods})",
            f"search.methods: those that do dataset.task {task} are {', '.join(methods)}",
        )
        for task in get_args(Task)
        for methods in [[*methods_for(task), "all"]]
    ),
    *(
        (
            f"self.dataset.task != '{task}' || self.train.baselines.all(name, name in {models})",
            f"train.baselines: models that do dataset.task {task} are {', '.join(models)}",
        )
        for task in get_args(Task)
        for models in [[*zoo.names(task), "all"]]
    ),
    (
        "size(self.search.methods) > 0 || size(self.train.baselines) > 0",
        "train.baselines: nothing to train: search.methods is empty; name at least one model of the zoo",
    ),
    (
        f"self.search.methods.exists(method, method in {[*TRAINED, 'all']})"
        " || (self.search.fidelity.rows == 1.0 && !has(self.search.fidelity.hash))",
        f"search.fidelity: is for methods whose trial is one training: {', '.join(TRAINED)}",
    ),
    (
        f"self.search.methods.exists(method, method in {[*TRAINED, 'all']}) || !self.search.inherit",
        f"search.inherit: is for methods whose trial is one training: {', '.join(TRAINED)}",
    ),
    (
        "size(self.search.methods) == 0 || !has(self.search.trials) || self.train.candidates <= self.search.trials",
        "train.candidates: more candidates than search.trials cannot come out of the search",
    ),
    (
        "!has(self.search.budget) || has(self.search.budget.samples) || has(self.search.budget.seconds)",
        "search.budget: write 'samples' or 'seconds'",
    ),
    *(
        (
            f"self.dataset.task != '{task}' || !has(self.evaluate.metric) || self.evaluate.metric in {list(metrics)}",
            f"evaluate.metric does not fit dataset.task {task}; write {' or '.join(metrics)}",
        )
        for task, metrics in METRICS.items()
    ),
    *(
        (
            f"size(self.search.tune.{name}) == 0 || !has(self.train.{name}) || self.train.{name} in"
            f" self.search.tune.{name}" + (f" || self.train.{name} == {default}" if default is not None else ""),
            f"train.{name}: is not among search.tune.{name}: add it there, or write {name}: [] there",
        )
        for name in TuneSettings.model_fields
        for default in [TrainSettings.model_fields[name].default]
    ),
    (
        "self.resources.gpus == 0 || self.train.processes <= self.resources.gpus",
        "train.processes: each process of a training needs a GPU of resources.gpus",
    ),
)
FREE = {"search.trials", "search.budget", "search.workers"}
"""Keys of search and train that a running pipeline follows; of the other sections `resources`, `retries`, `suspend`."""
STARTED = "has(oldSelf.status) && has(oldSelf.status.phase)"
RUNNING = f"{STARTED} && oldSelf.status.phase == 'Running'"


def changes() -> Rules:
    """What may not change, and when: rules of the whole object, since it depends on the status."""
    rules = [
        (
            f"!({STARTED}) || self.spec.dataset == oldSelf.spec.dataset",
            "spec.dataset cannot change once the pipeline has started; apply it under another name",
        )
    ]
    for section, model in (("search", SearchSpec), ("train", TrainSpec), ("evaluate", EvaluateSpec)):
        keys = [field.alias or name for name, field in model.model_fields.items()]
        kept = [_same(f"spec.{section}.{key}") for key in keys if f"{section}.{key}" not in FREE]
        text = f"spec.{section} cannot change while the pipeline runs; set spec.suspend to true first"
        rules.append((f"!({RUNNING}) || ({' && '.join(kept)})", text))
    tracking = (f"!({RUNNING}) || {_same('spec.tracking')}", "spec.tracking cannot change while the pipeline runs")
    return (*rules, tracking)


def _same(path: str) -> str:
    mine, old = f"self.{path}", f"oldSelf.{path}"
    return f"(has({mine}) == has({old}) && (!has({mine}) || {mine} == {old}))"


def definition() -> Schema:
    """The whole CustomResourceDefinition."""
    schema = structural_schema()
    spec = schema["properties"]["spec"]
    _rule(spec["properties"]["dataset"], DATASET)
    _rule(spec["properties"]["dataset"]["properties"]["fields"]["additionalProperties"], FIELD)
    split = spec["properties"]["dataset"]["properties"]["split"]
    split["default"] = SplitSpec().model_dump(exclude_none=True)  # rules look at defaults too, before they are filled
    _rule(split, SPLIT)
    _rule(spec["properties"]["tracking"], ((_plain("uri"), f"uri: {NO_CREDENTIALS}"),))
    _rule(spec["properties"]["search"], ((_plain("warm_start"), f"warm_start: {NO_CREDENTIALS}"),))
    _rule(spec, SPEC)
    _rule(schema, (NAME, *changes()))
    train, search = spec["properties"]["train"]["properties"], spec["properties"]["search"]["properties"]
    train["baselines"]["items"] |= {"enum": [*zoo.names(), "all"]}
    train["baselines"] |= {"x-kubernetes-list-type": "set", "maxItems": len(zoo.names())}
    search["methods"] |= {"x-kubernetes-list-type": "set", "maxItems": len(TASKS)}
    train["baseline_settings"] |= {"maxProperties": len(zoo.names())}
    for name, field in SearchSpec.model_fields.items():
        settings = field.default
        if isinstance(settings, BackboneSettings):
            fitting = [model for model in zoo.names() if settings.opens(zoo.parts(model, "ctr"))]
            search[name]["properties"]["backbone"]["enum"] = fitting
            if isinstance(settings, IHASSettings):
                search[name]["properties"]["into"]["enum"] = [*fitting, None]
    schema["properties"]["status"] = _status()
    version = {
        "name": VERSION,
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {"status": {}},
        "additionalPrinterColumns": [
            _column("Phase", ".status.phase"),
            _column("Step", ".status.step"),
            _column("Trials", ".status.trialsDone"),
            _column("Best", ".status.bestValue", "number"),
            _column("Model", ".status.bestModel"),
            _column("Age", ".metadata.creationTimestamp", "date"),
        ],
    }
    names = {
        "kind": "SearchPipeline",
        "listKind": "SearchPipelineList",
        "plural": PLURAL,
        "singular": "searchpipeline",
        "shortNames": ["sp"],
        "categories": ["dalil"],
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


def _rule(schema: Schema, rules: Rules) -> None:
    schema["x-kubernetes-validations"] = [{"rule": rule, "message": message} for rule, message in rules]


def _column(name: str, path: str, kind: str = "string") -> Schema:
    return {"name": name, "jsonPath": path, "type": kind}


def _status() -> Schema:
    text, number, integer = {"type": "string"}, {"type": "number"}, {"type": "integer"}
    time = {"type": "string", "format": "date-time"}
    counts = dict.fromkeys(("done", "running", "failed", "total"), integer)
    step = {"name": text, "phase": text, "started": time, "finished": time, "parts": text}
    condition = {"type": text, "status": text, "reason": text, "message": text, "lastTransitionTime": time}
    properties = {
        "observedGeneration": integer,
        "phase": {"type": "string", "enum": ["Pending", "Running", "Suspended", "Succeeded", "Failed"]},
        "step": {**text, "nullable": True},
        "steps": {"type": "array", "items": {"type": "object", "properties": step}},
        "rows": integer,
        "trials": {"type": "object", "properties": counts},
        "trialsDone": text,
        "bestValue": number,
        "bestModel": text,
        "registeredModel": text,
        "runUrl": text,
        "conditions": {
            "type": "array",
            "items": {"type": "object", "properties": condition, "required": ["type", "status"]},
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
    }
    return {"type": "object", "properties": properties}
