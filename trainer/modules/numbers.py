"""Numeric fields as vectors: values times a vector, as they are, in soft bins (AutoDis) or in buckets.

Every module encodes n fields at once that are encoded alike: (B, n) -> (B, n, d). NaN is a missing value; a field
without missing values in training has learned nothing for one: there NaN counts as 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer.architecture import BinsEncoder, BucketsEncoder, Encoder, RawEncoder

DEVIATION = 0.3
"""How far one unit of a weight of the bins' network reaches: a bin's centre moves by this part of its width."""


@dataclass(frozen=True)
class NumberSource:
    """A field whose vector, `width` long, is made from the number in one column."""

    column: int
    missing: bool
    width: int
    encoder: Encoder

    def joins(self, other: object) -> bool:
        """Whether one module can encode both fields."""
        if not isinstance(other, NumberSource):
            return False
        ranges = {"range": (0.0, 1.0)} if isinstance(self.encoder, BinsEncoder) else {}
        mine, theirs = (source.encoder.model_copy(update=ranges) for source in (self, other))
        return mine == theirs and self.width == other.width


def table_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """The parameters of all modules of this file within `module`."""
    for part in module.modules():
        if isinstance(part, Scale | Bins | Buckets):
            yield from part.parameters()


def numbers(sources: Sequence[NumberSource], init: float) -> nn.Module:
    """The module for fields that join; `init` is the standard deviation of its fresh vectors."""
    encoder = sources[0].encoder
    if isinstance(encoder, RawEncoder):
        return Raw(sources)
    if isinstance(encoder, BinsEncoder):
        return Bins(sources, encoder, init)
    if isinstance(encoder, BucketsEncoder):
        return Buckets(sources, encoder, init)
    return Scale(sources, init)


class _Missing(nn.Module):
    """Puts a learned vector where a value is missing: (B, n, d) and the values (B, n) -> (B, n, d)."""

    def __init__(self, sources: Sequence[NumberSource], init: float) -> None:
        super().__init__()
        marked = torch.tensor([source.missing for source in sources])
        self.vectors = nn.Parameter(torch.empty(int(marked.sum()), sources[0].width).normal_(std=init))
        self.register_buffer("marked", marked, persistent=False)
        self.marked: Tensor

    def forward(self, vector_BND: Tensor, x_BN: Tensor) -> Tensor:
        missing_ND = vector_BND.new_zeros(vector_BND.shape[1:]).masked_scatter(self.marked[:, None], self.vectors)
        return torch.where((x_BN.isnan() & self.marked)[..., None], missing_ND, vector_BND)


class Scale(nn.Module):
    """Numbers times learned vectors."""

    def __init__(self, sources: Sequence[NumberSource], init: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(len(sources), sources[0].width).normal_(std=init))
        self.missing = _missing(sources, init)

    def forward(self, x_BN: Tensor) -> Tensor:
        vector_BND = x_BN.nan_to_num(nan=0.0)[..., None] * self.weight
        return _filled(vector_BND, x_BN, self.missing)


class Raw(nn.Module):
    """Numbers as they are, (B, n) -> (B, n + marked): each field's number, and a mark of missing ones if it has any."""

    def __init__(self, sources: Sequence[NumberSource]) -> None:
        super().__init__()
        kept = [
            index for i, source in enumerate(sources) for index in ([2 * i, 2 * i + 1] if source.missing else [2 * i])
        ]
        self.register_buffer("kept", torch.tensor(kept), persistent=False)
        self.kept: Tensor

    def forward(self, x_BN: Tensor) -> Tensor:
        both_BN2 = torch.stack([x_BN.nan_to_num(nan=0.0), x_BN.isnan().to(x_BN.dtype)], dim=2)
        return both_BN2.flatten(1)[:, self.kept]


