"""AutoCTR's space of blocks."""

import json
from functools import partial
from itertools import combinations
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer import opened
from tests.trainer.mixed import batch_of, flat_schema, mixed_schema
from tests.trainer.planted_ranks import planted
from trainer.architecture import Architecture
from trainer.build import Model, build
from trainer.candidate import Candidate, candidate_space
from trainer.fit import Diverged, fit
from trainer.methods.autoctr import space
from trainer.methods.settings import AutoCTRSettings
from trainer.propose import Past, propose
from trainer.schema import DatasetSchema
from trainer.settings import TrainSettings, TuneSettings
from trainer.shapes import count
from trainer.space import Choice, choices, defaults, fill, fill_params


def without_history() -> DatasetSchema:
    schema = mixed_schema()
    return schema.model_copy(update={"fields": tuple(f for f in schema.fields if f.kind != "sequence")})


def filled(schema: DatasetSchema, blocks: int = 7, dims: int = 16, **labels: Any) -> Architecture:
    """The architecture with these labels (dots written __) and no bits but these."""
    template = space(schema, AutoCTRSettings(blocks=blocks, dims=[dims]))
    given = {name.replace("__", "."): label for name, label in labels.items()}

    def choose(choice: Choice) -> int:
        return choice.labels.index(given.get(choice.name, choice.labels[0]))

    return Architecture.from_dict(fill(template, choose))


def randomly(random: Random, choice: Choice) -> int:
    return random.randrange(len(choice.labels))


def model(architecture: Architecture, seed: int = 0) -> Model:
    return build(architecture, label_mean=0.3, table_init=0.5, seed=seed).eval()


def nodes(architecture: Architecture) -> dict[str, Any]:
    return {node.id: node for node in architecture.nodes}


# ---- dimension rules (the sheet's test 3) ---------------------------------------------------------------------------


def raw(numeric_BM: Tensor) -> Tensor:
    """price (missing as 0), a mark where it is missing, age."""
    missing_B1 = numeric_BM[:, :1].isnan()
    return torch.cat([numeric_BM[:, :1].nan_to_num(0.0), missing_B1.float(), numeric_BM[:, 1:]], 1)


def by_hand(built: Model, kind: str) -> Tensor:
    """One block on all numbers and all embeddings, then the head, written out one product after the other."""
    batch, weights = batch_of(without_history()), built.state_dict()
    field_BMD = built.views["view:sparse"](batch, built.tables(batch))
    dense_BN = raw(batch.numeric)
    (lift_NO,) = next(value for name, value in weights.items() if "lifts" in name)
    vectors = [dense_BN @ lift_NO, *field_BMD.unbind(1)]
    if kind == "dot":
        pairs = [(a, b) for a in range(len(vectors)) for b in range(a, len(vectors))]
        output_BN = torch.stack([(vectors[a] * vectors[b]).sum(1) for a, b in pairs], 1)
    else:
        second_B = sum((a * b).sum(1) for a, b in combinations(vectors, 2))
        linear = {name.rpartition(".")[2]: value for name, value in weights.items() if "block1-linear" in name}
        first_B = torch.cat([dense_BN, field_BMD.flatten(1)], 1) @ linear["weight"][0] + linear["bias"]
        output_BN = (first_B + second_B)[:, None]
    head = {name.rpartition("head.")[2]: value for name, value in weights.items() if name.startswith("head.")}
    return output_BN @ head["maps.0.weight"][0] + head["bias"]


@pytest.mark.parametrize("kind", ["dot", "fm"])
def test_3_blocks_are_what_brute_force_makes_of_all_fields_and_one_more(kind: str) -> None:
    built = model(filled(without_history(), blocks=1, block1__type=kind, block1__dense=True, block1__sparse=True))
    with torch.no_grad():
        torch.testing.assert_close(built(batch_of(without_history())), by_hand(built, kind))


