"""iHAS: gates with their penalties, groups and their router, what is derived, and planted segments (checks 1 to 9)."""

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from components.serve import load_model, score
from tests.trainer import planted_segments
from tests.trainer.opened import QUICK, SIZES, opened, schema, searched, table
from trainer import metrics
from trainer.architecture import Architecture, RoutedHead, TableEncoder
from trainer.build import Model, build
from trainer.checkpoint import save_weights
from trainer.data import Table
from trainer.fit import fit, predict
from trainer.methods.ihas import IHAS
from trainer.methods.ihas.groups import MOST, Coded, Groups, _joined, grouped
from trainer.methods.ihas.groups import searched as clustered
from trainer.methods.ihas.sizes import Target, sized
from trainer.modules.gates import START, Gates, logistic
from trainer.shapes import count

WIDTH = 16
NONE: list[int] = []
ROWS = table()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def gates(sparse: float = 0.0, polar: float = 0.0, threshold: float = 0.5) -> Gates:
    made = Gates(2, 3, threshold)
    made.sparse, made.polar = sparse, polar
    return made


weights = st.floats(0, 2, allow_subnormal=False)

# ---- gates ----------------------------------------------------------------------------------------------------------


@given(st.floats(0.01, 0.99), weights, weights)
def test_penalties_are_their_closed_forms(chance: float, sparse: float, polar: float) -> None:
    """Check 1: polarisation leaves π = 1/2 alone and drives every other π further to its side."""
    logit = torch.full((4, 2, 3), math.log(chance / (1 - chance)), dtype=torch.float64, requires_grad=True)
    penalty = gates(sparse, polar).penalty(logit)
    assert float(penalty) == pytest.approx(sparse * chance + polar * chance * (1 - chance))
    [gradient] = torch.autograd.grad(penalty, logit)
    slope = chance * (1 - chance)
    expected = torch.full_like(gradient, slope * (sparse + polar * (1 - 2 * chance)) / 24)
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("chance", "sign"), [(0.5, 0.0), (0.6, -1.0), (0.4, 1.0)])
def test_polarisation_alone_decides_gates(chance: float, sign: float) -> None:
    logit = torch.full((1, 2, 3), math.log(chance / (1 - chance)), dtype=torch.float64, requires_grad=True)
    [gradient] = torch.autograd.grad(gates(polar=1.0).penalty(logit), logit)
    assert (gradient.sign() == sign).all() or (sign == 0 and gradient.abs().max() < 1e-15)


