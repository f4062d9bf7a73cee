"""The description: form, references, what the head reaches, and the hash."""

import copy
import json
import subprocess
import sys
from typing import Any

import pytest
import yaml

from tests.trainer.mixed import ALL, architecture, mixed_schema, table, view
from trainer.architecture import Architecture, ArchitectureError, fields_of
from trainer.shapes import infer


def two_towers() -> dict[str, Any]:
    return {
        "task": "ctr",
        "fields": fields_of(mixed_schema()),
        "views": {"e": view(4, *ALL), "s": {"encoders": {"history": {"kind": "share", "view": "e"}}}},
        "nodes": [
            {"id": "taste", "op": "pool", "in": ["s"]},
            {"id": "pairs", "op": "fm", "in": ["e", "taste"]},
            {"id": "deep", "op": "mlp", "in": ["e", "taste"], "units": [8]},
            {"id": "wide", "op": "mlp", "in": ["pairs", "e.user"], "units": [8]},
        ],
        "head": {"mode": "sum", "in": ["pairs", "deep", "wide"]},
    }


def test_round_trip_through_json_and_yaml() -> None:
    original = Architecture.from_dict(two_towers())
    for copied in (json.loads(json.dumps(original.to_dict())), yaml.safe_load(yaml.safe_dump(original.to_dict()))):
        again = Architecture.from_dict(copied)
        assert again.hash == original.hash
    assert Architecture.from_dict(original.to_dict()) == original


def renamed(data: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    text = json.dumps(data)
    for old, new in names.items():
        text = text.replace(f'"{old}"', f'"{new}"').replace(f'"{old}.', f'"{new}.')
    result: dict[str, Any] = json.loads(text)
    return result


def test_names_and_orders_do_not_change_the_hash() -> None:
    data = two_towers()
    expected = Architecture.from_dict(data).hash
    assert Architecture.from_dict(renamed(data, {"e": "zz", "pairs": "a", "deep": "b", "s": "0"})).hash == expected
    swapped = copy.deepcopy(data)
    swapped["fields"] = dict(reversed(swapped["fields"].items()))
    swapped["views"]["e"]["encoders"] = dict(reversed(swapped["views"]["e"]["encoders"].items()))
    swapped["head"]["in"].reverse()
    swapped["nodes"][1]["in"].reverse()
    swapped["nodes"][2:] = reversed(swapped["nodes"][2:])
    assert Architecture.from_dict(swapped).hash == expected


def test_dead_parts_do_not_change_the_hash() -> None:
    data = two_towers()
    expected = Architecture.from_dict(data).hash
    data["views"]["unused"] = view(3, "user")
    data["nodes"].append({"id": "dead", "op": "mlp", "in": ["unused", "deep"], "units": [3]})
    description = Architecture.from_dict(data)
    assert description.hash == expected
    live = description.live()
    assert "unused" not in live.views
    assert "dead" not in {node.id for node in live.nodes}


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["nodes"][2].update(units=[9]),
        lambda data: data["nodes"][2].update(dropout=0.1),
        lambda data: data["views"]["e"]["encoders"].update(user=table(5)) or data["nodes"][1].update(align="pad"),
        lambda data: data["fields"]["user"].update(cardinality=21),
        lambda data: data["head"].update(bias=False),
        lambda data: data["head"].update({"in": ["pairs", "deep"]}),
        lambda data: data["nodes"][3].update({"in": ["pairs", "e.item"]}),
        lambda data: data.update(task="rating"),
        lambda data: data["views"]["s"]["encoders"].update(history=table(4)),
    ],
)
def test_what_changes_the_model_changes_the_hash(change: Any) -> None:
    data = two_towers()
    expected = Architecture.from_dict(data).hash
    change(data)
    assert Architecture.from_dict(data).hash != expected


def test_twin_nodes_are_not_one_node() -> None:
    twins = [{"id": name, "op": "mlp", "in": ["e"], "units": [4]} for name in "ab"]
    both = architecture({"e": view(2, "user")}, twins, ["a", "b"])
    one_twice = architecture({"e": view(2, "user")}, twins, ["a", "a"])
    assert both.hash != one_twice.hash


def test_equal_views_are_separate_tables() -> None:
    nodes = [{"id": "p", "op": "inner", "in": ["a.user", "b.item"]}]
    apart = architecture({"a": view(4, "user", "item"), "b": view(4, "user", "item")}, nodes, ["p"])
    nodes = [{"id": "p", "op": "inner", "in": ["a.user", "a.item"]}]
    assert apart.hash != architecture({"a": view(4, "user", "item")}, nodes, ["p"]).hash


def test_kept_pairs_follow_renamed_nodes() -> None:
    def pairs(name: str, keep: list[str]) -> Architecture:
        nodes = [
            {"id": name, "op": "mlp", "in": ["e"], "units": [4]},
            {"id": "k", "op": "pairs", "in": ["e", name], "keep": [keep]},
        ]
        return architecture({"e": view(4, "user", "item")}, nodes, ["k"])

    assert pairs("m", ["user", "m"]).hash == pairs("z", ["z", "user"]).hash
    assert pairs("m", ["user", "m"]).hash != pairs("m", ["user", "item"]).hash


