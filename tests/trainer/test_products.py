"""Products of pairs and triples and interactions within groups: brute force, identities, counts, refusals, hashes."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from tests.trainer.mixed import ALL, architecture, batch_of, built, mixed_schema, parameters, view
from tests.trainer.takeover import exact
from trainer.architecture import Architecture, ArchitectureError
from trainer.modules.interactions import FM
from trainer.modules.products import EPS, GATE, Groups, Hadamard, Products, group_interactions
from trainer.shapes import V, count, infer

B, M, D = 6, len(ALL), 3
Data = dict[str, Any]

PAIRS: list[list[str]] = [["price", "user"], ["item", "site.id"], ["user", "age"]]
TRIPLES: list[list[str]] = [["age", "item", "user"], ["price", "item", "age"], ["user", "price", "site.id"]]
SETS: list[list[str]] = [["user", "site.id"], ["item", "age", "price"], list(ALL), ["user", "site.id"]]


@pytest.fixture(name="x_BMD")
def fields() -> Tensor:
    return torch.randn(B, M, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def described(node: Data, fields: Sequence[str] = ALL) -> Architecture:
    return architecture({"e": view(D, *fields)}, [{"id": "q", "in": ["e"], **node}], ["q"])


def module_of(node: Data, fields: Sequence[str] = ALL) -> Any:
    """What the builder makes of the node, in float64, with random weights."""
    module = built(described(node, fields)).nodes[f"{node['op']}:q"]
    torch.manual_seed(2)
    for weight in module.double().parameters():
        weight.data.normal_()
    return module


def positions(sets: Sequence[Sequence[str]]) -> list[tuple[int, ...]]:
    """In the order in which pairs and triples are computed: that of the fields."""
    return sorted(tuple(sorted(map(ALL.index, one))) for one in sets)


def brute_products(x_BMD: Tensor, sets: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.stack([x_BMD[:, list(one)].prod(1).sum(1) for one in sets], 1)


def brute_group(x_BMD: Tensor, weight_M: Tensor, order: int) -> Tensor:
    """(B,): over all ordered tuples of fields but those that hold one field only."""
    a_BMD = weight_M[:, None] * x_BMD
    tuples = itertools.product(range(x_BMD.shape[1]), repeat=order)
    mixed = [one for one in tuples if len(set(one)) > 1]
    return sum((a_BMD[:, list(one)].prod(1).sum(1) for one in mixed), start=a_BMD.new_zeros(len(a_BMD)))


# ---- pairs and triples ----------------------------------------------------------------------------------------------

KEPT = [("pairs", 2, "all"), ("pairs", 2, PAIRS), ("triples", 3, "all"), ("triples", 3, TRIPLES)]
kept_sets = pytest.mark.parametrize(("op", "size", "keep"), KEPT, ids=["pairs", "3 pairs", "triples", "3 triples"])
both_ops = pytest.mark.parametrize(("op", "size"), [("pairs", 2), ("triples", 3)])


@kept_sets
@pytest.mark.parametrize("out", ["sum", "each"])
@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize("weight", ["one", "scalar"])
def test_products_by_brute_force(
    x_BMD: Tensor, op: str, size: int, keep: Any, out: str, norm: str, weight: str
) -> None:
    module = module_of({"op": op, "keep": keep, "out": out, "norm": norm, "weight": weight})
    sets = list(itertools.combinations(range(M), size)) if keep == "all" else positions(keep)
    expected = brute_products(x_BMD, sets)
    if norm == "batch":
        expected = (expected - expected.mean(0)) / (expected.var(0, correction=0) + EPS).sqrt()
    if weight == "scalar":
        (learned,) = module.parameters()
        expected = expected * learned
    expected = expected if out == "each" else expected.sum(1, keepdim=True)
    torch.testing.assert_close(module([x_BMD]), expected)


def test_pairs_with_weight_one_are_fm(x_BMD: Tensor) -> None:
    module = Products(M, list(itertools.combinations(range(M), 2)), learned=True, norm=False, each=False).double()
    torch.testing.assert_close(module(x_BMD), FM()(x_BMD))  # fresh weights are 1


def test_triples_with_weight_one_are_the_third_elementary_polynomial(x_BMD: Tensor) -> None:
    """e3 = (s1³ - 3 s1 s2 + 2 s3) / 6 in power sums s."""
    s1, s2, s3 = (x_BMD.pow(power).sum(1) for power in (1, 2, 3))
    expected = ((s1**3 - 3 * s1 * s2 + 2 * s3) / 6).sum(1, keepdim=True)
    torch.testing.assert_close(module_of({"op": "triples"})([x_BMD]), expected)


@both_ops
def test_gates_start_at_the_published_value(op: str, size: int) -> None:
    node = {"op": op, "weight": "scalar", "out": "each"}
    for norm, start in (("batch", GATE), ("none", 1.0)):
        (weight,) = built(described({**node, "norm": norm})).nodes[f"{op}:q"].parameters()
        torch.testing.assert_close(weight.data, torch.full((math.comb(M, size),), start))
    assert GATE == 0.6


@both_ops
@pytest.mark.parametrize("factor", [10.0, 1e-3])
def test_the_gates_see_no_scale_of_an_embedding(op: str, size: int, factor: float) -> None:
    """One field's embeddings times a factor: the same output, and the same gradient of the gates."""
    seen: list[tuple[Tensor, Tensor]] = []
    for scale in (1.0, factor):
        model = built(described({"op": op, "weight": "scalar", "norm": "batch"})).double().train()
        model.get_parameter("tables.bags.embedding_bags.e/item.weight").data.mul_(scale)
        module: Any = model.nodes[f"{op}:q"].op
        module.norm.eps = 1e-30
        output_B = model(exact(batch_of(mixed_schema(), 30)))
        functional.softplus(output_B).sum().backward()  # type: ignore[no-untyped-call]
        seen.append((output_B.detach(), module.weight.grad))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-7, atol=1e-9)
    assert seen[0][1].abs().min() > 1e-3


