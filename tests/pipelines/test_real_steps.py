"""The real steps under the real runner, on a small planted dataset: with deaths of workers and a full disk."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest

import pipelines

ROOT = Path(pipelines.__file__).parents[1]
PIPELINE = """\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata: {name: tiny}
spec:
  dataset:
    format: planted
    planted:
      rows: 4000
      fields: {a: {cardinality: 8, effect: 0.5}, b: {cardinality: 6, effect: 0.5}, c: {effect: 0.3, missing: 0.1}}
      interactions: [{fields: [a, b]}]
  search:
    trials: 4
    workers: 2
    autorec: {blocks: [1], parallel: [1, 2], mlp_units: [16, 32]}
  train: {seeds: 2, batch_size: 512, epochs: 3, baselines: [fm], baseline_settings: {fm: {trials: 2}}}
  evaluate: {register: tiny}
"""
pytestmark = pytest.mark.slow


def start(home: Path, *arguments: str, pipeline: str = PIPELINE, command: str = "run") -> "subprocess.Popen[str]":
    home.mkdir(exist_ok=True)
    (home / "tiny.yaml").write_text(pipeline)
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", command, "tiny.yaml", *arguments],
        cwd=home,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(home: Path, *arguments: str, pipeline: str = PIPELINE, command: str = "run") -> tuple[int, str, str]:
    process = start(home, *arguments, pipeline=pipeline, command=command)
    output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def results(home: Path) -> list[Any]:
    """All that must not depend on what happened on the way: models, their figures, their order."""
    report = json.loads((home / "runs" / "tiny" / "report.json").read_text())
    return [
        (entry["name"], entry["architecture"], entry["metrics"], entry["parameters"]) for entry in report["leaderboard"]
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("undisturbed")
    code, output, errors = finish(home)
    assert code == 0, errors
    assert "Trial 0" in output
    assert "champion" in output
    return home


def test_a_whole_run(undisturbed: Path) -> None:
    names = {name for name, *_ in results(undisturbed)}

    assert names == {"autorec-1", "fm"}
    assert (undisturbed / "runs" / "tiny" / "report.html").exists()
    assert (undisturbed / "runs" / "mlflow.db").exists()


def test_the_same_run_again_does_nothing(undisturbed: Path) -> None:
    code, output, errors = finish(undisturbed)

    assert (code, errors) == (0, "")
    assert output.count("nothing has changed since it was made, kept") == 4


@pytest.mark.parametrize("step", ["search", "train"])
def test_a_killed_worker_is_replaced(undisturbed: Path, tmp_path: Path, step: str) -> None:
    process = start(tmp_path)
    assert wait_for_step(process, tmp_path / "runs" / "tiny" / f"{step}.partial")
    worker_of(process).kill()
    _, errors = process.communicate(timeout=300)

    assert process.returncode == 0, errors
    assert results(tmp_path) == results(undisturbed)


def test_a_killed_step_goes_on_with_the_next_run(undisturbed: Path, tmp_path: Path) -> None:
    process = start(tmp_path)
    assert wait_for_step(process, tmp_path / "runs" / "tiny" / "search.partial")
    worker = worker_of(process)
    worker.parents()[1].kill()
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 1
    assert "error: search was killed by signal 9" in errors
    assert len(errors.splitlines()) == 1
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert finish(tmp_path)[0] == 0
    assert results(tmp_path) == results(undisturbed)


def worker_of(run: "subprocess.Popen[str]") -> psutil.Process:
    """The process that trains, once there is one: forked from one that the step has started for that."""
    while True:
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(run.pid).children(recursive=True):
                if all("forkserver" in " ".join(one.cmdline()) for one in (process, *process.parents()[:1])):
                    return process
        assert run.poll() is None, "the run has ended without a worker"
        time.sleep(0.02)


def wait_for_step(process: "subprocess.Popen[str]", partial: Path) -> bool:
    """True when the step's partial folder has appeared; False when the run has ended before."""
    while process.poll() is None:
        if partial.exists():
            return True
        time.sleep(0.02)
    return False


