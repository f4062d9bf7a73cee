"""Interactions against brute force, and the identities between them."""

import itertools

import pytest
import torch
from torch import Tensor

from tests.trainer.mixed import ALL, architecture, batch_of, built, mixed_schema, view
from trainer.build import Model
from trainer.modules import interactions
from trainer.modules.dropout import Dropout

B, M, D = 5, 6, 3


@pytest.fixture(name="x_BMD")
def fields() -> Tensor:
    return torch.randn(B, M, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def all_pairs(fields: int = M) -> list[tuple[int, int]]:
    return list(itertools.combinations(range(fields), 2))


def randomise(module: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(2)
    for parameter in module.double().parameters():
        parameter.data.normal_()
    return module


def test_fm_is_the_sum_of_all_pairs(x_BMD: Tensor) -> None:
    expected = sum((x_BMD[:, a] * x_BMD[:, b]).sum(1) for a, b in all_pairs())
    torch.testing.assert_close(interactions.FM()(x_BMD)[:, 0], expected)


def test_pairs_with_weight_one_are_fm(x_BMD: Tensor) -> None:
    pairs = interactions.Pairs(interactions.WeightedPairs(M, all_pairs(), learned=False).double(), D, "sum")
    torch.testing.assert_close(pairs(x_BMD), interactions.FM()(x_BMD))


@pytest.mark.parametrize("kept", [all_pairs(), [(0, 3), (2, 5)]])
def test_weighted_pairs(x_BMD: Tensor, kept: list[tuple[int, int]]) -> None:
    module = randomise(interactions.WeightedPairs(M, kept, learned=True))
    expected = sum(module.weight[i] * x_BMD[:, a] * x_BMD[:, b] for i, (a, b) in enumerate(kept))  # type: ignore[index]
    torch.testing.assert_close(module(x_BMD), expected)


def test_attention_pairs(x_BMD: Tensor) -> None:
    kept = [(0, 1), (1, 4), (2, 3)]
    module = randomise(interactions.AttentionPairs(D, 4, kept))
    products = [x_BMD[:, a] * x_BMD[:, b] for a, b in kept]
    scores = torch.stack([module.score(module.hidden(product).relu())[:, 0] for product in products], 1)
    weights = scores.exp() / scores.exp().sum(1, keepdim=True)
    expected = sum(weights[:, i, None] * product for i, product in enumerate(products))
    torch.testing.assert_close(module(x_BMD), expected)


def test_pairs_linear_is_a_map_of_the_vector(x_BMD: Tensor) -> None:
    weighted = interactions.WeightedPairs(M, all_pairs(), learned=False).double()
    module = randomise(interactions.Pairs(weighted, D, "linear"))
    vector = interactions.Pairs(weighted, D, "vector")(x_BMD)
    torch.testing.assert_close(module(x_BMD)[:, 0], vector @ module.projection.weight[0])


def test_ffm_by_brute_force() -> None:
    x_BMPD = torch.randn(B, M, M - 1, D, dtype=torch.float64)

    def vector(field: int, partner: int) -> Tensor:
        return x_BMPD[:, field, [other for other in range(M) if other != field].index(partner)]

    expected = sum((vector(a, b) * vector(b, a)).sum(1) for a, b in all_pairs())
    torch.testing.assert_close(interactions.FFM(M)(x_BMPD)[:, 0], expected)


def test_ffm_with_equal_partner_vectors_is_fm(x_BMD: Tensor) -> None:
    x_BMPD = x_BMD[:, :, None].expand(B, M, M - 1, D)
    torch.testing.assert_close(interactions.FFM(M)(x_BMPD), interactions.FM()(x_BMD))


def test_inner(x_BMD: Tensor) -> None:
    torch.testing.assert_close(interactions.Inner()(x_BMD)[:, 0], x_BMD.prod(1).sum(1))
    two = x_BMD[:, :2]
    torch.testing.assert_close(interactions.Inner()(two)[:, 0], (two[:, 0] * two[:, 1]).sum(1))


@pytest.mark.parametrize("kind", ["sum", "average", "multiply", "max", "min"])
def test_elementwise(x_BMD: Tensor, kind: str) -> None:
    expected = {
        "sum": x_BMD.sum(1),
        "average": x_BMD.sum(1) / M,
        "multiply": x_BMD.prod(1),
        "max": x_BMD.max(1).values,
        "min": x_BMD.min(1).values,
    }
    torch.testing.assert_close(interactions.Elementwise(kind)(x_BMD), expected[kind])


@pytest.mark.parametrize("full", [False, True])
def test_dot(x_BMD: Tensor, full: bool) -> None:
    pairs = itertools.combinations_with_replacement(range(M), 2) if full else all_pairs()
    expected = torch.stack([(x_BMD[:, a] * x_BMD[:, b]).sum(1) for a, b in pairs], 1)
    torch.testing.assert_close(interactions.Dot(M, full)(x_BMD), expected)


def test_cross_vector() -> None:
    module = randomise(interactions.Cross(4, 2, matrix=False))
    x0 = x = torch.randn(B, 4, dtype=torch.float64)
    for weight, bias in zip(module.maps, module.biases, strict=True):
        x = x0 * (x @ weight.weight[0])[:, None] + bias + x
    torch.testing.assert_close(module(x0), x)


def test_cross_matrix() -> None:
    module = randomise(interactions.Cross(4, 2, matrix=True))
    x0 = x = torch.randn(B, 4, dtype=torch.float64)
    for layer in module.maps:
        x = x0 * (x @ layer.weight.T + layer.bias) + x
    torch.testing.assert_close(module(x0), x)


@pytest.mark.parametrize("matrix", [False, True])
def test_cross_with_zero_weights_is_the_identity(matrix: bool) -> None:
    module = interactions.Cross(4, 3, matrix)
    for parameter in module.parameters():
        parameter.data.zero_()
    x = torch.randn(B, 4)
    assert torch.equal(module(x), x)


def test_field_attention(x_BMD: Tensor) -> None:
    heads, dim = 2, 4
    module = randomise(interactions.FieldAttention(D, dim, heads, residual=True))
    outputs = []
    for head in range(heads):
        rows = slice(head * dim, (head + 1) * dim)
        query, key, value = (x_BMD @ part.weight[rows].T for part in (module.query, module.key, module.value))
        weights = (torch.einsum("bia,bja->bij", query, key) / dim**0.5).softmax(2)
        outputs.append(torch.einsum("bij,bja->bia", weights, value))
    expected = (torch.cat(outputs, 2) + x_BMD @ module.residual.weight.T).relu()
    torch.testing.assert_close(module(x_BMD), expected)


def test_attention_rows_sum_to_one(x_BMD: Tensor) -> None:
    module = randomise(interactions.FieldAttention(D, 4, 2, residual=False))
    weights = module.attention(x_BMD)
    assert weights.shape == (B, 2, M, M)
    torch.testing.assert_close(weights.sum(3), torch.ones_like(weights[..., 0]))


def test_batch_norm_of_one_row_uses_running_statistics() -> None:
    norm = interactions.BatchNorm(3).train()
    norm(torch.randn(50, 3) * 4 + 2)
    row = torch.randn(1, 3)
    torch.testing.assert_close(norm(row), norm.eval()(row))


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5, 0.9, 1e-6])
def test_dropout_rate_and_scale(rate: float) -> None:
    torch.manual_seed(0)
    dropped = Dropout(rate).train()(torch.ones(1_000_003))
    kept = dropped[dropped != 0]
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - rate)))
    assert (dropped == 0).float().mean().item() == pytest.approx(rate, abs=5 * (rate / 1e6) ** 0.5 + 2e-5)
    x = torch.randn(7)
    assert torch.equal(Dropout(rate).eval()(x), x)


