"""Every hand-made model on datasets of every make."""

from typing import Any

import pytest
import torch

from tests.trainer.mixed import batch_of, built, flat_schema, gradients, mixed_schema, parameters
from trainer import zoo
from trainer.architecture import Architecture
from trainer.build import build
from trainer.errors import UserError
from trainer.fit import loss
from trainer.modules.values import multiplied_out
from trainer.schema import DatasetSchema, Task
from trainer.shapes import count
from trainer.space import choices, fill, fill_params

SEQUENCE_MODELS = ("din", "gru4rec", "nextitnet", "pooling", "sasrec", "youtube_dnn")
ABLE: list[tuple[str, Task]] = [(name, task) for name in zoo.names() for task in zoo.tasks(name)]


def defaults(name: str, schema: DatasetSchema) -> Architecture:
    return Architecture.from_dict(fill_params(zoo.template(name, schema), {}))


def test_the_zoo_is_complete() -> None:
    hand_made = "mf mlp neumf fm fwfm afm ffm ipnn wide_deep deepfm dlrm dcn dcnv2 autoint"
    assert set(zoo.names()) == {*hand_made.split(), *SEQUENCE_MODELS}
    assert all(zoo.description(name) for name in zoo.names())


def test_tasks() -> None:
    assert {name for name, task in ABLE if task == "next_item"} == {
        "gru4rec",
        "nextitnet",
        "pooling",
        "sasrec",
        "youtube_dnn",
    }
    assert all({"ctr", "rating"} <= set(zoo.tasks(name)) for name in zoo.names())


@pytest.mark.parametrize(("name", "task"), ABLE)
def test_builds_counts_and_trains(name: str, task: Task) -> None:
    schema = mixed_schema(task)
    description = defaults(name, schema)
    model = build(description, label_mean=schema.label_mean, table_init=0.1, seed=0)
    counts = count(description)
    assert parameters(model.table_parameters()) == counts.tables
    assert parameters(model.dense_parameters()) == counts.lifts + counts.dense
    batch = batch_of(schema, rows=4)
    output = model(batch)
    assert multiplied_out(output).shape == ((4, 30) if task == "next_item" else (4,))
    loss(task, output, batch).backward()
    found = gradients(model)
    for parameter_name, _ in model.named_parameters():
        assert parameter_name in found
        assert found[parameter_name].isfinite().all(), parameter_name


@pytest.mark.parametrize(("name", "task"), ABLE)
def test_every_setting_builds(name: str, task: Task) -> None:
    """Each option of each choice once, the others as they are by default."""
    schema = mixed_schema(task)
    space = zoo.template(name, schema)
    batch = batch_of(schema)
    for choice in choices(space).values():
        for index in range(len(choice.labels)):
            description = Architecture.from_dict(fill_params(space, {choice.name: index}))
            model = build(description, label_mean=0.3, table_init=0.1, seed=0)
            assert loss(task, model(batch), batch).isfinite()
            assert parameters(list(model.parameters())) == count(description).total


@pytest.mark.parametrize("name", [name for name in zoo.names() if name not in SEQUENCE_MODELS])
def test_fits_a_dataset_of_categories_only(name: str) -> None:
    schema = flat_schema()
    model = build(defaults(name, schema), label_mean=0.3, table_init=0.1, seed=0)
    assert model(batch_of(schema)).shape == (8,)


@pytest.mark.parametrize("name", zoo.names())
def test_a_template_is_filled_by_its_own_choices(name: str) -> None:
    found = choices(zoo.template(name, mixed_schema()))
    assert found, "nothing to tune"
    asked: list[str] = []

    def first(choice: Any) -> int:
        asked.append(choice.name)
        return 0

    fill(zoo.template(name, mixed_schema()), first)
    assert set(asked) <= set(found)


def test_deepfm_is_a_dim_16_two_layer_model_by_default() -> None:
    description = defaults("deepfm", flat_schema())
    assert {encoder.dim for encoder in description.views["e"].encoders.values()} == {16}  # type: ignore[union-attr]
    assert description.nodes[-1].units == (128, 128)  # type: ignore[union-attr]


def test_roles_follow_the_schema() -> None:
    schema = flat_schema()
    assert list(defaults("mf", schema).views["e"].encoders) == ["user", "item"]
    grouped = schema.model_copy(update={"group": "item"})
    product = defaults("mf", grouped).views["e"].encoders
    assert set(product) == {"item", "user"}


def test_the_user_is_not_the_one_whose_history_is_told() -> None:
    schema = mixed_schema()
    others = tuple(field for field in schema.fields if field.name != "item")
    first = schema.model_copy(update={"group": None, "fields": (schema.field("item"), *others)})
    assert list(defaults("youtube_dnn", first).views["context"].encoders) == ["user"]


def test_a_model_without_its_optional_field() -> None:
    schema = mixed_schema()
    alone = schema.model_copy(update={"fields": (schema.field("item"), schema.field("history"))})
    description = defaults("youtube_dnn", alone)
    assert "context" not in description.views
    assert built(description)(batch_of(alone)).shape == (8,)


def test_autoint_alone_has_no_layers() -> None:
    space = zoo.template("autoint", flat_schema())
    alone = Architecture.from_dict(fill_params(space, {"mlp.place": 0}))
    assert [node.op for node in alone.nodes] == ["mha"]
    assert [node.op for node in defaults("autoint", flat_schema()).nodes] == ["mha", "mlp"]


@pytest.mark.parametrize(
    ("name", "schema", "message"),
    [
        ("depfm", flat_schema(), "no model 'depfm'; did you mean 'deepfm'"),
        ("../x", flat_schema(), "no model"),
        ("din", flat_schema(), "needs a sequence field"),
        ("din", mixed_schema("next_item"), "din does not do task 'next_item'; it does ctr, rating"),
        ("mf", flat_schema().model_copy(update={"fields": flat_schema().fields[:1]}), "two categorical fields"),
        ("dlrm", flat_schema().model_copy(update={"fields": mixed_schema().fields[3:4]}), "needs a categorical field"),
    ],
)
def test_what_does_not_fit_is_refused(name: str, schema: DatasetSchema, message: str) -> None:
    with pytest.raises(UserError) as caught:
        zoo.template(name, schema)
    assert message in str(caught.value)


def test_a_zoo_model_can_fit_noise() -> None:
    """Enough steps on one batch bring the loss near zero: gradients reach what they must."""
    schema = mixed_schema()
    model = build(defaults("deepfm", schema), label_mean=0.5, table_init=0.1, seed=0)
    batch, optimizer = batch_of(schema, rows=32), torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(150):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch), batch.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1


@pytest.mark.parametrize(("name", "task"), ABLE)
def test_runs_in_bf16(name: str, task: Task) -> None:
    schema = mixed_schema(task)
    model = build(defaults(name, schema), label_mean=0.3, table_init=0.1, seed=0).eval()
    batch = batch_of(schema)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(batch)
    loss(task, low, batch).backward()
    torch.testing.assert_close(multiplied_out(low).float(), multiplied_out(model(batch)), rtol=0.05, atol=0.05)
