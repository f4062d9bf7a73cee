"""The peers' DeepFM (dim 16, MLP 400x3, batch 4096, Adam 1e-3), run by a Python of their own, never imported by ours.

    python -m venv peers
    peers/bin/pip install torch==2.13.0 fuxictr==2.3.10 "polars<2" deepctr-torch==0.3.0

FuxiCTR's package holds the layers and the training loop, its model zoo lies in its repository: `FuxiCTR` puts the
layers together as its DeepFM does. Settings that are not named here are the library's defaults. DeepCTR-Torch has its
training step inside `fit`; `DeepCTR.step` does the same calls in the same order.

Benchmarks start this file with one of

    peers.py LIBRARY rate FOLDER            answers {"steps": n} with the seconds of each of n training steps
    peers.py LIBRARY quality FOLDER L2 SEED FILE    trains until validation stops improving; predictions go to FILE
"""

import os
import resource
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from criteo_shaped import Arrays
from measure import answer, questions
from torch import Tensor, nn

DIM, UNITS, BATCH = 16, [400, 400, 400], 4096
RATE = 1e-3
EPOCHS, PATIENCE = 40, 2
WARM_UP = 2


class FuxiCTR:
    """FuxiCTR's regulariser is `l2 / 2 * sum(weights**2)` on a mean loss: its gradient is `l2 * weight`, as ours."""

    def __init__(self, data: Arrays, l2: float, seed: int, folder: Path) -> None:
        from fuxictr.features import FeatureMap
        from fuxictr.pytorch.torch_utils import seed_everything

        seed_everything(seed)
        features = FeatureMap("rows", str(folder))
        numeric = {"source": "", "type": "numeric"}
        features.features = OrderedDict((f"I{n}", numeric) for n in range(data.numbers.shape[1]))
        for field, size in enumerate(data.cardinalities):
            features.features[f"C{field}"] = {"source": "", "type": "categorical", "vocab_size": size}
        features.labels = ["label"]
        features.num_fields = features.get_num_fields()
        features.set_column_index()
        (folder / "rows").mkdir(exist_ok=True)
        self.model = _fuxictr_deepfm(features, l2, folder)
        self.model._max_gradient_norm = 10.0  # what its `fit` sets by default

    def batch(self, data: Arrays, rows: Any) -> dict[str, Tensor]:
        columns = {f"I{n}": torch.from_numpy(data.numbers[rows, n]) for n in range(data.numbers.shape[1])}
        columns |= {f"C{n}": torch.from_numpy(data.ids[rows, n]).long() for n in range(data.ids.shape[1])}
        return columns | {"label": torch.from_numpy(data.label[rows])}

    def step(self, batch: dict[str, Tensor]) -> float:
        return float(self.model.train_step(batch).item())

    def quality(self, train: Arrays, valid: Arrays, test: Arrays, seed: int) -> tuple[Any, Any]:
        """Its own `fit`: AUC, patience 2, a tenth of the rate after an epoch without progress, the best weights.

        Returns the predictions for `valid` and `test`.
        """
        self.model.fit(_Batches(self, train, seed), epochs=EPOCHS, validation_data=_Batches(self, valid))
        return self.model.predict(_Batches(self, valid)), self.model.predict(_Batches(self, test))


def _fuxictr_deepfm(features: Any, l2: float, folder: Path) -> Any:
    from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import BaseModel

    class DeepFM(BaseModel):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(
                features,
                model_id="DeepFM",
                embedding_regularizer=l2 or None,
                model_root=str(folder),
                metrics=["AUC"],
                verbose=0,
            )
            self.embedding_layer = FeatureEmbedding(features, DIM)
            self.fm = FactorizationMachine(features)
            self.mlp = MLP_Block(DIM * features.num_fields, UNITS, output_dim=1)
            self.compile("adam", "binary_cross_entropy", RATE)
            self.reset_parameters()
            self.model_to_device()

        def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
            columns = self.get_inputs(inputs)
            x_BFD = self.embedding_layer(columns)
            logit = self.fm(columns, x_BFD) + self.mlp(x_BFD.flatten(start_dim=1))
            return {"y_pred": self.output_activation(logit)}

    return DeepFM()


