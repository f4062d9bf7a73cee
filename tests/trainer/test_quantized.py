"""The quantized encoder: categories whose vectors are put together from centroids by fixed codes."""

import base64
import math
import zlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from components.drawing import describe, draw
from tests.trainer.mixed import batch_of, flat_schema, parameters
from trainer.architecture import Architecture, ArchitectureError, QuantizedEncoder, fields_of
from trainer.build import Model, build, table_specs
from trainer.candidate import Candidate
from trainer.index import packed
from trainer.modules.quantized import Quantized, QuantizedSource
from trainer.optim import Optimizers
from trainer.settings import TrainSettings
from trainer.shapes import count, index_bits, infer

SCHEMA = flat_schema()
USER, ITEM = (SCHEMA.field(name).cardinality for name in ("user", "item"))
DIM, SUBSPACES, CENTROIDS = 6, 3, 5
CODES = bytes((7 * place) % 11 % CENTROIDS for place in range(USER * SUBSPACES))
TAIL = {"first": 4, "centroids": 2}
RARE = CODES[: 4 * SUBSPACES] + bytes(code % 2 for code in CODES[4 * SUBSPACES :])


def described(codes: bytes = CODES, **given: Any) -> Architecture:
    quantized = {"kind": "quantized", "dim": DIM, "subspaces": SUBSPACES, "centroids": CENTROIDS} | given
    user = {"index": packed(codes)} | quantized
    return Architecture.from_dict(
        {
            "task": "ctr",
            "fields": fields_of(SCHEMA),
            "views": {"e": {"encoders": {"user": user, "item": {"kind": "table", "dim": DIM}}}},
            "nodes": [{"id": "p", "op": "inner", "in": ["e"]}],
            "head": {"mode": "sum", "in": ["p"]},
        }
    )


def built(architecture: Architecture) -> Model:
    return build(architecture, label_mean=0.5, table_init=1.0, seed=3)


def centroids(model: Model) -> Tensor:
    """(S, K, width)"""
    [found] = [module.centroids for module in model.modules() if isinstance(module, Quantized)]
    return found


def by_hand(model: Model, codes: bytes) -> Tensor:
    """The vector of every category, (USER, DIM)."""
    rows = []
    for user in range(USER):
        named = codes[user * SUBSPACES : (user + 1) * SUBSPACES]
        rows.append(torch.cat([centroids(model)[space, code] for space, code in enumerate(named)]))
    return torch.stack(rows)


def test_a_category_is_the_centroids_that_its_codes_name() -> None:
    model, batch = built(described()), batch_of(SCHEMA, rows=64)
    value: Any = model.views["view:e"](batch, model.tables(batch))
    assert torch.equal(value[:, 0], by_hand(model, CODES)[batch.categorical[:, 0]])
    item = model.tables.whole("e/item")[batch.categorical[:, 1]]
    assert model.head.bias is not None
    torch.testing.assert_close(model(batch), (value[:, 0] * item).sum(dim=1) + model.head.bias)


def test_it_learns_as_a_table_looked_up_by_codes_would() -> None:
    """The gradient of a centroid is the sum over the categories, and sub-vectors, that it stands for."""
    model, batch = built(described()), batch_of(SCHEMA, rows=64)
    model(batch).square().sum().backward()
    found = centroids(model).grad
    assert found is not None
    expected, vector_RD = torch.zeros_like(found), by_hand(model, CODES).detach()
    item_BD = model.tables.whole("e/item").detach()[batch.categorical[:, 1]]
    bias = model.head.bias
    assert isinstance(bias, Tensor)
    output_B = (vector_RD[batch.categorical[:, 0]] * item_BD).sum(dim=1) + bias.detach()
    for user, gradient_D in zip(batch.categorical[:, 0].tolist(), 2 * output_B[:, None] * item_BD, strict=True):
        for space, part in enumerate(gradient_D.view(SUBSPACES, -1)):
            expected[space, CODES[user * SUBSPACES + space]] += part
    torch.testing.assert_close(found, expected)


