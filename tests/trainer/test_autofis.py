"""AutoFIS: what the gates say is what is derived, and GRDA closes them."""

import json
from collections.abc import Callable
from math import comb
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer.mixed import gradients
from tests.trainer.takeover import exact, mixed_rows, opening, planted, settled, taken_over
from trainer import zoo
from trainer.architecture import Architecture, Pairs, Triples
from trainer.build import Model
from trainer.data import Table
from trainer.engines import gradient
from trainer.errors import UserError
from trainer.grda import GRDA
from trainer.methods import autofis
from trainer.methods.autofis import AutoFIS, sets_of
from trainer.methods.base import Opening
from trainer.methods.settings import AutoFISSettings
from trainer.modules.products import GATE
from trainer.modules.tables import leaves
from trainer.shapes import count
from trainer.space import choices, fill_params

BACKBONES = [name for name in zoo.names() if AutoFISSettings().opens(zoo.parts(name, "ctr"))]
ROWS = {"mixed": mixed_rows(60), "planted": planted(60)}

backbones = pytest.mark.parametrize("backbone", ["fm", "deepfm", "ipnn", "fwfm", "dlrm"])
rows_kinds = pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)


def supernet(backbone: str, rows: Table, seed: int = 1, **settings: Any) -> AutoFIS:
    return AutoFIS(opening(backbone, autofis.plan(AutoFISSettings(**settings)), rows, seed=seed))


def set_gates(net: AutoFIS, closed: Callable[[int], bool]) -> dict[str, list[int]]:
    """Gates of both signs, none like another, and 0 where `closed`: node -> the places of those that are open."""
    kept = {}
    for name, gate in net.gates.items():
        values = torch.linspace(-1, 1.3, gate.numel()).roll(2)
        gate.data.copy_(torch.where(torch.tensor([closed(place) for place in range(gate.numel())]), 0.0, values))
        kept[name] = gate.detach().nonzero().flatten().tolist()
    return kept


def every_other(place: int) -> bool:
    return place % 2 == 0


def kept_in(architecture: Architecture, node_id: str) -> list[tuple[str, ...]]:
    """What the description lists."""
    node = next(node for node in architecture.nodes if node.id == node_id)
    assert isinstance(node, Pairs | Triples)
    assert node.keep != "all"
    return [tuple(one) for one in node.keep]


# ---- what is opened -------------------------------------------------------------------------------------------------


def test_the_backbones_are_the_models_with_pairs() -> None:
    assert {"fm", "deepfm", "ipnn", "fwfm", "afm", "dlrm"} <= set(BACKBONES)
    assert not {"mlp", "dcn", "ffm", "mf"} & set(BACKBONES)


@rows_kinds
@backbones
def test_every_pair_has_a_gate_behind_a_norm(backbone: str, rows: Table) -> None:
    net = supernet(backbone, rows)
    (node,) = [node for node in net.open.nodes if isinstance(node, Pairs)]
    assert (node.keep, node.weight, node.norm) == ("all", "scalar", "batch")
    assert node.out == ("each" if backbone in ("ipnn", "dlrm") else "sum")
    fields = 5 if backbone != "dlrm" or rows is ROWS["planted"] else 4  # three tables and the layers on the numbers
    assert net.gates[node.id].tolist() == [pytest.approx(GATE)] * comb(fields, 2)
    assert any(gate is net.gates[node.id] for gate in net.model.parameters())
    assert net.level == "single"


@backbones
def test_the_parts_beside_the_products_stay(backbone: str) -> None:
    net = supernet(backbone, ROWS["mixed"])
    original, after = opening(backbone, net.plan, ROWS["mixed"]).backbone, net.open
    assert after.views == original.views
    assert after.head == original.head
    assert [node.id for node in after.nodes] == [node.id for node in original.nodes]
    assert [node for node in after.nodes if not isinstance(node, Pairs)] == [
        node for node in original.nodes if node.op not in ("fm", "pairs", "dot")
    ]


@pytest.mark.parametrize("backbone", BACKBONES)
@rows_kinds
@pytest.mark.parametrize("triples", [False, True])
def test_every_backbone_opens_or_says_why_not(backbone: str, rows: Table, triples: bool) -> None:
    try:
        net = supernet(backbone, rows, triples=[triples])
    except UserError as error:
        assert triples
        assert "autofis.triples" in str(error)  # noqa: PT017 - that it opens is as good
        assert backbone == "dlrm"
        return
    assert net.derive().hash  # all gates are open


