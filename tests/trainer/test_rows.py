"""The rows encoder: what blocks of a table make of a category, and that blocks at rest stay as they are."""

import base64
import math
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer.mixed import batch_of, flat_schema
from trainer.architecture import Architecture, ArchitectureError, fields_of
from trainer.build import Model, build, table_specs
from trainer.data import Table
from trainer.index import packed, unpacked
from trainer.modules.blocks import Settling
from trainer.optim import Optimizers
from trainer.settings import TrainSettings
from trainer.shapes import count, infer

SCHEMA = flat_schema()
USER = SCHEMA.field("user").cardinality
HEAD, TAIL = {"first": 0, "rows": 3, "dim": 4}, {"first": 3, "rows": USER - 5, "dim": 2}
"""The last two users have no block."""
GRID = [{"first": first, "rows": rows, "dim": 2} for _ in range(2) for first, rows in ((0, 3), (3, USER - 3))]


def described(
    blocks: list[dict[str, int]], align: str = "lift", dim: int = 4, index: str | None = None
) -> Architecture:
    rows = {"kind": "rows", "dim": dim, "blocks": blocks, "align": align, "index": index}
    return Architecture.from_dict(
        {
            "task": "ctr",
            "fields": fields_of(SCHEMA),
            "views": {"e": {"encoders": {"user": rows, "item": {"kind": "table", "dim": dim}}}},
            "nodes": [{"id": "p", "op": "inner", "in": ["e"]}],
            "head": {"mode": "sum", "in": ["p"]},
        }
    )


def built(blocks: list[dict[str, int]], align: str = "lift", dim: int = 4, index: str | None = None) -> Model:
    return build(described(blocks, align, dim, index), label_mean=0.5, table_init=1.0, seed=3)


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


# ---- an index of the categories' blocks -----------------------------------------------------------------------------

NUMBERS = bytes((3 * user) % 7 % 3 for user in range(USER))
"""In no order; each of three blocks has some."""


def indexed(number_R: bytes, dims: tuple[int, ...] = (1, 2, 4)) -> list[dict[str, int]]:
    """The blocks that an index asks for."""
    rows = [number_R.count(number) for number in range(len(dims))]
    return [{"first": sum(rows[:n]), "rows": rows[n], "dim": dim} for n, dim in enumerate(dims)]


@given(st.binary(max_size=300))
def test_an_index_is_read_as_it_was_written(number_R: bytes) -> None:
    assert unpacked(packed(number_R)) == number_R


def by_hand(model: Model, number_R: bytes) -> list[Tensor]:
    """For each category the row of the block that the index names: its place there among those of smaller id."""
    return [weight(model, f"e/user[{number}]")[number_R[:user].count(number)] for user, number in enumerate(number_R)]


def test_categories_of_an_index_have_the_rows_of_their_blocks() -> None:
    model = built(indexed(NUMBERS), "pad", index=packed(NUMBERS))
    every = torch.stack([torch.nn.functional.pad(row, (0, 4 - len(row))) for row in by_hand(model, NUMBERS)])
    assert torch.equal(user_vectors(model), every[batch_of(SCHEMA, rows=64).categorical[:, 0]])


def normalised(x_BD: Tensor) -> Tensor:
    """As a fresh batch normalisation does it, then tanh."""
    mean, variance = x_BD.mean(dim=0), x_BD.var(dim=0, correction=0)
    return torch.tanh((x_BD - mean) / (variance + 1e-10).sqrt())


@pytest.mark.parametrize("dim", [4, 6])
def test_rows_of_a_chain_pass_the_maps_after_their_block(dim: int) -> None:
    model = built(indexed(NUMBERS), "chain", dim, packed(NUMBERS))
    chain: Any = model.views["view:e"].blocks["0"]  # type: ignore[union-attr, index]
    for map_ in chain.maps:
        torch.nn.init.normal_(map_.bias)
    every = []
    for row, number in zip(by_hand(model, NUMBERS), NUMBERS, strict=True):
        for map_ in list(chain.maps)[number:]:
            row = map_.weight @ row + map_.bias
        every.append(row)
    ids = batch_of(SCHEMA, rows=64).categorical[:, 0]
    torch.testing.assert_close(user_vectors(model), normalised(torch.stack(every)[ids]))


def test_a_chain_keeps_the_mean_of_the_first_statistics_and_then_a_running_one() -> None:
    norm, plain = Settling(3), torch.nn.BatchNorm1d(3)
    means, variances = [], []
    for step in range(15):
        x_BN = torch.randn(7, 3) * (step + 1) + step
        torch.testing.assert_close(norm(x_BN), plain(x_BN))
        means.append(x_BN.mean(dim=0))
        variances.append(x_BN.var(dim=0))
        if step == 9:
            torch.testing.assert_close(norm.running_mean, torch.stack(means).mean(dim=0))
            torch.testing.assert_close(norm.running_var, torch.stack(variances).mean(dim=0))
            kept = norm.running_mean
            assert kept is not None
            tenth = kept.clone()
        if step == 10:
            torch.testing.assert_close(norm.running_mean, 0.9 * tenth + 0.1 * means[10])
    kept = norm.running_mean
    norm.eval()
    x_BN = torch.randn(4, 3)
    assert kept is not None
    assert norm.running_var is not None
    torch.testing.assert_close(norm(x_BN), (x_BN - kept) / (norm.running_var + norm.eps).sqrt())


