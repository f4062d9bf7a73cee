"""What a search method shows of itself: every figure whole, readable without colours, and in its place on the page."""

import copy
import json
import math
import re
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np
import pytest

from components import plots, report
from tests.components import evaluated
from trainer.architecture import Architecture
from trainer.shapes import count

Facts = dict[str, Any]

GATES: Facts = {
    "kind": "heatmap",
    "title": "Gates",
    "note": "of the pairs",
    "rows": ["user", "item", "age"],
    "columns": ["user", "item", "age"],
    "values": [[None, 0.0, 0.001], [None, None, -2.0], [None, None, 1.0]],
    "row_name": "field",
    "column_name": "partner",
}
CURVES: Facts = {
    "kind": "curves",
    "title": "Gates over training",
    "note": "one line per pair",
    "x_name": "step",
    "y_name": "gate",
    "x": [0, 100, 200],
    "series": [{"name": "user × item", "values": [0.5, 0.2, 0.0]}, {"name": "user × age", "values": [0.5, None, 0.75]}],
}
SCATTER: Facts = {
    "kind": "scatter",
    "title": "Ranks",
    "note": "of a sample",
    "x_name": "shared",
    "y_name": "alone",
    "points": [{"name": "12 parameters", "x": 0.5, "y": 0.4}, {"name": "40 parameters", "x": 0.6, "y": 0.45}],
}
TABLE: Facts = {
    "kind": "table",
    "title": "Dims",
    "note": "per field",
    "columns": ["field", "dim", "cardinality", "AUC"],
    "rows": [["user", 8, 12345, 0.61], ["item", 2, 30, None]],
}


STAGES: Facts = {
    "kind": "stages",
    "title": "Searches",
    "note": "one after the other",
    "stages": [
        {
            "name": "Histories",
            "rising": False,
            "columns": [
                {
                    "name": "block 1: layer",
                    "options": [
                        {"name": "gru", "score": 0.5, "taken": True},
                        {"name": "conv", "score": 0.75, "taken": False},
                        {"name": "mean", "score": 0.625, "taken": False},
                        {"name": "skip", "score": None, "taken": False},
                    ],
                }
            ],
        },
        {
            "name": "Products",
            "rising": True,
            "columns": [
                {"name": f"order {n}", "options": [{"name": f"a{n} × <b>", "score": n / 10, "taken": n == 1}]}
                for n in range(12)
            ],
        },
    ],
}


@pytest.fixture(scope="module")
def evaluated_facts(tmp_path_factory: pytest.TempPathFactory) -> Facts:
    root = tmp_path_factory.mktemp("runs")
    output = evaluated.evaluation(root, evaluated.steps(root, names=("deepfm", "fm")))
    facts: Facts = json.loads((output / "report.json").read_text())
    return facts


@pytest.fixture
def facts(evaluated_facts: Facts) -> Facts:
    """A report whose search shows one figure of each kind; fm is the backbone, autorec-1 (a DeepFM) the found model."""
    facts = copy.deepcopy(evaluated_facts)
    backbone = next(entry["architecture"] for entry in facts["leaderboard"] if entry["name"] == "fm")
    facts["searches"][0] |= {
        "found": "autorec-1",
        "backbone": backbone,
        "figures": [GATES, CURVES, SCATTER, TABLE, STAGES],
    }
    facts["champion"] = "autorec-1"
    return facts


def sections(facts: Facts) -> dict[str, Element]:
    """The page's sections by heading, in order; no markup may be open, unbalanced or made of names."""
    found = re.findall(r"<section>.*?</section>", report.page(facts), re.DOTALL)
    parsed = [ElementTree.fromstring(section) for section in found]
    return {words(section.find("h2")): section for section in parsed}


def words(element: Element | None) -> str:
    assert element is not None
    return "".join(element.itertext())


