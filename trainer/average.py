"""The running average of the weights over the steps: often the better model, at the price of one pass over them.

Averaging of iterates goes back to Polyak and Juditsky (1992); with exponential weights it follows the newest ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.optim import Optimizers


class RunningAverage:
    """`average_t = decay * average_(t-1) + (1 - decay) * weight_t`, started at 0 and divided by `1 - decay**t`.

    The division makes it a true weighted mean from the first step on (as Adam does with its moments), so early epochs
    are not pulled towards the fresh weights. Floating-point buffers (statistics of batch norm) are averaged alike. Rows
    of lazily trained tables are averaged when they are touched: between touches a row rests, so the steps missed have
    a closed form.
    """

    def __init__(self, weights: dict[str, Tensor], optimizers: Optimizers, decay: float) -> None:
        """`weights`: the weights and buffers of the model by name, as live tensors (`sharding.local_weights`)."""
        self.decay = decay
        self.steps = 0
        self._live = {name: value for name, value in weights.items() if value.is_floating_point()}
        self._sums = {name: torch.zeros_like(value) for name, value in self._live.items()}
        self._lazy = {name: optimizers.named[name] for name in sorted(optimizers.lazy)}
        self._reached = {name: torch.zeros(table.shape[0], dtype=torch.int32) for name, table in self._lazy.items()}
        self._eager = [name for name in self._live if name not in self._lazy]

    @torch.no_grad()
    def before_step(self) -> None:
        """Bring the rows that the coming step changes up to date; gradients must be coalesced."""
        for name, table in self._lazy.items():
            if table.grad is not None:
                self._catch_up(name, table.grad._indices()[0])

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the new weights in."""
        self.steps += 1
        torch._foreach_lerp_(
            [self._sums[name] for name in self._eager], [self._live[name] for name in self._eager], 1 - self.decay
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model holds the averages; afterwards its own weights again."""
        own = {name: value.clone() for name, value in self._live.items()}
        try:
            self.apply()
            yield
        finally:
            for name, value in self._live.items():
                value.copy_(own[name])

    @torch.no_grad()
    def apply(self) -> None:
        """Write the averages into the model."""
        for name, table in self._lazy.items():
            self._catch_up(name, torch.arange(table.shape[0]))
        for name, value in self._live.items():
            torch.mul(self._sums[name], 1 / (1 - self.decay**self.steps), out=value)

    def state(self) -> dict[str, Tensor]:
        """Tensors that hold the whole state (not copies)."""
        sums = {f"sum/{name}": value for name, value in self._sums.items()}
        reached = {f"reached/{name}": value for name, value in self._reached.items()}
        return {**sums, **reached, "steps": torch.tensor(self.steps)}

    def load_state(self, saved: dict[str, Tensor]) -> None:
        self.steps = int(saved["steps"])
        for name, value in self._sums.items():
            value.copy_(saved[f"sum/{name}"])
        for name, value in self._reached.items():
            value.copy_(saved[f"reached/{name}"])

    def _catch_up(self, name: str, rows: Tensor) -> None:
        """A weight that rested for k steps: `sum * decay**k + weight * (1 - decay**k)`."""
        missed = self.steps - self._reached[name].index_select(0, rows)
        kept = torch.pow(self.decay, missed.to(torch.float32))[:, None]
        sums = torch.lerp(self._lazy[name].index_select(0, rows), self._sums[name].index_select(0, rows), kept)
        self._sums[name].index_copy_(0, rows, sums)
        self._reached[name].index_fill_(0, rows, self.steps)
