"""What every search method must keep, whatever it searches."""

import json
import math
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from components.settings import SearchSpec
from tests.trainer.mixed import batch_of, flat_schema, mixed_schema
from trainer import zoo
from trainer.architecture import Architecture
from trainer.build import Model, build
from trainer.candidate import Candidate, candidate_space
from trainer.data import Jagged, Table
from trainer.engines import gradient, sampled, staged, streamed
from trainer.engines.supernet import Schedule, Trace
from trainer.errors import UserError
from trainer.methods.base import Opening
from trainer.methods.settings import SECTIONS, TASKS, BackboneSettings
from trainer.methods.table import METHODS
from trainer.schema import DatasetSchema
from trainer.settings import TrainSettings, TuneSettings
from trainer.shapes import count
from trainer.space import Choice, choices, defaults, fill, fill_params


def numeric_schema(task: Any) -> DatasetSchema:
    schema = mixed_schema(task)
    return schema.model_copy(update={"fields": tuple(f for f in schema.fields if f.kind == "numeric")})


SCHEMAS = {
    f"{name}-{task}": make(task)
    for name, make in (("mixed", mixed_schema), ("categorical", flat_schema), ("numeric", numeric_schema))
    for task in ("ctr", "rating")
}
NEEDS = {
    "autodim": "categorical",
    "nis": "categorical",
    "esapn": "categorical",
    "ihas": "categorical",
    "field_dims": "categorical",
    "mde": "categorical",
    "dpq": "categorical",
    "mgqe": "categorical",
    "autoemb": "categorical",
    "autodis": "numeric",
}
"""The kind of field that a method is about."""

VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "autofis": {"triples": {"triples": [False, True]}, "top": {"select": "top"}, "random": {"select": "random"}},
    "autodim": {
        "simple": {"update": "training"},
        "one width": {"dims": [3]},
        "padded": {"align": ["pad", "lift"]},
        "blind": {"select": "random"},
    },
    "autodis": {
        "several": {"encoders": ["scale", "bins", "equal_width", "equal_frequency", "logarithm", "tree"]},
        "bins": {"adaptive": [False, True], "aggregation": ["average", "max", "top"]},
    },
    "nis": {
        "single": {"sizes": "single", "columns": 2, "rows": [0.5, 1.0]},
        "padded": {"align": ["pad", "lift"], "budget": [0.1, 0.6]},
        "blind": {"select": "random"},
        "frequency": {"select": "frequency"},
    },
    "esapn": {
        "few": {"sizes": [2, 8], "fields": ["user"], "first_chance": [0.01, 0.1]},
        "fixed": {"select": "fixed", "budget": [0.1, 0.6]},
        "frequency": {"select": "frequency"},
    },
    "ameir": {
        "plain": {"positions": [False], "causal": [False], "pooling": ["max"], "products": 0, "excitation": [False]},
        "pairs": {"order": 2, "products": 2, "blocks": [1, 3], "layers": ["skip", "gru"], "candidates": 5},
        "blind": {"select": "random"},
    },
    "ihas": {
        "one": {"groups": [1], "sparse": [0.0, 1.0]},
        "blind": {"select": "random", "groups": [2, 3]},
        "moved": {"backbone": "dlrm", "into": "dcnv2", "least": 0.0},
    },
    "dpq": {"few": {"centroids": [3, 5], "subspaces": [1, 4], "dim": 4}},
    "mgqe": {"few": {"centroids": [4], "tail_centroids": [1, 2, 4], "subspaces": [2], "head": 0.3}},
    "autoemb": {"padded": {"align": ["pad", "lift"]}},
    "autogroup": {"two orders": {"first": [0], "second": [2, 5], "third": [1, 4], "dims": [4, 8]}},
}
"""Settings beside the defaults, for methods whose defaults leave much closed."""


def fits(method: str, schema: DatasetSchema) -> bool:
    return method not in NEEDS or bool(schema.names(NEEDS[method]))  # type: ignore[arg-type]


PAIRS = [(method, name) for method in METHODS for name in SCHEMAS]
FITTING = [(method, name) for method, name in PAIRS if fits(method, SCHEMAS[name])]
every_method = pytest.mark.parametrize(("method", "name"), FITTING, ids=["-".join(pair) for pair in FITTING])