def test_dropout_gradient_is_its_mask() -> None:
    x = torch.ones(1000, requires_grad=True)
    y = Dropout(0.3).train()(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())


def outputs(first: Model, second: Model) -> tuple[Tensor, Tensor]:
    batch = batch_of(mixed_schema())
    return first.eval()(batch), second.eval()(batch)


def copy_tables(source: Model, target: Model) -> None:
    target.load_state_dict({**target.state_dict(), **{k: v for k, v in source.state_dict().items() if "table" in k}})


def test_whole_models_pairs_and_fm_agree() -> None:
    fm = built(architecture({"e": view(4, *ALL)}, [{"id": "q", "op": "fm", "in": ["e"]}], ["q"]))
    pairs = built(architecture({"e": view(4, *ALL)}, [{"id": "q", "op": "pairs", "in": ["e"]}], ["q"]))
    torch.testing.assert_close(*outputs(fm, pairs))


def test_lifting_with_identities_changes_nothing() -> None:
    """AutoDim with every dim at the full width and identity maps is FM."""
    nodes = [{"id": "q", "op": "fm", "in": ["e"]}]
    plain = built(architecture({"e": view(4, "user", "item")}, nodes, ["q"]))
    wide = {"encoders": view(4, "user", "item")["encoders"], "align": "lift", "width": 5}
    lifted = built(architecture({"e": wide}, nodes, ["q"]))
    copy_tables(plain, lifted)
    for parameter in lifted.lift_parameters():
        parameter.data.copy_(torch.eye(4, 5).expand_as(parameter))
    torch.testing.assert_close(*outputs(plain, lifted))


