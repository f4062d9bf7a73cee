"""AutoGroup: how memberships are drawn and learned, and that what is derived is what was found."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer.takeover import exact, mixed_rows, opening, planted, settled, taken_over
from trainer import metrics, zoo
from trainer.architecture import Architecture, Groups
from trainer.build import Model
from trainer.data import Batch, Table
from trainer.engines import gradient
from trainer.errors import UserError
from trainer.fit import EpochRecord, predict
from trainer.methods import autogroup
from trainer.methods.autogroup import AutoGroup, OpenGroups
from trainer.methods.settings import AutoGroupSettings
from trainer.modules import products
from trainer.shapes import V, infer
from trainer.space import choices

BACKBONES = [name for name in zoo.names() if AutoGroupSettings().opens(zoo.parts(name, "ctr"))]
ROWS = {"mixed": mixed_rows(60), "planted": planted(60)}
NAMES = {"mixed": ("user", "price", "item", "age", "site.id"), "planted": ("a", "b", "c", "d", "e")}
SMALL: dict[str, Any] = {"first": [2], "second": [4], "third": [3], "dims": [3], "epochs": 2}

rows_kinds = pytest.mark.parametrize("kind", ROWS)


def supernet(backbone: str, rows: Table, seed: int = 1, **settings: Any) -> AutoGroup:
    return AutoGroup(opening(backbone, autogroup.plan(AutoGroupSettings(**{**SMALL, **settings})), rows, seed=seed))


def open_groups(logits: Tensor, temperature: float = 1.0, order: int = 2) -> OpenGroups:
    groups, fields = logits.shape
    full = products.Groups(fields, 3, [tuple(range(fields))] * groups, order, norm=False)
    opened = OpenGroups(full, temperature)
    opened.logits.data.copy_(logits)
    return opened


# ---- memberships ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("delta", [0.0, -2.0, 0.7, 3.0])
def test_a_field_is_drawn_as_often_as_its_logit_says(delta: float, temperature: float) -> None:
    """With chance sigmoid(delta), whatever the temperature; five deviations of the mean of 40,000 draws."""
    groups = open_groups(torch.full((100, 40), delta), temperature)
    groups.deciding = True
    torch.manual_seed(0)
    share = torch.stack([groups.members().detach() for _ in range(10)]).mean().item()
    chance = torch.tensor(delta).sigmoid().item()
    assert share == pytest.approx(chance, abs=5 * (chance * (1 - chance) / 40_000) ** 0.5)


def test_each_field_of_a_fresh_group_is_drawn_about_half_of_the_time() -> None:
    groups = list(supernet("deepfm", ROWS["planted"]).groups.values())[1]
    groups.deciding = True
    torch.manual_seed(0)
    share_GM = torch.stack([groups.members().detach() for _ in range(2000)]).mean(0)
    torch.testing.assert_close(share_GM, torch.full((4, 5), 0.5), rtol=0, atol=5 * 0.5 / 2000**0.5)


def test_draws_are_whole_and_gradients_soft() -> None:
    """Straight through: 0 or 1 forward; backward the derivative of the sigmoid of the noisy logits."""
    logits = torch.linspace(-2, 2, 40).view(8, 5)
    groups = open_groups(logits, temperature=0.7)
    groups.deciding = True
    torch.manual_seed(3)
    members_GM = groups.members()
    torch.testing.assert_close(members_GM.detach(), members_GM.detach().round(), rtol=0, atol=1e-6)
    assert 0 < members_GM.detach().round().sum() < 40
    members_GM.sum().backward()  # type: ignore[no-untyped-call]
    torch.manual_seed(3)
    soft = ((logits + torch.rand(8, 5).logit()) / 0.7).sigmoid()
    torch.testing.assert_close(groups.logits.grad, soft * (1 - soft) / 0.7)
    assert torch.equal(members_GM.detach() > 0.5, soft > 0.5)


def test_where_groups_are_used_nothing_is_drawn() -> None:
    groups = open_groups(torch.tensor([[0.4, -1e-9, 1e-9, 0.0, -3.0]]))
    before = torch.random.get_rng_state()
    assert groups.members().tolist() == [[1.0, 0.0, 1.0, 0.0, 0.0]]
    assert not groups.members().requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_field_outside_adds_nothing_and_has_no_weight_to_learn(order: int) -> None:
    groups = open_groups(torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, 1.0, 1.0, 1.0]]), order=order).double()
    x_BMD = torch.randn(6, 4, 3, dtype=torch.float64)
    closed = products.Groups(4, 3, [(0, 2), (0, 1, 2, 3)], order, norm=False).double()
    closed.weight.data.copy_(groups.weight[groups.members().flatten() > 0])
    torch.testing.assert_close(groups(x_BMD), closed(x_BMD))
    groups(x_BMD).square().sum().backward()
    assert groups.weight.grad is not None
    assert torch.equal(groups.weight.grad == 0, groups.members().flatten() == 0)


def test_equal_openings_are_equal_supernets() -> None:
    """Weights and memberships come from the seed alone, as those of every built model."""
    nets = []
    for state in (0, 1):
        torch.manual_seed(state)
        nets.append(supernet("deepfm", ROWS["planted"]))
    first, second = (net.model.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- the two steps --------------------------------------------------------------------------------------------------

TRAIN, VALID = planted(400), planted(200, seed=1)


@dataclass(frozen=True)
class Moment:
    """Before a pass over training rows: whether it is for the memberships, its rows, all parameters and buffers."""

    deciding: bool
    rows: Batch | None
    state: dict[str, Tensor]


def moment(net: AutoGroup, rows: Batch | None = None) -> Moment:
    state = {name: value.detach().clone() for name, value in net.model.state_dict().items()}
    return Moment(all(groups.deciding for groups in net.groups.values()), rows, state)


def watched(net: AutoGroup) -> list[Moment]:
    moments: list[Moment] = []

    def note(model: nn.Module, inputs: tuple[Batch, ...]) -> None:
        if model.training:
            moments.append(moment(net, inputs[0]))

    net.model.register_forward_pre_hook(note)
    return moments


def search(net: AutoGroup, on_epoch: Callable[[EpochRecord], None] = lambda record: None) -> gradient.Found:
    training = opening("fm", net.plan, TRAIN, table_init=0.1).training
    return gradient.search(net, TRAIN, VALID, training, seed=1, on_epoch=on_epoch)


def changed(before: Moment, after: Moment) -> set[str]:
    return {name for name, value in before.state.items() if not torch.equal(value, after.state[name])}


@pytest.mark.parametrize("backbone", ["fm", "deepfm", "ipnn"])
def test_one_step_moves_the_weights_and_the_next_the_memberships(backbone: str) -> None:
    net = supernet(backbone, TRAIN)
    moments = watched(net)
    search(net)
    logits = {name for name in moments[0].state if name.endswith(".logits")}
    assert len(logits) == 3
    assert [moment.deciding for moment in moments] == [False, True] * 8
    for before, after in pairwise([*moments, moment(net)]):
        moved = changed(before, after)
        if before.deciding:
            assert moved == logits
        else:
            assert not moved & logits
            assert {f"nodes.groups:{name}.op.weight" for name in net.gates} <= moved
            assert all(any(part in name for name in moved) for part in ("tables", "running_mean", "head"))


def test_both_steps_see_the_same_rows() -> None:
    net = supernet("deepfm", TRAIN)
    moments = watched(net)
    found = search(net)
    seen = [moment.rows.categorical for moment in moments if moment.rows is not None]
    assert len(seen) == 2 * 8
    assert all(torch.equal(first, second) for first, second in zip(seen[::2], seen[1::2], strict=True))
    assert not any(torch.equal(seen[0], other) for other in seen[2:])
    assert found.samples == 2 * 2 * 400


def test_epochs_are_judged_without_draws() -> None:
    """The validation of every epoch is that of the groups as they are used."""
    net = supernet("deepfm", TRAIN)
    told: list[tuple[float, float]] = []

    def on_epoch(record: EpochRecord) -> None:
        was = [groups.deciding for groups in net.groups.values()]
        net.relax(1.0, frozen=False, deciding=False)
        own = metrics.evaluate("ctr", VALID.label.numpy(), predict(net.model, VALID))
        told.append((record.valid["logloss"], own["logloss"]))
        for groups, deciding in zip(net.groups.values(), was, strict=True):
            groups.deciding = deciding

    search(net, on_epoch)
    assert len(told) == 2
    for seen, expected in told:
        assert seen == pytest.approx(expected, rel=1e-6)


def test_evaluation_is_deterministic_after_the_search() -> None:
    net = supernet("deepfm", TRAIN)
    found = search(net)
    torch.manual_seed(0)
    first = predict(net.model, VALID)
    torch.manual_seed(1)
    assert (first == predict(net.model, VALID)).all()
    assert first.std() > 1e-4
    assert found.architecture == net.derive()
    assert json.loads(json.dumps(found.figures)) == found.figures


def test_equal_seeds_find_equal_groups() -> None:
    first, second = (supernet("deepfm", TRAIN, epochs=3) for _ in range(2))
    for net in (first, second):
        for name, gate in net.gates.items():
            gate.data.copy_(first.gates[name])
    assert search(first).architecture == search(second).architecture
    for name, gate in first.gates.items():
        assert torch.equal(gate, second.gates[name])


# ---- wiring ---------------------------------------------------------------------------------------------------------


def inputs_of(architecture: Architecture) -> dict[str, tuple[str, ...]]:
    return {**{node.id: node.inputs for node in architecture.nodes}, "head": architecture.head.inputs}


def ids(product: str) -> tuple[str, ...]:
    return tuple(f"{product}-order{order}" for order in (1, 2, 3))


@rows_kinds
def test_fm_reads_the_groups_in_its_head(kind: str) -> None:
    net = supernet("fm", ROWS[kind])
    inputs = inputs_of(net.open)
    assert inputs["head"] == ("first", *ids("pairs"))
    assert inputs.keys() == {*ids("pairs"), "head"}
    assert "e" not in net.open.views


@rows_kinds
def test_deepfm_reads_the_groups_in_its_layers_and_no_embedding(kind: str) -> None:
    net = supernet("deepfm", ROWS[kind])
    inputs = inputs_of(net.open)
    assert inputs["deep"] == ids("pairs")
    assert inputs["head"] == ("first", "deep")
    assert set(net.open.views) == {"first", "e-order1", "e-order2", "e-order3"}


@rows_kinds
def test_ipnn_reads_the_groups_in_its_layers_and_no_embedding(kind: str) -> None:
    net = supernet("ipnn", ROWS[kind])
    inputs = inputs_of(net.open)
    assert inputs["deep"] == ids("products")
    assert inputs["head"] == ("deep",)
    assert set(net.open.views) == {"e-order1", "e-order2", "e-order3"}


@pytest.mark.parametrize("backbone", ["fm", "deepfm", "ipnn"])
@rows_kinds
def test_every_order_has_full_groups_on_tables_of_its_own(backbone: str, kind: str) -> None:
    net = supernet(backbone, ROWS[kind])
    shapes = infer(net.open)
    groups = [node for node in net.open.nodes if isinstance(node, Groups)]
    assert [(node.order, len(node.sets), node.norm) for node in groups] == [
        (1, 2, "batch"),
        (2, 4, "batch"),
        (3, 3, "batch"),
    ]
    for node in groups:
        assert set(node.sets) == {NAMES[kind]}
        assert node.inputs == (f"e-order{node.order}",)
        assert shapes[node.id] == V(2 * 3 if node.order == 1 else len(node.sets))
        assert {encoder.dim for encoder in net.open.views[node.inputs[0]].encoders.values()} == {3}  # type: ignore[union-attr]
        assert net.gates[node.id].shape == (len(node.sets), 5)
        assert 0 < net.gates[node.id].abs().max() < 0.01
    assert net.level == "alternating"
    assert all(any(gate is own for own in net.model.parameters()) for gate in net.gates.values())


def test_temperature_and_rate_are_those_of_the_plan() -> None:
    net = supernet("fm", ROWS["planted"], temperature=0.3, gate_learning_rate=0.07)
    assert {groups.temperature for groups in net.groups.values()} == {0.3}
    (group,) = net.optimizer(10).param_groups
    assert group["lr"] == 0.07
    assert {id(gate) for gate in group["params"]} == {id(gate) for gate in net.gates.values()}


def test_an_order_without_groups_is_left_out() -> None:
    net = supernet("deepfm", ROWS["planted"], first=[0], third=[0])
    assert list(net.gates) == ["pairs-order2"]
    assert inputs_of(net.open)["deep"] == ("pairs-order2",)


@pytest.mark.parametrize("backbone", BACKBONES)
@rows_kinds
def test_every_backbone_opens_or_says_why_not(backbone: str, kind: str) -> None:
    try:
        net = supernet(backbone, ROWS[kind])
    except UserError as error:
        assert (backbone, kind) == ("dlrm", "mixed")
        assert "autogroup" in str(error)  # noqa: PT017 - that it opens is as good
        return
    assert len(net.gates) == 3


# ---- what is derived ------------------------------------------------------------------------------------------------

INSIDE = {  # per order the groups, each as the fields' places: empty ones, ones of one field, and doubles among them
    1: [[2], [0, 3, 4]],
    2: [[0, 1], [3], [1, 2, 4], [1, 2, 4]],
    3: [[0, 1, 2, 3, 4], [], [2, 4]],
}
LEFT = {1: [0, 1], 2: [0, 2, 3], 3: [0, 2]}


def set_groups(net: AutoGroup, inside: dict[int, list[list[int]]]) -> None:
    for name, gate in net.gates.items():
        gate.data.fill_(-0.3)
        for group, places in enumerate(inside[int(name[-1])]):
            gate.data[group, places] = 0.2


@pytest.mark.parametrize("backbone", ["fm", "deepfm", "ipnn"])
@rows_kinds
def test_groups_that_are_always_0_are_dropped(backbone: str, kind: str) -> None:
    net = supernet(backbone, ROWS[kind])
    set_groups(net, INSIDE)
    found: dict[int, Groups] = {node.order: node for node in net.derive().nodes if isinstance(node, Groups)}
    for order, left in LEFT.items():
        expected = [tuple(NAMES[kind][place] for place in INSIDE[order][group]) for group in left]
        assert list(found[order].sets) == expected


@pytest.mark.parametrize("backbone", ["fm", "deepfm", "ipnn"])
@rows_kinds
def test_the_derived_model_with_the_same_weights_is_the_supernet(backbone: str, kind: str) -> None:
    net = supernet(backbone, ROWS[kind])
    set_groups(net, INSIDE)
    assert_derived_is_open(net, LEFT, ROWS[kind])


@pytest.mark.parametrize("backbone", ["fm", "deepfm", "ipnn"])
@pytest.mark.parametrize(
    ("inside", "left"),
    [
        ({**INSIDE, 2: [[], [3], [], [0]]}, {1: [0, 1], 3: [0, 2]}),
        ({**INSIDE, 1: [[], []]}, {2: [0, 2, 3], 3: [0, 2]}),
        ({**INSIDE, 1: [[], []], 3: [[1], [1], []]}, {2: [0, 2, 3]}),
    ],
)
def test_an_order_with_no_group_left_is_dropped(
    backbone: str, inside: dict[int, list[list[int]]], left: dict[int, list[int]]
) -> None:
    net = supernet(backbone, ROWS["planted"])
    set_groups(net, inside)
    derived = net.derive()
    assert {node.order for node in derived.nodes if isinstance(node, Groups)} == left.keys()
    assert {name[-1] for name in derived.views if "order" in name} == set(map(str, left))
    assert_derived_is_open(net, left, ROWS["planted"])


def assert_derived_is_open(net: AutoGroup, left: dict[int, list[int]], rows: Table) -> None:
    settled(net.model, rows)
    derived = model_of(net, left)
    batch = exact(next(rows.batches(rows.rows)))
    torch.testing.assert_close(derived(batch), net.model(batch), rtol=1e-9, atol=1e-9)
    assert derived(batch).std() > 1e-6  # a thousand times what the comparison lets pass


def model_of(net: AutoGroup, left: dict[int, list[int]]) -> Model:
    own, outputs = {}, {}
    for name, groups in net.groups.items():
        here = left.get(groups.order, [])
        own[f"nodes.groups:{name}.op.weight"] = groups.weight.detach().view_as(groups.logits)[here][
            groups.members()[here] > 0
        ]
        outputs[name] = [3 * group + place for group in here for place in range(3)] if groups.order == 1 else here
    return taken_over(net.model, net.derive(), own, outputs)


def test_without_any_group_the_rest_is_left() -> None:
    net = supernet("fm", ROWS["planted"])
    set_groups(net, {order: [[]] for order in (1, 2, 3)})
    derived = net.derive()
    assert not derived.nodes
    assert derived.head.inputs == ("first",)


def test_nothing_left_is_a_users_mistake() -> None:
    net = supernet("ipnn", ROWS["planted"])
    set_groups(net, {order: [[]] for order in (1, 2, 3)})
    with pytest.raises(UserError, match="closed every part of the model"):
        net.derive()


# ---- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({}, []),
        ({"first": [0, 4], "third": [8, 16], "dims": [8, 16]}, ["first", "third", "dims"]),
        ({"second": [4, 8]}, ["second"]),
    ],
)
def test_the_plan_is_data_with_named_choices(settings: dict[str, Any], names: Sequence[str]) -> None:
    plan = autogroup.plan(AutoGroupSettings(**settings))
    assert json.loads(json.dumps(plan)) == plan
    assert plan["method"] == "autogroup"
    assert list(choices(plan)) == [f"autogroup.{name}" for name in names]
