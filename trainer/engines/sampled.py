"""Search by sampling: draw one choice, train or score the shared weights on it, learn from the score.

A method gives a `Supernet`: a built model that can take any choice, a policy, and what a choice costs. A choice is one
option for each of its decisions; those of a policy are independent, each with a softmax over its options.

* Every step of the weights takes a choice for its whole batch. In the warm-up that is everything with a probability
  that falls from 1 to 0, else a uniform draw, so that all parts are trained before any is judged; then a draw of the
  policy. What a choice leaves out is neither computed nor moved.
* After every `every` steps, the warm-up over, `draws` choices of the policy are scored on the same batch of validation
  rows, which change nothing else. The reward is the quality less the choice's price; the policy takes a step of
  REINFORCE (Williams 1992) with the mean of the other draws as its baseline, or with a single draw the moving mean of
  the rewards. Advantages are divided by their moving deviation, so that rates do not depend on the metric's scale.

A score is only as good as its rank: `sample` choices, drawn uniformly, are scored on all validation rows in the end, to
be held against trainings from scratch (`Found.sample`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainer import metrics
from trainer.architecture import Architecture
from trainer.build import Model
from trainer.data import Batch, Table
from trainer.engines import supernet
from trainer.engines.supernet import Found, Learner, Scored, Trace, buffers_kept
from trainer.errors import UserError
from trainer.figures import Figure, curves
from trainer.fit import Outputs, predict
from trainer.metrics import Vector
from trainer.modules.interactions import BatchNorm
from trainer.processes import gather_rows
from trainer.schema import Task
from trainer.settings import TrainSettings
from trainer.shapes import infer

Choice = dict[str, Tensor]
"""For each name of a policy the options that its decisions take, (decisions,) int64."""

BLIND = 0.5
"""AUC of guesses; what rows of one class can tell of any choice."""
DRAWS_OF_ONE = 20
"""Blind draws for each choice of the sample, some of which may be no model at all, or one drawn before."""
NOISE = 1e-9
"""Deviations of rewards below it come from rounding."""
FORGETTING = 0.95
"""Decay of the moving mean of rewards and of the moving square of advantages."""


@dataclass(frozen=True)
class Reinforce:
    """How a policy learns: Adam's `rate`, `draws` per step, and the weight of the `entropy` that is added."""

    rate: float
    draws: int
    entropy: float


class Supernet(supernet.Supernet, Protocol):
    """What a method gives the engine."""

    policy: dict[str, nn.Parameter]
    """Logits, (decisions, options), by a name for the reader. No parameters of the model."""
    teaching: Reinforce
    sample: int
    """Choices scored in the end beside the one that was learned."""

    def take(self, choice: Choice | None) -> None:
        """From now on the model computes with this choice; with None it computes with everything."""

    def price(self, choice: Choice) -> float:
        """What is subtracted from a choice's quality (AUC, or minus the mean squared error)."""

    def best(self) -> Choice:
        """The choice that the policy now stands for."""

    def architecture(self, choice: Choice) -> Architecture:
        """A choice as a model to train from scratch."""


def search(net: Supernet, train: Table, valid: Table, settings: TrainSettings, *, seed: int, **rest: Any) -> Found:
    """Train the supernet and its policy, and derive; without a policy there is nothing to learn.

    `rest` as in `supernet.train`.
    """
    if not net.policy:
        return Found(net.derive(), net.figures(Trace([], {})), 0.0, 0)
    policy = _Policy(net, train, valid, settings.batch_size, seed)

    def finish() -> list[Scored]:
        draws = (uniform(net.policy, generator(seed, "sample", n)) for n in range(DRAWS_OF_ONE * net.sample))
        scored = [
            Scored(architecture, score(net, choice, valid)) for choice, architecture in blind(net, draws, net.sample)
        ]
        policy.samples += len(scored) * valid.total
        return scored

    return supernet.train(net, policy, (train, valid), settings, seed=seed, finish=finish, **rest)


