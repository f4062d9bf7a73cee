"""Digests: what makes a step run again, and what does not."""

from pathlib import Path

import pytest

from pipelines import graph
from pipelines.graph import ROOT, STEPS, Plan, Step, code_version, plan
from pipelines.spec import load

QUICKSTART = Path(graph.__file__).parent / "gallery" / "quickstart.yaml"
NAMES = [step.name for step in STEPS]


@pytest.fixture(autouse=True)
def steady_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "code_version", lambda step: "as ever")


def plans(*overrides: str) -> dict[str, Plan]:
    """As if every step's files were other ones whenever its digest is."""
    found: dict[str, Plan] = {}
    for step in STEPS:
        found[step.name] = plan(load(QUICKSTART, overrides), step, {name: found[name].digest for name in step.inputs})
    return found


def digests(*overrides: str) -> dict[str, str]:
    return {name: item.digest for name, item in plans(*overrides).items()}


def resumes(*overrides: str) -> dict[str, str]:
    return {name: item.resume for name, item in plans(*overrides).items()}


@pytest.mark.parametrize(
    ("override", "first"),
    [
        ("dataset.planted.seed=1", "ingest"),
        ("dataset.split.ratios=[7, 2, 1]", "ingest"),
        ("search.sampler=random", "search"),
        ("search.tune.table_l2=[1e-3]", "search"),
        ("search.autorec.blocks=[3]", "search"),
        ("train.epochs=3", "search"),
        ("train.baselines=[fm]", "search"),
        ("train.candidates=2", "search"),
        ("train.seeds=2", "train"),
        ("evaluate.register=other", "evaluate"),
        ("tracking.uri=http://localhost:5000", "evaluate"),
        ("metadata.name=other", "evaluate"),
    ],
)
def test_a_setting_changes_its_step_and_all_after_it(override: str, first: str) -> None:
    before, after = digests(), digests(override)
    changed = [name for name in NAMES if before[name] != after[name]]

    assert changed == NAMES[NAMES.index(first) :]


def test_every_file_that_is_no_module_belongs_to_a_step() -> None:
    counted = {file for step in STEPS if step.data for file in ROOT.glob(step.data)}
    files = {path for package in ("components", "trainer") for path in (ROOT / package).rglob("*") if path.is_file()}
    assert {path for path in files if path.suffix not in (".py", ".pyc")} == counted


def test_labels_change_nothing() -> None:
    assert digests() == digests("metadata.labels={team: ads}", "metadata.namespace=ml")


@pytest.mark.parametrize("override", ["search.trials=99", "train.baselines=[fm]", "train.candidates=2"])
def test_a_search_goes_on_from_an_earlier_one(override: str) -> None:
    assert resumes()["search"] == resumes(override)["search"]


@pytest.mark.parametrize("override", ["search.seed=9", "train.epochs=3", "dataset.planted.seed=1", "search.workers=1"])
def test_a_search_does_not_go_on_from_another_one(override: str) -> None:
    assert resumes()["search"] != resumes(override)["search"]


def test_settings_named_by_steps_exist() -> None:
    spec = load(QUICKSTART).spec.model_dump()
    for step in STEPS:
        for path in (*step.settings, *step.without, *step.extends):
            part, *key = path.split(".")
            assert part in spec
            assert not key or key[0] in spec[part]
            assert part in step.settings
        assert set(step.inputs) <= set(NAMES[: NAMES.index(step.name)])


class TestCodeVersion:
    """On a tree of our own, so that files may be edited."""

    STEP = Step("brew", inputs=(), settings=(), data="trainer/zoo/*.yaml")

    @pytest.fixture(autouse=True)
    def tree(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        files = {
            "components/brew.py": "from trainer import water\nfrom components.events import emit\nprint(water)\n",
            "components/events.py": "def emit(): ...\n",
            "components/other.py": "x = 1\n",
            "trainer/__init__.py": "",
            "trainer/water.py": '"""Water."""\ndef boil():\n    """Boils."""\n    import trainer.fire\n    return 1\n',
            "trainer/fire.py": "x = 1\n",
            "trainer/zoo/fm.yaml": "a: 1\n",
        }
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        monkeypatch.setattr(graph, "ROOT", tmp_path)
        return tmp_path

    def version(self) -> str:
        graph._parsed.cache_clear()
        return code_version(self.STEP)

    @pytest.mark.parametrize(
        ("file", "old", "new", "counts"),
        [
            ("components/brew.py", "print", "repr", True),
            ("trainer/water.py", "return 1", "return 2", True),
            ("trainer/fire.py", "x = 1", "x = 2", True),
            ("trainer/zoo/fm.yaml", "a: 1", "a: 2", True),
            ("components/other.py", "x = 1", "x = 2", False),
            ("components/events.py", "...", "pass", False),
            ("trainer/water.py", "Boils.", "Boils the water.", False),
            ("trainer/fire.py", "x = 1", "x  =  1  # hot", False),
        ],
    )
    def test_what_counts(self, tree: Path, file: str, old: str, new: str, counts: bool) -> None:
        before = self.version()
        text = (tree / file).read_text()
        assert old in text
        (tree / file).write_text(text.replace(old, new))

        assert (self.version() != before) == counts


def test_search_and_train_do_not_depend_on_how_they_are_recorded() -> None:
    for step in ("search", "train"):
        modules = graph._imported(f"components.{step}")
        assert "trainer.workers" in modules
        assert "components.tracking" not in modules
        assert not {module for module in modules if module.startswith("pipelines")}
