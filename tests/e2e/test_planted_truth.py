"""Searches by gradient find what was planted: five seeds each, every figure held against what is true of the rows.

The rows come from the format `planted`. Settings are the same for all seeds; the test split is not read here.
"""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from components.dataset import DatasetSpec
from components.ingest import ingest
from trainer import data
from trainer.architecture import Architecture
from trainer.build import build
from trainer.engines import gradient
from trainer.engines.gradient import Supernet
from trainer.engines.supernet import Found
from trainer.fit import fit
from trainer.methods.base import Opening
from trainer.methods.settings import AutoDimSettings, AutoDisSettings, AutoFISSettings, AutoGroupSettings
from trainer.methods.table import METHODS
from trainer.schema import DatasetSchema
from trainer.settings import TrainSettings
from trainer.space import fill_params

pytestmark = pytest.mark.slow

SEEDS = (1, 2, 3, 4, 5)


class Rows:
    """One planted dataset."""

    def __init__(self, folder: Path, planted: dict[str, Any]) -> None:
        spec = {"format": "planted", "task": "ctr", "planted": {"mean": 0.4, **planted}}
        ingest(DatasetSpec.model_validate(spec), folder, lambda *_, **__: None)
        self.schema = DatasetSchema.load(folder)
        self.train, self.valid = (data.load(folder, split, self.schema) for split in ("train", "valid"))

    def search(self, method: str, settings: Any, training: TrainSettings, seed: int) -> tuple[Any, Found]:
        """The supernet at the end of its search, and what was found."""
        table = METHODS[method]
        assert table.plan is not None
        assert table.supernet is not None
        backbone = Architecture.from_dict(fill_params(table.space(self.schema, settings), {}))
        plan = fill_params(table.plan(settings), {})
        supernet: Supernet = table.supernet(Opening(backbone, plan, training, self.train, self.valid, seed))
        return supernet, gradient.search(supernet, self.train, self.valid, training, seed=seed)

    def loss(self, architecture: Architecture, training: TrainSettings, seed: int) -> float:
        """Best validation log loss of a training from scratch."""
        mean = self.schema.label_mean
        model = build(architecture, label_mean=mean, table_init=training.table_init, seed=seed)
        return fit(model, self.train, self.valid, training, task="ctr", seed=seed).best_value


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- AutoFIS --------------------------------------------------------------------------------------------------------

PAIRS = {("a", "b"), ("c", "d"), ("e", "f"), ("e", "g"), ("f", "g")}
TRIPLE = ("t", "u", "v")


def pairs_and_a_triple(seed: int) -> dict[str, Any]:
    """Five pairs, of which three contradict each other so that one counts against; a triple; four fields of noise."""
    fields: dict[str, Any] = {name: {"cardinality": 20, "effect": 0.2} for name in "abcdefg"}
    fields |= {name: {"cardinality": 8, "effect": 0.2} for name in TRIPLE}
    fields |= {f"noise{number}": {"cardinality": 20} for number in range(4)}
    shared = {"rank": 3, "vectors": "shared"}
    interactions = [
        {"fields": ["a", "b"], "rank": 1, "strength": 0.8},
        {"fields": ["c", "d"], "rank": 3, "strength": 0.8},
        {"fields": ["e", "f"], "strength": 0.8, **shared},
        {"fields": ["e", "g"], "strength": 0.8, **shared},
        {"fields": ["f", "g"], "strength": -0.8, **shared},
        {"fields": list(TRIPLE), "rank": 2, "strength": 1.0},
    ]
    return {"rows": 100_000, "seed": seed, "fields": fields, "interactions": interactions}


def kept(architecture: Architecture, op: str) -> set[tuple[str, ...]]:
    return {tuple(one) for node in architecture.nodes if node.op == op for one in node.keep}  # type: ignore[union-attr]


def others(names: Sequence[str], size: int, planted: set[tuple[str, ...]]) -> set[tuple[str, ...]]:
    return set(combinations(names, size)) - planted


@pytest.mark.parametrize("seed", SEEDS)
def test_autofis_keeps_planted_pairs_and_the_triple(tmp_path: Path, seed: int) -> None:
    rows = Rows(tmp_path, pairs_and_a_triple(seed))
    names = rows.schema.names("categorical")
    training = TrainSettings(batch_size=2048, learning_rate=5e-3, table_init=0.05, epochs=8)
    settings = AutoFISSettings(backbone="fm", threshold=[1.6], mu=[0.9], triples=[True], epochs=5)
    _, found = rows.search("autofis", settings, training, seed)
    pairs, triples = kept(found.architecture, "pairs"), kept(found.architecture, "triples")
    assert pairs >= PAIRS
    assert TRIPLE in triples
    noise = others(names, 2, PAIRS)
    assert len(noise - pairs) >= 0.9 * len(noise)
    blind = others(names, 3, {TRIPLE})
    assert len(blind - triples) >= 0.9 * len(blind)


