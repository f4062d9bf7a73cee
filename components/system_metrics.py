# mypy: allow-untyped-calls
"""The machine's load while a step is alive, measured by MLflow's own monitors."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

SECONDS = 10.0


class SystemMetrics:
    """Samples become metrics `system/...` of the step's run.

    They go to a spool of their own beside the step's, so that an outage loses none of them.
    """

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with suppress(Exception):  # no GPU, or no library to ask for one
            self._monitors.append(GPUMonitor())
        self._due: dict[Path, float] = {}

    def sample(self, spool: Path, opening: dict[str, Any]) -> None:
        """Write a sample for the step of `spool` (which begins with `opening`), if one is due."""
        if time.monotonic() < self._due.get(spool, 0.0):
            return
        self._due[spool] = time.monotonic() + SECONDS
        own = spool.with_suffix(".system.jsonl")
        lines = own.read_text().splitlines() if own.exists() else [json.dumps(opening)]
        event = {"op": "metrics", "run": opening["run"], "metrics": self._measure(), "step": len(lines) - 1}
        new = [json.dumps({**event, "time": int(time.time() * 1000)})]
        with own.open("a") as file:
            file.write("\n".join(new if own.stat().st_size else lines + new) + "\n")

    def _measure(self) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            metrics |= {f"system/{name}": value for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return metrics