def test_equal_openings_are_equal_supernets() -> None:
    nets = []
    for state in (0, 1):
        torch.manual_seed(state)
        nets.append(supernet("deepfm", ROWS["mixed"], triples=[True]))
    first, second = (net.model.state_dict() for net in nets)
    assert all(torch.equal(first[name], second[name]) for name in first)


# ---- triples --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["fm", "deepfm", "ipnn", "fwfm"])
def test_triples_have_tables_of_their_own(backbone: str) -> None:
    rows = ROWS["planted"]
    net, without = supernet(backbone, rows, triples=[True]), supernet(backbone, rows)
    ((pairs,), (triples,)) = ([n for n in net.open.nodes if isinstance(n, kind)] for kind in (Pairs, Triples))
    assert net.gates.keys() == {pairs.id, triples.id}
    assert net.gates[triples.id].tolist() == [pytest.approx(GATE)] * comb(5, 3)
    assert (triples.norm, triples.weight, triples.out) == ("batch", "scalar", pairs.out)
    dim = 8 if backbone in ("fm", "fwfm") else 16
    assert count(net.open).tables - count(without.open).tables == 5 * 4 * dim
    readers = [reader for reader in (*net.open.nodes, net.open.head) if pairs.id in reader.inputs]
    assert [triples.id in reader.inputs for reader in readers] == [True]
    assert_reads_only(net, pairs.id, "e/a")
    assert_reads_only(net, triples.id, "e-triples/a")


def assert_reads_only(net: AutoFIS, node_id: str, table: str) -> None:
    """Of the tables of field a just this one has a gradient from the node."""
    module = net.model.nodes[f"{'triples' if node_id.endswith('triples') else 'pairs'}:{node_id}"]
    outputs: list[Tensor] = []
    hook = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    net.model(next(ROWS["planted"].batches(60)))
    hook.remove()
    for leaf in leaves(net.model):
        leaf.weight.grad = None
    outputs[0].square().sum().backward()  # type: ignore[no-untyped-call]
    touched = {
        name.rsplit(".", 2)[-2]
        for name, gradient in gradients(net.model).items()
        if name.endswith("/a.weight") and gradient.abs().sum() > 0
    }
    assert touched == {table}


def test_triples_may_stay_where_all_pairs_are_closed() -> None:
    net = supernet("fm", ROWS["planted"], triples=[True])
    net.gates["pairs"].data.zero_()
    derived = net.derive()
    assert [node.id for node in derived.nodes] == ["pairs-triples"]
    assert set(derived.views) == {"first", "e-triples"}


# ---- what is derived ------------------------------------------------------------------------------------------------


@rows_kinds
@backbones
def test_just_the_gates_at_0_are_closed(backbone: str, rows: Table) -> None:
    net = supernet(backbone, rows)
    kept = set_gates(net, every_other)
    derived = net.derive()
    ((node_id, places),) = kept.items()
    names = sets_of(net.open, node_id)
    assert kept_in(derived, node_id) == [names[place] for place in places]
    assert 0 < len(places) < len(names)
    assert (net.gates[node_id][places] < 0).any()
    assert (net.gates[node_id][places] > 0).any()


def test_the_smallest_gate_is_open_whatever_its_sign() -> None:
    net = supernet("fm", ROWS["planted"])
    net.gates["pairs"].data.zero_()
    net.gates["pairs"].data[[3, 8]] = torch.tensor([-1e-30, 1e-30])
    assert kept_in(net.derive(), "pairs") == [("a", "e"), ("c", "e")]


@pytest.mark.parametrize(
    ("backbone", "kind", "triples"),
    [
        (backbone, kind, triples)
        for backbone in ("fm", "deepfm", "ipnn", "fwfm", "dlrm")
        for kind in ROWS
        for triples in (False, True)
        if not (triples and backbone == "dlrm" and kind == "mixed")  # a layer among the fields has no table to double
    ],
)
def test_the_derived_model_with_the_same_weights_is_the_supernet(backbone: str, kind: str, triples: bool) -> None:
    rows = ROWS[kind]
    net = supernet(backbone, rows, triples=[triples])
    kept = set_gates(net, every_other)
    settled(net.model, rows)
    derived = model_of(net, kept)
    assert len(kept) == 1 + triples
    assert count(derived.architecture).dense < count(net.open).dense
    assert_equal_outputs(net.model, derived, rows)


