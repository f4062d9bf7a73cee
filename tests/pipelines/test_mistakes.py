"""Every mistake in a pipeline file is one line with its place, what is wrong, and what to write instead."""

from pathlib import Path
from typing import get_args

import pytest

from components.settings import Method
from pipelines.messages import SpecError
from pipelines.spec import load

METHODS = get_args(Method)
GOOD = """\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata:
  name: movies
spec:
  dataset:
    source: ratings.dat
    format: movielens
    task: rating
    split: {by: random, ratios: [8, 1, 1]}
  search:
    methods: [autorec]
    trials: 20
  train:
    seeds: 3
    baselines: [mf, mlp]
    baseline_settings: {mlp: {trials: 5}}
  evaluate:
    metric: mse
"""

CASES = [
    # (what is written, in place of what, line, the message)
    ("trails: 20", "trials: 20", 13, "spec.search.trails: unknown key; did you mean 'trials'?"),
    ("sorce: ratings.dat", "source: ratings.dat", 7, "spec.dataset.sorce: unknown key; did you mean 'source'?"),
    ("epochs: 20", "trials: 20", 13, "spec.search.epochs: unknown key; 'epochs' belongs in spec.train"),
    ("sarch:", "search:", 11, "spec.sarch: unknown key; did you mean 'search'?"),
    ("metadat:", "metadata:", 3, "metadat: unknown key; did you mean 'metadata'?"),
    ("{by: random, ration: [8, 1, 1]}", "{by: random, ratios: [8, 1, 1]}", 10, "did you mean 'ratios'?"),
    ("{trial: 5}", "{trials: 5}", 17, "spec.train.baseline_settings.mlp.trial: unknown key; did you mean 'trials'?"),
    ("{fm: {trials: 5}}", "{mlp: {trials: 5}}", 17, "fm is none of train.baselines; valid here: mf, mlp"),
    ("xyzzy: 1", "trials: 20", 13, "spec.search.xyzzy: unknown key; valid here: methods, sampler, trials"),
    ("trials: many", "trials: 20", 13, "spec.search.trials: must be a whole number, not 'many'"),
    ('trials: "20"', "trials: 20", 13, "spec.search.trials: must be a whole number, not '20'"),
    ("trials: 20.5", "trials: 20", 13, "spec.search.trials: must be a whole number, not 20.5"),
    ("trials: true", "trials: 20", 13, "spec.search.trials: must be a whole number, not true"),
    ("trials: 0", "trials: 20", 13, "spec.search.trials: must be at least 1, not 0"),
    ("trials: -3", "trials: 20", 13, "spec.search.trials: must be at least 1, not -3"),
    ("seeds:", "seeds: 3", 15, "spec.train.seeds: must be a whole number, not empty"),
    ("trials: [20]", "trials: 20", 13, "spec.search.trials: must be a whole number, not a list"),
    ("prune: maybe", "trials: 20", 13, "spec.search.prune: must be true or false, not 'maybe'"),
    (
        "sampler: bayes",
        "trials: 20",
        13,
        "'bayes' is not one of random, greedy, bayesian, grid, evolution, unguided_evolution, nsga2;"
        " did you mean 'bayesian'?",
    ),
    ("format: movie", "format: movielens", 8, "'movie' is not one of movielens, netflix"),
    ("task: ratings", "task: rating", 9, "'ratings' is not one of ctr, rating, next_item; did you mean 'rating'?"),
    ("metric: auc", "metric: mse", 19, "spec.evaluate.metric: auc does not fit dataset.task rating; write mse or rmse"),
    ("metric: msse", "metric: mse", 19, "did you mean 'mse'?"),
    ("name: Movies", "name: movies", 4, "metadata.name: 'Movies' does not fit: lower-case letters"),
    ("name: ../../etc", "name: movies", 4, "metadata.name: '../../etc' does not fit"),
    ("name: 12", "name: movies", 4, "metadata.name: must be text, not 12"),
    (f"name: {'x' * 60}", "name: movies", 4, "metadata.name: longer than 40 characters"),
    ("dalil.dev/v1", "dalil.dev/v1alpha1", 1, "'dalil.dev/v1' is not one of dalil.dev/v1alpha1; did you mean"),
    ("kind: Pipeline", "kind: SearchPipeline", 2, "kind: 'Pipeline' is not one of SearchPipeline"),
    ("format: csv2", "source: ratings.dat\n    format: movielens", 7, "'csv2' is not one of"),
    ("format: movielens", "source: ratings.dat\n    format: movielens", 6, "'source' is missing: the URL of the rows"),
    ("group: user", "format: movielens", 6, "spec.dataset.format: is missing"),
    ("seeds: [1, 2]", "seeds: 3", 15, "spec.train.seeds: must be a whole number, not a list"),
    ("learning_rate: 0", "seeds: 3", 15, "spec.train.learning_rate: must be greater than 0, not 0"),
    ("average: 1", "seeds: 3", 15, "spec.train.average: must be less than 1, not 1"),
    ("learning_rate: .inf", "seeds: 3", 15, "spec.train.learning_rate: .inf is not a number that JSON knows"),
    ("table_l2: 0.5", "seeds: 3", 15, "spec.train.table_l2: 0.5 is not among search.tune.table_l2 [1e-05, 0.0001, 0"),
    ("candidates: 30", "seeds: 3", 15, "spec.train.candidates: 30 candidates cannot come out of search.trials: 20"),
    ("[mff, mlp]", "[mf, mlp]", 16, "no model 'mff' in the zoo; did you mean 'mf'?"),
    ("[mf, mlp, mf]", "[mf, mlp]", 16, "spec.train.baselines[2]: mf stands in the list twice"),
    ("[mlp, xyz]", "[mf, mlp]", 16, "no model 'xyz' in the zoo; valid here: afm, autoint"),
    ("[mlp, din]", "[mf, mlp]", 16, "spec.train.baselines[1]: din needs a sequence; add one to dataset"),
    ("[mlp, 5]", "[mf, mlp]", 16, "spec.train.baselines[1]: must be text, not 5"),
    ("mf", "[mf, mlp]", 16, "spec.train.baselines: must be a list such as [a, b], not 'mf'"),
    ("[8, 1]", "[8, 1, 1]", 10, "spec.dataset.split.ratios: must have at least 3 items, not 2"),
    ("[8, 1, one]", "[8, 1, 1]", 10, "spec.dataset.split.ratios[2]: must be a number, not 'one'"),
    ("[8, 1, 0]", "[8, 1, 1]", 10, "spec.dataset.split: 'ratios' must be three positive numbers"),
    ("random", "{by: random, ratios: [8, 1, 1]}", 10, "spec.dataset.split: must be a mapping"),
    (
        "methods: [autofis]\n    autofis: {backbone: mlp}",
        "methods: [autorec]",
        13,
        "spec.search.autofis.backbone: autofis finds nothing to open in mlp; "
        "valid here: afm, deepfm, dlrm, fm, fwfm, ipnn",
    ),
    (
        "methods: [autofis]\n    autofis: {triples: [false, true], backbone: dlrm}",
        "methods: [autorec]",
        13,
        "autofis with these settings cannot open dlrm; valid here: afm, deepfm, fm, fwfm, ipnn",
    ),
    (
        "methods: [autofis]\n    autofis: {backbone: depfm}",
        "methods: [autorec]",
        13,
        "spec.search.autofis.backbone: no model 'depfm'; did you mean 'deepfm'?",
    ),
    (
        "methods: [autogroup]\n    autogroup:\n      epochs: 2\n      backbone: xyz",
        "methods: [autorec]",
        15,
        "spec.search.autogroup.backbone: no model 'xyz'; valid here: afm,",
    ),
    (
        "methods: [ihas]\n    ihas: {backbone: dlrm, into: depfm}",
        "methods: [autorec]",
        13,
        "spec.search.ihas.into: groups cannot be trained as 'depfm'; did you mean 'deepfm'?",
    ),
    (
        "methods: [autodis]\n    autodis: {backbone: mf}",
        "methods: [autorec]",
        13,
        "autodis finds nothing to open in mf",
    ),
    (
        "methods: [autodim]\n    autodim: {backbone: din}",
        "methods: [autorec]",
        13,
        "autodim finds nothing to open in din",
    ),
    (
        "methods: [mde]\n    mde: {backbone: neumf}",
        "methods: [autorec]",
        13,
        "mde finds nothing to open in neumf; valid",
    ),
    (
        "methods: [field_dims]\n    field_dims: {backbone: sasrec}",
        "methods: [autorec]",
        13,
        "spec.search.field_dims.backbone: field_dims finds nothing to open in sasrec; valid here: afm, autoint,",
    ),
    ("methods: [autofs]", "methods: [autorec]", 12, "did you mean 'autofis'?"),
    ("methods: autorec", "methods: [autorec]", 12, "spec.search.methods: must be a list such as [a, b], not 'autorec'"),
    ("methods: [mde, mde]", "methods: [autorec]", 12, "spec.search.methods[1]: mde stands in the list twice"),
    ("budget: {}", "trials: 20", 13, "spec.search.budget: write 'samples' or 'seconds'"),
    ("budget: {samples: 0}", "trials: 20", 13, "spec.search.budget.samples: must be at least 1, not 0"),
    ("methods: [autofis]\n    autodim: {dim: [4]}", "methods: [autorec]", 13, "unknown key; did you mean 'dims'?"),
    (
        "methods: [autodim]\n    autodim: {dims: []}",
        "methods: [autorec]",
        13,
        "dims: must have at least 1 items, not 0",
    ),
    ("methods: [autodim]\n    autodim: {warm_up: 1}", "methods: [autorec]", 13, "warm_up: must be less than 1, not 1"),
    ("trials: 20\n    trials: 30", "trials: 20", 14, "spec.search.trials: a second time; the first is on line 13"),
    ("\ttrials: 20", "    trials: 20", 13, "a tab; YAML indents with spaces"),
    ("trials: [20", "trials: 20", 14, "not YAML"),
    ("trials: 20: 30", "trials: 20", 13, "not YAML"),
    ("1: 20", "trials: 20", 13, "spec.search.1: a key must be text; write '1' in quotes"),
    ("trials: !!python/object:os.system 20", "trials: 20", 13, "the tag"),
    ("trials: &a [*a]", "trials: 20", 13, "an alias that contains itself"),
    ("<<: {trials: 20}", "trials: 20", 13, "'<<' is not supported"),
    ("metric: mse\n---\nkind: Pod", "metric: mse", 20, "a second document begins here"),
]


