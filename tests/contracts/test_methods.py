"""What every search method must keep, whatever it searches."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import pytest
import torch

from components.settings import SearchSpec
from tests.trainer.mixed import batch_of, flat_schema, mixed_schema
from trainer.architecture import Architecture
from trainer.build import build
from trainer.candidate import Candidate, candidate_space
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

pytestmark = [
    pytest.mark.parametrize("method", METHODS.values(), ids=METHODS),
    pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS),
]


def template(method: ModuleType, schema: DatasetSchema) -> dict[str, Any]:
    name = next(name for name, module in METHODS.items() if module is method)
    settings = getattr(SearchSpec(method=name), name)  # type: ignore[arg-type]
    space: dict[str, Any] = method.space(schema, settings)
    return space


def randomly(random: Random, choice: Choice) -> int:
    return random.randrange(len(choice.labels))


def test_the_template_is_json_with_consistent_choices(method: ModuleType, schema: DatasetSchema) -> None:
    space = template(method, schema)
    assert json.loads(json.dumps(space)) == space
    assert choices(space)
    assert space == template(method, schema)


def test_every_filling_is_an_architecture(method: ModuleType, schema: DatasetSchema) -> None:
    space = candidate_space(template(method, schema), TrainSettings(), TuneSettings())
    random = Random(1)
    hashes = set()
    for _ in range(150):
        candidate = Candidate.from_dict(fill(space, partial(randomly, random)))
        assert candidate.architecture.task == schema.task
        assert count(candidate.architecture).total > 0
        hashes.add(candidate.hash)
    assert len(hashes) > 75


def test_fillings_train(method: ModuleType, schema: DatasetSchema) -> None:
    """Forward and backward, for the all-defaults filling and some random ones."""
    space, random = template(method, schema), Random(2)
    fillings = [fill_params(space, defaults(space))]
    fillings += [fill(space, partial(randomly, random)) for _ in range(7)]
    for filling in fillings:
        model = build(Architecture.from_dict(filling), label_mean=schema.label_mean, table_init=0.1, seed=0)
        output = model(batch_of(schema))
        assert output.shape == (8,)
        output.sum().backward()
        assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


def test_the_settings_are_light_to_import(method: ModuleType, schema: DatasetSchema) -> None:
    """The model of the pipeline file embeds them, and `dalil --help` must not wait for torch."""
    script = "import sys, trainer.methods.settings; print({'torch', 'optuna', 'polars'} & set(sys.modules))"
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root, check=True)
    assert told.stdout.strip() == "set()"
