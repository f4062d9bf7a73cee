"""How tests are spread over processes: those of a file stay together, and so do those that need the cluster."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        group = "cluster" if item.get_closest_marker("cluster") else item.location[0]
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("cluster") is None)  # they take longest, so they begin