class Scorable(Protocol):
    """A model that can take choices, each of which is a model too."""

    @property
    def model(self) -> Model: ...

    def take(self, choice: Choice) -> None:
        """From now on the model computes with this choice."""

    def architecture(self, choice: Choice) -> Architecture:
        """A choice as a model to train from scratch."""


def blind(net: Scorable, draws: Iterable[Choice], number: int) -> list[tuple[Choice, Architecture]]:
    """The first so many of `draws` that are different models, as far as there are."""
    found: dict[str, tuple[Choice, Architecture]] = {}
    for choice in draws:
        if len(found) == number:
            break
        architecture = _built(net, choice)
        if architecture is not None:
            found.setdefault(architecture.hash, (choice, architecture))
    return list(found.values())


def _built(net: Scorable, choice: Choice) -> Architecture | None:
    """A choice as a model, unless it leaves too little to be one."""
    try:
        architecture = net.architecture(choice)
        infer(architecture)
    except UserError:
        return None
    return architecture


def score(net: Scorable, choice: Choice, rows: Table) -> float:
    """The loss of a choice (`metrics.MAIN`) on all rows of a split, with the weights as they are shared."""
    return float(losses(net, choice, rows).mean())


def losses(net: Scorable, choice: Choice, rows: Table) -> Vector:
    """The same for each row, (N,)."""
    net.take(choice)
    with scoring(net.model):
        predicted = predict(net.model, rows)
    return metrics.losses(rows.schema.task, gather_rows(rows.label).numpy(), predicted)


class _Policy(Learner):
    """The policy's side of the fit loop."""

    def __init__(self, net: Supernet, train: Table, valid: Table, batch_size: int, seed: int) -> None:
        self.baseline = Baseline()
        self.rewards: list[float | None] = []
        """Mean reward at each moment of the trace; None before the first."""

        def adam(steps: int) -> torch.optim.Optimizer:
            return torch.optim.Adam(net.policy.values(), lr=net.teaching.rate)

        super().__init__(net, net.policy, adam, train, valid, batch_size, seed)
        self.net, self.teaching = net, net.teaching

    def before_step(self, batch: Batch, output: Outputs) -> None:
        self.net.take(self._next(generator(self.seed, "train", self.step)))

    def after_step(self, batch: Batch, output: Outputs) -> None:
        super().after_step(batch, output)
        if self.step % self.per_epoch == 0:  # validated is what would be derived now
            self.net.take(self.net.best())

    def learn(self, batch: Batch, output: Outputs) -> None:
        choices, rewards = [], []
        rows = self.next_valid()
        for number in range(self.teaching.draws):
            choice = drawn(self.values, generator(self.seed, "score", self.learned, number))
            self.net.take(choice)
            with torch.no_grad(), scoring(self.model):
                quality = _quality(self.task, output(rows), rows.label)
            choices.append(choice)
            rewards.append(quality - self.net.price(choice))
            self.samples += rows.of
        goal = objective(self.values, choices, self.baseline.advantages(rewards))
        loss = -goal - self.teaching.entropy * entropy(self.values)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()

    def figures(self) -> list[Figure]:
        note = "Moving mean of the rewards: quality on validation rows with shared weights, less the price."
        return [curves("Reward over training", note, ("epoch", self.epochs), "reward", {"reward": self.rewards})]

    def state(self) -> dict[str, Any]:
        return {**super().state(), **vars(self.baseline), "rewards": self.rewards}

    def load_state(self, saved: dict[str, Any]) -> None:
        super().load_state(saved)
        self.baseline = Baseline(**{name: saved[name] for name in vars(self.baseline)})
        self.rewards = saved["rewards"]

    def _next(self, random: torch.Generator) -> Choice | None:
        """What the weights' next step takes."""
        if self.step >= self.frozen:
            return drawn(self.values, random)
        everything = float(torch.rand((), generator=random)) < 1 - self.step / self.frozen
        return None if everything else uniform(self.values, random)

    def _note(self) -> None:
        super()._note()
        self.rewards.append(self.baseline.reward)


