"""DPQ and MGQE: how codes are found, and that what is derived is what the supernet was."""

from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.trainer import planted_ranks
from tests.trainer.opened import QUICK, ROWS, SIZES, VALID_ROWS, Watched, opened, searched, table
from trainer.architecture import Architecture, QuantizedEncoder
from trainer.build import Model, build
from trainer.data import Table
from trainer.fit import fit
from trainer.index import packed, unpacked
from trainer.methods.settings import MGQESettings
from trainer.modules.quantized import Quantized, Quantizer
from trainer.schema import DatasetSchema, Field
from trainer.settings import TrainSettings
from trainer.shapes import count

SMALL: dict[str, Any] = {"epochs": 2, "dim": 8, "subspaces": [4], "centroids": [6], "warm_up": 0.2}
"""User (40 categories) and item (12) have more categories than centroids, flag (3) has not."""
RARE: dict[str, Any] = {**SMALL, "head": 0.25, "tail_centroids": [2]}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ---- the nearest centroids ------------------------------------------------------------------------------------------


def quantizer(fields: int = 2, width: int = 6, subspaces: int = 3, centroids: int = 5) -> Quantizer:
    made = Quantizer(fields, width, subspaces, centroids)
    made.centroids.data.normal_()
    made.at_work = True
    return made


