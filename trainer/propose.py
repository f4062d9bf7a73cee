"""Which candidate a search tries next, by one of the samplers, behind one pure function.

`propose` depends on nothing but its arguments: the same seed, number and past give the same candidate whenever and
wherever it is asked. The past is told to Optuna in a study in memory that lives for one proposal.

In that study every choice is an integer or a category (`trainer.distributions`). Where a sampler needs points of one
space (a Gaussian process, NSGA-II), a choice that a past trial did not meet counts with its default, so that trials
which differ only in the insides of options not taken are one point; Optuna would drop every conditional choice.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from trainer.candidate import Candidate
from trainer.distributions import asks, completed, observed, usual
from trainer.evolution import POPULATION, EvolutionSampler
from trainer.space import Choice, Chooser, Params, choices, fill, fill_params

Sampler = Literal["random", "greedy", "bayesian", "grid", "evolution", "unguided_evolution", "nsga2"]

REDRAWS = 20
"""Random draws after which a proposal is accepted though it repeats an earlier one."""
GROUP_DRAWS = 5
"""Draws that the greedy sampler spends on one group of choices before it turns to another."""
STARTUP = 3
"""Finished trials that the Bayesian sampler starts from: the defaults and two random ones (AutoRec, section 3)."""
MODELLED = 24
"""Choices that the Gaussian process sees. A hundred conditional ones would make a proposal take seconds and, with tens
of trials, tell it nothing."""


@dataclass(frozen=True)
class Past:
    """An earlier proposal, and its result as far as it may be known.

    `value` (less is better) is None for a failed trial and for one whose result is not known (`finished` is False).
    `flops` are the multiply-adds of the model that it found.
    """

    number: int
    params: Params
    hash: str
    finished: bool = False
    value: float | None = None
    flops: int = 0


@dataclass(frozen=True)
class Proposal:
    """A candidate to try. With `duplicate_of`, an earlier trial is the same experiment: record it only."""

    number: int
    params: Params
    candidate: Candidate
    duplicate_of: int | None = None


def propose(space: Any, sampler: Sampler, seed: int, number: int, past: Sequence[Past]) -> Proposal:
    """Trial `number` of a search through `space` (of candidates); trial 0 is the all-defaults candidate.

    `past` holds all earlier proposals without duplicates, in number order; numbers below 0 are trials of another
    search, which may be proposed again. Raises ArchitectureError if the space holds a candidate that is none.
    """
    known = {trial.hash: trial.number for trial in past if trial.number >= 0}
    proposal = None
    with quiet():
        for choose in _draws(space, sampler, seed, number, past):
            proposal = _fill(space, number, choose)
            if proposal.candidate.hash not in known:
                return proposal
    assert proposal is not None
    return Proposal(number, proposal.params, proposal.candidate, known[proposal.candidate.hash])


def _fill(space: Any, number: int, choose: Chooser) -> Proposal:
    params: Params = {}

    def ask(choice: Choice) -> int:
        params[choice.name] = choose(choice)
        return params[choice.name]

    data = fill(space, ask)
    return Proposal(number, params, Candidate.from_dict(data))


def _draws(space: Any, sampler: Sampler, seed: int, number: int, past: Sequence[Past]) -> Iterator[Chooser]:
    """Choosers to try in turn, the first of them being what the sampler wants most."""
    rng_seed = _seed(seed, number)
    known = [trial for trial in past if trial.finished and trial.value is not None]
    if number == 0 or sampler == "grid":
        yield _digits(number)
        return
    if sampler == "bayesian" and len(known) >= STARTUP:
        yield _model_draw(space, rng_seed, past, known)
    # A model that asks for a candidate again sees no better place than the best: look around that.
    if sampler == "greedy" or (sampler == "bayesian" and len(known) >= STARTUP):
        yield from _greedy_draws(space, rng_seed, known)
    if sampler in ("evolution", "unguided_evolution"):
        yield _evolved(space, rng_seed, past, guided=sampler == "evolution")
    if sampler == "nsga2":
        yield from _crossed(space, rng_seed, past)
    random = optuna.create_study(sampler=RandomSampler(rng_seed))
    for _ in range(REDRAWS):
        yield _asker(random)


def _digits(number: int) -> Chooser:
    """The `number`-th filling, as a number is written in digits, the first choice's the fastest; 0 is all defaults."""
    left = number

    def choose(choice: Choice) -> int:
        nonlocal left
        left, digit = divmod(left, len(choice.labels))
        return (choice.default + digit) % len(choice.labels)

    return choose


def _greedy_draws(space: Any, rng_seed: int, known: Sequence[Past]) -> Iterator[Chooser]:
    if not known:
        return
    found = choices(space)
    best = min(known, key=lambda trial: (trial.value or 0.0, trial.number))
    sampler = GreedySampler({name: choice.group for name, choice in found.items()}, usual(found), rng_seed)
    study = optuna.create_study(sampler=sampler)
    study.add_trial(observed(best.params, found, [best.value or 0.0]))
    for _ in range(GROUP_DRAWS * len({found[name].group for name in best.params})):
        yield _asker(study)