@given(st.data())
def test_codes_come_back_as_they_were_stored(data: st.DataObject) -> None:
    """Encode, store, decode: whatever the codes, one-hot centroids tell them."""
    rows, subspaces, size = (data.draw(st.integers(1, most)) for most in (30, 4, 256))
    codes = data.draw(st.lists(st.integers(0, size - 1), min_size=rows * subspaces, max_size=rows * subspaces))
    encoder = QuantizedEncoder(dim=subspaces, subspaces=subspaces, centroids=size, index=packed(bytes(codes)))
    quantized = Quantized(QuantizedSource(0, subspaces, encoder), init=1.0)
    quantized.centroids.data.copy_(torch.arange(float(size)).expand(subspaces, size)[..., None])
    assert quantized(torch.arange(rows)).flatten().tolist() == codes


def test_centroids_are_what_is_counted_built_and_trained() -> None:
    architecture = described()
    counts, model = count(architecture), built(architecture)
    assert [spec.field for spec in table_specs(architecture)] == ["item"]
    assert counts.tables == CENTROIDS * DIM + ITEM * DIM == parameters(model.table_parameters())
    assert counts.codes == math.ceil(USER * SUBSPACES * 3 / 32)  # one of five: three bits
    assert counts.total == parameters(model.parameters()) + counts.codes
    assert "codes" not in "".join(model.state_dict())
    before, batch = centroids(model).clone(), batch_of(SCHEMA, rows=64)
    names = {name for name, value in model.named_parameters() if value is centroids(model)}
    optimizers = Optimizers(model, names, TrainSettings(learning_rate=1e-9, table_learning_rate=0.1, table_l2=0.0))
    model(batch).sum().backward()
    optimizers.step()
    assert (centroids(model) - before).abs().max() > 0.05  # at the tables' rate


def test_rare_categories_need_fewer_bits() -> None:
    encoder = described(RARE, tail=TAIL).views["e"].encoders["user"]
    assert index_bits(encoder, USER) == SUBSPACES * (4 * 3 + (USER - 4) * 1)
    # One of a million categories with four bytes for 32 numbers: 31.7 times less than the table.
    large = QuantizedEncoder(dim=32, subspaces=4, centroids=256, index="")
    ratio = 32 * 10**6 * 32 / (index_bits(large, 10**6) + 32 * 256 * 32)
    assert ratio == pytest.approx(31.7, abs=0.05)


def test_equal_codes_have_equal_hashes_however_they_are_packed() -> None:
    loosely = base64.b64encode(zlib.compress(CODES, 0)).decode()
    assert described().hash == described(index=loosely).hash
    assert described().hash != described(CODES[::-1]).hash
    assert described(RARE).hash != described(RARE, tail=TAIL).hash


def test_it_is_told_and_drawn_without_its_codes() -> None:
    architecture = described(RARE, tail=TAIL)
    from trainer.summary import summary

    candidate = Candidate.from_dict({"architecture": architecture.to_dict(), "training": {}})
    told = summary(candidate, trial=1, metric="auc", value=0.5)
    assert "quantized dim=6 subspaces=3 centroids=5 tail=first 4 centroids 2 of user" in told
    drawn = draw(architecture) + describe(architecture)
    assert "quantized 3 × 1 of 5 × 2 (2 for rare)" in drawn
    for text in (told, drawn):
        assert packed(RARE) not in text


WRONG: dict[str, dict[str, Any]] = {
    "dim 6 does not divide into 4 subspaces": {"subspaces": 4},
    "index has 3 codes; 20 categories have 3 each: 60": {"index": packed(bytes(3))},
    "index names centroid 4 of 4; centroids are numbered from 0": {"centroids": 4},
    "index is no base64 of": {"index": "AAAA"},
    "tail must begin below 20 and have at most 5 centroids": {"tail": {"first": 20, "centroids": 2}},
    "categories from 4 on centroids beyond the tail's 2": {"tail": TAIL},
}


@pytest.mark.parametrize("message", WRONG)
def test_codes_that_cannot_be_are_refused(message: str) -> None:
    with pytest.raises(ArchitectureError, match=rf"^view 'e': field 'user': .*{message}"):
        infer(described(**WRONG[message]))