OPENINGS = [
    pytest.param(method, name, variant, id=f"{method}-{name}-{title}")
    for method, name in FITTING
    if METHODS[method].supernet is not None
    for title, variant in {"defaults": {}, **VARIANTS.get(method, {})}.items()
    if not (variant.get("triples") and name.startswith("numeric"))  # two fields make no triple
]
every_opening = pytest.mark.parametrize(("method", "name", "variant"), OPENINGS)


def settings_of(method: str, **given: Any) -> Any:
    return SearchSpec.model_validate({SECTIONS.get(method, method): given}).section(method)


def space_of(method: str, schema: DatasetSchema, tune: TuneSettings | None = None, **given: Any) -> dict[str, Any]:
    """The method's space of candidates."""
    settings, chosen = settings_of(method, **given), METHODS[method]
    plan = chosen.plan(settings) if chosen.plan else None
    return candidate_space(chosen.space(schema, settings), TrainSettings(), tune or TuneSettings(), plan)


def randomly(random: Random, choice: Choice) -> int:
    return random.randrange(len(choice.labels))


def rows_of(schema: DatasetSchema, rows: int = 60, seed: int = 0) -> Table:
    batch = batch_of(schema, rows=rows, seed=seed)
    sequences = {}
    for name, ids_BT in batch.sequences.items():
        lengths = batch.lengths[name]
        valid_BT = torch.arange(ids_BT.shape[1]) < lengths[:, None]
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        sequences[name] = Jagged(ids_BT[valid_BT].int(), offsets)
    return Table(schema, batch.categorical.int(), batch.numeric, batch.label, sequences)


def opened(candidate: Candidate, schema: DatasetSchema) -> Any:
    """The supernet of a candidate, on a few rows."""
    assert candidate.supernet is not None
    open_supernet = METHODS[candidate.supernet["method"]].supernet
    assert open_supernet is not None
    train, valid = rows_of(schema), rows_of(schema, seed=1)
    return open_supernet(Opening(candidate.architecture, candidate.supernet, candidate.training, train, valid, seed=1))


def loss(model: Model, schema: DatasetSchema) -> Tensor:
    output = model(batch_of(schema))
    assert output.shape == (8,)
    return output.square().sum()


def finite(model: Model) -> bool:
    return all(weight.grad is None or bool(torch.isfinite(weight.grad).all()) for weight in model.parameters())


def trained_a_step(architecture: Architecture, schema: DatasetSchema) -> None:
    """Forward and backward reach every weight that the description counts."""
    model = build(architecture, label_mean=schema.label_mean, table_init=0.1, seed=0)
    loss(model, schema).backward()
    assert finite(model)
    counts = count(architecture)
    assert sum(weight.numel() for weight in model.parameters()) == counts.total - counts.codes


# ---- spaces ---------------------------------------------------------------------------------------------------------


def test_every_method_of_a_pipeline_file_is_in_the_table() -> None:
    named = set(SearchSpec.model_json_schema()["properties"]["methods"]["items"]["enum"])
    assert named - {"all"} == set(METHODS) == set(TASKS)
    for method in METHODS.values():
        assert (method.plan is None) == (method.supernet is None)


@every_method
def test_the_space_is_json_with_consistent_choices(method: str, name: str) -> None:
    space = space_of(method, SCHEMAS[name])
    assert json.loads(json.dumps(space)) == space
    assert choices(METHODS[method].space(SCHEMAS[name], settings_of(method)))
    assert choices(space)
    assert space == space_of(method, SCHEMAS[name])


@pytest.mark.parametrize(
    ("method", "name"), [pair for pair in PAIRS if pair not in FITTING], ids=lambda part: str(part)
)
def test_a_dataset_without_the_fields_that_a_method_is_about_is_refused(method: str, name: str) -> None:
    """Else every trial would be the same, and nobody would know why."""
    with pytest.raises(UserError, match=rf"^search.methods: {method} .*{NEEDS[method]}.* none$"):
        space_of(method, SCHEMAS[name])


@every_method
def test_every_filling_is_an_architecture(method: str, name: str) -> None:
    schema, random, hashes = SCHEMAS[name], Random(1), set()
    space = space_of(method, schema)
    for _ in range(150):
        candidate = Candidate.from_dict(fill(space, partial(randomly, random)))
        assert candidate.architecture.task == schema.task
        assert count(candidate.architecture).total > 0
        assert Candidate.from_dict(json.loads(json.dumps(candidate.to_dict()))).hash == candidate.hash
        hashes.add(candidate.hash)
    fillings = math.prod(len(choice.labels) for choice in choices(space).values())
    assert len(hashes) > min(150, fillings) / 2