def figure(section: Element, title: str) -> Element:
    return next(one for one in section.iter("figure") if words(one.find("figcaption/h3")) == title)


def table(element: Element) -> list[list[str]]:
    return [[words(cell) for cell in row] for row in element.iter("tr")]


def picture(svg: str) -> Element:
    return ElementTree.fromstring(svg.partition("<ul")[0])


def cells(svg: Element) -> dict[str, tuple[str, float, str]]:
    """Look, opacity and printed text of each cell, by its tooltip."""
    drawn = {}
    for group in svg.iter("g"):
        rect = group.find("rect")
        assert rect is not None
        text = group.find("text")
        look = (rect.get("class", ""), float(rect.get("fill-opacity", 0)), "" if text is None else words(text))
        drawn[words(group.find("title"))] = look
    return drawn


# ---- the page -------------------------------------------------------------------------------------------------------


def test_a_search_without_figures_has_no_section(evaluated_facts: Facts) -> None:
    assert "What autorec saw" not in sections(evaluated_facts)


def test_figures_stand_after_the_plots_in_their_order(facts: Facts) -> None:
    headings = list(sections(facts))
    place = headings.index("What autorec saw")
    assert headings[place - 1 : place + 2] == [
        "Quality against size",
        "What autorec saw",
        "The champion’s architecture: autorec-1",
    ]
    captions = [words(caption) for caption in sections(facts)["What autorec saw"].iter("figcaption")]
    assert captions == [
        "Gatesof the pairs",
        "Gates over trainingone line per pair",
        "Ranksof a sample",
        "Dimsper field",
        "Searchesone after the other",
    ]


def test_tables_hold_every_value(facts: Facts) -> None:
    seen = sections(facts)["What autorec saw"]
    assert table(figure(seen, "Gates")) == [
        ["field", "user", "item", "age"],
        ["user", "–", "0", "0.001"],
        ["item", "–", "–", "-2"],
        ["age", "–", "–", "1"],
    ]
    assert table(figure(seen, "Gates over training")) == [
        ["curve", "first", "last", "least", "greatest"],
        ["user × item", "0.5", "0", "0", "0.5"],
        ["user × age", "0.5", "0.75", "0.5", "0.75"],
    ]
    assert table(figure(seen, "Dims")) == [
        ["field", "dim", "cardinality", "AUC"],
        ["user", "8", "12,345", "0.61"],
        ["item", "2", "30", "–"],
    ]


def test_tables_are_sorted_by_the_numbers_behind_their_text(facts: Facts) -> None:
    (body,) = figure(sections(facts)["What autorec saw"], "Dims").iter("tbody")
    keys = [[cell.get("data-value") for cell in row] for row in body]
    assert keys == [["user", "8", "12345", "0.61"], ["item", "2", "30", "Infinity"]]


def test_the_champion_stands_next_to_its_backbone(facts: Facts) -> None:
    facts["leaderboard"][0]["figures"] = facts["leaderboard"][1]["figures"] = [{**TABLE, "title": "Of the model"}]
    seen, champion = (sections(facts)[name] for name in ("What autorec saw", "The champion’s architecture: autorec-1"))
    backbone, derived = (figure(champion, title) for title in ("The backbone", "What was derived"))
    assert "FM · pairs" in words(backbone)
    assert "MLP · deep" not in words(backbone)
    assert "MLP · deep" in words(derived)
    figure(champion, "Of the model")
    assert "Of the model" not in words(seen)
    assert "MLP" not in words(seen)


def test_sizes_before_and_after_are_counted(facts: Facts) -> None:
    found = next(entry for entry in facts["leaderboard"] if entry["name"] == "autorec-1")
    before, after = (
        count(Architecture.from_dict(a)) for a in (facts["searches"][0]["backbone"], found["architecture"])
    )
    share = 100 * (after.total - before.total) / before.total
    sentence = f"{before.total:,} parameters before, {after.total:,} after ({share:+.1f}\u00a0%)"
    assert sentence in words(sections(facts)["The champion’s architecture: autorec-1"])