def test_a_comparison_spends_one_budget_on_each_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    budget, training = 20_000, 3 * 3200  # samples; of one training of three epochs
    arguments = ("--budget", str(budget), "--methods", "ihas,mde,random", "--seeds", "1")
    arguments += (
        "--set",
        "train.baselines=[fm]",
        "--set",
        "search.ihas={epochs: 1, groups: [2], least: 0.01, backbone: fm}",
    )
    folder = tmp_path / "runs" / "tiny-compare"
    process = start(tmp_path, *arguments, command="compare")
    assert wait_for_step(process, folder / "search.partial" / "studies" / "mde.journal")
    worker_of(process).parents()[1].kill()
    process.communicate(timeout=60)

    code, output, errors = finish(tmp_path, *arguments, command="compare")

    assert code == 0, errors
    assert f"kubectl apply -f {folder.relative_to(tmp_path)}/pipeline.yaml" in output
    report = json.loads((folder / "report.json").read_text())
    leaderboard = {entry["name"]: entry for entry in report["leaderboard"]}
    assert set(leaderboard) == {"ihas-1", "mde-1", "random-1", "fm"}
    assert leaderboard["ihas-1"]["architecture"]["head"]["mode"] == "routed"
    for entry in leaderboard.values():
        # Trainings may end before their third epoch, so that the next one costs more than was expected.
        assert training < entry["search_samples"] <= budget + 2 * training
        assert len(entry["seeds"]) == 1
    assert [(search["method"], search["sampler"]) for search in report["searches"]] == [
        ("ihas", "bayesian"),
        ("mde", "bayesian"),
        ("random", "random"),
    ]
    page = (folder / "report.html").read_text()
    assert "What ihas saw" in page
    assert "What mde saw" not in page


NEXT = """\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata: {name: tiny}
spec:
  dataset: {source: events.txt, format: sequence, task: next_item}
  search: {methods: [], trials: 1, tune: {table_l2: []}}
  train: {seeds: 1, batch_size: 64, epochs: 8, learning_rate: 0.02, table_l2: 0, baselines: [pooling, gru4rec, sasrec]}
  evaluate: {register: tiny-items}
"""


SAMPLED = """\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata: {name: tiny}
spec:
  dataset:
    format: planted
    planted:
      rows: 4000
      fields: {a: {cardinality: 80, effect: 0.5}, b: {cardinality: 60, effect: 0.5}}
      interactions: [{fields: [a, b]}]
  search:
    methods: [nis]
    sampler: grid
    trials: 2
    workers: 2
    nis: {backbone: fm, dim: 4, columns: 2, rows: [0.5, 1.0], budget: [0.6, 0.3], epochs: 2, sample: 4}
  train: {candidates: 2, seeds: 1, batch_size: 512, epochs: 3}
"""


def test_a_search_by_sampling_holds_its_scores_against_trainings(tmp_path: Path) -> None:
    """Killed in the middle, too: what was trained stays, and the figure shows a point for each choice."""
    process = start(tmp_path, pipeline=SAMPLED)
    journal = tmp_path / "runs" / "tiny" / "search.partial" / "studies" / "nis-sample.journal"
    assert wait_for_step(process, journal)
    worker_of(process).parents()[1].kill()
    process.communicate(timeout=60)
    code, _, errors = finish(tmp_path, pipeline=SAMPLED)
    assert code == 0, errors
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    trials = [trial for trial in report["trials"] if trial["study"] == "nis-sample"]
    assert [trial["number"] for trial in trials] == [0, 1, 2, 3]
    assert all(trial["value"] is not None for trial in trials)
    [scatter] = [figure for figure in report["searches"][0]["figures"] if figure["kind"] == "scatter"]
    assert [point["y"] for point in scatter["points"]] == pytest.approx([trial["value"] for trial in trials], rel=1e-4)
    assert "Rank correlation: Spearman" in scatter["note"]
    sizes = [entry["parameters"]["tables"] for entry in report["leaderboard"]]
    first_order = 81 + 61
    assert all(first_order <= size <= (0.6 * 4 + 1) * first_order for size in sizes)
    assert "What nis saw" in (tmp_path / "runs" / "tiny" / "report.html").read_text()


LOWERED = """\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata: {name: tiny}
spec:
  dataset:
    format: planted
    planted:
      rows: 4000
      fields: {a: {cardinality: 80, effect: 0.5}, b: {cardinality: 60, effect: 0.5}, c: {effect: 0.3, missing: 0.1}}
      interactions: [{fields: [a, b]}]
  search:
    methods: [autoctr]
    sampler: evolution
    trials: 5
    workers: 2
    fidelity: {rows: 0.5, hash: 30, sample: 3}
    inherit: true
    autoctr: {blocks: 3, units: [8, 16], dims: [4]}
  train: {candidates: 2, seeds: 1, batch_size: 512, epochs: 3}
"""


def test_a_search_at_low_fidelity_finds_models_of_all_categories(tmp_path: Path) -> None:
    code, _, errors = finish(tmp_path, pipeline=LOWERED)
    assert code == 0, errors
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    trials = {name: [one for one in report["trials"] if one["study"] == name] for name in ("autoctr", "autoctr-sample")}
    assert len(trials["autoctr"]) == 5
    assert len(trials["autoctr-sample"]) == 3
    full = {one["samples"] / len(one["curve"]) for one in trials["autoctr-sample"]}
    parents = [one["parent"] for one in trials["autoctr"]]
    assert parents[0] is None
    assert all(parent < number for number, parent in enumerate(parents) if parent is not None)
    assert any(parent is not None for parent in parents)
    low = {one["samples"] / len(one["curve"]) for one in trials["autoctr"] if one["state"] == "complete"}
    assert low == {full.pop() / 2}
    [scatter] = [figure for figure in report["searches"][0]["figures"] if figure["kind"] == "scatter"]
    assert [point["y"] for point in scatter["points"]] == pytest.approx(
        [one["value"] for one in trials["autoctr-sample"]], rel=1e-4
    )
    assert {entry["parameters"]["tables"] for entry in report["leaderboard"]} == {4 * (81 + 61)}
    text = (tmp_path / "runs" / "tiny" / "report.html").read_text()
    assert "Can low fidelity be trusted?" in text


