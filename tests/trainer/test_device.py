"""Models on another device, without one: fake tensors that claim to be elsewhere and, as on a GPU, mix with none here.

They have shapes and devices and no values, so this shows that every tensor a model makes on its way is made where the
model is. What a GPU computes it cannot show. The device is called "meta", as torch built for processors bears no other.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from tests.contracts.test_methods import SCHEMAS, opened, rows_of, space_of
from tests.trainer.mixed import batch_of, built, mixed_schema
from trainer import zoo
from trainer.architecture import Architecture
from trainer.candidate import Candidate
from trainer.data import Batch
from trainer.engines import gradient, sampled, staged
from trainer.methods.table import METHODS
from trainer.modules.tables import leaves
from trainer.optim import LazyAdam
from trainer.schema import DatasetSchema
from trainer.space import fill_params

ELSEWHERE = torch.device("meta")


def elsewhere() -> FakeTensorMode:
    """Within it there is a fake device; tensors that are really here count as a processor's."""
    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())


def trained(model: nn.Module, batch: Batch) -> None:
    """Forward and backward; every gradient is where its weight is."""
    output_B = model(batch)
    assert output_B.device == ELSEWHERE
    output_B.square().sum().backward()
    gradients = [leaf.weight.grad for leaf in leaves(model) if leaf.weight.grad is not None]
    assert gradients
    assert all(gradient.device == ELSEWHERE for gradient in gradients)


def test_mixing_devices_is_noticed() -> None:
    model, batch = hand_made("deepfm"), batch_of(mixed_schema())
    with elsewhere(), pytest.raises(RuntimeError, match="device"):
        model.to(ELSEWHERE)(batch)


def hand_made(name: str) -> nn.Module:
    return built(Architecture.from_dict(fill_params(zoo.template(name, mixed_schema()), {})))


@pytest.mark.parametrize("name", zoo.names())
def test_a_hand_made_model_trains_elsewhere(name: str) -> None:
    model, batch = hand_made(name), batch_of(mixed_schema())
    with elsewhere():
        trained(model.to(ELSEWHERE), batch.to(ELSEWHERE))


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.supernet is not None])
def test_a_supernet_trains_elsewhere(monkeypatch: Any, method: str) -> None:
    monkeypatch.setattr(torch, "autocast", lambda kind, **_: nullcontext())  # knows no device of this name
    schema = SCHEMAS["mixed-ctr"]
    batch = batch_of(schema)
    net = opened(Candidate.from_dict(fill_params(space_of(method, schema), {})), schema)
    for model in models(net, METHODS[method].search, schema):
        with elsewhere():
            trained(model.to(ELSEWHERE), batch.to(ELSEWHERE))


def models(net: Any, search: Any, schema: DatasetSchema) -> Iterator[nn.Module]:
    """The supernets that a method opens, each with a choice taken."""
    if search is staged.search:
        for stage in net.stages():
            stage.take(stage.draw(sampled.generator(1, stage.name)))
            yield deepcopy(stage.model)
            scores = staged.Scores(stage, rows_of(schema, seed=1), seed=1)
            stage.decide(scores.blind(stage.candidates), scores)
        return
    if search is sampled.search:
        net.take(None)
    elif search is gradient.search:
        net.relax(0.5, frozen=False, deciding=True)
    yield net.model


def test_the_lazy_optimizer_updates_elsewhere() -> None:
    model, batch = hand_made("deepfm"), batch_of(mixed_schema())
    with elsewhere():
        model.to(ELSEWHERE)
        pools = [leaf.pool for leaf in leaves(model) if leaf.pool is not None]
        for pool in pools:
            pool.sparse = True
        model(batch.to(ELSEWHERE)).square().sum().backward()
    optimizer = LazyAdam([pool.weight for pool in pools], lr=1e-3, l2=1e-3, average=0.9)
    for pool in pools:
        pool.weight.grad = pool.weight.grad.coalesce()
    optimizer.step()
    for pool in pools:
        optimizer.apply_average(pool.weight, scale=10.0)