@both_ops
def test_without_a_norm_the_gates_see_the_scale(op: str, size: int) -> None:
    seen: list[Tensor] = []
    for scale in (1.0, 10.0):
        model = built(described({"op": op, "weight": "scalar", "out": "each"}))
        model.get_parameter("tables.bags.embedding_bags.e/item.weight").data.mul_(scale)
        seen.append(model(batch_of(mixed_schema(), 30)).detach())
    assert not torch.allclose(seen[0], seen[1], rtol=0.1)


@both_ops
def test_each_normalised_product_has_mean_0_and_variance_1(x_BMD: Tensor, op: str, size: int) -> None:
    module = module_of({"op": op, "norm": "batch", "out": "each"}).train()
    module.op.norm.eps = 1e-30
    output_BS = module([torch.cat([x_BMD, 3 * x_BMD.flip(0) + 1])])
    zeros = output_BS.new_zeros(math.comb(M, size))
    torch.testing.assert_close(output_BS.mean(0), zeros)
    torch.testing.assert_close(output_BS.var(0, correction=0), zeros + 1)


@both_ops
def test_in_evaluation_a_product_does_not_depend_on_the_batch(x_BMD: Tensor, op: str, size: int) -> None:
    module = module_of({"op": op, "norm": "batch", "weight": "scalar"})
    module.train()([x_BMD])
    module.eval()
    torch.testing.assert_close(module([x_BMD])[2:3], module([x_BMD[2:3]]))


