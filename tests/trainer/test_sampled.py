"""The engine of searches by sampling: its policy, how choices are drawn and scored, and what a warm-up sees."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.trainer.opened import QUICK, ROWS, VALID_ROWS, opened, searched, table
from trainer import metrics
from trainer.build import build
from trainer.engines import sampled
from trainer.engines.sampled import Baseline, Choice, against_others, objective
from trainer.modules.interactions import BatchNorm

ARMS = torch.tensor([0.1, 0.5, 0.9])
SMALL: dict[str, Any] = {"epochs": 3, "dim": 8, "columns": 2, "rows": [0.5, 1.0], "sample": 0}
STEPS = SMALL["epochs"] * ROWS // QUICK.batch_size


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ---- the policy -----------------------------------------------------------------------------------------------------


def drawn_arms(policy: dict[str, nn.Parameter], draws: int, step: int) -> tuple[list[Choice], list[float]]:
    choices = [sampled.drawn(policy, sampled.generator(1, "toy", step, number)) for number in range(draws)]
    return choices, [float(ARMS[choice["arm"]].sum()) for choice in choices]


def test_the_estimate_is_the_gradient_of_the_expected_reward() -> None:
    """For three arms in closed form; with the others' mean as baseline it stays unbiased."""
    policy = {"arm": nn.Parameter(torch.tensor([[0.3, -0.2, 0.1]]))}
    chance = policy["arm"].softmax(dim=1)
    (exact,) = torch.autograd.grad((chance * ARMS).sum(), policy["arm"])
    estimates = []
    for step in range(4000):
        choices, rewards = drawn_arms(policy, 4, step)
        goal = objective(policy, choices, against_others(np.array(rewards)).tolist())
        estimates.append(torch.autograd.grad(goal, policy["arm"])[0])
    found = torch.stack(estimates)
    error = found.std(dim=0) / len(estimates) ** 0.5
    assert ((found.mean(dim=0) - exact).abs() < 4 * error).all()
    assert (error < exact.abs().max() / 20).all()


@pytest.mark.parametrize("draws", [1, 4])
def test_the_best_arm_wins(draws: int) -> None:
    policy = {"arm": nn.Parameter(torch.zeros(1, 3))}
    optimizer, baseline = torch.optim.Adam(policy.values(), lr=0.1), Baseline()
    for step in range(400):
        choices, rewards = drawn_arms(policy, draws, step)
        (-objective(policy, choices, baseline.advantages(rewards))).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert policy["arm"].softmax(dim=1)[0].detach()[2] > 0.95


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_advantages_do_not_depend_on_the_scale_of_rewards(scale: float) -> None:
    rewards = np.random.default_rng(0).normal(size=(30, 4))
    plain, scaled = Baseline(), Baseline()
    for row in rewards:
        assert scaled.advantages((5 + scale * row).tolist()) == pytest.approx(plain.advantages(row.tolist()), rel=1e-6)


def test_equal_rewards_teach_nothing() -> None:
    assert Baseline().advantages([0.7, 0.7, 0.7]) == pytest.approx([0, 0, 0], abs=1e-6)
    assert Baseline().advantages([0.7]) == [0.0]


def test_chances_and_entropy_are_those_of_independent_decisions() -> None:
    policy = {"a": torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]]), "b": torch.tensor([[0.5, 0.0]])}
    every = [
        {"a": torch.tensor([first, second]), "b": torch.tensor([third])}
        for first, second, third in product(range(3), range(3), range(2))
    ]
    logs = torch.stack([sampled.log_probability(policy, choice) for choice in every])
    assert float(logs.exp().sum()) == pytest.approx(1, abs=1e-6)
    assert float(sampled.entropy(policy)) == pytest.approx(float(-(logs.exp() * logs).sum()), abs=1e-5)
    counts = np.zeros(len(every))
    for number in range(4000):
        choice = sampled.drawn(policy, sampled.generator(3, "count", number))
        counts[(int(choice["a"][0]) * 3 + int(choice["a"][1])) * 2 + int(choice["b"])] += 1
    error = np.sqrt(logs.exp().numpy() / 4000)
    assert (np.abs(counts / 4000 - logs.exp().numpy()) < 4.5 * error).all()


# ---- drawing and scoring --------------------------------------------------------------------------------------------