def test_a_found_model_that_lost_is_drawn_with_the_figures(facts: Facts) -> None:
    facts["champion"] = "fm"
    for entry in facts["leaderboard"]:
        entry["figures"] = [{**TABLE, "title": f"Of {entry['name']}"}]
    seen, champion = (sections(facts)[name] for name in ("What autorec saw", "The champion’s architecture: fm"))
    assert "MLP · deep" in words(figure(seen, "What was derived"))
    assert "MLP · deep" not in words(figure(seen, "The backbone"))
    figure(seen, "Of autorec-1")
    figure(champion, "Of fm")
    assert len([svg for svg in champion.iter("svg") if svg.get("class") == "drawing"]) == 1


@pytest.mark.parametrize("backbone", [{}, {"backbone": None}])
def test_without_a_backbone_the_champion_is_drawn_alone(facts: Facts, backbone: Facts) -> None:
    del facts["searches"][0]["backbone"]
    facts["searches"][0] |= backbone
    champion = sections(facts)["The champion’s architecture: autorec-1"]
    assert len([svg for svg in champion.iter("svg") if svg.get("class") == "drawing"]) == 1
    assert "backbone" not in words(champion)


def test_names_in_figures_cannot_break_the_page(facts: Facts) -> None:
    evil = "\"'><script>alert(1)</script>&"

    def spoiled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: value[key] if key == "kind" else spoiled(value[key]) for key in value}
        if isinstance(value, list):
            return [spoiled(one) for one in value]
        return evil if isinstance(value, str) else value

    facts["searches"][0]["figures"] = spoiled(facts["searches"][0]["figures"])
    assert "<script>alert" not in report.page(facts)
    seen = sections(facts)["What autorec saw"]  # whose parser refuses what names have broken
    for one in seen.iter("figure"):
        assert words(one).count(evil) >= 6
    assert evil in "".join(cell.get("data-value", "") for cell in seen.iter("th"))


# ---- heatmap --------------------------------------------------------------------------------------------------------


def test_cells_tell_closed_from_small_and_from_none() -> None:
    drawn = cells(picture(plots.heatmap(GATES["rows"], GATES["columns"], GATES["values"])))
    assert drawn == {
        "user × item: 0": ("cell zero", 0.0, "0"),
        "user × age: 0.001": ("cell above", plots.FAINTEST, "0.00"),
        "item × age: -2": ("cell below", 1.0, "-2.00"),
        "age × age: 1": ("cell above", pytest.approx(plots.FAINTEST + (1 - plots.FAINTEST) / 2), "1.00"),
    }


def test_cells_without_room_for_numbers_mark_exact_zeros() -> None:
    values: list[list[float | None]] = [[0.0, 1e-9, None] + [0.5] * 10]
    drawn = list(cells(picture(plots.heatmap(["row"], [f"c{i}" for i in range(13)], values))).values())
    assert drawn[:2] == [("cell zero", 0.0, "·"), ("cell above", plots.FAINTEST, "")]
    assert len(drawn) == 12


def test_numbers_that_do_not_fit_are_left_out() -> None:
    assert [text for *_, text in cells(picture(plots.heatmap(["r"], ["a", "b"], [[-1234.5, 1.0]]))).values()] == [
        "",
        "",
    ]
    assert [text for *_, text in cells(picture(plots.heatmap(["r"], ["a", "b"], [[4096, 1]]))).values()] == [
        "4096",
        "1",
    ]


