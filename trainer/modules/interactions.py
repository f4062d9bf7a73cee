"""Interactions between fields. Each takes aligned fields x_BMD unless it says otherwise."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.modules.dropout import Dropout


class Inner(nn.Module):
    """Σ_d Π_m x[m, d]: (B, M, d) -> (B, 1)."""

    def forward(self, x_BMD: Tensor) -> Tensor:
        return product(x_BMD).sum(dim=1, keepdim=True)


class Elementwise(nn.Module):
    """One operation over the fields: (B, M, d) -> (B, d)."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.reduce = _REDUCTIONS[kind]

    def forward(self, x_BMD: Tensor) -> Tensor:
        return self.reduce(x_BMD)


def product(x_BMD: Tensor) -> Tensor:
    """Π_m x[m]: (B, d)."""
    # One product per field keeps the gradient exact where a factor is 0, and is faster than `prod` for few fields.
    result, *others = x_BMD.unbind(1)
    for x_BD in others:
        result = result * x_BD
    return result


_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x_BMD: x_BMD.sum(dim=1),
    "average": lambda x_BMD: x_BMD.mean(dim=1),
    "multiply": product,
    "max": lambda x_BMD: x_BMD.amax(dim=1),
    "min": lambda x_BMD: x_BMD.amin(dim=1),
}


class FM(nn.Module):
    """Σ_{a<b} <x_a, x_b> by power sums (Rendle 2010, lemma 3.1): (B, M, d) -> (B, 1)."""

    def forward(self, x_BMD: Tensor) -> Tensor:
        output_B1: Tensor = _PowerSums.apply(x_BMD)  # type: ignore[no-untyped-call]
        return output_B1


class _PowerSums(torch.autograd.Function):
    """FM with its gradient written out, which reads the fields once: the gradient of x_a is Σ_b x_b - x_a."""

    @staticmethod
    def forward(ctx: Any, x_BMD: Tensor) -> Tensor:
        sum_BD = x_BMD.sum(dim=1)
        ctx.save_for_backward(x_BMD, sum_BD)
        flat_BN = x_BMD.flatten(1)
        squares_B = torch.linalg.vecdot(flat_BN, flat_BN)
        output_B1: Tensor = 0.5 * (sum_BD.square().sum(dim=1) - squares_B)[:, None]
        return output_B1

    @staticmethod
    def backward(ctx: Any, gradient_B1: Tensor) -> Tensor:
        x_BMD, sum_BD = ctx.saved_tensors
        gradient_BMD: Tensor = (sum_BD[:, None] - x_BMD).mul_(gradient_B1[..., None])
        return gradient_BMD


class WeightedPairs(nn.Module):
    """Σ over kept pairs of r_ab (x_a * x_b): (B, M, d) -> (B, d); r learned (FwFM) or 1.

    As Σ_a x_a * Σ_b R_ab x_b, so that no tensor of all pairs is made.
    """

    def __init__(self, fields: int, pairs: Sequence[tuple[int, ...]], learned: bool) -> None:
        super().__init__()
        self.fields = fields
        weights = torch.ones(len(pairs))
        # FwFM starts as FM: every pair counts the same until the data say otherwise.
        if learned:
            self.weight: Tensor = nn.Parameter(weights)
        else:
            self.register_buffer("weight", weights, persistent=False)
        self.register_buffer("left", torch.tensor([a for a, _ in pairs]), persistent=False)
        self.register_buffer("right", torch.tensor([b for _, b in pairs]), persistent=False)
        self.left: Tensor
        self.right: Tensor

    def forward(self, x_BMD: Tensor) -> Tensor:
        r_MM = self.weight.new_zeros(self.fields, self.fields).index_put((self.right, self.left), self.weight)
        partners_BDM = x_BMD.transpose(1, 2) @ r_MM
        return (x_BMD.transpose(1, 2) * partners_BDM).sum(dim=2)