@pytest.mark.parametrize("backbone", ["fm", "deepfm", "ipnn"])
def test_without_any_gate_the_rest_is_left(backbone: str) -> None:
    rows = ROWS["mixed"]
    net = supernet(backbone, rows)
    kept = set_gates(net, lambda place: True)
    settled(net.model, rows)
    derived = model_of(net, kept)
    assert not any(isinstance(node, Pairs) for node in derived.architecture.nodes)
    assert set(derived.architecture.views) == {"fm": {"first"}, "deepfm": {"first", "e"}, "ipnn": {"e"}}[backbone]
    assert_equal_outputs(net.model, derived, rows)


def model_of(net: AutoFIS, kept: dict[str, list[int]]) -> Model:
    own = {}
    for node in net.open.nodes:
        if node.id in kept:
            prefix = f"nodes.{node.op}:{node.id}.op."
            for name in ("weight", "norm.running_mean", "norm.running_var"):
                own[prefix + name] = net.model.state_dict()[prefix + name][kept[node.id]]
    outputs = {node.id: kept[node.id] for node in net.open.nodes if getattr(node, "out", "") == "each"}
    return taken_over(net.model, net.derive(), own, outputs)


def assert_equal_outputs(first: Model, second: Model, rows: Table) -> None:
    batch = exact(next(rows.batches(rows.rows)))
    torch.testing.assert_close(second(batch), first(batch), rtol=1e-9, atol=1e-9)
    assert first(batch).std() > 0.01


def test_nothing_left_is_a_users_mistake() -> None:
    net = supernet("dlrm", ROWS["planted"])
    set_gates(net, lambda place: True)
    with pytest.raises(UserError, match="closed every part of the model"):
        net.derive()


@backbones
def test_top_keeps_the_greatest_gates_of_either_sign(backbone: str) -> None:
    net = supernet(backbone, ROWS["planted"], select="top", keep=[0.3])
    net.gates["products" if backbone == "ipnn" else "pairs"].data.copy_(
        torch.tensor([0.1, -0.9, 0.2, 0.3, 0.0, -0.4, 0.05, 0.5, -0.2, 0.1])
    )
    (node_id,) = net.gates
    assert kept_in(net.derive(), node_id) == [("a", "c"), ("b", "d"), ("c", "d")]


@pytest.mark.parametrize(("keep", "number"), [(0.01, 1), (0.3, 3), (0.5, 5), (1.0, 10)])
@pytest.mark.parametrize("select", ["top", "random"])
def test_the_share_that_is_kept(select: str, keep: float, number: int) -> None:
    net = supernet("fm", ROWS["planted"], select=select, keep=[keep])
    pairs = kept_in(net.derive(), "pairs")
    assert len(set(pairs)) == len(pairs) == number


def test_random_follows_the_seed_and_no_gate() -> None:
    drawn = []
    for seed in range(20):
        net = supernet("fm", ROWS["planted"], seed=seed, select="random")
        pairs = kept_in(net.derive(), "pairs")
        set_gates(net, every_other)
        assert kept_in(net.derive(), "pairs") == pairs
        again = supernet("fm", ROWS["planted"], seed=seed, select="random")
        assert kept_in(again.derive(), "pairs") == pairs
        drawn += pairs
    times = [drawn.count(pair) for pair in sets_of(net.open, "pairs")]
    assert sum(times) == 60
    assert min(times) >= 1  # 6 on average


def test_every_trial_may_take_another_random_mask() -> None:
    plan = autofis.plan(AutoFISSettings(select="random"))
    drawn = []
    for draw in range(20):
        net = AutoFIS(opening("fm", fill_params(plan, {"autofis.draw": draw}), ROWS["planted"]))
        drawn += kept_in(net.derive(), "pairs")
    times = [drawn.count(pair) for pair in sets_of(net.open, "pairs")]
    assert min(times) >= 1  # 6 on average


# ---- the search -----------------------------------------------------------------------------------------------------

TRAIN, VALID = planted(1000), planted(300, seed=1)


def found(backbone: str, seed: int = 1, **settings: Any) -> tuple[AutoFIS, gradient.Found]:
    """40 steps on rows in which the fields a and b decide."""
    plan = autofis.plan(AutoFISSettings(**{"epochs": 4, **settings}))
    start = opening(backbone, plan, TRAIN, seed=seed, table_init=0.1)
    net = AutoFIS(Opening(start.backbone, start.plan, start.training, TRAIN, VALID, seed))
    return net, gradient.search(net, TRAIN, VALID, start.training, seed=seed)


def closed_gates(net: AutoFIS) -> int:
    return sum(int((gate == 0).sum()) for gate in net.gates.values())