@pytest.mark.parametrize(
    "node",
    [{"op": "pairs"}, {"op": "triples"}, {"op": "groups", "order": 1, "sets": SETS}],
    ids=["pairs", "triples", "groups"],
)
def test_a_batch_of_one_row_takes_the_running_statistics(x_BMD: Tensor, node: Data) -> None:
    """The last batch of an epoch may be one row, which has no variance."""
    module = module_of({**node, "norm": "batch"}).train()
    module([x_BMD])
    output = module([x_BMD[:1]])
    torch.testing.assert_close(output, module.eval()([x_BMD[:1]]))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("size", [2, 3])
def test_gradients_of_products(x_BMD: Tensor, norm: bool, size: int) -> None:
    sets = list(itertools.combinations(range(M), size))[1:]
    check_gradients(Products(M, sets, learned=True, norm=norm, each=True), x_BMD)


def check_gradients(module: nn.Module, x_BMD: Tensor) -> None:
    """Of the input (a part of it) and of all weights, against finite differences."""
    module, x_BMD = module.double(), x_BMD[:3, :, :2].clone().requires_grad_()
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in module.named_parameters()}

    def call(x_BMD: Tensor, *values: Tensor) -> Tensor:
        output: Tensor = functional_call(module, dict(zip(weights, values, strict=True)), (x_BMD,))
        return output

    assert torch.autograd.gradcheck(call, (x_BMD, *weights.values()))


