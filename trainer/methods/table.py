"""The search methods: one literal table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.engines.gradient import Supernet
from trainer.methods import autodim, autodis, autofis, autogroup, autorec, field_dims, mde
from trainer.methods.base import Opening
from trainer.schema import DatasetSchema

Data = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """What a method is to the rest of Dalil; `settings` are those of its own section in a pipeline file.

    Every method has a space of architectures. For a search by gradient these are backbones: `plan` is then the space of
    settings of one search, and `supernet` opens a backbone with one of them.
    """

    space: Callable[[DatasetSchema, Any], Data]
    plan: Callable[[Any], Data] | None = None
    supernet: Callable[[Opening], Supernet] | None = None


METHODS: Mapping[str, Method] = {
    "autorec": Method(autorec.space),
    "autofis": Method(autofis.space, autofis.plan, autofis.AutoFIS),
    "autodim": Method(autodim.space, autodim.plan, autodim.AutoDim),
    "autodis": Method(autodis.space, autodis.plan, autodis.AutoDis),
    "autogroup": Method(autogroup.space, autogroup.plan, autogroup.AutoGroup),
    "field_dims": Method(field_dims.space),
    "mde": Method(mde.space),
}
"""By the name in a pipeline file."""
