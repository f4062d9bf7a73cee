"""AMEIR's second stage: which products of fields are there, grown from low order to high, a round for each order.

Round 2 tries all pairs. A later round tries each set that the round before it kept with one field more, and some sets
drawn blindly, as growth alone cannot find a set none of whose parts is of use. What is kept stays for good.

Meanwhile everything is added up linearly. Layers learn a product of two fields by themselves sooner or later, and then
its gain says when and not whether.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from math import comb
from typing import Any

import torch

from trainer.architecture import Architecture, product_name
from trainer.build import Model
from trainer.engines.sampled import Choice
from trainer.engines.staged import Scores
from trainer.engines.supernet import Schedule, Scored
from trainer.figures import Alternative, Column
from trainer.methods.ameir.skeleton import DEEP, PRODUCTS, Decided, Skeleton
from trainer.methods.base import Opening
from trainer.metrics import Vector
from trainer.modules.choices import OpenInputsMLP, OpenProducts
from trainer.modules.interactions import Shortcut

Set = tuple[str, ...]
SHARE = 4
"""A step's choice has at most this part of all candidates, or as many as may be kept, so that all are often trained."""
SURE = 3.0
"""Standard errors by which a mean loss must fall: the best of hundreds of useless candidates makes almost as many."""
AGAIN = 2
"""So many times as many candidates as may be kept are scored on all rows."""
SHOWN = 12
LINEAR: dict[str, Any] = {"units": (1,), "activations": ("identity",)}
"""What stands for the layers."""


class Products:
    """What was kept so far and candidate sets of fields side by side; a choice takes the former and some others."""

    def __init__(
        self, opening: Opening, skeleton: Skeleton, schedule: Schedule, before: Decided, order: int, seed: int
    ) -> None:
        self.opening, self.skeleton, self.schedule, self.order = opening, skeleton, schedule, order
        self.name, self.candidates = f"products{order}", 0
        self.most: int = skeleton.plan["products"]
        found = candidates(skeleton.fields, before.products, order, self.most, seed)
        self.sets = ordered([*before.products, *found], skeleton.fields)
        self.kept = [place for place, one in enumerate(self.sets) if one in before.products]
        self.open = [place for place, one in enumerate(self.sets) if one not in before.products]
        self.decided = self.before = before
        self.gains: dict[Set, float] = {}

    @cached_property
    def model(self) -> Model:
        every = replace(self.before, products=tuple(self.sets), **LINEAR)
        model = self.opening.build(self.skeleton.described(every))
        fields, deep = self.skeleton.fields, model.node(DEEP)
        assert isinstance(deep.op, Shortcut)
        places = [tuple(fields.index(name) for name in one) for one in self.sets]
        model.node(PRODUCTS).op = OpenProducts(len(fields), self.skeleton.dim, places)
        deep.op = OpenInputsMLP(deep.op, [product_name(one) for one in self.sets], self.skeleton.dim)
        return model

    def draw(self, random: torch.Generator) -> Choice:
        most = min(max(self.most, len(self.open) // SHARE), len(self.open))
        number = int(torch.randint(0, most + 1, (), generator=random))
        drawn = torch.randperm(len(self.open), generator=random)[:number].tolist()
        return self._with([self.open[place] for place in drawn])

    def take(self, choice: Choice) -> None:
        products, deep = self.model.node(PRODUCTS).op, self.model.node(DEEP).op
        assert isinstance(products, OpenProducts)
        assert isinstance(deep, OpenInputsMLP)
        products.taken = choice[PRODUCTS].tolist()
        deep.take(products.taken)

    def decided_by(self, choice: Choice) -> Decided:
        """What a choice makes of the skeleton."""
        return replace(self.before, products=tuple(self.sets[place] for place in choice[PRODUCTS].tolist()))

    def architecture(self, choice: Choice) -> Architecture:
        return self.skeleton.architecture(self.decided_by(choice))

    def decide(self, scored: Sequence[tuple[Choice, Scored]], scores: Scores) -> None:
        """The candidates with the greatest gains, one after the other, if each surely helps what was taken before it.

        A candidate's gain is what it alone takes off the loss of what was kept before. All candidates together are
        scored on no more rows than the training split has; the best, and then in company, on all validation rows.
        """
        rows = scores.some(self.opening.train.total // len(self.open))
        before = scores(self._with([]), rows)
        gains = {place: float((before - scores(self._with([place]), rows)).mean()) for place in self.open}
        self.gains = {self.sets[place]: gain for place, gain in gains.items()}
        taken: list[int] = []
        loss_N = scores(self._with([]))
        for place in sorted(gains, key=lambda place: -gains[place])[: AGAIN * self.most]:
            if len(taken) < self.most:
                with_it_N = scores(self._with([*taken, place]))
                if _surely_less(with_it_N, loss_N):
                    taken, loss_N = [*taken, place], with_it_N
        choice = self._with(taken)
        self.take(choice)
        self.decided = self.decided_by(choice)

    @property
    def grown(self) -> bool:
        """Whether the round has kept a product."""
        return len(self.decided.products) > len(self.before.products)

    def columns(self) -> list[Column]:
        """The best candidates and all that were kept, with their gains."""
        best = sorted(self.gains, key=lambda one: -self.gains[one])
        shown = [one for place, one in enumerate(best) if place < SHOWN or one in self.decided.products]
        listed = [Alternative(" × ".join(one), self.gains[one], one in self.decided.products) for one in shown]
        return [Column(f"order {self.order}: {len(self.open)} sets", listed)]

    def _with(self, places: Sequence[int]) -> Choice:
        """These candidates beside what was kept before."""
        return {PRODUCTS: torch.tensor(sorted([*self.kept, *places]), dtype=torch.int64)}


def _surely_less(loss_N: Vector, before_N: Vector) -> bool:
    """Whether the rows' losses have fallen by more than chance lets them."""
    gain_N = before_N - loss_N
    return bool(gain_N.mean() > SURE * gain_N.std() / len(gain_N) ** 0.5)


def candidates(fields: Sequence[str], kept: Sequence[Set], order: int, most: int, seed: int) -> list[Set]:
    """The sets of a round's order that it tries, each with its fields in their order; `most` of them drawn blindly."""
    if order == 2:
        return list(combinations(fields, 2))
    grown = [(*one, other) for one in kept if len(one) == order - 1 for other in fields if other not in one]
    random = torch.Generator().manual_seed(seed)
    found = dict.fromkeys(tuple(sorted(one, key=fields.index)) for one in grown)
    wanted = min(len(found) + most, comb(len(fields), order))
    while len(found) < wanted:
        found[blind_set(fields, order, random)] = None
    return list(found)


def blind_set(fields: Sequence[str], order: int, random: torch.Generator) -> Set:
    """A set of fields in which each is as likely."""
    places = torch.randperm(len(fields), generator=random)[:order].sort().values
    return tuple(fields[place] for place in places.tolist())


def blind_products(fields: Sequence[str], order: int, most: int, random: torch.Generator) -> tuple[Set, ...]:
    """At most so many sets of each order up to `order`."""
    found = {
        blind_set(fields, size, random)
        for size in range(2, order + 1)
        for _ in range(int(torch.randint(0, most + 1, (), generator=random)))
    }
    return tuple(ordered(found, fields))


def ordered(sets: Iterable[Set], fields: Sequence[str]) -> list[Set]:
    """Sets in the order in which `hadamard` gives their products."""
    return sorted(sets, key=lambda one: [fields.index(name) for name in one])
