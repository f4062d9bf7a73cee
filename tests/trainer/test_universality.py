"""AMEIR's claim that its space holds most representative models (Zhao 2021, universality): each is written as a
description in that space, built, and equal to plain torch code of its own with the same weights.

Where the zoo has the model in other ops, the two are equal with copied weights as well.
"""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.trainer.mixed import batch_of, built, mixed_schema, table
from trainer import zoo
from trainer.architecture import Architecture, fields_of
from trainer.build import Model
from trainer.schema import DatasetSchema
from trainer.space import fill_params, pinned

Data = dict[str, Any]
SPACE = {"positions", "seq", "pool", "last", "target_attention", "hadamard", "se", "mlp", "elementwise", "inner"}
FIELDS = ("user", "item", "site.id")
PAIRS = [list(pair) for pair in combinations(FIELDS, 2)]
D, HEADS, UNITS = 6, 2, (8, 5)


def schema() -> DatasetSchema:
    """Categories and a history only."""
    mixed = mixed_schema()
    return mixed.model_copy(update={"fields": tuple(field for field in mixed.fields if field.kind != "numeric")})


BATCH = batch_of(schema(), rows=12)


# ---- the models as descriptions in AMEIR's space --------------------------------------------------------------------


def described(views: Data, nodes: Sequence[Data], head: Sequence[str], mode: str = "sum") -> Architecture:
    data = {"task": "ctr", "fields": fields_of(schema()), "views": views, "nodes": list(nodes)}
    return Architecture.from_dict({**data, "head": {"mode": mode, "in": list(head)}})


def hand_made(name: str) -> Architecture:
    """The zoo's model, as wide as the others here and without dropout."""
    values = {"embedding.dim": D, "mlp.units": UNITS, "attention.heads": HEADS, "attention.units": 4}
    values |= {"mlp.dropout": 0.0, "attention.dropout": 0.0}
    if name == "din":
        values["attention.units"] = [4]
    return Architecture.from_dict(fill_params(pinned(zoo.template(name, schema()), values), {}))


def embedded(dim: int, *fields: str) -> Data:
    return {"encoders": {field: table(dim) for field in fields}}


HISTORY = {"encoders": {"history": {"kind": "share", "view": "e"}}}
MATCHED = {"bias": embedded(1, "item"), "e": embedded(D, "item"), "history": HISTORY}
CROSSED = {"first": embedded(1, *FIELDS), "e": embedded(D, *FIELDS)}
PRODUCT = {"id": "product", "op": "inner", "in": ["state", "e.item"]}
CONV = {"kind": "conv", "kernel": 3}


def blocks(*settings: Data) -> list[Data]:
    """One upon the other, called b0, b1 and so on."""
    inputs = ["history", *(f"b{n}" for n in range(len(settings)))]
    return [{"id": f"b{n}", "op": "seq", "in": [inputs[n]], **one} for n, one in enumerate(settings)]


def caser() -> Architecture:
    nodes = [
        *blocks({"layer": CONV, "activation": "relu", "residual": False}),
        {"id": "taste", "op": "pool", "kind": "max", "in": ["b0"]},
        {"id": "state", "op": "mlp", "in": ["taste", "user"], "units": [D]},
        PRODUCT,
    ]
    return described({**MATCHED, "user": embedded(D, "user")}, nodes, ["bias", "product"])


def din() -> Architecture:
    nodes = [
        *blocks(*[{"layer": {"kind": "skip"}, "norm": "layer", "activation": "relu"}] * 3),
        {"id": "taste", "op": "target_attention", "in": ["b2", "e.item"], "units": [4]},
        {"id": "deep", "op": "mlp", "in": ["e", "taste"], "units": UNITS},
    ]
    return described({"e": embedded(D, *FIELDS), "history": HISTORY}, nodes, ["deep"], mode="linear")


SUM_OF_PAIRS = [
    {"id": "products", "op": "hadamard", "in": ["e"], "sets": PAIRS},
    {"id": "vector", "op": "elementwise", "kind": "sum", "in": ["products"]},
    {"id": "pairs", "op": "inner", "in": ["vector"]},
]


def fm() -> Architecture:
    return described(CROSSED, SUM_OF_PAIRS, ["first", "pairs"])


def afm() -> Architecture:
    """Weights of pairs by squeeze and excitation in place of a softmax."""
    nodes = [
        SUM_OF_PAIRS[0],
        {"id": "weighted", "op": "se", "in": ["products"]},
        {"id": "vector", "op": "elementwise", "kind": "sum", "in": ["weighted"]},
    ]
    return described(CROSSED, nodes, ["first", "vector"])


