"""Training DeepFM (dim 16, MLP 400x3, batch 4096) on Criteo-shaped rows: ours beside the peers, in turns, two threads.

    python -m tests.benchmarks.training --peers PEERS/bin/python [--categories 1000000 10000000] [--rounds 3]
    python -m tests.benchmarks.training --profile [--categories 1000000]

`peers.py` says how to make the peers' Python. Every library holds its model in a process of its own; in each round one
after the other computes while the rest sleep. Ours is an epoch of `fit` with its default settings (running average,
validation), peers make training steps on batches prepared in memory. Samples/s are those of training steps: neither our
loader nor our optimizer is left out, but what happens once per epoch is, and stands in a column of its own. Also
measured: the loader with the model replaced by nothing.

With --profile: where our step's time goes, by torch.profiler, and how far the step is from what bounds it.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.benchmarks.criteo_shaped import Arrays, Criteo, deepfm
from tests.benchmarks.measure import StepClock, Turns, answer, questions, result, show, spread

BATCH, THREADS, WARM_UP = 4096, 2, 3
PEERS = {"fuxictr": "FuxiCTR", "deepctr": "DeepCTR-Torch"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--categories", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of an epoch of ours (default: 1 million)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=7, help="steps of a peer in each round (default: 7)")
    parser.add_argument("--peers", type=Path, help="the peers' Python; without it ours is measured alone")
    parser.add_argument("--libraries", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--ours", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(THREADS)
    if arguments.ours:
        ours(Arrays.load(arguments.ours))
    elif arguments.profile:
        from tests.benchmarks.step_profile import profile

        result({"profile": {size: profile(Criteo(size).arrays(60 * BATCH)) for size in arguments.categories}})
    else:
        libraries = arguments.libraries if arguments.peers else []
        compare(arguments, libraries)


def compare(arguments: argparse.Namespace, libraries: list[str]) -> None:
    turns: dict[tuple[int, str], Turns] = {}
    found: dict[tuple[int, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in arguments.categories:
            data = Path(folder) / str(size)
            Criteo(size).arrays(arguments.rows).save(data)
            commands = {"ours": [sys.executable, "-m", "tests.benchmarks.training", "--ours", str(data)]}
            for library in libraries:
                commands[library] = [
                    str(arguments.peers),
                    str(Path(__file__).with_name("peers.py")),
                    library,
                    "rate",
                    str(data),
                ]
            for who, command in commands.items():
                turns[size, who] = Turns(command, THREADS)
                turns[size, who].ask(steps=1)  # the first round is not counted
                found[size, who] = []
        for _ in range(arguments.rounds):
            for key, worker in turns.items():
                found[key].append(worker.ask(steps=arguments.steps))
        for worker in turns.values():
            worker.close()
    report(found, arguments.categories, libraries)


def report(found: dict[tuple[int, str], list[dict[str, Any]]], sizes: list[int], libraries: list[str]) -> None:
    rates = {key: spread(_rate(answer["seconds"]) for answer in answers) for key, answers in found.items()}
    data: dict[str, Any] = {}
    for size in sizes:
        print(f"\n{size:,} categories\n{'':16} {'samples/s: median (min to max)':>36} {'steps':>6} {'peak memory':>12}")
        for who in ("ours", *libraries):
            answers = found[size, who]
            steps = sum(len(answer["seconds"]) for answer in answers)
            print(
                f"{PEERS.get(who, who):16} {show(rates[size, who]):>36} {steps:>6} {answers[-1]['peak_mb']:>9,.0f} MB"
            )
        own = found[size, "ours"]
        epoch = spread(answer["epoch_rate"] for answer in own)
        loader = spread(answer["loader_rate"] for answer in own)
        print(
            f"{'ours, epochs':16} {show(epoch):>36}   (with what an epoch of {own[0]['rows']:,} rows does at its end)"
        )
        print(f"{'ours, loader':16} {show(loader):>36}")
        over_loader = spread(answer["loader_rate"] / _rate(answer["seconds"]) for answer in own)
        print(f"loader alone / training: {over_loader['median']:.1f}")
        data[str(size)] = {
            "samples_per_s": {who: rates[size, who] for who in ("ours", *libraries)},
            "epochs_samples_per_s": epoch,
            "loader_samples_per_s": loader,
            "loader_over_training": over_loader["median"],
            "peak_mb": {who: found[size, who][-1]["peak_mb"] for who in ("ours", *libraries)},
        }
        if libraries:
            faster = max(libraries, key=lambda who: rates[size, who]["median"])
            ratio = rates[size, "ours"]["median"] / rates[size, faster]["median"]
            print(f"ours / {PEERS[faster]} (the faster peer): {ratio:.2f}")
            data[str(size)] |= {"faster_peer": faster, "ours_over_faster_peer": ratio}
    if len(sizes) > 1:
        low, high = min(sizes), max(sizes)
        kept = rates[high, "ours"]["median"] / rates[low, "ours"]["median"]
        print(f"\nours at {high:,} / ours at {low:,} categories: {kept:.2f}")
        data["ours_large_over_small"] = kept
    result({"training": data})


def _rate(seconds: list[float]) -> float:
    return BATCH * len(seconds) / sum(seconds)


def ours(data: Arrays) -> None:
    """The worker: an epoch of `fit` for each question. The step's seconds, samples/s of the epoch and of the loader."""
    from trainer.build import build
    from trainer.fit import EpochRecord, fit
    from trainer.settings import TrainSettings

    train, valid = data.table(), data.head(BATCH).table()
    settings = TrainSettings(batch_size=BATCH, epochs=10_000, patience=10_000)
    model = build(deepfm(train.schema), label_mean=train.schema.label_mean, table_init=settings.table_init, seed=1)
    clock = StepClock(model)
    asked = questions()
    next(asked)

    def on_epoch(record: EpochRecord) -> bool:
        seconds = clock.take()[WARM_UP:]
        started = time.perf_counter()
        for _ in train.batches(BATCH, seed_epoch=(1, record.epoch)):
            pass
        loading = time.perf_counter() - started
        answer(
            {
                "seconds": seconds,
                "rows": record.samples,
                "epoch_rate": record.samples / record.seconds,
                "loader_rate": train.rows / loading,
                "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            }
        )
        return next(asked, None) is None

    fit(model, train, valid, settings, task="ctr", seed=1, on_epoch=on_epoch)


if __name__ == "__main__":
    main()
