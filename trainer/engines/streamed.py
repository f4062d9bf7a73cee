"""Search on a stream: rows pass once in their order, and embeddings of single categories grow while they do.

A method gives a `Supernet`: a built model in which every category of some fields has one of several sizes now, how
likely it grows by one size when it is met, and a policy to learn that by or none. What is done with a batch:

* Each category in it acts once, growing or keeping its size, drawn from how often it has been met and its size.
* The batch is scored as it would be served, without dropout and with the statistics kept so far (prequential quality:
  nothing has been learned from these rows). A category's loss is the mean of its rows'.
* The weights learn from the batch, and so does the policy, by REINFORCE (Williams 1992).

A category's reward is the mean of its losses at its last T visits less the loss now (ESAPN, Liu 2020). An action
changes no output by itself, only what can be learned from then on: a reward is credited to the actions of the T visits
before it, not to the one just taken, which no loss at hand depends on. An action that lowers all later losses by c is
thereby credited c (T + 1) / 2 in all. What is credited is how much better the reward is than what categories that were
met about as often had so far (`Expected`): losses fall fastest at the first visits, whatever is done.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from trainer import figures, metrics
from trainer.data import Batch, Table
from trainer.engines import supernet
from trainer.engines.sampled import FORGETTING, generator
from trainer.engines.supernet import Found, Learner
from trainer.figures import Cell, Figure
from trainer.fit import Outputs, answers
from trainer.metrics import Vector
from trainer.schema import Task
from trainer.settings import TrainSettings

BUCKETS = 64
"""Of frequency: enough for 2**31 rows."""
WINDOWS = 40
"""Pieces of the stream whose quality is shown."""
BANDS = (0, 1, 10, 100, 1000)
"""Where bands of frequency begin: how often a category has been met."""


class Growth(Protocol):
    """How likely the categories of a field grow."""

    def logs(self) -> Tensor:
        """Log-probabilities (states, 2) of keeping and of growing."""

    def states(self, count_N: Tensor, size_N: Tensor) -> Tensor:
        """The state (N,) int64 of categories that were met in `count_N` rows and have these sizes."""


class Supernet(supernet.Supernet, Protocol):
    """What a method gives the engine."""

    widths: list[int]
    """The sizes, rising."""
    growth: dict[str, Growth]
    """By field."""
    policy: dict[str, nn.Parameter]
    """What is learned of it, by a name for the reader; empty where a rule decides. No parameters of the model."""
    rate: float
    """Adam's, for the policy."""
    last: int
    """T: visits that a reward looks back on, and credits."""

    def sizes(self, field: str) -> Tensor:
        """The place of each category's size among `widths`, (categories,) int64; on the model's device."""

    def enlarge(self, field: str, id_N: Tensor) -> None:
        """Different categories grow by one size. What the model gives for them stays as it was."""


def search(net: Supernet, train: Table, valid: Table, settings: TrainSettings, *, seed: int, **rest: Any) -> Found:
    """Let the training rows pass in their order, and derive. `rest` as in `supernet.train`."""
    settings = net.schedule.training(settings)
    stream = Stream(net, train, valid, settings.batch_size, seed)
    return supernet.train(net, stream, (train, valid), settings, seed=seed, **rest)


class Followed:
    """What is known of a field's R categories: how often they were met, and their last T losses and actions."""

    def __init__(self, categories: int, last: int) -> None:
        self.count_R = torch.zeros(categories, dtype=torch.int64)
        """Rows."""
        self.visits_R = torch.zeros(categories, dtype=torch.int64)
        """Batches."""
        self.loss_RT = torch.zeros(categories, last)
        self.action_RT = torch.zeros(categories, last, dtype=torch.int64)
        """2 * state + 1 where it grew, 2 * state where not; both are rings."""

    def known(self, id_N: Tensor) -> Tensor:
        """Which places of the rings hold anything, (N, T) bool."""
        return torch.arange(self.loss_RT.shape[1]) < self.visits_R[id_N, None]

    def mean(self, id_N: Tensor) -> Tensor:
        """Of the losses at the last visits, T at most, (N,); NaN before the first."""
        known_NT = self.known(id_N)
        return (self.loss_RT[id_N] * known_NT).sum(dim=1) / known_NT.sum(dim=1)

    def push(self, visit: "Visit", loss_N: Tensor) -> None:
        """Its categories were met, with these losses."""
        place_N = self.visits_R[visit.ids] % self.loss_RT.shape[1]
        self.loss_RT[visit.ids, place_N], self.action_RT[visit.ids, place_N] = loss_N, visit.actions
        self.visits_R[visit.ids] += 1
        self.count_R[visit.ids] += visit.rows