@pytest.mark.parametrize(("wrong", "right", "line", "message"), CASES)
def test_one_line_with_place_and_remedy(tmp_path: Path, wrong: str, right: str, line: int, message: str) -> None:
    assert GOOD.count(right) == 1
    file = tmp_path / "movies.yaml"
    file.write_text(GOOD.replace(right, wrong))

    with pytest.raises(SpecError) as caught:
        load(file)

    lines = str(caught.value).splitlines()
    assert lines[0].startswith(f"{file}:{line}: ")
    assert message in lines[0]
    assert len(lines) == 1


def test_the_good_file_is_good(tmp_path: Path) -> None:
    file = tmp_path / "movies.yaml"
    file.write_text(GOOD)

    assert load(file).spec.train.baseline("mlp").trials == 5


@pytest.mark.parametrize(
    "changes",
    [
        ("dataset.fields={history: {kind: sequence, of: item, max_len: 20}}", "dataset.group=user"),
        ("dataset.format=parquet", "dataset.label.column=stars", "dataset.fields={seen: {of: item}}"),
        ("dataset.format=sequence", "dataset.task=ctr", "evaluate.metric=auc"),
    ],
)
def test_sequence_models_fit_a_dataset_with_a_history(tmp_path: Path, changes: tuple[str, ...]) -> None:
    file = tmp_path / "movies.yaml"
    file.write_text(GOOD)

    pipeline = load(file, (*changes, "train.baselines=[din, mlp]"))

    assert pipeline.spec.train.baselines[0] == "din"


