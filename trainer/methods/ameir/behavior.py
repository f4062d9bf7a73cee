"""AMEIR's first stage: what each block over a history does, and how the history becomes one vector."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from trainer.architecture import Architecture, Seq
from trainer.build import Model, block
from trainer.engines.sampled import Choice, uniform
from trainer.engines.staged import Scores
from trainer.engines.supernet import Schedule, Scored
from trainer.figures import Column
from trainer.methods.ameir.options import column
from trainer.methods.ameir.skeleton import Decided, Skeleton, block_name, history
from trainer.methods.base import Data, Opening
from trainer.modules import sequences
from trainer.modules.choices import OpenBlock, OpenPooling
from trainer.modules.sequences import TargetAttention

LAYERS: dict[str, Data] = {
    "skip": {"kind": "skip"},
    "conv1": {"kind": "conv", "kernel": 1},
    "conv3": {"kind": "conv", "kernel": 3},
    "dilated3": {"kind": "conv", "kernel": 3, "dilation": 2},
    "mean3": {"kind": "mean_pool", "kernel": 3},
    "max3": {"kind": "max_pool", "kernel": 3},
    "gru": {"kind": "gru"},
    "attention1": {"kind": "attention", "heads": 1},
    "attention2": {"kind": "attention", "heads": 2},
    "feed_forward": {"kind": "feed_forward"},
}


class Behavior:
    """All layers of all blocks side by side; every decision is drawn uniformly."""

    name = "behavior"

    def __init__(self, opening: Opening, skeleton: Skeleton, schedule: Schedule) -> None:
        self.opening, self.skeleton, self.schedule = opening, skeleton, schedule
        plan = self.plan = skeleton.plan
        self.candidates: int = plan["candidates"]
        self.options = {"norm": plan["norms"], "layer": plan["layers"], "activation": plan["activations"]}
        self.decisions: dict[str, Tensor] = {}
        for sequence in skeleton.histories:
            for what, options in self.options.items():
                self.decisions[f"{sequence}/{what}"] = torch.zeros(plan["blocks"], len(options))
            self.decisions[f"{sequence}/pooling"] = torch.zeros(1, len(skeleton.poolings(sequence)))
        self.decided = skeleton.start
        self.scored: Sequence[tuple[Choice, Scored]] = ()

    @cached_property
    def model(self) -> Model:
        stand_in = {"layer": {"kind": "conv", "kernel": 1}}
        blocks = dict.fromkeys(self.skeleton.histories, (stand_in,) * self.plan["blocks"])
        poolings = {sequence: self.skeleton.poolings(sequence) for sequence in self.skeleton.histories}
        pooling = {sequence: "target" if "target" in kinds else kinds[0] for sequence, kinds in poolings.items()}
        model = self.opening.build(self.skeleton.described(replace(self.decided, blocks=blocks, pooling=pooling)))
        with self.opening.draws():
            for number, sequence in enumerate(self.skeleton.histories):
                for place in range(self.plan["blocks"]):
                    model.node(block_name(number, place)).op = self._open_block()
                pool = model.node(f"{history(number)}-pool")
                pool.op = self._open_pooling(sequence, pool.op)
        return model

    def draw(self, random: torch.Generator) -> Choice:
        return uniform(self.decisions, random)

    def take(self, choice: Choice) -> None:
        for number, sequence in enumerate(self.skeleton.histories):
            norms, layers, activations = (choice[f"{sequence}/{what}"].tolist() for what in self.options)
            for place, (norm, layer, activation) in enumerate(zip(norms, layers, activations, strict=True)):
                opened = self.model.node(block_name(number, place)).op
                assert isinstance(opened, OpenBlock)
                opened.take(norm, layer, self.plan["activations"][activation])
            pool = self.model.node(f"{history(number)}-pool").op
            assert isinstance(pool, OpenPooling)
            pool.kind = self._pooling(sequence, choice)

    def decided_by(self, choice: Choice) -> Decided:
        """What a choice makes of the skeleton."""
        histories = self.skeleton.histories
        blocks = {sequence: tuple(self._blocks(sequence, choice)) for sequence in histories}
        pooling = {sequence: self._pooling(sequence, choice) for sequence in histories}
        return replace(self.decided, blocks=blocks, pooling=pooling)

    def architecture(self, choice: Choice) -> Architecture:
        return self.skeleton.architecture(self.decided_by(choice))

    def decide(self, scored: Sequence[tuple[Choice, Scored]], scores: Scores) -> None:
        """The choice with the least loss."""
        best, _ = min(scored, key=lambda one: one[1].score)
        self.scored = scored
        self.take(best)
        self.decided = self.decided_by(best)
        self.best = best

    def columns(self) -> list[Column]:
        """For every decision its options, each with the mean loss of the scored choices that have it."""
        listed = []
        for sequence in self.skeleton.histories:
            blocks = [(f"{sequence}/{what}", place) for place in range(self.plan["blocks"]) for what in self.options]
            listed += [*blocks, (f"{sequence}/pooling", 0)]
        return [self._column(name, place) for name, place in listed]

    def _column(self, name: str, place: int) -> Column:
        sequence, _, what = name.rpartition("/")
        options = self.skeleton.poolings(sequence) if what == "pooling" else self.options[what]
        words = what if what == "pooling" else f"block {place + 1}: {what}"
        title = f"{sequence}, {words}" if len(self.skeleton.histories) > 1 else words
        return column(title, options, (name, place), self.scored, self.best)

    def _blocks(self, sequence: str, choice: Choice) -> list[Data]:
        rows = zip(*(choice[f"{sequence}/{what}"].tolist() for what in self.options), strict=True)
        return [self._block(*options) for options in rows]

    def _block(self, norm: int, layer: int, activation: int) -> Data:
        plan = self.plan
        described = {"norm": plan["norms"][norm], "layer": LAYERS[plan["layers"][layer]]}
        return {**described, "activation": plan["activations"][activation], "causal": plan["causal"]}

    def _pooling(self, sequence: str, choice: Choice) -> str:
        return self.skeleton.poolings(sequence)[int(choice[f"{sequence}/pooling"])]

    def _open_block(self) -> OpenBlock:
        kinds = [
            (norm, layer)
            for norm in range(len(self.plan["norms"]))
            for layer, name in enumerate(self.plan["layers"])
            if name != "skip"
        ]
        described = {
            (norm, layer): Seq(id="open", inputs=("open",), **self._block(norm, layer, 0)) for norm, layer in kinds
        }
        return OpenBlock({kind: block(node, self.skeleton.dim) for kind, node in described.items()})

    def _open_pooling(self, sequence: str, built: nn.Module) -> OpenPooling:
        made = {
            kind: sequences.Last() if kind == "last" else sequences.Pool(kind)
            for kind in self.skeleton.poolings(sequence)
            if kind != "target"
        }
        return OpenPooling({**made, "target": built} if isinstance(built, TargetAttention) else made)