STREAMED = """\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata: {name: tiny}
spec:
  dataset: {source: ratings.dat, format: movielens, task: ctr, label: {threshold: 4}}
  search:
    methods: [esapn]
    trials: 1
    tune: {table_l2: []}
    esapn: {sizes: [2, 4], fields: [user, item], first_chance: [0.2], batch_size: 50}
  train: {seeds: 1, batch_size: 512, epochs: 2}
  evaluate: {register: tiny}
"""


def test_a_search_on_a_stream_sees_the_rows_in_the_order_of_their_times(tmp_path: Path) -> None:
    """The source has them in no order; likes begin with the second half of the times, which before looks certain."""
    random = Random(1)
    lines = [f"{time % 40}::{random.randrange(20)}::{5 if time >= 2000 else 1}::{time}" for time in range(4000)]
    random.shuffle(lines)
    (tmp_path / "ratings.dat").write_text("\n".join(lines))
    code, _, errors = finish(tmp_path, pipeline=STREAMED)
    assert code == 0, errors
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    [accuracy] = [f for f in report["searches"][0]["figures"] if f["title"] == "accuracy over the stream"]
    assert min(accuracy["series"][0]["values"][5:19]) == 1
    [model] = report["leaderboard"]
    encoder = model["architecture"]["views"]["e"]["encoders"]["user"]
    assert (encoder["align"], [block["dim"] for block in encoder["blocks"]]) == ("chain", [2, 4])
    words = ", ".join(f"{block['rows']} × {block['dim']}" for block in encoder["blocks"])
    assert f"chain {words}" in (tmp_path / "runs" / "tiny" / "report.html").read_text()


def test_a_run_of_next_items(tmp_path: Path) -> None:
    """Every user goes round a circle of items, so that the last one tells the next."""
    lines = [f"u{user} " + " ".join(f"i{(user * 7 + k) % 20}" for k in range(4 + user % 5)) for user in range(200)]
    (tmp_path / "events.txt").write_text("\n".join(lines))

    code, output, errors = finish(tmp_path, pipeline=NEXT)

    assert code == 0, errors
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    found = {entry["name"]: entry["metrics"]["test"] for entry in report["leaderboard"]}
    assert set(found) == {"pooling", "gru4rec", "sasrec"}
    assert found[report["champion"]]["mrr"]["mean"] > 0.9
    assert "NDCG@10" in output
    example = tmp_path / "runs" / "tiny" / "evaluate" / "model" / "serving_input_example.json"
    assert json.loads(example.read_text())["dataframe_split"]["columns"] == ["user", "history"]


def test_a_search_in_stages_finds_what_tells_the_next_item(tmp_path: Path) -> None:
    """Killed in the middle, too. Beside the picture of the stages there is the sample of the first one."""
    lines = [f"u{user} " + " ".join(f"i{(user * 7 + k) % 20}" for k in range(4 + user % 5)) for user in range(200)]
    (tmp_path / "events.txt").write_text("\n".join(lines))
    settings = "ameir: {dims: [16], units: [[32]], dropout: [0.0], candidates: 20, epochs: 6, sample: 3}"
    pipeline = NEXT.replace("methods: [],", f"methods: [ameir], {settings},").replace(
        "[pooling, gru4rec, sasrec]", "[]"
    )
    process = start(tmp_path, pipeline=pipeline)
    second = tmp_path / "runs" / "tiny" / "search.partial" / "checkpoints" / "ameir-0" / "supernet" / "layers"
    assert wait_for_step(process, second)
    worker_of(process).parents()[1].kill()
    process.communicate(timeout=60)

    code, _, errors = finish(tmp_path, pipeline=pipeline)

    assert code == 0, errors
    report = json.loads((tmp_path / "runs" / "tiny" / "report.json").read_text())
    assert report["leaderboard"][0]["metrics"]["test"]["mrr"]["mean"] > 0.9
    assert [figure["kind"] for figure in report["searches"][0]["figures"]] == ["stages", "scatter"]
    assert len(report["searches"][0]["figures"][1]["points"]) == 3


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_line(tmp_path: Path, small_disk: Path) -> None:
    code, _, errors = finish(tmp_path, "--output", str(small_disk / "run"))

    assert code == 2, errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert "no space left" in errors.lower()