def test_padding_changes_no_inner_product() -> None:
    views = {"a": view(2, "user", "site.id"), "b": view(5, "item", "age")}
    padded = architecture(views, [{"id": "q", "op": "fm", "in": ["a", "b"], "align": "pad"}], ["q"])
    model = built(padded).eval()
    batch = batch_of(mixed_schema())
    rows = model.tables(batch)
    user, site = rows.fields([("a/user", "user"), ("a/site%2Eid", "site.id")]).unbind(1)
    item = rows.fields([("b/item", "item")]).squeeze(1)
    age = batch.numeric[:, 1:] * model.views["view:b"].numbers["1"].weight  # type: ignore[index,union-attr]
    fields = [user, site, item[:, :2], age[:, :2]]
    expected = sum((a * b).sum(1) for a, b in itertools.combinations(fields, 2))
    expected = expected + (item[:, 2:] * age[:, 2:]).sum(1) + model.head.bias
    torch.testing.assert_close(model(batch), expected)


def test_dcn_with_zero_cross_weights_is_layers_beside_a_linear_model() -> None:
    nodes = [
        {"id": "k", "op": "cross", "in": ["e"], "layers": 2},
        {"id": "m", "op": "mlp", "in": ["e"], "units": [4]},
    ]
    dcn = built(architecture({"e": view(3, *ALL)}, nodes, ["k", "m"], mode="linear"))
    plain = built(architecture({"e": view(3, *ALL)}, nodes[1:], ["e", "m"], mode="linear"))
    plain.load_state_dict({k: v for k, v in dcn.state_dict().items() if "cross" not in k})
    for name, parameter in dcn.named_parameters():
        if "cross" in name:
            parameter.data.zero_()
    torch.testing.assert_close(*outputs(dcn, plain))


def test_squeeze_and_excitation_by_hand(x_BMD: Tensor) -> None:
    module = randomise(interactions.SqueezeExcitation(M, 2))
    output = module(x_BMD)
    for row in range(B):
        means_M = torch.stack([x_D.sum() / D for x_D in x_BMD[row]])
        hidden_2 = (module.squeeze.weight @ means_M + module.squeeze.bias).clamp(min=0)  # type: ignore[operator]
        logits_M = module.excite.weight @ hidden_2 + module.excite.bias  # type: ignore[operator]
        for field in range(M):
            torch.testing.assert_close(output[row, field], x_BMD[row, field] / (1 + (-logits_M[field]).exp()))


def test_squeeze_and_excitation_with_open_gates_is_identity(x_BMD: Tensor) -> None:
    module = randomise(interactions.SqueezeExcitation(M, 2))
    module.excite.weight.data.zero_()  # type: ignore[operator, union-attr]
    module.excite.bias.data.fill_(50.0)  # type: ignore[operator, union-attr]
    assert torch.equal(module(x_BMD), x_BMD)


def test_layers_with_activations_of_their_own_and_a_shortcut() -> None:
    nodes = [
        {"id": "m", "op": "mlp", "in": ["e"], "units": [4, 3], "activation": ["silu", "tanh"], "shortcut": "linear"}
    ]
    model = built(architecture({"e": view(D, "user", "item")}, nodes, ["m"])).nodes["mlp:m"].op
    x_BN = torch.randn(B, 2 * D)
    first, second = (layer for layer in model.layers if isinstance(layer, torch.nn.Linear))
    hidden = torch.nn.functional.silu(x_BN @ first.weight.T + first.bias)
    expected = (hidden @ second.weight.T + second.bias).tanh() + x_BN @ model.linear.weight.T
    torch.testing.assert_close(model(x_BN), expected)
