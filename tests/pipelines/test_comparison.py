"""`dalil compare` and what `all` stands for, without any training."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.search import _baseline_studies, _method_studies, _Opener
from components.settings import SearchSpec, TrainSpec
from pipelines.comparison import comparison
from pipelines.messages import SpecError
from pipelines.spec import SearchPipeline, check, load, render
from tests.trainer.small_spaces import schema
from trainer import zoo
from trainer.errors import UserError
from trainer.methods.settings import TASKS

GALLERY = Path(__file__).parents[2] / "pipelines" / "gallery"
CLICKS = GALLERY / "movielens-ctr.yaml"


def silent(kind: str, **event: Any) -> None:
    """Says nothing."""


def compared(*overrides: str, file: Path = CLICKS, methods: str = "all", budget: str = "20M") -> SearchPipeline:
    return comparison(file, methods, budget, 5, overrides)


def test_a_comparison_has_every_method_and_model_at_one_budget_and_a_name_of_its_own() -> None:
    made = compared()
    assert made.metadata.name == f"{load(CLICKS).metadata.name}-compare"
    assert made.spec.dataset == load(CLICKS).spec.dataset
    search = made.spec.search
    assert search.named("ctr") == tuple(TASKS)
    assert (search.trials, search.sampler) == (None, None)
    assert search.budget is not None
    assert (search.budget.samples, search.budget.seconds) == (20_000_000, None)
    assert made.spec.train.named(zoo.names("ctr")) == zoo.names("ctr")
    assert made.spec.train.seeds == 5
    assert made.spec.evaluate.register_as is None


def test_the_file_that_a_comparison_leaves_is_the_same_comparison(tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(render(compared()))
    assert load(file) == compared()
    assert check(yaml.safe_load(file.read_text())) == (compared(), "")


@pytest.mark.parametrize(
    ("text", "samples", "seconds"),
    [
        ("3600s", None, 3600.0),
        ("1.5s", None, 1.5),
        ("500", 500, None),
        ("1.5M", 1_500_000, None),
        ("2G", 2 * 10**9, None),
    ],
)
def test_a_budget_is_seconds_or_rows(text: str, samples: int | None, seconds: float | None) -> None:
    budget = compared(budget=text).spec.search.budget
    assert budget is not None
    assert (budget.samples, budget.seconds) == (samples, seconds)


@pytest.mark.parametrize("text", ["", "much", "3h", "5Ms", "-3", "1e6"])
def test_what_is_no_budget_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError, match=r"^--budget .*: write seconds, such as 3600s, or rows to learn from") as caught:
        compared(budget=text)
    assert len(str(caught.value).splitlines()) == 1


def test_methods_are_named_with_commas_and_misspelt_ones_refused() -> None:
    assert compared(methods="autofis,random").spec.search.methods == ["autofis", "random"]
    with pytest.raises(SpecError, match="did you mean 'autofis'"):
        compared(methods="autofs")


def test_overrides_go_before_what_the_comparison_sets() -> None:
    made = compared("search.workers=4", "train.baselines=[fm]", "search.trials=3")
    assert (made.spec.search.workers, made.spec.train.baselines, made.spec.search.trials) == (4, ["fm"], 3)


def test_every_method_has_its_own_sampler_unless_the_file_says_one() -> None:
    each = SearchSpec()
    assert [each.sampler_of(name) for name in ("autorec", "autoctr", "random")] == ["bayesian", "evolution", "random"]
    greedy = SearchSpec(sampler="greedy")
    assert [greedy.sampler_of(name) for name in ("autorec", "autoctr", "random")] == ["greedy", "greedy", "random"]
    assert (each.sampler_of(), greedy.sampler_of()) == ("bayesian", "greedy")


def test_all_leaves_out_what_does_not_fit_the_fields_and_says_why(tmp_path: Path) -> None:
    said: list[str] = []

    def emit(kind: str, **event: Any) -> None:
        said.append(event["text"])

    spec, train = SearchSpec(methods=["all"], trials=1), TrainSpec(baselines=["all"])
    opener = _Opener(spec, train, tmp_path, None, emit)
    numeric, flat = schema(categorical=0, numeric=3), schema(categorical=3)
    methods = [study.name for study in _method_studies(spec, numeric, opener)]
    assert {"autorec", "autodis", "random"} <= set(methods)
    assert not {"autodim", "nis", "mde"} & set(methods)
    assert any(text.startswith("autodim is left out: ") and "categorical" in text for text in said)
    said.clear()
    models = [study.name for study in _baseline_studies(spec, train, flat, opener)]
    assert {"fm", "deepfm", "dcnv2"} <= set(models)
    assert "din" not in models
    assert any(text.startswith("din is left out: ") and "sequence" in text for text in said)


def test_a_method_that_is_asked_for_by_name_must_fit(tmp_path: Path) -> None:
    spec = SearchSpec(methods=["autodim", "all"], trials=1)
    opener = _Opener(spec, TrainSpec(), tmp_path, None, silent)
    with pytest.raises(UserError, match="autodim sizes the tables of categorical fields"):
        list(_method_studies(spec, schema(categorical=0, numeric=3), opener))


def test_cheaper_trials_are_those_of_the_methods_that_train_once(tmp_path: Path) -> None:
    search = {"methods": ["autofis", "autoctr"], "trials": 1, "fidelity": {"rows": 0.5}, "inherit": True}
    spec = SearchSpec.model_validate(search)
    opener = _Opener(spec, TrainSpec(), tmp_path, None, silent)
    fis, ctr = _method_studies(spec, schema(categorical=3), opener)
    assert (fis.fidelity, fis.inherit) == (None, False)
    assert (ctr.fidelity, ctr.inherit) == (spec.fidelity, True)