@dataclass
class Baseline:
    """What rewards are measured against; moving means, still to be divided by their weight."""

    updates: int = 0
    mean: float = 0.0
    """Of rewards."""
    square: float = 0.0
    """Of squared advantages."""

    @property
    def reward(self) -> float | None:
        """The moving mean of rewards, None before the first."""
        return self.mean / self._weight if self.updates else None

    def advantages(self, rewards: Sequence[float]) -> list[float]:
        """How much better each draw was than expected, in moving deviations."""
        reward_K = np.array(rewards)
        expected = self.reward if self.updates else reward_K
        advantage_K = against_others(reward_K) if len(reward_K) > 1 else reward_K - expected
        self.updates += 1
        self.mean = FORGETTING * self.mean + (1 - FORGETTING) * float(reward_K.mean())
        self.square = FORGETTING * self.square + (1 - FORGETTING) * float(np.square(advantage_K).mean())
        deviation = (self.square / self._weight) ** 0.5
        nothing = NOISE * max(1.0, abs(self.mean))
        return [float(advantage) / deviation if deviation > nothing else 0.0 for advantage in advantage_K]

    @property
    def _weight(self) -> float:
        return 1 - float(FORGETTING**self.updates)


def against_others(reward_K: Vector) -> Vector:
    """Each reward less the mean of the others, which makes a baseline that does not depend on it."""
    others_K: Vector = (reward_K.sum() - reward_K) / (len(reward_K) - 1)
    return reward_K - others_K


def objective(policy: Mapping[str, Tensor], choices: Sequence[Choice], advantages: Sequence[float]) -> Tensor:
    """What a step of REINFORCE climbs: its gradient estimates that of the expected reward."""
    logs = [log_probability(policy, choice) for choice in choices]
    return torch.stack(logs) @ torch.tensor(advantages, dtype=torch.float32) / len(choices)


def generator(seed: int, purpose: str, *numbers: int) -> torch.Generator:
    """Random numbers of one draw: the same ones whether a search was killed before it or not, and on every process."""
    state = np.random.SeedSequence([seed, *purpose.encode(), *numbers]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def drawn(policy: Mapping[str, Tensor], random: torch.Generator) -> Choice:
    """A choice of the policy."""
    chances = {name: logits.detach().softmax(dim=1) for name, logits in policy.items()}
    return {name: torch.multinomial(chance, 1, generator=random).flatten() for name, chance in chances.items()}


def uniform(policy: Mapping[str, Tensor], random: torch.Generator) -> Choice:
    """A choice in which every option of a decision is as likely."""
    return drawn({name: torch.zeros_like(logits) for name, logits in policy.items()}, random)


def log_probability(policy: Mapping[str, Tensor], choice: Choice) -> Tensor:
    """Of a choice."""
    logs = [logits.log_softmax(dim=1).gather(1, choice[name][:, None]) for name, logits in policy.items()]
    return torch.cat(logs).sum()


def entropy(policy: Mapping[str, Tensor]) -> Tensor:
    """Of all decisions together, in nats."""
    logs = [logits.log_softmax(dim=1) for logits in policy.values()]
    return -torch.stack([(log.exp() * log).sum() for log in logs]).sum()


@contextmanager
def scoring(model: nn.Module) -> Iterator[None]:
    """Choices are compared: without dropout, and normalised by the statistics of the rows at hand.

    The statistics that a normalisation keeps are those of all choices mixed, which fit none of them.
    """
    training = {module: module.training for module in model.modules()}
    model.eval()
    with buffers_kept(model):
        for module in training:
            if isinstance(module, BatchNorm):
                module.train()
        yield
    for module, was in training.items():
        module.training = was


def _quality(task: Task, output_B: Tensor, label_B: Tensor) -> float:
    label, output = gather_rows(label_B.cpu()).numpy(), gather_rows(output_B.cpu()).double().numpy()
    if task == "rating":
        return -metrics.mse(label, output)
    auc = metrics.auc(label, output)
    return BLIND if np.isnan(auc) else auc
