"""Shape inference: what each op gives, and what is refused, before any weight exists."""

from typing import Any

import pytest

from tests.trainer.mixed import ALL, architecture, scale, table, view
from trainer.architecture import ArchitectureError
from trainer.shapes import Counts, F, P, Q, V, count, infer

VIEWS: dict[str, Any] = {
    "e": view(4, *ALL),
    "ragged": {"encoders": {"user": table(2), "item": table(4), "age": scale(4)}},
    "lifted": {"encoders": {"user": table(2), "item": table(4)}, "align": "lift", "width": 8},
    "raw": {"encoders": {"price": {"kind": "raw"}, "age": {"kind": "raw"}, "user": table(3)}},
    "aware": {"encoders": {name: {"kind": "pairs_table", "dim": 2} for name in ("user", "price", "item")}},
    "seq": {"encoders": {"history": {"kind": "share", "view": "e"}}},
    "own": {"encoders": {"history": table(5)}},
}


def test_views() -> None:
    shapes = infer(architecture(VIEWS, [], ["e"]))
    assert shapes["e"] == F(ALL, (4,) * 5)
    assert shapes["e.user"] == V(4)
    assert shapes["ragged"] == F(("user", "item", "age"), (2, 4, 4))
    assert shapes["lifted"] == F(("user", "item"), (8, 8))
    assert shapes["lifted.user"] == V(8)
    assert shapes["raw"] == V(2 + 1 + 3)  # price has a mark for missing
    assert shapes["raw.price"] == V(2)
    assert shapes["aware"] == P(3, 2)
    assert shapes["seq"] == shapes["seq.history"] == Q(6, 4)
    assert shapes["own"] == Q(6, 5)


NODES = [
    ({"op": "concat", "in": ["e", "raw"]}, V(26)),
    ({"op": "inner", "in": ["e"]}, V(1)),
    ({"op": "elementwise", "kind": "sum", "in": ["ragged"], "align": "min"}, V(2)),
    ({"op": "elementwise", "kind": "sum", "in": ["ragged"], "align": "pad"}, V(4)),
    ({"op": "elementwise", "kind": "sum", "in": ["ragged", "raw"], "dim": 7}, V(7)),
    ({"op": "fm", "in": ["e", "raw"], "align": "lift", "dim": 3}, V(1)),
    ({"op": "pairs", "in": ["e"], "out": "vector"}, V(4)),
    ({"op": "pairs", "in": ["e"], "keep": [["user", "item"]], "weight": {"attention": 3}, "out": "linear"}, V(1)),
    (
        {"op": "hadamard", "in": ["e"], "sets": [["item", "user"], ["user", "age"]]},
        F(("item*user", "age*user"), (4, 4)),
    ),
    ({"op": "hadamard", "in": ["ragged"], "sets": [["age", "user", "item"]], "dim": 3}, F(("age*item*user",), (3,))),
    ({"op": "se", "in": ["ragged", "e.price"], "align": "pad"}, F(("user", "item", "age", "price"), (4,) * 4)),
    ({"op": "ffm", "in": ["aware"]}, V(1)),
    ({"op": "dot", "in": ["e"]}, V(10)),
    ({"op": "dot", "in": ["e"], "triangle": "full"}, V(15)),
    ({"op": "cross", "in": ["e", "raw"], "layers": 2}, V(26)),
    ({"op": "mha", "in": ["e"], "dim": 3, "heads": 2, "layers": 2}, F(ALL, (6,) * 5)),
    ({"op": "mha", "in": ["ragged"], "dim": 3, "heads": 1, "width": 4}, F(("user", "item", "age"), (3,) * 3)),
    ({"op": "mlp", "in": ["ragged"], "units": [8, 5]}, V(5)),
    ({"op": "pool", "in": ["seq"]}, V(4)),
    ({"op": "positions", "in": ["own"]}, Q(6, 5)),
    ({"op": "seq", "in": ["seq.history"], "layer": {"kind": "attention", "heads": 4}}, Q(6, 4)),
    ({"op": "seq", "in": ["own"], "layer": {"kind": "skip"}}, Q(6, 5)),
    ({"op": "last", "in": ["own"]}, V(5)),
    ({"op": "target_attention", "in": ["seq", "e.item"]}, V(4)),
]