def test_a_step_learns_from_loss_and_penalty_together() -> None:
    """The gradients are those of the sum, whatever of it is shown as the loss."""
    x, taste = torch.randn(5, 2, 3), torch.randn(5, 2, 3)
    made = gates(sparse=0.7, polar=0.3).train()
    torch.nn.init.normal_(made.weight)
    torch.manual_seed(3)
    mine = torch.autograd.grad((made(x, of=10) * taste).sum(), list(made.parameters()))
    torch.manual_seed(3)
    logit = made.logits(x)
    relaxed = ((logit + logistic(logit)) / made.temperature).sigmoid()
    total = (x * relaxed * taste).sum() + made.penalty(logit) * 5 / 10
    for one, other in zip(mine, torch.autograd.grad(total, list(made.parameters())), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("temperature", [1.0, 0.1])
@pytest.mark.parametrize("chance", [0.2, 0.5, 0.9])
def test_relaxed_gates_are_unbiased(temperature: float, chance: float) -> None:
    """Check 2: z is above 1/2 as often as π says; its mean and the mean's slope are those of the distribution, which
    cold gates bring to π and π (1 - π)."""
    draws = 200_000
    made = Gates(1, 1, 0.5).train().double()
    made.temperature = temperature
    logit = math.log(chance / (1 - chance))
    with torch.no_grad():
        made.bias.fill_(logit)
    torch.manual_seed(0)
    z = made(torch.ones(draws, 1, 1, dtype=torch.float64), of=draws)
    [slope] = torch.autograd.grad(3 * z.mean(), made.bias)
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    exact = 1 / (1 + np.exp(-(logit + np.log(u) - np.log(1 - u)) / temperature))
    exact_slope = (exact * (1 - exact) / temperature).mean()
    error = 5 / math.sqrt(draws)
    assert float((z > 0.5).double().mean()) == pytest.approx(chance, abs=error * 0.5)
    assert float(z.mean()) == pytest.approx(exact.mean(), abs=error * exact.std())
    assert float(slope) == pytest.approx(3 * exact_slope, abs=3 * error * (exact * (1 - exact) / temperature).std())
    if temperature < 1:
        assert exact.mean() == pytest.approx(chance, abs=0.01)
        assert exact_slope == pytest.approx(chance * (1 - chance), abs=0.01)


def test_in_evaluation_a_gate_is_open_or_closed() -> None:
    made = gates(threshold=0.7).eval()
    with torch.no_grad():
        made.bias.copy_(torch.tensor([[0.0, 0.8, 0.9], [-5.0, 5.0, 0.84]]))
    x = torch.randn(6, 2, 3)
    expected = x * torch.tensor([[0, 0, 1], [0, 1, 0]])  # log(0.7 / 0.3) = 0.847
    assert torch.equal(made(x, of=6), expected)


def net_of(train: Table | None = None, **settings: Any) -> IHAS:
    choices = {"embedding.dim": WIDTH} | settings.pop("choices", {})
    net = opened("ihas", train=train, **{"groups": [2], "least": 0.0, "choices": choices, **settings})
    assert isinstance(net, IHAS)
    return net


@pytest.mark.parametrize("backbone", ["deepfm", "dlrm", "dcnv2"])
def test_with_gates_wide_open_the_supernet_is_the_backbone(backbone: str) -> None:
    """Check 3, first half: without penalties, in training too."""
    net = net_of(backbone=backbone, sparse=[0.0], polar=[0.0])
    plain = build(net.backbone, label_mean=schema().label_mean, table_init=QUICK.table_init, seed=1)
    batch = ROWS.take(torch.arange(40))
    net.relax(0.7, frozen=True, deciding=False)
    torch.testing.assert_close(net.model(batch), plain(batch))
    net.relax(0.7, frozen=False, deciding=False)
    with torch.no_grad():
        for view in net.views.values():
            view.gates.bias.fill_(60.0)
    torch.testing.assert_close(net.model(batch), plain(batch), rtol=0, atol=0)


def test_a_great_penalty_closes_every_gate() -> None:
    """Check 3, second half. What is derived then is the least that the backbone can do with."""
    net = net_of(backbone="fm", sparse=[100.0], epochs=4, gate_learning_rate=0.1)
    searched(net)
    assert not any(code.open.any() for code in net.coded().values())
    derived = net.derive()
    assert not isinstance(derived.head, RoutedHead)
    kept = {field: one.dim for field, one in derived.views["e"].encoders.items() if isinstance(one, TableEncoder)}
    assert set(kept.values()) <= {1}


def test_the_share_kept_falls_with_the_penalty() -> None:
    """Check 9."""
    shares = []
    for sparse in (0.0, 0.3, 1.0, 3.0):
        net = net_of(backbone="fm", sparse=[sparse], polar=[0.0], epochs=3, gate_learning_rate=0.05)
        searched(net)
        shares.append(np.mean([float(code.open.double().mean()) for code in net.coded().values()]))
    assert shares == sorted(shares, reverse=True)
    assert shares[0] > 0.9 > 0.5 > shares[-1]


# ---- groups ---------------------------------------------------------------------------------------------------------


def coded(seed: int = 0, width: int = 3) -> dict[tuple[str, str], Coded]:
    """Masked embeddings of two kinds of categories of each field."""
    draw = torch.Generator().manual_seed(seed)
    found = {}
    for field, rows in SIZES.items():
        open_RD = torch.rand(rows, width, generator=draw) < 0.6
        x_RD = torch.randn(rows, width, generator=draw) + 2 * (torch.arange(rows) % 2)[:, None]
        found["e", field] = Coded(field, x_RD * open_RD, open_RD)
    return found


def embedded(codes: dict[tuple[str, str], Coded], rows: Table) -> tuple[Tensor, Tensor]:
    """What the gates leave of each row, and which are open, side by side: (N, all widths)."""
    ids = {field: rows.ids(field).long() for _, field in codes}
    return tuple(  # type: ignore[return-value]
        torch.cat([getattr(code, what)[ids[code.field]] for code in codes.values()], dim=1) for what in ("x", "open")
    )


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_the_router_sends_rows_to_the_nearest_centroid(groups: int) -> None:
    """Computed by hand from the rows: K-means of these, which has converged, is the nearest of its groups' means."""
    codes = coded()
    found = clustered(codes, ROWS, groups, least=0.0, seed=1)
    x_ND, open_ND = embedded(codes, ROWS)
    group_N = grouped(found.router, found.count, ROWS)
    mean_KD = torch.stack([x_ND[group_N == group].mean(dim=0) for group in range(found.count)])
    nearest_N = torch.cdist(x_ND, mean_KD).argmin(dim=1)
    assert float((nearest_N == group_N).double().mean()) > 0.97
    assert 0.97 < found.agreement <= 1
    for group in range(found.count):
        rows = group_N == group
        assert found.rows[group] == rows.sum()
        assert found.label[group] == pytest.approx(float(ROWS.label[rows].mean()))
        share_D = torch.cat([found.open[place][group] for place in codes])
        torch.testing.assert_close(share_D, open_ND[rows].double().mean(dim=0))
        kept = [place + 3 * field for field, key in enumerate(codes) for place in found.kept(key, group)]
        assert kept == (share_D >= 0.5).nonzero().flatten().tolist()


def test_agreement_is_that_of_unrounded_votes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the coarsest votes it is less than with bytes."""
    fine = clustered(coded(), ROWS, 3, least=0.0, seed=1)
    monkeypatch.setattr("trainer.methods.ihas.groups.MOST", 1)
    coarse = clustered(coded(), ROWS, 3, least=0.0, seed=1)
    assert MOST == 127
    assert coarse.agreement < fine.agreement
    assert coarse.agreement < 0.95


def test_equal_seeds_find_equal_groups() -> None:
    first, second = (clustered(coded(), ROWS, 3, least=0.0, seed=7) for _ in range(2))
    assert first.router == second.router


def test_small_groups_join_their_nearest_neighbour() -> None:
    centre_KN = torch.tensor([[0.0, 0.0], [10.0, 0.0], [8.0, 0.0]], dtype=torch.float64)
    joined_KN = _joined(centre_KN, np.array([50.0, 30.0, 10.0]))
    torch.testing.assert_close(joined_KN, torch.tensor([[0.0, 0.0], [9.5, 0.0]], dtype=torch.float64))
    free = clustered(coded(), ROWS, 4, least=0.0, seed=1)
    least = float(np.sort(free.rows)[1] + 1) / len(ROWS.label)
    bound = clustered(coded(), ROWS, 4, least=least, seed=1)
    assert 1 < bound.count < free.count
    assert bound.rows.min() >= least * len(ROWS.label)
    assert bound.rows.sum() == free.rows.sum() == len(ROWS.label)


@pytest.mark.parametrize("groups", [2, 3])
def test_blind_groups_are_about_equal_and_depend_on_the_draw(groups: int) -> None:
    rows = table(3000, seed=3)
    net = net_of(train=rows, select="random", groups=[groups])
    found = net.found()
    assert found.count == groups
    assert found.rows.min() > 0.5 * len(rows.label) / groups
    assert found.router == net.found().router
    net.plan = {**net.plan, "draw": 17}
    assert found.router != net.found().router


# ---- what is derived ------------------------------------------------------------------------------------------------


def masks(drop: bool, seed: int = 5) -> dict[str, list[int]]:
    draw = np.random.default_rng(seed)
    kept = {
        field: sorted(draw.choice(WIDTH, size, replace=False).tolist())
        for field, size in zip(SIZES, (5, 9, 3), strict=True)
    }
    return {**kept, "flag": []} if drop else kept


def groups_of(kept: Sequence[dict[str, list[int]]]) -> Groups:
    """Groups that keep these coordinates."""
    opened_KD = {
        ("e", field): torch.stack(
            [torch.zeros(WIDTH).index_fill(0, torch.tensor(one[field]).long(), 1.0) for one in kept]
        )
        for field in SIZES
    }
    return Groups({}, np.ones(len(kept)), np.ones(len(kept)), opened_KD, 1.0)


def masked(model: Model, kept: dict[str, list[int]]) -> Model:
    """The full model, with zeros for the coordinates that are not kept."""
    for field, places in kept.items():
        weight = model.tables.bags.embedding_bags[f"e/{field}"].weight
        closed = [place for place in range(WIDTH) if place not in places]
        weight.data[:, closed] = 0
    return model.eval()


def copied(full: Model, small: Model, kept: dict[str, list[int]]) -> Model:
    """`small` with the weights of `full`: of a matrix whose input is narrower, the rows and columns of what is kept."""
    encoders = full.architecture.views["e"].encoders
    places = [list(range(WIDTH)) if field not in kept else kept[field] for field in encoders]
    flat = torch.tensor([WIDTH * field + place for field, one in enumerate(places) for place in one])
    values = {_unnumbered(name): value.data for name, value in full.named_parameters()}
    for name, weight in small.named_parameters():
        value = values[_unnumbered(name)]
        if ".e/" in name:
            value = value[:, kept[name.split(".e/")[1].removesuffix(".weight")]]
        for dim, size in enumerate(weight.shape):
            if value.shape[dim] != size:
                rest = torch.arange(len(encoders) * WIDTH, value.shape[dim])
                value = value.index_select(dim, torch.cat([flat, rest]))
        weight.data.copy_(value)
    return small.eval()


def _unnumbered(name: str) -> str:
    """Numbers of a view stand behind as many runs of tables as are alike."""
    return re.sub(r"numbers\.\d+", "numbers", name)


@pytest.mark.parametrize(
    ("backbone", "drop"),
    [("fm", True), ("fm", False), ("deepfm", False), ("dlrm", False), ("mlp", True), ("dcnv2", True), ("dcnv2", False)],
)
def test_a_part_is_the_masked_backbone(backbone: str, drop: bool) -> None:
    """Check 6: with the same weights, whether coordinates keep their places or move together."""
    net, kept = net_of(backbone=backbone), masks(drop)
    derived = sized(Target(net.backbone, {"e": "e"}), groups_of([kept]), 0)
    encoders = derived.views["e"].encoders
    assert {field: one.dim for field, one in encoders.items() if isinstance(one, TableEncoder)} == {
        field: len(places) for field, places in kept.items() if places
    }
    full = build(net.backbone, label_mean=0.5, table_init=0.5, seed=1)
    small = copied(masked(full, kept), build(derived, label_mean=0.5, table_init=0.5, seed=2), kept)
    batch = ROWS.take(torch.arange(60))
    torch.testing.assert_close(small(batch), full(batch), rtol=1e-5, atol=1e-5)


def test_one_group_is_a_model_with_a_width_per_field() -> None:
    """Check 8."""
    net, kept = net_of(backbone="deepfm", groups=[1]), masks(drop=False)
    net.found = lambda: groups_of([kept])  # type: ignore[method-assign]
    data = net.backbone.to_dict()
    data["views"]["e"] |= {"align": "pad", "width": WIDTH}
    for field, places in kept.items():
        data["views"]["e"]["encoders"][field] = {"kind": "table", "dim": len(places), "places": places}
    assert net.derive().hash == Architecture.from_dict(data).hash


def test_gates_that_are_all_open_derive_the_backbone() -> None:
    net = net_of(backbone="deepfm", groups=[1])
    assert START > 0
    assert net.derive().hash == net.backbone.hash


def test_fields_that_a_model_cannot_do_without_keep_their_best_coordinate() -> None:
    """Ops on fields need two of them; `mf` reads its two fields by their names."""
    groups = groups_of([dict.fromkeys(SIZES, NONE)])
    for place, field in enumerate(SIZES):
        groups.open["e", field][0, 4 + place] = 0.4
    for backbone, expected in (("mf", {"user": 4, "item": 5}), ("deepfm", {})):
        derived = sized(Target(net_of(backbone=backbone).backbone, {"e": "e"}), groups, 0)
        encoders = derived.views["e"].encoders
        kept = {field: one.places for field, one in encoders.items() if isinstance(one, TableEncoder)}
        assert kept == {field: (place,) for field, place in expected.items()}


def test_each_group_is_a_part_of_its_own_size_and_router_votes_are_counted() -> None:
    net = net_of(backbone="dlrm")
    groups, some = net.found(), [masks(drop=False), masks(drop=False, seed=6)]
    net.found = lambda: Groups(**{**vars(groups), "open": groups_of(some).open})  # type: ignore[method-assign]
    derived = net.derive()
    assert isinstance(derived.head, RoutedHead)
    for number, kept in enumerate(some):
        for field, places in kept.items():
            assert derived.views[f"g{number}-e"].encoders[field].places == tuple(places)  # type: ignore[union-attr]
    parts = [count(part) for part in derived.parts()]
    assert count(derived).total == sum(part.total for part in parts) + math.ceil(8 * sum(SIZES.values()) / 32)


def test_groups_are_trained_as_another_model() -> None:
    """The transfer: groups and coordinates found on one backbone, parts that are another one."""
    net = net_of(backbone="dlrm", into="dcnv2")
    derived = net.derive()
    assert {node.op for node in derived.nodes} == {"cross", "mlp"}
    assert derived.task == "ctr"
    assert len(derived.parts()) == 2


# ---- a whole search -------------------------------------------------------------------------------------------------


def test_a_found_model_serves_the_groups_that_it_was_trained_with(tmp_path: Any) -> None:
    """Check 5: the same rows go to the same parts when a saved model is loaded, alone or with others."""
    net = net_of(backbone="dlrm", epochs=2)
    found = searched(net)
    assert isinstance(found.architecture.head, RoutedHead)
    valid = table(80, seed=1)
    model = build(found.architecture, label_mean=schema().label_mean, table_init=0.3, seed=1)
    fit(model, ROWS, valid, QUICK, task="ctr", seed=1)
    save_weights(model, tmp_path / "weights.safetensors")
    again = Architecture.from_dict(found.architecture.to_dict())
    served = load_model(again, schema(), tmp_path / "weights.safetensors")
    assert net.groups is not None
    for rows in (ROWS, valid):
        group_N = grouped(net.groups.router, 2, rows)
        assert torch.equal(served.tables.router(rows.categorical), group_N)
    order = torch.randperm(80)
    whole = score(served, valid)
    np.testing.assert_allclose(whole, predict(model, valid), atol=1e-5)
    np.testing.assert_allclose(score(served, valid.select(order[:7])), whole[order[:7]], rtol=1e-9)


def test_planted_segments_are_found() -> None:
    """Check 4: two segments, other fields say something in each. Groups are the segments, each keeps its own fields,
    drops some of the other's, and all of noise; and they predict better than one model with one size for all rows.
    """
    train, valid = planted_segments.planted(10_000)
    settings = planted_segments.training()
    given = {"backbone": "dlrm", "choices": {"embedding.dim": 4}, "sparse": [0.3], "polar": [0.3], "epochs": 12}
    net = opened("ihas", train=train, valid=valid, training=settings, groups=[2], gate_learning_rate=0.03, **given)
    found = searched(net, train=train, valid=valid, training=settings).architecture
    assert net.groups.count == 2
    assert net.groups.agreement > 0.99
    group_N, segment_N = grouped(net.groups.router, 2, train), planted_segments.segment_of(train)
    same = float((group_N == segment_N).double().mean())
    assert same > 0.95  # the first segment has more rows, and so has the first group
    for group, own in enumerate(planted_segments.OF_SEGMENT):
        kept = {field for field in planted_segments.FIELDS if net.groups.kept(("e", field), group)}
        assert set(own) <= kept < {*planted_segments.OF_SEGMENT[0], *planted_segments.OF_SEGMENT[1]}

    def auc(architecture: Architecture) -> float:
        mean = train.schema.label_mean
        model = build(architecture, label_mean=mean, table_init=settings.table_init, seed=1)
        fit(model, train, valid, settings, task="ctr", seed=1)
        return metrics.evaluate("ctr", valid.label.numpy(), predict(model, valid))["auc"]

    net.plan = {**net.plan, "groups": 1}
    assert auc(found) > auc(net.derive()) + 0.01
