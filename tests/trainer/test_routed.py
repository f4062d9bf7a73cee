"""Routed models: every row is computed by the part of its group, and by nothing else; numbers keep their places."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from components.drawing import describe, draw
from tests.trainer.mixed import architecture, batch_of, built, fields_of, gradients, mixed_schema, parameters, view
from trainer.architecture import Architecture, ArchitectureError
from trainer.build import Model
from trainer.candidate import Candidate
from trainer.data import Batch, Jagged, Table
from trainer.fit import _penalty_shares, loss
from trainer.index import packed
from trainer.optim import Optimizers
from trainer.settings import TrainSettings
from trainer.shapes import count, infer
from trainer.summary import summary

SCHEMA = mixed_schema()
ROUTERS = ("user", "site.id")
GROUPS = 3


def votes(field: str, groups: int = GROUPS, seed: int = 0) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng([seed, len(field)])
    return rng.integers(-30, 31, (SCHEMA.field(field).cardinality, groups - 1)).astype(np.int8)


VIEWS: dict[str, Any] = {
    "a": view(4, "user", "price", "item"),
    "first": view(1, "user", "item"),
    "b": view(2, "user", "item"),
    "c": {
        "encoders": {
            "item": {"kind": "table", "dim": 2, "places": [1, 3]},
            "age": {"kind": "scale", "dim": 4},
            "site.id": {"kind": "rows", "dim": 3, "blocks": [{"first": 1, "rows": 4, "dim": 3}]},
        },
        "align": "pad",
    },
    "past": {"encoders": {"history": {"kind": "share", "view": "c"}}},
}
NODES: list[dict[str, Any]] = [
    {"id": "pairs", "op": "fm", "in": ["a"]},
    {"id": "deep", "op": "mlp", "in": ["b"], "units": [3], "norm": "batch"},
    {"id": "dots", "op": "dot", "in": ["c"]},
    {"id": "taste", "op": "pool", "in": ["past"]},
    {"id": "dead", "op": "mlp", "in": ["a", "b"], "units": [3]},
]
PARTS: list[dict[str, Any]] = [
    {"mode": "sum", "in": ["first", "pairs"]},
    {"mode": "linear", "in": ["deep"], "bias": False},
    {"mode": "linear", "in": ["dots", "c", "taste"]},
]


def described(**changes: Any) -> Architecture:
    router = {field: packed(votes(field).tobytes()) for field in ROUTERS}
    head = {"mode": "routed", "router": router, "parts": PARTS} | changes.pop("head", {})
    data = {"task": "ctr", "fields": fields_of(SCHEMA), "views": VIEWS, "nodes": NODES, "head": head}
    return Architecture.from_dict(data | changes)


def groups_of(batch: Batch) -> Tensor:
    """By hand: the votes of a row's categories are added up, the first group has none."""
    columns = [SCHEMA.names("categorical").index(field) for field in ROUTERS]
    sums = sum(
        votes(field)[batch.categorical[:, column]].astype(int) for field, column in zip(ROUTERS, columns, strict=True)
    )
    return torch.tensor([int(np.argmax([0, *row])) for row in sums])


def filled(model: Model) -> Model:
    """With running statistics of some batch."""
    model.train()(batch_of(SCHEMA, rows=100, seed=5))
    return model.eval()


def copied(model: Model, part: Architecture) -> Model:
    """A part as a model of its own, with the same weights."""
    alone, weights = built(part, seed=9), model.state_dict()
    head = f"head.{model.parts.index(part)}."
    weights |= {f"head.{name.removeprefix(head)}": value for name, value in weights.items() if name.startswith(head)}
    alone.load_state_dict({name: weights[name] for name in alone.state_dict()})
    return alone.eval()


# ---- what is computed -----------------------------------------------------------------------------------------------


def test_each_row_gets_what_its_part_alone_computes_for_it() -> None:
    model, batch = filled(built(described())), batch_of(SCHEMA, rows=80)
    group_B, output_B = groups_of(batch), model(batch)
    assert set(group_B.tolist()) == {0, 1, 2}
    assert torch.equal(model.tables.router(batch.categorical), group_B)
    for number, part in enumerate(model.parts):
        rows = (group_B == number).nonzero().squeeze(1)
        torch.testing.assert_close(output_B[rows], copied(model, part)(batch.at(rows)))


@given(st.permutations(range(12)), st.integers(1, 12))
def test_predictions_stand_in_the_order_of_the_rows(order: list[int], size: int) -> None:
    """Check 7 of the sheet, and 5: a row's group depends on no other row."""
    model, batch = filled(built(described())).double(), batch_of(SCHEMA, rows=12)
    model.tables.register_forward_hook(lambda module, inputs, rows: rows.double())
    rows = torch.tensor(order)[:size]
    assert torch.equal(model.tables.router(batch.categorical)[rows], model.tables.router(batch.at(rows).categorical))
    exact = Batch(**{**vars(batch), "numeric": batch.numeric.double()})
    torch.testing.assert_close(model(exact)[rows], model(exact.at(rows)), rtol=1e-12, atol=1e-12)


