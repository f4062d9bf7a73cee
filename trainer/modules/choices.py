"""Parts of a supernet that hold several alternatives, of which one at a time is taken (AMEIR, Zhao 2021).

Each gives what the plain part of the taken alternative gives, with weights that alternatives share as far as they can.
What is not taken is not computed, and where it has weights of its own these have no gradient.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.modules.behavior import Block
from trainer.modules.dropout import Dropout
from trainer.modules.interactions import ACTIVATIONS, Shortcut
from trainer.modules.products import CoordinateNorm, Hadamard
from trainer.modules.values import Steps


class Alternatives(nn.Module, ABC):
    """A part whose weights have, as far as one alternative alone needs them, the names and values of `plain`."""

    @abstractmethod
    def plain(self) -> nn.Module:
        """The part as it is built for what is taken now, with the same weights."""


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of what is taken now in all parts of a model, as `plain` names them."""
    weights: dict[str, Tensor] = {}
    for name, part in model.named_modules():
        if isinstance(part, Alternatives):
            weights |= {f"{name}.{inner}": value.detach() for inner, value in part.plain().state_dict().items()}
    return weights


class OpenBlock(Alternatives):
    """A residual block over a sequence: one module for each norm and layer, whose weights all activations share."""

    def __init__(self, blocks: Mapping[tuple[int, int], Block | None]) -> None:
        """`blocks` by (norm, layer); None where the block passes its input on."""
        super().__init__()
        self.blocks = nn.ModuleDict({f"{norm}-{layer}": block for (norm, layer), block in blocks.items() if block})
        self.taken: Block | None = None

    def take(self, norm: int, layer: int, activation: str) -> None:
        key = f"{norm}-{layer}"
        found = dict(self.blocks.items()).get(key)
        assert found is None or isinstance(found, Block)
        if found is not None:
            found.activation = ACTIVATIONS[activation]()
        # Past nn.Module, which would list the taken block's weights twice.
        object.__setattr__(self, "taken", found)

    def forward(self, steps: Steps) -> Steps:
        passed: Steps = steps if self.taken is None else self.taken(steps)
        return passed

    def plain(self) -> nn.Module:
        return nn.Identity() if self.taken is None else self.taken


