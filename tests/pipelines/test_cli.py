"""The `dalil` command as a user meets it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import pipelines

ROOT = Path(pipelines.__file__).parents[1]
QUICKSTART = ROOT / "pipelines" / "gallery" / "quickstart.yaml"


def dalil(*arguments: str, cwd: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    command = [sys.executable, "-m", "pipelines.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def cpu_seconds(*arguments: str) -> float:
    """Least processor time of three calls: what the command costs, however busy the machine is."""
    costs = []
    for _ in range(3):
        before = os.times()
        assert dalil(*arguments).returncode == 0
        after = os.times()
        costs.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return min(costs)


def test_help_comes_at_once() -> None:
    assert cpu_seconds("--help") < 0.5


def test_validation_comes_at_once() -> None:
    assert cpu_seconds("validate", str(QUICKSTART)) < 1.5


@pytest.mark.parametrize("module", ["pipelines.schema", "pipelines.local"])
def test_heavy_libraries_stay_out(module: str) -> None:
    assert heavy_libraries_after(f"import {module}") == "[]"


@pytest.mark.parametrize("arguments", [["--help"], ["validate", str(QUICKSTART)], ["render", str(QUICKSTART)]])
def test_heavy_libraries_stay_out_of_a_whole_command(arguments: list[str]) -> None:
    code = "import contextlib, sys, pipelines.cli as cli\n"
    code += f"sys.argv[1:] = {arguments}\nwith contextlib.suppress(SystemExit): cli.main()"
    assert heavy_libraries_after(code) == "[]"


def heavy_libraries_after(code: str) -> str:
    heavy = {"torch", "mlflow", "polars", "pandas", "optuna", "pyarrow", "torchrec"}
    code += f"\nimport sys; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    return (result.stdout.splitlines() or [result.stderr])[-1]


def test_help_names_every_command() -> None:
    text = dalil("--help").stdout

    for command in ("run", "compare", "validate", "render", "schema", "plan", "infer"):
        assert f"\n  {command} " in text
    assert "..." not in text.split("Commands:")[1]
    assert dalil().stdout == text


def test_validate_says_valid_or_why_not(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(QUICKSTART.read_text().replace("  search:", "  serach:"))

    good, bad = dalil("validate", str(QUICKSTART)), dalil("validate", str(wrong))
    assert (good.returncode, good.stdout) == (0, f"{QUICKSTART}: valid (quickstart)\n")
    line = wrong.read_text().splitlines().index("  serach:") + 1
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"{wrong}:{line}: spec.serach: unknown key; did you mean 'search'?\n"


def test_run_refuses_a_bad_file_before_it_writes_anything(tmp_path: Path) -> None:
    result = dalil("run", str(QUICKSTART), "--set", "search.trials=0", cwd=tmp_path)

    assert result.returncode == 2
    assert result.stderr == "--set search.trials=0: spec.search.trials: must be at least 1, not 0\n"
    assert list(tmp_path.iterdir()) == []


def test_render_applies_overrides() -> None:
    result = dalil("render", str(QUICKSTART), "--set", "search.trials=3")

    assert yaml.safe_load(result.stdout)["spec"]["search"]["trials"] == 3


def test_schema_is_what_a_cluster_takes() -> None:
    assert yaml.safe_load(dalil("schema").stdout)["kind"] == "CustomResourceDefinition"


@pytest.mark.parametrize("arguments", [("frobnicate",), ("run",), ("validate", "--loud", "x")])
def test_wrong_usage_is_one_line(arguments: tuple[str, ...]) -> None:
    result = dalil(*arguments)

    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert "dalil --help" in result.stderr


def test_a_closed_pipe_is_no_error() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "schema"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        time.sleep(0.1)
        assert process.stderr.read() == b""