class Expected:
    """The moving mean of rewards by bucket of frequency, which no action changes, so that it makes a fair baseline."""

    def __init__(self) -> None:
        self.mean_F, self.weight_F = torch.zeros(2, BUCKETS)
        """Moving sums of batches' means and of their weights."""

    def advantages(self, count_N: Tensor, reward_N: Tensor) -> Tensor:
        """How much better rewards are than those of earlier batches, 0 where there is none; (N,)."""
        bucket_N = bucket(count_N)
        known_N = self.weight_F[bucket_N] > 0
        expected_N = (self.mean_F / self.weight_F)[bucket_N]
        advantage_N = torch.where(known_N, reward_N - expected_N, 0.0)
        number_F = torch.bincount(bucket_N, minlength=BUCKETS)
        total_F = torch.zeros(BUCKETS).index_add_(0, bucket_N, reward_N)
        met_F = number_F > 0
        self.mean_F[met_F] = torch.lerp(total_F / number_F, self.mean_F, FORGETTING)[met_F]
        self.weight_F[met_F] = torch.lerp(torch.ones(BUCKETS), self.weight_F, FORGETTING)[met_F]
        return advantage_N


def bucket(count_N: Tensor) -> Tensor:
    """Of frequency, (N,) int64: two for each doubling."""
    return (2 * torch.log2(1 + count_N.double())).long()


@dataclass(frozen=True)
class Visit:
    """The N categories of a field that a batch of B rows meets, and what each of them does."""

    ids: Tensor
    """(N,)"""
    places: Tensor
    """(B,) the place of each row's category among them."""
    rows: Tensor
    """(N,) how many rows have it."""
    actions: Tensor
    """(N,) as in `Followed.action_RT`."""


class Stream(Learner):
    """The policy's side of the fit loop."""

    def __init__(self, net: Supernet, train: Table, valid: Table, batch_size: int, seed: int) -> None:
        self.net, self.schema, self.label_N = net, train.schema, train.label
        names = train.schema.names("categorical")
        self.columns = {field: names.index(field) for field in net.growth}
        self.followed = {field: Followed(len(net.sizes(field)), net.last) for field in self.columns}
        self.expected = {field: Expected() for field in self.columns}
        self.answer_N = torch.full((train.rows,), torch.nan)
        """What was said of each row before it was learned from (`fit.answers`)."""
        self.count_FN = torch.zeros(len(self.columns), train.rows, dtype=torch.int32)
        """How often its category in each field had then been met."""
        self.logs: dict[str, Tensor] = {}
        self.credits: dict[str, Tensor] = {}

        def adam(steps: int) -> torch.optim.Optimizer:
            return torch.optim.Adam([{"params": list(net.policy.values())}], lr=net.rate)

        super().__init__(net, net.policy, adam, train, valid, batch_size, seed)

    def before_step(self, batch: Batch, output: Outputs) -> None:
        self.logs = {field: growth.logs() for field, growth in self.net.growth.items()}
        visits = {field: self._act(field, batch.categorical[:, place]) for field, place in self.columns.items()}
        loss_B = self._score(batch, output, visits)
        for field, visit in visits.items():
            followed = self.followed[field]
            loss_N = torch.zeros(len(visit.ids)).index_add_(0, visit.places, loss_B) / visit.rows
            self.credits[field] = self._credit(field, visit.ids, loss_N)
            followed.push(visit, loss_N)

    def learn(self, batch: Batch, output: Outputs) -> None:
        if self.values:
            loss = -torch.stack([objective(self.logs[field], credit) for field, credit in self.credits.items()]).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()

    def notes(self) -> Mapping[str, Tensor]:
        """For each field the number of categories by (band of frequency, size)."""
        return {field: self._counted(field) for field in self.columns}

    def figures(self) -> list[Figure]:
        return quality_figures(self.schema.task, self.label_N, self.answer_N, self.count_FN, list(self.columns))

    def state(self) -> dict[str, Any]:
        return {**super().state(), **self._kept()}

    def load_state(self, saved: dict[str, Any]) -> None:
        super().load_state(saved)
        for name, value in self._kept().items():
            value.copy_(saved[name])

    def _kept(self) -> dict[str, Tensor]:
        """All that changes while rows pass, not copies."""
        kept = {"answers": self.answer_N, "counts": self.count_FN}
        for field in self.columns:
            kept[f"size/{field}"] = self.net.sizes(field)
            for known in (self.followed[field], self.expected[field]):
                kept |= {f"{name}/{field}": value for name, value in vars(known).items()}
        return kept

    def _act(self, field: str, id_B: Tensor) -> Visit:
        id_N, place_B, rows_N = torch.unique(id_B.cpu(), return_inverse=True, return_counts=True)
        sizes = self.net.sizes(field)
        size_N = sizes[id_N.to(sizes.device)].cpu()
        state_N = self.net.growth[field].states(self.followed[field].count_R[id_N], size_N)
        chance_N = self.logs[field].detach()[state_N, 1].exp()
        grown_N = torch.rand(len(id_N), generator=generator(self.seed, f"grow {field}", self.step)) < chance_N
        self.net.enlarge(field, id_N[grown_N].to(sizes.device))
        return Visit(id_N, place_B, rows_N, 2 * state_N + grown_N)

    @torch.no_grad()
    def _score(self, batch: Batch, output: Outputs, visits: Mapping[str, Visit]) -> Tensor:
        """The loss of each row, (B,), before it is learned from."""
        self.model.eval()
        answer_B = answers(self.schema, output(batch).double().cpu())
        self.model.train()
        here = slice(self.step * self.batch_size, self.step * self.batch_size + batch.size)
        self.answer_N[here] = answer_B.float()
        for place, (field, visit) in enumerate(visits.items()):
            self.count_FN[place, here] = self.followed[field].count_R[visit.ids][visit.places].int()
        return torch.from_numpy(metrics.losses(self.task, batch.label.cpu().numpy(), answer_B.numpy())).float()

    def _credit(self, field: str, id_N: Tensor, loss_N: Tensor) -> Tensor:
        """How much better than expected came after each action in each state, a sum over categories (2 * states,)."""
        followed, credit = self.followed[field], torch.zeros(self.logs[field].numel())
        met_N = followed.visits_R[id_N] > 0
        if met_N.any():
            id_K = id_N[met_N]
            reward_K = followed.mean(id_K) - loss_N[met_N]
            advantage_K = self.expected[field].advantages(followed.count_R[id_K], reward_K) / len(id_K)
            known_KT = followed.known(id_K)
            credit.index_add_(0, followed.action_RT[id_K][known_KT], advantage_K[:, None].expand_as(known_KT)[known_KT])
        return credit

    def _counted(self, field: str) -> Tensor:
        sizes, band_R = len(self.net.widths), band(self.followed[field].count_R)
        counted = torch.bincount(band_R * sizes + self.net.sizes(field).cpu(), minlength=len(BANDS) * sizes)
        return counted.view(len(BANDS), sizes)