@every_method
def test_fillings_train(method: str, name: str) -> None:
    """For the all-defaults filling and some random ones."""
    space, random = space_of(method, SCHEMAS[name])["architecture"], Random(2)
    fillings = [fill_params(space, defaults(space))]
    fillings += [fill(space, partial(randomly, random)) for _ in range(7)]
    for filling in fillings:
        trained_a_step(Architecture.from_dict(filling), SCHEMAS[name])


# ---- supernets ------------------------------------------------------------------------------------------------------


@every_opening
def test_a_plan_is_json_and_names_its_method(method: str, name: str, variant: dict[str, Any]) -> None:
    plan = METHODS[method].plan
    assert plan is not None
    made = plan(settings_of(method, **variant))
    assert json.loads(json.dumps(made)) == made
    assert made["method"] == method


@every_opening
def test_a_supernet_learns_and_derives_at_any_moment(method: str, name: str, variant: dict[str, Any]) -> None:
    """Before, while and after its gates learn, for random backbones and plans."""
    schema, random = SCHEMAS[name], Random(3)
    space = space_of(method, schema, **variant)
    for _ in range(3):
        candidate = Candidate.from_dict(fill(space, partial(randomly, random)))
        net = opened(candidate, schema)
        trained_a_step(net.derive(), schema)
        if METHODS[method].search is staged.search:
            assert_every_stage_learns(net, schema)
        elif METHODS[method].search is sampled.search:
            assert_every_choice_learns(net, schema)
        elif METHODS[method].search is streamed.search:
            assert_grows(net, schema)
        elif net.gates:
            for progress, frozen, deciding in ((0.0, True, False), (0.5, False, True)):
                assert_learns(net, schema, progress, frozen, deciding)
            net.relax(1.0, frozen=False, deciding=False)
        trained_a_step(net.derive(), schema)


def learned(net: Any) -> dict[str, Tensor]:
    """The gates of a supernet, or its policy; stages have neither."""
    values: dict[str, Tensor] = getattr(net, "policy", getattr(net, "gates", {}))
    return values


def assert_grows(net: Any, schema: DatasetSchema) -> None:
    """Whatever size categories have; sizes are what is derived."""
    before = net.derive().hash
    for field in net.growth:
        largest = net.sizes(field) == len(net.widths) - 1
        net.enlarge(field, (~largest).nonzero().flatten()[::2])
        loss(net.model, schema).backward()
        assert finite(net.model)
        assert all(largest) or net.derive().hash != before
    inside = {id(weight) for weight in net.model.parameters()}
    assert not any(id(value) in inside for value in net.policy.values())


def assert_every_stage_learns(net: Any, schema: DatasetSchema) -> None:
    """With draws, each of which is a model too, until all stages have decided."""
    for stage in net.stages():
        for number in range(3):
            choice = stage.draw(sampled.generator(7, stage.name, number))
            stage.take(choice)
            stage.model.zero_grad()
            loss(stage.model, schema).backward()
            assert finite(stage.model)
            trained_a_step(stage.architecture(choice), schema)
        scores = staged.Scores(stage, rows_of(schema, seed=1), seed=1)
        stage.decide(scores.blind(stage.candidates), scores)
        assert scores.samples > 0


def assert_every_choice_learns(net: Any, schema: DatasetSchema) -> None:
    """With everything, and with choices, each of which is a model too."""
    choices = [sampled.uniform(net.policy, sampled.generator(7, "choice", number)) for number in range(3)]
    for choice in [None, *choices] if net.policy else ():
        net.take(choice)
        net.model.zero_grad()
        output = loss(net.model, schema)
        if output.requires_grad:
            output.backward()  # type: ignore[no-untyped-call]
        assert finite(net.model)
        if choice is not None:
            assert net.price(choice) >= 0
            with suppress(UserError):  # everything dropped
                trained_a_step(net.architecture(choice), schema)
    inside = {id(weight) for weight in net.model.parameters()}
    assert not any(id(logits) in inside for logits in net.policy.values())


def assert_learns(net: Any, schema: DatasetSchema, progress: float, frozen: bool, deciding: bool) -> None:
    """A pass with a step of the gates, which are parameters of the model and whose gradients are finite."""
    net.relax(progress, frozen=frozen, deciding=deciding)
    net.model.zero_grad()
    loss(net.model, schema).backward()
    assert finite(net.model)
    if deciding or net.level == "single":
        net.optimizer(10).step()
    inside = {id(weight) for weight in net.model.parameters()}
    assert all(id(gate) in inside for gate in net.gates.values())