class AttentionPairs(nn.Module):
    """Σ over kept pairs of a_ab (x_a * x_b), a = softmax over pairs of h·relu(W(x_a * x_b) + c) (AFM): (B, d)."""

    def __init__(self, width: int, hidden: int, pairs: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.hidden = dense(width, hidden)
        self.score = dense(hidden, 1, bias=False)
        self.register_buffer("left", torch.tensor([a for a, _ in pairs]), persistent=False)
        self.register_buffer("right", torch.tensor([b for _, b in pairs]), persistent=False)
        self.left: Tensor
        self.right: Tensor

    def forward(self, x_BMD: Tensor) -> Tensor:
        product_BPD = x_BMD[:, self.left] * x_BMD[:, self.right]
        weight_BP1: Tensor = self.score(self.hidden(product_BPD).relu()).softmax(dim=1)
        return (weight_BP1 * product_BPD).sum(dim=1)


class Pairs(nn.Module):
    """Weighted products of pairs, summed to a vector, to a number, or through a linear map to a number."""

    def __init__(self, weighted: nn.Module, width: int, out: str) -> None:
        super().__init__()
        self.weighted = weighted
        self.out = out
        self.projection = dense(width, 1, bias=False) if out == "linear" else None

    def forward(self, x_BMD: Tensor) -> Tensor:
        vector_BD: Tensor = self.weighted(x_BMD)
        if self.projection is not None:
            projected: Tensor = self.projection(vector_BD)
            return projected
        return vector_BD if self.out == "vector" else vector_BD.sum(dim=1, keepdim=True)


class FFM(nn.Module):
    """Σ_{a<b} <x_a,b, x_b,a> on field-aware vectors (B, M, M - 1, d) -> (B, 1); partners in order without oneself."""

    def __init__(self, fields: int) -> None:
        super().__init__()
        pairs = [(a, b) for a in range(fields) for b in range(a + 1, fields)]
        # Partner b > a stands at b - 1 in a's list, and a at its own place in b's.
        left = torch.tensor([a * (fields - 1) + b - 1 for a, b in pairs])
        right = torch.tensor([b * (fields - 1) + a for a, b in pairs])
        self.register_buffer("left", left, persistent=False)
        self.register_buffer("right", right, persistent=False)
        self.left: Tensor
        self.right: Tensor

    def forward(self, x_BMPD: Tensor) -> Tensor:
        vectors_BND = x_BMPD.flatten(1, 2)
        return (vectors_BND[:, self.left] * vectors_BND[:, self.right]).sum(dim=(1, 2))[:, None]


class Dot(nn.Module):
    """Inner products of all pairs of fields, row by row of the upper triangle: (B, M, d) -> (B, pairs)."""

    def __init__(self, fields: int, full: bool) -> None:
        super().__init__()
        row, column = torch.triu_indices(fields, fields, offset=0 if full else 1)
        self.register_buffer("places", row * fields + column, persistent=False)
        self.places: Tensor

    def forward(self, x_BMD: Tensor) -> Tensor:
        return torch.bmm(x_BMD, x_BMD.transpose(1, 2)).flatten(1)[:, self.places]


class Cross(nn.Module):
    """x_{l+1} = x_0 * f_l(x_l) + x_l on (B, n).

    `matrix`: f(x) = W x + b, (n, n) (Wang 2021, eq. 1). Else f(x) = w·x and b is added outside (Wang 2017, eq. 3).
    """

    def __init__(self, width: int, layers: int, matrix: bool) -> None:
        super().__init__()
        self.matrix = matrix
        self.maps = nn.ModuleList(dense(width, width if matrix else 1, bias=matrix) for _ in range(layers))
        self.biases = nn.ParameterList([] if matrix else [torch.zeros(width) for _ in range(layers)])

    def forward(self, x0_BN: Tensor) -> Tensor:
        x_BN = x0_BN
        for layer, mapped in enumerate(self.maps):
            x_BN = torch.addcmul(x_BN, x0_BN, mapped(x_BN))
            if not self.matrix:
                x_BN = x_BN + self.biases[layer]
        return x_BN


class FieldAttention(nn.Module):
    """One layer of self-attention between fields: (B, M, d) -> (B, M, heads * dim), ReLU last (AutoInt, eq. 5-8).

    Scores are scaled by 1/√dim. `residual` adds a bias-free linear map of the input before the ReLU.
    """

    def __init__(self, width: int, dim: int, heads: int, residual: bool) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        out = heads * dim
        self.query, self.key, self.value = (dense(width, out, bias=False) for _ in range(3))
        self.residual = dense(width, out, bias=False) if residual else None

    def forward(self, x_BMD: Tensor) -> Tensor:
        value_BHMA = self._heads(self.value(x_BMD))
        mixed_BHMA = self.attention(x_BMD) @ value_BHMA
        out_BMD = mixed_BHMA.transpose(1, 2).flatten(2)
        if self.residual is not None:
            out_BMD = out_BMD + self.residual(x_BMD)
        return out_BMD.relu()

    def attention(self, x_BMD: Tensor) -> Tensor:
        """How much each field (row) attends to each other (column): (B, heads, M, M), rows sum to 1."""
        query_BHMA, key_BHMA = self._heads(self.query(x_BMD)), self._heads(self.key(x_BMD))
        scores_BHMM = query_BHMA @ key_BHMA.transpose(2, 3) / math.sqrt(self.dim)
        return scores_BHMM.softmax(dim=3)

    def _heads(self, x_BMD: Tensor) -> Tensor:
        return x_BMD.view(*x_BMD.shape[:2], self.heads, self.dim).transpose(1, 2)


class SqueezeExcitation(nn.Module):
    """Each field times σ(W2 relu(W1 m + b1) + b2), m the fields' means: (B, M, d) -> (B, M, d) (Hu 2018, section 3)."""

    def __init__(self, fields: int, hidden: int) -> None:
        super().__init__()
        self.squeeze, self.excite = dense(fields, hidden), dense(hidden, fields)

    def forward(self, x_BMD: Tensor) -> Tensor:
        weight_BM: Tensor = self.excite(self.squeeze(x_BMD.mean(dim=2)).relu()).sigmoid()
        return weight_BM[..., None] * x_BMD


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation that takes the running statistics for a batch of one row or none, which has no variance."""

    def forward(self, x_BN: Tensor) -> Tensor:
        if self.training and x_BN.shape[0] < 2:
            return functional.batch_norm(
                x_BN, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(x_BN)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "identity": nn.Identity,
}


def mlp(width: int, units: Sequence[int], activation: str | Sequence[str], norm: bool, dropout: float) -> nn.Sequential:
    """Per layer: linear, batch normalisation, activation, dropout: (B, width) -> (B, units[-1])."""
    layers: list[nn.Module] = []
    activations = [activation] * len(units) if isinstance(activation, str) else activation
    for before, after, kind in zip([width, *units], units, activations, strict=False):
        layers.append(dense(before, after))
        layers += [BatchNorm(after)] if norm else []
        layers.append(ACTIVATIONS[kind]())
        layers += [Dropout(dropout)] if dropout else []
    return nn.Sequential(*layers)


class Shortcut(nn.Module):
    """What `layers` give plus a bias-free linear map of their input: (B, width) -> (B, out)."""

    def __init__(self, layers: nn.Module, width: int, out: int) -> None:
        super().__init__()
        self.layers = layers
        self.linear = dense(width, out, bias=False)

    def forward(self, x_BN: Tensor) -> Tensor:
        output_BN: Tensor = self.layers(x_BN) + self.linear(x_BN)
        return output_BN


def dense(width_in: int, width_out: int, bias: bool = True) -> nn.Linear:
    """A linear map that starts Xavier-normal with bias 0."""
    linear = nn.Linear(width_in, width_out, bias=bias)
    nn.init.xavier_normal_(linear.weight)
    if bias:
        nn.init.zeros_(linear.bias)
    return linear
