"""The champion as an MLflow model that scores raw rows: written by the evaluate step, loaded by MLflow's pyfunc.

The model folder holds data, not pickles: the architecture, the weights, the dataset's schema and its vocabularies,
beside copies of the packages `trainer` and `components` that read them. Rows are encoded by the code that encoded the
training rows, so a served prediction equals the evaluate step's.
"""

import json
from dataclasses import replace
from importlib.metadata import distributions
from pathlib import Path
from shutil import copy2, copytree
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import polars as pl
import pyarrow as pa
from torch import Tensor

from components.encode import Encoder, InputType, read_vocabulary
from trainer import data
from trainer.architecture import Architecture
from trainer.build import Model, build
from trainer.checkpoint import load_weights
from trainer.data import Table
from trainer.fit import predict, recommend
from trainer.modules.tables import Rows
from trainer.ranking import Best
from trainer.schema import DatasetSchema, Task

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

OUTPUT = "prediction"
ITEMS, PROBABILITIES = "items", "probabilities"
RECOMMENDED = 10
"""Items that a model of next items gives for each row, best first."""
EXAMPLE_ROWS = 5
_LISTS = pl.List(pl.Float64)
REQUIREMENTS = (  # of fbgemm's two builds one is installed
    "mlflow",
    "torch",
    "torchrec",
    "fbgemm-gpu",
    "fbgemm-gpu-cpu",
    "polars",
    "pyarrow",
    "pandas",
    "numpy",
    "pydantic",
    "safetensors",
    "fsspec",
)


class Scorer:
    """A loaded model. Unknown categories, missing values and missing columns are all accepted."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: architecture.json, weights.safetensors, schema.json and vocabulary/."""
        self.schema = DatasetSchema.load(folder)
        self.encoder = Encoder(folder)
        architecture = Architecture.from_dict(json.loads((folder / "architecture.json").read_text()))
        self.model = load_model(architecture, self.schema, folder / "weights.safetensors")
        self.answers = Answers(self.model, item_names(folder, self.schema))

    def predict(self, frame: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Raw rows, as in the dataset's source files -> one column `prediction`: a probability (ctr) or a rating.

        next_item: columns `items`, the names of the ten likeliest next items, and their `probabilities`.
        """
        columns = self.answers(self.encoded(frame))
        plain = {name: one.to_list() if isinstance(one, pl.Series) else one for name, one in columns.items()}
        return pd.DataFrame(plain, index=frame.index)

    def encoded(self, frame: pd.DataFrame) -> Table:
        """Raw rows as the model takes them."""
        raw = raw_columns(frame, self.encoder.inputs)
        raw = raw.with_columns(pl.col(pl.String).fill_null(""))  # all at once: the encoder goes column by column
        return data.from_arrow(self.encoder.encode(raw).to_arrow(), self.schema)


def _load_pyfunc(path: str) -> Scorer:
    """The entry point that MLflow calls with the model's data folder."""
    return Scorer(Path(path))


def load_model(architecture: Architecture, schema: DatasetSchema, weights: Path) -> Model:
    """A trained model that computes in float64 what follows its look-ups; to be used through `score`.

    In float32 a row's prediction depends on how many rows are scored with it (matrix kernels differ): by 2e-6 of a
    rating, measured. Tables, nearly all of the memory, stay as they are: a look-up is exact.
    """
    model = build(architecture, label_mean=schema.label_mean, table_init=0.0, seed=0)
    load_weights(model, weights)
    for part in (model.views, model.nodes, model.head):
        part.double()
    model.tables.register_forward_hook(_as_float64)
    return model.eval()


def score(model: Model, table: Table) -> npt.NDArray[np.float64]:
    """What `fit.predict` gives for all rows and a model of `load_model`: what metrics are computed from."""
    return predict(model, _exact(table))


def answer(model: Model, table: Table) -> npt.NDArray[np.float64] | Best:
    """What a model of `load_model` is served for: predictions of all rows, or (next_item) the best items of each."""
    if table.schema.task == "next_item":
        return recommend(model, _exact(table), RECOMMENDED)
    return score(model, table)


class Answers:
    """A model's answers as they are shown: ids of items are names again."""

    def __init__(self, model: Model, names: pl.Series | None) -> None:
        """Args: names: of items, as `item_names` gives them."""
        self.model, self._names = model, names

    def __call__(self, table: Table) -> dict[str, npt.NDArray[np.float64] | pl.Series]:
        """Columns of N values, by name."""
        found = answer(self.model, table)
        if not isinstance(found, Best):
            return {OUTPUT: found}
        return {ITEMS: self._named(found.ids), PROBABILITIES: pl.Series(found.probabilities.numpy()).cast(_LISTS)}

    def labels(self, table: Table) -> npt.NDArray[np.float32] | pl.Series:
        """What the rows themselves say, (N,)."""
        return table.label.numpy() if self._names is None else self._named(table.label)

    def _named(self, ids: Tensor) -> pl.Series:
        """(N,) or (N, K) ids, none of them 0."""
        assert self._names is not None
        names = self._names.gather(ids.flatten().numpy() - 1)
        return names if ids.dim() == 1 else names.reshape(tuple(ids.shape)).cast(pl.List(pl.String))


def item_names(folder: Path, schema: DatasetSchema) -> pl.Series | None:
    """next_item: the names of the items by id, from 1 on. `folder` holds the dataset's vocabulary/."""
    return None if schema.target is None else read_vocabulary(folder, schema.target).tokens


def _exact(table: Table) -> Table:
    return replace(table, numeric=table.numeric.double())


def _as_float64(module: object, inputs: object, rows: Rows) -> Rows:
    return rows.double()


def raw_columns(frame: pd.DataFrame, inputs: dict[str, InputType]) -> pl.DataFrame:
    """What arrives over JSON, CSV or from Python, as the encoder's raw columns; absent columns are missing values."""
    columns = [_column(frame.get(name), name, kind, len(frame)) for name, kind in inputs.items()]
    return pl.DataFrame(columns)


def _column(values: "pd.Series[Any] | None", name: str, kind: InputType, rows: int) -> pl.Series:
    if kind == "double":
        numbers = np.full(rows, np.nan) if values is None else pd.to_numeric(values, errors="coerce").to_numpy(float)
        return pl.Series(name, numbers, dtype=pl.Float64)
    if kind == "list":
        given = [None] * rows if values is None else values.tolist()
        return pl.Series(name, [_tokens(value) for value in given], dtype=pl.List(pl.String))
    return pl.Series(name, [None] * rows, dtype=pl.String) if values is None else _texts(values).rename(name)


def _texts(values: "pd.Series[Any]") -> pl.Series:
    """`_token` of each value; whole columns of text, of integers and of whole numbers at once."""
    kind = values.dtype
    if isinstance(kind, pd.StringDtype):
        return pl.Series(values.array.__arrow_array__())
    if isinstance(kind, np.dtype) and kind.kind in "iu":
        return pl.Series(values.to_numpy()).cast(pl.String)
    if isinstance(kind, np.dtype) and kind.kind == "f":
        numbers = pl.Series(values.to_numpy(np.float64), nan_to_null=True)
        whole = numbers.cast(pl.Int64, strict=False)
        if whole.eq_missing(numbers).all():
            return whole.cast(pl.String)
    if pd.api.types.is_object_dtype(kind) and pd.api.types.infer_dtype(values) == "string":
        return pl.Series(pa.array(values, pa.large_string(), from_pandas=True))
    return pl.Series([_token(value) for value in values.tolist()], dtype=pl.String)


def _token(value: Any) -> str | None:
    """The text of a category. Whole numbers come as floats wherever a column has a gap: 3.0 is "3"."""
    if value is None or value is pd.NA or value != value:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value)