def deepfm() -> Architecture:
    deep = {"id": "deep", "op": "mlp", "in": ["e"], "units": UNITS, "activation": ["relu"] * 2}
    return described(CROSSED, [*SUM_OF_PAIRS, deep], ["first", "pairs", "deep"])


def wide_deep() -> Architecture:
    """The shortcut is the wide part; each embedding holds one number more, for its first-order weight."""
    nodes = [
        {"id": "crosses", "op": "hadamard", "in": ["e"], "sets": [["user", "item"], list(FIELDS)]},
        {
            **{"id": "both", "op": "mlp", "in": ["e", "crosses"], "units": [*UNITS, 1], "shortcut": "linear"},
            "activation": ["relu", "relu", "identity"],
        },
    ]
    return described({"e": embedded(D + 1, *FIELDS)}, nodes, ["both"])


# ---- the models in plain torch --------------------------------------------------------------------------------------


class Weights:
    """A model's weights by the ends of their names."""

    def __init__(self, model: Model) -> None:
        self.named = model.state_dict()

    def __call__(self, end: str) -> Tensor:
        [found] = [weight for name, weight in self.named.items() if name.endswith(end)]
        return found

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self(f"{name}.weight").T + self(f"{name}.bias")

    def normed(self, name: str, x_TD: Tensor) -> Tensor:
        centred_TD = x_TD - x_TD.mean(1, keepdim=True)
        spread_T1 = (centred_TD.square().mean(1, keepdim=True) + 1e-5).sqrt()
        return centred_TD / spread_T1 * self(f"{name}.weight") + self(f"{name}.bias")

    def table(self, view: str, field: str) -> Tensor:
        return self(f".{view}/{field.replace('.', '%2E')}.weight")

    def rows(self, view: str, field: str) -> Tensor:
        """(B, d)"""
        return self.table(view, field)[BATCH.categorical[:, FIELDS.index(field)]]

    def histories(self, state: Callable[[Tensor], Tensor]) -> Tensor:
        """What `state` makes of the valid steps of each row, zeros where there are none: (B, D)."""
        pairs = zip(BATCH.sequences["history"], BATCH.lengths["history"].tolist(), strict=True)
        steps = [self.table("e", "item")[ids_T[:length]] for ids_T, length in pairs]
        return torch.stack([state(x_TD) if len(x_TD) else torch.zeros(D) for x_TD in steps])

    def matched(self, state_BD: Tensor) -> Tensor:
        product_B = (state_BD * self.rows("e", "item")).sum(1)
        return product_B + self.rows("bias", "item")[:, 0] + self("head.bias")

    def first_order(self) -> Tensor:
        return torch.stack([self.rows("first", field)[:, 0] for field in FIELDS]).sum(0)

    def second_order(self) -> Tensor:
        return torch.stack([(self.rows("e", a) * self.rows("e", b)).sum(1) for a, b in PAIRS]).sum(0)


def plain_gru4rec(w: Weights) -> Tensor:
    def state(x_TD: Tensor) -> Tensor:
        h_D = torch.zeros(D)
        for x_D in x_TD:
            in_3D = w("weight_ih_l0") @ x_D + w("bias_ih_l0")
            back_3D = w("weight_hh_l0") @ h_D + w("bias_hh_l0")
            reset_D, update_D = (in_3D + back_3D)[: 2 * D].sigmoid().chunk(2)
            new_D = (in_3D[2 * D :] + reset_D * back_3D[2 * D :]).tanh()
            h_D = (1 - update_D) * new_D + update_D * h_D
        return h_D

    return w.matched(w.histories(state))


def plain_nextitnet(w: Weights) -> Tensor:
    def state(x_TD: Tensor) -> Tensor:
        for node, dilation in (("near", 1), ("wider", 2), ("widest", 4)):
            padded_DT = functional.pad(w.normed(f"{node}.op.norm", x_TD).T, (2 * dilation, 0))
            weight, bias = (w(f"{node}.op.layer.conv.{part}") for part in ("weight", "bias"))
            x_TD = x_TD + functional.conv1d(padded_DT[None], weight, bias, dilation=dilation)[0].T.relu()
        return x_TD[-1]

    return w.matched(w.histories(state))


