"""A stand-in for `python -m components`: steps of the same shape that train nothing, with resumable work.

DALIL_FAKE (JSON) steers it: {"pause": seconds per unit of work, "crash": {step: exit code}, "say": {step: last words}}.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FAKE: dict[str, Any] = json.loads(os.environ.get("DALIL_FAKE", "{}"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("step")
    parser.add_argument("--settings", type=Path)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    task = json.loads(arguments.settings.read_text())
    started = os.environ.get("DALIL_FAKE_STARTED")
    if started:
        with Path(started).open("a") as file:
            file.write(f"{arguments.step} {os.getpid()}\n")
    if arguments.step in FAKE.get("crash", {}):
        print("at work", file=sys.stderr)
        print(FAKE["say"][arguments.step], file=sys.stderr)
        sys.exit(FAKE["crash"][arguments.step])
    inputs = {name: Path(folder) for name, folder in task["inputs"].items()}
    for folder in inputs.values():
        assert (folder / "manifest.json").exists(), f"{folder} is not complete"
    globals()[arguments.step](task["settings"], inputs, arguments.output)


def ingest(spec: dict[str, Any], inputs: dict[str, Path], output: Path) -> None:
    assert not [path for path in output.iterdir() if not path.name.startswith(".")], "ingest wants an empty folder"
    (output / "train").mkdir()
    source = spec["dataset"]["source"]
    (output / "rows").write_text(Path(source).read_text() if source else "")
    for part in range(5):
        emit(event="progress", done=part * 1000, total=5000, unit="rows")
        (output / "train" / f"part-{part}").write_text(f"{part} {spec['dataset']['split']['seed']}\n" * 1000)
        pause()


def search(spec: dict[str, Any], inputs: dict[str, Path], output: Path) -> None:
    """Each trial is one line of a journal, whose value follows from its number and the seed alone."""
    journal = output / "journal"
    lines = journal.read_text().split("\n") if journal.exists() else [""]
    whole = lines[:-1]
    journal.write_text("".join(f"{line}\n" for line in whole))
    for number in range(len(whole), spec["search"]["trials"]):
        pause()
        with journal.open("a") as file:
            file.write(f"{number} {value(number, spec['search']['seed'])}\n")
            file.flush()
        emit(event="progress", done=number + 1, total=spec["search"]["trials"], unit="trials", best=0.5, seconds_left=3)
    emit(event="best", text="Trial summary\n  block1.units [64]")
    (output / "architectures.json").write_text(f"{journal.read_text()}{spec['train']['learning_rate']}\n")


def train(spec: dict[str, Any], inputs: dict[str, Path], output: Path) -> None:
    for seed in range(spec["train"]["seeds"]):
        weights = output / f"weights-{seed}"
        if not weights.exists():
            pause()
            aside = output / f".{seed}.tmp"
            aside.write_text((inputs["search"] / "architectures.json").read_text() + str(seed))
            aside.replace(weights)
        emit(event="progress", done=seed + 1, total=spec["train"]["seeds"], unit="trainings")


def evaluate(spec: dict[str, Any], inputs: dict[str, Path], output: Path) -> None:
    time.sleep(10 * FAKE.get("pause", 0))
    weights = "".join(path.read_text() for path in sorted(inputs["train"].glob("weights-*")))
    models = [("autorec", "found", 0.41), ("deepfm", "zoo", 0.42)]
    report = {
        "leaderboard": [
            {
                "name": name,
                "origin": origin,
                "metrics": {"test": {"logloss": {"mean": loss, "std": 0.001, "values": [loss]}}},
                "parameters": {"tables": 1000, "lifts": 0, "dense": 234},
                "flops": 5678,
                "beats": [],
                "pareto": origin == "found",
                "search_seconds": 61.0,
                "train_seconds": 2.0,
            }
            for name, origin, loss in models
        ],
        "champion": "autorec",
        "fingerprint": value(len(weights), weights),
    }
    (output / "report.json").write_text(json.dumps(report))
    (output / "report.html").write_text("<html></html>")


def value(*parts: object) -> str:
    import hashlib

    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def emit(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def pause() -> None:
    time.sleep(FAKE.get("pause", 0))


if __name__ == "__main__":
    main()
