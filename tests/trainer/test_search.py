from pathlib import Path

import numpy as np
import polars as pl
import pytest

from trainer.methods.autorec import FM, MLP, InnerProduct, LatentFactorMapper, RatingRecommender
from trainer.schema import DatasetSchema, Field
from trainer.search import search
from trainer.settings import TrainSettings, TuneSettings

ROWS = {"train": 2000, "valid": 400}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Ratings that are a product of a user's and an item's number, around 3."""
    folder, random = tmp_path / "dataset", np.random.default_rng(0)
    taste, quality = random.normal(size=30), random.normal(size=20)
    for split, rows in ROWS.items():
        user, item = random.integers(0, 30, rows, np.int32), random.integers(0, 20, rows, np.int32)
        label = (3 + taste[user] * quality[item]).astype(np.float32)
        (folder / split).mkdir(parents=True)
        frame = pl.DataFrame({"user": user, "item": item, "label": label})
        frame.write_parquet(folder / split / "part-00000.parquet")
    fields = tuple(Field(name=name, kind="categorical", cardinality=n) for name, n in (("user", 30), ("item", 20)))
    schema = DatasetSchema(
        task="rating", label="label", fields=fields, rows={**ROWS, "test": 0}, label_mean=3, label_min=-9, label_max=15
    )
    (folder / "schema.json").write_text(schema.model_dump_json())
    return folder


@pytest.mark.slow
def test_a_searchable_recommender_is_searched_in_a_few_lines(dataset: Path, tmp_path: Path) -> None:
    user, item = LatentFactorMapper(8)("user"), LatentFactorMapper(8)("item")
    recommender = RatingRecommender([InnerProduct()([user, item]), FM()([user, item]), MLP()([user, item])])
    told: list[str] = []
    settings = TrainSettings(batch_size=100, epochs=4, learning_rate=0.02, table_init=0.3)
    tune = TuneSettings(learning_rate=[], table_l2=[1e-5, 1e-4])

    def run(trials: int) -> list[tuple[int, float | None]]:
        best = search(
            recommender,
            dataset,
            tmp_path / "out",
            trials=trials,
            sampler="random",
            settings=settings,
            tune=tune,
            tell=told.append,
        )
        return [(record.number, record.value) for record in best]

    two, four = run(2), run(4)
    values = [value for _, value in four if value is not None]
    assert values == sorted(values)
    # The product's variance is about 1: a model that learned nothing has that error.
    assert values[0] < 0.4
    assert set(two) <= set(four)
    assert told[0].startswith("Trial 0: mse ")
    assert "|-interactor inner1: inner" in told[0]