def test_names_of_products_follow_renamed_nodes() -> None:
    def products(name: str, sets: list[list[str]], keep: list[str], through: str = "h") -> Architecture:
        nodes = [
            {"id": name, "op": "mlp", "in": ["e"], "units": [4]},
            {"id": "h", "op": "hadamard", "in": ["e", name], "sets": sets},
            {"id": "s", "op": "se", "in": ["h"]},
            {"id": "k", "op": "pairs", "in": [through, "e"], "keep": [keep]},
        ]
        return architecture({"e": view(4, "user", "item")}, nodes, ["k"])

    # Sorted by name, the node stands first in one of the products' names and last in the other.
    for through in ("h", "s"):
        first = products("a", [["user", "a"], ["item", "a"]], ["a*user", "item"], through)
        second = products("z", [["z", "item"], ["z", "user"]], ["item", "user*z"], through)
        assert first.hash == second.hash
        assert first.hash != products("a", [["user", "a"], ["item", "a"]], ["a*item", "item"], through).hash


def test_one_activation_for_all_layers_is_the_same_as_a_list_of_it() -> None:
    def layers(activation: Any, units: tuple[int, ...] = (4, 4)) -> Architecture:
        nodes = [{"id": "m", "op": "mlp", "in": ["e"], "units": units, "activation": activation}]
        return architecture({"e": view(4, "user", "item")}, nodes, ["m"])

    assert layers("silu").hash == layers(["silu", "silu"]).hash
    hashes = {layers(one).hash for one in ("silu", "relu", ["silu", "relu"], ["relu", "silu"])}
    assert len(hashes) == 4


def test_a_kernel_of_one_step_has_neither_dilation_nor_direction() -> None:
    def block(kernel: int, **settings: Any) -> str:
        layer = {"kind": "conv", "kernel": kernel, "dilation": settings.pop("dilation", 1)}
        nodes = [
            {"id": "b", "op": "seq", "in": ["s"], "layer": layer, **settings},
            {"id": "t", "op": "pool", "in": ["b"]},
        ]
        return architecture({"s": {"encoders": {"history": table(4)}}}, nodes, ["t"]).hash

    assert block(1) == block(1, dilation=3) == block(1, causal=True)
    assert len({block(3), block(3, dilation=3), block(3, causal=True), block(1)}) == 4


def test_a_skip_that_cannot_be_built_stays() -> None:
    """So that it is refused under its own name."""
    for wrong in ({"in": ["e"]}, {"in": ["s", "s"]}, {"in": ["s"], "residual": False}):
        nodes = [
            {"id": "b", "op": "seq", "layer": {"kind": "skip"}, **wrong},
            {"id": "t", "op": "pool", "in": ["b"]},
        ]
        views = {"e": view(4, "user"), "s": {"encoders": {"history": table(4)}}}
        live = architecture(views, nodes, ["t"]).live()
        assert [node.id for node in live.nodes] == ["b", "t"]
        with pytest.raises(ArchitectureError, match="node 'b'"):
            infer(live)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data["nodes"][2].update(unit=[3]), "node 'deep': unit"),
        (
            lambda data: data["nodes"][2].update(activation="rel"),
            "node 'deep': activation: input should be 'relu', 'gelu'",
        ),
        (lambda data: data["nodes"][2].update(units=[]), "node 'deep': units"),
        (lambda data: data["nodes"][2].update(op="mpl"), "node 'deep'"),
        (lambda data: data["nodes"][2].update(dropout=1.0), "node 'deep': dropout"),
        (lambda data: data["nodes"][2].update({"in": ["wide"]}), "node 'deep': 'wide' is no view and no node above"),
        (lambda data: data["nodes"][2].update({"in": ["e.nobody"]}), "node 'deep': 'e.nobody': 'e' has no field"),
        (lambda data: data["nodes"][2].update(id="pairs"), "node 'pairs': the name is taken"),
        (lambda data: data["head"].update({"in": ["gone"]}), "head: 'gone'"),
        (lambda data: data["views"]["e"]["encoders"].update(nobody=table(4)), "view 'e': there is no field 'nobody'"),
        (lambda data: data["views"]["e"]["encoders"].update(price=table(4)), "view 'e': encoder 'table'"),
        (lambda data: data["views"]["s"]["encoders"].update(history={"kind": "share", "view": "x"}), "view 's'"),
        (lambda data: data.update(extra=1), "extra"),
        (lambda data: data.pop("head"), "head: field required"),
    ],
)
def test_wrong_form_is_one_line_with_the_place(change: Any, message: str) -> None:
    data = two_towers()
    change(data)
    with pytest.raises(ArchitectureError) as caught:
        Architecture.from_dict(data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_descriptions_need_no_torch() -> None:
    code = "import trainer.architecture, trainer.shapes, trainer.zoo, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_head_may_read_what_nothing_else_does() -> None:
    data = two_towers() | {"head": {"mode": "linear", "in": ["unread"]}}
    data["views"]["w"] = view(1, "user", "item")
    found = Architecture.from_dict(data)
    assert found.head.inputs == ("w", "deep", "wide")
    assert Architecture.from_dict(found.to_dict()) == found
    listed = data | {"head": {"mode": "linear", "in": ["w", "deep", "wide"]}}
    assert found.hash == Architecture.from_dict(listed).hash


def test_of_a_view_that_is_read_in_part_the_head_reads_the_rest() -> None:
    data = two_towers() | {"head": {"mode": "linear", "in": ["unread"]}}
    data["nodes"] = [{"id": "deep", "op": "mlp", "in": ["e.user", "e.age"], "units": [8]}]
    del data["views"]["s"]
    assert Architecture.from_dict(data).head.inputs == ("e.price", "e.item", "e.site.id", "deep")