class Bins(nn.Module):
    """Soft bins, each with a learned vector (Guo 2021, section 3; settings in `architecture.BinsEncoder`).

    The network starts as equal-width bins: with w_h = c_h, W = 0 and c = -c_h²/2 for centres c_h spread evenly over
    [0, 1], the logits are those of a Gaussian around each centre, one bin wide at temperature 1. What is learned are
    the deviations from that, each scaled so that an optimizer's step moves a bin by a small part of its width. From
    random weights, or with full steps, training tears the bins apart before their vectors mean anything.

    The global statistics that the paper feeds to the network of the adaptive temperature are constants of a field, so
    here its bias stands for them. Slope of LeakyReLU: 0.01. No gradient reaches the bins' weights through the
    aggregations `max` and `top`, only the chosen vectors.
    """

    def __init__(self, sources: Sequence[NumberSource], encoder: BinsEncoder, init: float) -> None:
        super().__init__()
        fields, bins = len(sources), encoder.bins
        self.encoder, self.steps = encoder, max(bins - 1, 1)
        self.vectors = nn.Parameter(torch.empty(fields, bins, encoder.dim).normal_(std=init))
        self.missing = _missing(sources, init)
        self.first = nn.Parameter(torch.zeros(fields, bins))
        self.second = nn.Parameter(torch.zeros(fields, bins, bins))
        self.biases = nn.Parameter(torch.zeros(2, fields, bins)) if encoder.bias else None
        self.temperature = _Temperature(fields, encoder) if encoder.adaptive is not None else None
        ranges = torch.tensor([_range(source.encoder) for source in sources])
        self.register_buffer("centres", torch.linspace(0, 1, bins), persistent=False)
        self.register_buffer("low", ranges[:, 0], persistent=False)
        self.register_buffer("span", ranges[:, 1] - ranges[:, 0], persistent=False)
        self.centres: Tensor
        self.low: Tensor
        self.span: Tensor

    def forward(self, x_BN: Tensor) -> Tensor:
        # A low temperature multiplies differences of logits: no place for bf16.
        with torch.autocast(x_BN.device.type, enabled=False):
            if self.encoder.aggregation == "average":
                vector_BND = torch.einsum("bnh,nhd->bnd", self.weights(x_BN), self.vectors)
            else:
                vector_BND = self._greatest(x_BN)
        return _filled(vector_BND, x_BN, self.missing)

    def weights(self, x_BN: Tensor) -> Tensor:
        """How much each value belongs to each bin: (B, n, bins), rows sum to 1."""
        x_BN = self._mapped(x_BN)
        return (self.logits(x_BN) / self._temperatures(x_BN)).softmax(dim=2)

    def logits(self, x_BN: Tensor) -> Tensor:
        """The bins' logits for values that are mapped to [0, 1] already: (B, n, bins)."""
        deviation = DEVIATION / self.steps
        hidden_BNH = x_BN[..., None] * (self.centres + deviation * self.first)
        if self.biases is not None:
            hidden_BNH = hidden_BNH + deviation * self.biases[0]
        hidden_BNH = functional.leaky_relu(hidden_BNH)
        mixed_BNH = torch.einsum("bnh,nhk->bnk", hidden_BNH, self.second)
        logits_BNH = hidden_BNH + deviation / self.steps * mixed_BNH
        if self.biases is not None:
            logits_BNH = logits_BNH - self.centres.square() / 2 + deviation * self.biases[1]
        return self.steps**2 * logits_BNH

    def _temperatures(self, x_BN: Tensor) -> float | Tensor:
        return self.encoder.temperature if self.temperature is None else self.temperature(x_BN)[..., None]

    def _mapped(self, x_BN: Tensor) -> Tensor:
        return (x_BN.nan_to_num(nan=0.0) - self.low) / self.span

    def _greatest(self, x_BN: Tensor) -> Tensor:
        """The sum of the vectors of the greatest logits; weights would tie where they vanish."""
        top = 1 if self.encoder.aggregation == "max" else min(self.encoder.top, self.encoder.bins)
        chosen_BNK = self.logits(self._mapped(x_BN)).topk(top, dim=2).indices
        field_N1 = torch.arange(x_BN.shape[1], device=x_BN.device)[:, None]
        vector_BNKD: Tensor = self.vectors[field_N1, chosen_BNK]
        return vector_BNKD.sum(dim=2)


class _Temperature(nn.Module):
    """A temperature per value, within `temperature` ± `adaptive`: (B, n) -> (B, n)."""

    def __init__(self, fields: int, encoder: BinsEncoder) -> None:
        super().__init__()
        assert encoder.adaptive is not None
        self.middle, self.spread = encoder.temperature, encoder.adaptive
        self.first = nn.Parameter(torch.empty(2, fields, encoder.bins).normal_())
        self.second = nn.Parameter(torch.empty(fields, encoder.bins).normal_(std=encoder.bins**-0.5))
        self.bias = nn.Parameter(torch.zeros(fields))

    def forward(self, x_BN: Tensor) -> Tensor:
        hidden_BNH = functional.leaky_relu(x_BN[..., None] * self.first[0] + self.first[1])
        share_BN = ((hidden_BNH * self.second).sum(dim=2) + self.bias).sigmoid()
        return self.middle + self.spread * (2 * share_BN - 1)


class Buckets(nn.Module):
    """The learned vector of the bucket that holds the value."""

    def __init__(self, sources: Sequence[NumberSource], encoder: BucketsEncoder, init: float) -> None:
        super().__init__()
        self.register_buffer("boundaries", torch.tensor(encoder.boundaries), persistent=False)
        self.boundaries: Tensor
        self.missing = _missing(sources, init)
        buckets = len(encoder.boundaries) + 1
        self.vectors = nn.Parameter(torch.empty(len(sources), buckets, encoder.dim).normal_(std=init))

    def forward(self, x_BN: Tensor) -> Tensor:
        bucket_BN = torch.bucketize(x_BN.nan_to_num(nan=0.0).float(), self.boundaries.float())
        vector_BND: Tensor = self.vectors[torch.arange(x_BN.shape[1], device=x_BN.device), bucket_BN]
        return _filled(vector_BND, x_BN, self.missing)


def _filled(vector_BND: Tensor, x_BN: Tensor, missing: _Missing | None) -> Tensor:
    if missing is None:
        return vector_BND
    filled_BND: Tensor = missing(vector_BND, x_BN)
    return filled_BND


def _missing(sources: Sequence[NumberSource], init: float) -> _Missing | None:
    return _Missing(sources, init) if any(source.missing for source in sources) else None


def _range(encoder: Encoder) -> tuple[float, float]:
    assert isinstance(encoder, BinsEncoder)
    return encoder.range
