"""The registered model's answers, raw rows in and probabilities out, against the bare forward pass of the same model.

    python -m tests.benchmarks.predict [--model deepfm] [--units 400 400 400] [--threads 2]

A model of the zoo (dim 16, 39 fields) on generated rows of Criteo's shape; its weights are drawn, as times do not
depend on them. `components.serve.save` writes the model folder and MLflow's `pyfunc.load_model` loads it, so MLflow's
own checks count. Rows come as a server has them after it has parsed JSON. The forward pass has the batch's tensors
ready, and the same precision and threads; the two take turns.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

# Read when torch is imported, below.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import mlflow
import numpy as np
import pandas as pd
import polars as pl
import torch

from components import serve
from components.dataset import DatasetSpec
from components.ingest import ingest
from tests.benchmarks.criteo_shaped import Criteo
from tests.benchmarks.measure import result
from trainer import zoo
from trainer.architecture import Architecture
from trainer.build import build
from trainer.checkpoint import save_weights
from trainer.data import Batch
from trainer.schema import DatasetSchema
from trainer.space import pinned

SIZES = (1, 100, 10_000)
CATEGORIES = 390_000


def main() -> None:
    """Write, load and time a model; print a line for each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="that the vocabularies are learned from")
    parser.add_argument("--model", default="deepfm", help="of the zoo")
    parser.add_argument("--units", type=int, nargs="+", default=[400, 400, 400], help="of the MLP")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of rows")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as root:
        folder, rows = write_model(Path(root), chosen.rows, chosen.model, chosen.units)
        model = mlflow.pyfunc.load_model(str(folder))
        scorer = serve.Scorer(folder / "data" / "model")
        print(f"{'rows':>7} {'p50 ms':>9} {'p99 ms':>9} {'rows/s':>9} {'forward ms':>11} {'ratio':>6}")
        results = {size: measure(model, scorer, rows.iloc[:size], chosen.seconds) for size in SIZES}
        print("\nmilliseconds by stage")
        stages = {size: profile(model, scorer, rows.iloc[:size]) for size in SIZES}
    about = {"model": chosen.model, "units": chosen.units, "threads": chosen.threads}
    result({**about, "rows": results, "stages": stages})


def write_model(root: Path, rows: int, name: str, units: list[int]) -> tuple[Path, pd.DataFrame]:
    """A model folder as the evaluate step writes it, and raw rows that ingest has not seen."""
    source = Criteo(CATEGORIES)
    source.write_tsv(root / "rows.tsv", rows)
    dataset = root / "dataset"
    dataset.mkdir()
    ingest(DatasetSpec(source=str(root / "rows.tsv"), format="criteo", min_count=2), dataset, lambda *_: None)
    schema = DatasetSchema.load(dataset)
    choices = {"mlp.units": units, "mlp.dropout": 0.0, "embedding.dim": 16}
    architecture = Architecture.from_dict(pinned(zoo.template(name, schema), choices))
    save_weights(
        build(architecture, label_mean=schema.label_mean, table_init=0.01, seed=1), root / "weights.safetensors"
    )
    serve.save(root / "model", architecture, root / "weights.safetensors", dataset)
    source.write_tsv(root / "more.tsv", max(SIZES))
    return root / "model", as_served(root / "more.tsv")


def as_served(path: Path) -> pd.DataFrame:
    """Rows of a Criteo file as MLflow's server makes them of a JSON request: text, and numbers with gaps as floats."""
    names = [f"I{number}" for number in range(1, 14)] + [f"C{number}" for number in range(1, 27)]
    text = {name: pl.String for name in names if name.startswith("C")}
    rows = pl.read_csv(path, separator="\t", has_header=False, new_columns=["click", *names], schema_overrides=text)
    return pd.DataFrame(json.loads(json.dumps(rows.drop("click").to_dicts())))


def measure(model: Any, scorer: serve.Scorer, rows: pd.DataFrame, seconds: float) -> dict[str, float]:
    """Milliseconds of a request (median, 99th percentile) and of the bare forward pass, taken in turn."""
    batch = encoded(scorer, rows)
    expected = torch.sigmoid(forward(scorer, batch)).numpy()
    np.testing.assert_allclose(model.predict(rows)[serve.OUTPUT], expected, atol=1e-9, rtol=0)
    requests, forwards = [], []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        requests.append(timed(lambda: model.predict(rows)))
        forwards.append(timed(lambda: forward(scorer, batch)))
    p50, p99 = np.percentile(requests, [50, 99])
    bare = float(np.median(forwards))
    ratio, rate = p50 / bare, 1000 * len(rows) / p50
    print(f"{len(rows):>7,} {p50:>9.2f} {p99:>9.2f} {rate:>9,.0f} {bare:>11.2f} {ratio:>6.2f}", flush=True)
    return {"p50": p50, "p99": p99, "rows_per_second": rate, "forward": bare, "ratio": ratio, "n": len(requests)}


def encoded(scorer: serve.Scorer, rows: pd.DataFrame) -> Batch:
    """The rows' tensors as the model takes them."""
    table = scorer.encoded(rows)
    return replace(table, numeric=table.numeric.double()).take(torch.arange(table.rows))


@torch.inference_mode()
def forward(scorer: serve.Scorer, batch: Batch) -> torch.Tensor:
    output: torch.Tensor = scorer.model(batch)
    return output


def timed(act: Callable[[], object]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - started)


def profile(model: Any, scorer: serve.Scorer, rows: pd.DataFrame, times: int = 15) -> dict[str, float]:
    """Milliseconds (medians) of what a request is made of; `around` is MLflow's own and the answer's frame."""
    spent: dict[str, list[float]] = {name: [] for name in ("encode", "score", "whole")}

    def stage(name: str, act: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = act()
        spent[name].append(1000 * (time.perf_counter() - started))
        return result

    for _ in range(times):
        table = stage("encode", lambda: scorer.encoded(rows))
        stage("score", lambda table=table: serve.score(scorer.model, table))
        stage("whole", lambda: model.predict(rows))
    found = {name: float(np.median(milliseconds)) for name, milliseconds in spent.items()}
    found["around"] = 2 * found["whole"] - sum(found.values())
    print(f"{len(rows):>7,} " + ", ".join(f"{name} {value:.2f}" for name, value in found.items()), flush=True)
    return found


if __name__ == "__main__":
    main()
