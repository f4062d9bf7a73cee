"""How tests are spread over processes: those of a file stay together, and so do all that need the cluster."""

import os
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.newcomer import home_after_quickstart

CLUSTER = "tests/cluster/"


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling:
    return _Scheduling(config, log)


class _Scheduling(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        return CLUSTER if nodeid.startswith(CLUSTER) else super()._split_scope(nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(CLUSTER))  # they take longest, so they begin


@pytest.fixture(scope="session")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home where the quickstart has been run (`tests.newcomer`): once, for all processes of the tests."""
    folder = tmp_path_factory.getbasetemp()
    return home_after_quickstart(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)
