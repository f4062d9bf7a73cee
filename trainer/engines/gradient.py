"""Search by gradient: a supernet whose choices are relaxed to gates is trained once, then an architecture is derived.

A method gives a `Supernet`: a built model, the gates in it, how they are relaxed and when they are updated, and what
the gates say in the end. The engine knows no method.

Weights always learn from training rows. The gates learn (`Supernet.level`)

* single: from the same gradient as the weights (AutoFIS);
* alternating: from a second pass over the same batch, after the weights' step (AutoGroup);
* bilevel: from a batch of validation rows after every `every` steps of the weights (AutoDim): DARTS' bilevel problem in
  its first-order form (Liu, Simonyan and Yang 2019, section 2.3). These batches change nothing but the gates.
"""

from typing import Any, Literal, Protocol

import torch
from torch import nn

from trainer.data import Batch, Table
from trainer.engines import supernet
from trainer.engines.supernet import Found, Learner, Trace, buffers_kept
from trainer.fit import Outputs, loss
from trainer.processes import rank_and_world, summed
from trainer.settings import TrainSettings

Level = Literal["single", "alternating", "bilevel"]


class Supernet(supernet.Supernet, Protocol):
    """What a method gives the engine."""

    gates: dict[str, nn.Parameter]
    """The gates by a name for the reader; all are parameters of the model."""
    level: Level

    def optimizer(self, steps: int) -> torch.optim.Optimizer:
        """The optimizer of the gates, which will be updated `steps` times."""

    def relax(self, progress: float, *, frozen: bool, deciding: bool) -> None:
        """Set temperature and noise before a forward pass.

        `progress` goes from 0 to 1 over the steps in which the gates learn; `frozen`: these have not begun; `deciding`:
        the pass is for the gates alone.
        """


def search(net: Supernet, train: Table, valid: Table, settings: TrainSettings, *, seed: int, **rest: Any) -> Found:
    """Train the supernet and derive; one without gates has nothing to learn. `rest` as in `supernet.train`."""
    if not net.gates:
        return Found(net.derive(), net.figures(Trace([], {})), 0.0, 0)
    gates = _Gates(net, train, valid, settings.batch_size, seed)

    def finish() -> tuple[()]:
        net.relax(1.0, frozen=False, deciding=False)
        return ()

    return supernet.train(net, gates, (train, valid), settings, seed=seed, finish=finish, **rest)


class _Gates(Learner):
    """Gates are parameters of the model, which the weights' optimizers leave alone."""

    def __init__(self, net: Supernet, train: Table, valid: Table, batch_size: int, seed: int) -> None:
        super().__init__(net, net.gates, net.optimizer, train, valid, batch_size, seed)
        self.net = net
        names = {id(weight): name for name, weight in net.model.named_parameters()}
        self.names = frozenset(names[id(gate)] for gate in net.gates.values())

    def before_step(self, batch: Batch, output: Outputs) -> None:
        self._relax(deciding=False)

    def learn(self, batch: Batch, output: Outputs) -> None:
        if self.net.level != "single":
            batch = batch if self.net.level == "alternating" else self.next_valid()
            self._relax(deciding=True)
            gates = list(self.values.values())
            with buffers_kept(self.model):
                # Gradients of the gates alone: those of the weights are not even computed.
                gradients = torch.autograd.grad(loss(self.task, output(batch), batch), gates)
            for gate, gradient in zip(gates, gradients, strict=True):
                gate.grad = summed(gradient) / rank_and_world()[1]
            self.samples += batch.of
            self._relax(deciding=False)
        self.optimizer.step()

    def _relax(self, *, deciding: bool) -> None:
        self.net.relax(self.progress(), frozen=self.step < self.frozen, deciding=deciding)