class Taken:
    """A supernet that remembers in which passes it was made to take what."""

    def __init__(self, net: Any) -> None:
        self.net = net
        self.trained: list[Choice | None] = []
        self.scored: list[tuple[Choice | None, int, int]] = []
        """Choice, number of rows, and a mark of them."""
        self.now: Choice | None = None
        net.model.register_forward_pre_hook(self._before)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.net, name)

    def take(self, choice: Choice | None) -> None:
        self.now = choice
        self.net.take(choice)

    def _before(self, model: nn.Module, inputs: Any) -> None:
        if model.training:
            self.trained.append(self.now)
        else:
            rows = inputs[0].numeric
            self.scored.append((self.now, len(rows), hash(rows.numpy().tobytes())))


def watched(**settings: Any) -> Taken:
    net = Taken(opened("nis", **(SMALL | settings)))
    searched(net)
    return net


def same(one: Choice, other: Choice) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_warm_up_goes_from_everything_to_uniform_draws() -> None:
    trained = watched(epochs=40, warm_up=0.9, every=1000).trained
    steps = len(trained)
    everything = np.array([choice is None for choice in trained[: round(0.9 * steps)]])
    thirds = [part.mean() for part in np.array_split(everything, 3)]
    assert thirds == pytest.approx([5 / 6, 1 / 2, 1 / 6], abs=0.15)
    assert all(choice is not None for choice in trained[round(0.9 * steps) :])
    draws = torch.cat([choice["e.user"] for choice in trained if choice is not None])
    shares = torch.bincount(draws, minlength=3) / len(draws)
    assert shares.tolist() == pytest.approx([1 / 3] * 3, abs=0.1)


def test_draws_of_a_step_are_scored_on_the_same_rows() -> None:
    net = watched(warm_up=0.0, draws=3)
    rows = [mark for _, number, mark in net.scored if number < VALID_ROWS]  # after each epoch it is all of them
    assert len(rows) == 3 * STEPS
    groups = [set(rows[first : first + 3]) for first in range(0, 3 * STEPS, 3)]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups[:3])) == 3


def test_a_search_is_validated_with_what_would_be_derived() -> None:
    net = watched(warm_up=0.0)
    assert net.scored[-1][0] is not None
    assert same(net.scored[-1][0], net.best())


def test_a_policy_at_rest_stays_uniform() -> None:
    net = opened("nis", **SMALL, policy_learning_rate=0.0)
    searched(net)
    assert all(not logits.any() for logits in net.policy.values())


@pytest.mark.parametrize("task", ["ctr", "rating"])
def test_the_sample_holds_choices_with_their_score(task: Any) -> None:
    rows, valid = table(task=task), table(VALID_ROWS, task=task, seed=1)
    net = opened("nis", train=rows, valid=valid, **(SMALL | {"sample": 4}))
    found = searched(net, train=rows, valid=valid)
    assert len(found.sample) == 4
    assert len({one.architecture.hash for one in found.sample}) == 4
    number = 0
    for one in found.sample:
        while True:  # the draw that this one came from
            choice = sampled.uniform(net.policy, sampled.generator(5, "sample", number))
            number += 1
            if sampled._built(net, choice) == one.architecture:
                break
        assert sampled.score(net, choice, valid) == one.score
        build(one.architecture, label_mean=0.5, table_init=0.1, seed=0)


def test_scoring_takes_the_statistics_of_the_rows_and_leaves_no_trace() -> None:
    norm, drop = BatchNorm(3), nn.Dropout(0.5)
    model = nn.Sequential(norm, drop)
    model.train()
    x_BN = torch.randn(50, 3) * 7 + 3
    with sampled.scoring(model):
        once, twice = model(x_BN), model(x_BN)
    assert torch.equal(once, twice)
    torch.testing.assert_close(once.mean(dim=0), torch.zeros(3), atol=1e-5, rtol=0)
    assert torch.equal(norm.running_mean, torch.zeros(3))
    assert (model.training, norm.training, drop.training) == (True, True, True)


def test_quality_is_auc_or_minus_the_squared_error() -> None:
    label, output = torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([-1.0, 3.0, 0.5, 0.7])
    assert sampled._quality("ctr", output, label) == metrics.auc(label.numpy(), output.numpy()) == 0.75
    assert sampled._quality("rating", output, label) == -metrics.mse(label.numpy(), output.numpy())
    assert sampled._quality("ctr", output, torch.ones(4)) == 0.5  # one class says nothing


def test_rewards_are_noted_beside_the_policy() -> None:
    net = opened("nis", **SMALL)
    figures = {figure["title"]: figure for figure in searched(net).figures}
    shown = figures["Reward over training"]
    (values,) = [series["values"] for series in shown["series"]]
    assert values[0] is None
    assert all(isinstance(value, float) for value in values[-3:])
    assert len(values) == len(shown["x"])