@every_opening
def test_gates_are_reached_when_they_decide(method: str, name: str, variant: dict[str, Any]) -> None:
    net = opened(Candidate.from_dict(fill_params(space_of(method, SCHEMAS[name], **variant), {})), SCHEMAS[name])
    assert isinstance(net.schedule, Schedule)
    if METHODS[method].search is not gradient.search or all(gate.shape[-1] == 1 for gate in net.gates.values()):
        return  # nothing to decide
    torch.manual_seed(0)
    net.relax(0.3, frozen=False, deciding=True)
    for _ in range(10):  # a draw may leave every field out of every group
        loss(net.model, SCHEMAS[name]).backward()
    assert all((gate.grad != 0).any() for gate in net.gates.values())


@every_opening
def test_figures_are_plain_data(method: str, name: str, variant: dict[str, Any]) -> None:
    net = opened(Candidate.from_dict(fill_params(space_of(method, SCHEMAS[name], **variant), {})), SCHEMAS[name])
    engine = METHODS[method].search
    if engine is staged.search:
        assert net.figures() == []
        assert_every_stage_learns(net, SCHEMAS[name])
        figures, shown = net.figures(), variant.get("select") != "random"
    else:
        bands = len(streamed.BANDS)
        noted = {field: torch.ones(bands, len(net.widths)) for field in net.growth} if engine is streamed.search else {}
        trace = {
            name: torch.stack([value.detach(), value.detach() + 0.1]) for name, value in (noted or learned(net)).items()
        }
        figures, shown = net.figures(Trace([0.0, 1.0], trace)), bool(trace)
    assert json.loads(json.dumps(figures)) == figures
    assert bool(figures) == shown
    for figure in figures:
        assert figure["kind"] in ("heatmap", "curves", "table", "stages")


BACKBONES = [
    (method, backbone)
    for method in METHODS
    if isinstance(settings_of(method), BackboneSettings)
    for backbone in zoo.names()
    if settings_of(method).opens(zoo.parts(backbone, "ctr"))
]


OPEN: dict[str, dict[str, Any]] = {
    "autodis": {"encoders": ["scale", "bins"]},
    "dpq": {"centroids": [4]},
    "mgqe": {"centroids": [4], "tail_centroids": [2]},
}
"""Settings without which there is nothing to decide on so few categories, or at all."""


@pytest.mark.parametrize(("method", "backbone"), BACKBONES, ids=["-".join(pair) for pair in BACKBONES])
def test_every_backbone_that_a_pipeline_file_may_name_has_something_to_open(method: str, backbone: str) -> None:
    """On a dataset with every kind of field: a supernet with something to decide, or a choice that is the method's."""
    schema, random = mixed_schema(), Random(4)
    space = space_of(method, schema, backbone=backbone, **OPEN.get(method, {}))
    if METHODS[method].supernet is None:
        assert set(choices(space["architecture"])) - set(choices(zoo.template(backbone, schema)))
    for _ in range(3):
        candidate = Candidate.from_dict(fill(space, partial(randomly, random)))
        if METHODS[method].supernet is not None:
            net = opened(candidate, schema)
            assert learned(net)
            loss(net.model, schema).backward()
            trained_a_step(net.derive(), schema)
        else:
            trained_a_step(candidate.architecture, schema)


OPENED = [pair for pair in BACKBONES if METHODS[pair[0]].supernet is not None]


@pytest.mark.parametrize(("method", "backbone"), OPENED, ids=["-".join(pair) for pair in OPENED])
def test_every_choice_of_a_backbone_changes_the_supernet(method: str, backbone: str) -> None:
    """Trials that differ in a choice that the supernet leaves out would be the same search made twice."""
    schema = mixed_schema()
    space = space_of(method, schema, backbone=backbone)

    def hash_of(**params: int) -> str:
        net = opened(Candidate.from_dict(fill_params(space, params)), schema)
        architecture: Architecture = net.model.architecture
        return architecture.hash

    for choice in choices(space["architecture"]).values():
        seen = {hash_of(**{choice.name: index}) for index in range(len(choice.labels))}
        assert len(seen) == len(choice.labels), choice.name


def test_the_settings_are_light_to_import() -> None:
    """The model of the pipeline file embeds them, and `dalil --help` must not wait for torch."""
    script = "import sys, trainer.methods.settings; print({'torch', 'optuna', 'polars'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert told.stdout.strip() == "set()"