@pytest.mark.parametrize("seed", SEEDS[:2])
def test_a_random_mask_of_equal_size_is_worse_than_what_autofis_keeps(tmp_path: Path, seed: int) -> None:
    rows = Rows(tmp_path, pairs_and_a_triple(seed))
    training = TrainSettings(batch_size=2048, learning_rate=5e-3, table_init=0.05, epochs=8)
    _, found = rows.search("autofis", AutoFISSettings(backbone="fm", threshold=[1.6], epochs=5), training, seed)
    share = len(kept(found.architecture, "pairs")) / len(set(combinations(rows.schema.names("categorical"), 2)))
    blind = AutoFISSettings(backbone="fm", select="random", keep=[share], epochs=1)
    _, drawn = rows.search("autofis", blind, training, seed)
    assert len(kept(drawn.architecture, "pairs")) == len(kept(found.architecture, "pairs"))
    assert rows.loss(found.architecture, training, seed) < rows.loss(drawn.architecture, training, seed) - 0.01


# ---- AutoDim --------------------------------------------------------------------------------------------------------

RANKS = {"a1": 1, "b1": 1, "a4": 4, "b4": 4, "a12": 12, "b12": 12, "noise0": 0, "noise1": 0, "noise2": 0, "two": 0}


def ranks(seed: int) -> dict[str, Any]:
    """Pairs of rank 1, 4 and 12, three fields of noise, and a field of two values with an effect of its own."""
    fields: dict[str, Any] = {name: {"cardinality": 40, "effect": 0.2 if rank else 0.0} for name, rank in RANKS.items()}
    fields["two"] = {"cardinality": 2, "effect": 0.2}
    interactions = [{"fields": [f"a{rank}", f"b{rank}"], "rank": rank, "strength": 1.0} for rank in (1, 4, 12)]
    return {"rows": 200_000, "seed": seed, "fields": fields, "interactions": interactions}


def dims(architecture: Architecture) -> list[int]:
    """The widths of the fields in the order of `RANKS`."""
    encoders = architecture.views["e"].encoders
    return [encoders[name].dim for name in RANKS]  # type: ignore[union-attr]


def test_autodim_gives_fields_of_higher_rank_wider_embeddings(tmp_path: Path) -> None:
    training = TrainSettings(batch_size=512, learning_rate=3e-3, table_init=0.05)
    correlations = []
    for seed in SEEDS:
        rows = Rows(tmp_path / str(seed), ranks(seed))
        _, found = rows.search("autodim", AutoDimSettings(backbone="fm", epochs=6), training, seed)
        correlations.append(float(spearmanr(dims(found.architecture), list(RANKS.values())).statistic))
    assert np.mean(correlations) >= 0.6, correlations


def test_gates_that_learn_from_training_rows_take_wider_embeddings(tmp_path: Path) -> None:
    """Where rows are few: what over-fits looks useful to them (AutoDim-s)."""
    training = TrainSettings(batch_size=1024, learning_rate=3e-3, table_init=0.05)
    for seed in SEEDS[:3]:
        rows = Rows(tmp_path / str(seed), ranks(seed) | {"rows": 40_000})
        means = {}
        for update in ("validation", "training"):
            settings = AutoDimSettings(backbone="fm", epochs=12, update=update)
            _, found = rows.search("autodim", settings, training, seed)
            means[update] = np.mean(dims(found.architecture))
        assert means["training"] > means["validation"], (seed, means)


# ---- AutoGroup ------------------------------------------------------------------------------------------------------


def memberships(supernet: Any, order: int) -> tuple[list[str], np.ndarray]:
    """Field names and (groups, fields) bool."""
    node = next(node for node in supernet.open.nodes if node.op == "groups" and node.order == order)
    return list(node.sets[0]), (supernet.gates[node.id].detach() > 0).numpy()


def together(names: Sequence[str], inside: np.ndarray, sets: Sequence[Sequence[str]]) -> float:
    """Share of groups that hold a whole set, mean over the sets."""
    return float(np.mean([inside[:, [names.index(name) for name in one]].all(axis=1).mean() for one in sets]))


