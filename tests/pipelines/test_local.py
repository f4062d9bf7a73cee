"""The local runner under everything that can happen to it, with steps that train nothing (fake_step.py)."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from components.artifacts import Manifest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STEPS = ("ingest", "search", "train", "evaluate")

PIPELINE = """\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata: {name: fake}
spec:
  dataset: {format: planted, planted: {fields: {a: {cardinality: 5}}}}
  search: {trials: 6}
  train: {seeds: 3, baselines: [fm]}
"""


class Runs:
    """Runs of one pipeline in one folder."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.file = home / "fake.yaml"
        self.file.write_text(PIPELINE)
        self.folder = home / "runs" / "fake"
        self.started = home / "started"
        self.alive: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, pause: float = 0.0, **options: Any) -> subprocess.Popen[str]:
        fake = {"pause": pause, **options.get("fake", {})}
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "DALIL_FAKE": json.dumps(fake),
            "DALIL_FAKE_STARTED": str(self.started),
        }
        process = subprocess.Popen(
            [sys.executable, str(HERE / "fake_run.py"), "run", str(self.file), *arguments],
            cwd=self.home,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: prepare(options.get("limit")),
            start_new_session=options.get("group", False),
        )
        self.alive.append(process)
        return process

    def finish(self, *arguments: str, **options: Any) -> tuple[int, str, str]:
        process = self.start(*arguments, **options)
        output, errors = process.communicate(timeout=60)
        return process.returncode, output, errors

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        return report

    def steps_started(self) -> list[str]:
        lines = self.started.read_text().splitlines() if self.started.exists() else []
        return [line.split()[0] for line in lines]

    def step_process(self) -> int:
        return int(self.started.read_text().splitlines()[-1].split()[1])


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    runs = Runs(tmp_path)
    yield runs
    for process in runs.alive:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The report of a run that nothing has disturbed."""
    runs = Runs(tmp_path_factory.mktemp("undisturbed"))
    assert runs.finish()[0] == 0
    return runs.report()


def prepare(file_limit: int | None) -> None:
    """Runs in the new process: Ctrl-C counts even where the tests run in the background of a shell."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, resource.RLIM_INFINITY))


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def one_line(errors: str) -> str:
    """The one line of a user's mistake."""
    lines = errors.strip().splitlines()
    assert len(lines) == 1, errors
    assert "Traceback" not in errors
    return lines[0]


def test_a_run_leaves_complete_steps_a_report_and_the_next_commands(runs: Runs) -> None:
    code, output, errors = runs.finish()

    assert (code, errors) == (0, "")
    assert runs.steps_started() == list(STEPS)
    for step in STEPS:
        manifest = json.loads((runs.folder / step / "manifest.json").read_text())
        assert manifest["step"] == step
        for name, (size, _) in manifest["files"].items():
            assert (runs.folder / step / name).stat().st_size == size
        assert not (runs.folder / f"{step}.partial").exists()
    assert "Trial summary" in output
    assert "search: 6 of 6 trials best 0.5 · 3 s left" in output
    assert "autorec ★" in output
    assert "0.4100 ± 0.0010" in output
    assert "runs/fake/report.html" in output
    assert "mlflow ui" in output
    assert "kubectl apply -f" in output


def test_inputs_are_chained_by_the_digests_of_their_files(runs: Runs) -> None:
    runs.finish()
    manifests = {step: Manifest.load(runs.folder / step) for step in STEPS}
    results = {step: manifest.result for step, manifest in manifests.items() if manifest}

    assert manifests["search"].inputs == {"ingest": results["ingest"]}  # type: ignore[union-attr]
    assert manifests["evaluate"].inputs == {step: results[step] for step in STEPS[:3]}  # type: ignore[union-attr]


def test_an_unchanged_pipeline_runs_nothing_and_says_so(runs: Runs) -> None:
    runs.finish()
    code, output, _ = runs.finish()

    assert code == 0
    assert runs.steps_started() == list(STEPS)
    for step in STEPS:
        assert f"{step}: nothing has changed since it was made, kept" in output
    assert "autorec ★" in output


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ("dataset.split.seed=7", ["ingest", "search", "train", "evaluate"]),
        ("search.seed=7", ["search", "train", "evaluate"]),
        ("search.trials=9", ["search", "train", "evaluate"]),
        ("train.learning_rate=0.1", ["search", "train", "evaluate"]),
        ("train.seeds=4", ["train", "evaluate"]),
        ("evaluate.metric=auc", ["evaluate"]),
        ("tracking.uri=http://localhost:1", ["evaluate"]),
    ],
)
def test_a_change_reruns_what_depends_on_it(runs: Runs, change: str, again: list[str]) -> None:
    runs.finish()
    _, output, _ = runs.finish("--set", change)

    assert runs.steps_started()[4:] == again
    reason = "goes on from what is there" if "trials" in change else "made again, since its settings changed"
    assert f"{again[0]}: {reason}" in output
    assert sum("the result of" in line for line in output.splitlines()) == len(again) - 1