class OpenPooling(Alternatives):
    """How a sequence becomes one vector."""

    def __init__(self, kinds: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.kinds = nn.ModuleDict(kinds)
        self.kind = next(iter(kinds))

    def take(self, kind: str) -> None:
        self.kind = kind

    def forward(self, steps: Steps, target_BD: Tensor | None = None) -> Tensor:
        pooled_BD: Tensor = self.plain()(*([steps] if self.kind != "target" else [steps, target_BD]))
        return pooled_BD

    def plain(self) -> nn.Module:
        return self.kinds[self.kind]


class OpenProducts(Hadamard):
    """Those of many elementwise products that are taken: (B, M, d) -> (B, taken, d).

    The fields' coordinates are normalised first, so that products of any order are about as large.
    """

    def __init__(self, fields: int, width: int, sets: Sequence[tuple[int, ...]]) -> None:
        super().__init__(fields, sets)
        self.norm = CoordinateNorm(fields, width)
        self.taken: Sequence[int] = ()

    def forward(self, x_BMD: Tensor) -> Tensor:
        return self.of(self.norm(x_BMD), self.members[:, list(self.taken)])


class OpenInputs(nn.Linear):
    """A linear map whose last inputs are vectors of which only some are there: each has columns of its own."""

    def __init__(self, linear: nn.Linear, names: Sequence[str], width: int) -> None:
        """`names` of the vectors, which are the last inputs of `linear` and `width` wide."""
        before = linear.in_features - len(names) * width
        super().__init__(before, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias = nn.Parameter(linear.weight.detach()[:, :before].clone()), linear.bias
        parts = torch.split(linear.weight.detach()[:, before:], width, dim=1)
        self.names = [name.replace(".", "%2E") for name in names]
        self.columns = nn.ParameterDict({name: part.clone() for name, part in zip(self.names, parts, strict=True)})
        self.taken: Sequence[int] = range(len(names))

    def forward(self, x_BN: Tensor) -> Tensor:
        return functional.linear(x_BN, self.joined(), self.bias)

    def joined(self) -> Tensor:
        """The columns that are there."""
        return torch.cat([self.weight, *(self.columns[self.names[place]] for place in self.taken)], dim=1)


class OpenInputsMLP(Alternatives):
    """Layers with a shortcut, of whose last inputs some are there (`OpenInputs`)."""

    def __init__(self, full: Shortcut, names: Sequence[str], width: int) -> None:
        super().__init__()
        first, *others = full.layers.children()
        assert isinstance(first, nn.Linear)
        self.layers = nn.Sequential(OpenInputs(first, names, width), *others)
        self.linear = OpenInputs(full.linear, names, width)

    def take(self, taken: Sequence[int]) -> None:
        for linear in self._opened():
            linear.taken = taken

    def forward(self, x_BN: Tensor) -> Tensor:
        output_BN: Tensor = self.layers(x_BN) + self.linear(x_BN)
        return output_BN

    def plain(self) -> nn.Module:
        first, linear = (_linear(one.joined(), one.bias) for one in self._opened())
        return _shortcut(nn.Sequential(first, *list(self.layers)[1:]), linear)

    def _opened(self) -> list[OpenInputs]:
        return [one for one in (self.layers[0], self.linear) if isinstance(one, OpenInputs)]


class ElasticMLP(Alternatives):
    """Layers with a shortcut that are as wide as is taken: (B, n) -> (B, out), zeros after the last width taken.

    A width h has the first h rows of a layer's weights, and the first h columns of the next one's (Yu 2019, slimmable
    networks); all activations share them. Rows beyond h have a gradient of zero, yet Adam's momentum may move them.
    """

    def __init__(self, full: Shortcut) -> None:
        super().__init__()
        self.layers, self.linear = full.layers, full.linear
        self.units = [linear.out_features for linear in self._linears()]
        self.activations: list[nn.Module] = [nn.Identity() for _ in self.units]

    def take(self, units: Sequence[int], activations: Sequence[str]) -> None:
        self.units, self.activations = list(units), [ACTIVATIONS[kind]() for kind in activations]

    def forward(self, x_BN: Tensor) -> Tensor:
        dropouts = [layer for layer in self.layers.children() if isinstance(layer, Dropout)]
        h_BN = x_BN
        for number, (linear, activation) in enumerate(zip(self._linears(), self.activations, strict=True)):
            h_BN = activation(functional.linear(h_BN, *self._leading(number, linear)))
            h_BN = dropouts[number](h_BN) if dropouts else h_BN
        output_BN = h_BN + functional.linear(x_BN, self.linear.weight[: self.units[-1]])
        return functional.pad(output_BN, (0, self.linear.out_features - self.units[-1]))

    def plain(self) -> nn.Module:
        linears = [_linear(*self._leading(number, linear)) for number, linear in enumerate(self._linears())]
        parts, activations = iter(linears), iter(self.activations)
        layers = [
            next(parts) if isinstance(layer, nn.Linear) else layer if isinstance(layer, Dropout) else next(activations)
            for layer in self.layers.children()
        ]
        return _shortcut(nn.Sequential(*layers), _linear(self.linear.weight[: self.units[-1]], None))

    def _linears(self) -> list[nn.Linear]:
        return [layer for layer in self.layers.children() if isinstance(layer, nn.Linear)]

    def _leading(self, number: int, linear: nn.Linear) -> tuple[Tensor, Tensor]:
        """The taken part of a layer's weight and bias."""
        rows, columns = self.units[number], self.units[number - 1] if number else linear.in_features
        return linear.weight[:rows, :columns], linear.bias[:rows]


class OpenSE(Alternatives):
    """Squeeze and excitation, or none: (B, M, d) -> (B, M, d)."""

    def __init__(self, excitation: nn.Module) -> None:
        super().__init__()
        self.excitation, self.on = excitation, True

    def forward(self, x_BMD: Tensor) -> Tensor:
        excited_BMD: Tensor = self.plain()(x_BMD)
        return excited_BMD

    def plain(self) -> nn.Module:
        return self.excitation if self.on else nn.Identity()


def _linear(weight_OI: Tensor, bias_O: Tensor | None) -> nn.Linear:
    """A linear map with these weights."""
    linear = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=bias_O is not None, device="meta")
    linear.weight = nn.Parameter(weight_OI.detach())
    linear.bias = None if bias_O is None else nn.Parameter(bias_O.detach())  # type: ignore[assignment]
    return linear


def _shortcut(layers: nn.Module, linear: nn.Linear) -> Shortcut:
    found = Shortcut(layers, 1, 1)
    found.linear = linear
    return found
