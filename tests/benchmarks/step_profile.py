"""Where a training step's time goes, and what it could not be faster than (`training.py --profile`)."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, record_function
from torch.profiler import profile as profiler

from tests.benchmarks.criteo_shaped import Arrays, deepfm
from tests.benchmarks.measure import StepClock
from trainer.build import Model, build
from trainer.cpu import multiplies_bf16
from trainer.data import Table
from trainer.fit import fit
from trainer.settings import TrainSettings

BATCH, FIRST, STEPS = 4096, 5, 20
"""Steps FIRST to FIRST + STEPS of the second epoch are profiled."""
FORWARD = "forward pass"
WIDTH = 16 + 1
"""Weights of one category: its vector and its first-order weight."""
COPIED = 1 << 26
"""float32 values of the copy that measures the memory."""
PRODUCTS = ("mm", "bmm", "addmm", "linear", "linear_backward", "matmul", "mkldnn")
ROWS = ("embedding", "index", "coalesce", "unique", "sort", "gather", "scatter", "fbgemm", "split_embedding")
"""Of the names of operators that look rows up or bring their gradients together."""


def profile(data: Arrays) -> dict[str, Any]:
    """Print the table and the bound. Milliseconds of a step, by group."""
    train, valid = data.table(), data.head(BATCH).table()
    settings = TrainSettings(batch_size=BATCH, epochs=3, patience=3)
    model = build(deepfm(train.schema), label_mean=train.schema.label_mean, table_init=settings.table_init, seed=1)
    clock, window = StepClock(model), _Window(model)
    seconds: list[list[float]] = []
    products: list[float] = []
    copies: list[float] = []

    def on_epoch(record: Any) -> bool:
        seconds.append(clock.take())
        # Several times, with the training between them: a machine that others share is not always as fast.
        products.append(_product_seconds(model))
        copies.append(_copy_seconds())
        window.armed = record.epoch == 0
        return False

    fit(model, train, valid, settings, task="ctr", seed=1, on_epoch=on_epoch)
    plain = 1000 * sum(seconds[2]) / len(seconds[2])  # the third epoch, without the profiler
    groups, names = _grouped(window.profiler.events() or [])
    total = sum(groups.values())
    categories = sum(data.cardinalities)
    print(f"\n{categories:,} categories: {plain:.1f} ms per step ({total:.1f} ms of operators under the profiler)\n")
    for group, milliseconds in sorted(groups.items(), key=lambda item: -item[1]):
        print(f"  {group:52} {milliseconds:7.2f} ms  {milliseconds / total:5.1%}")
    print("\n  the most expensive operators (own time)")
    for (group, name), milliseconds in names.most_common(15):
        print(f"  {group:32} {name:32} {milliseconds:7.2f} ms")
    bounds = _bounds(model, train, min(products), min(copies))
    bound = bounds["products_ms"] + bounds["rows_ms"]
    print(
        f"\n  matrix products alone: {bounds['products_ms']:.1f} ms at {bounds['gflops']:,.0f} GFLOP/s"
        f"\n  touched rows ({bounds['touched']:,.0f} different ones per step): {bounds['rows_ms']:.1f} ms"
        f" at {bounds['gb_per_s']:.1f} GB/s for {bounds['mb']:.1f} MB"
        f"\n  bound {bound:.1f} ms, achieved {bound / plain:.0%} of it"
    )
    return {"ms_per_step": plain, "groups_ms": groups, **bounds, "bound_ms": bound, "achieved": bound / plain}


class _Window:
    """Profiles STEPS whole steps, from one forward pass to another, once it is armed."""

    def __init__(self, model: Model) -> None:
        self.armed = False
        self.profiler = profiler(activities=[ProfilerActivity.CPU])
        self._step = 0
        self._pass: Any = None
        model.register_forward_pre_hook(self._before)
        model.register_forward_hook(self._after)

    def _before(self, model: Model, inputs: Any) -> None:
        if not (self.armed and model.training):
            return
        self._step += 1
        if self._step == FIRST:
            self.profiler.start()
        elif self._step == FIRST + STEPS:
            self.profiler.stop()
        if FIRST <= self._step < FIRST + STEPS:
            self._pass = record_function(FORWARD)
            self._pass.__enter__()

    def _after(self, model: Model, inputs: Any, output: Any) -> None:
        if self._pass is not None:
            self._pass.__exit__(None, None, None)
            self._pass = None


def _grouped(events: Any) -> tuple[dict[str, float], "Counter[tuple[str, str]]"]:
    """Milliseconds of own time per step: by group, and by (group, operator)."""
    groups: Counter[str] = Counter()
    names: Counter[tuple[str, str]] = Counter()
    for event in events:
        group, own = _group(event), event.self_cpu_time_total / 1000 / STEPS
        groups[group] += own
        names[group, event.name] += own
    return dict(groups), names


def _group(event: Any) -> str:
    line = [event.name]
    while event.cpu_parent is not None:
        event = event.cpu_parent
        line.append(event.name)
    backward = any("autograd::engine" in name for name in line)
    operators = [name.rpartition("::")[2].lower().lstrip("_") for name in line]
    if any(operator.startswith(PRODUCTS) for operator in operators):
        return "matrix products"
    if not (backward or FORWARD in line):
        return "update: optimizer, running average, loss, next batch"
    if any(part in operator for operator in operators for part in ROWS):
        return "look-ups' gradients" if backward else "look-ups"
    return "rest of the backward pass" if backward else "rest of the forward pass"


def _bounds(model: Model, train: Table, products: float, copy: float) -> dict[str, float]:
    """What a step cannot do without: its products, and the traffic of its rows, each at this machine's rate."""
    batches = [batch.categorical for batch in train.batches(BATCH, seed_epoch=(1, 0)) if batch.size == BATCH][:STEPS]
    touched = sum(ids_B.unique().numel() for ids_BF in batches for ids_B in ids_BF.T) / len(batches)
    # Read for the look-up, its gradient written and read; weight, two moments and average read and written.
    moved = 4 * WIDTH * (3 * batches[0].numel() + 8 * touched)
    operations = sum(6 * BATCH * weight.numel() for weight in _layers(model))
    speed = 2 * 4 * COPIED / copy
    return {
        "products_ms": 1000 * products,
        "gflops": operations / products / 1e9,
        "touched": touched,
        "mb": moved / 1e6,
        "gb_per_s": speed / 1e9,
        "rows_ms": 1000 * moved / speed,
    }


