"""The search methods: one literal table."""

from collections.abc import Mapping
from types import ModuleType

from trainer.methods import autorec

METHODS: Mapping[str, ModuleType] = {"autorec": autorec}
"""Name in a pipeline file → module with `space(schema, settings) -> template` (see `trainer.space`)."""