def _tokens(value: Any) -> list[str]:
    """A list's categories; in CSV a list stands as its JSON text, such as ["12", "7"]."""
    if isinstance(value, str):
        value = json.loads(value)
    if value is None or isinstance(value, float):
        return []
    return [_token(item) or "" for item in value]


def save(folder: Path, architecture: Architecture, weights: Path, dataset: Path) -> None:
    """Write the MLflow model `folder`, which must not exist.

    Args:
        folder: the model folder to write.
        architecture: of the champion.
        weights: its weights, as `trainer.checkpoint.save_weights` writes them.
        dataset: the ingest step's output folder.
    """
    import mlflow

    packages = Path(__file__).resolve().parents[1]
    schema = DatasetSchema.load(dataset)
    inputs = {
        name: kind for name, kind in Encoder(dataset).inputs.items() if schema.target is None or name != schema.label
    }
    with TemporaryDirectory() as scratch:
        content = Path(scratch) / "model"
        content.mkdir()
        (content / "architecture.json").write_text(json.dumps(architecture.to_dict(), indent=1))
        copy2(weights, content / "weights.safetensors")
        copy2(dataset / "schema.json", content / "schema.json")
        copytree(dataset / "vocabulary", content / "vocabulary")
        mlflow.pyfunc.save_model(
            folder,
            loader_module="components.serve",
            data_path=str(content),
            code_paths=[str(packages / "trainer"), str(packages / "components")],
            signature=signature(schema.task),
            metadata={"inputs": inputs},
            input_example=example(dataset, inputs),
            pip_requirements=requirements(),
        )


def signature(task: Task) -> "ModelSignature":
    """What predictions are, and nothing on raw rows: their columns stand in the model's metadata.

    MLflow reads CSV by guessing and refuses whatever is not of a declared type: whole numbers where the signature says
    text or decimals, and ids of users and items are such columns. A signature that allows any type refuses nothing, yet
    MLflow then walks every value in Python, which took twice the forward pass, and its server takes no CSV any more.
    `raw_columns` settles what values mean.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    if task == "next_item":
        lists = {ITEMS: DataType.string, PROBABILITIES: DataType.double}
        return ModelSignature(outputs=Schema([ColSpec(Array(kind), name) for name, kind in lists.items()]))
    return ModelSignature(outputs=Schema([ColSpec(DataType.double, OUTPUT)]))


def example(dataset: Path, inputs: dict[str, InputType]) -> pd.DataFrame:
    """The first raw test rows."""
    rows = pl.read_parquet(dataset / "examples.parquet", n_rows=EXAMPLE_ROWS)
    return raw_columns(rows.to_pandas(), inputs).to_pandas()


def requirements() -> list[str]:
    """Exact pins of what loading and scoring import, as installed here (without a build's local suffix)."""
    installed = {distribution.name: distribution.version for distribution in distributions()}
    return [f"{name}=={installed[name].partition('+')[0]}" for name in REQUIREMENTS if name in installed]
