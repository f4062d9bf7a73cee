"""A candidate: everything one trial is, an architecture and how it is trained; and the space of candidates.

A trial of a search by gradient has a `supernet` too: the architecture is then the backbone that a method opens, and the
model to train is derived from it.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from trainer.architecture import Architecture
from trainer.errors import UserError
from trainer.settings import TrainSettings, TuneSettings
from trainer.shapes import infer
from trainer.space import choice


class Candidate(BaseModel):
    """What a trial trains. Two candidates with one `hash` are the same experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Architecture
    training: TrainSettings
    supernet: dict[str, Any] | None = None
    """The `method` that opens the architecture, and the settings of this one search."""

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Candidate":
        """The candidate that `data` describes, parts that its head does not reach left out.

        Raises ArchitectureError (a UserError) if it is no architecture.
        """
        architecture = Architecture.from_dict(data["architecture"]).live()
        infer(architecture)
        training = TrainSettings.model_validate(data["training"])
        return Candidate(architecture=architecture, training=training, supernet=data.get("supernet"))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every default shown; `from_dict` reads it back."""
        training = self.training.model_dump(mode="json")
        return {"architecture": self.architecture.to_dict(), "training": training, "supernet": self.supernet}

    def derived(self, architecture: Architecture) -> "Candidate":
        """What comes out of this candidate's search: a plain one, trained the same way."""
        return Candidate(architecture=architecture, training=self.training)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the architecture's canonical hash, the training settings and the supernet's."""
        parts = [self.architecture.hash, self.training.model_dump_json()]
        if self.supernet is not None:
            parts.append(json.dumps(self.supernet, sort_keys=True))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def candidate_space(
    template: Mapping[str, Any],
    settings: TrainSettings,
    tune: TuneSettings,
    supernet: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The space of candidates: a template of an architecture, the training settings, of which `tune` opens some, and
    the settings of a search by gradient.

    The first trial takes the set value where it is among the tuned ones, else the first tuned one. Raises UserError for
    a tuned value that no training accepts, and for a set value that the tuned ones leave out.
    """
    for name, wrong in tune.left_out(settings).items():
        raise UserError(f"train.{name}: {wrong}")
    training = settings.model_dump()
    for name, values in tune.model_dump().items():
        if values:
            _check(name, values, settings)
            training[name] = choice(f"training.{name}", values, default=getattr(settings, name), group="training")
    return {"architecture": dict(template), "training": training, "supernet": supernet}


def _check(name: str, values: list[Any], settings: TrainSettings) -> None:
    for value in values:
        try:
            TrainSettings.model_validate(settings.model_dump() | {name: value})
        except ValidationError as error:
            raise UserError(f"search.tune.{name}: {value}: {error.errors()[0]['msg']}") from None
