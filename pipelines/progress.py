"""What a run shows while it works: one bar per step in a terminal, plain lines everywhere else."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

PLAIN_SECONDS = 10.0
"""Least pause between two plain lines of one step."""
PLAIN_WIDTH = 160


class Display:
    """Shows the events of `components.events`. Use as a context: leaving it removes the bar."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or _console()
        self._live = self.console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description:8}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]} {task.fields[facts]}"),
            TimeElapsedColumn(),
            console=self.console,
            transient=True,
            disable=not self._live,
        )
        self._step = ""
        self._task: TaskID | None = None
        self._last_plain = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(escape(text))

    def begin(self, step: str, reason: str = "") -> None:
        """A step starts; `reason` says why or from where, if that needs saying."""
        self._step = step
        self._task = self._bar.add_task(step, total=None, unit="", facts="")
        self._last_plain = 0.0
        if reason or not self._live:
            self.say(f"{step}: {reason or 'started'}")

    def end(self, text: str) -> None:
        """The step is over; `text` says how."""
        if self._task is not None:
            self._bar.remove_task(self._task)
            self._task = None
        self.say(f"{self._step}: {text}")

    def event(self, event: Mapping[str, Any]) -> None:
        """One event of the running step."""
        kind = event.get("event")
        if kind == "progress":
            self._progress(event)
        elif kind in ("best", "note"):
            self.say(str(event.get("text", "")))

    def _progress(self, event: Mapping[str, Any]) -> None:
        done, total = event.get("done"), event.get("total")
        unit, facts = str(event.get("unit", "")), _facts(event)
        if self._live:
            if self._task is not None:
                self._bar.update(self._task, completed=done, total=total, unit=unit, facts=escape(facts))
            return
        now = time.monotonic()
        if now - self._last_plain >= PLAIN_SECONDS or (total is not None and done == total):
            self._last_plain = now
            count = f"{done:,}" if total is None else f"{done:,} of {total:,}"
            self.say(f"{self._step}: {count} {unit} {facts}".rstrip())


def _facts(event: Mapping[str, Any]) -> str:
    """What stands behind the count: the text, the best value so far, the time left."""
    facts = [str(event["text"])] if event.get("text") else []
    if event.get("best") is not None:
        facts.append(f"best {event['best']:.5g}")
    if event.get("seconds_left") is not None:
        facts.append(f"{duration(event['seconds_left'])} left")
    return " · ".join(facts)


def _console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:  # a file or a pipe has no width that a table must fit
        console.width = PLAIN_WIDTH
    return console


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
