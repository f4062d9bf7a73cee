"""Blocks of sequences: each layer by a loop over valid steps; padding and the future never matter; skips vanish."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.trainer.mixed import architecture, batch_of, built, mixed_schema, parameters, view
from tests.trainer.test_sequences import LENGTHS, B, D, T, rows, steps
from trainer.architecture import Architecture
from trainer.modules import behavior, sequences
from trainer.modules.values import Steps
from trainer.shapes import count

Data = dict[str, Any]
Reference = Callable[[nn.Module, Tensor, bool], Tensor]
"""(layer, valid steps (length, D), causal) -> (length, D), written step by step."""


def window(length: int, step: int, kernel: int, dilation: int, causal: bool) -> list[int]:
    """The places that the kernel's taps fall on, first tap first, some of them beyond the ends."""
    reach = (kernel - 1) * dilation
    start = step - (reach if causal else reach // 2)
    return [start + tap * dilation for tap in range(kernel)]


def inside(places: list[int], length: int) -> list[int]:
    return [place for place in places if 0 <= place < length]


def conv_steps(module: nn.Module, x_TD: Tensor, causal: bool) -> Tensor:
    assert isinstance(module, behavior.Conv)
    weight_ODK, bias_O = module.conv.weight, module.conv.bias
    kernel, [dilation] = weight_ODK.shape[2], module.conv.dilation
    outputs = []
    for step in range(len(x_TD)):
        total_O = bias_O
        for tap, place in enumerate(window(len(x_TD), step, kernel, dilation, causal)):
            if 0 <= place < len(x_TD):
                total_O = total_O + weight_ODK[:, :, tap] @ x_TD[place]
        outputs.append(total_O)
    return torch.stack(outputs)


def pool_steps(reduce: Callable[[Tensor], Tensor]) -> Reference:
    def pooled(module: nn.Module, x_TD: Tensor, causal: bool) -> Tensor:
        assert isinstance(module, behavior.MeanPool | behavior.MaxPool)
        length = len(x_TD)
        places = [inside(window(length, step, module.kernel, 1, causal), length) for step in range(length)]
        return torch.stack([reduce(x_TD[one]) for one in places])

    return pooled


def gru_states(gru: nn.GRU, x_TD: Tensor) -> Tensor:
    cell = nn.GRUCell(D, D).to(x_TD.dtype)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in gru.state_dict().items()})
    state_D, states = torch.zeros(D, dtype=x_TD.dtype), []
    for x_D in x_TD:
        state_D = cell(x_D, state_D)
        states.append(state_D)
    return torch.stack(states)


def gru_steps(module: nn.Module, x_TD: Tensor, causal: bool) -> Tensor:
    assert isinstance(module, behavior.Recurrent)
    forth_TD = gru_states(module.gru, x_TD)
    if causal:
        return forth_TD
    assert module.back is not None
    assert module.out is not None
    back_TD = gru_states(module.back, x_TD.flip(0)).flip(0)
    return torch.stack([module.out(torch.cat(pair)) for pair in zip(forth_TD, back_TD, strict=True)])


def attention_steps(module: nn.Module, x_TD: Tensor, causal: bool) -> Tensor:
    assert isinstance(module, behavior.SelfAttention)
    query_THA, key_THA, value_THA = (part.unflatten(1, (module.heads, -1)) for part in module.qkv(x_TD).chunk(3, 1))
    outputs = []
    for step in range(len(x_TD)):
        seen = range(step + 1 if causal else len(x_TD))
        mixed = []
        for head in range(module.heads):
            scores = [query_THA[step, head] @ key_THA[other, head] / (D / module.heads) ** 0.5 for other in seen]
            weights = torch.stack(scores).softmax(0)
            mixed.append(sum(weight * value_THA[other, head] for weight, other in zip(weights, seen, strict=True)))
        outputs.append(module.out(torch.cat(mixed)))
    return torch.stack(outputs)


def forward_steps(module: nn.Module, x_TD: Tensor, causal: bool) -> Tensor:
    assert isinstance(module, behavior.FeedForward)
    first, second = module.maps[0], module.maps[3]
    return torch.stack([second.weight @ (first.weight @ x_D + first.bias).relu() + second.bias for x_D in x_TD])


LAYERS: dict[str, tuple[Data, Reference]] = {
    "conv-1": ({"kind": "conv", "kernel": 1}, conv_steps),
    "conv-2": ({"kind": "conv", "kernel": 2}, conv_steps),
    "conv-3": ({"kind": "conv", "kernel": 3}, conv_steps),
    "dilated": ({"kind": "conv", "kernel": 3, "dilation": 2}, conv_steps),
    "far": ({"kind": "conv", "kernel": 4, "dilation": 5}, conv_steps),
    "mean": ({"kind": "mean_pool", "kernel": 3}, pool_steps(lambda x: x.mean(0))),
    "mean-4": ({"kind": "mean_pool", "kernel": 4}, pool_steps(lambda x: x.mean(0))),
    "max": ({"kind": "max_pool", "kernel": 3}, pool_steps(lambda x: x.amax(0))),
    "gru": ({"kind": "gru"}, gru_steps),
    "attention-1": ({"kind": "attention", "heads": 1}, attention_steps),
    "attention-2": ({"kind": "attention", "heads": 2}, attention_steps),
    "feed_forward": ({"kind": "feed_forward"}, forward_steps),
    "identity": ({"kind": "identity"}, lambda module, x_TD, causal: x_TD),
}
EACH = pytest.mark.parametrize("name", LAYERS)
CAUSAL = pytest.mark.parametrize("causal", [False, True], ids=["both-ways", "causal"])
FREE = ("mean", "mean-4", "max", "identity")
"""Layers without weights."""
POINTWISE = ("conv-1", "feed_forward", "identity")


