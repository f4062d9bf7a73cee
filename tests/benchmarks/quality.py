"""Is our speed paid for with quality? DeepFM on MovieLens-1M as clicks, ours and the peers on the same rows and ids.

    python -m tests.benchmarks.quality --source ml-1m/ratings.dat --peers PEERS/bin/python [--seeds 1]
        [--libraries ours-lazy fuxictr deepctr] [--l2 1e-5 1e-4 1e-3] [--output runs/quality]

These tables are small enough to be trained densely; `ours-lazy` trains them as if they were large (`LazyAdam`).

Ingest makes the split of gallery/movielens-ctr.yaml (a rating of at least 4 is a click; 8 fields; random 8:1:1) and the
ids; the peers get them as arrays. Dim 16, MLP 400x3, batch 4096, Adam 1e-3, at most 40 epochs with patience 2. Every
library trains with each L2 on its tables, and is judged on test rows with the one that is best on validation rows.
`peers.py` says how to make the peers' Python.

Predictions are kept in OUTPUT: a killed command goes on, when it is given again, after the trainings that are done
(ours within a training, at its last epoch).
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from tests.benchmarks.criteo_shaped import Arrays, deepfm
from tests.benchmarks.measure import quiet, result
from trainer.metrics import auc, logloss
from trainer.schema import DatasetSchema, Split
from trainer.settings import TableOptimizer

GALLERY = Path(__file__).parents[2] / "pipelines" / "gallery"
BATCH, EPOCHS, PATIENCE, THREADS = 4096, 40, 2, 2
OURS: dict[str, TableOptimizer] = {"ours": "auto", "ours-lazy": "lazy_adam"}
PEERS = ("fuxictr", "deepctr")
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
NEAR = 0.001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="URL of ratings.dat; users.dat and movies.dat lie beside it")
    parser.add_argument("--peers", type=Path, help="the peers' Python; without it ours is trained alone")
    parser.add_argument("--libraries", nargs="+", choices=("ours-lazy", *PEERS), default=["fuxictr"])
    parser.add_argument("--l2", type=float, nargs="+", default=[1e-5, 1e-4, 1e-3])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/quality"))
    parser.add_argument("--ours", nargs=4, metavar=("LIBRARY", "L2", "SEED", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    output: Path = arguments.output
    if arguments.ours:
        library, l2, seed, file = arguments.ours
        ours(output / "dataset", OURS[library], float(l2), int(seed), Path(file))
        return
    prepare(arguments.source, output)
    libraries = ["ours", *(library for library in arguments.libraries if arguments.peers or library not in PEERS)]
    for seed in range(1, arguments.seeds + 1):
        for l2 in arguments.l2:
            for library in libraries:
                train(library, l2, seed, output, arguments.peers)
    report(libraries, arguments.seeds, arguments.l2, output)


def prepare(source: str, output: Path) -> None:
    """The dataset and its arrays, unless they are there."""
    from components.dataset import DatasetSpec
    from components.ingest import ingest
    from trainer.data import load

    if (output / "arrays" / "test" / "cardinalities.json").exists():
        return
    for name in ("dataset", "arrays"):
        shutil.rmtree(output / name, ignore_errors=True)
    written = yaml.safe_load((GALLERY / "movielens-ctr.yaml").read_text(encoding="utf-8"))["spec"]["dataset"]
    spec = DatasetSpec.model_validate(written | {"source": source})
    schema = ingest(spec, output / "dataset", lambda done, total, stage: None)
    sizes = tuple(field.cardinality for field in schema.fields)
    for split in SPLITS:
        rows = load(output / "dataset", split, schema)
        ids, numbers, label = (part.numpy() for part in (rows.categorical, rows.numeric, rows.label))
        Arrays(ids, numbers, label, sizes).save(output / "arrays" / split)


def train(library: str, l2: float, seed: int, output: Path, peers: Path | None) -> None:
    """One training in a process of its own, unless its predictions are there."""
    file = _file(output, library, l2, seed)
    if file.exists():
        return
    partial = file.with_suffix(".partial.npz")
    rest = [str(l2), str(seed), str(partial)]
    command = [sys.executable, "-m", "tests.benchmarks.quality", "--output", str(output), "--ours", library, *rest]
    if library in PEERS:
        script = Path(__file__).with_name("peers.py")
        command = [str(peers), str(script), library, "quality", str(output / "arrays"), *rest]
    print(f"{library}, L2 {l2:g}, seed {seed} ...", end=" ", flush=True)
    subprocess.run(command, check=True, env=quiet(THREADS), stdout=subprocess.DEVNULL)
    partial.rename(file)
    print(f"{float(np.load(file)['seconds']):.0f} s", flush=True)


def ours(dataset: Path, table_optimizer: TableOptimizer, l2: float, seed: int, file: Path) -> None:
    import torch

    from trainer.build import build
    from trainer.data import load
    from trainer.fit import fit, predict
    from trainer.settings import TrainSettings

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    schema = DatasetSchema.load(dataset)
    rows = {split: load(dataset, split, schema) for split in SPLITS}
    settings = TrainSettings(
        batch_size=BATCH, epochs=EPOCHS, patience=PATIENCE, table_optimizer=table_optimizer, table_l2=l2
    )
    model = build(deepfm(schema), label_mean=schema.label_mean, table_init=settings.table_init, seed=seed)
    checkpoints = file.with_suffix(".checkpoints")
    started = time.perf_counter()
    fit(model, rows["train"], rows["valid"], settings, task="ctr", seed=seed, checkpoints=checkpoints)
    seconds = time.perf_counter() - started
    np.savez(file, valid=predict(model, rows["valid"]), test=predict(model, rows["test"]), seconds=seconds)
    shutil.rmtree(checkpoints)


def report(libraries: list[str], seeds: int, penalties: list[float], output: Path) -> None:
    labels = {split: np.load(output / "arrays" / split / "label.npy") for split in SPLITS}
    tests: dict[str, list[float]] = {library: [] for library in libraries}
    entries: list[dict[str, Any]] = []
    print(f"\n{'library':10} {'seed':>4} {'L2':>6} {'valid AUC':>10} {'test AUC':>10} {'log loss':>10} {'seconds':>8}")
    for library in libraries:
        for seed in range(1, seeds + 1):
            found = [_entry(library, l2, seed, output, labels) for l2 in penalties]
            best = max(found, key=lambda entry: entry["valid_auc"])
            tests[library].append(best["test_auc"])
            entries += found
            for entry in found:
                print(
                    f"{library:10} {seed:>4} {entry['l2']:>6g} {entry['valid_auc']:>10.5f} {entry['test_auc']:>10.5f}"
                    f" {entry['test_logloss']:>10.5f} {entry['seconds']:>8.0f}{'  chosen' if entry is best else ''}"
                )
    means = {library: statistics.mean(values) for library, values in tests.items()}
    if seeds > 1:
        for library, values in tests.items():
            print(f"{library:10} test AUC {means[library]:.5f} +- {statistics.stdev(values):.5f}")
    differences = {peer: means["ours"] - means[peer] for peer in libraries if peer != "ours"}
    for peer, difference in differences.items():
        verdict = "as good" if difference >= -NEAR else "WORSE"
        print(f"ours - {peer}: {difference:+.5f} test AUC: {verdict} (at least -{NEAR})")
    result({"quality": {"test_auc": means, "ours_minus": differences, "trainings": entries}})


def _entry(library: str, l2: float, seed: int, output: Path, labels: dict[Split, Any]) -> dict[str, Any]:
    kept = np.load(_file(output, library, l2, seed))
    return {
        "library": library,
        "l2": l2,
        "seed": seed,
        "valid_auc": auc(labels["valid"], kept["valid"]),
        "test_auc": auc(labels["test"], kept["test"]),
        "test_logloss": logloss(labels["test"], kept["test"]),
        "seconds": float(kept["seconds"]),
    }


def _file(output: Path, library: str, l2: float, seed: int) -> Path:
    return output / f"{library}-{l2:g}-{seed}.npz"


if __name__ == "__main__":
    main()
