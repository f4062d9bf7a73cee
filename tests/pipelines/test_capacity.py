"""`dalil plan`: where sizes and models come from, what is printed, and what is refused."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipelines import capacity
from pipelines.cli import app
from pipelines.spec import load
from tests.trainer import small
from trainer.errors import UserError

FILE = """\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata: {name: clicks}
spec:
  dataset:
    source: not-there.csv
    format: csv
    label: {column: clicked}
    group: user
    fields:
      user: {kind: categorical}
      item: {kind: categorical, hash_buckets: 20000000}
      price: {kind: numeric}
      history: {kind: sequence, of: item, max_len: 30}
  train: {baselines: [dlrm, din], batch_size: 1024, average: 0.0}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "clicks.yaml"
    path.write_text(FILE)
    return path


def planned(file: Path, *options: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["plan", str(file), "--output", str(file.parent / "run"), *options])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_sizes_come_from_the_file_and_the_command(file: Path) -> None:
    subject = capacity.subject(load(file), file.parent, "din", {"user": 1000}, "fp32")

    assert {(spec.name, spec.rows) for spec in subject.problem.specs} >= {("e/user", 1000), ("e/item", 20_000_001)}
    history = subject.problem.architecture.fields["history"]
    assert (history.cardinality, history.max_len) == (20_000_001, 30)


def test_what_the_run_has_comes_first(file: Path) -> None:
    """Its dataset's sizes and the model it found, unless one is asked for; rows given by hand count most."""
    (file.parent / "ingest").mkdir()
    (file.parent / "search").mkdir()
    (file.parent / "ingest" / "schema.json").write_text(small.schema("ctr", 1).model_dump_json())
    found = {"name": "autorec-1", "origin": "found", "architecture": small.architecture().to_dict()}
    (file.parent / "search" / "architectures.json").write_text(json.dumps([found]))

    subject = capacity.subject(load(file), file.parent, None, {"item": 7000}, "fp32")
    assert subject.model == "autorec-1"
    assert {(spec.name, spec.rows) for spec in subject.problem.specs} >= {("e/user", small.USERS), ("e/item", 7000)}
    assert capacity.subject(load(file), file.parent, "fm", {}, "fp32").model == "fm"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "the number of categories of user is not known before ingest; write --rows user=N"),
        (("--rows", "user=many"), "--rows user=many: write FIELD=N"),
        (("--rows", "usr=10"), "--rows usr: no categorical field of that name; did you mean 'user'?"),
        (("--rows", "user=10", "--hbm", "80"), "--hbm 80: not a size; write a number and a unit, such as 80GB"),
        (("--rows", "user=10", "--host-memory", "much"), "--host-memory much: not a size"),
        (("--rows", "user=10", "--model", "dlmr"), "zoo: no model 'dlmr'; did you mean 'dlrm'?"),
        (("--rows", "user=10", "--table-precision", "fp8"), "--table-precision fp8: write one of fp32, fp16"),
    ],
)
def test_mistakes_are_one_line(file: Path, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError) as error:
        planned(file, *options)

    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_next_items_are_not_planned(file: Path) -> None:
    text = FILE.replace("label: {column: clicked}", "task: next_item").replace("dlrm, din", "sasrec")
    file.write_text(f"{text}  search: {{methods: []}}\n")
    with pytest.raises(UserError, match="task next_item has its table of items whole on every process"):
        planned(file, "--rows", "user=10")


def test_units_are_powers_of_1024() -> None:
    assert capacity.size("--hbm", "80GB") == capacity.size("--hbm", "80 GiB") == 80 * 1024**3
    assert capacity.size("--host-memory", "1.5TB") == 1536 * 1024**3


def test_the_figures_printed_are_the_plan(file: Path) -> None:
    """The tables of the whole model on one GPU: 16 numbers of 4 bytes, twice that for Adam, the best epoch's copy."""
    code, text = planned(file, "--rows", "user=5e6", "--gpus", "1")

    weights = (20_000_001 + 5_000_000) * 16 * 4 / 1024**3
    assert code == 0
    for name, times in (("tables", 1), ("optimizer of the tables", 2), ("copies of the tables", 1)):
        line = next(line for line in text.splitlines() if line.startswith(f"{name}  "))
        assert float(line.split()[-1]) == pytest.approx(weights * times, rel=0.01)
    assert "fits:" in text


def test_what_does_not_fit_says_what_would(file: Path) -> None:
    """Exit code 1, and the options it advises lead to exit code 0."""
    options = ("--rows", "user=5e6", "--gpus", "2", "--hbm", "3GB")
    code, text = planned(file, *options, "--json")

    data = json.loads(text)
    assert (code, data["fits"]) == (1, False)
    assert data["missing"] == max(rank["hbm"] for rank in data["ranks"]) - data["budget"]
    helpful = [one["how"].split() for one in data["advice"] if one["fits"] and one["how"].startswith("--")]
    assert ["--nodes", "2"] in helpful
    for how in helpful:
        assert planned(file, *options, *how)[0] == 0, how
    code, text = planned(file, *options)
    assert (code, "does not fit: " in text, "e/item" in text) == (1, True, True)