def test_of_blocks_of_all_categories_the_one_that_is_chosen_now_counts() -> None:
    """As in a supernet of sizes: the same as the model of these sizes."""
    model = built(indexed(NUMBERS), "chain", index=packed(NUMBERS))
    whole = built([{"first": 0, "rows": USER, "dim": dim} for dim in (1, 2, 4)], "chain")
    whole.load_state_dict({k: v for k, v in model.state_dict().items() if "user" not in k}, strict=False)
    for user, row in enumerate(by_hand(model, NUMBERS)):
        weight(whole, f"e/user[{NUMBERS[user]}]").data[user] = row.detach()
    whole.tables.sizes = {"user": torch.tensor(list(NUMBERS))}
    batch = batch_of(SCHEMA, rows=64)
    torch.testing.assert_close(whole(batch), model(batch))
    whole(batch).sum().backward()
    for number, pool in enumerate(pool for pool in whole.tables.pools if pool.specs[0].block):
        assert pool.weight.grad is not None
        others = [user for user in range(USER) if NUMBERS[user] != number]
        assert not pool.weight.grad[others].any()


@pytest.mark.parametrize("align", ["lift", "pad", "chain"])
def test_an_index_asked_through_torchrec_gives_the_same(align: str) -> None:
    model = built(indexed(NUMBERS), align, index=packed(NUMBERS))
    before = user_vectors(model)
    model.tables.release()
    torch.testing.assert_close(user_vectors(model), before)


def test_what_a_chain_counts_is_what_it_holds() -> None:
    described_4, described_6 = (described(indexed(NUMBERS), "chain", dim, packed(NUMBERS)) for dim in (4, 6))
    maps = 1 * 2 + 2 + 2 * 4 + 4
    assert count(described_4).lifts == maps + 2 * 4
    assert count(described_6).lifts == maps + 4 * 6 + 6 + 2 * 6
    padded = count(described(indexed(NUMBERS), "pad", index=packed(NUMBERS)))
    assert count(described_4).flops - padded.flops == 1 * 2 + 2 * 4 + 4
    for one in (described_4, described_6):
        model = build(one, label_mean=0.5, table_init=0.1, seed=1)
        assert sum(parameter.numel() for parameter in model.parameters()) == count(one).total - count(one).codes
        assert count(one).codes == math.ceil(USER * 2 / 32)  # one of three blocks: two bits
        assert sum(parameter.numel() for parameter in model.lift_parameters()) == count(one).lifts


def test_blocks_of_an_index_are_visited_by_their_own_categories() -> None:
    batch = batch_of(SCHEMA, rows=64)
    rows = Table(SCHEMA, batch.categorical.int(), batch.numeric, batch.label, {})
    specs = [s for s in table_specs(described(indexed(NUMBERS), "pad", index=packed(NUMBERS))) if s.block]
    ids = batch.categorical[:, 0].tolist()
    for number, spec in enumerate(specs):
        mine = [user for user in range(USER) if NUMBERS[user] == number]
        assert rows.visits(spec.readers, spec.held).tolist() == [ids.count(user) for user in mine]


def test_equal_sizes_have_equal_hashes_however_they_are_packed() -> None:
    loosely = base64.b64encode(zlib.compress(NUMBERS, 0)).decode()
    one, same = (described(indexed(NUMBERS), "chain", index=index) for index in (packed(NUMBERS), loosely))
    assert packed(NUMBERS) != loosely
    assert one.hash == same.hash
    other = NUMBERS[::-1]
    assert other != NUMBERS
    assert described(indexed(other), "chain", index=packed(other)).hash != one.hash


# ---- what is refused ------------------------------------------------------------------------------------------------

ALL = {"first": 0, "rows": USER, "dim": 4}
WRONG: dict[str, dict[str, Any]] = {
    "block 1 ends at row": {"blocks": [HEAD, {**TAIL, "rows": USER}]},
    "more than dim 4": {"blocks": [HEAD, {"first": 2, "rows": 2, "dim": 1}]},
    "index is no base64 of": {"blocks": [ALL], "index": "AAAA"},
    "index is of 3 categories, not of the field's 20": {"blocks": [ALL], "index": packed(bytes(3))},
    "index names block 2 of 2": {"blocks": indexed(NUMBERS)[:2], "index": packed(NUMBERS)},
    "block 0 has 3 rows from 0 on, by the index 20 from 0 on": {"blocks": [HEAD], "index": packed(bytes(USER))},
    "needs blocks that rise in width up to dim 4": {"blocks": [HEAD, TAIL], "align": "chain"},
    "every category in a block, and row 3 is in none": {"blocks": [HEAD], "align": "chain"},
}


@pytest.mark.parametrize("message", WRONG)
def test_blocks_that_cannot_be_are_refused(message: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"^view 'e': field 'user': .*{message}"):
        infer(described(**WRONG[message]))