def _layers(model: Model) -> list[Tensor]:
    return [weight for weight in model.dense_parameters() if weight.dim() == 2 and weight.shape[0] > 1]


def _product_seconds(model: Model) -> float:
    """Of all layers, in bf16 where `fit` would choose it: the forward products and those of both gradients."""
    dtype = torch.bfloat16 if multiplies_bf16() else torch.float32
    total = 0.0
    for weight in _layers(model):
        w_OI, x_BI = weight.detach().to(dtype), torch.randn(BATCH, weight.shape[1], dtype=dtype)
        g_BO = torch.randn(BATCH, weight.shape[0], dtype=dtype)
        total += sum(_fastest(product) for product in _products(x_BI, g_BO, w_OI))
    return total


def _copy_seconds() -> float:
    source, target = torch.ones(COPIED), torch.zeros(COPIED)
    return _fastest(lambda: target.copy_(source))


def _products(x_BI: Tensor, g_BO: Tensor, w_OI: Tensor) -> list[Callable[[], Tensor]]:
    """A layer's forward product and those of its two gradients."""
    return [lambda: x_BI @ w_OI.T, lambda: g_BO @ w_OI, lambda: g_BO.T @ x_BI]


def _fastest(work: Callable[[], Any], tries: int = 20) -> float:
    """Seconds."""
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)