def test_more_trials_go_on_from_those_that_are_there(runs: Runs) -> None:
    runs.finish()
    before = (runs.folder / "search" / "journal").read_text()
    (runs.folder / "search" / "journal").write_text(before.replace("0 ", "0*", 1))  # a mark of the same length
    code, output, _ = runs.finish("--set", "search.trials=9")
    journal = (runs.folder / "search" / "journal").read_text()

    assert code == 0
    assert journal.startswith(before.replace("0 ", "0*", 1))
    assert len(journal.splitlines()) == 9
    assert "search: goes on from what is there" in output


def test_a_damaged_result_is_made_again(runs: Runs, undisturbed: dict[str, Any]) -> None:
    runs.finish()
    (runs.folder / "ingest" / "train" / "part-3").unlink()
    (runs.folder / "train" / "weights-1").write_text("torn")
    _, output, _ = runs.finish()

    assert runs.steps_started()[4:] == ["ingest", "train"]
    assert "train: made again, since a file of its result changed" in output
    assert runs.report() == undisturbed


def test_output_names_the_folder_of_the_run(runs: Runs) -> None:
    assert runs.finish("--output", "elsewhere/here")[0] == 0
    assert (runs.home / "elsewhere" / "here" / "report.json").exists()
    assert not runs.folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["runner", "step"])
@pytest.mark.parametrize("step", STEPS)
def test_kill_9_at_any_step_then_the_same_command(
    runs: Runs, undisturbed: dict[str, Any], victim: str, step: str
) -> None:
    process = runs.start(pause=0.1)
    wait_for(lambda: step in runs.steps_started())
    time.sleep(0.25)
    os.kill(process.pid if victim == "runner" else runs.step_process(), signal.SIGKILL)
    _, errors = process.communicate(timeout=30)
    if victim == "step":
        assert process.returncode == 1
        assert f"error: {step} was killed by signal 9, perhaps for want of memory" in one_line(errors)
        assert "the same command again continues where it stopped" in errors

    assert not (runs.folder / "report.json").exists()
    assert not (runs.folder / step / "manifest.json").exists()
    assert runs.finish()[0] == 0
    assert runs.report() == undisturbed
    journal = (runs.folder / "search" / "journal").read_text().splitlines()
    assert [int(line.split()[0]) for line in journal] == list(range(6))


@pytest.mark.slow
def test_kill_9_again_and_again_at_random_moments(runs: Runs, undisturbed: dict[str, Any]) -> None:
    for moment in (0.3, 0.55, 0.7, 0.85, 1.0, 1.2):
        process = runs.start(pause=0.05)
        time.sleep(moment)
        process.kill()
        process.communicate()
        for step in STEPS:  # what has its final name is complete
            if (runs.folder / step).exists():
                manifest = json.loads((runs.folder / step / "manifest.json").read_text())
                assert all((runs.folder / step / name).exists() for name in manifest["files"])

    assert runs.finish()[0] == 0
    assert runs.report() == undisturbed


def test_a_kill_between_the_manifest_and_the_rename_costs_nothing(runs: Runs) -> None:
    runs.finish()
    for step in STEPS:
        (runs.folder / step).rename(runs.folder / f"{step}.partial")
    runs.finish()

    assert runs.steps_started() == list(STEPS)


def test_a_kill_between_the_two_renames_costs_nothing(runs: Runs) -> None:
    runs.finish()
    shutil.copytree(runs.folder / "search", runs.folder / "search.old")
    (runs.folder / "search").rename(runs.folder / "search.partial")
    runs.finish()

    assert runs.steps_started() == list(STEPS)
    assert not (runs.folder / "search.old").exists()


def test_a_killed_runner_takes_its_step_along(runs: Runs) -> None:
    process = runs.start(pause=20)
    wait_for(lambda: "ingest" in runs.steps_started())
    step = runs.step_process()
    process.kill()

    wait_for(lambda: not psutil.pid_exists(step) or psutil.Process(step).status() == psutil.STATUS_ZOMBIE, seconds=5)


def test_a_second_run_refuses_with_one_line(runs: Runs) -> None:
    first = runs.start(pause=20)
    wait_for(lambda: "ingest" in runs.steps_started())
    code, _, errors = runs.finish()

    assert code == 2
    assert f"another run of this pipeline is at work (process {first.pid})" in one_line(errors)
    assert runs.steps_started() == ["ingest"]


def test_a_step_that_outlives_its_runner_keeps_the_lock(runs: Runs) -> None:
    """Even where the kernel cannot kill a step with its runner, nobody writes beside it."""
    runs.finish()
    import fcntl

    holder = os.open(runs.folder / ".lock", os.O_RDWR)
    fcntl.flock(holder, fcntl.LOCK_EX)
    sleeper = subprocess.Popen(["sleep", "30"], pass_fds=(holder,))
    os.close(holder)
    try:
        assert runs.finish()[0] == 2
    finally:
        sleeper.kill()
        sleeper.wait()
    assert runs.finish()[0] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupts_are_one_line_and_resumable(
    runs: Runs, undisturbed: dict[str, Any], number: signal.Signals, code: int
) -> None:
    process = runs.start(pause=0.2)
    wait_for(lambda: "search" in runs.steps_started())
    time.sleep(0.5)
    step = runs.step_process()
    process.send_signal(number)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == code
    assert one_line(errors) == "interrupted; the same command again continues where it stopped"
    assert not psutil.pid_exists(step)
    assert runs.finish()[0] == 0
    assert runs.report() == undisturbed


