import json
from typing import Any

import pytest

from tests.trainer.small_spaces import mlp_and_cross, schema, two_dims
from trainer import zoo
from trainer.architecture import ArchitectureError
from trainer.candidate import Candidate, candidate_space
from trainer.errors import UserError
from trainer.settings import TrainSettings, TuneSettings
from trainer.space import choices, fill_params
from trainer.summary import summary

NOT_TUNED = TuneSettings(**{name: [] for name in TuneSettings.model_fields})


def candidate(params: dict[str, int] | None = None) -> Candidate:
    return Candidate.from_dict(fill_params(mlp_and_cross(), params or {}))


def test_a_candidate_survives_json() -> None:
    once = candidate()
    again = Candidate.from_dict(json.loads(json.dumps(once.to_dict())))
    assert again == once
    assert again.hash == once.hash


def test_the_hash_sees_the_model_and_its_training_and_no_names() -> None:
    data = fill_params(mlp_and_cross(), {})
    renamed = json.loads(json.dumps(data).replace('"m"', '"deep"'))
    assert Candidate.from_dict(renamed).hash == candidate().hash
    assert candidate({"training.table_l2": 1}).hash != candidate().hash
    assert candidate({"cross.layers": 1}).hash != candidate().hash


def test_what_the_head_does_not_reach_is_left_out() -> None:
    data = fill_params(mlp_and_cross(), {})
    data["head"] = data["architecture"]["head"]["in"] = ["x"]
    del data["head"]
    assert [node.id for node in Candidate.from_dict(data).architecture.nodes] == ["x"]


def test_a_wrong_shape_is_refused_before_anything_is_built() -> None:
    data = fill_params(two_dims(), {})
    data["architecture"]["views"]["e"]["encoders"]["c0"]["dim"] = 5
    with pytest.raises(ArchitectureError, match="node 'q'"):
        Candidate.from_dict(data)


def test_tuned_settings_are_choices_that_start_from_the_set_value() -> None:
    tune = NOT_TUNED.model_copy(update={"table_l2": [1e-5, 1e-3], "batch_size": [256, 1024]})
    space = candidate_space(zoo.template("fm", schema()), TrainSettings(table_l2=1e-3), tune)
    training = {name: choice for name, choice in choices(space).items() if name.startswith("training.")}
    assert {name: choice.labels for name, choice in training.items()} == {
        "training.table_l2": (1e-5, 1e-3),
        "training.batch_size": (256, 1024),
    }
    assert training["training.table_l2"].default == 1
    assert {choice.group for choice in training.values()} == {"training"}


def test_settings_that_are_not_tuned_stay() -> None:
    settings = TrainSettings(learning_rate=0.02, epochs=3)
    space = candidate_space(zoo.template("fm", schema()), settings, NOT_TUNED)
    assert Candidate.from_dict(fill_params(space, {})).training == settings


@pytest.mark.parametrize(
    ("settings", "tune", "message"),
    [
        ({"table_l2": 0.5}, {"table_l2": [1e-5]}, r"train.table_l2: 0.5 is not among search.tune.table_l2 \[1e-05\]"),
        ({}, {"learning_rate": [1e-3, -1.0]}, r"search.tune.learning_rate: -1.0: Input should be greater than 0"),
        ({}, {"batch_size": [0]}, r"search.tune.batch_size: 0: Input should be greater"),
    ],
)
def test_tuning_that_cannot_work_is_refused(settings: Any, tune: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        candidate_space({}, TrainSettings(**settings), NOT_TUNED.model_copy(update=tune))


def test_the_summary_shows_each_block_with_its_values() -> None:
    lines = summary(candidate({"mlp.layers": 1}), trial=7, metric="logloss", value=0.4321).splitlines()
    assert lines[0] == "Trial 7: logloss 0.43210"
    assert lines[1:5] == [
        "|-mapper e: table dim=4 of c0, c1",
        "|-interactor m: mlp units=[8, 8] activation=relu norm=none dropout=0.0 shortcut=none <- e",
        "|-interactor x: cross layers=1 kind=vector <- e",
        "|-optimizer linear bias=True <- m, x",
    ]
    assert "table_l2=1e-05" in lines[5]


def test_the_summary_rounds_learned_boundaries() -> None:
    with_buckets = {
        "e": {"encoders": {"x": {"kind": "buckets", "dim": 2, "rule": "tree", "boundaries": [-1.23456789, 2.0]}}}
    }
    description = {
        "version": 1,
        "task": "ctr",
        "fields": {"x": {"kind": "numeric"}},
        "views": with_buckets,
        "nodes": [],
        "head": {"mode": "linear", "in": ["e"]},
    }
    made = Candidate.from_dict({**candidate({}).to_dict(), "architecture": description})
    assert "boundaries=[-1.235, 2] of x" in summary(made, trial=0, metric="logloss", value=0.5)