def _model_draw(space: Any, rng_seed: int, past: Sequence[Past], known: Sequence[Past]) -> Chooser:
    """The draw of a Gaussian process over the choices that most trials met; the others are drawn at random.

    Failed trials count as bad as the worst one, so that the model keeps away from them, and trials still running as one
    standard deviation worse than the mean, so that parallel trials differ.
    """
    modelled = _most_met(choices(space), past)
    values = [trial.value for trial in known if trial.value is not None]
    unknown = {True: max(values), False: float(np.mean(values) + np.std(values))}
    sampler = GPSampler(seed=rng_seed, n_startup_trials=1, warn_independent_sampling=False)
    study = optuna.create_study(sampler=sampler)
    for trial in past:
        value = unknown[trial.finished] if trial.value is None else trial.value
        study.add_trial(observed(completed(trial.params, modelled), modelled, [value]))
    asked = study.ask()
    with _one_thread():
        # Read for its effect: here Optuna fits the model and draws.
        asked.relative_params  # noqa: B018
    return asks(asked)


def _evolved(space: Any, rng_seed: int, past: Sequence[Past], *, guided: bool) -> Chooser:
    """The draw of AutoCTR's evolution; it depends on the results of finished trials, and repeats none of all."""
    found = choices(space)
    hashes = {_key(trial.params): trial.hash for trial in past}

    def identity(params: Params) -> str:
        key = _key(params)
        if key not in hashes:
            hashes[key] = Candidate.from_dict(fill_params(space, params)).hash
        return hashes[key]

    sampler = EvolutionSampler(space, rng_seed, guided=guided, identity=identity)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    for trial in past:
        values = [] if trial.value is None else [trial.value, trial.flops]
        state = TrialState.COMPLETE if values else TrialState.FAIL if trial.finished else TrialState.RUNNING
        study.add_trial(observed(trial.params, found, values, state))
    return _asker(study)


def _key(params: Params) -> str:
    return json.dumps(params, sort_keys=True)


def _crossed(space: Any, rng_seed: int, past: Sequence[Past]) -> Iterator[Chooser]:
    """Children of NSGA-II on value and multiply-adds, told the finished trials.

    It keeps its generations in the trials that it was asked for. So the past is asked for again, each trial's choices
    given: what finished in the order of the numbers, a population after the other, are its generations.
    """
    found = choices(space)
    sampler = NSGAIISampler(population_size=POPULATION, seed=rng_seed)
    study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])
    for trial in past:
        if trial.finished:
            study.enqueue_trial(completed(trial.params, found))
            asked = study.ask()
            # Read for its effect: here the sampler writes down the generation.
            asked.relative_params  # noqa: B018
            for choice in found.values():
                asks(asked)(choice)
            if trial.value is None:
                study.tell(asked, state=TrialState.FAIL)
            else:
                study.tell(asked, [trial.value, trial.flops])
    for _ in range(REDRAWS):
        yield _asker(study)


def _most_met(found: Mapping[str, Choice], past: Sequence[Past]) -> dict[str, Choice]:
    """The `MODELLED` choices that the most trials met, at least two each, in the order of the space."""
    trials = {name: sum(name in trial.params for trial in past) for name in found}
    ranked = sorted((name for name in found if trials[name] > 1), key=lambda name: -trials[name])
    kept = set(ranked[:MODELLED])
    return {name: choice for name, choice in found.items() if name in kept}


def _asker(study: optuna.Study) -> Chooser:
    """One draw: a new trial of `study`, whose sampler answers for each choice."""
    return asks(study.ask())


def _seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4])


class GreedySampler(BaseSampler):
    """Changes one group of choices of the best trial at a time (the group-wise oracle that AutoRec intended).

    Each trial picks one group with a probability proportional to the square of its number of choices in the best
    trial, draws that group anew and uniformly, and keeps the best trial's values elsewhere; choices that the best trial
    did not meet take their default. Every `GROUP_DRAWS` trials of one sampler it turns to the next group.

    A sampler of integers and categories for any single-objective Optuna study; with no finished trial it is random.
    """

    def __init__(self, groups: Mapping[str, str], defaults: Mapping[str, Any], seed: int) -> None:
        self._groups = groups
        self._defaults = defaults
        self._random = RandomSampler(seed)
        self._rng = np.random.default_rng(seed)
        self._order: list[str] = []
        self._draws = 0
        self._best: dict[str, Any] = {}

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete:
            return
        if self._draws % (GROUP_DRAWS * max(1, len(self._order))) == 0:
            sign = 1 if study.direction == StudyDirection.MINIMIZE else -1
            self._best = min(complete, key=lambda done: (sign * done.values[0], done.number)).params
            self._order = self._shuffled()
        self._group = self._order[self._draws // GROUP_DRAWS % len(self._order)]
        self._draws += 1

    def _shuffled(self) -> list[str]:
        sizes: dict[str, int] = {}
        for name in self._best:
            sizes[self._groups[name]] = sizes.get(self._groups[name], 0) + 1
        weights = np.array([size**2 for size in sizes.values()], dtype=np.float64)
        return [
            str(name) for name in self._rng.choice(list(sizes), len(sizes), replace=False, p=weights / weights.sum())
        ]

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        if not self._best or self._groups[param_name] == self._group:
            return self._random.sample_independent(study, trial, param_name, param_distribution)
        return self._best.get(param_name, self._defaults[param_name])


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna's own log at errors only: it announces every study, and that a small space is nearly searched through."""
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(level)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in one order, so that the model does not depend on the number of cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