# ---- groups ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    order=st.sampled_from([2, 3, 4]),
    masks=st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=3),
    width=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_power_sums_are_sums_over_tuples_that_are_not_constant(
    order: int, masks: list[list[bool]], width: int, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x_BMD = torch.randn(3, 4, width, generator=draw, dtype=torch.float64)
    weight_GM = torch.randn(len(masks), 4, generator=draw, dtype=torch.float64) * torch.tensor(masks)
    expected = torch.stack([brute_group(x_BMD, weight_M, order) for weight_M in weight_GM], 1)
    torch.testing.assert_close(group_interactions(x_BMD, weight_GM, order), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_a_group_of_one_field_or_none_is_worth_0(x_BMD: Tensor, order: int) -> None:
    weight_GM = torch.diag(torch.arange(M, dtype=torch.float64) - 1.5)
    weight_GM[-1] = 0
    output_BG = group_interactions(x_BMD, weight_GM, order)
    torch.testing.assert_close(output_BG, output_BG.new_zeros(B, M), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_groups_by_brute_force(x_BMD: Tensor, order: int, norm: str) -> None:
    module = module_of({"op": "groups", "order": order, "sets": SETS, "norm": norm})
    x = x_BMD
    if norm == "batch":
        x = (x - x.mean(0)) / (x.var(0, correction=0) + EPS).sqrt()
    expected = [brute_group(x, weight_M, order) for weight_M in weights_of(module)]
    torch.testing.assert_close(module([x_BMD]), torch.stack(expected, 1))


def weights_of(module: Any) -> Tensor:
    """(G, M): the weights of each group's fields in field order, one group after the other, and 0 outside."""
    weight_GM, weights = torch.zeros(len(SETS), M, dtype=torch.float64), iter(module.op.weight.tolist())
    for group, one in enumerate(SETS):
        for place in sorted(map(ALL.index, one)):
            weight_GM[group, place] = next(weights)
    assert next(weights, None) is None
    return weight_GM


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_groups_of_order_1_are_weighted_sums(x_BMD: Tensor, norm: str) -> None:
    node = {"op": "groups", "order": 1, "sets": SETS, "norm": norm}
    module = module_of(node)
    x = (x_BMD - x_BMD.mean(0)) / (x_BMD.var(0, correction=0) + EPS).sqrt() if norm == "batch" else x_BMD
    expected = torch.cat([(weight_M[:, None] * x).sum(1) for weight_M in weights_of(module)], 1)
    torch.testing.assert_close(module([x_BMD]), expected)
    assert expected.shape == (B, len(SETS) * D)
    assert infer(described(node))["q"] == V(len(SETS) * D)


def test_a_group_of_all_fields_with_weight_one_is_twice_fm(x_BMD: Tensor) -> None:
    module = module_of({"op": "groups", "order": 2, "sets": [list(ALL)]})
    module.op.weight.data.fill_(1)
    torch.testing.assert_close(module([x_BMD]), 2 * FM()(x_BMD))


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_gradients_of_group_interactions(x_BMD: Tensor, order: int) -> None:
    weight_GM = torch.randn(3, M, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    inputs = (x_BMD[:2, :, :2].clone().requires_grad_(), weight_GM.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, weight: group_interactions(x, weight, order), inputs)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("norm", [False, True])
def test_gradients_of_groups(x_BMD: Tensor, order: int, norm: bool) -> None:
    sets = [tuple(sorted(map(ALL.index, one))) for one in SETS]
    check_gradients(Groups(M, 2, sets, order, norm), x_BMD)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_bf16_does_not_reach_the_power_sums(order: int) -> None:
    x_BMD = 3 + torch.randn(B, M, D, generator=torch.Generator().manual_seed(5))
    weight_GM = torch.ones(2, M)
    exact_BG = group_interactions(x_BMD, weight_GM, order)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(group_interactions(x_BMD, weight_GM, order), exact_BG)
        assert group_interactions(x_BMD.bfloat16(), weight_GM, order).dtype == torch.float32


# ---- counts ---------------------------------------------------------------------------------------------------------

COUNTED: list[Data] = [
    *(
        {"op": op, "keep": keep, "weight": weight, "norm": norm, "out": out}
        for op, _, keep in KEPT
        for weight in ("one", "scalar")
        for norm in ("none", "batch")
        for out in ("sum", "each")
    ),
    *(
        {"op": "groups", "order": order, "sets": SETS, "norm": norm}
        for order in (1, 2, 3)
        for norm in ("none", "batch")
    ),
    {"op": "groups", "order": 1, "sets": [["user"]]},
    {"op": "groups", "order": 3, "sets": [["user", "item"]], "dim": 2},
    {"op": "triples", "dim": 2, "weight": "scalar"},
]


@pytest.mark.parametrize("node", COUNTED, ids=[str(list(node.values())) for node in COUNTED])
def test_counted_parameters_are_built(node: Data) -> None:
    description = described(node)
    model, counts = built(description), count(description)
    assert parameters(model.table_parameters()) == counts.tables
    assert parameters(model.lift_parameters()) == counts.lifts
    assert parameters(model.dense_parameters()) == counts.lifts + counts.dense
    assert counts.flops > 0
    batch = batch_of(mixed_schema())
    assert model(batch).shape == (8,)
    fields = len(model.architecture.views["e"].encoders)
    value = model.nodes[f"{node['op']}:q"]([torch.randn(8, fields, D)])
    assert value.shape == (8, infer(description)["q"].width)  # type: ignore[union-attr]


def test_counts_by_hand() -> None:
    def own(node: Data) -> tuple[int, int]:
        """Weights and multiply-adds of the node, without the tables and the head's bias and map."""
        with_node, without = count(described(node)), count(described({"op": "fm"}))
        width = infer(described(node))["q"].width  # type: ignore[union-attr]
        mapped = width if width > 1 else 0
        fm = (M + 1) * D
        return with_node.dense - without.dense - mapped, with_node.flops - without.flops + fm - mapped

    assert own({"op": "pairs", "keep": PAIRS, "weight": "scalar", "norm": "batch"}) == (3, 3 * (D + 1))
    assert own({"op": "triples", "keep": TRIPLES, "weight": "scalar", "out": "each"}) == (3, 3 * (2 * D + 1))
    assert own({"op": "triples", "keep": TRIPLES}) == (0, 3 * (2 * D + 1))
    members = 2 + 3 + 5 + 2
    assert own({"op": "groups", "order": 1, "sets": SETS}) == (members, members * D)
    assert own({"op": "groups", "order": 2, "sets": SETS}) == (members, (members + members + 4) * D)
    assert own({"op": "groups", "order": 3, "sets": SETS}) == (members, (members + 2 * (members + 4)) * D)


def group_flops(order: int, fields: int) -> int:
    """Multiply-adds of three groups, each of half of the fields."""
    names = [f"f{place}" for place in range(fields)]
    sets = [names[: fields // 2], names[fields // 2 :], names[::2]]
    data = {
        "task": "ctr",
        "fields": {name: {"kind": "categorical", "cardinality": 5} for name in names},
        "views": {"e": {"encoders": {name: {"kind": "table", "dim": 8} for name in names}}},
        "nodes": [{"id": "q", "op": "groups", "in": ["e"], "order": order, "sets": sets}],
        "head": {"mode": "sum", "in": ["q"]},
    }
    return count(Architecture.from_dict(data)).flops


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_cost_of_groups_is_linear_in_the_fields(order: int) -> None:
    """Not C(M, order): equal steps in the number of fields cost the same."""
    eight, sixteen, twenty_four = (group_flops(order, fields) for fields in (8, 16, 24))
    assert twenty_four - sixteen == sixteen - eight > 0
    assert sixteen <= 2 * eight


# ---- refusals -------------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Data, list[str]]] = [
    ({"op": "pairs", "norm": "batch", "weight": {"attention": 3}}, ["norm: batch", "weight one or scalar"]),
    ({"op": "pairs", "out": "each", "weight": {"attention": 3}}, ["out: each", "weight one or scalar"]),
    ({"op": "pairs", "norm": "batch", "out": "vector"}, ["norm: batch", "out sum or each"]),
    ({"op": "pairs", "norm": "batch", "out": "linear"}, ["norm: batch", "out sum or each"]),
    ({"op": "pairs", "keep": []}, ["keep must list one set or more"]),
    ({"op": "pairs", "norm": "layer"}, ["norm", "'none' or 'batch'"]),
    ({"op": "triples", "in": ["e.user", "e.item"]}, ["three fields or more"]),
    ({"op": "triples", "keep": [["user", "item", "zip"]]}, ["keep", "no field 'zip'", "site.id"]),
    ({"op": "triples", "keep": [["user", "item", "user"]]}, ["keep", "three different fields"]),
    ({"op": "triples", "keep": [["user", "item", "age"], ["age", "user", "item"]]}, ["keep", "each once"]),
    ({"op": "triples", "keep": [["user", "item"]]}, ["keep"]),
    ({"op": "triples", "out": "vector"}, ["out", "'sum' or 'each'"]),
    ({"op": "triples", "weight": {"attention": 3}}, ["weight", "'one' or 'scalar'"]),
    ({"op": "triples", "in": ["e", "e.user"], "keep": TRIPLES}, ["equal name"]),
    ({"op": "triples", "in": ["ragged"]}, ["inputs are [2, 4] wide", "align"]),
    ({"op": "triples", "in": ["s"]}, ["'s' is a sequence"]),
    ({"op": "groups", "order": 2, "sets": [["user", "item"], ["age"]]}, ["sets", "two different fields"]),
    ({"op": "groups", "order": 3, "sets": [["age"]]}, ["sets", "different fields"]),
    ({"op": "groups", "order": 2, "sets": [["age", "age"]]}, ["sets", "two different fields"]),
    ({"op": "groups", "order": 1, "sets": [["age", "age"]]}, ["sets", "each once"]),
    ({"op": "groups", "order": 1, "sets": [["age"], []]}, ["sets", "one field or more"]),
    ({"op": "groups", "order": 2, "sets": []}, ["sets", "at least 1 item"]),
    ({"op": "groups", "order": 2, "sets": [["user", "zip"]]}, ["sets", "no field 'zip'", "site.id"]),
    ({"op": "groups", "order": 4, "sets": SETS}, ["order", "1, 2 or 3"]),
    ({"op": "groups", "sets": SETS}, ["order", "required"]),
    ({"op": "groups", "order": 2}, ["sets", "required"]),
    ({"op": "groups", "order": 2, "sets": "all"}, ["sets"]),
    ({"op": "groups", "order": 2, "in": ["e", "e.user"], "sets": SETS}, ["sets", "equal name"]),
    ({"op": "groups", "order": 2, "in": ["ragged"], "sets": [["user", "item"]]}, ["inputs are [2, 4] wide"]),
]


@pytest.mark.parametrize(("node", "words"), REFUSED, ids=[str(list(node.values())) for node, _ in REFUSED])
def test_wrong_nodes_are_refused_by_name(node: Data, words: list[str]) -> None:
    table = {"kind": "table"}
    views = {
        "e": view(D, *ALL),
        "ragged": {
            "encoders": {"user": {**table, "dim": 2}, "item": {**table, "dim": 4}, "site.id": {**table, "dim": 4}}
        },
        "s": {"encoders": {"history": {**table, "dim": D}}},
    }
    with pytest.raises(ArchitectureError) as caught:
        infer(architecture(views, [{"id": "culprit", "in": ["e"], **node}], ["culprit"]))
    message = str(caught.value)
    assert message.startswith("node 'culprit': ")
    assert "\n" not in message
    assert all(word in message for word in words), message


# ---- hashes ---------------------------------------------------------------------------------------------------------

LISTING = {
    "pairs": ({"op": "pairs", "out": "each"}, "keep", PAIRS),
    "triples": ({"op": "triples", "norm": "batch"}, "keep", TRIPLES),
    "groups": ({"op": "groups", "order": 2}, "sets", SETS),
}
listing = pytest.mark.parametrize(("node", "key", "sets"), LISTING.values(), ids=LISTING)


@listing
@given(data=st.data())
def test_the_hash_knows_no_order_of_sets(node: Data, key: str, sets: list[list[str]], data: st.DataObject) -> None:
    # The order of groups is that of the output; that of pairs and triples is the fields'.
    outer = data.draw(st.permutations(sets)) if key == "keep" else sets
    shuffled = [data.draw(st.permutations(one)) for one in outer]
    assert described({**node, key: shuffled}).hash == described({**node, key: sets}).hash


@listing
def test_the_hash_knows_the_sets(node: Data, key: str, sets: list[list[str]]) -> None:
    other = [[*sets[0][:-1], next(name for name in ALL if name not in sets[0])], *sets[1:]]
    seen = [described({**node, key: one}).hash for one in (sets, other, sets[:-1], [*sets[1:], sets[1]])]
    assert len(set(seen[:3])) == 3
    if key == "sets":  # a group may be there twice
        assert seen[3] not in seen[:3]


def test_the_hash_knows_the_settings() -> None:
    nodes: list[Data] = [
        *(
            {"op": op, "norm": norm, "out": out}
            for op in ("pairs", "triples")
            for norm in ("none", "batch")
            for out in ("sum", "each")
        ),
        {"op": "triples", "weight": "scalar"},
        *(
            {"op": "groups", "order": order, "sets": SETS, "norm": norm}
            for order in (1, 2, 3)
            for norm in ("none", "batch")
        ),
    ]
    assert len({described(node).hash for node in nodes}) == len(nodes)


def fed(names: Sequence[str], node: Data, key: str, sets: list[list[str]]) -> Architecture:
    """`node` on a view, a layer and itself called by `names`, with the layer in every set in place of `user`."""
    view_name, layer, product = names
    own = [[layer if name == "user" else name for name in one] for one in sets]
    return architecture(
        {view_name: view(D, *ALL[1:]), "other": view(D, "user")},
        [
            {"id": layer, "op": "mlp", "in": ["other"], "units": [D]},
            {"id": product, "in": [view_name, layer], **node, key: own},
        ],
        [product],
    )


@listing
def test_the_hash_knows_no_names_of_nodes_and_views(node: Data, key: str, sets: list[list[str]]) -> None:
    expected = fed(("e", "m", "q"), node, key, sets).hash
    assert fed(("zz", "a", "0"), node, key, sets).hash == expected
    assert fed(("0", "z", "m"), node, key, sets).hash == expected


@listing
@pytest.mark.parametrize("name", ["item", "age"])
def test_a_view_or_node_may_be_called_as_a_field(node: Data, key: str, sets: list[list[str]], name: str) -> None:
    expected = fed(("e", "m", "q"), node, key, sets).hash
    assert fed((name, "m", "q"), node, key, sets).hash == expected
    assert fed(("e", "m", name), node, key, sets).hash == expected


@listing
def test_twins_that_list_other_sets_may_be_swapped(node: Data, key: str, sets: list[list[str]]) -> None:
    """In a sum: the two stand in any order, and either may be first in the list of nodes."""
    first = {"id": "first", "in": ["e"], **node, key: sets[:2]}
    second = {"id": "second", "in": ["e"], **node, key: sets[1:]}
    views = {"e": view(D, *ALL)}
    expected = architecture(views, [first, second], ["first", "second"]).hash
    assert architecture(views, [second, first], ["first", "second"]).hash == expected
    assert architecture(views, [first, second], ["second", "first"]).hash == expected


def test_a_field_called_by_a_number_is_no_node() -> None:
    """Every pair of a layer and three fields is another model, however the canonical form numbers its parts."""
    names = [str(number) for number in range(3)]
    data = {
        "task": "ctr",
        "fields": {name: {"kind": "categorical", "cardinality": 5} for name in names},
        "views": {"e": {"encoders": {name: {"kind": "table", "dim": D} for name in names}}},
        "head": {"mode": "sum", "in": ["q"]},
    }
    layer = {"id": "m", "op": "mlp", "in": ["e"], "units": [D]}
    hashes = set()
    for pair in itertools.combinations([*names, "m"], 2):
        pairs = {"id": "q", "op": "pairs", "in": ["e", "m"], "keep": [pair]}
        hashes.add(Architecture.from_dict({**data, "nodes": [layer, pairs]}).hash)
    assert len(hashes) == 6


@given(st.sets(st.sets(st.integers(0, M - 1), min_size=2).map(lambda one: tuple(sorted(one))), min_size=1))
def test_products_of_any_order_by_brute_force(sets: set[tuple[int, ...]]) -> None:
    x_BMD = torch.randn(B, M, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.stack([x_BMD[:, list(one)].prod(1) for one in sorted(sets)], 1)
    torch.testing.assert_close(Hadamard(M, sorted(sets))(x_BMD), expected)


def test_all_products_of_two_fields_add_up_to_fm(x_BMD: Tensor) -> None:
    """Summed through a fixed vector of ones: the closed form of FM's second order."""
    pairs = list(itertools.combinations(range(M), 2))
    summed_B1 = Hadamard(M, pairs)(x_BMD).sum(1) @ torch.ones(D, 1, dtype=x_BMD.dtype)
    torch.testing.assert_close(summed_B1, FM()(x_BMD))


def test_listed_products_stand_in_the_order_of_the_fields(x_BMD: Tensor) -> None:
    node = {"op": "hadamard", "sets": [["age", "item"], ["item", "user"], ["site.id", "age", "price"]]}
    nodes = [{"id": "q", "in": ["e"], **node}]
    module = built(architecture({"e": view(D, *ALL)}, nodes, ["q"])).nodes["hadamard:q"].op
    expected = [x_BMD[:, [0, 2]].prod(1), x_BMD[:, [1, 3, 4]].prod(1), x_BMD[:, [2, 3]].prod(1)]
    torch.testing.assert_close(module(x_BMD), torch.stack(expected, 1))
