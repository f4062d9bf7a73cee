"""NIS: closed forms of its grid, the supernet as the model of any choice, and planted data whose sizes are known."""

from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.trainer.opened import QUICK, SIZES, opened, searched, table
from tests.trainer.planted_ranks import CATEGORIES, HEAD, planted, training
from trainer.architecture import Architecture, RowsEncoder
from trainer.build import Model, build
from trainer.engines import sampled
from trainer.engines.sampled import Choice
from trainer.engines.supernet import Found
from trainer.errors import UserError
from trainer.fit import fit
from trainer.methods.base import Opening
from trainer.methods.nis import Grid, grid
from trainer.methods.settings import NISSettings
from trainer.methods.table import METHODS
from trainer.shapes import count, encoder_parameters
from trainer.space import fill_params

SMALL: dict[str, Any] = {"epochs": 2, "dim": 8, "columns": 4, "rows": [0.5, 1.0], "sample": 0}
PAPER = Grid("e", "app", (1_000_000, 3_000_000, 5_000_000, 7_000_000, 10_000_000), 4, 64)
"""10 million categories by 256: the example of the paper's figure 2."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ---- the grid -------------------------------------------------------------------------------------------------------


def size_of(one: Grid, option: list[int], multi: bool) -> int:
    return int(one.sizes(multi)[torch.tensor(option)].sum())


def test_costs_of_the_example_in_closed_form() -> None:
    single = PAPER.option([4, 4, 4, 0], multi=False)
    assert size_of(PAPER, single, multi=False) == 7_000_000 * 192 == 1_344_000_000
    assert PAPER.derived(PAPER.taken(torch.tensor(single), multi=False)) == [
        {"first": 0, "rows": 7_000_000, "dim": 192}
    ]
    assert size_of(PAPER, [5, 2, 2, 0], multi=True) == 3_000_000 * 192 + 7_000_000 * 64 == 1_024_000_000
    assert PAPER.derived([5, 2, 2, 0]) == [
        {"first": 0, "rows": 3_000_000, "dim": 192},
        {"first": 3_000_000, "rows": 7_000_000, "dim": 64},
    ]
    assert PAPER.full == 2_560_000_000


def test_there_are_as_many_choices_as_published() -> None:
    assert len(PAPER.sizes(multi=False)) == 5 * 4 + 1
    assert len(PAPER.sizes(multi=True)) ** PAPER.columns == (5 + 1) ** 4


@pytest.mark.parametrize("multi", [False, True])
def test_choices_and_lists_of_rows_and_widths_are_the_same_thing(multi: bool) -> None:
    """Vectors that differ in their order are one choice; each choice has its own list, of the size that it costs."""
    one = Grid("e", "x", (20, 50, 90), 3, 2)
    lists: dict[str, tuple[int, ...]] = {}
    for option in product(range(len(one.sizes(multi))), repeat=3 if multi else 1):
        taken = one.taken(torch.tensor(option), multi)
        assert taken == tuple(sorted(taken, reverse=True))
        assert one.taken(torch.tensor(one.option(taken, multi)), multi) == taken
        blocks = one.derived(taken)
        dims = [block["dim"] for block in blocks]
        assert dims == sorted(set(dims), reverse=True)
        assert sum(block["rows"] * block["dim"] for block in blocks) == size_of(one, list(option), multi)
        assert lists.setdefault(str(blocks), taken) == taken
        ends = np.cumsum([block["rows"] for block in blocks])
        assert [block["first"] for block in blocks] == [0, *ends][: len(blocks)]
    # Falling vectors of three numbers 0 to 3, or 3 x 3 rectangles and none.
    assert len(lists) == (20 if multi else 10)


def test_small_groups_are_joined_and_every_category_is_in_one() -> None:
    assert grid("e", "x", 1000, [0.1, 0.5, 1.0], 2, 8).ends == (100, 500, 1000)
    assert grid("e", "x", 100, [0.1, 0.5, 0.95, 1.0], 2, 8).ends == (50, 100)
    assert grid("e", "x", 7, [0.1, 0.5, 1.0], 2, 8).ends == (7,)
    for cardinality in range(1, 400):
        ends = grid("e", "x", cardinality, [0.1, 0.3, 0.6, 1.0], 4, 8).ends
        assert ends[-1] == cardinality
        assert list(ends) == sorted(set(ends))


# ---- the price and the budget ---------------------------------------------------------------------------------------


def choice_of(net: Any, **taken: list[int]) -> Choice:
    return {one.name: torch.tensor(one.option(taken[one.field], net.multi)) for one in net.grids}


EVERYTHING = {"user": [2, 2, 2, 2], "item": [1, 1, 1, 1], "flag": [1, 1, 1, 1]}


def test_nothing_is_paid_within_the_budget_and_in_proportion_above_it() -> None:
    full = 8 * sum(SIZES.values())
    for budget in (1.0, 0.5, 0.25):
        net = opened("nis", **SMALL, budget=[budget], price=0.3)
        assert net.full == full
        assert net.price(choice_of(net, **EVERYTHING)) == pytest.approx(0.3 * (1 / budget - 1))
        for rows in ([0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0], [2, 1, 1, 0]):
            choice = choice_of(net, user=rows, item=[1, 0, 0, 0], flag=[0, 0, 0, 0])
            size = 20 * 2 * sum(rows) + 12 * 2
            assert net.size(choice) == size
            assert net.price(choice) == pytest.approx(0.3 * max(size / (budget * full) - 1, 0))


@pytest.mark.parametrize("sizes", ["single", "multi"])
def test_what_is_derived_fits_the_budget_and_tighter_budgets_give_smaller_models(sizes: str) -> None:
    net = opened("nis", **SMALL, sizes=sizes, budget=[0.5])
    for one in net.grids:  # the more the likelier
        size = net.sizes[one.name]
        net.policy[one.name].data.copy_((size / size.max()).expand_as(net.policy[one.name]))
    found = []
    for budget in (1.0, 0.7, 0.5, 0.3, 0.1, 0.01):
        net.plan = {**net.plan, "budget": budget}
        found.append(net.size(net.best()))
        assert found[-1] <= budget * net.full
    assert found == sorted(found, reverse=True)
    assert len(set(found)) > 3


def embedding_parameters(architecture: Architecture) -> int:
    view = architecture.views["e"]
    return sum(encoder_parameters(architecture, view, field) for field in view.encoders if field in SIZES)


@pytest.mark.parametrize("align", ["lift", "pad"])
@pytest.mark.parametrize("sizes", ["single", "multi"])
def test_a_choice_costs_what_its_model_holds(sizes: str, align: str) -> None:
    net = opened("nis", **SMALL, sizes=sizes, align=[align])
    for number in range(20):
        choice = sampled.uniform(net.policy, sampled.generator(1, "size", number))
        architecture = net.architecture(choice)
        assert embedding_parameters(architecture) == net.size(choice)
        assert (count(architecture).lifts > 0) <= (align == "lift")


# ---- the supernet is the model of any choice ------------------------------------------------------------------------


def copied(net: Any, choice: Choice, model: Model) -> None:
    """Give a derived model the supernet's weights: of blocks side by side, and of maps one below the other."""
    shared, own = dict(net.model.state_dict()), model.state_dict()
    for one in net.grids:
        tables = dict(zip(one.blocks(), net.tables[one.name], strict=True))
        encoder = model.architecture.views["e"].encoders.get(one.field)
        if encoder is None:
            continue
        blocks = [(0, one.ends[-1], encoder.dim)]
        if isinstance(encoder, RowsEncoder):
            blocks = [(block.first, block.rows, block.dim) for block in encoder.blocks]
        starts = (0, *one.ends)
        for number, (first, rows, dim) in enumerate(blocks):
            groups = range(starts.index(first), starts.index(first + rows))
            columns = range(dim // one.width)
            weight = torch.cat(
                [torch.cat([_table(shared, tables[row, column]) for row in groups]) for column in columns],
                dim=1,
            )
            name = f"e/{one.field}[{number}]" if isinstance(encoder, RowsEncoder) else f"e/{one.field}"
            _copy(model, net, one, name, weight, dim)
    for name, value in own.items():
        if name in shared and "embedding_bags.e/" not in name and "view:e." not in name:
            value.copy_(shared[name])
    numbers = (list(one.views["view:e"].numbers.values()) for one in (net.model, model))
    for theirs, mine in zip(*numbers, strict=True):  # called by their place, which differs
        mine.load_state_dict(theirs.state_dict())


def _table(state: dict[str, Tensor], table: str) -> Tensor:
    return state[f"tables.bags.embedding_bags.{table}.weight"]


def _maps(view: Any, place: int) -> Any:
    return view.blocks[str(place)].maps if str(place) in view.blocks else {}


def _copy(model: Any, net: Any, one: Grid, table: str, weight: Tensor, dim: int) -> None:
    """A table and the map behind it. Where the derived model has none the supernet's maps are multiplied in."""
    fields = list(net.model.architecture.views["e"].encoders)
    maps = _maps(net.model.views["view:e"], fields.index(one.field))
    target = model.tables.bags.embedding_bags[table].weight
    if not maps:
        target.data.copy_(weight)
        return
    lift = torch.cat([maps[f"{one.width * column}+{one.width}"] for column in range(dim // one.width)]).detach()
    if dim == one.columns * one.width:
        target.data.copy_(weight @ lift)
        return
    target.data.copy_(weight)
    view = model.views["view:e"]
    own_fields = list(model.architecture.views["e"].encoders)
    own = _maps(view, _run_of(view, one.field, own_fields))
    if f"0+{dim}" in own:
        own[f"0+{dim}"].data.copy_(lift)
    else:  # a whole table, which the view's own map lifts
        position = own_fields.index(one.field)
        for index, module in view.align.lifts.items():
            fields_of = _block_fields(view, int(index))
            if position in fields_of:
                module.weight.data[fields_of.index(position)].copy_(lift)


def _run_of(view: Any, field: str, fields: list[str]) -> int:
    starts = np.cumsum([0, *(len(run) for run in view.runs)])
    return int(np.searchsorted(starts, fields.index(field), side="right") - 1)


def _block_fields(view: Any, index: int) -> list[int]:
    """The fields of the view behind one of the tensors that its align takes."""
    widths = [source.width for run in view.runs for source in run]
    return list(range(len(widths))) if len(set(widths)) == 1 else [index]


@pytest.mark.parametrize("align", ["lift", "pad"])
@pytest.mark.parametrize("sizes", ["single", "multi"])
@pytest.mark.parametrize("backbone", ["fm", "deepfm"])
def test_a_derived_model_with_the_supernets_weights_gives_its_output(backbone: str, sizes: str, align: str) -> None:
    given = {"choices": {"mlp.units": [16]}} if backbone == "deepfm" else {}
    net = opened("nis", **SMALL, sizes=sizes, align=[align], backbone=backbone, **given)
    batch = next(iter(table(64, seed=3).batches(64)))
    tried = 0
    for number in range(60):
        choice = sampled.uniform(net.policy, sampled.generator(2, "same", number))
        architecture = net.architecture(choice)
        if backbone == "deepfm" and set(architecture.views["e"].encoders) < set(net.backbone.views["e"].encoders):
            continue  # its layers have other inputs
        model = build(architecture, label_mean=0.5, table_init=0.3, seed=9)
        copied(net, choice, model)
        net.take(choice)
        torch.testing.assert_close(model(batch), net.model(batch), rtol=1e-5, atol=1e-6)
        tried += 1
    assert tried > 3


def test_only_what_was_drawn_is_updated() -> None:
    """Blocks and their maps, in every step of a search."""
    net = opened("nis", **SMALL, warm_up=0.0)
    user = next(one for one in net.grids if one.field == "user")
    kept: dict[str, Tensor] = {}
    steps = []

    def before(model: Any, inputs: Any) -> None:
        """What the last step moved, against what it had drawn."""
        if not model.training:
            return
        now = {name: value.detach().clone() for name, value in model.named_parameters()}
        if kept:
            moved = {name for name in now if not torch.equal(now[name], kept[name])}
            steps.append((moved, resting[0]))
        kept.update(now)
        resting[0] = model.tables.resting

    resting = [frozenset[str]()]
    net.model.register_forward_pre_hook(before)
    searched(net)
    assert len(steps) > 10
    for moved, at_rest in steps:
        assert not [name for name in moved for table in at_rest if f"{table}.weight" in name]
        for column in range(4):
            blocks = [net.tables[user.name][place] for place, (_, c) in enumerate(user.blocks()) if c == column]
            if set(blocks) <= at_rest:
                assert not [name for name in moved if name.endswith(f"blocks.0.maps.{2 * column}+2")]
    assert any(moved for moved, _ in steps)


# ---- rules that cost no search --------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", ["single", "multi"])
@pytest.mark.parametrize("select", ["random", "frequency"])
def test_rules_fill_the_budget_without_a_search(select: str, sizes: str) -> None:
    for budget in (0.6, 0.3):
        net = opened("nis", **(SMALL | {"sample": 3}), sizes=sizes, select=select, budget=[budget])
        found = searched(net)
        assert (found.samples, found.seconds, found.figures, found.sample) == (0, 0.0, [], ())
        assert 0.5 * budget * net.full < embedding_parameters(found.architecture) <= budget * net.full


def test_every_trial_draws_blindly_anew() -> None:
    base = opened("nis", **SMALL)
    plan = METHODS["nis"].plan
    assert plan is not None
    space = plan(NISSettings(**SMALL, select="random", budget=[0.6]))

    def drawn(draw: int) -> str:
        opening = Opening(base.backbone, fill_params(space, {"nis.draw": draw}), QUICK, base.train, base.train, 1)
        return METHODS["nis"].supernet(opening).derive().hash  # type: ignore[misc]

    assert len({drawn(draw) for draw in range(6)}) > 2
    assert drawn(2) == drawn(2)


def test_widths_by_frequency_fall_with_it() -> None:
    train, _ = planted(4000)
    net = opened("nis", train=train, valid=train, dim=8, columns=4, select="frequency", budget=[0.4])
    for name, option in net.best().items():
        one = next(one for one in net.grids if one.name == name)
        widths = [block["dim"] for block in one.derived(one.taken(option, multi=True))]
        assert widths == sorted(widths, reverse=True)
    assert len(net.grids[0].derived(net.grids[0].taken(net.best()[net.grids[0].name], multi=True))) > 1


# ---- bad settings ---------------------------------------------------------------------------------------------------


def test_settings_that_make_no_grid_are_refused() -> None:
    with pytest.raises(ValueError, match="3 'columns' do not divide a 'dim' of 8"):
        NISSettings(dim=8, columns=3)
    for rows in ([0.5, 0.2, 1.0], [0.2, 0.5]):
        with pytest.raises(ValueError, match="'rows' must rise and end at 1"):
            NISSettings(rows=rows)


def test_a_policy_that_drops_everything_gives_no_model_in_one_line() -> None:
    net = opened("nis", **SMALL, backbone="mlp")
    nothing = {name: torch.zeros_like(logits[:, 0], dtype=torch.long) for name, logits in net.policy.items()}
    assert set(net.architecture(nothing).views["e"].encoders) == {"price", "age"}
    train, _ = planted(400)
    alone = opened("nis", train=train, valid=train, **SMALL, backbone="mlp")
    with pytest.raises(UserError, match="nothing is left to derive"):
        alone.architecture({name: torch.zeros(4, dtype=torch.long) for name in alone.policy})


# ---- planted data ---------------------------------------------------------------------------------------------------


@cache
def planted_search(
    sizes: str = "multi", budget: float = 0.3, rate: float = 0.05, head: float = HEAD / CATEGORIES
) -> tuple[Any, Found]:
    """Frequent users and items have vectors of rank 4, rare ones of rank 1; a third field is noise.

    Of 4,000 parameters these ranks need 1,160, which the budget just holds.
    """
    grid = {"backbone": "fm", "dim": 4, "columns": 4, "rows": sorted({head, 1.0}), "sample": 0, "epochs": 16}
    rows = dict(zip(("train", "valid"), planted(24_000), strict=True))
    given: dict[str, Any] = {**rows, "training": training()}
    net = opened("nis", **given, **grid, sizes=sizes, budget=[budget], policy_learning_rate=rate)
    return net, searched(net, **given)


def widths(net: Any, field: str) -> tuple[int, int]:
    """Of frequent and of rare categories."""
    one = next(one for one in net.grids if one.field == field)
    taken = one.taken(net.best()[one.name], net.multi)
    return sum(rows > 0 for rows in taken), sum(rows > 1 for rows in taken)


def trained_alone(architecture: Architecture) -> float:
    train, valid = planted(24_000)
    model = build(architecture, label_mean=0.5, table_init=training().table_init, seed=1)
    return fit(model, train, valid, training(), task="ctr", seed=1).best_value


@pytest.mark.slow
def test_planted_ranks_are_found() -> None:
    net, _ = planted_search()
    for field in ("user", "item"):
        head, tail = widths(net, field)
        assert head >= 3
        assert tail == 1


@pytest.mark.slow
def test_many_sizes_beat_one_at_the_same_budget() -> None:
    multi, single = (planted_search(sizes)[1].architecture for sizes in ("multi", "single"))
    assert trained_alone(multi) < trained_alone(single) - 0.02


@pytest.mark.slow
def test_the_reward_rises_above_that_of_a_policy_at_rest() -> None:
    (learned, _), (resting, _) = (
        [[v for v in figure["series"][0]["values"] if v is not None] for figure in found.figures if _shows(figure)]
        + [[]]
        for _, found in (planted_search(), planted_search(rate=0.0))
    )
    assert learned[-1] > resting[-1] + 0.02
    assert learned[-1] > learned[0] + 0.02


def _shows(figure: Any) -> bool:
    return bool(figure["title"] == "Reward over training")


@pytest.mark.slow
def test_a_tighter_budget_gives_a_smaller_model() -> None:
    wide, tight = planted_search()[0], planted_search(budget=0.15)[0]
    assert 0.15 * tight.full >= tight.size(tight.best()) > 0
    assert tight.size(tight.best()) < wide.size(wide.best())


@pytest.mark.slow
def test_a_field_that_says_nothing_is_dropped_where_the_budget_is_tight() -> None:
    net, found = planted_search("single", budget=0.3, head=1.0)
    assert set(found.architecture.views["e"].encoders) == {"user", "item"}
    assert net.policy["e.noise"].softmax(dim=1)[0, 0] > 0.5
