"""The search methods: one literal table. A method is imported when it is asked for; most of them bring all of torch."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.engines.staged import Staged
    from trainer.engines.supernet import Found, Supernet
    from trainer.methods.base import Opening
    from trainer.schema import DatasetSchema

Data = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """What a method is to the rest of Dalil; `settings` are those of its own section in a pipeline file.

    Every method has a space of architectures. For a search on a supernet these are backbones: `plan` is then the space
    of settings of one search, `supernet` opens a backbone with one of them (or several supernets, one after the other),
    and `search` is that of the engine.
    """

    space: "Callable[[DatasetSchema, Any], Data]"
    plan: Callable[[Any], Data] | None = None
    supernet: "Callable[[Opening], Supernet | Staged] | None" = None
    search: "Callable[..., Found] | None" = None
    in_order: bool = False
    """Whether a search takes the training rows in the order of their times."""


def _autorec() -> Method:
    from trainer.methods import autorec

    return Method(autorec.space)


def _autofis() -> Method:
    from trainer.engines import gradient
    from trainer.methods import autofis

    return Method(autofis.space, autofis.plan, autofis.AutoFIS, gradient.search)


def _autodim() -> Method:
    from trainer.engines import gradient
    from trainer.methods import autodim

    return Method(autodim.space, autodim.plan, autodim.AutoDim, gradient.search)


def _autodis() -> Method:
    from trainer.engines import gradient
    from trainer.methods import autodis

    return Method(autodis.space, autodis.plan, autodis.AutoDis, gradient.search)


def _autogroup() -> Method:
    from trainer.engines import gradient
    from trainer.methods import autogroup

    return Method(autogroup.space, autogroup.plan, autogroup.AutoGroup, gradient.search)


def _nis() -> Method:
    from trainer.engines import sampled
    from trainer.methods import nis

    return Method(nis.space, nis.plan, nis.NIS, sampled.search)


def _esapn() -> Method:
    from trainer.engines import streamed
    from trainer.methods import esapn

    return Method(esapn.space, esapn.plan, esapn.ESAPN, streamed.search, in_order=True)


def _ameir() -> Method:
    from trainer.engines import staged
    from trainer.methods import ameir

    return Method(ameir.space, ameir.plan, ameir.AMEIR, staged.search)


def _ihas() -> Method:
    from trainer.engines import gradient
    from trainer.methods import ihas

    return Method(ihas.space, ihas.plan, ihas.IHAS, gradient.search)


def _autoctr() -> Method:
    from trainer.methods import autoctr

    return Method(autoctr.space)


def _field_dims() -> Method:
    from trainer.methods import field_dims

    return Method(field_dims.space)


def _mde() -> Method:
    from trainer.methods import mde

    return Method(mde.space)


def _dpq() -> Method:
    from trainer.engines import gradient
    from trainer.methods import dpq

    return Method(dpq.space, dpq.plan, dpq.DPQ, gradient.search)


def _autoemb() -> Method:
    from trainer.engines import gradient
    from trainer.methods import autoemb

    return Method(autoemb.space, autoemb.plan, autoemb.AutoEmb, gradient.search)


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
    nis=_nis,
    esapn=_esapn,
    ameir=_ameir,
    ihas=_ihas,
    autoctr=_autoctr,
    field_dims=_field_dims,
    mde=_mde,
    dpq=_dpq,
    mgqe=_dpq,
    autoemb=_autoemb,
    random=_autorec,
)
