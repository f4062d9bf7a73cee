"""What `dalil plan` rests on: the builder's tables, figures that can be counted by hand, and advice that is true."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator

from tests.trainer import small
from trainer import zoo
from trainer.advice import advise
from trainer.architecture import Architecture
from trainer.build import build
from trainer.capacity import Cluster, Plan, Problem, _Planner, even_plan, plan, saved_bytes, usable
from trainer.settings import TrainSettings
from trainer.space import fill_params

GIB = 1024**3


def one_table(rows: int, dim: int = 16) -> Architecture:
    """One field, one table, and a linear head: nothing that cannot be counted."""
    return Architecture.from_dict(
        {
            "version": 1,
            "task": "ctr",
            "fields": {"user": {"kind": "categorical", "cardinality": rows}},
            "views": {"e": {"encoders": {"user": {"kind": "table", "dim": dim}}}},
            "nodes": [],
            "head": {"mode": "linear", "in": ["e"]},
        }
    )


def problem(rows: int = 50_000_000, **settings: object) -> Problem:
    return Problem(one_table(rows), TrainSettings.model_validate({"batch_size": 1000, "average": 0.0, **settings}))


@pytest.mark.parametrize("name", ["deepfm", "dlrm", "ffm", "din"])
def test_tables_are_those_of_the_built_model(name: str) -> None:
    """Names, rows and widths, of bags and of sequences."""
    architecture = Architecture.from_dict(fill_params(zoo.template(name, small.schema("ctr", 1)), {})).live()
    model = build(architecture, label_mean=0.5, table_init=0.1, seed=1)
    built = {
        (path.rpartition(".")[2], module.num_embeddings, module.embedding_dim)
        for path, module in model.tables.named_modules()
        if isinstance(module, nn.EmbeddingBag | nn.Embedding)
    }

    made = plan(Problem(architecture, TrainSettings()), Cluster(2, 2, GIB))
    assert {(table.name, table.rows, table.dim) for table in made.tables} == built
    assert made.dense.parameters == sum(weight.numel() for weight in model.parameters()) - sum(
        weight.numel() for weight in model.tables.parameters()
    )
    for table in made.tables:
        # Whole on one rank or on all, or cut into rows without loss.
        rows = [shard.rows for shard in table.shards]
        assert set(rows) == {table.rows} or sum(rows) == table.rows


def test_memory_is_what_can_be_counted_by_hand() -> None:
    made = even_plan(problem(rows=1_000_000), Cluster(1, 1, 80 * GIB))

    (memory, _) = made.ranks[0]
    weights = 1_000_000 * 16 * 4
    assert (memory.tables, memory.optimizer, memory.copies) == (weights, 2 * weights, weights)
    assert memory.io == 1000 * 8 + 1000 * 16 * 4  # one id and one row for each of 1000 rows
    # A map of 16 to one with a bias: weight, gradient, two moments, the best epoch's copy.
    assert made.dense.weights == 17 * 4 * 5
    assert made.dense.inputs == 1000 * 8 * 20
    assert made.hbm(0) == 4 * weights + 72_000 + 340 + made.dense.activations + 160_000


def test_activations_are_what_autograd_keeps() -> None:
    """The linear head keeps its input. The look-up's ids count as TorchRec's."""
    assert saved_bytes(one_table(1000)) == 16 * 4


@pytest.mark.parametrize(
    ("settings", "precision", "row"),
    [
        ({}, "fp32", 16 * 4 * (1 + 2 + 1)),
        ({"average": 0.9}, "fp32", 16 * 4 * (1 + 2 + 3)),
        ({}, "fp16", 16 * 2 * 2 + 16 * 8),
        ({}, "int8", (16 + 8) * 2 + 16 * 8),
    ],
)
def test_a_row_counts_with_all_that_is_kept_beside_it(settings: dict[str, object], precision: str, row: int) -> None:
    changed = replace(problem(**settings), precision=precision)  # type: ignore[arg-type]

    assert changed.row_bytes(changed.specs[0]) == row
    (memory, _) = even_plan(changed, Cluster(1, 1, 80 * GIB)).ranks[0]
    assert memory.tables + memory.optimizer + memory.copies == 50_000_000 * row


def test_a_row_of_one_number_takes_four_on_a_gpu() -> None:
    (memory, _) = even_plan(Problem(one_table(1000, dim=1), TrainSettings(average=0.0)), Cluster(1, 1, 80 * GIB)).ranks[
        0
    ]

    assert memory.tables == 1000 * 4 * 4


def test_a_model_too_large_says_by_how_much() -> None:
    """The figure is true to the last tenth of a GiB."""
    cluster = Cluster(1, 2, 4 * GIB)
    short = plan(problem(), cluster)

    assert not short.fits
    assert short.missing == short.hbm(short.fullest) - usable(4 * GIB)
    assert plan(problem(), replace(cluster, hbm=short.needs)).fits
    assert not plan(problem(), replace(cluster, hbm=short.needs - GIB // 5)).fits


def test_what_is_advised_fits() -> None:
    short = plan(problem(average=0.9), Cluster(1, 2, 6 * GIB))
    advice = {one.change: one for one in advise(problem(average=0.9), short)}

    assert {"no running average of weights", "fp16 or bf16 tables", "int8 tables"} <= advice.keys()
    for one in advice.values():
        again = plan(one.problem, one.plan.cluster)
        assert again.fits or not one.plan.fits, one.change
    helps = {change for change, one in advice.items() if one.plan.fits}
    assert {"more machines", "tables in host memory (UVM caching)"} <= helps
    assert any("hash user" in change for change in helps)
    assert any("as wide" in change for change in helps)


def test_host_memory_holds_what_gpus_cannot() -> None:
    made = plan(problem(), Cluster(1, 2, 2 * GIB, host=20 * GIB))

    assert made.fits
    (table,) = made.tables
    assert table.kernel.startswith("fused_uvm")
    assert sum(memory.host for memory, _ in made.ranks) == 50_000_000 * 16 * 4 * 4


def test_a_step_is_the_slowest_rank_and_the_dense_part() -> None:
    made: Plan = plan(problem(), Cluster(2, 4, 80 * GIB))

    slowest = max(times.total for _, times in made.ranks)
    assert made.step == slowest + made.dense.compute + made.dense.comms
    assert made.dense.compute == pytest.approx(6 * 16 * 125 / 20e12 * 1e3)
    assert slowest > 0


def test_shards_cost_what_torchrec_says() -> None:
    """One shard of each size is estimated for all; nothing but what is kept beside the weights is added."""
    planner = _Planner(problem(rows=1003), Cluster(2, 4, 80 * GIB, host=GIB))
    plain = EmbeddingEnumerator(planner.topology, planner.batch, planner.constraints)
    options = [one.enumerate(planner.tables, planner.sharders) for one in (planner.enumerator, plain)]

    assert {option.sharding_type for option in options[0]} > {"data_parallel", "table_wise", "row_wise"}
    by_kind = [sorted(found, key=lambda one: (one.sharding_type, one.compute_kernel)) for found in options]
    for ours, theirs in zip(*by_kind, strict=True):
        assert [shard.perf for shard in ours.shards] == [shard.perf for shard in theirs.shards]
        for mine, other in zip(ours.shards, theirs.shards, strict=True):
            beside = mine.size[0] * 16 * 4 * (4 if ours.sharding_type == "data_parallel" else 3)
            host = ours.compute_kernel.startswith("fused_uvm")
            assert mine.storage.hbm - other.storage.hbm == (0 if host else beside)
            assert mine.storage.ddr - other.storage.ddr == (beside if host else 0)


def test_planning_leaves_no_trace() -> None:
    """Neither the random state nor the level of logging."""
    import logging

    state = torch.get_rng_state()
    plan(problem(), Cluster(1, 2, 80 * GIB))
    assert torch.equal(torch.get_rng_state(), state)
    assert logging.root.manager.disable == 0