NEXT = """\
apiVersion: dalil.dev/v1alpha1
kind: SearchPipeline
metadata: {name: next}
spec:
  dataset: {source: Beauty.txt, format: sequence, task: next_item}
  search: {methods: []}
  train: {baselines: [sasrec, pooling]}
"""


def test_a_file_of_next_items_needs_little(tmp_path: Path) -> None:
    file = tmp_path / "next.yaml"
    file.write_text(NEXT)

    spec = load(file).spec

    assert (spec.dataset.split.by, spec.evaluate.metric) == ("leave_last_out", "ndcg_at_10")
    assert load(file, ("dataset.format=movielens", "dataset.split.by=time")).spec.dataset.split.by == "time"
    assert load(file, ("dataset.format=movielens", "dataset.label.threshold=4")).spec.dataset.label.threshold == 4


@pytest.mark.parametrize(("key", "value"), [("fidelity", "{rows: 0.5}"), ("inherit", "true")])
def test_cheaper_trials_are_for_methods_whose_trial_is_one_training(tmp_path: Path, key: str, value: str) -> None:
    file = tmp_path / "next.yaml"
    file.write_text(NEXT.replace("methods: []", f"methods: [ameir], {key}: {value}"))

    with pytest.raises(
        SpecError, match=rf":6: spec.search.{key}: none of search.methods has one training for a trial; leave it out"
    ):
        load(file)


