"""The rows encoder: what blocks of a table make of a category, and that blocks at rest stay as they are."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.mixed import batch_of, flat_schema
from trainer.architecture import Architecture, ArchitectureError, fields_of
from trainer.build import Model, build
from trainer.optim import Optimizers
from trainer.settings import TrainSettings
from trainer.shapes import count, infer

SCHEMA = flat_schema()
USER = SCHEMA.field("user").cardinality
HEAD, TAIL = {"first": 0, "rows": 3, "dim": 4}, {"first": 3, "rows": USER - 5, "dim": 2}
"""The last two users have no block."""
GRID = [{"first": first, "rows": rows, "dim": 2} for _ in range(2) for first, rows in ((0, 3), (3, USER - 3))]


def described(blocks: list[dict[str, int]], align: str = "lift", dim: int = 4) -> Architecture:
    rows = {"kind": "rows", "dim": dim, "blocks": blocks, "align": align}
    return Architecture.from_dict(
        {
            "task": "ctr",
            "fields": fields_of(SCHEMA),
            "views": {"e": {"encoders": {"user": rows, "item": {"kind": "table", "dim": dim}}}},
            "nodes": [{"id": "p", "op": "inner", "in": ["e"]}],
            "head": {"mode": "sum", "in": ["p"]},
        }
    )


def built(blocks: list[dict[str, int]], align: str = "lift", dim: int = 4) -> Model:
    return build(described(blocks, align, dim), label_mean=0.5, table_init=1.0, seed=3)


def weight(model: Model, table: str) -> Tensor:
    found: Tensor = model.tables.bags.embedding_bags[table].weight
    return found


def user_vectors(model: Model) -> Tensor:
    """The vector of each row of the batch, (B, dim)."""
    batch = batch_of(SCHEMA, rows=64)
    value: Tensor = model.views["view:e"](batch, model.tables(batch))
    return value[:, 0]


def expected(model: Model, align: str) -> Tensor:
    head, tail = weight(model, "e/user[0]"), weight(model, "e/user[1]")
    blocks: Any = model.views["view:e"]
    lift = blocks.blocks["0"].maps["0+2"] if align == "lift" else torch.eye(2, 4)
    every = torch.cat([head, tail @ lift, torch.zeros(2, 4)])
    return every[batch_of(SCHEMA, rows=64).categorical[:, 0]]


@pytest.mark.parametrize("align", ["lift", "pad"])
def test_each_category_has_the_vector_of_its_block(align: str) -> None:
    model = built([HEAD, TAIL], align)
    torch.testing.assert_close(user_vectors(model), expected(model, align))


@pytest.mark.parametrize("align", ["lift", "pad"])
def test_blocks_that_hold_the_same_categories_lie_side_by_side(align: str) -> None:
    model = built(GRID, align)
    tables = [weight(model, f"e/user[{number}]") for number in range(4)]
    left, right = torch.cat(tables[:2]), torch.cat(tables[2:])
    ids = batch_of(SCHEMA, rows=64).categorical[:, 0]
    if align == "pad":
        torch.testing.assert_close(user_vectors(model), torch.cat([left, right], dim=1)[ids])
        return
    maps: Any = model.views["view:e"].blocks["0"].maps  # type: ignore[union-attr, index]
    torch.testing.assert_close(user_vectors(model), (left @ maps["0+2"] + right @ maps["2+2"])[ids])


def test_one_block_of_all_categories_is_a_table() -> None:
    blocks, table = built([{"first": 0, "rows": USER, "dim": 4}]), built([{"first": 0, "rows": USER, "dim": 4}])
    plain = described([HEAD]).to_dict()
    plain["views"]["e"]["encoders"]["user"] = {"kind": "table", "dim": 4}
    table = build(Architecture.from_dict(plain), label_mean=0.5, table_init=1.0, seed=3)
    weight(table, "e/user").data.copy_(weight(blocks, "e/user[0]"))
    weight(table, "e/item").data.copy_(weight(blocks, "e/item"))
    batch = batch_of(SCHEMA, rows=64)
    torch.testing.assert_close(blocks(batch), table(batch))
    assert count(described([{"first": 0, "rows": USER, "dim": 4}])) == count(Architecture.from_dict(plain))


def test_what_is_counted_is_what_is_held() -> None:
    item = SCHEMA.field("item").cardinality
    lifted, padded = count(described([HEAD, TAIL])), count(described([HEAD, TAIL], "pad"))
    assert lifted.tables == padded.tables == 3 * 4 + (USER - 5) * 2 + item * 4
    assert (lifted.lifts, padded.lifts) == (2 * 4, 0)
    assert lifted.flops - padded.flops == 2 * 4  # no category passes more than one map
    assert count(described(GRID)).lifts == 2 * 2 * 4  # one for each column group, whatever the row
    assert count(described(GRID)).flops - count(described(GRID, "pad")).flops == 2 * 2 * 4


def test_asked_through_torchrec_blocks_give_the_same() -> None:
    """As they are once the collections are sharded."""
    model = built([HEAD, TAIL])
    before = user_vectors(model)
    model.tables.release()
    torch.testing.assert_close(user_vectors(model), before)
    model.tables.resting = frozenset(["e/user[1]"])
    ids = batch_of(SCHEMA, rows=64).categorical[:, 0]
    torch.testing.assert_close(user_vectors(model), before * (ids < 3)[:, None])


@pytest.mark.parametrize("optimizer", ["adam", "lazy_adam"])
@pytest.mark.parametrize(
    ("resting", "maps"),
    [([0, 3], []), ([1], []), ([2, 3], ["2+2"]), ([1, 2, 3], ["2+2"]), ([0, 1, 2, 3], ["0+2", "2+2"])],
)
def test_what_rests_gives_nothing_and_is_not_moved(optimizer: Any, resting: list[int], maps: list[str]) -> None:
    """Nor by moments and penalties from steps in which it was awake; `maps` are those of blocks that all rest."""
    model = built(GRID)
    tables = {f"tables.{spec.parameter}" for spec in model.tables.specs}
    optimizers = Optimizers(model, tables, TrainSettings(table_optimizer=optimizer, table_l2=0.1, weight_decay=0.1))

    def step(seed: int) -> None:
        model(batch_of(SCHEMA, rows=64, seed=seed)).square().sum().backward()
        optimizers.coalesce()
        optimizers.step()
        optimizers.zero_grad()

    step(1)
    model.tables.resting = frozenset(f"e/user[{number}]" for number in resting)
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    step(2)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, kept[name])}
    of_user = {name for name in kept if "user[" in name or ".maps." in name}
    at_rest = {name for name in of_user if any(f"user[{number}]" in name for number in resting)}
    at_rest |= {name for name in of_user if name.endswith(tuple(f".maps.{part}" for part in maps))}
    assert moved & of_user == of_user - at_rest


WRONG = {
    "block 1 ends at row": [HEAD, {**TAIL, "rows": USER}],
    "more than dim 4": [HEAD, {"first": 2, "rows": 2, "dim": 1}],
}


@pytest.mark.parametrize("message", WRONG)
def test_blocks_that_cannot_be_are_refused(message: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"^view 'e': field 'user': .*{message}"):
        infer(described(WRONG[message]))
