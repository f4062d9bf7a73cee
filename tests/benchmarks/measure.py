"""What benchmarks share: processes that take turns on the cores, the clock of a model's steps, and the last line.

The peers' own Python imports this file as well, so it needs nothing but the standard library.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

_ANSWER = "ANSWER "


def quiet(threads: int) -> dict[str, str]:
    """The environment of a measured process: so many threads, which sleep while they wait.

    Spinning OpenMP threads on busy cores are many times slower, for everybody's library.
    """
    counts = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    return os.environ | {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"} | counts


class Turns:
    """A worker process that computes only while it is asked something, so that several can be measured in turns."""

    def __init__(self, command: Sequence[str], threads: int) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=quiet(threads)
        )

    def ask(self, **question: Any) -> dict[str, Any]:
        """Send a question and wait for the answer. Raises RuntimeError if the worker ends without one."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith(_ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(_ANSWER))
                return answer
        raise RuntimeError(f"a worker ended with exit code {self._process.wait()}; what it said stands above")

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()


def questions() -> Iterator[dict[str, Any]]:
    """In a worker: what it is asked, until nobody asks any more."""
    for line in sys.stdin:
        yield json.loads(line)


def answer(data: Mapping[str, Any]) -> None:
    print(_ANSWER + json.dumps(data), flush=True)


class StepClock:
    """When each training step of a model began; the model is any `torch.nn.Module`."""

    def __init__(self, model: Any) -> None:
        self._starts: list[float] = []
        model.register_forward_pre_hook(self._tick)

    def take(self) -> list[float]:
        """Seconds of the steps since the last call, the last step left out (its end is not seen)."""
        seconds = [later - earlier for earlier, later in zip(self._starts, self._starts[1:], strict=False)]
        self._starts.clear()
        return seconds

    def _tick(self, model: Any, inputs: Any) -> None:
        if model.training:
            self._starts.append(time.perf_counter())


def spread(values: Iterable[float]) -> dict[str, float]:
    values = list(values)
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def show(figures: Mapping[str, float], unit: str = "") -> str:
    return f"{figures['median']:>10,.0f}{unit} ({figures['min']:,.0f} to {figures['max']:,.0f})"


def result(data: Mapping[str, Any]) -> None:
    """The last line of a benchmark, for machines."""
    print("RESULT " + json.dumps(data), flush=True)