def described(*nodes: Data) -> Architecture:
    """The nodes in a row on the history, and then the mean."""
    views = {"e": view(D, "item"), "s": {"encoders": {"history": {"kind": "share", "view": "e"}}}}
    chain = [{"id": f"n{i}", "in": [f"n{i - 1}" if i else "s"], **node} for i, node in enumerate(nodes)]
    pool = {"id": "taste", "op": "pool", "in": [chain[-1]["id"] if chain else "s"]}
    return architecture(views, [*chain, pool], ["taste", "e.item"], mode="linear")


def block_of(**settings: Any) -> behavior.Block:
    """What the builder makes of the block, all its weights random, in float64."""
    module = built(described({"op": "seq", **settings})).nodes["seq:n0"].op
    assert isinstance(module, behavior.Block)
    torch.manual_seed(2)
    for weight in module.double().parameters():
        weight.data.normal_()
    return module


def exact(width: int = T) -> Steps:
    short = steps(width)
    return Steps(short.x.double(), short.mask)


@EACH
@CAUSAL
def test_a_layer_by_a_loop_over_valid_steps(name: str, causal: bool) -> None:
    layer, reference = LAYERS[name]
    block = block_of(layer=layer, residual=False, causal=causal)
    output = block(exact())
    assert block.layer(exact()).isfinite().all()
    assert output.x.shape == (B, T, D)
    assert torch.equal(output.mask, exact().mask)
    for row, (x_TD, length) in enumerate(zip(rows(exact()), LENGTHS, strict=True)):
        if length:
            torch.testing.assert_close(output.x[row, :length], reference(block.layer, x_TD, causal))
        assert not output.x[row, length:].any()


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh"])
@pytest.mark.parametrize("residual", [True, False])
def test_a_block_is_norm_layer_activation_and_sum(activation: str, residual: bool) -> None:
    layer = {"kind": "conv", "kernel": 3}
    block = block_of(norm="layer", layer=layer, activation=activation, residual=residual, causal=True)
    acts = {"relu": torch.relu, "gelu": functional.gelu, "silu": functional.silu, "tanh": torch.tanh}
    output = block(exact())
    assert isinstance(block.norm, nn.LayerNorm)
    for row, (x_TD, length) in enumerate(zip(rows(exact()), LENGTHS, strict=True)):
        if length:
            spread_T1 = (x_TD.var(1, unbiased=False, keepdim=True) + block.norm.eps).sqrt()
            normed_TD = (x_TD - x_TD.mean(1, keepdim=True)) / spread_T1 * block.norm.weight + block.norm.bias
            expected_TD = acts[activation](conv_steps(block.layer, normed_TD, causal=True))
            torch.testing.assert_close(output.x[row, :length], expected_TD + x_TD if residual else expected_TD)
        assert not output.x[row, length:].any()


def test_dropout_takes_part_of_what_is_added_and_keeps_its_mean() -> None:
    block = block_of(layer={"kind": "identity"}, dropout=0.25).train()
    wide = Steps(torch.ones(50, 40, D, dtype=torch.float64), torch.ones(50, 40, dtype=torch.bool))
    added = block(wide).x - wide.x
    values, times = added.unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.75], dtype=torch.float64))
    assert float(times[0] / times.sum()) == pytest.approx(0.25, abs=0.03)  # 6 standard deviations of 8,000 draws
    torch.testing.assert_close(block.eval()(wide).x, 2 * wide.x)


@pytest.mark.parametrize("layer", [{"kind": "attention"}, {"kind": "feed_forward"}], ids=lambda layer: layer["kind"])
def test_dropout_is_inside_of_attention_and_feed_forward_too(layer: Data) -> None:
    """What is not dropped of the result differs from the result without dropout by more than its scale."""
    block, dropped = (block_of(layer=layer, residual=False, dropout=rate) for rate in (0.0, 0.5))
    dropped.load_state_dict(block.state_dict())
    before, after = block(exact()).x, dropped.train()(exact()).x
    left = after != 0
    assert left.any()
    assert not torch.allclose(after[left], 2 * before[left])


