"""ESAPN on a stream against rules that learn nothing: `python tests/benchmarks/streams.py --source FILE`.

The training rows of MovieLens-1M as clicks pass once in the order of their times: with a policy, with every fixed size,
and with thresholds of frequency that keep as much as the policy did for the same seed. Every batch is scored before it
is learned from; printed are mean and deviation over the seeds, and the loss by how often the user had been met.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from components.dataset import DatasetSpec
from components.ingest import ingest
from trainer import data
from trainer.architecture import Architecture
from trainer.data import Table
from trainer.engines import streamed
from trainer.methods import esapn
from trainer.methods.base import Opening
from trainer.methods.settings import ESAPNSettings
from trainer.schema import DatasetSchema
from trainer.settings import TrainSettings
from trainer.space import fill_params

PIPELINE = Path(__file__).parents[2] / "pipelines" / "gallery" / "movielens-esapn.yaml"
TRAINING = TrainSettings(table_l2=0.0, table_init=0.1)


@dataclass(frozen=True)
class Passed:
    """One pass of the stream. `quality`: by rows of the engine's table, metric by metric."""

    share: float
    quality: dict[str, dict[str, float | None]]
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="URL of the ratings")
    parser.add_argument("--output", type=Path, default=Path("runs/streams"), help="folder of the rows")
    parser.add_argument("--rows", type=int, help="the stream's first rows (default: all)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-chance", type=float, default=ESAPNSettings().first_chance[0])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, valid = rows(arguments.source, arguments.output)
    train = train.select(torch.arange(min(arguments.rows or train.rows, train.rows)))
    found: dict[str, list[Passed]] = {}
    for seed in range(arguments.seeds):
        for label, one in passes(train, valid, seed, arguments.first_chance):
            found.setdefault(label, []).append(one)
            loss = one.quality["all"]["logloss"]
            print(f"seed {seed}, {label}: {loss:.4f}, {one.share:.1%} kept, {one.seconds:.0f} s", flush=True)
    print("\n".join(["", f"{train.rows:,} rows, {arguments.seeds} seeds", "", *markdown(found)]))


def section() -> dict[str, Any]:
    """The specification of the gallery's pipeline."""
    spec: dict[str, Any] = yaml.safe_load(PIPELINE.read_text())["spec"]
    return spec


def rows(source: str, output: Path) -> tuple[Table, Table]:
    """The training rows in the order of their times, and those for validation."""
    folder = output / "rows"
    if not (folder / "schema.json").exists():
        ingest(DatasetSpec.model_validate({**section()["dataset"], "source": source}), folder, lambda *_: None)
    schema = DatasetSchema.load(folder)
    train, valid = (data.load(folder, split, schema) for split in ("train", "valid"))
    return data.in_time_order(train, folder, "train"), valid


def passes(train: Table, valid: Table, seed: int, first_chance: float) -> Iterator[tuple[str, Passed]]:
    """The policy, then the rules, with one seed."""
    policy = passed(train, valid, seed, select="policy", first_chance=[first_chance])
    yield "policy", policy
    widest = ESAPNSettings().sizes[-1]
    for width in ESAPNSettings().sizes:
        yield f"all {width}", passed(train, valid, seed, select="fixed", budget=[width / widest])
    yield "frequency", passed(train, valid, seed, select="frequency", budget=[policy.share])


def passed(train: Table, valid: Table, seed: int, **changed: Any) -> Passed:
    settings = ESAPNSettings.model_validate({**section()["search"]["esapn"], **changed})
    backbone = Architecture.from_dict(fill_params(esapn.space(train.schema, settings), {}))
    opening = Opening(backbone, fill_params(esapn.plan(settings), {}), TRAINING, train, valid, seed)
    started = time.perf_counter()
    net = esapn.ESAPN(opening)
    table = streamed.search(net, train, valid, TRAINING, seed=seed).figures[-1]
    names = table["columns"][2:]
    quality = {line[0]: dict(zip(names, line[2:], strict=True)) for line in table["rows"]}
    share = sum(net.kept(net.model.tables.sizes).values()) / net.full
    return Passed(share, quality, time.perf_counter() - started)


def markdown(found: dict[str, list[Passed]]) -> list[str]:
    """A line for each way to choose sizes."""
    bands = [f"user: {name}" for name in streamed.BAND_NAMES]
    heads = ["sizes", "kept", "log loss", "AUC", "accuracy", *(f"log loss, {band}" for band in bands)]
    lines = []
    for label, ones in found.items():
        all_rows = [_mean(ones, "all", metric) for metric in ("logloss", "auc", "accuracy")]
        by_band = [_mean(ones, band, "logloss") for band in bands]
        lines.append([label, f"{np.mean([one.share for one in ones]):.1%}", *all_rows, *by_band])
    rule = "| --- |" + " ---: |" * (len(heads) - 1)
    return [f"| {' | '.join(heads)} |", rule, *(f"| {' | '.join(line)} |" for line in lines)]


def _mean(ones: list[Passed], rows: str, metric: str) -> str:
    values = [value for one in ones if (value := one.quality.get(rows, {}).get(metric)) is not None]
    return f"{np.mean(values):.4f} ± {np.std(values):.4f}" if values else ""


if __name__ == "__main__":
    main()