@pytest.mark.parametrize(
    ("values", "ends", "looks"),
    [
        ([-2.0, 1.0], ["-2", "0", "1"], {"cell above", "cell below"}),
        ([0.25, 0.5], ["0", "0.5"], {"cell above"}),
        ([-0.5, -0.25], ["-0.5", "0"], {"cell below"}),
        ([-1.0, 0.1], ["-1", "0.1"], {"cell above", "cell below"}),
    ],
)
def test_scale_runs_from_least_to_greatest_and_is_two_sided_where_values_are(
    values: list[float], ends: list[str], looks: set[str]
) -> None:
    drawn = picture(plots.heatmap(["r"], ["a", "b"], [values]))
    assert [words(text) for text in drawn.iter("text") if text.get("y") == "28"] == ends
    assert {rect.get("class") for rect in drawn.iter("rect")} == looks
    assert "exactly 0" not in words(drawn).replace("exactly 0.", "")


def test_equal_and_missing_values_do_not_break_a_heatmap() -> None:
    assert cells(picture(plots.heatmap(["r"], ["a"], [[0.0]]))) == {"r × a: 0": ("cell zero", 0.0, "0")}
    assert cells(picture(plots.heatmap(["r"], ["a", "b"], [[None, math.nan]]))) == {}
    assert plots.heatmap([], [], []) == ""


@pytest.mark.parametrize("shape", [(1, 1), (12, 12), (39, 39), (40, 60), (200, 3), (3, 400)])
def test_cells_and_labels_lie_within_the_picture_and_not_on_each_other(shape: tuple[int, int]) -> None:
    rows, columns = ([f"a_rather_long_name_of_a_field_{i}" for i in range(size)] for size in shape)
    drawn = picture(plots.heatmap(rows, columns, np.linspace(-1, 1, shape[0] * shape[1]).reshape(shape).tolist()))
    width, height = map(float, drawn.get("viewBox", "").split()[2:])
    rects = [[float(rect.get(key, 0)) for key in ("x", "y", "width", "height")] for rect in drawn.findall("g/rect")]
    assert len(rects) == shape[0] * shape[1]
    assert max(width, height) < 1200
    assert all(x > 0 and y > 0 and x + w <= width + 0.1 and y + h <= height for x, y, w, h in rects)
    for places in ([x for x, *_ in rects], [y for _, y, *_ in rects]):
        assert all(b - a > 2 for a, b in pairwise(sorted(set(places))))
    labels = [text for text in drawn.iter("text") if (text.text or "").startswith("a_rather")]
    lines = [float(text.get("y", 0)) for text in labels if text.get("transform") is None]
    slanted = [float(text.get("x", 0)) for text in labels if text.get("transform") is not None]
    assert len(lines) > min(shape[0], 40) / 2
    assert len(slanted) > min(shape[1], 60) / 2
    assert all(b - a >= plots.LINE - 0.2 for a, b in pairwise(lines))
    assert all((b - a) * math.sin(math.radians(plots.SLANT)) >= 12 for a, b in pairwise(slanted))


# ---- curves ---------------------------------------------------------------------------------------------------------


def curves_of(series: list[plots.Series], x: list[float]) -> tuple[list[Element], str]:
    """The drawn curves, and the legend."""
    drawn = plots.curves(x, series, "step", "gate")
    return [path for path in picture(drawn).iter("path") if "curve" in path.get("class", "")], drawn.partition("<ul")[2]


def test_a_few_curves_have_each_its_colour_and_place_in_the_legend() -> None:
    paths, legend = curves_of([plots.Series(f"s{i}", [0.0, float(i)]) for i in range(8)], [0, 1])
    assert {path.get("class") for path in paths} == {f"curve c{i}" for i in range(8)}
    assert re.findall(r"</svg>(s\d)</li>", legend) == [f"s{i}" for i in range(8)]


