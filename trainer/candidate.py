"""A candidate: everything one trial is, an architecture and how it is trained; and the space of candidates."""

import hashlib
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

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> "Candidate":
        """The candidate that `data` describes, parts that its head does not reach left out.

        Raises ArchitectureError (a UserError) if it is no architecture.
        """
        architecture = Architecture.from_dict(data["architecture"]).live()
        infer(architecture)
        return Candidate(architecture=architecture, training=TrainSettings.model_validate(data["training"]))

    def to_dict(self) -> dict[str, Any]:
        """Plain data, every default shown; `from_dict` reads it back."""
        return {"architecture": self.architecture.to_dict(), "training": self.training.model_dump(mode="json")}

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the architecture's canonical hash and the training settings."""
        return hashlib.sha256(f"{self.architecture.hash} {self.training.model_dump_json()}".encode()).hexdigest()


def candidate_space(template: Mapping[str, Any], settings: TrainSettings, tune: TuneSettings) -> dict[str, Any]:
    """The space of candidates: an architecture template beside the training settings, of which `tune` opens some.

    The first trial takes the set value where it is among the tuned ones, else the first tuned one. Raises UserError for
    a tuned value that no training accepts, and for a set value that the tuned ones leave out.
    """
    training = settings.model_dump()
    for name, values in tune.model_dump().items():
        if values:
            _check(name, values, settings)
            training[name] = choice(f"training.{name}", values, default=getattr(settings, name), group="training")
    return {"architecture": dict(template), "training": training}


def _check(name: str, values: list[Any], settings: TrainSettings) -> None:
    kept = getattr(settings, name)
    if kept not in values and kept != TrainSettings.model_fields[name].default:
        raise UserError(
            f"train.{name}: {kept} is not among search.tune.{name} {values}: add it there, or write {name}: [] there"
        )
    for value in values:
        try:
            TrainSettings.model_validate(settings.model_dump() | {name: value})
        except ValidationError as error:
            raise UserError(f"search.tune.{name}: {value}: {error.errors()[0]['msg']}") from None
