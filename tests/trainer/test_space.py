import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import UserError
from trainer.space import Choice, active, choice, choices, defaults, digest, fill, fill_params, size


def first(choice: Choice) -> int:
    return 0


def last(choice: Choice) -> int:
    return len(choice.labels) - 1


def test_plain_data_is_its_own_filling() -> None:
    data = {"a": [1, {"b": None}], "c": "x"}
    assert fill(data, first) == data
    assert choices(data) == {}
    assert size(data) == 1


def test_a_choice_becomes_the_option_taken() -> None:
    space = {"units": {"?": [16, 32], "name": "mlp.units"}}
    assert fill(space, first) == {"units": 16}
    assert fill(space, last) == {"units": 32}
    assert choices(space) == {"mlp.units": Choice("mlp.units", (16, 32), 0, "mlp")}


def test_choices_inside_an_option_not_taken_are_not_asked() -> None:
    space = {"x": {"?": [{"op": "fm", "dim": choice("fm.dim", [4, 8])}, {"op": "concat"}], "name": "type"}}
    assert active(space, first) == {"type": 0, "fm.dim": 0}
    assert active(space, last) == {"type": 1}
    assert list(choices(space)) == ["type", "fm.dim"]


def test_one_name_is_one_choice() -> None:
    asked: list[str] = []

    def choose(choice: Choice) -> int:
        asked.append(choice.name)
        return 1

    dim = choice("dim", [8, 16])
    assert fill({"a": dim, "b": [dim, dim]}, choose) == {"a": 16, "b": [16, 16]}
    assert asked == ["dim"]


def test_one_name_may_carry_other_data_under_the_same_labels() -> None:
    space = {
        "nodes": [choice("count", [["n1"], ["n1", "n2"]], labels=[1, 2], splice=True)],
        "head": choice("count", ["n1", "n2"], labels=[1, 2]),
    }
    assert fill(space, last) == {"nodes": ["n1", "n2"], "head": "n2"}


def test_one_name_for_two_sets_of_options_is_refused() -> None:
    with pytest.raises(UserError, match="'dim' stands for"):
        choices([choice("dim", [8, 16]), choice("dim", [8, 32])])


def test_splice_puts_items_in_place_of_the_choice() -> None:
    inner = choice("inner", [["x"], ["y", "z"]], splice=True)
    space = ["a", choice("outer", [[], ["b", inner]], splice=True), "c"]
    assert fill(space, first) == ["a", "c"]
    assert fill(space, last) == ["a", "b", "y", "z", "c"]


def test_without_splice_a_list_stays_one_item() -> None:
    assert fill([choice("units", [[8], [8, 4]])], last) == [[8, 4]]


def test_a_single_option_is_no_choice() -> None:
    space = {"a": {"?": [[{"?": [3]}]]}}
    assert choices(space) == {}
    assert fill(space, first) == {"a": [3]}


def test_names_and_groups_come_from_the_path() -> None:
    space = {"nodes": [{"id": "m", "op": "mlp", "units": [{"?": [8, 16]}]}, {"op": "x", "dim": {"?": [1, 2]}}]}
    assert [(found.name, found.group) for found in choices(space).values()] == [
        ("nodes.m.units.0", "nodes.m.units"),
        ("nodes.1.dim", "nodes.1"),
    ]


def test_unnamed_choices_of_different_options_differ() -> None:
    space = {"n": {"?": [{"op": "mlp", "size": {"?": [1, 2]}}, {"op": "fm", "size": {"?": [3, 4]}}]}}
    assert list(choices(space)) == ["n", "n.mlp.size", "n.fm.size"]
    assert active(space, last) == {"n": 1, "n.fm.size": 1}


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        ([0, 0.5], (0, 0.5)),
        ([True, None, "a"], (True, None, "a")),
        ([[8], [8, 4]], ("[8]", "[8, 4]")),
        ([{"op": "fm"}, {"kind": "sum"}, {"a": 1}], ("fm", "sum", '{"a":1}')),
    ],
)
def test_labels_are_readable(options: list[Any], labels: tuple[Any, ...]) -> None:
    assert choices({"?": options, "name": "x"})["x"].labels == labels