def test_many_curves_are_told_apart_by_whether_they_end_at_zero() -> None:
    rng = np.random.default_rng(0)
    series = [plots.Series(f"s{i}", [*rng.random(49), 0.0 if i % 3 else 0.01]) for i in range(300)]
    paths, legend = curves_of(series, list(range(50)))
    hints = [words(path.find("title")) for path in paths]
    assert sorted(hints) == sorted(f"s{i}: ends at {0 if i % 3 else 0.01}" for i in range(300))
    assert [path.get("class") for path in paths] == ["curve c1 thin"] * 200 + ["curve c0 thin"] * 100
    assert re.findall(r"</svg>(.*?)</li>", legend) == ["does not end at 0 (100)", "ends at exactly 0 (200)"]


def test_a_curve_stops_where_it_has_no_value() -> None:
    series = [plots.Series("a", [1.0, None, 2.0, 3.0]), plots.Series("b", [2.0, 1.0, math.nan, None])]
    paths, _ = curves_of([*series, plots.Series("none", [None] * 4)], [0, 1, 2, 3])
    shapes = {words(path.find("title")): re.sub(r"[\d. -]+", "", path.get("d", "")) for path in paths}
    assert shapes == {"a: ends at 3": "MhMhL", "b: ends at 1": "MhL"}


def test_one_step_and_constant_curves_have_finite_places() -> None:
    for x, values in (([5.0], [0.0]), ([0.0, 1.0], [0.0, 0.0])):
        (path,), _ = curves_of([plots.Series("a", values)], x)
        assert all(map(math.isfinite, map(float, re.findall(r"-?[\d.]+", path.get("d", "")))))
        assert "nan" not in path.get("d", "")
    assert plots.curves([], [], "step", "gate") == ""


# ---- outlines, points, and what trials led to -----------------------------------------------------------------------


def test_marked_cells_are_outlined_where_they_are() -> None:
    drawn = picture(plots.heatmap(["a", "b"], ["x", "y"], [[0.1, 0.2], [0.3, 0.4]], marked=[[0, 1], [1, 0]]))
    outlines = [mark for mark in drawn.iter() if mark.get("class") == "outline"]
    boxes = {
        (round(float(mark.get("x", 0)) - 1, 1), round(float(mark.get("y", 0)) - 1, 1)): mark.get("class")
        for mark in drawn.iter()
        if mark.get("class") in ("outline",)
    }
    places = [
        (round(float(mark.get("x", 0)), 1), round(float(mark.get("y", 0)), 1))
        for mark in drawn.iter()
        if (mark.get("class") or "").startswith("cell above")
    ]
    cells_drawn = places[-4:]  # behind those of the scale
    assert len(outlines) == 2
    assert set(boxes) == {cells_drawn[1], cells_drawn[2]}


def test_points_lie_where_they_were_measured_and_say_what_they_are() -> None:
    points = [plots.Point("low", 0.1, 1.0), plots.Point("high", 0.3, 2.0), plots.Point("lost", math.nan, 1.0)]
    dots = [mark for mark in picture(plots.scatter(points, "shared", "alone")).iter() if mark.get("class") == "dot c0"]
    assert len(dots) == 2
    (low_x, low_y), (high_x, high_y) = [(float(dot.get("cx", 0)), float(dot.get("cy", 0))) for dot in dots]
    assert low_x < high_x
    assert low_y > high_y  # pixels count downwards
    assert "low: shared 0.1, alone 1" in "".join(dots[0].itertext())
    assert plots.scatter([], "shared", "alone") == ""


def trial(
    number: int, value: float | None, size: int, state: str = "complete", study: str = "autorec", flops: int = 7
) -> Facts:
    facts: Facts = {"study": study, "number": number, "value": value, "state": state, "tables": size, "flops": flops}
    return {**facts, "lifts": 0, "dense": 0, "seconds": 1.0, "samples": 1, "duplicate_of": None, "params": {}}