def test_ctrl_c_reaches_the_whole_terminal_group(runs: Runs) -> None:
    """A terminal sends Ctrl-C to every process of its group; there must be one line all the same."""
    process = runs.start(pause=5, group=True)
    wait_for(lambda: "ingest" in runs.steps_started())
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == 130
    one_line(errors)


def test_a_users_mistake_in_a_step_is_its_line_and_exit_code_2(runs: Runs) -> None:
    fake = {"crash": {"search": 2}, "say": {"search": "error: no field 'x'; the dataset has a, b"}}
    code, _, errors = runs.finish(fake=fake)

    assert code == 2
    assert one_line(errors) == "error: search: no field 'x'; the dataset has a, b"


def test_a_crash_names_the_step_its_last_words_and_its_log(runs: Runs, undisturbed: dict[str, Any]) -> None:
    fake = {"crash": {"train": 7}, "say": {"train": "ValueError: shapes differ"}}
    code, _, errors = runs.finish(fake=fake)
    line = one_line(errors)

    assert code == 1
    assert "train failed with exit code 7 (ValueError: shapes differ)" in line
    assert str(runs.folder / "logs" / "train.log") in line
    assert "ValueError: shapes differ" in (runs.folder / "logs" / "train.log").read_text()
    assert runs.finish()[0] == 0
    assert runs.steps_started() == ["ingest", "search", "train", "train", "evaluate"]
    assert runs.report() == undisturbed


def test_a_file_in_place_of_the_output_folder(runs: Runs) -> None:
    (runs.home / "taken").write_text("")
    code, _, errors = runs.finish("--output", "taken")

    assert code == 2
    assert "taken" in one_line(errors)


def test_a_missing_source_is_named_before_anything_runs(runs: Runs) -> None:
    runs.file.write_text(
        PIPELINE.replace("format: planted, planted: {fields: {a: {cardinality: 5}}}", "format: criteo")
    )
    code, _, errors = runs.finish("--set", "dataset.source=nowhere/train.txt")

    assert code == 2
    assert "nowhere/train.txt: there is no such file" in one_line(errors)
    assert runs.steps_started() == []


def test_a_changed_source_file_is_read_again(runs: Runs) -> None:
    runs.file.write_text(
        PIPELINE.replace("format: planted, planted: {fields: {a: {cardinality: 5}}}", "format: criteo")
    )
    source = runs.home / "train.txt"
    source.write_text("1\t2\n")
    runs.finish("--set", "dataset.source=train.txt")
    runs.finish("--set", "dataset.source=train.txt")
    assert runs.steps_started() == list(STEPS)

    source.write_text("1\t2\n3\t4\n")
    runs.finish("--set", "dataset.source=train.txt")
    assert runs.steps_started() == 2 * list(STEPS)

    os.utime(source, (1, 1))
    runs.finish("--set", "dataset.source=train.txt")
    assert runs.steps_started() == [*2 * STEPS, "ingest"]

    source.rename(runs.home / "moved.txt")
    _, output, _ = runs.finish("--set", "dataset.source=moved.txt")
    assert runs.steps_started() == [*2 * STEPS, "ingest", "ingest", "evaluate"]  # the report names the source
    assert "search: nothing has changed since it was made, kept" in output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("left", [8, 24, 60, 90, 110, 120])
def test_a_full_disk_is_one_line_and_the_next_run_goes_on(
    runs: Runs, undisturbed: dict[str, Any], small_disk: Path, left: int
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes((256 - left) * 1024))
    code, _, errors = runs.finish("--output", str(small_disk / "run"))

    assert code == 2
    assert "no space left" in one_line(errors).lower()

    ballast.unlink()
    assert runs.finish("--output", str(small_disk / "run"))[0] == 0
    assert json.loads((small_disk / "run" / "report.json").read_text()) == undisturbed


def test_a_limit_on_file_sizes_is_treated_like_a_full_disk(runs: Runs, undisturbed: dict[str, Any]) -> None:
    code, _, errors = runs.finish(limit=2500)

    assert code == 2
    assert "no space left" in one_line(errors)
    assert runs.finish()[0] == 0
    assert runs.report() == undisturbed


def test_a_read_only_folder_is_one_line(runs: Runs, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, _, errors = runs.finish("--output", str(small_disk / "run"))

    assert code == 2
    assert one_line(errors) == (
        f"error: {small_disk / 'run'}: read-only file system; choose a folder that can be written with --output"
    )
