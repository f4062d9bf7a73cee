"""The running average of the weights over the steps: often the better model, at the price of one pass over them.

Averaging of iterates goes back to Polyak and Juditsky (1992); with exponential weights it follows the newest ones.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.modules.tables import Leaf
from trainer.optim import Optimizers


class RunningAverage:
    """`average_t = decay * average_(t-1) + (1 - decay) * weight_t`, started at 0 and divided by `1 - decay**t`.

    The division makes it a true weighted mean from the first step on (as Adam does with its moments), so early epochs
    are not pulled towards the fresh weights. Floating-point buffers (statistics of batch norm) are averaged alike. Rows
    of lazily trained tables are averaged by their optimizer when they are touched: between touches a row rests, so the
    steps missed have a closed form, `sum * decay**k + weight * (1 - decay**k)`.
    """

    def __init__(self, weights: dict[str, Tensor], optimizers: Optimizers, decay: float) -> None:
        """`weights`: the weights and buffers of the model by name, as live tensors (`sharding.local_weights`)."""
        self.decay = decay
        self.steps = 0
        self._optimizers = optimizers
        trained = {name for leaf in optimizers.leaves for name in leaf.parts}
        others = {name: value for name, value in weights.items() if name not in trained and value.is_floating_point()}
        self._eager = [leaf for leaf in optimizers.leaves if leaf not in optimizers.lazy]
        self._eager += [Leaf(value, {name: slice(None)}) for name, value in others.items()]
        self._sums = {leaf.weight: torch.zeros_like(leaf.weight, requires_grad=False) for leaf in self._eager}

    @torch.no_grad()
    def after_step(self) -> None:
        """Count the new weights in."""
        self.steps += 1
        weights = [leaf.weight.detach() for leaf in self._eager]
        torch._foreach_lerp_([self._sums[leaf.weight] for leaf in self._eager], weights, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within it the model holds the averages; afterwards its own weights again."""
        leaves = [*self._eager, *self._optimizers.lazy]
        own = [leaf.weight.detach().clone() for leaf in leaves]
        try:
            self.apply()
            yield
        finally:
            for leaf, value in zip(leaves, own, strict=True):
                leaf.weight.detach().copy_(value)

    @torch.no_grad()
    def apply(self) -> None:
        """Write the averages into the model."""
        scale = 1 / (1 - self.decay**self.steps)
        for leaf in self._optimizers.lazy:
            self._optimizers.apply_average(leaf, scale)
        for weight, total in self._sums.items():
            torch.mul(total, scale, out=weight.detach())

    def state(self) -> dict[str, Tensor]:
        """Tensors that hold the whole state (not copies), but for what the lazy optimizer holds."""
        sums = [leaf.split(self._sums[leaf.weight]) for leaf in self._eager]
        by_name = {f"sum/{name}": value for split in sums for name, value in split.items()}
        return {**by_name, "steps": torch.tensor(self.steps)}

    def load_state(self, saved: dict[str, Tensor]) -> None:
        self.steps = int(saved["steps"])
        for leaf in self._eager:
            self._sums[leaf.weight].copy_(leaf.joined({name: saved[f"sum/{name}"] for name in leaf.parts}))