def test_more_gates_close_with_a_greater_threshold() -> None:
    closed = [closed_gates(found("fm", threshold=[threshold])[0]) for threshold in (0.0, 0.7, 1.0, 1.5, 40.0)]
    assert closed == sorted(closed)
    assert closed[0] == 0
    assert 0 < closed[2] < 10
    assert closed[-1] == 10


def test_more_gates_close_with_a_greater_mu_and_the_same_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autofis, "calibrated", lambda *arguments: 0.05)
    closed = [closed_gates(found("fm", mu=[mu])[0]) for mu in (0.0, 0.4, 0.7, 0.9)]
    assert closed == sorted(closed)
    assert closed[0] < closed[-1]


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.8, 0.95])
def test_the_threshold_is_in_units_of_the_gates_start_whatever_mu(mu: float) -> None:
    """A gate without a gradient closes at 1, in the last step and not before."""
    for threshold, left in ((0.99, 0.01 * GATE), (1.0, 0.0)):
        net = supernet("fm", ROWS["planted"], threshold=[threshold], mu=[mu], gate_learning_rate=0.5)
        optimizer = net.optimizer(30)
        assert isinstance(optimizer, GRDA)
        for _ in range(30):
            for gate in net.gates.values():
                gate.grad = torch.zeros_like(gate)
            optimizer.step()
        torch.testing.assert_close(net.gates["pairs"].data, torch.full((10,), left), rtol=1e-3, atol=1e-6)


@backbones
def test_the_pair_that_decides_is_kept(backbone: str) -> None:
    net, result = found(backbone, threshold=[1.0], epochs=4, warm_up=0.0)
    ((node_id, gate),) = net.gates.items()
    pairs = kept_in(result.architecture, node_id)
    assert sets_of(net.open, node_id)[int(gate.abs().argmax())] == ("a", "b")
    assert ("a", "b") in pairs
    assert len(pairs) < 10  # how many of the others close is chance on so few rows; tests/e2e counts them on many
    assert result.samples == 4 * 1000
    assert result.architecture == net.derive()
    assert json.loads(json.dumps(result.figures)) == result.figures


def test_in_the_end_the_pair_that_decides_is_alone() -> None:
    _, result = found("fm", threshold=[2.2])
    assert kept_in(result.architecture, "pairs") == [("a", "b")]


def test_adam_closes_nothing_by_itself() -> None:
    """`top` trains gates by Adam: none ends at 0, so it needs a share to keep."""
    net, result = found("fm", select="top", keep=[0.1])
    assert closed_gates(net) == 0
    assert kept_in(result.architecture, "pairs") == [("a", "b")]


@pytest.mark.parametrize(("warm_up", "steps"), [(0.0, 40), (0.5, 20), (0.75, 10)])
def test_gates_learn_from_the_steps_of_the_weights_alone(warm_up: float, steps: int) -> None:
    """Once the warm-up is over each step of the weights is one of the gates, and c is calibrated to these steps."""
    net, _ = found("fm", threshold=[0.0])
    assert not torch.equal(net.gates["pairs"].data, torch.full((10,), GATE))
    made: list[int] = []
    net = supernet("fm", TRAIN, epochs=4, warm_up=warm_up)
    plain = net.optimizer

    def optimizer(steps: int) -> torch.optim.Optimizer:
        made.append(steps)
        return plain(steps)

    net.optimizer = optimizer  # type: ignore[method-assign]
    gradient.search(net, TRAIN, VALID, opening("fm", net.plan, TRAIN).training, seed=1)
    assert made == [steps]


# ---- the plan -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "names", "absent"),
    [
        ({}, {"autofis.threshold"}, {"keep", "draw"}),
        (
            {"triples": [False, True], "mu": [0.6, 0.8]},
            {"autofis.triples", "autofis.threshold", "autofis.mu"},
            {"keep", "draw"},
        ),
        ({"select": "top", "keep": [0.2, 0.4], "mu": [0.6, 0.8]}, {"autofis.keep"}, {"threshold", "mu", "draw"}),
        ({"select": "random", "threshold": [1.0]}, {"autofis.draw"}, {"threshold", "mu"}),
    ],
)
def test_the_plan_is_data_with_named_choices(settings: dict[str, Any], names: set[str], absent: set[str]) -> None:
    """Lists of one value are no choices, and settings of other ways to select are none at all."""
    plan = autofis.plan(AutoFISSettings(**settings))
    assert json.loads(json.dumps(plan)) == plan
    assert plan["method"] == "autofis"
    assert set(choices(plan)) == names
    assert {name for name, value in plan.items() if value is None} == absent
