"""The optimizers of one training: Adam for everything, dense or touching only the rows a batch uses.

The L2 penalties are penalties of the loss (coupled: `gradient += l2 * weight` before Adam's scaling), as in the field's
hand-made models, not AdamW's decay. Biases and other one-dimensional weights outside tables are not penalised.
"""

from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trainer.cpu import zeros
from trainer.modules.tables import Leaf, leaves
from trainer.settings import TrainSettings

LAZY_ROWS_PER_BATCH_ROW = 25
"""`table_optimizer: auto` is lazy for tables looked up together that have more rows than this times the batch size.

Dense Adam is what published results were made with, so it is kept for as long as it is nearly free. On one core (dim
16, batch 4,096; backward and step) one lazy table costs 2.3 ms at any size, a dense one 1.9 ms at 10,000 rows, 3.1 at
50,000, 6.3 at 100,000, 59 at 1,000,000.
"""


_ROWS_AT_ONCE = 1 << 20
"""Of a table as large as memory allows, no second copy is made."""


class LazyAdam(torch.optim.Optimizer):
    """Adam for tables with sparse gradients: a step costs the rows the batch touches, whatever the table's size.

    Moments of untouched rows rest (as in torch's `SparseAdam`). The penalty does not: a row that was last touched k
    steps ago gets `k * l2 * row`, what dense L2 would have added to its gradients meanwhile, so both optimizers
    minimise the same objective and `l2` means the same. When every row is touched at every step this is exactly dense
    Adam. (Paying skipped penalties at the next touch: Carpenter, "Lazy sparse stochastic gradient descent", 2008.)

    MovieLens-1M clicks, DeepFM, L2 1e-3, one seed: test AUC / log loss .8257/.5013, dense .8262/.5005
    (docs/performance.md, "Same quality").
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        l2: float,
        betas: tuple[float, float] = (0.9, 0.999),
        shares: Mapping[Tensor, Tensor] | None = None,
        average: float = 0.0,
    ) -> None:
        """Make the state, all zeros.

        Args:
            params: tables, (rows, dim).
            lr: learning rate.
            l2: factor of the penalty's gradient.
            betas: decays of the two moments.
            shares: table -> (rows,) factor of each row's penalty (`Optimizers`); 1 where there is none.
            average: decay of the rows' running mean (`average.RunningAverage`), which is kept here, for it too changes
                only with the rows that are touched; 0: there is none.
        """
        super().__init__(params, {"lr": lr, "l2": l2, "betas": betas})
        self._shares = shares or {}
        self._average = average
        for table in self._tables():
            # Side by side, for rows of large tables cost by the places in memory that they are fetched from.
            values = zeros(table.shape[0], 3 if average else 2, table.shape[1], device=table.device)
            touched = zeros(table.shape[0], dtype=torch.int32, device=table.device)
            self.state[table] = {"step": torch.zeros(()), "values": values, "touched": touched}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the rows of each gradient; gradients must be coalesced sparse tensors."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, table.grad._indices()[0], table.grad._values(), group)

    @torch.no_grad()
    def apply_average(self, table: Tensor, scale: float) -> None:
        """Overwrite a table with `scale` times the sum of its running mean, every row's latest weights counted in."""
        state = self.state[table]
        parts = (value.split(_ROWS_AT_ONCE) for value in (table, state["values"], state["touched"]))
        for row_RD, value_RKD, touched_R in zip(*parts, strict=True):
            missed_R = state["step"] + 1 - touched_R.clamp(min=1)
            row_RD.copy_(torch.lerp(row_RD, value_RKD[:, 2], self._kept(missed_R)).mul_(scale))

    def _update(self, table: Tensor, row_U: Tensor, gradient_UD: Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[table], group["betas"]
        state["step"] += 1
        step = int(state["step"])
        weight_UD, value_UKD = table.index_select(0, row_U), state["values"].index_select(0, row_U)
        touched_U = state["touched"].index_select(0, row_U)
        state["touched"].index_fill_(0, row_U, step)
        if self._average:
            value_UKD[:, 2] = torch.lerp(weight_UD, value_UKD[:, 2], self._kept(step - touched_U.clamp(min=1)))
        if group["l2"]:
            times_U = (step - touched_U).float()
            if table in self._shares:
                times_U *= self._shares[table].index_select(0, row_U)
            gradient_UD = gradient_UD.addcmul(weight_UD, times_U[:, None], value=group["l2"])
        mean_UD, square_UD = value_UKD[:, 0], value_UKD[:, 1]
        mean_UD.lerp_(gradient_UD, 1 - beta1)
        square_UD.mul_(beta2).addcmul_(gradient_UD, gradient_UD, value=1 - beta2)
        scale_UD = square_UD.sqrt().mul_((1 - beta2**step) ** -0.5).add_(1e-8)
        weight_UD.addcdiv_(mean_UD, scale_UD, value=-group["lr"] / (1 - beta1**step))
        table.index_copy_(0, row_U, weight_UD)
        state["values"].index_copy_(0, row_U, value_UKD)

    def _kept(self, missed_U: Tensor) -> Tensor:
        """How much is left of an average after a row rested for so many steps, (rows, 1)."""
        return torch.pow(self._average, missed_U.float())[:, None]

    def _tables(self) -> Iterable[Tensor]:
        return (table for group in self.param_groups for table in group["params"])


class Optimizers:
    """All optimizers of a model behind one `step`, with their state keyed by the parameters' names."""

    def __init__(
        self,
        model: nn.Module,
        tables: set[str],
        settings: TrainSettings,
        shares: Mapping[str, Tensor] | None = None,
        without: Container[str] = (),
    ) -> None:
        """Choose an optimizer for each parameter.

        Args:
            model: its large tables are switched to sparse gradients where the settings ask for the lazy optimizer.
            tables: names of the parameters that count as embedding tables.
            shares: table's name -> (rows,) factor of each row's `table_l2`; rows of other tables have factor 1.
            without: names of parameters that something else trains.
        """
        self.leaves = [leaf for leaf in leaves(model) if not any(name in without for name in leaf.parts)]
        self.lazy = [leaf for leaf in self.leaves if _make_lazy(leaf, settings)]
        self._l2 = settings.table_l2
        self._shares = _leaf_shares(self.leaves, shares or {})
        encoders = [leaf for leaf in self.leaves if tables & leaf.parts.keys()]
        others = [leaf for leaf in self.leaves if leaf not in encoders]
        dense = [leaf for leaf in encoders if leaf not in self.lazy]
        table_rate = settings.table_learning_rate or settings.learning_rate
        groups = [
            _group([leaf for leaf in dense if leaf.weight not in self._shares], table_rate, settings.table_l2),
            _group([leaf for leaf in dense if leaf.weight in self._shares], table_rate, 0.0),
            _group([leaf for leaf in others if leaf.weight.dim() > 1], settings.learning_rate, settings.weight_decay),
            _group([leaf for leaf in others if leaf.weight.dim() < 2], settings.learning_rate, 0.0),
        ]
        self._all: list[torch.optim.Optimizer] = []
        if any(group["params"] for group in groups):
            self._all.append(torch.optim.Adam([group for group in groups if group["params"]], fused=True))
        if self.lazy:
            weights = [leaf.weight for leaf in self.lazy]
            self._lazy = LazyAdam(weights, table_rate, settings.table_l2, shares=self._shares, average=settings.average)
            self._all.append(self._lazy)

    def zero_grad(self) -> None:
        for optimizer in self._all:
            optimizer.zero_grad()

    def coalesce(self) -> None:
        """Sum the sparse gradients by row; once after `backward`, before anything reads them."""
        for leaf in self.lazy:
            if leaf.weight.grad is None:
                continue
            if leaf.pool is not None and leaf.pool.once:  # autograd has lost the mark that the look-up set
                leaf.weight.grad._coalesced_(True)
            leaf.weight.grad = leaf.weight.grad.coalesce()

    @torch.no_grad()
    def step(self, without: Collection[str] = ()) -> None:
        """Update all leaves but those that consist of parameters named in `without`, which rest with their moments."""
        names = frozenset(without)
        resting = {id(leaf.weight) for leaf in self.leaves if leaf.parts.keys() <= names} if names else set[int]()
        for weight, share in self._shares.items():
            if weight.grad is not None and not weight.grad.is_sparse:
                weight.grad.addcmul_(weight, share[:, None], value=self._l2)
        for optimizer in self._all:
            with _left_out(optimizer, resting):
                optimizer.step()

    def apply_average(self, leaf: Leaf, scale: float) -> None:
        """Overwrite a lazily trained leaf with `scale` times the sum of its running mean (`RunningAverage`)."""
        self._lazy.apply_average(leaf.weight, scale)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Parameter name -> state tensors (not copies)."""
        states: dict[str, dict[str, Tensor]] = {}
        for leaf in self.leaves:
            for key, value in self._state(leaf).items():
                for name, part in leaf.split(value).items():
                    states.setdefault(name, {})[key] = part
        return states

    def load_state(self, saved: dict[str, dict[str, Tensor]]) -> None:
        for leaf in self.leaves:
            if all(name in saved for name in leaf.parts):
                keys = saved[next(iter(leaf.parts))].keys()
                state = {key: leaf.joined({name: saved[name][key] for name in leaf.parts}) for key in keys}
                self._optimizer(leaf).state[leaf.weight] = state

    def _state(self, leaf: Leaf) -> dict[str, Tensor]:
        state: dict[str, Tensor] = self._optimizer(leaf).state.get(leaf.weight, {})
        return state

    def _optimizer(self, leaf: Leaf) -> torch.optim.Optimizer:
        return self._all[-1] if leaf in self.lazy else self._all[0]


@contextmanager
def _left_out(optimizer: torch.optim.Optimizer, resting: Container[int]) -> Iterator[None]:
    """Within it the optimizer does not know these weights.

    Their gradients may be zeros instead of none, and cannot be dropped: those of TorchRec's tables share a tensor.
    """
    every = [group["params"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in resting]
    yield
    for group, weights in zip(optimizer.param_groups, every, strict=True):
        group["params"] = weights


def _group(group: list[Leaf], rate: float, l2: float) -> dict[str, Any]:
    return {"params": [leaf.weight for leaf in group], "lr": rate, "weight_decay": l2}


def _make_lazy(leaf: Leaf, settings: TrainSettings) -> bool:
    """Whether a leaf is trained lazily; its gradients are sparse then.

    Only pools of tables can be. Other encoder weights (a numeric field's vector) stay dense, and so do tables that have
    been sharded, and those of which every step touches all rows, where `LazyAdam` is nothing else than Adam.
    """
    if leaf.pool is None or any(spec.whole for spec in leaf.pool.specs):
        return False
    leaf.pool.sparse = leaf.pool.sharded or lazily(leaf.weight.shape[0], settings)
    return leaf.pool.sparse


def lazily(rows: int, settings: TrainSettings) -> bool:
    """Whether tables of so many rows together are trained by `LazyAdam`."""
    least = 0 if settings.table_optimizer == "lazy_adam" else LAZY_ROWS_PER_BATCH_ROW * settings.batch_size
    return settings.table_optimizer != "adam" and rows > least


def _leaf_shares(every: Iterable[Leaf], shares: Mapping[str, Tensor]) -> dict[Tensor, Tensor]:
    """Weight -> (rows,) factor of each row's penalty, for the leaves that have any."""

    def share(leaf: Leaf, name: str) -> Tensor:
        if name in shares:
            return shares[name].to(leaf.weight.device)
        return torch.ones_like(leaf.weight[leaf.parts[name], 0])

    return {
        leaf.weight: leaf.joined({name: share(leaf, name) for name in leaf.parts})
        for leaf in every
        if shares.keys() & leaf.parts.keys()
    }
