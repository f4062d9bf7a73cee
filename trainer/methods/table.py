"""The search methods: one literal table. A method is imported when it is asked for; most of them bring all of torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.engines.gradient import Supernet
    from trainer.methods.base import Opening
    from trainer.schema import DatasetSchema

Data = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """What a method is to the rest of Dalil; `settings` are those of its own section in a pipeline file.

    Every method has a space of architectures. For a search by gradient these are backbones: `plan` is then the space of
    settings of one search, and `supernet` opens a backbone with one of them.
    """

    space: "Callable[[DatasetSchema, Any], Data]"
    plan: Callable[[Any], Data] | None = None
    supernet: "Callable[[Opening], Supernet] | None" = None


def _autorec() -> Method:
    from trainer.methods import autorec

    return Method(autorec.space)


def _autofis() -> Method:
    from trainer.methods import autofis

    return Method(autofis.space, autofis.plan, autofis.AutoFIS)


def _autodim() -> Method:
    from trainer.methods import autodim

    return Method(autodim.space, autodim.plan, autodim.AutoDim)


def _autodis() -> Method:
    from trainer.methods import autodis

    return Method(autodis.space, autodis.plan, autodis.AutoDis)


def _autogroup() -> Method:
    from trainer.methods import autogroup

    return Method(autogroup.space, autogroup.plan, autogroup.AutoGroup)


def _field_dims() -> Method:
    from trainer.methods import field_dims

    return Method(field_dims.space)


def _mde() -> Method:
    from trainer.methods import mde

    return Method(mde.space)


class _Table(Mapping[str, Method]):
    """Methods by the names that they have in a pipeline file."""

    def __init__(self, **loaders: Callable[[], Method]) -> None:
        self._loaders = loaders

    def __getitem__(self, name: str) -> Method:
        return self._loaders[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaders)

    def __len__(self) -> int:
        return len(self._loaders)


METHODS = _Table(
    autorec=_autorec,
    autofis=_autofis,
    autodim=_autodim,
    autodis=_autodis,
    autogroup=_autogroup,
    field_dims=_field_dims,
    mde=_mde,
)
