"""What a run shows: plain lines where there is no terminal, one bar where there is."""

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pipelines.leaderboard import leaderboard, next_commands
from pipelines.progress import Display, duration
from pipelines.spec import load


def shown(*events: dict[str, Any], terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=120, highlight=False, soft_wrap=True)
    with Display(console) as display:
        display.begin("search")
        for event in events:
            display.event(event)
        if terminal:
            time.sleep(0.3)  # the bar is drawn ten times a second
        display.end("done in 3 s")
    return stream.getvalue()


def progress(done: int, **facts: Any) -> dict[str, Any]:
    return {"event": "progress", "done": done, "total": 1000, "unit": "trials", **facts}


def test_plain_lines_are_few_and_end_with_the_last() -> None:
    lines = shown(*(progress(done) for done in range(1, 1001))).splitlines()

    assert lines[0] == "search: started"
    assert lines[1] == "search: 1 of 1,000 trials"
    assert lines[-2:] == ["search: 1,000 of 1,000 trials", "search: done in 3 s"]
    assert len(lines) == 4


def test_facts_stand_behind_the_count() -> None:
    text = shown(progress(3, best=0.512345678, seconds_left=200.0, text="deepfm"))

    assert "search: 3 of 1,000 trials deepfm · best 0.51235 · 3 min 20 s left" in text


def test_a_total_may_be_unknown() -> None:
    assert "search: 12,345 rows" in shown({"event": "progress", "done": 12345, "total": None, "unit": "rows"})


def test_texts_are_shown_as_they_are() -> None:
    text = shown({"event": "best", "text": "Trial [bold]7[/bold]\n  units [64]"}, {"event": "note", "text": "[x] y"})

    assert "Trial [bold]7[/bold]\n  units [64]\n" in text
    assert "[x] y\n" in text


def test_unknown_events_are_passed_over() -> None:
    assert shown({"event": "something new"}).splitlines() == ["search: started", "search: done in 3 s"]


def test_a_terminal_gets_a_bar() -> None:
    text = shown(progress(500, best=0.5), terminal=True)

    assert "500/1000" in text
    assert "best 0.5" in text
    assert "search: started" not in text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (3599, "59 min 59 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def entry(name: str, origin: str, **metrics: tuple[float, float | None]) -> dict[str, Any]:
    return {
        "name": name,
        "origin": origin,
        "metrics": {"test": {key: {"mean": mean, "std": std} for key, (mean, std) in metrics.items()}},
        "parameters": {"tables": 1_200_000, "lifts": 0, "dense": 34_000},
        "flops": 512,
        "beats": ["fm"],
        "pareto": name == "fm",
        "search_seconds": 100.0,
        "train_seconds": 10.0,
    }


def test_the_leaderboard_keeps_the_order_and_marks_the_champion() -> None:
    report = {
        "leaderboard": [
            entry("autorec-1", "found", auc=(0.81234, 0.0004), logloss=(0.5, 0.001)),
            entry("fm", "zoo", auc=(0.8, None), logloss=(0.6, 0.0)),
        ],
        "champion": {"name": "autorec-1"},
    }
    heading, first, second = drawn(report, 140)

    assert heading.split() == [
        "model",
        "origin",
        "AUC",
        "log",
        "loss",
        "parameters",
        "beats",
        "train",
        "search",
        "FLOPs",
    ]
    assert first.split()[:5] == ["autorec-1", "★", "found", "0.8123", "±"]
    assert "1.23M" in first
    assert second.split()[:3] == ["fm", "◇", "zoo"]
    assert "0.8000 ± 0.0000" in second
    assert "FLOPs" not in drawn(report, 80)[0]
    assert drawn(report, 60)[1].split() == ["autorec-1", "★", "found", "0.8123", "±", "0.0004", "0.5000", "±", "0.0010"]


def drawn(report: dict[str, Any], width: int) -> list[str]:
    stream = io.StringIO()
    console = Console(file=stream, width=width)
    console.print(leaderboard(report, console))
    return stream.getvalue().splitlines()


def test_next_commands_fit_the_tracking_uri(monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path(__file__).parents[2] / "pipelines" / "gallery" / "quickstart.yaml"
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    local = dict(next_commands(load(file), file, Path("runs/quickstart"), "sqlite:////home/me/my runs/mlflow.db"))
    remote = dict(next_commands(load(file), file, Path("runs/quickstart"), "http://mlflow:5000"))

    assert local["look"] == "mlflow ui --backend-store-uri 'sqlite:////home/me/my runs/mlflow.db'"
    assert "mlflow models predict -m models:/quickstart@champion" in local["predict"]
    assert remote["look"] == "open http://mlflow:5000 in a browser"
    assert remote["predict"].startswith("MLFLOW_TRACKING_URI=http://mlflow:5000 ")