class DeepCTR:
    """DeepCTR-Torch's regulariser is `l2 * sum(weights**2)` on a sum of losses; 1e-5 is its default."""

    def __init__(self, data: Arrays, l2: float, seed: int, folder: Path) -> None:
        from deepctr_torch.inputs import DenseFeat, SparseFeat
        from deepctr_torch.models import DeepFM

        # Its rows are one float32 matrix, which holds whole numbers up to here.
        assert max(data.cardinalities) <= 1 << 24
        columns = [SparseFeat(f"C{n}", size, embedding_dim=DIM) for n, size in enumerate(data.cardinalities)]
        columns += [DenseFeat(f"I{n}", 1) for n in range(data.numbers.shape[1])]
        regular = {"l2_reg_linear": l2, "l2_reg_embedding": l2}
        self.model = DeepFM(columns, columns, dnn_hidden_units=tuple(UNITS), seed=seed, **regular)
        self.model.compile(torch.optim.Adam(self.model.parameters(), lr=RATE), "binary_crossentropy")
        self.weights = folder / "deepctr.pt"

    def batch(self, data: Arrays, rows: Any) -> tuple[Tensor, Tensor]:
        x_BF = np.concatenate([data.ids[rows].astype(np.float32), data.numbers[rows]], 1)
        return torch.from_numpy(x_BF), torch.from_numpy(data.label[rows])

    def step(self, batch: tuple[Tensor, Tensor]) -> float:
        model = self.model
        output_B = model(batch[0]).squeeze(-1)
        model.optim.zero_grad()
        loss = model.loss_func(output_B, batch[1], reduction="sum")
        total = loss + model.get_regularization_loss() + model.aux_loss
        _ = loss.item(), total.item()
        total.backward()
        model.optim.step()
        return float(loss.detach())

    def quality(self, train: Arrays, valid: Arrays, test: Arrays, seed: int) -> tuple[Any, Any]:
        from sklearn.metrics import roc_auc_score

        best, since = 0.0, 0
        batches = _Batches(self, train, seed)
        for _ in range(EPOCHS):
            self.model.train()
            for batch in batches:
                self.step(batch)
            auc = roc_auc_score(valid.label, self._predict(valid))
            since = 0 if auc > best else since + 1
            if auc > best:
                best = auc
                torch.save(self.model.state_dict(), self.weights)
            if since == PATIENCE:
                break
        self.model.load_state_dict(torch.load(self.weights, weights_only=True))
        return self._predict(valid), self._predict(test)

    @torch.no_grad()
    def _predict(self, data: Arrays) -> Any:
        self.model.eval()
        return torch.cat([self.model(x_BF) for x_BF, _ in _Batches(self, data)]).squeeze(-1).numpy()


class _Batches:
    """Rows in memory as batches of a library; with a seed in another order at each pass."""

    def __init__(self, peer: FuxiCTR | DeepCTR, data: Arrays, seed: int | None = None) -> None:
        self._peer, self._data = peer, data
        self._random = None if seed is None else np.random.default_rng(seed)

    def __len__(self) -> int:
        return -(-self._data.rows // BATCH)

    def __iter__(self) -> Iterator[Any]:
        rows = self._data.rows
        order = np.arange(rows) if self._random is None else self._random.permutation(rows)
        for first in range(0, rows, BATCH):
            yield self._peer.batch(self._data, order[first : first + BATCH])


LIBRARIES: dict[str, tuple[type[FuxiCTR] | type[DeepCTR], float]] = {
    "fuxictr": (FuxiCTR, 0.0),
    "deepctr": (DeepCTR, 1e-5),
}
"""And the regulariser that each has by default."""


def rate(library: str, data: Arrays, folder: Path) -> None:
    made, l2 = LIBRARIES[library]
    peer = made(data, l2, 1, folder)
    model: nn.Module = peer.model
    model.train()
    first = 0
    for question in questions():
        steps = question["steps"] + (WARM_UP if first == 0 else 0)
        batches = [peer.batch(data, _rows(data, first + step)) for step in range(steps)]
        first += steps
        seconds = []
        for batch in batches:
            started = time.perf_counter()
            peer.step(batch)
            seconds.append(time.perf_counter() - started)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer({"seconds": seconds[-question["steps"] :], "peak_mb": peak})


def _rows(data: Arrays, step: int) -> Any:
    return np.arange(step * BATCH, (step + 1) * BATCH) % data.rows


def quality(library: str, source: Path, l2: float, seed: int, file: Path, folder: Path) -> None:
    """`l2` means the same to every library: a gradient of `l2 * weight` on a mean loss."""
    train, valid, test = (Arrays.load(source / split) for split in ("train", "valid", "test"))
    made = LIBRARIES[library][0]
    peer = made(train, l2 * BATCH / 2 if made is DeepCTR else l2, seed, folder)
    started = time.perf_counter()
    of_valid, of_test = peer.quality(train, valid, test, seed)
    np.savez(file, valid=of_valid, test=of_test, seconds=time.perf_counter() - started)


def main() -> None:
    library, task, source, *rest = sys.argv[1:]
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        if task == "rate":
            rate(library, Arrays.load(Path(source)), Path(folder))
        else:
            l2, seed, file = rest
            quality(library, Path(source), float(l2), int(seed), Path(file), Path(folder))


if __name__ == "__main__":
    main()
