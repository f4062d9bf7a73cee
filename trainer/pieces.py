"""Tensors that are spread over processes: which box of the whole this process holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Piece:
    """A box of a tensor, held by this process. Boxes of one tensor are equal or apart, and together are the whole."""

    tensor: Tensor
    """The box itself, not a copy."""
    shape: Shape
    """Of the whole tensor."""
    offsets: Shape
    """Where in the whole the box begins."""

    @staticmethod
    def whole(tensor: Tensor) -> "Piece":
        return Piece(tensor, tuple(tensor.shape), (0,) * tensor.dim())


def beside(weight: Piece, value: Tensor) -> Piece:
    """The piece that a value of an optimizer is: as large as the piece of the weight, something for each row of it, or,
    in any other shape, one for the whole weight.
    """
    shape = tuple(value.shape)
    if shape == tuple(weight.tensor.shape):
        return Piece(value, weight.shape, weight.offsets)
    if shape[:1] == tuple(weight.tensor.shape[:1]):
        return Piece(value, weight.shape[:1] + shape[1:], weight.offsets[:1] + (0,) * (len(shape) - 1))
    return Piece.whole(value)


def room(weights: Sequence[Piece], shape: Shape, dtype: torch.dtype) -> list[Piece]:
    """Empty pieces of a tensor of this whole shape, for a process that holds these pieces of the weight it goes with.

    The opposite of `beside`. A process that holds nothing of the weight needs nothing.
    """
    pieces: dict[Shape, Piece] = {}
    for weight in weights:
        mine: Shape = shape
        if shape == weight.shape:
            mine = tuple(weight.tensor.shape)
        elif shape[:1] == weight.shape[:1]:
            mine = tuple(weight.tensor.shape[:1]) + shape[1:]
        piece = beside(weight, torch.empty(mine, dtype=dtype, device=weight.tensor.device))
        pieces.setdefault(piece.offsets, piece)
    return list(pieces.values())
