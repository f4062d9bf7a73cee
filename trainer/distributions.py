"""Choices as Optuna sees them: an integer where the labels are numbers in order, else a category; both are indices."""

from collections.abc import Mapping, Sequence

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from trainer.space import Choice, Chooser, Params


def distribution(choice: Choice) -> BaseDistribution:
    last = len(choice.labels) - 1
    return IntDistribution(0, last) if ordered(choice) else CategoricalDistribution(range(last + 1))


def ordered(choice: Choice) -> bool:
    """Whether the labels are numbers that rise or fall."""
    numbers = [label for label in choice.labels if isinstance(label, int | float) and not isinstance(label, bool)]
    return len(numbers) == len(choice.labels) and numbers in (sorted(numbers), sorted(numbers, reverse=True))


def observed(
    params: Mapping[str, int],
    found: Mapping[str, Choice],
    values: Sequence[float],
    state: TrialState = TrialState.COMPLETE,
) -> FrozenTrial:
    """A trial that met these choices, to tell a study about."""
    return create_trial(
        state=state,
        params=dict(params),
        distributions={name: distribution(found[name]) for name in params},
        values=list(values) or None,
    )


def asks(trial: optuna.Trial) -> Chooser:
    """Choices are made as the sampler of the trial's study wants."""

    def choose(choice: Choice) -> int:
        last = len(choice.labels) - 1
        if ordered(choice):
            return trial.suggest_int(choice.name, 0, last)
        return int(trial.suggest_categorical(choice.name, range(last + 1)))

    return choose


def usual(found: Mapping[str, Choice]) -> Params:
    """The default of every choice."""
    return {name: choice.default for name, choice in found.items()}


def completed(params: Mapping[str, int], found: Mapping[str, Choice]) -> Params:
    """Every choice: one that was not met counts with its default, so that all trials are points of one space."""
    return {name: params.get(name, choice.default) for name, choice in found.items()}
