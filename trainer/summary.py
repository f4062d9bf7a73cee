"""A trial in a few lines of text, block by block, as the terminal shows each new best one (AutoRec's trial summary)."""

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.architecture import RoutedHead
from trainer.candidate import Candidate
from trainer.settings import TuneSettings


def summary(candidate: Candidate, *, trial: int, metric: str, value: float) -> str:
    """The trial's number, its score and the values of its mappers, interactors, optimizer and training."""
    lines = [
        f"Trial {trial}: {metric} {value:.5f}",
        *_mappers(candidate),
        *_interactors(candidate),
        *_optimizers(candidate.architecture.head),
        f"|-training {_values({name: getattr(candidate.training, name) for name in TuneSettings.model_fields})}",
    ]
    return "\n".join(lines)


def _mappers(candidate: Candidate) -> Iterator[str]:
    for name, view in candidate.architecture.views.items():
        encoders: dict[str, list[str]] = {}
        for field, encoder in view.encoders.items():
            encoders.setdefault(_block(encoder, "kind"), []).append(field)
        for text, fields in encoders.items():
            yield f"|-mapper {name}: {text} of {', '.join(fields)}"


def _interactors(candidate: Candidate) -> Iterator[str]:
    for node in candidate.architecture.nodes:
        yield f"|-interactor {node.id}: {_block(node, 'op')}"


def _optimizers(head: Any) -> Iterator[str]:
    if isinstance(head, RoutedHead):
        yield f"|-router {len(head.parts)} groups <- {', '.join(head.router)}"
    for part in head.parts if isinstance(head, RoutedHead) else [head]:
        yield f"|-optimizer {_block(part, 'mode')}"


def _block(model: Any, kind: str) -> str:
    """The kind of a part of an architecture, its values, and what it reads."""
    values = model.model_dump(mode="json", by_alias=True, exclude={"id", "index"})
    name, reads = values.pop(kind), values.pop("in", [])
    return " ".join(part for part in (name, _values(values), f"<- {', '.join(reads)}" if reads else "") if part)


def _values(values: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={_text(value)}" for name, value in values.items() if value is not None)


def _text(value: Any) -> str:
    """Lists of learned numbers, such as the boundaries of buckets, are not read to their last digit."""
    if isinstance(value, list) and any(isinstance(one, float) for one in value):
        return f"[{', '.join(f'{one:.4g}' for one in value)}]"
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, dict):
        return " ".join(str(part) if name == "kind" else f"{name} {part}" for name, part in value.items())
    return str(value)
