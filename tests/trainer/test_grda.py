"""GRDA against its closed form, against SGD, and what its exact zeros are."""

import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.grda import GRDA, calibrated


def weight_of(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def run(weight: nn.Parameter, optimizer: torch.optim.Optimizer, gradient: Tensor, steps: int) -> None:
    for _ in range(steps):
        weight.grad = gradient.clone()
        optimizer.step()


def soft(value: float, threshold: float) -> float:
    return math.copysign(max(abs(value) - threshold, 0.0), value)


def noise(steps: int, size: int) -> Tensor:
    return torch.randn(steps, size, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_a_gate_without_a_gradient_after_a_thousand_steps() -> None:
    weight = weight_of(0.6)
    run(weight, GRDA([weight], lr=1.0, c=5e-4, mu=0.8), torch.zeros(1, dtype=torch.float64), 1000)
    assert weight.item() == pytest.approx(0.4744, abs=5e-5)
    assert weight.item() == pytest.approx(0.6 - 5e-4 * 1000**0.8, rel=1e-12)


@given(
    start=st.floats(-1, 1, allow_subnormal=False),
    gradient=st.floats(-0.5, 0.5, allow_subnormal=False),
    lr=st.sampled_from([0.01, 0.3, 1.0]),
    c=st.floats(0, 0.3, allow_subnormal=False),
    mu=st.floats(0, 0.99, allow_subnormal=False),
    steps=st.integers(1, 30),
)
def test_a_constant_gradient_gives_the_closed_form(
    start: float, gradient: float, lr: float, c: float, mu: float, steps: int
) -> None:
    weight = weight_of(start)
    run(weight, GRDA([weight], lr, c, mu), torch.full_like(weight, gradient), steps)
    expected = soft(start - lr * gradient * steps, c * lr ** (0.5 + mu) * steps**mu)
    assert weight.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_without_a_penalty_it_is_sgd() -> None:
    """Bit for bit, on a loss whose gradient depends on the weights."""
    ours, reference = weight_of(0.6, -0.2, 0.0), weight_of(0.6, -0.2, 0.0)
    pairs = [(ours, GRDA([ours], lr=0.3, c=0.0, mu=0.8)), (reference, torch.optim.SGD([reference], lr=0.3))]
    for x in noise(50, 3):
        for weight, optimizer in pairs:
            optimizer.zero_grad()
            (weight * x).sin().sum().backward()
            optimizer.step()
    assert torch.equal(ours, reference)
    assert not torch.equal(ours, weight_of(0.6, -0.2, 0.0))


def test_a_zero_can_come_back() -> None:
    """The sum behind it moves on: it comes back with the other sign where the sum has gone there."""
    weight = weight_of(0.5, 0.5)
    optimizer = GRDA([weight], lr=1.0, c=0.1, mu=0.5)
    run(weight, optimizer, torch.tensor([0.1, 0.1], dtype=torch.float64), 4)
    assert torch.equal(weight.detach(), torch.zeros(2, dtype=torch.float64))
    run(weight, optimizer, torch.tensor([-0.3, 0.3], dtype=torch.float64), 5)
    expected = [0.5 - 0.4 + 1.5 - 0.1 * 3, 0.5 - 0.4 - 1.5 + 0.1 * 3]
    torch.testing.assert_close(weight.detach(), torch.tensor(expected, dtype=torch.float64))


def test_zeros_are_exact_where_adam_has_none() -> None:
    """The same noisy problem with the same l1 penalty: one of ten weights matters."""
    truth = torch.zeros(10, dtype=torch.float64)
    truth[3] = -1.0

    def minimise(weight: nn.Parameter, optimizer: torch.optim.Optimizer, l1: float) -> Tensor:
        for error in noise(300, 10):
            optimizer.zero_grad()
            (0.5 * (weight - truth - 0.1 * error).square().sum() + l1 * weight.abs().sum()).backward()
            optimizer.step()
        return weight.detach()

    ours, adams = weight_of(*[0.6] * 10), weight_of(*[0.6] * 10)
    found = minimise(ours, GRDA([ours], lr=0.05, c=calibrated(1.0, 0.05, 0.6, 300), mu=0.6), 0.0)
    assert found.nonzero().flatten().tolist() == [3]
    assert found[3] < -0.5
    assert (minimise(adams, torch.optim.Adam([adams], lr=0.05), 0.07) == 0).sum() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_state_goes_on_bit_for_bit(dtype: torch.dtype) -> None:
    gradients = noise(40, 6).to(dtype)

    def steps(weight: nn.Parameter, optimizer: GRDA, places: range) -> None:
        for place in places:
            weight.grad = gradients[place].clone()
            optimizer.step()

    def fresh(values: Tensor) -> tuple[nn.Parameter, GRDA]:
        weight = nn.Parameter(values.clone())
        return weight, GRDA([weight], lr=0.1, c=0.5, mu=0.7)

    whole, optimizer = fresh(torch.full((6,), 0.6, dtype=dtype))
    steps(whole, optimizer, range(25))
    assert 0 < (whole == 0).sum() < 6
    file = io.BytesIO()
    torch.save({"weight": whole.detach(), "optimizer": optimizer.state_dict()}, file)
    steps(whole, optimizer, range(25, 40))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, optimizer = fresh(saved["weight"])
    optimizer.load_state_dict(saved["optimizer"])
    steps(resumed, optimizer, range(25, 40))
    assert torch.equal(resumed, whole)


def test_a_weight_without_a_gradient_rests() -> None:
    rests, moves = weight_of(0.6), weight_of(0.6)
    optimizer = GRDA([rests, moves], lr=1.0, c=0.01, mu=0.5)
    run(moves, optimizer, torch.zeros(1, dtype=torch.float64), 4)
    assert rests.item() == 0.6
    assert moves.item() == pytest.approx(0.6 - 0.01 * 2)


@given(
    threshold=st.floats(0.1, 3, allow_subnormal=False),
    lr=st.sampled_from([0.01, 0.5, 1.0]),
    mu=st.floats(0, 0.99, allow_subnormal=False),
    steps=st.integers(1, 50),
)
def test_a_calibrated_penalty_ends_at_the_threshold(threshold: float, lr: float, mu: float, steps: int) -> None:
    """Whatever the rate, mu and the number of steps: without gradients just the weights above it are left."""
    weight = weight_of(threshold * 1.001, -threshold * 1.001, threshold * 0.999, -threshold * 0.999)
    run(weight, GRDA([weight], lr, calibrated(threshold, lr, mu, steps), mu), torch.zeros_like(weight), steps)
    left = 0.001 * threshold
    expected = torch.tensor([left, -left, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-6, atol=1e-9)
    assert weight[2:].count_nonzero() == 0


def test_the_published_penalty_is_that_of_its_number_of_steps() -> None:
    """AutoFIS on Avazu: 5e-4 (mu 0.8, rate 1) comes to 1.16 in 16,172 steps."""
    assert calibrated(1.16, 1.0, 0.8, 16_172) == pytest.approx(5e-4, rel=0.01)


@pytest.mark.parametrize(
    ("settings", "name"),
    [([(c, 0.6) for c in (0.0, 0.02, 0.05, 0.2)], "c"), ([(0.02, mu) for mu in (0, 0.5, 0.9)], "mu")],
)
def test_zeros_grow_with_c_and_with_mu(settings: list[tuple[float, float]], name: str) -> None:
    """With the other one fixed, and gradients that do not depend on the weights."""
    zeros = []
    for c, mu in settings:
        weight = weight_of(*torch.linspace(-0.6, 0.6, 12).tolist())
        optimizer = GRDA([weight], lr=0.5, c=c, mu=mu)
        for gradient in noise(60, 12):
            weight.grad = 0.1 * gradient
            optimizer.step()
        zeros.append(int((weight == 0).sum()))
    assert zeros == sorted(zeros)
    assert zeros[0] < zeros[-1]
