"""Products within sets of fields: every kept pair or triple by itself (AutoFIS), groups of fields (AutoGroup), and
elementwise products of any order (AMEIR)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.modules.interactions import BatchNorm

EPS = 1e-3
"""Of both normalisations. The products of fresh embeddings are far smaller, and so start near 0 instead of at full
size; AutoFIS' own code has the same value."""
GATE = 0.6
"""Where the weight of a normalised product starts (AutoFIS' code)."""


class Products(nn.Module):
    """r_s * norm(Σ_d Π_{m in s} x[m, d]) for each kept set s of two or three fields: (B, M, d) -> (B, sets) or (B, 1).

    `norm`: batch normalisation without learned scale and shift, so that r_s alone says how much a product matters (Liu
    2020, section 3.2).
    """

    def __init__(self, fields: int, sets: Sequence[tuple[int, ...]], *, learned: bool, norm: bool, each: bool) -> None:
        super().__init__()
        self.each = each
        self.norm = BatchNorm(len(sets), eps=EPS, affine=False) if norm else None
        self.weight = nn.Parameter(torch.full((len(sets),), GATE if norm else 1.0)) if learned else None
        # The last field of each set is multiplied in by one matrix product over all fields before it.
        heads = sorted({one[:-1] for one in sets})
        self.register_buffer("heads", torch.tensor(heads).T, persistent=False)
        places = torch.tensor([heads.index(one[:-1]) * fields + one[-1] for one in sets])
        self.register_buffer("places", places, persistent=False)
        self.heads: Tensor
        self.places: Tensor

    def forward(self, x_BMD: Tensor) -> Tensor:
        head_BHD = x_BMD[:, self.heads[0]]
        for field_H in self.heads[1:]:
            head_BHD = head_BHD * x_BMD[:, field_H]
        product_BS = torch.bmm(head_BHD, x_BMD.transpose(1, 2)).flatten(1)[:, self.places].to(x_BMD.dtype)
        if self.norm is not None:
            product_BS = self.norm(product_BS)
        if self.weight is not None:
            product_BS = product_BS * self.weight
        return product_BS if self.each else product_BS.sum(dim=1, keepdim=True)


class Groups(nn.Module):
    """`group_interactions` of fixed sets, after batch normalisation of the fields' coordinates if `norm`."""

    def __init__(self, fields: int, width: int, sets: Sequence[tuple[int, ...]], order: int, norm: bool) -> None:
        super().__init__()
        self.order, self.shape = order, (len(sets), fields)
        self.norm = CoordinateNorm(fields, width) if norm else None
        self.register_buffer("members", _membership(sets, fields), persistent=False)
        self.members: Tensor
        self.weight = nn.Parameter(nn.init.xavier_normal_(torch.empty(self.shape))[self.members])

    def forward(self, x_BMD: Tensor) -> Tensor:
        weight_GM = self.weight.new_zeros(self.shape).masked_scatter(self.members, self.weight)
        return group_interactions(x_BMD if self.norm is None else self.norm(x_BMD), weight_GM, self.order)


def group_interactions(x_BMD: Tensor, weight_GM: Tensor, order: int) -> Tensor:
    """Interactions of one order within groups, from power sums (Liu 2020, equation of I; p = 1 keeps the vectors).

    With a = weight * x: p = 1 gives Σ_m a[m], (B, G * d); else Σ_d ((Σ_m a[m, d])^p - Σ_m a[m, d]^p), (B, G). A field
    is out of a group where its weight is 0.
    """
    # Two powers of nearly the same size are subtracted: no place for bf16.
    with torch.autocast(x_BMD.device.type, enabled=False):
        x_BMD = x_BMD.to(weight_GM.dtype)
        if order == 1:
            return (weight_GM @ x_BMD).flatten(1)
        group_BDG = x_BMD.transpose(1, 2) @ weight_GM.T
        alone_BG = (x_BMD**order).sum(dim=2) @ (weight_GM**order).T
        return (group_BDG**order).sum(dim=1) - alone_BG


def _membership(sets: Sequence[tuple[int, ...]], fields: int) -> Tensor:
    """(G, M) bool: the fields of each set."""
    members_GM = torch.zeros(len(sets), fields, dtype=torch.bool)
    for group, one in enumerate(sets):
        members_GM[group, list(one)] = True
    return members_GM


class CoordinateNorm(BatchNorm):
    """Batch normalisation of each coordinate of each field, without learned scale and shift: (B, M, d) -> same."""

    def __init__(self, fields: int, width: int) -> None:
        super().__init__(fields * width, eps=EPS, affine=False)

    def forward(self, x_BMD: Tensor) -> Tensor:
        return super().forward(x_BMD.flatten(1)).view_as(x_BMD)


class Hadamard(nn.Module):
    """Π_{m in s} x[m] for each set s of fields: (B, M, d) -> (B, sets, d)."""

    def __init__(self, fields: int, sets: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        # A set of lower order is filled up with a field of ones, which stands behind the others.
        order = max(map(len, sets))
        filled = [one + (fields,) * (order - len(one)) for one in sets]
        self.filled = len({len(one) for one in sets}) > 1
        self.register_buffer("members", torch.tensor(filled).T, persistent=False)
        self.members: Tensor

    def forward(self, x_BMD: Tensor) -> Tensor:
        return self.of(x_BMD, self.members)

    def of(self, x_BMD: Tensor, members_PS: Tensor) -> Tensor:
        """The products of the sets whose fields stand in these columns, some of `members`."""
        if self.filled:
            x_BMD = functional.pad(x_BMD, (0, 0, 0, 1), value=1.0)
        product_BSD = x_BMD[:, members_PS[0]]
        for field_S in members_PS[1:]:
            product_BSD = product_BSD * x_BMD[:, field_S]
        return product_BSD