@pytest.mark.parametrize("method", [method for method in METHODS if method not in ("all", "ameir")])
def test_most_methods_search_no_next_items(tmp_path: Path, method: str) -> None:
    file = tmp_path / "next.yaml"
    file.write_text(NEXT.replace("methods: []", f"methods: [{method}]"))

    with pytest.raises(SpecError) as caught:
        load(file)

    assert str(caught.value) == (
        f"{file}:6: spec.search.methods[0]: {method} does not do dataset.task next_item;"
        " write ameir or all, or methods: []"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.baselines=[sasrec, din]",
            "spec.train.baselines[1]: din does not do dataset.task next_item; valid here: g",
        ),
        ("train.baselines=[sasrek]", "spec.train.baselines[0]: no model 'sasrek' in the zoo; did you mean 'sasrec'?"),
        (
            "train.baseline_settings={pooling: {choices: {mlp.units: [64]}}}",
            "pooling has no choice 'mlp.units'; valid here: embedding.dim, pool.kind",
        ),
        ("evaluate.metric=auc", "auc does not fit dataset.task next_item; write ndcg_at_10 or hr_at_10 or mrr or nll"),
        ("dataset.split.by=random", "spec.dataset: task next_item cannot be split by: random"),
        ("dataset.negatives=3", "spec.dataset: task next_item meets all items, so it draws no 'negatives'"),
        ("dataset.label={threshold: 4}", "spec.dataset: a sequence file has no labels"),
        (
            "dataset.format=csv",
            "spec.dataset: task next_item predicts the field that a sequence is 'of': declare one in",
        ),
    ],
)
def test_mistakes_of_next_items(tmp_path: Path, override: str, message: str) -> None:
    file = tmp_path / "next.yaml"
    file.write_text(NEXT)

    with pytest.raises(SpecError) as caught:
        load(file, (override,))

    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("method", "backbone"),
    [("autofis", "dlrm"), ("autodim", "mf"), ("autodis", "din"), ("autogroup", "fm"), ("mde", "dlrm")],
)
def test_backbones_that_fit(tmp_path: Path, method: str, backbone: str) -> None:
    file = tmp_path / "movies.yaml"
    file.write_text(GOOD)

    search = load(file, (f"search.methods=[{method}]", f"search.{method}={{backbone: {backbone}}}")).spec.search

    assert getattr(search, method).backbone == backbone


def test_the_backbone_of_a_method_that_is_not_used_does_not_matter(tmp_path: Path) -> None:
    file = tmp_path / "movies.yaml"
    file.write_text(GOOD)

    assert load(file, ("search.autofis={backbone: mlp}",)).spec.search.methods == ["autorec"]


def test_every_mistake_is_shown_in_the_order_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "movies.yaml"
    file.write_text(GOOD.replace("seeds: 3", "seeds: x").replace("format:", "fromat:").replace("metric:", "metrics:"))

    with pytest.raises(SpecError) as caught:
        load(file)

    places = [line.split(": ")[0].removeprefix(f"{file}:") for line in str(caught.value).splitlines()]
    assert places == ["8", "15", "19"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a pipeline: the file must begin with 'apiVersion"),
        ("# nothing\n", "not a pipeline"),
        ("- a\n- b\n", "not a pipeline"),
        ("just text", "not a pipeline"),
        ("kind: SearchPipeline\n", "apiVersion: is missing"),
        (GOOD.split("  dataset:")[0], "spec: must be a mapping"),
    ],
)
def test_files_that_are_no_pipelines(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)

    with pytest.raises(SpecError, match=message):
        load(file)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"kind: \xff\xfe")

    with pytest.raises(SpecError, match="no such file or directory"):
        load(tmp_path / "missing.yaml")
    with pytest.raises(SpecError, match="is a directory"):
        load(tmp_path)
    with pytest.raises(SpecError, match=r"not UTF-8 text \(byte 6\)"):
        load(binary)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset.sorce=x", "--set dataset.sorce=x: spec.dataset.sorce: unknown key; did you mean 'source'?"),
        ("search.trials=many", "--set search.trials=many: spec.search.trials: must be a whole number"),
        ("search.trials", "--set search.trials: write KEY=VALUE, such as --set search.trials=20"),
        ("=3", "--set =3: write KEY=VALUE"),
        ("search..trials=3", "write KEY=VALUE"),
        ("search.trials=[1", "the value is not YAML"),
        ("search.trials.x=3", "spec.search.trials is 20 and has no key 'x'"),
        ("train.baselines.9=fm", "spec.train.baselines is a list; its items are 0 to 1"),
        ("train.baselines.x=fm", "spec.train.baselines is a list; its items are 0 to 1"),
        (
            "search={methods: [autofis], autofis: {backbone: mlp}}",
            "autofis finds nothing to open in mlp; valid here: afm",
        ),
        ("evaluate.metric=auc", "--set evaluate.metric=auc: spec.evaluate.metric: auc does not fit"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, message: str) -> None:
    file = tmp_path / "movies.yaml"
    file.write_text(GOOD)

    with pytest.raises(SpecError) as caught:
        load(file, (override,))

    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