def test_of_equal_sums_the_lowest_group_wins() -> None:
    even = np.zeros((SCHEMA.field("user").cardinality, 2), np.int8)
    even[3:] = 7
    model = built(described(head={"router": {"user": packed(even.tobytes())}}))
    batch = batch_of(SCHEMA, rows=60)
    expected = (batch.categorical[:, SCHEMA.names("categorical").index("user")] >= 3).long()
    assert torch.equal(model.tables.router(batch.categorical), expected)


def test_votes_are_added_beyond_a_byte() -> None:
    full = [np.full((SCHEMA.field(field).cardinality, 1), 127, np.int8) for field in ("user", "item", "site.id")]
    full[2][:] = -128
    router = {field: packed(one.tobytes()) for field, one in zip(("user", "item", "site.id"), full, strict=True)}
    model = built(described(head={"router": router, "parts": PARTS[:2]}))
    assert model.tables.router(batch_of(SCHEMA).categorical).tolist() == [1] * 8


# ---- what is trained ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["lazy_adam", "adam"])
def test_a_step_moves_nothing_of_parts_without_rows(optimizer: str) -> None:
    model, batch = built(described()).train(), batch_of(SCHEMA, rows=200)
    settings = TrainSettings(table_l2=0.1, weight_decay=0.1, table_optimizer=optimizer, batch_size=10)
    tables = {name for name, _ in model.named_parameters() if name.startswith("tables.")}
    optimizers = Optimizers(model, tables, settings)
    for group in (0, 1, 2, 0):  # every part has moments by the time that it rests
        rows = batch.at((groups_of(batch) == group).nonzero().squeeze(1))
        before = {name: value.clone() for name, value in model.named_parameters()}
        loss("ctr", model(rows), rows).backward()  # type: ignore[no-untyped-call]
        optimizers.coalesce()
        optimizers.step()
        optimizers.zero_grad()
        part = model.parts[group]
        own = ("tables.bags.embedding_bags.", "tables.embeddings.")
        for name, value in model.named_parameters():
            ours = name.startswith(f"head.{group}.") or any(f":{node.id}." in name for node in part.nodes)
            ours = ours or any(f":{view}." in name for view in part.views)
            ours = ours or (name.startswith(own) and any(f".{view}/" in name for view in part.views))
            assert torch.equal(value, before[name]) != ours, name


def test_rows_of_a_table_are_touched_by_rows_of_its_group_alone() -> None:
    model, batch = built(described()), batch_of(SCHEMA, rows=20)
    model(batch).sum().backward()
    users_B, group_B = batch.categorical[:, 0], groups_of(batch)
    for name, group in (("a/user", 0), ("b/user", 1)):
        gradient_RD = gradients(model)[f"tables.bags.embedding_bags.{name}.weight"]
        touched = set(gradient_RD.abs().sum(1).nonzero().squeeze(1).tolist())
        assert touched == set(users_B[group_B == group].tolist()), name


def test_a_penalty_by_frequency_counts_the_rows_of_the_group() -> None:
    batch = batch_of(SCHEMA, rows=50)
    steps = torch.arange(6) < batch.lengths["history"][:, None]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), batch.lengths["history"].cumsum(0)])
    history = Jagged(batch.sequences["history"][steps].int(), offsets)
    train = Table(SCHEMA, batch.categorical.int(), batch.numeric, batch.label, {"history": history})
    shares, group_B = _penalty_shares(built(described()), train, power=1.0), groups_of(batch)
    for name, group in (("a/user", 0), ("b/user", 1)):
        visits = torch.bincount(batch.categorical[group_B == group, 0], minlength=20)
        assert torch.equal(shares[f"tables.bags.embedding_bags.{name}.weight"], visits / 50)


# ---- the description ------------------------------------------------------------------------------------------------


def test_what_is_counted_is_what_is_built() -> None:
    counts, model = count(described()), built(described())
    assert counts.tables == parameters(model.table_parameters())
    assert counts.lifts + counts.dense == parameters(model.dense_parameters())
    assert model.tables.router.votes.numel() == 2 * (20 + 7)
    assert counts.codes == math.ceil(8 * 2 * (20 + 7) / 32)
    assert counts.total == counts.tables + counts.lifts + counts.dense + counts.codes
    assert counts.flops == max(count(part).flops for part in described().parts())