def test_3_a_dot_keeps_every_product_once() -> None:
    """The release keeps the first entries of the matrix, some pairs twice and others never."""
    width = {True: 4 * 5 // 2, False: 3 * 4 // 2}
    for dense in (True, False):
        found = filled(without_history(), blocks=1, block1__type="dot", block1__dense=dense, block1__sparse=True)
        (dot,) = (node for node in found.nodes if node.op == "dot")
        inputs = width[dense] + (0 if dense else 3)  # the head reads what is left, three raw columns
        assert count(found).dense == inputs + 1
        assert dot.dim == 16


def test_3_what_is_as_wide_as_a_field_is_one_without_a_map() -> None:
    """And all that a block reads beside embeddings is one field, whatever it is."""
    bits = {"block1__type": "mlp", "block1__sparse": True, "block2__type": "dot", "block2__block1": True}
    for dims, dense, lifts in ((32, False, 0), (16, False, 32 * 16), (16, True, 35 * 16)):
        found = filled(without_history(), blocks=2, dims=dims, block2__dense=dense, **bits)
        assert count(found).lifts == lifts


def test_3_an_mlp_reads_everything_flat() -> None:
    found = filled(without_history(), blocks=1, block1__type="mlp", block1__dense=True, block1__sparse=True)
    assert count(found).dense == (3 + 3 * 16 + 1) * 32 + 32 + 1


# ---- every filling (4), canonical form (6), the head (7) ------------------------------------------------------------


@pytest.mark.slow
def test_4_random_fillings_train_and_are_rebuilt() -> None:
    schema, random = mixed_schema(), Random(1)
    template, batch = space(schema, AutoCTRSettings(units=[4, 8])), batch_of(schema)
    for _ in range(1000):
        found = Architecture.from_dict(fill(template, partial(randomly, random)))
        built = model(found)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(built(batch), batch.label)
        assert loss.isfinite()
        loss.backward()  # type: ignore[no-untyped-call]
        assert all(weight.grad is None or weight.grad.isfinite().all() for weight in built.parameters())
        again = model(Architecture.from_dict(json.loads(json.dumps(found.to_dict()))))
        assert torch.equal(again(batch), built(batch))


def test_6_what_does_not_matter_is_not_asked() -> None:
    """Types and inputs of blocks that read nothing, bits for these, units of what is no mlp."""
    template = space(mixed_schema(), AutoCTRSettings(blocks=3))
    asked: list[str] = []

    def choose(choice: Choice) -> int:
        asked.append(choice.name)
        return int(choice.name == "block3.sparse")

    found = Architecture.from_dict(fill(template, choose))
    empty = [f"block{number}.{name}" for number in (1, 2) for name in ("dense", "sparse")]
    assert asked == [*empty, "block3.dense", "block3.sparse", "block3.type", "block3.units"]
    assert [node.id for node in found.nodes] == ["pooled1", "block3"]
    params = {"block3.sparse": 1, "block3.type": 1, **dict.fromkeys(empty, 0), "block3.dense": 0}
    dead = {"block3.units": 3, "block1.type": 2, "block2.block1": 1, "block3.block1": 1, "block3.block2": 1}
    assert fill_params(template, params | dead) == fill_params(template, params)


def test_6_points_that_differ_in_something_asked_are_mostly_different_models() -> None:
    """Only what is the same sum in another order, or a product of one thing, may be the same."""
    template, random = space(mixed_schema(), AutoCTRSettings()), Random(2)
    points, hashes = set(), set()
    for _ in range(300):
        params: dict[str, int] = {}

        def choose(choice: Choice, params: dict[str, int] = params) -> int:
            params[choice.name] = randomly(random, choice)
            return params[choice.name]

        hashes.add(Architecture.from_dict(fill(template, choose)).hash)
        points.add(json.dumps(params))
    assert len(hashes) == len(points) == 300


def test_7_the_head_reads_what_no_block_does() -> None:
    template, random = space(mixed_schema(), AutoCTRSettings()), Random(3)
    for _ in range(200):
        found = Architecture.from_dict(fill(template, partial(randomly, random)))
        read = {ref for node in found.nodes for ref in node.inputs}
        left = {"dense", "sparse", *nodes(found)} - read
        assert set(found.head.inputs) == left
        assert found.live().nodes == found.nodes


def test_the_first_trial_is_a_sound_model() -> None:
    found = Architecture.from_dict(fill_params(template := space(flat_schema(), AutoCTRSettings()), defaults(template)))
    assert [(node.op, node.inputs) for node in found.nodes] == [("dot", ("sparse",)), ("mlp", ("block1", "sparse"))]
    assert found.head.inputs == ("block2",)


def test_the_published_values() -> None:
    found = choices(space(mixed_schema(), AutoCTRSettings()))
    assert found["block7.units"].labels == (32, 64, 128, 256, 512, 1024)
    assert found["block7.type"].labels == ("mlp", "dot", "fm")
    assert [name for name in found if name.startswith("block3.")] == [
        f"block3.{name}" for name in ("dense", "block1", "block2", "sparse", "type", "units")
    ]
    assert len([name for name in found if name.startswith("block7.")]) == 10


# ---- what a search finds (9), low fidelity (10), numbers as they are ------------------------------------------------

QUICK = TrainSettings(batch_size=500, epochs=12, patience=2, learning_rate=0.02, table_init=0.1, table_l2=1e-4)


def trained(candidate: Candidate, train: Any, valid: Any, seed: int = 1) -> float:
    settings = candidate.training
    built = build(candidate.architecture, label_mean=0.5, table_init=settings.table_init, seed=seed)
    return fit(built, train, valid, settings, task="ctr", seed=seed).best_value


def candidates(schema: DatasetSchema, **settings: Any) -> dict[str, Any]:
    return candidate_space(space(schema, AutoCTRSettings(**settings)), QUICK, TuneSettings(table_l2=[]))


@pytest.mark.slow
def test_9_products_of_embeddings_are_found_where_the_label_is_one() -> None:
    train, valid = planted(4000)
    template = candidates(train.schema, blocks=2, units=[8, 16], dims=[4])
    past: list[Past] = []
    for number in range(28):
        made = propose(template, "evolution", 5, number, past)
        if made.duplicate_of is None:
            value = trained(made.candidate, train, valid)
            flops = count(made.candidate.architecture).flops
            past.append(Past(number, made.params, made.candidate.hash, finished=True, value=value, flops=flops))
    best = sorted(past, key=lambda trial: trial.value or 0.0)[:3]
    for trial in best:
        found = nodes(Candidate.from_dict(fill_params(template, trial.params)).architecture)
        assert any(node.op in ("dot", "fm") and "sparse" in node.inputs for node in found.values())


def test_numbers_as_they_are_may_spoil_a_trial_but_not_the_search() -> None:
    """Products of values that no transform has tamed: such a training is no number, a failed trial, or a bad one."""
    train, valid = opened.table(), opened.table(80, seed=1)
    train.numeric[:, 1] *= 1e30
    bits = {"block1__type": "fm", "block1__dense": True, "block1__sparse": True}
    found = filled(train.schema, blocks=1, dims=4, **bits, block2__type="dot")
    with pytest.raises(Diverged):
        trained(Candidate(architecture=found, training=QUICK), train, valid)
    train.numeric[:, 1] /= 1e30
    assert np.isfinite(trained(Candidate(architecture=found, training=QUICK), train, valid))
