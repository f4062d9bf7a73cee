"""AMEIR's third stage: how wide the layers are, their activations, and whether their inputs are excited (SE)."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch

from trainer.architecture import Architecture
from trainer.build import Model
from trainer.engines.sampled import Choice, uniform
from trainer.engines.staged import Scores
from trainer.engines.supernet import Schedule, Scored
from trainer.figures import Column
from trainer.methods.ameir.options import column
from trainer.methods.ameir.skeleton import DEEP, EXCITED, Decided, Skeleton
from trainer.methods.base import Opening
from trainer.modules.choices import ElasticMLP, OpenSE
from trainer.modules.interactions import Shortcut
from trainer.shapes import count

EXTREME = 0.25
"""How often a step takes the greatest widths, and how often the least: what all others share (Yu 2019, sandwich)."""


class Layers:
    """One MLP of the greatest widths, which all narrower ones share."""

    name = "layers"

    def __init__(self, opening: Opening, skeleton: Skeleton, schedule: Schedule, before: Decided) -> None:
        self.opening, self.skeleton, self.schedule, self.before = opening, skeleton, schedule, before
        plan = self.plan = skeleton.plan
        self.candidates: int = plan["candidates"]
        self.widths = [[max(1, round(ratio * most)) for ratio in plan["ratios"]] for most in skeleton.units]
        several = len(skeleton.fields) + len(skeleton.histories) > 1
        self.options = {
            "units": plan["ratios"],
            "activation": plan["mlp_activations"],
            "excitation": plan["excitation"] if several else [False],
        }
        numbers = {"units": len(self.widths), "activation": len(self.widths), "excitation": 1}
        self.decisions = {what: torch.zeros(numbers[what], len(options)) for what, options in self.options.items()}
        self.decided = before
        self.scored: Sequence[tuple[Choice, Scored]] = ()

    @cached_property
    def model(self) -> Model:
        most = replace(self.before, units=self.skeleton.units, excitation=any(self.options["excitation"]))
        model = self.opening.build(self.skeleton.described(most))
        deep = model.node(DEEP)
        assert isinstance(deep.op, Shortcut)
        deep.op = ElasticMLP(deep.op)
        if most.excitation:
            excited = model.node(EXCITED)
            excited.op = OpenSE(excited.op)
        return model

    def draw(self, random: torch.Generator) -> Choice:
        choice = uniform(self.decisions, random)
        place = float(torch.rand((), generator=random))
        for extreme, ratio in ((max, 0.0), (min, EXTREME)):
            if ratio <= place < ratio + EXTREME:
                option = self.plan["ratios"].index(extreme(self.plan["ratios"]))
                choice["units"] = torch.full_like(choice["units"], option)
        return choice

    def take(self, choice: Choice) -> None:
        decided, deep = self.decided_by(choice), self.model.node(DEEP).op
        assert isinstance(deep, ElasticMLP)
        deep.take(decided.units, decided.activations)
        if any(self.options["excitation"]):
            excited = self.model.node(EXCITED).op
            assert isinstance(excited, OpenSE)
            excited.on = decided.excitation

    def decided_by(self, choice: Choice) -> Decided:
        """What a choice makes of the skeleton."""
        units = tuple(widths[option] for widths, option in zip(self.widths, choice["units"].tolist(), strict=True))
        activations = tuple(self.plan["mlp_activations"][option] for option in choice["activation"].tolist())
        excitation = self.options["excitation"][int(choice["excitation"])]
        return replace(self.before, units=units, activations=activations, excitation=excitation)

    def architecture(self, choice: Choice) -> Architecture:
        return self.skeleton.architecture(self.decided_by(choice))

    def decide(self, scored: Sequence[tuple[Choice, Scored]], scores: Scores) -> None:
        """The choice with the least loss, of equal ones the smallest."""
        best, _ = min(scored, key=lambda one: (one[1].score, count(one[1].architecture).total))
        self.scored = scored
        self.take(best)
        self.decided = self.decided_by(best)
        self.best = best

    def columns(self) -> list[Column]:
        """For every decision its options, each with the mean loss of the scored choices that have it."""
        shown = []
        for number, widths in enumerate(self.widths):
            for what, options in (("units", widths), ("activation", self.options["activation"])):
                title = f"layer {number + 1}: {what}"
                shown.append(column(title, options, (what, number), self.scored, self.best))
        excitation = ["on" if on else "off" for on in self.options["excitation"]]
        return [*shown, column("SE", excitation, ("excitation", 0), self.scored, self.best)]
