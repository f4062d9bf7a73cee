"""A real pipeline under kill -9: runner and steps die at many moments of one run, and its result stays the same.

Deaths of workers, which do not end a run, are in tests/pipelines/test_real_steps.py.
"""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

ROOT = Path(__file__).parents[2]
TRIALS = 5
PIPELINE = f"""\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata: {{name: killed}}
spec:
  dataset:
    format: planted
    planted:
      rows: 30000
      fields: {{a: {{cardinality: 40, effect: 1}}, b: {{cardinality: 30, effect: 1}}, c: {{effect: 1}}}}
      interactions: [{{fields: [a, b], strength: 1}}]
  search:
    sampler: greedy
    trials: {TRIALS}
    workers: 2
    autorec: {{parallel: [1, 2], blocks: [1], mlp_units: [16, 32]}}
  train: {{seeds: 2, baselines: [fm], epochs: 6, batch_size: 256}}
  evaluate: {{register: killed}}
"""

pytestmark = pytest.mark.slow


def start(home: Path) -> "subprocess.Popen[str]":
    home.mkdir(exist_ok=True)
    (home / "killed.yaml").write_text(PIPELINE)
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "run", "killed.yaml"],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(home: Path) -> None:
    process = start(home)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output


def facts(home: Path) -> dict[str, Any]:
    """All that a run decides; times are left out."""
    folder = home / "runs" / "killed"
    report = json.loads((folder / "report.json").read_text())
    return {
        "trials": [
            {key: trial[key] for key in ("study", "number", "state", "value", "hash", "samples", "curve")}
            for trial in report["trials"]
        ],
        "champion": report["champion"],
        "leaderboard": [(entry["name"], entry["hash"], entry["metrics"]) for entry in report["leaderboard"]],
    }


def test_the_result_is_that_of_an_undisturbed_run(tmp_path: Path) -> None:
    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    finish(quiet)
    for moment, victim in SCRIPT:
        process = start(killed)
        kill_at(killed, process, moment, victim)
        process.communicate(timeout=600)
        wait_until(lambda: not list(processes_of(killed)), 30)
    finish(killed)
    assert facts(killed) == facts(quiet)
    assert [trial["number"] for trial in facts(killed)["trials"]] == [*range(TRIALS), *range(TRIALS)]
    assert mlflow_runs(killed) == mlflow_runs(quiet)


def kill_at(home: Path, runner: "subprocess.Popen[str]", moment: str, victim: str) -> None:
    """Wait until `home`'s run has come to `moment`, then kill one of its processes."""
    partial = home / "runs" / "killed"
    reached = {
        "ingest": lambda: (partial / "ingest.partial").exists(),
        "search, first trial": lambda: checkpoints(partial / "search.partial") > 0,
        "search, later": lambda: finished_trials(partial / "search.partial") >= 2,
        "train": lambda: checkpoints(partial / "train.partial") > 0,
        "train, later": lambda: len(list((partial / "train.partial").glob("outcomes/*.json"))) > 0,
        "evaluate": lambda: (partial / "evaluate.partial").exists(),
    }[moment]
    wait_until(lambda: reached() or runner.poll() is not None, 300)
    assert runner.poll() is None, f"the run ended before {moment}"
    os.kill(VICTIMS[victim](runner.pid), signal.SIGKILL)


def step_of(runner: int) -> int:
    """The process of the step; its folder is there a moment before it."""

    def steps() -> list[int]:
        return [child.pid for child in psutil.Process(runner).children() if "components" in child.cmdline()]

    wait_until(lambda: bool(steps()), 30)
    return steps()[0]


VICTIMS: dict[str, Callable[[int], int]] = {"runner": lambda pid: pid, "step": step_of}
SCRIPT = [
    ("ingest", "runner"),
    ("search, first trial", "step"),
    ("search, later", "runner"),
    ("train", "step"),
    ("train, later", "runner"),
    ("evaluate", "step"),
]


def checkpoints(step: Path) -> int:
    return len([path for path in step.glob("checkpoints/*/*") if not path.name.endswith(".tmp")])


def finished_trials(step: Path) -> int:
    journal = step / "studies" / "autorec.journal"
    # Every end of a trial is one line of the journal with the values of the trial.
    return journal.read_text().count('"values":[') if journal.exists() else 0


def processes_of(home: Path) -> Iterator[psutil.Process]:
    """Steps and workers that still run for `home`."""
    for process in psutil.process_iter():
        try:
            if "components" in process.cmdline() and any(str(home) in part for part in process.cmdline()):
                yield process
        except psutil.Error:
            continue


def mlflow_runs(home: Path) -> list[str]:
    """Names of the runs of trials and final trainings, each of which must be there once."""
    with sqlite3.connect(home / "runs" / "mlflow.db") as database:
        names = [name for (name,) in database.execute("select name from runs")]
    return sorted(name for name in names if "-" in name)


def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
