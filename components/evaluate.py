"""The evaluate step: the test split is read once, every model is compared on it, and the champion is shipped."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.tracking import Tracker

Emit = Callable[[dict[str, Any]], None]


def evaluate(
    pipeline: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    output: Path,
    emit: Emit,
    tracker: Tracker,
) -> dict[str, Any]:
    """Compare the models of the train step and write the report and the champion's MLflow model; returns the report.

    Args:
        pipeline: name of the pipeline.
        settings: all sections of the spec, every default filled in; `settings["evaluate"]` is an EvaluateSpec.
        inputs: output folders of the steps `ingest`, `search` and `train`.
        output: an existing folder; gets report.json, report.html, predictions.parquet and model/.
        emit: takes progress events.
        tracker: takes figures, artifacts and the registration.
    """
    raise NotImplementedError