def plain_caser(w: Weights) -> Tensor:
    def state(x_TD: Tensor) -> Tensor:
        mixed_DT = functional.conv1d(x_TD.T[None], w("conv.weight"), w("conv.bias"), padding=1)[0].relu()
        return mixed_DT.amax(1)

    both_BN = torch.cat([w.histories(state), w.rows("user", "user")], 1)
    return w.matched(w.linear("mlp:state.op.0", both_BN).relu())


def plain_sasrec(w: Weights) -> Tensor:
    def attended(block: str, x_TD: Tensor) -> Tensor:
        length = len(x_TD)
        query, key, value = w.linear(f"{block}.layer.qkv", w.normed(f"{block}.norm", x_TD)).chunk(3, 1)
        future_TT = torch.ones(length, length).triu(1).bool()
        mixed = []
        for head in range(HEADS):
            part = slice(head * D // HEADS, (head + 1) * D // HEADS)
            scores_TT = query[:, part] @ key[:, part].T / (D / HEADS) ** 0.5
            mixed.append(scores_TT.masked_fill(future_TT, float("-inf")).softmax(1) @ value[:, part])
        return w.linear(f"{block}.layer.out", torch.cat(mixed, 1))

    def state(x_TD: Tensor) -> Tensor:
        x_TD = x_TD + w("positions:placed.op.positions")[: len(x_TD)].flip(0)
        for number in (1, 2):
            x_TD = x_TD + attended(f"attention{number}.op", x_TD)
            forward = f"forward{number}.op"
            hidden_TD = w.linear(f"{forward}.layer.maps.0", w.normed(f"{forward}.norm", x_TD)).relu()
            x_TD = x_TD + w.linear(f"{forward}.layer.maps.3", hidden_TD)
        return w.normed("normed.op.norm", x_TD)[-1]

    return w.matched(w.histories(state))


def plain_din(w: Weights) -> Tensor:
    tastes = []
    for row, target_D in enumerate(w.rows("e", "item")):
        taste_D = torch.zeros(D)
        for item in BATCH.sequences["history"][row, : BATCH.lengths["history"][row]]:
            x_D = w.table("e", "item")[item]
            hidden = w.linear("score.0", torch.cat([x_D, target_D, x_D - target_D, x_D * target_D])).relu()
            taste_D = taste_D + w.linear("score.2", hidden) * x_D
        tastes.append(taste_D)
    x_BN = torch.cat([*(w.rows("e", field) for field in FIELDS), torch.stack(tastes)], 1)
    hidden_BN = w.linear("mlp:deep.op.2", w.linear("mlp:deep.op.0", x_BN).relu()).relu()
    return hidden_BN @ w("head.maps.0.weight")[0] + w("head.bias")


def plain_youtube_dnn(w: Weights) -> Tensor:
    both_BN = torch.cat([w.histories(lambda x_TD: x_TD.mean(0)), w.rows("context", "user")], 1)
    hidden_BN = w.linear("tower.op.2", w.linear("tower.op.0", both_BN).relu()).relu()
    return w.matched(w.linear("state.op.0", hidden_BN))


def plain_fm(w: Weights) -> Tensor:
    return w.first_order() + w.second_order() + w("head.bias")


def plain_afm(w: Weights) -> Tensor:
    product_BPD = torch.stack([w.rows("e", a) * w.rows("e", b) for a, b in PAIRS], 1)
    weight_BP = w.linear("excite", w.linear("squeeze", product_BPD.mean(2)).relu()).sigmoid()
    vector_BD = (weight_BP[:, :, None] * product_BPD).sum(1)
    return w.first_order() + vector_BD @ w("head.maps.0.weight")[0] + w("head.bias")


def plain_deepfm(w: Weights) -> Tensor:
    x_BN = torch.cat([w.rows("e", field) for field in FIELDS], 1)
    deep_BN = w.linear("mlp:deep.op.2", w.linear("mlp:deep.op.0", x_BN).relu()).relu()
    return plain_fm(w) + deep_BN @ w("head.maps.0.weight")[0]


def plain_wide_deep(w: Weights) -> Tensor:
    user, item, site = (w.rows("e", field) for field in FIELDS)
    # Products stand in the order of the fields that they begin with: user and item, then all three.
    x_BN = torch.cat([user, item, site, user * item, user * item * site], 1)
    hidden_BN = w.linear("layers.2", w.linear("layers.0", x_BN).relu()).relu()
    return (w.linear("layers.4", hidden_BN) + x_BN @ w("op.linear.weight").T)[:, 0] + w("head.bias")


# ---- equality -------------------------------------------------------------------------------------------------------


def randomised(description: Architecture, seed: int = 1) -> Model:
    """With weights, biases among them, of a size that shows in the output."""
    model = built(description).eval()
    torch.manual_seed(seed)
    for weight in model.dense_parameters():
        weight.data.normal_(std=0.5)
    return model


MODELS: dict[str, tuple[Callable[[], Architecture], Callable[[Weights], Tensor]]] = {
    "GRU4Rec": (lambda: hand_made("gru4rec"), plain_gru4rec),
    "NextItNet": (lambda: hand_made("nextitnet"), plain_nextitnet),
    "Caser": (caser, plain_caser),
    "SASRec": (lambda: hand_made("sasrec"), plain_sasrec),
    "DIN": (din, plain_din),
    "YouTubeDNN": (lambda: hand_made("youtube_dnn"), plain_youtube_dnn),
    "FM": (fm, plain_fm),
    "AFM": (afm, plain_afm),
    "DeepFM": (deepfm, plain_deepfm),
    "Wide & Deep": (wide_deep, plain_wide_deep),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_space_holds_the_model(name: str) -> None:
    describe, plain = MODELS[name]
    description = describe()
    assert {node.op for node in description.nodes} <= SPACE
    model = randomised(description)
    output = model(BATCH)
    assert output.std() > 0.1
    torch.testing.assert_close(output, plain(Weights(model)), rtol=1e-5, atol=1e-5)


def assert_equal(first: Model, second: Model) -> None:
    assert first(BATCH).std() > 0.1
    torch.testing.assert_close(first(BATCH), second(BATCH), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "describe"), [("din", din), ("fm", fm), ("deepfm", deepfm)])
def test_the_zoo_has_the_same_model(name: str, describe: Callable[[], Architecture]) -> None:
    model, other = randomised(describe()), randomised(hand_made(name), seed=2)
    other.load_state_dict(model.state_dict())
    assert_equal(model, other)


def test_din_is_the_zoo_s_own_without_the_skipped_blocks() -> None:
    assert din().hash == hand_made("din").hash


def test_the_zoo_s_afm_is_this_one_where_all_pairs_weigh_the_same() -> None:
    """A softmax over equal scores and a sigmoid at that height; elsewhere the two weigh pairs in ways of their own."""
    model, other = randomised(afm()), randomised(hand_made("afm"), seed=2)
    weights = model.state_dict()
    weights["nodes.se:weighted.op.excite.weight"].zero_()
    weights["nodes.se:weighted.op.excite.bias"].fill_(torch.tensor(1 / len(PAIRS)).logit())
    copied = {name: weight for name, weight in weights.items() if "nodes.se" not in name}
    kept = {name: weight for name, weight in other.state_dict().items() if ".weighted." in name}
    kept["nodes.pairs:pairs.op.weighted.score.weight"].zero_()
    copied = {name.replace("head.maps.0", "nodes.pairs:pairs.op.projection"): value for name, value in copied.items()}
    other.load_state_dict(copied | kept)
    assert_equal(model, other)


def test_the_zoo_s_wide_and_deep_is_this_one_without_crosses() -> None:
    model, other = randomised(wide_deep()), randomised(hand_made("wide_deep"), seed=2)
    w = Weights(other)
    target = model.state_dict()
    for field in FIELDS:
        Weights(model).table("e", field).copy_(torch.cat([w.table("e", field), w.table("first", field)], 1))
    layers = "nodes.mlp:both.op.layers."
    wide_F = functional.one_hot(torch.tensor(D), D + 1).float()
    target["nodes.mlp:both.op.linear.weight"].copy_(torch.cat([wide_F] * 3 + [torch.zeros(2 * (D + 1))])[None])
    deep_UFD = functional.pad(w("mlp:deep.op.0.weight").unflatten(1, (3, D)), (0, 1))
    target[f"{layers}0.weight"].copy_(functional.pad(deep_UFD.flatten(1), (0, 2 * (D + 1))))
    target[f"{layers}4.weight"].copy_(w("head.maps.0.weight"))
    target[f"{layers}4.bias"].zero_()
    for name in ("0.bias", "2.weight", "2.bias"):
        target[f"{layers}{name}"].copy_(w(f"mlp:deep.op.{name}"))
    target["head.bias"].copy_(w("head.bias"))
    assert_equal(model, other)
