"""AutoCTR's evolution and the ranker that guides it."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import combinations_with_replacement
from random import Random
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from tests.trainer.mixed import mixed_schema
from tests.trainer.small_spaces import Planted, mlp_and_cross
from trainer import evolution
from trainer.candidate import Candidate, candidate_space
from trainer.distributions import asks
from trainer.evolution import POPULATION, EvolutionSampler, mutant, parent_chances, survivors
from trainer.lambdarank import Encoding, scores
from trainer.methods.autoctr import space
from trainer.methods.settings import AutoCTRSettings
from trainer.propose import Past, propose, quiet
from trainer.settings import TrainSettings, TuneSettings
from trainer.space import Params, active, choice, choices, fill_params

AUTOCTR = candidate_space(space(mixed_schema(), AutoCTRSettings()), TrainSettings(), TuneSettings())


def drawn(template: Any, seed: int) -> Params:
    random = Random(seed)
    return active(template, lambda choice: random.randrange(len(choice.labels)))


# ---- parents (the sheet's test 1), survivors (2) --------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(0, 15))
def test_1_chances_sum_to_one_and_fall(population: int, tournament: int) -> None:
    chances = parent_chances(population, tournament)
    assert math.isclose(sum(chances), 1)
    assert chances == sorted(chances, reverse=True)


@pytest.mark.parametrize(("population", "tournament"), [(5, 3), (8, 2), (1, 4)])
def test_1_chances_are_those_of_the_best_of_a_multiset(population: int, tournament: int) -> None:
    """Every multiset of k + 1 counted once."""
    best = Counter(map(min, combinations_with_replacement(range(population), tournament + 1)))
    expected = [best[rank] / best.total() for rank in range(population)]
    np.testing.assert_allclose(parent_chances(population, tournament), expected)


def test_1_chances_are_the_published_ones() -> None:
    assert [round(chance, 3) for chance in parent_chances(20, 10)[:2]] == [0.367, 0.240]


def test_2_survivors_of_a_history_of_six() -> None:
    """P = 2: of the newest four, by hand: age (n - 1 - i) / 6, and ranks over four times a tenth."""
    losses, flops = [0.1, 0.2, 0.5, 0.3, 0.4, 0.6], [1, 1, 4, 3, 2, 1]
    # Keys of trials 2..5: 3/6 + .075 + .1, 2/6 + .025 + .075, 1/6 + .05 + .05, 0 + .1 + .025.
    assert survivors(losses, flops, 2) == [4, 5]


def test_2_at_a_hundred_the_span_of_losses_is_worth_ten_places() -> None:
    """Newest 40 of 100: 21 of rank 20 after 19 of rank 1, so that 0.0475 are held against 0.01 for each place."""
    assert survivors([0.1] * 79 + [0.9] * 21, [1] * 100, 20) == [78, 77, *range(99, 81, -1)]


def test_2_a_place_in_time_is_worth_the_less_the_longer_the_history() -> None:
    """At n = 1000 loss outweighs the distance from the newest within the window."""
    losses = [0.5] * 960 + [0.1] * 20 + [0.9] * 20
    assert survivors(losses, [1] * 1000, 20) == list(range(979, 959, -1))


def test_2_the_first_population_is_equally_old() -> None:
    losses, flops = [0.1, 0.9, 0.8, 0.7], [1, 1, 1, 1]
    assert survivors(losses, flops, 3) == [0, 3, 2]  # not 3, 2, 1
    assert survivors([0.9, 0.1, 0.5], flops[:3], 3) == [1, 2, 0]


def test_2_of_equals_in_loss_and_age_the_smaller_survives() -> None:
    assert survivors([0.5, 0.5, 0.5, 0.5], [9, 1, 9, 9], 3) == [3, 2, 1]  # 3 is young, 0 and 2 are as large


def test_2_a_failed_trial_is_the_worst() -> None:
    assert survivors([math.inf, 0.9, 0.8], [1, 1, 1], 2) == [2, 1]


# ---- mutants (5) ----------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([AUTOCTR, mlp_and_cross()]))
def test_5_a_mutant_differs_in_one_choice_that_its_parent_met(seed: int, template: Any) -> None:
    found, parent = choices(template), drawn(template, seed)
    child = mutant(template, found, parent, Random(seed))
    assert len([name for name in parent.keys() & child.keys() if parent[name] != child[name]]) == 1
    assert active(template, lambda choice: child[choice.name]) == child
    nodes = Candidate.from_dict(fill_params(template, child)).architecture.nodes
    above = {"dense", "sparse", "history1", "e", "c0", "c1"}
    for node in nodes:
        assert {ref.partition(".")[0] for ref in node.inputs} <= above
        above.add(node.id)


def test_5_every_group_is_as_likely_and_every_choice_in_it() -> None:
    template = {name: choice(name, [0, 1, 2]) for name in ("a.x", "b.x", "b.y")}
    parent, random = dict.fromkeys(template, 1), Random(1)
    drawn = [mutant(template, choices(template), parent, random) for _ in range(6000)]
    changed = Counter(next((name, child[name]) for name in parent if child[name] != 1) for child in drawn)
    assert {name for name, _ in changed} == set(template)
    for (name, option), times in changed.items():
        assert option in (0, 2)
        assert abs(times / 6000 - (1 / 4 if name == "a.x" else 1 / 8)) < 0.03


def test_5_mutants_are_new_and_all_different() -> None:
    past = searched_autoctr("evolution", POPULATION + 4)
    assert len({trial.hash for trial in past}) == len(past)


# ---- the ranker (8) -------------------------------------------------------------------------------------------------

FLAT = {f"c{number}": choice(f"g{number // 4}.c{number}", [0, 1, 2]) for number in range(16)}


def evolved(template: Any, seed: int, trials: int, value: Callable[[Params], float], *, guided: bool) -> list[float]:
    """What an Optuna study sees."""
    with quiet():
        sampler = EvolutionSampler(template, seed, guided=guided)
        study = optuna.create_study(sampler=sampler, directions=["minimize", "minimize"])

        def objective(trial: optuna.Trial) -> tuple[float, float]:
            return value(active(template, asks(trial))), 0.0

        study.optimize(objective, n_trials=trials)
    return [trial.values[0] for trial in study.trials]


@pytest.mark.slow
def test_8_a_guided_search_is_faster_than_an_unguided_one() -> None:
    """Paired over losses linear in the choices: one-sided Wilcoxon test of the best values."""
    gaps = []
    for seed in range(8):
        effects = np.random.default_rng(seed).normal(size=len(FLAT))

        def value(params: Params, effects: Any = effects) -> float:
            return float(sum(effect * params[name] for effect, name in zip(effects, choices(FLAT), strict=True)))

        guided, unguided = (min(evolved(FLAT, seed, 55, value, guided=guided)) for guided in (True, False))
        gaps.append(guided - unguided)
    assert wilcoxon(gaps, alternative="less").pvalue < 0.05, gaps


def test_8_the_ranker_orders_points_by_what_their_choices_did() -> None:
    truth, random = Planted(FLAT, 3), Random(1)
    points = [active(FLAT, lambda choice: random.randrange(3)) for _ in range(160)]
    losses = [truth.value(params) for params in points]
    expected = scores(Encoding(choices(FLAT)), points[:120], losses[:120], points[120:], 1)
    assert np.corrcoef(expected, losses[120:])[0, 1] < -0.5


def test_8_the_ranker_sees_ranks_of_losses_alone() -> None:
    """So a huge loss, or none, spoils nothing."""
    random = Random(1)
    points = [active(FLAT, lambda choice: random.randrange(3)) for _ in range(60)]
    losses = [Planted(FLAT, 3).value(params) for params in points]
    worst = max(range(50), key=lambda position: losses[position])

    def expected(huge: float) -> list[float]:
        seen = [huge if position == worst else loss for position, loss in enumerate(losses[:50])]
        return list(scores(Encoding(choices(FLAT)), points[:50], seen, points[50:], 1))

    assert expected(losses[worst]) == expected(3.5e4) == expected(math.inf)


def test_8_choices_that_were_not_met_count_with_their_default() -> None:
    template = mlp_and_cross()
    vector = Encoding(choices(template))
    shallow = {name: option.default for name, option in choices(template).items() if name != "mlp.units2"}
    assert vector(shallow) == vector(shallow | {"mlp.units2": choices(template)["mlp.units2"].default})
    assert vector(shallow) != vector(shallow | {"mlp.units2": 3})


# ---- as a sampler (11) ----------------------------------------------------------------------------------------------


@cache
def searched_autoctr(sampler: Any, trials: int) -> tuple[Past, ...]:
    return tuple(searched(sampler, trials))


def searched(sampler: Any, trials: int, template: Any = AUTOCTR, seed: int = 3) -> list[Past]:
    truth, past = Planted(template, 0), []
    for number in range(trials):
        made = propose(template, sampler, seed, number, past)
        value, flops = truth.value(made.params), sum(made.params.values())
        past.append(Past(number, made.params, made.candidate.hash, finished=True, value=value, flops=flops))
    return past


def test_11_it_begins_with_a_random_population() -> None:
    first, random = searched_autoctr("evolution", POPULATION + 4)[:POPULATION], searched("random", POPULATION)
    assert [trial.params for trial in first] == [trial.params for trial in random]


def test_11_then_each_trial_is_a_mutant_of_a_survivor() -> None:
    past = searched_autoctr("evolution", POPULATION + 4)
    for number in range(POPULATION, POPULATION + 4):
        before = past[:number]
        alive = survivors([trial.value or 0.0 for trial in before], [trial.flops for trial in before])
        parents = [before[position].params for position in alive]
        child = past[number].params
        apart = [sum(parent[name] != child[name] for name in parent.keys() & child.keys()) for parent in parents]
        assert 1 in apart


@pytest.mark.parametrize("sampler", ["evolution", "unguided_evolution", "nsga2"])
def test_11_a_proposal_depends_on_what_is_known_alone(sampler: Any) -> None:
    """A search that went on elsewhere is the same; results that are not known yet change nothing."""
    past = searched_autoctr(sampler, POPULATION + 4)
    running = [replace(past[-1], finished=False, value=None)]
    once = propose(AUTOCTR, sampler, 3, POPULATION + 4, [*past[:-1], *running])
    again = propose(AUTOCTR, sampler, 3, POPULATION + 4, [*past[:-1], *running])
    assert once == again
    assert once.duplicate_of is None


def test_nsga2_crosses_what_no_other_is_better_than_in_both_values() -> None:
    """Of two populations the parents are those that are good in one value or both."""
    template = mlp_and_cross()
    drawn = searched("random", 2 * POPULATION, template)
    first, second = drawn[:POPULATION], drawn[POPULATION:]
    good = [
        replace(trial, params=trial.params | {"mapper.dim": 0}, value=float(number), flops=-number)
        for number, trial in enumerate(first)
    ]
    bad = [replace(trial, params=trial.params | {"mapper.dim": 3}, value=50.0, flops=50) for trial in second]
    for past in ([*good, *bad], [*bad, *good]):
        ordered = [replace(trial, number=number) for number, trial in enumerate(past)]
        children = [propose(template, "nsga2", seed, 2 * POPULATION, ordered).params for seed in range(16)]
        assert sum(child["mapper.dim"] == 0 for child in children) > 12  # mutations are rare


def test_constants_are_the_published_ones() -> None:
    assert (evolution.POPULATION, evolution.TOURNAMENT, evolution.MUTANTS) == (20, 10, 100)