def test_autogroup_puts_planted_partners_together(tmp_path: Path) -> None:
    """Twice as often as other pairs, over five seeds."""
    planted = [("a", "b"), ("c", "d")]
    fields: dict[str, Any] = {name: {"cardinality": 10, "effect": 0.1} for name in "abcd"}
    fields |= {f"noise{number}": {"cardinality": 10} for number in range(4)}
    interactions = [{"fields": list(pair), "rank": 3, "strength": 1.0} for pair in planted]
    training = TrainSettings(batch_size=1024, learning_rate=3e-3, table_init=0.05)
    settings = AutoGroupSettings(backbone="fm", first=[0], second=[16], third=[0], epochs=5)
    shares = []
    for seed in SEEDS:
        rows = Rows(
            tmp_path / str(seed), {"rows": 100_000, "seed": seed, "fields": fields, "interactions": interactions}
        )
        supernet, _ = rows.search("autogroup", settings, training, seed)
        names, inside = memberships(supernet, order=2)
        strangers = sorted(others(names, 2, set(planted)))
        shares.append((together(names, inside, planted), together(names, inside, strangers)))
    partners, strangers_together = np.mean(shares, axis=0)
    assert partners >= 2 * strangers_together, shares


@pytest.mark.parametrize("seed", SEEDS)
def test_autogroup_finds_a_triple_that_pairs_cannot_express(tmp_path: Path, seed: int) -> None:
    fields: dict[str, Any] = {name: {"cardinality": 4} for name in TRIPLE}
    fields |= {f"noise{number}": {"cardinality": 4} for number in range(4)}
    interactions = [{"fields": list(TRIPLE), "rank": 1, "strength": 1.5}]
    rows = Rows(tmp_path, {"rows": 100_000, "seed": seed, "fields": fields, "interactions": interactions})
    training = TrainSettings(batch_size=1024, learning_rate=3e-3, table_init=0.1, average=0.98, epochs=10)
    settings = AutoGroupSettings(backbone="fm", first=[0], second=[0], third=[32], dims=[8], epochs=6)
    supernet, found = rows.search("autogroup", settings, training, seed)
    names, inside = memberships(supernet, order=3)
    whole = together(names, inside, [TRIPLE])
    assert whole > 0
    assert whole > together(names, inside, sorted(others(names, 3, {TRIPLE})))
    pairs = AutoGroupSettings(backbone="fm", first=[0], second=[16], third=[0], dims=[8], epochs=3)
    _, second = rows.search("autogroup", pairs, training, seed)
    assert rows.loss(found.architecture, training, seed) < rows.loss(second.architecture, training, seed) - 0.05


# ---- AutoDis --------------------------------------------------------------------------------------------------------


WAVING = TrainSettings(batch_size=1024, learning_rate=5e-3, table_init=0.05, table_l2=1e-6, average=0.99, epochs=20)


def waving(folder: Path, seed: int) -> Rows:
    """A number whose effect goes up and down four times, one with a straight effect, and a pair."""
    fields: dict[str, Any] = {name: {"cardinality": 20, "effect": 0.3} for name in ("user", "item")}
    fields |= {"wave": {"effect": 1.2, "waves": 4}, "line": {"effect": 0.3}}
    interactions = [{"fields": ["user", "item"], "rank": 2, "strength": 0.5}]
    return Rows(folder, {"rows": 60_000, "seed": seed, "fields": fields, "interactions": interactions})


@pytest.mark.parametrize("seed", SEEDS)
def test_autodis_beats_every_bucketing_on_a_waving_number(tmp_path: Path, seed: int) -> None:
    rows = waving(tmp_path, seed)
    losses = {}
    for kind in ("bins", "scale", "equal_width", "equal_frequency", "logarithm", "tree"):
        settings = AutoDisSettings(backbone="fm", encoders=[kind], bins=[20], temperature=[0.5], buckets=[20])
        _, found = rows.search("autodis", settings, WAVING, seed)
        losses[kind] = rows.loss(found.architecture, WAVING, seed)
    assert losses["bins"] < min(loss for kind, loss in losses.items() if kind != "bins"), losses


@pytest.mark.parametrize("seed", SEEDS)
def test_an_adaptive_temperature_mends_a_global_one_that_is_too_high(tmp_path: Path, seed: int) -> None:
    rows = waving(tmp_path, seed)
    losses = {}
    for adaptive in (False, True):
        settings = AutoDisSettings(backbone="fm", bins=[20], temperature=[10.0], adaptive=[adaptive])
        _, found = rows.search("autodis", settings, WAVING, seed)
        losses[adaptive] = rows.loss(found.architecture, WAVING, seed)
    assert losses[True] < losses[False], losses