def all_allowed(made: Quantizer, x_BMD: Tensor) -> Tensor:
    return torch.full(x_BMD.shape[:2], made.centroids.shape[2])


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4), st.integers(1, 7))
def test_each_sub_vector_takes_the_nearest_of_its_allowed_centroids(
    seed: int, fields: int, subspaces: int, centroids: int
) -> None:
    torch.manual_seed(seed)
    made, x_BMD = quantizer(fields, 2 * subspaces, subspaces, centroids), torch.randn(9, fields, 2 * subspaces)
    allowed_BM = torch.randint(1, centroids + 1, (9, fields))
    code_BMS = made.codes(x_BMD, allowed_BM)
    for row, field, space in np.ndindex(*code_BMS.shape):
        sub = x_BMD[row, field, 2 * space : 2 * space + 2]
        near = [float((sub - c).square().sum()) for c in made.centroids[field, space, : allowed_BM[row, field]]]
        assert near[int(code_BMS[row, field, space])] == pytest.approx(min(near), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_rows_are_centroids_side_by_side_exactly(training: bool) -> None:
    made, x_BMD = quantizer(subspaces=2, centroids=3).train(training), torch.randn(500, 2, 6)
    allowed_BM = all_allowed(made, x_BMD)
    found_BMD, code_BMS = made(x_BMD, allowed_BM, 500), made.codes(x_BMD, allowed_BM)
    for field in range(2):
        parts = [made.centroids[field, space, code_BMS[:, field, space]] for space in range(2)]
        assert torch.equal(found_BMD[:, field], torch.cat(parts, dim=1))
        assert len(found_BMD[:, field].unique(dim=0)) <= 3**2  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("of", [10, 20])
def test_gradients_pass_through_and_centroids_learn_from_their_distance_alone(of: int) -> None:
    made, x_BMD = quantizer(), torch.randn(10, 2, 6, requires_grad=True)
    taste = torch.randn(10, 2, 6)
    (made(x_BMD, all_allowed(made, x_BMD), of) * taste).sum().backward()
    assert x_BMD.grad is not None
    assert torch.equal(x_BMD.grad, taste)
    found = made.centroids.grad
    centroids = made.centroids.detach().requires_grad_()
    code_BMS = made.codes(x_BMD, all_allowed(made, x_BMD))
    near = [[torch.cat([centroids[m, s, code_BMS[b, m, s]] for s in range(3)]) for m in range(2)] for b in range(10)]
    distance = (torch.stack([torch.stack(row) for row in near]) - x_BMD.detach()).square().mean() * 10 / of
    [expected] = torch.autograd.grad(distance, centroids)
    torch.testing.assert_close(found, expected)


def test_what_is_not_at_work_changes_nothing() -> None:
    made, x_BMD = quantizer(), torch.randn(10, 2, 6)
    made.at_work = False
    assert made(x_BMD, all_allowed(made, x_BMD), 10) is x_BMD


# ---- the supernet ---------------------------------------------------------------------------------------------------


def at_work(method: str = "dpq", **given: Any) -> Any:
    net = opened(method, **{**SMALL, **(RARE if method == "mgqe" else {}), **given})
    net.relax(0.5, frozen=False, deciding=False)
    return net


def encoders(architecture: Architecture) -> dict[str, QuantizedEncoder]:
    found = architecture.views["e"].encoders
    return {field: one for field, one in found.items() if isinstance(one, QuantizedEncoder)}


def codes(encoder: QuantizedEncoder) -> Tensor:
    """(R, S)"""
    return torch.frombuffer(bytearray(unpacked(encoder.index)), dtype=torch.uint8).view(-1, encoder.subspaces)


def copied(net: Any, derived: Architecture) -> Model:
    """The derived model with the supernet's centroids, and its other weights."""
    model = build(derived, label_mean=0.5, table_init=0.3, seed=9)
    # Opened, the three tables are encoded in one piece, and what comes after them is the second.
    names = {
        name.replace("view:e.view.numbers.1.", "view:e.numbers.3."): value
        for name, value in net.model.state_dict().items()
    }
    left = {name for name, value in model.state_dict().items() if name not in names or value.shape != names[name].shape}
    model.load_state_dict({name: value for name, value in names.items() if name in model.state_dict()}, strict=False)
    modules = [module for module in model.modules() if isinstance(module, Quantized)]
    assert len(left) == len(modules) == 2
    for module, centroid_SKW in zip(modules, net.views["e"].quantizer.centroids, strict=True):
        module.centroids.data.copy_(centroid_SKW)
    return model


@pytest.mark.parametrize("method", ["dpq", "mgqe"])
@pytest.mark.parametrize("backbone", ["fm", "deepfm", "dcnv2"])
def test_the_supernet_in_evaluation_is_the_derived_model(method: str, backbone: str) -> None:
    net = at_work(method, backbone=backbone)
    net.views["e"].quantizer.centroids.data += 0.05 * torch.randn_like(net.views["e"].quantizer.centroids)
    batch = table().take(torch.arange(ROWS))
    model = copied(net, net.derive())
    torch.testing.assert_close(net.model.eval()(batch), model.eval()(batch))


def test_in_the_warm_up_it_is_the_backbone() -> None:
    net = opened("dpq", **SMALL)
    net.relax(0.0, frozen=True, deciding=False)
    plain = build(net.backbone, label_mean=0.5, table_init=QUICK.table_init, seed=1)
    batch = table().take(torch.arange(ROWS))
    assert torch.equal(net.model(batch), plain(batch))
    assert not net.views["e"].quantizer.placed


@pytest.mark.parametrize("method", ["dpq", "mgqe"])
def test_centroids_begin_at_categories_of_which_they_stand_for_exactly_these(method: str) -> None:
    net = at_work(method)
    view = net.views["e"]
    batch = table().take(torch.arange(ROWS))
    vectors = net.model.tables.whole("e/user").detach()
    begin_KD = view.quantizer.centroids[0].transpose(0, 1).flatten(1)
    drawn = [int((vectors == begin_D).all(dim=1).nonzero()) for begin_D in begin_KD]
    assert len(set(drawn)) == SMALL["centroids"][0]
    if method == "dpq":
        plain_BMD, made_BMD = view.plain(batch, net.model.tables(batch)), view(batch, net.model.tables(batch))
        inside = torch.isin(batch.categorical[:, 0], torch.tensor(drawn))
        assert inside.any()
        assert torch.equal(made_BMD[inside, view.places[0]], plain_BMD[inside, 0])
    before = view.quantizer.centroids.clone()
    net.relax(0.6, frozen=False, deciding=False)
    assert torch.equal(view.quantizer.centroids, before)


def test_frequent_categories_are_drawn() -> None:
    """By their rows: of forty users six have been met a thousand times as often as the others, and all are drawn."""
    train = table(20_000)
    train.categorical[:, 0] = torch.where(torch.arange(20_000) < 19_900, train.categorical[:, 0] % 6, 20)
    net = at_work(train=train)
    vectors = net.model.tables.whole("e/user").detach()
    begin_KD = net.views["e"].quantizer.centroids[0].transpose(0, 1).flatten(1)
    drawn = {int((vectors == begin_D).all(dim=1).nonzero()) for begin_D in begin_KD}
    assert len(drawn & {0, 1, 2, 3, 4, 5}) >= 5


def test_fields_with_no_more_categories_than_centroids_keep_their_tables() -> None:
    net = opened("dpq", **SMALL)
    assert set(encoders(net.derive())) == {"user", "item"}
    assert net.derive().views["e"].encoders["flag"] == net.backbone.views["e"].encoders["flag"]
    none = opened("dpq", **{**SMALL, "centroids": [40]})
    assert not none.gates
    found = searched(none)
    assert (found.architecture, found.samples, found.figures) == (none.backbone, 0, [])


# ---- a whole search -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dpq", "mgqe"])
def test_what_is_kept_is_centroids_and_the_bits_of_codes(method: str) -> None:
    net = opened(method, **(RARE if method == "mgqe" else SMALL), backbone="mlp")
    found = searched(net)
    derived, bits = found.architecture, 0
    for field in ("user", "item"):
        head = -(-SIZES[field] // 4) if method == "mgqe" else SIZES[field]
        bits += 4 * (head * 3 + (SIZES[field] - head) * 1)  # one of six: three bits; one of two: one
    numeric = (2 + 1) * 8
    assert count(derived).tables == 2 * 6 * 8 + SIZES["flag"] * 8 + numeric
    assert count(derived).codes == -(-bits // 32)
    [shown] = found.figures
    assert [line[0] for line in shown["rows"]] == ["user", "item"]
    for line, (field, encoder) in zip(shown["rows"], encoders(derived).items(), strict=True):
        used = [len(set(code_R.tolist())) for code_R in codes(encoder).T]
        assert line[1:3] == [SIZES[field], pytest.approx(sum(used) / len(used), rel=1e-4)]
        assert 0 < line[3] <= np.log2(6)


def test_rare_categories_have_the_first_centroids_and_frequent_ones_all() -> None:
    for field, encoder in encoders(searched(opened("mgqe", **RARE)).architecture).items():
        head = -(-SIZES[field] // 4)
        assert encoder.tail is not None
        assert (encoder.tail.first, encoder.tail.centroids) == (head, 2)
        assert codes(encoder)[head:].max() < 2 <= codes(encoder)[:head].max()


def test_as_many_centroids_for_all_is_dpq_bit_by_bit() -> None:
    ends = []
    for method, sizes in (("dpq", SMALL), ("mgqe", {**RARE, "tail_centroids": [6]})):
        net = Watched(opened(method, **sizes))
        found = searched(net)
        weights = {name: value.clone() for name, value in net.model.state_dict().items()}
        ends.append((weights, found.architecture, found.figures, list(net.trace.values.values())))
    (weights, *rest), (others, *their_rest) = ends
    assert weights.keys() == others.keys()
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert rest[:2] == their_rest[:2]
    assert all(torch.equal(*both) for both in zip(rest[2], their_rest[2], strict=True))
    assert searched(opened("mgqe", **RARE)).architecture != rest[0]


def test_validation_rows_say_nothing() -> None:
    """Neither to weights nor to centroids, and nobody counts who is in them."""
    one, other = (
        searched(opened("mgqe", **RARE, valid=valid), valid=valid).architecture
        for valid in (table(VALID_ROWS, seed=1), table(VALID_ROWS, seed=2))
    )
    assert one == other


TYPES = 4
LIKES = np.array([[1, 1, -1, -1], [1, -1, 1, -1], [-1, 1, 1, -1], [-1, -1, -1, 1]])


def typed(count: int, seed: int) -> Table:
    """Clicks of 60 users and 60 items, of whom only a hidden type counts, one of four."""
    rng = np.random.default_rng([seed, 7])
    ids = rng.integers(0, 60, (count, 2))
    liked = LIKES[ids[:, 0] % TYPES, ids[:, 1] % TYPES]
    label = torch.from_numpy((rng.random(count) < 1 / (1 + np.exp(-3 * liked))).astype(np.float32))
    schema = DatasetSchema(
        task="ctr",
        label="label",
        fields=tuple(Field(name=name, kind="categorical", cardinality=60) for name in ("user", "item")),
        rows={"train": count, "valid": count, "test": count},
        label_mean=0.5,
        label_min=0.0,
        label_max=1.0,
    )
    return Table(schema, torch.from_numpy(ids.astype(np.int32)), torch.empty(count, 0), label, {})


def test_who_is_alike_shares_a_centroid() -> None:
    training = TrainSettings(batch_size=256, learning_rate=0.02, table_init=0.1, table_l2=0.0)
    given: dict[str, Any] = {"train": typed(12_000, 0), "valid": typed(2000, 1), "training": training}
    sizes = {"dim": 4, "subspaces": [1], "centroids": [TYPES], "epochs": 6, "centroid_learning_rate": 0.01}
    found = searched(opened("dpq", **given, **sizes, backbone="fm"), **given).architecture
    for encoder in encoders(found).values():
        together = [codes(encoder)[kind::TYPES, 0].tolist() for kind in range(TYPES)]
        named = [max(set(shared), key=shared.count) for shared in together]
        assert len(set(named)) == TYPES
        assert sum(shared.count(code) for shared, code in zip(together, named, strict=True)) >= 57


@pytest.mark.slow
def test_codes_that_are_found_are_nearly_as_good_as_a_table_and_drawn_ones_are_not() -> None:
    """On users and items of ranks 4 and 1, with a third of the parameters."""
    train, valid = planted_ranks.planted(24_000)
    given: dict[str, Any] = {"train": train, "valid": valid, "training": planted_ranks.training()}
    net = opened("dpq", **given, backbone="fm", dim=4, subspaces=[4], centroids=[16])
    found = searched(net, **given).architecture
    drawn, random = found.to_dict(), Random(1)
    for field in encoders(found):
        codes_N = bytes(random.randrange(16) for _ in range(found.fields[field].cardinality * 4))
        drawn["views"]["e"]["encoders"][field]["index"] = packed(codes_N)

    def loss_of(architecture: Architecture) -> float:
        model = build(architecture, label_mean=0.5, table_init=0.1, seed=1)
        return fit(model, train, valid, planted_ranks.training(), task="ctr", seed=1).best_value

    full, kept, blind = (loss_of(one) for one in (net.backbone, found, Architecture.from_dict(drawn)))
    assert count(found).total < 0.35 * count(net.backbone).total
    assert kept < full + 0.02
    assert blind > full + 0.1


# ---- settings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dim": 10}, "4 'subspaces' do not divide a 'dim' of 10"),
        ({"centroids": [256, 16]}, "64 'tail_centroids' are more than 16 'centroids'"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MGQESettings(**given)
