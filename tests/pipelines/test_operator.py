"""Which pipelines the operator looks at without having been told of a change."""

from typing import Any

from pipelines.jobs import Surroundings
from pipelines.operator import Operator


def test_it_looks_again_at_what_has_not_ended_or_was_changed_since(monkeypatch: Any) -> None:
    states = {
        "new": {},
        "at-work": {"observedGeneration": 2, "phase": "Running"},
        "waiting": {"observedGeneration": 2, "phase": "Suspended"},
        "done": {"observedGeneration": 2, "phase": "Succeeded"},
        "failed": {"observedGeneration": 2, "phase": "Failed"},
        "failed-then-changed": {"observedGeneration": 1, "phase": "Failed"},
    }
    items = [{"metadata": {"name": name, "generation": 2}, "status": status} for name, status in states.items()]
    operator = Operator("dalil", Surroundings("dalil", [], None))
    monkeypatch.setattr(operator.objects, "list_namespaced_custom_object", lambda *_: {"items": items})
    assert operator.unfinished() == ["new", "at-work", "waiting", "failed-then-changed"]
