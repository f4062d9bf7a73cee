"""One search as one Optuna study: what was tried, what came of it, and what to try next.

Any number of workers may train trials at a time, yet the search is a fixed sequence: trial n is proposed from the
results of the trials up to n - lag and of no other, and so waits for these. The workers may be processes of one
machine (one of them has the study, in a journal file) or of many (each has the study, in a database). A worker killed
at any moment loses nothing but the trainings in flight, which are handed out again under their numbers. Optuna reads
the study at any time.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal

import numpy as np
from optuna.distributions import CategoricalDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from trainer.architecture import Architecture
from trainer.candidate import Candidate
from trainer.errors import UserError
from trainer.propose import Past, Proposal, Sampler, propose, quiet
from trainer.settings import Budget, FidelitySettings
from trainer.shapes import count
from trainer.space import Label, Params, choices, digest, fill_params
from trainer.storage import BEAT, StudyStorage

WAIT: Final = "wait"
FRUITLESS = 10
"""Trials without a training, one after the other, by which a search on a budget knows that nothing new is left."""
State = Literal["running", "complete", "pruned", "failed", "duplicate"]


@dataclass(frozen=True)
class Trial:
    """A trial to train now. `thresholds[e]`: prune when the best of epochs 0..e is worse (greater); inf = never."""

    number: int
    candidate: Candidate
    params: dict[str, Label]
    thresholds: tuple[float, ...] = ()
    parent: int | None = None
    """The trial whose tables it begins with: of those that it is proposed from the best that ran to its end."""


@dataclass(frozen=True)
class TrialRecord:
    """What is known of one trial. `value` is the validation value, less is better; a duplicate has its original's.

    `found` is the model that `value` belongs to: what the candidate's supernet led to, else the candidate itself.
    `curve[e]` is the best value of epochs 0..e; `samples` counts training rows seen; `attrs` come from `finish`.
    """

    number: int
    state: State
    value: float | None
    candidate: Candidate
    found: Candidate
    params: dict[str, Label]
    curve: tuple[float, ...] = ()
    samples: int = 0
    seconds: float = 0.0
    duplicate_of: int | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Study:
    """The search for the best of `trials` candidates in `space` (see `trainer.candidate.candidate_space`), or of as
    many as `budget` allows, whatever ends it first.

    `lag` is at least the number of trials trained at a time; twice as many keep workers from waiting for each other.
    `key` is the study's name in the storage, `name` if not set. `fidelity`: of trials that are less than a training.
    `inherit`: trials have parents. `earlier`: trials of another study, which samplers are told before its own.
    Raises UserError if the storage already holds a study of this name with another space, sampler, seed, ...
    """

    def __init__(
        self,
        storage: StudyStorage,
        name: str,
        space: Any,
        *,
        key: str | None = None,
        sampler: Sampler,
        trials: int | None,
        budget: Budget | None = None,
        lag: int,
        seed: int,
        prune: bool = True,
        fidelity: FidelitySettings | None = None,
        inherit: bool = False,
        earlier: Sequence[Past] = (),
    ) -> None:
        self.name, self._key, self._store = name, key or name, storage
        self._space, self._sampler, self._lag, self._seed = space, sampler, lag, seed
        self._trials, self._budget = math.inf if trials is None else trials, budget
        self._prune, self.fidelity, self.inherit, self.earlier = prune, fidelity, inherit, earlier
        self._choices = choices(space)
        self._storage = storage.optuna
        with storage.lock(self._key):
            facts = {"space": digest(space), "sampler": sampler, "seed": seed}
            # `sample` is not of this study.
            lowered = fidelity.model_dump(exclude={"sample"}) if fidelity else None
            told = [(past.params, past.value) for past in earlier]
            self._id = self._open(facts | {"fidelity": lowered, "inherit": inherit, "warm_start": digest(told)})
        self._candidates: dict[int, Candidate] = {}
        self._derived: dict[int, Candidate] = {}
        self._flops: dict[str, int] = {}
        self._ahead: Proposal | None = None
        """The last proposal made, perhaps of a trial that is still to be recorded."""
        self._mine: set[int] = set()
        """Trials in our hands."""

    def next(self) -> Trial | Literal["wait"] | None:
        """The trial to train next; WAIT if it depends on one that is still running; None if there is none left.

        Trials that a dead worker left running come first, under their number and with their parameters. Duplicates are
        recorded on the way. As long as trials are in other hands the answer is WAIT, for these may yet be left.
        """

        def look() -> Trial | Literal["wait"] | None:
            with self._store.lock(self._key):
                return self._next()

        return self._store.patiently(look)

    def _next(self) -> Trial | Literal["wait"] | None:
        others = [trial for trial in self._all() if not trial.state.is_finished() and trial.number not in self._mine]
        for trial in others:
            if self._store.stale(trial):
                return self._taken(trial.number)
        while (number := len(self._all())) < self._trials:
            if self._waits(number):
                return WAIT
            if self._spent(number):
                break
            proposal = self._propose(number)
            self._record(proposal)
            if proposal.duplicate_of is None:
                return self._taken(number)
        return WAIT if others else None

    def look_ahead(self) -> None:
        """Propose the next trial before a worker is free for it, if all is known that it depends on.

        The trial is the same, whenever it is proposed. Not where others write to the study: they may be first.
        """
        if self._store.shared:
            return
        number = len(self._all())
        if number < self._trials and not self._waits(number) and not self._spent(number):
            self._propose(number)

    def _waits(self, number: int) -> bool:
        return any(not trial.state.is_finished() for trial in self._settled(number))

    def _settled(self, number: int) -> list[FrozenTrial]:
        """The trials that must be over before trial `number`, and of which it may know the results.

        With a budget the first is among them, for what a trial costs.
        """
        least = 1 if self._budget and number else 0
        return self._all()[: max(least, number - self._lag + 1)]

    def _spent(self, number: int) -> bool:
        """Whether trial `number` would exceed the budget, if it and those in flight cost what one has cost so far.

        Duplicates and failures may cost nothing: a space without anything new is left after FRUITLESS of them.
        """
        if self._budget is None or number == 0:
            return False
        settled = self._settled(number)
        if len(settled) >= FRUITLESS and not any(_ran(trial) for trial in settled[-FRUITLESS:]):
            return True
        spent = self._share(settled)
        trained = sum("duplicate_of" not in trial.user_attrs for trial in settled)
        in_flight = sum("duplicate_of" not in trial.user_attrs for trial in self._all()[len(settled) : number])
        return spent + spent / max(trained, 1) * (in_flight + 1) > 1

    def _share(self, trials: Sequence[FrozenTrial]) -> float:
        assert self._budget is not None
        facts = [trial.user_attrs for trial in trials]
        samples, seconds = (sum(fact.get(name, 0) for fact in facts) for name in ("samples", "seconds"))
        return self._budget.share(samples, seconds)

    def expected(self) -> int:
        """About how many trials there will be."""
        trials = self._all()
        known = len(trials)
        if self._budget is None:
            return max(known, int(self._trials))  # more, where trials were lowered
        if self._spent(known):
            return known
        ended = [trial for trial in trials if trial.state.is_finished()]
        spent = self._share(ended)
        return int(min(self._trials, max(known, len(ended) / spent if spent else 1)))

    def _propose(self, number: int) -> Proposal:
        if self._ahead is None or self._ahead.number != number:
            self._ahead = propose(self._space, self._sampler, self._seed, number, self._past(number))
        return self._ahead

    def beat(self) -> None:
        """Say that the trials in our hands are at work."""
        for number in sorted(self._mine):
            self._store.patiently(partial(self._beat, number))

    @property
    def shared(self) -> bool:
        """Other processes may train trials of this study too."""
        return self._store.shared

    def report(self, number: int, epoch: int, value: float) -> None:
        """The best value of trial `number` after `epoch` (from 0), for those who watch the study."""

        def write() -> None:
            self._storage.set_trial_intermediate_value(self._trial_id(number), epoch, value)

        self._store.patiently(write)

    def finish(
        self,
        number: int,
        value: float | None,
        *,
        curve: Sequence[float] = (),
        samples: int = 0,
        seconds: float = 0.0,
        pruned: bool = False,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """The end of trial `number`; `value` None: it failed. `attrs` (JSON) go into the record and into the study;
        `attrs["found"]["architecture"]` is what the trial's supernet led to.
        """
        facts = {**(attrs or {}), "samples": samples, "seconds": seconds}
        state = TrialState.FAIL if value is None else TrialState.PRUNED if pruned else TrialState.COMPLETE

        def write() -> None:
            with self._store.lock(self._key):
                if self._all()[number].state.is_finished():
                    return  # by whoever took it for left behind: both results are the same
                trial_id = self._trial_id(number)
                for epoch, best in enumerate(curve):
                    self._storage.set_trial_intermediate_value(trial_id, epoch, best)
                for key, fact in facts.items():
                    self._storage.set_trial_user_attr(trial_id, key, fact)
                # Last, because a trial is finished by this line and by no other.
                self._storage.set_trial_state_values(trial_id, state, None if value is None else [value])

        self._store.patiently(write)
        self._mine.discard(number)

    def _taken(self, number: int) -> Trial:
        self._mine.add(number)
        self._beat(number)
        return self._trial(number)

    def _beat(self, number: int) -> None:
        if self._store.shared:
            self._storage.set_trial_user_attr(self._trial_id(number), BEAT, self._store.now())

    def record(self, number: int) -> TrialRecord:
        """What is known of trial `number`."""
        return self._to_record(self._all()[number])

    def records(self) -> list[TrialRecord]:
        """All trials so far, in number order."""
        return [self._to_record(trial) for trial in self._all()]

    def best(self, k: int = 1) -> list[TrialRecord]:
        """The `k` best trials that ran to their end, best first; all found different models."""
        complete = [record for record in self.records() if record.state == "complete"]
        ranked = sorted(complete, key=lambda record: (record.value, record.number))
        models: dict[str, TrialRecord] = {}
        for record in ranked:
            models.setdefault(record.found.hash, record)
        return list(models.values())[:k]

    def _open(self, facts: Mapping[str, Any]) -> int:
        """The study's id in the storage; a new study gets `facts`, an old one must have the same."""
        names = [study.study_name for study in self._storage.get_all_studies()]
        if self._key not in names:
            with quiet():
                self._storage.create_new_study([StudyDirection.MINIMIZE], self._key)
        study_id = self._storage.get_study_id_from_name(self._key)
        known = self._storage.get_study_user_attrs(study_id)
        for key, fact in facts.items():
            if known.setdefault(key, fact) != fact:
                raise UserError(
                    f"{self._store.place}: study '{self._key}' was begun with another {key}: delete it to begin anew"
                )
            self._storage.set_study_user_attr(study_id, key, fact)
        return study_id

    def _all(self) -> list[FrozenTrial]:
        return self._storage.get_all_trials(self._id, deepcopy=False)

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    def _past(self, number: int) -> list[Past]:
        """What trial `number` is proposed from: the results that it may know, and what was proposed after these."""
        settled = len(self._settled(number))
        own = [
            Past(
                number=trial.number,
                params=trial.user_attrs["choices"],
                hash=trial.user_attrs["hash"],
                finished=trial.number < settled,
                value=trial.value if trial.number < settled else None,
                flops=self._multiply_adds(trial),
            )
            for trial in self._all()[:number]
            if "duplicate_of" not in trial.user_attrs
        ]
        return [*self.earlier, *own]

    def _multiply_adds(self, trial: FrozenTrial) -> int:
        model = self._found(trial)
        if model.hash not in self._flops:
            self._flops[model.hash] = count(model.architecture).flops
        return self._flops[model.hash]

    def _record(self, proposal: Proposal) -> None:
        """Write the trial by one line of a journal or one transaction: after a kill it is there whole or not at all."""
        shown = self._shown(proposal.params)
        facts: dict[str, Any] = {"choices": proposal.params, "hash": proposal.candidate.hash}
        if proposal.duplicate_of is not None:
            facts["duplicate_of"] = proposal.duplicate_of
        elif self._store.shared:
            facts[BEAT] = self._store.now()
        trial = create_trial(
            state=TrialState.RUNNING if proposal.duplicate_of is None else TrialState.PRUNED,
            params=shown,
            distributions={name: CategoricalDistribution(self._choices[name].labels) for name in shown},
            user_attrs=facts,
        )
        self._storage.create_new_trial(self._id, trial)
        self._candidates[proposal.number] = proposal.candidate

    def _shown(self, params: Params) -> dict[str, Label]:
        return {name: self._choices[name].labels[index] for name, index in params.items()}

    def _candidate(self, trial: FrozenTrial) -> Candidate:
        if trial.number not in self._candidates:
            filled = fill_params(self._space, trial.user_attrs["choices"])
            self._candidates[trial.number] = Candidate.from_dict(filled)
        return self._candidates[trial.number]

    def _found(self, trial: FrozenTrial) -> Candidate:
        """The model that the value of a trial (no duplicate) belongs to."""
        candidate, result = self._candidate(trial), trial.user_attrs.get("found")
        if result is None:
            return candidate
        if trial.number not in self._derived:
            self._derived[trial.number] = candidate.derived(Architecture.from_dict(result["architecture"]))
        return self._derived[trial.number]

    def _trial(self, number: int) -> Trial:
        trial = self._all()[number]
        curves = [_curve(earlier) for earlier in self._settled(number) if _ran(earlier)]
        thresholds = prune_thresholds(curves) if self._prune else ()
        parent = self._parent(number) if self.inherit else None
        return Trial(number, self._candidate(trial), dict(trial.params), thresholds, parent)

    def _parent(self, number: int) -> int | None:
        known = [trial for trial in self._settled(number) if _complete(trial)]
        return min(known, key=lambda trial: (trial.value or 0.0, trial.number)).number if known else None

    def possible_parents(self) -> set[int]:
        """The trials whose tables may still be wanted: by one in flight, or by a later one."""
        trials = self._all()
        # The file of a trial in flight may be there already, before its end is written down.
        kept = {trial.number for trial in trials if not trial.state.is_finished()}
        first = min(kept, default=len(trials))
        parent = self._parent(first)
        best = math.inf if parent is None else trials[parent].value or 0.0
        kept |= set() if parent is None else {parent}
        for trial in filter(_complete, trials[len(self._settled(first)) :]):
            if (trial.value or 0.0) < best:
                kept.add(trial.number)
                best = trial.value or 0.0
        return kept

    def _to_record(self, trial: FrozenTrial) -> TrialRecord:
        duplicate_of = trial.user_attrs.get("duplicate_of")
        facts = dict(trial.user_attrs)
        for key in ("choices", "hash", "duplicate_of", BEAT):
            facts.pop(key, None)
        return TrialRecord(
            number=trial.number,
            state=_STATES[trial.state] if duplicate_of is None else "duplicate",
            value=trial.value if duplicate_of is None else self._all()[duplicate_of].value,
            candidate=self._candidate(trial),
            found=self._found(trial if duplicate_of is None else self._all()[duplicate_of]),
            params=dict(trial.params),
            curve=tuple(_curve(trial)),
            samples=facts.pop("samples", 0),
            seconds=facts.pop("seconds", 0.0),
            duplicate_of=duplicate_of,
            attrs=facts,
        )


_STATES: dict[TrialState, State] = {
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def prune_thresholds(
    curves: Sequence[Sequence[float]], *, percentile: float = 75.0, least: int = 4, warm_up: int = 3
) -> tuple[float, ...]:
    """For each epoch what the best-so-far of a new trial must not exceed, from the best-so-far of earlier ones.

    A trial that ended early counts on with its last value. Nothing is pruned before `least` earlier trials, nor in the
    first `warm_up` epochs (threshold inf): strong regularisers learn slowly and end well, and half of the trials at the
    second epoch lost the best matrix factorisations of MovieLens-1M.
    """
    if len(curves) < least:
        return ()
    epochs = max(map(len, curves))
    held = np.array([[*curve, *[curve[-1]] * (epochs - len(curve))] for curve in curves])
    limits = np.percentile(held, percentile, axis=0)
    limits[:warm_up] = math.inf
    return tuple(limits.tolist())


def _ran(trial: FrozenTrial) -> bool:
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) and bool(trial.intermediate_values)


def _complete(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE


def _curve(trial: FrozenTrial) -> list[float]:
    return [trial.intermediate_values[epoch] for epoch in sorted(trial.intermediate_values)]