def test_the_hash_knows_votes_and_parts_but_no_names() -> None:
    base = described()
    renamed = {"a": "x-a", "first": "x-first", "pairs": "x-pairs"}
    views = {renamed.get(name, name): spec for name, spec in VIEWS.items()}
    nodes = [
        {**node, "id": renamed.get(node["id"], node["id"]), "in": [renamed.get(ref, ref) for ref in node["in"]]}
        for node in NODES
    ]
    parts = [{**part, "in": [renamed.get(ref, ref) for ref in part["in"]]} for part in PARTS]
    assert described(views=views, nodes=nodes, head={"parts": parts}).hash == base.hash
    assert Architecture.from_dict(base.to_dict()).hash == base.hash == base.live().hash
    other = {field: packed(votes(field, seed=1).tobytes()) for field in ROUTERS}
    assert described(head={"router": other}).hash != base.hash
    assert described(head={"parts": [*PARTS[1:], PARTS[0]]}).hash != base.hash
    fewer = {field: packed(votes(field, groups=2).tobytes()) for field in ROUTERS}
    assert described(head={"parts": PARTS[:2], "router": fewer}).hash != base.hash


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"parts": [PARTS[0], PARTS[1], {"mode": "sum", "in": ["dots", "a.user"]}]}, "'a' is read by part 0 and by"),
        ({"parts": [*PARTS[:2], {"mode": "sum", "in": ["pairs"]}]}, "'pairs' is read by part 0 and by part 2"),
        ({"parts": PARTS[:2]}, "field 'user': 20 categories have 1 votes each, which is not 40 bytes"),
        ({"router": {"price": packed(b"1")}}, "field 'price' is no categorical field"),
        ({"router": {"user": "no"}}, "votes are no base64 of deflated bytes"),
        ({"parts": PARTS[:1]}, "head.routed.parts: tuple should have at least 2 items"),
        ({"parts": [*PARTS[:2], {"mode": "sum", "in": ["past"]}]}, "'past' is a sequence"),
    ],
)
def test_what_cannot_be_routed_is_refused(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError, match=message):
        infer(described(head=head))


def test_a_routed_head_is_drawn_and_told() -> None:
    live = described().live()
    drawing = draw(live)
    for words in ("router", "54 votes", "→ 1 of 3 parts", "part 2", "one part per row"):
        assert words in drawing, words
    told = describe(live)
    assert "The head sends each row to one of 3 parts, by votes of user and site.id." in told
    assert "Part 1 maps linearly deep to one number per row." in told
    lines = summary(Candidate(architecture=live, training=TrainSettings()), trial=1, metric="logloss", value=0.5)
    assert "|-router 3 groups <- user, site.id" in lines
    assert lines.count("|-optimizer") == 3
    assert live.head.router["user"] not in lines  # type: ignore[union-attr]


# ---- places ---------------------------------------------------------------------------------------------------------


def placed(places: dict[str, list[int] | None], width: int | None = None, dims: int = 2) -> Architecture:
    encoders = {field: {"kind": "table", "dim": dims, "places": where} for field, where in places.items()}
    views = {"e": {"encoders": encoders, "align": "pad", "width": width}}
    return architecture(views, [{"id": "pairs", "op": "dot", "in": ["e"]}], ["pairs", "e"], mode="linear")


def test_numbers_fill_their_places() -> None:
    model, batch = built(placed({"user": [0, 3], "item": None, "site.id": [1, 2]}, width=5)), batch_of(SCHEMA)
    x_BMD = model.views["view:e"](batch, model.tables(batch))
    assert x_BMD.shape == (8, 3, 5)
    for field, (name, where) in enumerate({"user": [0, 3], "item": [0, 1], "site.id": [1, 2]}.items()):
        weight = model.tables.bags.embedding_bags[f"e/{name.replace('.', '%2E')}"].weight
        expected = torch.zeros(8, 5)
        expected[:, where] = weight[batch.categorical[:, SCHEMA.names("categorical").index(name)]].detach()
        assert torch.equal(x_BMD[:, field], expected)


def test_the_first_places_are_those_of_no_places() -> None:
    said, unsaid = placed({"user": [0, 1], "item": [0, 1]}, width=4), placed({"user": None, "item": None}, width=4)
    batch = batch_of(SCHEMA)
    assert said.hash == unsaid.hash != placed({"user": [0, 2], "item": [0, 1]}, width=4).hash
    torch.testing.assert_close(built(said)(batch), built(unsaid)(batch))


@pytest.mark.parametrize("where", [[1, 0], [0, 4], [2], [1, 1]])
def test_places_that_cannot_be_filled_are_refused(where: list[int]) -> None:
    with pytest.raises(ArchitectureError, match="view 'e': field 'user': places must be 2 rising columns below 4"):
        infer(placed({"user": where, "item": None}, width=4))


def test_places_need_padding() -> None:
    data = placed({"user": [0, 2], "item": None}, width=4).to_dict()
    data["views"]["e"]["align"] = "lift"
    with pytest.raises(ArchitectureError, match="set the view's align: pad"):
        infer(Architecture.from_dict(data))
