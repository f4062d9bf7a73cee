"""AMEIR: what is done with histories, which fields are multiplied, how wide layers are (Zhao et al., IJCAI 2021).

All models have one form (`skeleton`): histories through residual blocks and pooled, beside the fields and products of
fields, through layers with a linear shortcut. Three searches with shared weights, one after the other, fill it in:
`behavior`, `products`, `layers`. What they come to is one architecture, trained from scratch like any other.

Ours, for of the paper only the abstract and summaries could be had: all lists of options and all numbers; how products
are normalised, scored and kept; widths as shares of a maximum, and which of them a step takes.
"""

from collections.abc import Iterator
from dataclasses import replace

from trainer.architecture import Architecture
from trainer.engines.sampled import generator, uniform
from trainer.engines.staged import Stage
from trainer.engines.supernet import Schedule
from trainer.figures import Figure, stages
from trainer.methods.ameir.behavior import Behavior
from trainer.methods.ameir.layers import Layers
from trainer.methods.ameir.products import Products, blind_products
from trainer.methods.ameir.skeleton import Decided, Skeleton, space
from trainer.methods.base import Data, Opening, draw
from trainer.methods.settings import AMEIRSettings
from trainer.space import choice

__all__ = ["AMEIR", "plan", "space"]


def plan(settings: AMEIRSettings) -> Data:
    space_of_models = {"dims", "units", "dropout", "positions", "causal", "blocks"}
    return {
        "method": "ameir",
        "positions": choice("ameir.positions", settings.positions),
        "causal": choice("ameir.causal", settings.causal),
        "blocks": choice("ameir.blocks", settings.blocks),
        "draw": draw("ameir") if settings.select == "random" else None,
        **settings.model_dump(exclude=space_of_models),
    }


class AMEIR:
    """The three searches on one skeleton, or a blind draw from all that they could come to."""

    def __init__(self, opening: Opening) -> None:
        self.opening, self.plan = opening, opening.plan
        self.skeleton = Skeleton(opening.backbone, opening.plan)
        self.schedule = Schedule(epochs=opening.plan["epochs"], table_l2=opening.plan["table_l2"])
        self.sample: int = opening.plan["sample"]
        self.searched: list[Behavior | Products | Layers] = []
        self.decided = self._blind() if opening.plan["select"] == "random" else self.skeleton.start

    def stages(self) -> Iterator[Stage]:
        if self.plan["select"] == "random":
            return
        if self.skeleton.histories:
            yield from self._searched(self._behavior())
        for order in range(2, self._order() + 1):
            grown = Products(self.opening, self.skeleton, self.schedule, self.decided, order, self.opening.seed)
            yield from self._searched(grown)
            if not grown.grown:
                break
        yield from self._searched(self._layers(self.decided))

    def _searched(self, stage: Behavior | Products | Layers) -> Iterator[Stage]:
        yield stage
        self.decided = stage.decided
        self.searched.append(stage)

    def derive(self) -> Architecture:
        return self.skeleton.architecture(self.decided)

    def figures(self) -> list[Figure]:
        """One picture of all stages."""
        if not self.searched:
            return []
        note = (
            "Each decision with its options: a history's blocks and layers with the mean validation loss of the blind "
            "choices that have the option, products with what each alone takes off the loss. Darker is better; "
            "outlined is what was taken."
        )
        names: tuple[tuple[str, type, bool], ...] = (
            ("Histories", Behavior, False),
            ("Products of fields", Products, True),
            ("Layers", Layers, False),
        )
        parts = [
            (name, rising, [column for stage in self.searched if isinstance(stage, kind) for column in stage.columns()])
            for name, kind, rising in names
        ]
        return [stages("Three searches, one after the other", note, [part for part in parts if part[2]])]

    def _order(self) -> int:
        """The greatest order of a product."""
        return min(int(self.plan["order"]), len(self.skeleton.fields)) if self.plan["products"] else 0

    def _behavior(self) -> Behavior:
        return Behavior(self.opening, self.skeleton, self.schedule)

    def _layers(self, before: Decided) -> Layers:
        return Layers(self.opening, self.skeleton, self.schedule, before)

    def _blind(self) -> Decided:
        random = generator(self.opening.seed, "ameir", self.plan["draw"])
        behavior = self._behavior()
        decided = behavior.decided_by(uniform(behavior.decisions, random))
        if self._order() > 1:
            fields, most = self.skeleton.fields, self.plan["products"]
            decided = replace(decided, products=blind_products(fields, self._order(), most, random))
        layers = self._layers(decided)
        return layers.decided_by(uniform(layers.decisions, random))