@pytest.mark.parametrize(("node", "shape"), NODES, ids=[f"{node['op']}-{i}" for i, (node, _) in enumerate(NODES)])
def test_ops(node: dict[str, Any], shape: Any) -> None:
    assert infer(architecture(VIEWS, [{"id": "n", **node}], ["e"]))["n"] == shape


REFUSED = [
    ({"op": "fm", "in": ["ragged"]}, "inputs are [2, 4] wide"),
    ({"op": "fm", "in": ["ragged"], "align": "lift"}, "inputs are [2, 4] wide"),
    ({"op": "fm", "in": ["ragged"], "align": "pad", "dim": 3}, "dim sets the width"),
    ({"op": "mlp", "in": ["seq"], "units": [3]}, "'seq' is a sequence; pool it first"),
    ({"op": "mlp", "in": ["aware"], "units": [3]}, "only ffm takes it"),
    ({"op": "mlp", "in": ["aware.user"], "units": [3]}, "cannot be used alone"),
    ({"op": "ffm", "in": ["e"]}, "pairs_table"),
    ({"op": "pool", "in": ["e"]}, "needs one sequence"),
    ({"op": "pool", "in": ["seq", "own"]}, "needs one sequence"),
    ({"op": "positions", "in": ["e"]}, "needs one sequence"),
    ({"op": "seq", "in": ["e"], "layer": {"kind": "gru"}}, "needs one sequence"),
    ({"op": "seq", "in": ["own"], "layer": {"kind": "attention", "heads": 2}}, "does not divide into 2 heads"),
    ({"op": "seq", "in": ["own"], "layer": {"kind": "skip"}, "residual": False}, "without residual gives zeros"),
    ({"op": "target_attention", "in": ["own", "e.item"]}, "must be a vector 5 wide"),
    ({"op": "target_attention", "in": ["own"]}, "one sequence and one vector"),
    ({"op": "mlp", "in": ["e"], "units": [3, 3, 3], "activation": ["relu", "tanh"]}, "lists 2 for 3 layers"),
    ({"op": "hadamard", "in": ["e"], "sets": [["user"]]}, "two different fields or more"),
    ({"op": "hadamard", "in": ["e"], "sets": [["user", "user"]]}, "two different fields or more"),
    ({"op": "hadamard", "in": ["e"], "sets": [["user", "zip"]]}, "no field 'zip'"),
    ({"op": "hadamard", "in": ["e"], "sets": [["user", "age"], ["age", "user"]]}, "each product once"),
    ({"op": "hadamard", "in": ["ragged"], "sets": [["user", "age"]]}, "inputs are [2, 4] wide"),
    ({"op": "se", "in": ["ragged"]}, "inputs are [2, 4] wide"),
    ({"op": "dot", "in": ["e.user"]}, "two fields or more"),
    ({"op": "pairs", "in": ["e.user"]}, "two fields or more"),
    ({"op": "pairs", "in": ["e"], "keep": [["user", "zip"]]}, "no field 'zip'"),
    ({"op": "pairs", "in": ["e"], "keep": [["user", "user"]]}, "two different fields"),
    ({"op": "pairs", "in": ["e"], "keep": [["user", "item"], ["item", "user"]]}, "each once"),
    ({"op": "pairs", "in": ["e", "e.user"], "keep": [["user", "item"]]}, "equal name"),
]