def test_trials_of_several_sizes_show_the_trade_off(facts: Facts) -> None:
    facts["trials"] = [trial(0, 0.5, 100), trial(1, 0.6, 50), trial(2, 0.55, 200), trial(3, 0.1, 10, study="fm")]
    section = sections(facts)["Search history"]
    title = next(word for head in section.iter("h3") if (word := "".join(head.itertext())).startswith("Quality"))
    assert title == "Quality against size of what the trials of autorec led to"
    names = [mark.text for mark in section.iter("text") if mark.get("class") == "mark"]
    assert names == ["0", "1", "2"]
    described = [word for element in section.iter("title") if "Pareto" in (word := element.text or "")]
    assert "1 (0.6000, 50 parameters), 0 (0.5000, 100 parameters)" in described[0]


def test_trials_of_several_multiply_adds_show_that_trade_off_too(facts: Facts) -> None:
    facts["trials"] = [trial(0, 0.5, 100, flops=40), trial(1, 0.6, 100, flops=30), trial(2, 0.7, 100, flops=60)]
    section = sections(facts)["Search history"]
    assert ["".join(head.itertext()) for head in section.iter("h3")] == [
        "Quality against multiply-adds of what the trials of autorec led to"
    ]
    described = [word for element in section.iter("title") if "Pareto" in (word := element.text or "")]
    assert described[0].endswith("1 (0.6000, 30 multiply-adds), 0 (0.5000, 40 multiply-adds)")


def test_of_many_trials_those_on_the_front_are_named(facts: Facts) -> None:
    facts["trials"] = [trial(number, 0.5 + number / 100, 100 + number) for number in range(20)]
    section = sections(facts)["Search history"]
    assert [mark.text for mark in section.iter("text") if mark.get("class") == "mark"] == ["0"]


def test_trials_of_one_size_have_no_trade_off(facts: Facts) -> None:
    facts["trials"] = [trial(0, 0.5, 100), trial(1, 0.6, 100), trial(2, 0.7, 50, state="pruned")]
    assert not list(sections(facts)["Search history"].iter("h3"))


# ---- stages ---------------------------------------------------------------------------------------------------------


def test_the_best_option_is_the_darkest_and_the_taken_one_is_outlined(facts: Facts) -> None:
    drawn = figure(sections(facts)["What autorec saw"], "Searches")
    shown = cells(drawn)
    opacity = {name: look[1] for name, look in shown.items() if name.startswith("block 1")}
    assert shown["block 1: layer: skip"][0] == "cell zero"
    best, middle, worst = (
        opacity[f"block 1: layer: {name}"] for name in ("gru 0.5000 (taken)", "mean 0.6250", "conv 0.7500")
    )
    assert best > middle > worst
    assert middle == pytest.approx((best + worst) / 2, abs=0.01)
    outlined = [words(group.find("title")) for group in drawn.iter("g") if len(group.findall("rect")) == 2]
    assert outlined == ["block 1: layer: gru 0.5000 (taken)", "order 1: a1 × <b> 0.1000 (taken)"]


def test_decisions_lie_side_by_side_and_cover_nothing(facts: Facts) -> None:
    drawn = figure(sections(facts)["What autorec saw"], "Searches")
    svg = next(drawn.iter("svg"))
    width, height = map(float, svg.get("viewBox", "").split()[2:])
    boxes = [
        tuple(float(mark.get(key, 0)) for key in ("x", "y", "width", "height"))
        for mark in svg.iter("rect")
        if mark.get("class") != "outline"
    ]
    assert len(boxes) == 4 + 12
    for number, (x, y, w, h) in enumerate(boxes):
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
        assert all(
            x + w <= left or left + wide <= x or y + h <= top or top + high <= y
            for left, top, wide, high in boxes[:number]
        )
    assert len({y for _, y, _, _ in boxes[4:]}) > 1  # twelve do not fit side by side


def test_every_option_is_in_the_table(facts: Facts) -> None:
    rows = table(figure(sections(facts)["What autorec saw"], "Searches"))
    assert len(rows) == 1 + 4 + 12
    assert rows[1][:3] == ["Histories", "block 1: layer", "gru"]
    assert rows[1][4] == "taken"
