"""AutoCTR's evolution, as an Optuna sampler: by age, loss and complexity, guided by a learned ranker (Song 2020).

Of what has been evaluated, a population survives; one of it is the parent; of many mutants of the parent, each with one
choice redrawn, the one is tried that `trainer.lambdarank` expects most of. There are no generations: each trial is
proposed from all that is known when a worker is free.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from math import comb, inf
from random import Random
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import rankdata

from trainer.distributions import distribution
from trainer.lambdarank import Encoding, scores
from trainer.space import Choice, Params, active, choices

POPULATION = 20
"""How many survive, and how many are drawn at random to begin with."""
TOURNAMENT = 10
"""k of `parent_chances`."""
MUTANTS = 100
"""Distinct mutants, none tried before, among which the ranker chooses."""
REDRAWS = 3
"""Mutants drawn for each one wanted: in a small space few are new."""
AGE, LOSS, COMPLEXITY = 1.0, 0.1, 0.1
"""Weights of what decides who survives."""


def survivors(losses: Sequence[float], complexities: Sequence[float], population: int = POPULATION) -> list[int]:
    """The positions of those of n evaluated ones (oldest first) that survive, best loss first.

    Among the newest 2P these are the P of the least rank(loss) / 2P, rank(complexity) / 2P and age, weighted. Age is
    the distance from the newest over n; the first P ever are equally old. Equals share a rank; of the rest the better
    loss decides, then youth.
    """
    n, window = len(losses), 2 * population
    newest = range(max(0, n - window), n)
    ranks = {
        position: LOSS * loss / window + COMPLEXITY * complexity / window
        for position, loss, complexity in zip(
            newest,
            rankdata([losses[position] for position in newest], method="min"),
            rankdata([complexities[position] for position in newest], method="min"),
            strict=True,
        )
    }

    def key(position: int) -> tuple[float, float, int]:
        age = (n - 1 - max(position, population - 1)) / n
        return AGE * age + ranks[position], losses[position], -position

    return sorted(sorted(newest, key=key)[:population], key=lambda position: (losses[position], -position))


def parent_chances(population: int, tournament: int = TOURNAMENT) -> list[float]:
    """The chance of each rank to be the parent: C(P - r + k, k) / C(P + k, k + 1) for r = 1..P.

    That of being the best of k + 1 drawn as a multiset, all multisets being equally likely.
    """
    every = comb(population + tournament, tournament + 1)
    return [comb(population - rank + tournament, tournament) / every for rank in range(1, population + 1)]


def mutant(space: Any, found: Mapping[str, Choice], parent: Params, random: Random) -> Params:
    """`parent` with one choice redrawn until it differs: one of a group, and every group is as likely.

    Choices that are met only now are drawn at random, and those no longer met left out.
    """
    groups: dict[str, list[str]] = {}
    for name in parent:
        groups.setdefault(found[name].group, []).append(name)
    name = random.choice(groups[random.choice(list(groups))])
    other = random.randrange(len(found[name].labels) - 1)
    changed = parent | {name: other + (other >= parent[name])}

    def choose(choice: Choice) -> int:
        return changed[choice.name] if choice.name in changed else random.randrange(len(choice.labels))

    return active(space, choose)


def by_choices(params: Params) -> str:
    """What tells points of a space apart if nothing is known about it: their choices."""
    return str(sorted(params.items()))


class EvolutionSampler(BaseSampler):
    """Proposes whole points of `space` (`trainer.space`) for a study on two values to minimise: loss and complexity.

    Trials must ask for the choices of `space` as `trainer.distributions.asks` does. Until `POPULATION` have finished,
    and where no new mutant is found, trials are random. A failed trial counts as the worst. Two points with the same
    `identity` are one. Without `guided` the first new mutant is taken.
    """

    def __init__(
        self, space: Any, seed: int, *, guided: bool = True, identity: Callable[[Params], str] = by_choices
    ) -> None:
        self._space, self._choices, self._guided, self._identity = space, choices(space), guided, identity
        self._seed, self._random, self._independent = seed, Random(seed), RandomSampler(seed)
        self._encoding = Encoding(self._choices)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {name: distribution(choice) for name, choice in self._choices.items()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        trials = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        ended = [other for other in trials if other.state in (TrialState.COMPLETE, TrialState.FAIL)]
        if len(ended) < POPULATION:
            return {}
        losses = [other.values[0] if other.values else inf for other in ended]
        alive = survivors(losses, [other.values[1] if other.values else inf for other in ended])
        parent = self._random.choices(alive, parent_chances(len(alive)))[0]
        known = {self._identity(other.params) for other in trials}
        mutants = self._mutants(ended[parent].params, known, MUTANTS if self._guided else 1)
        if len(mutants) < 2:
            return mutants[0] if mutants else {}
        past = [other.params for other in ended]
        expected = scores(self._encoding, past, losses, mutants, self._seed)
        return mutants[int(np.argmax(expected))]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def _mutants(self, parent: Params, known: Collection[str], wanted: int) -> list[Params]:
        """So many that differ from each other and from all that is known, as far as there are."""
        new: dict[str, Params] = {}
        for _ in range(REDRAWS * MUTANTS):
            if len(new) == wanted:
                break
            drawn = mutant(self._space, self._choices, parent, self._random)
            identity = self._identity(drawn)
            if identity not in known:
                new.setdefault(identity, drawn)
        return list(new.values())