def objective(log_SA: Tensor, credit: Tensor) -> Tensor:
    """What a step of REINFORCE climbs: log-probabilities (states, 2) times credits (2 * states,)."""
    return log_SA.flatten() @ credit


# ---- what is shown --------------------------------------------------------------------------------------------------

BAND_NAMES = ("new", "1–9", "10–99", "100–999", "1,000 and more")


def band(count_N: Tensor) -> Tensor:
    """The band of frequency of each count, (N,) int64."""
    return torch.bucketize(count_N, torch.tensor(BANDS), right=True) - 1


def quality(task: Task, label_N: Vector, answer_N: Vector) -> dict[str, float | None]:
    """The task's metrics, and the accuracy of clicks; None where rows of one class leave an AUC undefined."""
    if not len(label_N):
        return {}
    measured: dict[str, float | None] = dict(metrics.evaluate(task, label_N, answer_N))
    if task == "ctr":
        measured["accuracy"] = float(((answer_N >= 0.5) == (label_N >= 0.5)).mean())
    return {name: None if value is None or np.isnan(value) else value for name, value in measured.items()}


def quality_figures(
    task: Task, label_N: Tensor, answer_N: Tensor, count_FN: Tensor, fields: Sequence[str]
) -> list[Figure]:
    """Prequential quality over the stream and by frequency: answers and counts from before a row was learned from."""
    label, answer, main = label_N.double().numpy(), answer_N.double().numpy(), metrics.MAIN[task]
    windows = np.array_split(np.arange(len(label)), min(WINDOWS, len(label)))
    passed = ("rows", [float(window[-1] + 1) for window in windows])
    note = "Every batch is scored before it is learned from; one point for each of equally long pieces of the stream."
    over = [quality(task, label[window], answer[window]) for window in windows]
    shown = [
        figures.curves(f"{name} over the stream", note, passed, name, {"all rows": [one[name] for one in over]})
        for name in over[0]
    ]
    rows: list[list[Cell]] = [["all", len(label), *quality(task, label, answer).values()]]
    for field, band_N in zip(fields, map(band, count_FN), strict=True):
        bands = band_N.numpy()
        lines = {}
        for number, name in enumerate(BAND_NAMES):
            inside = [window[bands[window] == number] for window in windows]
            lines[name] = [quality(task, label[window], answer[window]).get(main) for window in inside]
            mine = bands == number
            if mine.any():
                found = quality(task, label[mine], answer[mine])
                rows.append([f"{field}: {name}", int(mine.sum()), *found.values()])
        title = f"{main} over the stream by how often the {field} had been met"
        shown.append(figures.curves(title, note, passed, main, lines))
    heads = ["rows by frequency", "rows", *over[0]]
    return [*shown, figures.table("Quality on the stream", "Before each row was learned from.", heads, rows)]
