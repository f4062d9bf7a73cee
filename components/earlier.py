"""Trials of an earlier search, as the samplers of a new one are told them (`search.warm_start`)."""

import io
import json
from typing import Any

import polars as pl

from components.source import read_blocks
from trainer.candidate import Candidate
from trainer.errors import UserError
from trainer.propose import Past
from trainer.space import Label, Params, active, choices, fill_params


def earlier_trials(url: str, study: str, space: Any) -> list[Past]:
    """Those of `study` in a trials.parquet whose choices `space` has, with numbers below 0.

    Raises:
        UserError: there is no such file.
    """
    try:
        frame = pl.read_parquet(io.BytesIO(b"".join(read_blocks(url))))
        rows = frame.filter((pl.col("study") == study) & (pl.col("state") != "running")).to_dicts()
    except pl.exceptions.PolarsError:
        raise UserError(f"search.warm_start: {url} is no trials.parquet of a search step") from None
    found = [(row, _params(space, json.loads(row["params"]))) for row in rows if row["duplicate_of"] is None]
    fitting = [(row, params) for row, params in found if params is not None]
    return [
        Past(
            number=place - len(fitting),
            params=params,
            hash=Candidate.from_dict(fill_params(space, params)).hash,
            finished=True,
            value=row["value"],
            flops=row["flops"],
        )
        for place, (row, params) in enumerate(fitting)
    ]


def _params(space: Any, labels: dict[str, Label]) -> Params | None:
    """Indices instead of labels; None if `space` asks for other choices or has no such option."""
    known = choices(space)
    if not labels.keys() <= known.keys() or any(label not in known[name].labels for name, label in labels.items()):
        return None
    taken = {name: known[name].labels.index(label) for name, label in labels.items()}
    asked = active(space, lambda choice: taken.get(choice.name, choice.default))
    return asked if asked.keys() == taken.keys() else None
