"""The drawing and the plots: whole pictures, no box on another, and everything in words as well."""

import re
from xml.etree import ElementTree

import pytest

from components import drawing, plots
from trainer import space, zoo
from trainer.architecture import Architecture
from trainer.schema import DatasetSchema, Field

SVG = "{http://www.w3.org/2000/svg}"


def schema(categorical: int, numeric: int) -> DatasetSchema:
    fields = [Field(name=f"C{i}", kind="categorical", cardinality=100 + i) for i in range(categorical)]
    fields += [Field(name=f"I{i}", kind="numeric", missing=i == 0) for i in range(numeric)]
    fields.append(Field(name="history", kind="sequence", of="C1", max_len=20, cardinality=101))
    return DatasetSchema(
        task="ctr",
        label="y",
        fields=tuple(fields),
        group="C0",
        rows={"train": 1, "valid": 1, "test": 1},
        label_mean=0.3,
        label_min=0,
        label_max=1,
    )


def architecture(name: str, categorical: int = 4, numeric: int = 2) -> Architecture:
    description = zoo.template(name, schema(categorical, numeric))
    return Architecture.from_dict(space.fill(description, lambda choice: choice.default)).live()


CTR = [name for name in zoo.names() if name not in ("mf", "mlp", "neumf")]


def boxes(picture: str) -> list[tuple[float, float, float, float]]:
    tree = ElementTree.fromstring(picture.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))
    return [
        (float(r.get("x", 0)), float(r.get("y", 0)), float(r.get("width", 0)), float(r.get("height", 0)))
        for r in tree.iter(f"{SVG}rect")
    ]


@pytest.mark.parametrize("name", CTR)
def test_boxes_lie_within_the_picture_and_not_on_each_other(name: str) -> None:
    model = architecture(name)
    picture = drawing.draw(model)
    found = re.search(r'viewBox="0 0 (\d+) (\d+)"', picture)
    assert found is not None
    width, height = map(float, found.groups())
    drawn = boxes(picture)
    used = {field for view in model.views.values() for field in view.encoders}
    assert len(drawn) == len(used) + len(model.views) + len(model.nodes) + 1
    for i, (x, y, w, h) in enumerate(drawn):
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
        for x2, y2, w2, h2 in drawn[i + 1 :]:
            assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y


def test_many_fields_encoded_alike_share_a_box() -> None:
    picture = drawing.draw(architecture("deepfm", 26, 13))
    assert "26 categorical fields" in picture
    assert "13 numeric fields" in picture


@pytest.mark.parametrize("name", CTR)
def test_the_words_name_every_view_node_and_field(name: str) -> None:
    model = architecture(name)
    words = drawing.describe(model)
    for part in (
        *model.views,
        *(node.id for node in model.nodes),
        *(f for v in model.views.values() for f in v.encoders),
    ):
        assert part in words


def test_the_parts_of_a_behavior_model_show_their_settings() -> None:
    data = architecture("nextitnet").to_dict()
    data["nodes"] += [
        {"id": "crosses", "op": "hadamard", "in": ["e", "state"], "sets": [["C1", "state"]]},
        {"id": "deep", "op": "mlp", "in": ["crosses"], "units": [3, 2], "activation": ["relu", "silu"]},
    ]
    data["head"]["in"] += ["deep"]
    picture = drawing.draw(Architecture.from_dict(data))
    for line in ("sequence block · wider", "conv, dilation 2", "1 set", "3 – 2, relu – silu"):
        assert f">{line}</text>" in picture


def test_axis_maps_its_ends_and_gives_round_ticks() -> None:
    axis = plots.Axis(0.4471, 0.4519, 300, 20)
    assert axis.at(0.4471) == 300
    assert axis.at(0.4519) == 20
    assert axis.ticks() == pytest.approx([0.448, 0.449, 0.45, 0.451])
    log = plots.Axis(900, 2_000_000, 0, 100, log=True)
    assert log.at((900 * 2_000_000) ** 0.5) == pytest.approx(50)
    assert {1000, 10_000, 100_000, 1_000_000} <= set(log.ticks())


def test_history_survives_failed_diverged_and_single_trials() -> None:
    trials = [plots.Trial("a", 0, 0.5, ""), plots.Trial("a", 1, None, ""), plots.Trial("a", 2, 1e9, "")]
    trials += [plots.Trial("b", 0, float("nan"), "")]
    assert plots.history(trials, "log loss").count("<circle") == 2 + 2  # two points, two studies in the legend
    assert plots.history([plots.Trial("a", 0, None, "")], "log loss") == ""
    ElementTree.fromstring(plots.history(trials[:1], "log loss").partition("<ul")[0])


def test_quality_plot_holds_every_model_and_describes_the_front() -> None:
    models = [plots.Model(f"m{i}", "zoo", 10**i, 0.5 - 0.01 * i, 0.001 * i, i % 2 == 1) for i in range(1, 6)]
    picture = plots.quality(models, "log loss", lower_is_better=True)
    assert all(f">{model.name}</text>" in picture for model in models)
    assert "m1 (0.4900, 10 parameters), m3" in picture
    ElementTree.fromstring(picture)