def test_options_that_look_alike_need_labels() -> None:
    options = [{"op": "mlp", "units": [8]}, {"op": "mlp", "units": [16]}]
    with pytest.raises(UserError, match="distinct label"):
        choices({"?": options, "name": "x"})
    assert choices({"?": options, "name": "x", "labels": ["small", "large"]})["x"].labels == ("small", "large")


def test_no_options_is_refused() -> None:
    with pytest.raises(UserError, match="no options"):
        choices({"?": [], "name": "x"})


def test_the_default_is_an_option_or_its_label() -> None:
    space = {
        "a": choice("a", [1, 2, 3], default=2),
        "b": choice("b", [[1], [1, 2]], labels=[1, 2], default=2),
        "c": choice("c", [5, 6], default=7),
    }
    assert defaults(space) == {"a": 1, "b": 1, "c": 0}


leaves = st.none() | st.booleans() | st.integers(0, 9) | st.text("abc", max_size=2)
names = st.text("xyz", min_size=1, max_size=2)


def nested(children: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    options = st.lists(children, min_size=1, max_size=3)
    return (
        st.lists(children, max_size=3)
        | st.dictionaries(names, children, max_size=3)
        | options.map(lambda these: {"?": these, "labels": list(range(len(these)))})
    )


spaces = st.recursive(leaves, nested, max_leaves=12)


@given(spaces, st.randoms(use_true_random=False))
def test_the_params_of_a_filling_give_the_filling(space: Any, random: Any) -> None:
    params: dict[str, int] = {}

    def choose(choice: Choice) -> int:
        params[choice.name] = random.randrange(len(choice.labels))
        return params[choice.name]

    filled = fill(space, choose)
    assert fill_params(space, params) == filled
    assert '"?"' not in json.dumps(filled)
    assert params.keys() <= choices(space).keys()


@given(spaces)
def test_size_counts_the_fillings(space: Any) -> None:
    """Unnamed choices are all different, so the bound is exact: count by visiting every answer."""

    def count(params: dict[str, int]) -> int:
        open_choice: list[Choice] = []

        def choose(choice: Choice) -> int:
            if choice.name not in params and not open_choice:
                open_choice.append(choice)
            return params.get(choice.name, 0)

        fill(space, choose)
        if not open_choice:
            return 1
        found = open_choice[0]
        return sum(count(params | {found.name: index}) for index in range(len(found.labels)))

    if size(space) <= 200:
        assert count({}) == size(space)


def test_the_digest_sees_data_and_not_key_order() -> None:
    assert digest({"a": 1, "b": [choice("x", [1, 2])]}) == digest({"b": [choice("x", [1, 2])], "a": 1})
    assert digest({"a": choice("x", [1, 2])}) != digest({"a": choice("x", [1, 3])})


def on_condition() -> dict[str, Any]:
    read = [choice("a.read", [[], ["x"]], labels=[False, True], splice=True)]
    made = {"if": read, "then": [{"id": "a", "in": read, "units": choice("a.units", [8, 16])}]}
    return {"nodes": [made, {"if": "a", "then": [{"id": "b", "units": choice("b.units", [4, 2])}]}]}


def test_items_under_a_condition_that_does_not_hold_are_not_there_and_not_asked() -> None:
    """A list that comes out empty, and a name that no item above bears."""
    assert fill(on_condition(), first) == {"nodes": []}
    assert active(on_condition(), first) == {"a.read": 0}
    nodes = [{"id": "a", "in": ["x"], "units": 16}, {"id": "b", "units": 2}]
    assert fill(on_condition(), last) == {"nodes": nodes}
    assert active(on_condition(), last) == {"a.read": 1, "a.units": 1, "b.units": 1}
    assert list(choices(on_condition())) == ["a.read", "a.units", "b.units"]


def test_an_unnamed_choice_under_a_condition_is_called_by_one_name() -> None:
    space = [{"id": "a"}, {"if": "a", "then": [{"?": [1, 2]}]}]
    assert list(active(space, first)) == list(choices(space)) == ["1.then.0"]


def test_options_of_equal_value_and_other_type_are_told_apart() -> None:
    assert choices({"x": choice("x", [1, 1.0, True])})["x"].labels == (1, 1.0, True)
