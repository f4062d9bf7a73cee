import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from scipy.stats import wilcoxon

from tests.trainer.small_spaces import Planted, mlp_and_cross, two_dims
from trainer.propose import GROUP_DRAWS, GreedySampler, Past, Sampler, propose
from trainer.space import choices, defaults

SAMPLERS: list[Sampler] = ["random", "greedy", "bayesian", "grid", "evolution", "unguided_evolution", "nsga2"]


def search(space: Any, sampler: Sampler, seed: int, trials: int, objective: Planted) -> list[Past]:
    past: list[Past] = []
    for number in range(trials):
        proposal = propose(space, sampler, seed, number, past)
        value = objective.value(proposal.params)
        past.append(Past(number, proposal.params, proposal.candidate.hash, finished=True, value=value))
    return past


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_first_trial_is_all_defaults(sampler: Sampler) -> None:
    space = mlp_and_cross()
    assert propose(space, sampler, 7, 0, []).params == defaults(space)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_proposal_depends_on_its_arguments_alone(sampler: Sampler) -> None:
    space = mlp_and_cross()
    past = search(space, sampler, 3, 6, Planted(space, 0))
    once = propose(space, sampler, 3, 6, past)
    propose(space, sampler, 4, 6, past)
    again = propose(json.loads(json.dumps(space)), sampler, 3, 6, past)
    assert (again.params, again.candidate) == (once.params, once.candidate)


@pytest.mark.parametrize(("sampler", "number"), [("greedy", 6), ("bayesian", 6), ("evolution", 22), ("nsga2", 22)])
def test_a_proposal_is_the_same_in_another_process(sampler: Sampler, number: int) -> None:
    space = mlp_and_cross()
    past = search(space, sampler, 3, number, Planted(space, 0))
    facts = json.dumps([space, [vars(trial) for trial in past]])
    script = (
        "import json, sys; from trainer.propose import Past, propose\n"
        "space, past = json.load(sys.stdin)\n"
        f"print(json.dumps(propose(space, '{sampler}', 3, {number}, [Past(**trial) for trial in past]).params))"
    )
    root = Path(__file__).parents[2]
    told = subprocess.run([sys.executable, "-c", script], input=facts, capture_output=True, text=True, cwd=root)
    assert json.loads(told.stdout) == propose(space, sampler, 3, number, past).params, told.stderr


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_values_not_yet_known_do_not_matter(sampler: Sampler) -> None:
    """A running trial counts by its parameters only."""
    space = mlp_and_cross()
    past = search(space, sampler, 3, 7, Planted(space, 0))
    running = replace(past[6], finished=False, value=None)
    proposal = propose(space, sampler, 3, 7, [*past[:6], running])
    assert proposal.duplicate_of is None
    assert proposal.candidate.hash not in {trial.hash for trial in past}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_candidate_is_proposed_twice_while_others_are_left(sampler: Sampler) -> None:
    space = two_dims()
    past = search(space, sampler, 5, 4, Planted(space, 1))
    assert len({trial.hash for trial in past}) == 4
    repeated = propose(space, sampler, 5, 4, past)
    assert repeated.duplicate_of is not None
    assert past[repeated.duplicate_of].hash == repeated.candidate.hash


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_failed_trials_are_endured(sampler: Sampler) -> None:
    space = mlp_and_cross()
    past = search(space, sampler, 3, 5, Planted(space, 0))
    failed = [replace(trial, value=None) for trial in past]
    assert propose(space, sampler, 3, 5, failed).duplicate_of is None
    assert propose(space, sampler, 3, 5, [*failed[:1], *past[1:]]).duplicate_of is None


def test_greedy_changes_one_group_of_the_best_trial() -> None:
    space = mlp_and_cross()
    groups = {name: choice.group for name, choice in choices(space).items()}
    usual = {name: choice.default for name, choice in choices(space).items()}
    past = search(space, "greedy", 11, 40, Planted(space, 2))
    for number in range(1, 40):
        best = min(past[:number], key=lambda trial: (trial.value, trial.number)).params
        here, there = past[number].params, best
        changed = {groups[name] for name in here | there if here.get(name, usual[name]) != there.get(name, usual[name])}
        assert len(changed) == 1


def test_greedy_prefers_large_groups_by_the_square_of_their_size() -> None:
    """Three choices against one: the larger group comes first in 9 of 10 samplers."""
    names = ["big.a", "big.b", "big.c", "small.a"]
    groups = {name: name.partition(".")[0] for name in names}
    first = []
    for seed in range(400):
        study = optuna.create_study(sampler=GreedySampler(groups, dict.fromkeys(names, 0), seed))
        study.add_trial(_tried(dict.fromkeys(names, 0), 1.0))
        trial = study.ask()
        values = {name: trial.suggest_int(name, 0, 999) for name in names}
        first.append("small" if values["small.a"] else "big")
    assert 0.85 < first.count("big") / 400 < 0.95


def test_greedy_turns_to_another_group_when_one_is_exhausted() -> None:
    names = ["a.x", "b.x"]
    study = optuna.create_study(sampler=GreedySampler({"a.x": "a", "b.x": "b"}, dict.fromkeys(names, 0), 2))
    study.add_trial(_tried(dict.fromkeys(names, 0), 1.0))
    changed = []
    for _ in range(2 * GROUP_DRAWS):
        trial = study.ask()
        values = {name: trial.suggest_int(name, 0, 999) for name in names}
        changed.append(next(name for name in names if values[name]))
    assert len(set(changed[:GROUP_DRAWS])) == len(set(changed[GROUP_DRAWS:])) == 1
    assert changed[0] != changed[-1]


def test_greedy_serves_any_optuna_study() -> None:
    names = [f"g{n}.x" for n in range(4)]
    sampler = GreedySampler({name: name for name in names}, dict.fromkeys(names, 0), 0)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    study.optimize(lambda trial: sum(trial.suggest_int(name, 0, 9) for name in names), n_trials=60)
    assert study.best_value >= 30


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "seeds", "trials"), [("greedy", 12, 50), ("bayesian", 8, 16)])
def test_a_planted_objective_is_solved_in_fewer_trials_than_at_random(
    sampler: Sampler, seeds: int, trials: int
) -> None:
    """Paired over objectives: with as many trials, the best value found is lower (one-sided Wilcoxon test)."""
    space = mlp_and_cross()
    gaps = []
    for seed in range(seeds):
        objective = Planted(space, seed)
        found, at_random = (
            min(trial.value or 0.0 for trial in search(space, name, seed, trials, objective))
            for name in (sampler, "random")
        )
        gaps.append(found - at_random)
    assert wilcoxon(gaps, alternative="less").pvalue < 0.05, gaps


def _tried(params: dict[str, int], value: float) -> optuna.trial.FrozenTrial:
    distributions = dict.fromkeys(params, optuna.distributions.IntDistribution(0, 999))
    return optuna.trial.create_trial(params=params, distributions=distributions, value=value)


def test_a_grid_tries_every_combination_once() -> None:
    space = two_dims()
    every = math.prod(len(choice.labels) for choice in choices(space).values())
    proposals = [propose(space, "grid", 7, number, []) for number in range(every)]
    assert proposals[0].params == defaults(space)
    assert len({json.dumps(proposal.params, sort_keys=True) for proposal in proposals}) == every
    again = propose(space, "grid", 8, every, [])
    assert again.params == proposals[0].params
