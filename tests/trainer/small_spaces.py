"""Small datasets and spaces of candidates for the tests of searches."""

from collections.abc import Mapping
from random import Random
from typing import Any

from trainer.architecture import fields_of
from trainer.candidate import candidate_space
from trainer.schema import DatasetSchema, Field, Task
from trainer.settings import TrainSettings, TuneSettings
from trainer.space import choice, choices


def schema(task: Task = "ctr", categorical: int = 2, numeric: int = 0, sequences: int = 0) -> DatasetSchema:
    fields = [Field(name=f"c{n}", kind="categorical", cardinality=10 + n) for n in range(categorical)]
    fields += [Field(name=f"x{n}", kind="numeric", missing=n % 2 == 0) for n in range(numeric)]
    fields += [Field(name=f"h{n}", kind="sequence", of="c0", cardinality=10, max_len=4) for n in range(sequences)]
    return DatasetSchema(
        task=task,
        label="y",
        fields=tuple(fields),
        rows={"train": 8, "valid": 4, "test": 4},
        label_mean=0.4,
        label_min=0,
        label_max=1,
    )


def mlp_and_cross() -> dict[str, Any]:
    """138,240 candidates in 5 groups: mapper, mlp, cross, head and training; `mlp.units2` is conditional."""
    units = [choice(f"mlp.units{n}", [8, 16, 32, 64]) for n in (1, 2)]
    template = {
        "task": "ctr",
        "fields": fields_of(schema()),
        "views": {"e": {"encoders": tables("mapper.dim", [4, 8, 16, 32])}},
        "nodes": [
            {
                "id": "m",
                "op": "mlp",
                "in": ["e"],
                "units": [choice("mlp.layers", [units[:1], units], labels=[1, 2], splice=True)],
                "dropout": choice("mlp.dropout", [0.0, 0.25, 0.5]),
                "norm": choice("mlp.norm", ["none", "batch"]),
            },
            {
                "id": "x",
                "op": "cross",
                "in": ["e"],
                "layers": choice("cross.layers", [1, 2, 3, 4]),
                "kind": choice("cross.kind", ["vector", "matrix"]),
            },
        ],
        "head": {"mode": choice("head.mode", ["linear", "sum"]), "in": ["m", "x"]},
    }
    return candidate_space(template, TrainSettings(), TuneSettings(learning_rate=[1e-4, 1e-3], table_l2=[1e-5, 1e-3]))


def tables(name: str, dims: list[int]) -> dict[str, Any]:
    return {field: {"kind": "table", "dim": choice(name, dims)} for field in ("c0", "c1")}


def two_dims() -> dict[str, Any]:
    """Four candidates."""
    template = {
        "task": "ctr",
        "fields": fields_of(schema()),
        "views": {"e": {"encoders": tables("e.dim", [4, 8])}},
        "nodes": [{"id": "q", "op": "fm", "in": ["e"]}],
        "head": {"mode": "sum", "in": ["q"]},
    }
    return candidate_space(template, TrainSettings(), TuneSettings(learning_rate=[], table_l2=[1e-5, 1e-3]))


class Planted:
    """An objective that adds up how far each choice is from its best option (an inactive one counts as its first)."""

    def __init__(self, space: Any, seed: int) -> None:
        random = Random(seed)
        self._effects = {name: self._effect(random, len(found.labels)) for name, found in choices(space).items()}

    @staticmethod
    def _effect(random: Random, options: int) -> list[float]:
        best, weight = random.randrange(options), random.random()
        return [weight * abs(option - best) for option in range(options)]

    def value(self, params: Mapping[str, int]) -> float:
        """Not negative; 0 is the optimum."""
        return sum(effect[params.get(name, 0)] for name, effect in self._effects.items())
