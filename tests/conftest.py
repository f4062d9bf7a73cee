"""How tests are spread over processes: those of a file stay together, and so do all that need the cluster."""

from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

CLUSTER = "tests/cluster/"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _Scheduling(config, log)


class _Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return CLUSTER if nodeid.startswith(CLUSTER) else super()._split_scope(nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(CLUSTER))  # they take longest, so they begin