@pytest.mark.parametrize(("node", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_bad_nodes_are_refused_by_name(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        infer(architecture(VIEWS, [{"id": "culprit", **node}], ["e"]))
    assert str(caught.value).startswith("node 'culprit': ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("encoders", "rest", "message"),
    [
        ({"history": table(3), "user": table(3)}, {}, "a view of its own"),
        ({"user": {"kind": "pairs_table", "dim": 2}, "item": table(2)}, {}, "field-aware encoders"),
        ({"user": {"kind": "pairs_table", "dim": 2}}, {}, "field-aware encoders"),
        ({"price": {"kind": "raw"}}, {"align": "min"}, "align needs"),
        ({"user": table(4)}, {"width": 4}, "width needs an align rule"),
        ({"user": table(4)}, {"width": 4, "align": "min"}, "leave width out"),
        ({"user": table(4)}, {"width": 3, "align": "pad"}, "cannot make width 4 narrower"),
    ],
)
def test_bad_views_are_refused_by_name(encoders: dict[str, Any], rest: dict[str, Any], message: str) -> None:
    with pytest.raises(ArchitectureError) as caught:
        infer(architecture({"v": {"encoders": encoders, **rest}, "e": view(2, "user")}, [], ["e"]))
    assert str(caught.value).startswith("view 'v': ")
    assert message in str(caught.value)


def test_head_refuses_sequences() -> None:
    with pytest.raises(ArchitectureError, match="head: 'own' is a sequence"):
        infer(architecture({"own": {"encoders": {"history": table(5)}}}, [], ["own"]))


def test_counts_of_a_deepfm_by_hand() -> None:
    views = {"first": view(1, *ALL), "e": view(4, *ALL)}
    nodes = [{"id": "q", "op": "fm", "in": ["e"]}, {"id": "m", "op": "mlp", "in": ["e"], "units": [8, 3]}]
    rows = 20 + 30 + 7 + 2 + 1  # three tables; price has a vector and one for missing, age one vector
    dense = (20 * 8 + 8) + (8 * 3 + 3) + 3 + 1  # two layers, the map of `m` to a logit, the bias
    flops = (2 * 1 + 2 * 4) + 6 * 4 + (20 * 8 + 8 * 3) + 3  # scaled numbers, fm, layers, the map to a logit
    assert count(architecture(views, nodes, ["first", "q", "m"])) == Counts(rows * 5, 0, dense, flops)


def test_products_are_fields_of_their_own() -> None:
    nodes = [
        {"id": "h", "op": "hadamard", "in": ["e"], "sets": [["item", "user"], ["age", "price"]]},
        {"id": "s", "op": "se", "in": ["h", "e.user"]},
        {
            "id": "p",
            "op": "pairs",
            "in": ["s"],
            "keep": [["item*user", "user"], ["age*price", "item*user"]],
            "out": "each",
        },
    ]
    assert infer(architecture(VIEWS, nodes, ["p"]))["p"] == V(2)


def test_counts_of_products_weights_and_a_shortcut_by_hand() -> None:
    nodes = [
        {"id": "h", "op": "hadamard", "in": ["e"], "sets": [["item", "user"], ["age", "price", "site.id"]]},
        {"id": "s", "op": "se", "in": ["h", "e"], "reduction": 3},
        {"id": "m", "op": "mlp", "in": ["s"], "units": [5, 2], "shortcut": "linear"},
    ]
    alone = count(architecture(VIEWS, [], ["e"], mode="linear"))
    counts = count(architecture(VIEWS, nodes, ["m"], mode="linear"))
    dense = (7 * 2 + 2 + 2 * 7 + 7) + (28 * 5 + 5 + 5 * 2 + 2) + 28 * 2 + 2 + 1  # weights of fields, layers, map, head
    flops = (1 + 2) * 4 + (7 * 2 + 2 * 7 + 7 * 4) + (28 * 5 + 5 * 2 + 28 * 2) + 2
    assert counts.dense == dense
    assert counts.flops - flops == alone.flops - 20  # what scaled numbers cost, without the head's map


def test_lifts_are_counted_apart() -> None:
    nodes = [{"id": "q", "op": "fm", "in": ["ragged", "lifted"], "dim": 3}]
    counts = count(architecture(VIEWS, nodes, ["q"]))
    assert counts.lifts == (2 * 8 + 4 * 8) + (2 * 3 + 4 * 3 + 4 * 3 + 2 * 8 * 3)
