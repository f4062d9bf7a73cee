"""AMEIR's second stage: which products of fields are there, grown from low order to high, a round for each order.

Round 2 tries all pairs. A later round tries what has been kept so far, each of the largest of these with one field
more, and some sets drawn blindly, for growth alone cannot find a set none of whose parts is of use.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import combinations
from math import comb

import torch

from trainer.architecture import Architecture, product_name
from trainer.build import Model
from trainer.engines.sampled import Choice
from trainer.engines.staged import Scores
from trainer.engines.supernet import Schedule, Scored
from trainer.figures import Alternative, Column
from trainer.methods.ameir.skeleton import DEEP, PRODUCTS, Decided, Skeleton
from trainer.methods.base import Opening
from trainer.modules.choices import OpenInputsMLP, OpenProducts
from trainer.modules.interactions import Shortcut
from trainer.modules.products import Hadamard

Set = tuple[str, ...]
SHARE = 4
"""A step's choice has at most this part of all candidates, or as many as may be kept, so that all are often trained."""
AGAIN = 2
"""So many times as many candidates as may be kept are scored on all rows."""
SHOWN = 12


class Products:
    """Candidate sets of fields side by side; a choice takes some of them."""

    def __init__(
        self, opening: Opening, skeleton: Skeleton, schedule: Schedule, before: Decided, order: int, seed: int
    ) -> None:
        self.opening, self.skeleton, self.schedule, self.order = opening, skeleton, schedule, order
        self.name, self.candidates = f"products{order}", 0
        self.most: int = skeleton.plan["products"]
        self.sets = ordered(candidates(skeleton.fields, before.products, order, self.most, seed), skeleton.fields)
        self.decided = self.before = before
        self.gains: dict[Set, float] = {}

    @cached_property
    def model(self) -> Model:
        model = self.opening.build(self.skeleton.described(replace(self.before, products=tuple(self.sets))))
        products, deep = model.node(PRODUCTS), model.node(DEEP)
        assert isinstance(products.op, Hadamard)
        assert isinstance(deep.op, Shortcut)
        products.op = OpenProducts(products.op)
        deep.op = OpenInputsMLP(deep.op, [product_name(one) for one in self.sets], self.skeleton.dim)
        return model

    def draw(self, random: torch.Generator) -> Choice:
        most = min(max(self.most, len(self.sets) // SHARE), len(self.sets))
        number = int(torch.randint(0, most + 1, (), generator=random))
        return _choice(torch.randperm(len(self.sets), generator=random)[:number].tolist())

    def take(self, choice: Choice) -> None:
        products, deep = self.model.node(PRODUCTS).op, self.model.node(DEEP).op
        assert isinstance(products, OpenProducts)
        assert isinstance(deep, OpenInputsMLP)
        products.take(choice[PRODUCTS])
        deep.take(choice[PRODUCTS].tolist())

    def decided_by(self, choice: Choice) -> Decided:
        """What a choice makes of the skeleton."""
        return replace(self.before, products=tuple(self.sets[place] for place in choice[PRODUCTS].tolist()))

    def architecture(self, choice: Choice) -> Architecture:
        return self.skeleton.architecture(self.decided_by(choice))

    def decide(self, scored: Sequence[tuple[Choice, Scored]], scores: Scores) -> None:
        """The products with the greatest gains, one after the other, each of which must help those before it.

        A candidate's gain is what it alone takes off the loss of no product. All candidates together are scored on no
        more rows than the training split has; the best of them again, with others, on all validation rows.
        """
        rows = scores.some(self.opening.train.total // len(self.sets))
        none = scores(_choice([]), rows)
        self.gains = {one: none - scores(_choice([place]), rows) for place, one in enumerate(self.sets)}
        places = sorted(range(len(self.sets)), key=lambda place: -self.gains[self.sets[place]])
        kept: list[int] = []
        loss = scores(_choice([]))
        for place in places[: AGAIN * self.most]:
            if len(kept) < self.most and (score := scores(_choice([*kept, place]))) < loss:
                kept, loss = [*kept, place], score
        choice = _choice(kept)
        self.take(choice)
        self.decided = self.decided_by(choice)

    @property
    def grown(self) -> bool:
        """Whether a product of the round's own order was kept."""
        return any(len(one) == self.order for one in self.decided.products)

    def columns(self) -> list[Column]:
        """The best candidates and all that were kept, with their gains."""
        best = sorted(self.gains, key=lambda one: -self.gains[one])
        shown = [one for place, one in enumerate(best) if place < SHOWN or one in self.decided.products]
        listed = [Alternative(" × ".join(one), self.gains[one], one in self.decided.products) for one in shown]
        return [Column(f"order {self.order}: {len(self.sets)} sets", listed)]


def candidates(fields: Sequence[str], kept: Sequence[Set], order: int, most: int, seed: int) -> list[Set]:
    """The sets that a round tries, each with its fields in their order."""
    if order == 2:
        return list(combinations(fields, 2))
    grown = [(*one, other) for one in kept if len(one) == order - 1 for other in fields if other not in one]
    random = torch.Generator().manual_seed(seed)
    found = dict.fromkeys([*kept, *(_in_order(one, fields) for one in grown)])
    wanted = len(found) + min(most, comb(len(fields), order) - sum(len(one) == order for one in found))
    while len(found) < wanted:
        found[blind_set(fields, order, random)] = None
    return list(found)


def blind_set(fields: Sequence[str], order: int, random: torch.Generator) -> Set:
    """A set of fields in which each is as likely."""
    places = torch.randperm(len(fields), generator=random)[:order].sort().values
    return tuple(fields[place] for place in places.tolist())


def blind_products(fields: Sequence[str], order: int, most: int, random: torch.Generator) -> tuple[Set, ...]:
    """At most so many sets of all orders up to `order`, each order as likely."""
    number = int(torch.randint(0, most + 1, (), generator=random))
    orders = torch.randint(2, order + 1, (number,), generator=random).tolist()
    return tuple(ordered({blind_set(fields, order, random) for order in orders}, fields))


def ordered(sets: Iterable[Set], fields: Sequence[str]) -> list[Set]:
    """Sets in the order in which `hadamard` gives their products."""
    return sorted(sets, key=lambda one: [fields.index(name) for name in one])


def _in_order(one: Set, fields: Sequence[str]) -> Set:
    return tuple(sorted(one, key=fields.index))


def _choice(places: Iterable[int]) -> Choice:
    return {PRODUCTS: torch.tensor(sorted(places), dtype=torch.int64)}
