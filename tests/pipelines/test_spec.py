"""What a valid pipeline file means: defaults, overrides, and the round trip through `dalil render`."""

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import pipelines
from pipelines.spec import PipelineSpec, SearchPipeline, check, load, render

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GALLERY = sorted((Path(pipelines.__file__).parent / "gallery").glob("*.yaml"))


def names(file: Path) -> str:
    return file.stem


@pytest.mark.parametrize("file", GALLERY, ids=names)
def test_gallery_files_are_valid_and_survive_rendering(file: Path, tmp_path: Path) -> None:
    pipeline = load(file)
    rendered = tmp_path / "rendered.yaml"
    rendered.write_text(render(pipeline))

    assert load(rendered) == pipeline
    assert render(load(rendered)) == render(pipeline)


@pytest.mark.parametrize("file", GALLERY, ids=names)
def test_gallery_files_begin_with_what_they_are_for(file: Path) -> None:
    assert file.read_text().startswith("# ")


def test_rendering_shows_every_default(tmp_path: Path) -> None:
    minimal = tmp_path / "minimal.yaml"
    minimal.write_text(
        "apiVersion: dalil.dev/v1alpha1\nkind: SearchPipeline\nmetadata: {name: m}\n"
        "spec: {dataset: {source: a.csv, format: csv}}\n"
    )
    data = yaml.safe_load(render(load(minimal)))

    assert data["spec"]["search"]["trials"] == 10
    assert data["spec"]["search"]["tune"]["table_l2"] == [1e-05, 0.0001, 0.001]
    assert data["spec"]["train"]["batch_size"] == 4096
    assert data["spec"]["dataset"]["split"]["ratios"] == [8.0, 1.0, 1.0]
    assert data["spec"]["evaluate"] == {"metric": "logloss", "register": None}
    assert data["spec"]["tracking"] == {"uri": None}


def test_metric_follows_the_task() -> None:
    files = {file.stem: file for file in GALLERY}

    assert load(files["movielens"]).spec.evaluate.metric == "mse"
    assert load(files["criteo"], ("evaluate.metric=null",)).spec.evaluate.metric == "logloss"
    assert load(files["movielens"], ("evaluate={}",)).spec.evaluate.metric == "mse"


def test_overrides_reach_every_kind_of_key() -> None:
    pipeline = load(
        GALLERY[0],
        (
            "dataset.source=s3://bucket/a=b.csv",
            "search.trials=3",
            "train.weight_decay=1e-2",
            "train.baselines=[fm, deepfm]",
            "train.baselines.0=mlp",
            "train.baseline_settings.mlp.trials=7",
            "search.tune.table_l2=[1e-3, 2]",
            "tracking.uri=http://localhost:5000",
            "metadata.name=other",
        ),
    )
    spec = pipeline.spec

    assert spec.dataset.source == "s3://bucket/a=b.csv"
    assert spec.search.trials == 3
    assert spec.train.weight_decay == 0.01
    assert spec.train.baselines == ["mlp", "deepfm"]
    assert (spec.train.baseline("mlp").trials, spec.train.baseline("deepfm").trials) == (7, None)
    assert spec.search.tune.table_l2 == [0.001, 2.0]
    assert spec.tracking.uri == "http://localhost:5000"
    assert pipeline.metadata.name == "other"


def test_a_later_override_wins_and_null_unsets() -> None:
    assert load(GALLERY[0], ("search.trials=3", "search.trials=4")).spec.search.trials == 4
    assert load(GALLERY[0], ("evaluate.register=",)).spec.evaluate.register_as is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 0.001), ("1.5e3", 1500.0), (".5", 0.5), ("+7", 7.0), ("0x10", 16.0), ("0o10", 8.0), ("010", 10.0)],
)
def test_numbers_are_read_as_kubernetes_reads_them(text: str, value: float) -> None:
    assert load(GALLERY[0], (f"train.weight_decay={text}",)).spec.train.weight_decay == value


def test_dates_and_times_stay_text() -> None:
    assert load(GALLERY[0], ("dataset.group=2014-10-21",)).spec.dataset.group == "2014-10-21"
    assert load(GALLERY[0], ("dataset.group=1:30",)).spec.dataset.group == "1:30"


def test_training_settings_come_without_what_surrounds_them() -> None:
    settings = load(GALLERY[0], ("train.batch_size=77",)).spec.train.settings()

    assert settings.batch_size == 77
    assert "seeds" not in settings.model_dump()


def test_aliases_mean_what_they_point_to(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "apiVersion: dalil.dev/v1alpha1\nkind: SearchPipeline\nmetadata: {name: m}\n"
        "spec: {dataset: {source: a.csv, format: csv}, search: {trials: &n 4}, train: {seeds: *n}}\n"
    )

    assert load(file).spec.train.seeds == 4


def test_a_pipeline_read_from_its_own_json_is_equal() -> None:
    for file in GALLERY:
        pipeline = load(file)
        assert SearchPipeline.model_validate(pipeline.model_dump(mode="json")) == pipeline


def test_a_file_means_the_same_in_any_order_of_its_keys() -> None:
    """kubectl hands on a file as it stands, the API server gives it back with its keys sorted."""
    file = next(file for file in GALLERY if file.stem == "quickstart")
    as_written = yaml.safe_load(file.read_text())
    as_served = json.loads(json.dumps(as_written, sort_keys=True))
    assert json.dumps(as_served) != json.dumps(as_written)
    served, problem = check(as_served)
    assert not problem
    assert served is not None
    assert served.model_dump_json() == load(file).model_dump_json()


def excerpts(page: Path) -> Iterator[dict[str, Any]]:
    """Pipelines, or parts of their spec, that a page shows: blocks that begin with a key of these."""
    keys = ("apiVersion", "spec", *PipelineSpec.model_fields)
    for block in re.findall(r"(?:^ {4}.*\n)+", page.read_text(), flags=re.MULTILINE):
        text = textwrap.dedent(block).strip()
        if text.partition(":")[0] in keys:
            yield yaml.safe_load(text)


@pytest.mark.parametrize("page", [page for page in PAGES if any(excerpts(page))], ids=names)
def test_what_the_docs_show_is_valid(page: Path) -> None:
    for shown in excerpts(page):
        spec = shown.get("spec", shown)
        least = {"dataset": {"source": "rows.csv", "format": "csv"}}
        SearchPipeline.model_validate(
            {"apiVersion": "dalil.dev/v1alpha1", "kind": "SearchPipeline", "metadata": {"name": "shown"}}
            | {key: value for key, value in shown.items() if key in SearchPipeline.model_fields}
            | {"spec": least | spec},
            strict=True,
        )
