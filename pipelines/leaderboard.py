"""What the terminal shows at the end of a run: the leaderboard, where things lie, and the next commands."""

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from components.settings import METRIC_NAMES
from pipelines.progress import duration
from pipelines.spec import SearchPipeline

Report = dict[str, Any]

_METRICS = ("auc", "logloss", "gauc", "mse", "rmse", "ndcg_at_10", "hr_at_10", "sampled_ndcg_at_10")
"""Shown, as far as a task has them; the report has all."""
_EXTRAS = ("parameters", "beats", "train", "search", "FLOPs")
"""Columns beside the metrics, in the order in which a narrow console keeps them."""


def leaderboard(report: Report, console: Console) -> Table:
    """The report's models, best first; figures are mean ± standard deviation over seeds, on the test split.

    A narrow console gets fewer columns; the report has them all.
    """
    boundless = console.options.update(width=10_000)
    for extras in range(len(_EXTRAS), -1, -1):
        table = _table(report, _EXTRAS[:extras])
        if Measurement.get(console, boundless, table).maximum <= console.width:
            break
    return table


def _table(report: Report, extras: tuple[str, ...]) -> Table:
    entries = report["leaderboard"]
    metrics = [name for name in _METRICS if any(name in entry["metrics"]["test"] for entry in entries)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("model", no_wrap=True)
    table.add_column("origin")
    for heading in (*(METRIC_NAMES[name] for name in metrics), *extras):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        champion = entry["name"] == _champion_name(report)
        facts = _facts(entry)
        table.add_row(
            entry["name"] + (" ★" if champion else "") + (" ◇" if entry["pareto"] else ""),
            entry["origin"],
            *(_figure(entry["metrics"]["test"].get(name)) for name in metrics),
            *(facts[name] for name in extras),
            style="bold" if champion else "",
        )
    return table


def next_commands(pipeline: SearchPipeline, file: Path, folder: Path, tracking_uri: str) -> list[tuple[str, str]]:
    """What to do now: (purpose, command) pairs that can be copied into a shell."""
    uri = shlex.quote(tracking_uri)
    mlflow = shlex.quote(_mlflow())
    ui = f"--backend-store-uri {uri}" if tracking_uri.startswith("sqlite:") else ""
    commands = [("look", f"{mlflow} ui {ui}")] if ui else [("look", f"open {uri} in a browser")]
    model = folder / "evaluate" / "model"
    example = model / "serving_input_example.json"
    address = shlex.quote(str(model))
    prefix = ""
    if pipeline.spec.evaluate.register_as:
        address = shlex.quote(f"models:/{pipeline.spec.evaluate.register_as}@champion")
        prefix = f"MLFLOW_TRACKING_URI={uri} "
    predict = f"{prefix}{mlflow} models predict -m {address} -i {shlex.quote(str(example))} -t json --env-manager local"
    return [*commands, ("predict", predict), ("cluster", f"kubectl apply -f {shlex.quote(str(file))}")]


def _mlflow() -> str:
    """The command as this shell finds it: by its name, or beside the Python that runs us."""
    if shutil.which("mlflow"):
        return "mlflow"
    beside = Path(sys.executable).with_name("mlflow")
    return str(beside.relative_to(Path.cwd())) if beside.is_relative_to(Path.cwd()) else str(beside)


def show(console: Console, report: Report, commands: list[tuple[str, str]], folder: Path) -> None:
    """Print the end of a run."""
    console.print()
    console.print(leaderboard(report, console))
    console.print("★ champion: the best on validation rows. ◇ Pareto: none is better with as few parameters.")
    console.print("Figures: test rows, mean ± deviation over seeds; beats: models with greater losses by paired tests.")
    console.print()
    rows = [("report", str(folder / "report.html")), *commands]
    for purpose, command in rows:
        console.print(f"{purpose:8}", end="", style="bold")
        console.print(command, markup=False, soft_wrap=True)


def _facts(entry: dict[str, Any]) -> dict[str, str]:
    return {
        "parameters": _count(sum(entry["parameters"].values())),
        "beats": str(len(entry["beats"])),
        "train": duration(entry["train_seconds"]),
        "search": duration(entry["search_seconds"]),
        "FLOPs": _count(entry["flops"]),
    }


def _champion_name(report: Report) -> str | None:
    champion = report.get("champion")
    return champion.get("name") if isinstance(champion, dict) else champion


def _figure(values: dict[str, Any] | None) -> str:
    if not values or values.get("mean") is None:
        return "–"
    return f"{values['mean']:.4f} ± {values['std'] or 0:.4f}"


def _count(number: float) -> str:
    """1234567 as 1.23M."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{suffix}"
    return f"{number:.0f}"