@EACH
@CAUSAL
def test_padding_matters_neither_by_width_nor_by_content(name: str, causal: bool) -> None:
    block = block_of(norm="layer", layer=LAYERS[name][0], activation="gelu", causal=causal)
    expected, mask_BT = block(exact()).x, exact().mask
    torch.testing.assert_close(block(exact(9)).x, functional.pad(expected, (0, 0, 0, 3)))
    noise_BTD = torch.randn(B, T, D, dtype=torch.float64) * 100
    dirty = Steps(torch.where(mask_BT[..., None], exact().x, noise_BTD), mask_BT)
    torch.testing.assert_close(block(dirty).x, expected)


@EACH
def test_a_causal_block_does_not_see_the_future(name: str) -> None:
    before, later = exact(), exact()
    later.x[3, 4:] += 10.0
    for causal in (True, False):
        block = block_of(layer=LAYERS[name][0], causal=causal)
        first_TD, second_TD = block(before).x[3], block(later).x[3]
        assert torch.equal(first_TD[:4], second_TD[:4]) == (causal or name in POINTWISE)
        assert not torch.allclose(first_TD[4:], second_TD[4:])


@EACH
@CAUSAL
def test_gradients_are_numbers_and_reach_every_weight(name: str, causal: bool) -> None:
    block, sequence = block_of(layer=LAYERS[name][0], activation="gelu", causal=causal), exact()
    sequence.x.requires_grad_()
    block(sequence).x.square().sum().backward()
    assert sequence.x.grad is not None
    assert sequence.x.grad.isfinite().all()
    assert bool(list(block.parameters())) == (name not in FREE)
    for weight in block.parameters():
        assert weight.grad is not None
        assert weight.grad.isfinite().all()
        assert weight.grad.any()


def test_positions_count_back_from_the_last_valid_step() -> None:
    module = sequences.Positions(D, 9, 0.0, 0.5)
    for width in (T, 9):
        output = module(steps(width)).x
        for row, (x_TD, length) in enumerate(zip(rows(steps()), LENGTHS, strict=True)):
            torch.testing.assert_close(output[row, :length], x_TD + module.positions[:length].flip(0))
            assert not output[row, length:].any()


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("norm", ["none", "layer"])
def test_a_block_that_skips_its_layer_is_no_block(norm: str, causal: bool) -> None:
    skip = {"op": "seq", "layer": {"kind": "skip"}, "norm": norm, "activation": "relu", "causal": causal}
    conv = {"op": "seq", "layer": {"kind": "conv", "kernel": 3}, "activation": "relu"}
    batch = batch_of(mixed_schema())
    for with_skips, without in [((skip, skip), ()), ((skip, conv), (conv,)), ((conv, skip, skip), (conv,))]:
        first, second = described(*with_skips), described(*without)
        assert first.hash == second.hash
        assert count(first) == count(second)
        assert torch.equal(built(first)(batch), built(second)(batch))


@EACH
@CAUSAL
def test_a_path_through_blocks_built_apart_is_the_model_with_their_weights(name: str, causal: bool) -> None:
    """What a supernet that holds all layers of all blocks needs in order to score models by its own weights."""
    first = {"op": "seq", "layer": LAYERS[name][0], "norm": "layer", "activation": "silu", "causal": causal}
    second = {"op": "seq", "layer": {"kind": "conv", "kernel": 3}, "causal": causal}
    path = [built(described(one), seed=seed).nodes["seq:n0"].op for seed, one in enumerate((first, second), start=1)]
    model = built(described(first, {"op": "seq", "layer": {"kind": "skip"}}, second))
    for node, block in zip(("seq:n0", "seq:n2"), path, strict=True):
        model.nodes[node].op.load_state_dict(block.state_dict())
    batch = batch_of(mixed_schema())
    rows_of = model.tables(batch)
    sequence = model.views["view:s"](batch, rows_of)
    for block in path:
        sequence = block(sequence)
    item_BD = model.tables(batch).fields([("e/item", "item")])[:, 0]
    both_BN = torch.cat([sequences.Pool("mean")(sequence), item_BD], 1)
    expected_B = both_BN @ model.head.maps[0].weight[0] + model.head.bias
    torch.testing.assert_close(model(batch), expected_B)


@EACH
@CAUSAL
def test_what_is_counted_is_built(name: str, causal: bool) -> None:
    description = described({"op": "seq", "layer": LAYERS[name][0], "norm": "layer", "causal": causal})
    model, counts, alone = built(description), count(description), count(described())
    block = model.nodes["seq:n0"]
    assert counts.dense - alone.dense == parameters(list(block.parameters()))
    assert counts.flops - alone.flops == multiply_adds(name, causal)


def multiply_adds(name: str, causal: bool) -> int:
    """By hand, for D = 4 and the history's 6 steps."""
    layer, steps_of = LAYERS[name][0], 6
    match layer["kind"]:
        case "conv":
            return steps_of * layer["kernel"] * 16
        case "mean_pool" | "max_pool":
            return steps_of * layer["kernel"] * 4
        case "gru":
            one_way = 3 * (16 + 16)
            return steps_of * (one_way if causal else 2 * one_way + 8 * 4)
        case "feed_forward":
            return steps_of * 2 * 16
        case "identity":
            return 0
        case _:
            return steps_of * 4 * 16 + 2 * steps_of * steps_of * 4
