"""ESAPN: growing changes nothing by itself, the stream is honest, and the policy learns whom it pays to enlarge."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from torch import Tensor, nn

from tests.trainer.opened import QUICK, ROWS, SIZES, VALID_ROWS, opened, schema, searched, table
from tests.trainer.planted_streams import BATCH, Stream, stream
from tests.trainer.takeover import exact
from tests.trainer.test_supernets import Killed, Mortal, Watched, ended, killed_after
from trainer import metrics
from trainer.architecture import RowsEncoder
from trainer.build import Model, build
from trainer.data import Batch, Table
from trainer.engines import streamed
from trainer.engines.streamed import BAND_NAMES, Expected, Followed, Visit, bucket, objective
from trainer.engines.supernet import Schedule
from trainer.errors import UserError
from trainer.fit import predict
from trainer.index import unpacked
from trainer.methods.base import sized_rows
from trainer.methods.esapn import Policy, Thresholds
from trainer.methods.table import METHODS
from trainer.settings import TrainSettings
from trainer.shapes import encoder_parameters

WIDTHS = [2, 4, 8]
SMALL: dict[str, Any] = {"sizes": WIDTHS, "batch_size": 16, "learning_rate": 0.01}
STEPS = ROWS // SMALL["batch_size"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def net_of(**changed: Any) -> Any:
    return opened("esapn", **(SMALL | changed))


def stream_of(net: Any, rows: Table | None = None, seed: int = 5) -> streamed.Stream:
    rows = rows or table()
    return streamed.Stream(net, rows, table(VALID_ROWS, seed=1), SMALL["batch_size"], seed)


def grown(net: Any, seed: int = 0) -> None:
    """Categories of all sizes."""
    random = torch.Generator().manual_seed(seed)
    for field in net.growth:
        for _ in range(len(WIDTHS) - 1):
            some = torch.rand(len(net.sizes(field)), generator=random) < 0.6
            net.enlarge(field, (some & (net.sizes(field) < len(WIDTHS) - 1)).nonzero().squeeze(1))


def moved(net: Any) -> None:
    """No weight is zero by its start."""
    with torch.no_grad():
        for weight in net.model.dense_parameters():
            weight.add_(0.1 * torch.randn_like(weight))


def numbers(most: float) -> st.SearchStrategy[float]:
    return st.floats(-most, most, allow_subnormal=False)


# ---- the nine tests of a correct build ------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(numbers(3), numbers(3)), min_size=1, max_size=5),
    numbers(5),
    st.data(),
)
def test_1_the_gradient_of_the_logits_is_the_reward_times_chance_less_action(
    logits: list[tuple[float, float]], reward: float, data: st.DataObject
) -> None:
    logits_SA = torch.tensor(logits, dtype=torch.double, requires_grad=True)
    state = data.draw(st.integers(0, len(logits) - 1))
    action = data.draw(st.integers(0, 1))
    credit = torch.zeros(2 * len(logits), dtype=torch.double)
    credit[2 * state + action] = reward
    (gradient_SA,) = torch.autograd.grad(-objective(logits_SA.log_softmax(dim=1), credit), logits_SA)
    expected_SA = torch.zeros_like(logits_SA)
    expected_SA[state] = reward * logits_SA[state].detach().softmax(dim=0)
    expected_SA[state, action] -= reward
    torch.testing.assert_close(gradient_SA, expected_SA)


def test_2_growing_changes_no_output() -> None:
    net = net_of()
    moved(net)
    net.model.double().eval()
    batch = exact(table().take(torch.arange(ROWS)))
    before = net.model(batch)
    for _ in WIDTHS[1:]:
        for field in net.growth:
            net.enlarge(field, torch.arange(0, SIZES[field], 2))
            torch.testing.assert_close(net.model(batch), before, rtol=0, atol=1e-12)
    for field in net.growth:
        assert net.sizes(field).tolist() == [2 * (1 - place % 2) for place in range(SIZES[field])]


class Steps(Watched):
    """Notes the sizes, and calls `each`, before every training pass of the stream."""

    def __init__(self, net: Any, each: Callable[[Batch], None] = lambda batch: None) -> None:
        super().__init__(net)
        self.each = each
        self.sizes_of: dict[str, list[Tensor]] = {field: [net.sizes(field).clone()] for field in net.growth}
        self.met: list[Batch] = []

    def _before(self, model: nn.Module, inputs: Any) -> None:
        if model.training:
            self.met.append(inputs[0])
            for field, noted in self.sizes_of.items():
                noted.append(self.net.sizes(field).clone())
            self.each(inputs[0])


@pytest.mark.parametrize("chosen", [{"first_chance": [0.5]}, {"select": "frequency"}, {"select": "fixed"}])
def test_3_sizes_never_fall_and_rise_by_one_at_a_visit_up_to_the_last(chosen: dict[str, Any]) -> None:
    net = Steps(net_of(**chosen))
    searched(net)
    assert len(net.met) == STEPS
    for place, noted in enumerate(net.sizes_of.values()):
        risen_SR = torch.stack(noted).diff(dim=0)
        assert set(risen_SR.unique().tolist()) <= {0, 1}
        assert noted[-1].max() <= len(WIDTHS) - 1
        assert risen_SR.any() == (chosen.get("select") != "fixed")
        for risen_R, batch in zip(risen_SR, net.met, strict=True):
            assert set(risen_R.nonzero().flatten().tolist()) <= set(batch.categorical[:, place].tolist())


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.floats(0, 4, width=32, allow_subnormal=False), min_size=3, max_size=3), min_size=1, max_size=12
    )
)
def test_4_a_reward_looks_back_on_the_mean_of_the_last_five_losses(losses: list[list[float]]) -> None:
    """Categories 0 to 2, of which 0 misses every third visit, and 1 every second."""
    followed, seen = Followed(4, last=5), [list[float](), [], []]
    for visit, loss in enumerate(losses):
        met = [one for one, every in enumerate((3, 2, 99)) if visit % every != every - 1]
        ids = torch.tensor(met)
        loss_N = torch.tensor([loss[one] for one in met])
        followed.push(Visit(ids, torch.empty(0), 2 * torch.ones(len(met), dtype=torch.int64), ids), loss_N)
        for one in met:
            seen[one].append(loss[one])
    expected = [np.mean(one[-5:]) if one else np.nan for one in [*seen, []]]
    np.testing.assert_allclose(followed.mean(torch.arange(4)), expected, rtol=1e-5)
    assert followed.count_R.tolist() == [2 * len(one) for one in [*seen, []]]


BATCHES = 800
PLANTED = TrainSettings(batch_size=BATCH, table_l2=0.0, table_init=0.1)


@cache
def planted() -> Stream:
    return stream(BATCHES)


@cache
def searched_on_the_stream(rate: float) -> tuple[Any, list[float]]:
    """The supernet after the stream, and the mean reward of each step."""
    rows, rewards = planted().rows, []
    changed = {"sizes": [1, 8], "fields": ["user"], "learning_rate": 0.01, "policy_learning_rate": rate}
    net = opened("esapn", train=rows, valid=rows.select(torch.arange(100)), training=PLANTED, **changed)

    class Rewarded(Expected):
        def advantages(self, count_N: Tensor, reward_N: Tensor) -> Tensor:
            rewards.append(float(reward_N.mean()))
            return super().advantages(count_N, reward_N)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "Expected", Rewarded)
        searched(net, train=rows, valid=rows.select(torch.arange(100)), training=PLANTED)
    return net, rewards


@pytest.mark.slow
def test_5_on_a_planted_stream_who_needs_a_size_gets_it_and_rewards_rise() -> None:
    """Users met often have tastes of rank 4, the others a mood: against a policy that stays as it starts.

    In the second half of the stream, by when the policy has learned from users who are gone by then.
    """
    (net, rewards), (blind, blind_rewards) = searched_on_the_stream(1e-4), searched_on_the_stream(0.0)
    later = torch.arange(len(planted().often)) > len(planted().often) // 2
    often, seldom = planted().often & later, ~planted().often & later
    sizes, blind_sizes = net.sizes("user").double(), blind.sizes("user").double()
    assert sizes[often].mean() > 0.9 > 0.75 > blind_sizes[often].mean()
    assert sizes[seldom].mean() < 0.4
    visits = planted().rows.visits(["user"], range(len(later)))[later]
    assert spearmanr(visits, sizes[later]).statistic > 0.3
    assert np.mean(rewards[BATCHES // 2 :]) > 1.1 * np.mean(blind_rewards[BATCHES // 2 :])
    chance = net.growth["user"].logs().detach()[:, 1].exp().view(-1, 2)[:, 0]
    frequent, rare = (float(chance[bucket(torch.arange(*counts))].mean()) for counts in ((12, 20), (1, 4)))
    assert frequent > 5 * rare


class Bandit:
    """Categories whose loss is 1, less `gain` from the visit after they grew on. 100 are met at a time."""

    def __init__(self, gain: float, visits: int = 8, cohorts: int = 50) -> None:
        ids = torch.arange(cohorts)[:, None, None] * 100 + torch.arange(100)
        rows = ids.expand(-1, visits, -1).flatten()
        flat = schema("rating", len(rows)).model_copy(update={"fields": schema().fields[:1]})
        flat = flat.model_copy(update={"label_min": 0.0, "label_max": 9.0})
        self.rows = Table(flat, rows[:, None].int(), torch.empty(len(rows), 0), torch.zeros(len(rows)), {})
        self.size_R, self.felt_R = torch.zeros(2, 100 * cohorts, dtype=torch.int64)
        self.model = nn.Module()
        self.widths, self.rate, self.last, self.gain = [1, 2], 3e-4, 5, gain
        torch.manual_seed(0)
        self.growth = {"user": Policy(len(rows), 2, 0.1)}
        self.policy = dict(self.growth["user"].named_parameters())
        self.schedule = Schedule(epochs=1, in_order=True)

    def sizes(self, field: str) -> Tensor:
        return self.size_R

    def enlarge(self, field: str, id_N: Tensor) -> None:
        self.size_R[id_N] += 1

    def output(self, batch: Batch) -> Tensor:
        felt_B = self.felt_R[batch.categorical[:, 0]]
        self.felt_R = self.size_R.clone()
        return (1 - self.gain * felt_B).sqrt()

    def chance(self) -> float:
        """Of growing at any visit but the last, after which nothing is felt."""
        chance = self.growth["user"].logs().detach()[:, 1].exp().view(-1, 2)[bucket(torch.arange(7)), 0]
        return float(1 - (1 - chance).prod())


@pytest.mark.parametrize("gain", [0.5, -0.5])
def test_6_if_growing_pays_it_gets_certain_and_if_it_costs_it_ends(gain: float) -> None:
    bandit: Any = Bandit(gain)
    learner = streamed.Stream(bandit, bandit.rows, bandit.rows, 100, seed=3)
    assert bandit.chance() == pytest.approx(1 - 0.9**7, rel=1e-4)
    for batch in bandit.rows.batches(100):
        learner.before_step(batch, bandit.output)
        learner.after_step(batch, bandit.output)
    assert bandit.chance() > 0.99 if gain > 0 else bandit.chance() < 0.01


def test_7_what_is_said_of_a_row_is_what_the_model_said_before_it_learned_from_it() -> None:
    rows, said = table(), []
    net = net_of(first_chance=[0.3])

    def evaluate(batch: Batch) -> None:
        mark = len(said) * SMALL["batch_size"]
        said.append(torch.from_numpy(predict(net.model, rows.select(torch.arange(mark, mark + batch.size)))))

    watched = Steps(net, evaluate)
    learner = stream_of(watched)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "Stream", lambda *args: learner)
        found = searched(watched)
    torch.testing.assert_close(learner.answer_N, torch.cat(said).float())
    total = found.figures[-1]["rows"][0]
    assert total[2] == pytest.approx(metrics.logloss(rows.label.numpy(), learner.answer_N.numpy()), rel=1e-4)
    assert total[3] == pytest.approx(metrics.auc(rows.label.numpy(), learner.answer_N.numpy()), rel=1e-4)


def state_of(model: Model) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_8_what_the_policy_does_leaves_every_weight_but_the_first_values_of_a_size() -> None:
    net = net_of(first_chance=[0.5], policy_learning_rate=0.01)
    learner = stream_of(net)
    policy = {name: value.detach().clone() for name, value in net.policy.items()}
    for batch in table().batches(16):
        before, sizes = state_of(net.model), {field: net.sizes(field).clone() for field in net.growth}
        learner.before_step(batch, net.model)
        between = state_of(net.model)
        learner.after_step(batch, net.model)
        assert all(torch.equal(between[name], value) for name, value in net.model.state_dict().items())
        changed = {name for name, value in before.items() if not torch.equal(value, between[name])}
        for (_, field, number), name in net.tables.items():
            (full,) = [key for key in before if f".{name}." in key]
            rows_R = (before[full] != between[full]).any(dim=1)
            assert rows_R.tolist() == ((sizes[field] == number - 1) & (net.sizes(field) == number)).tolist()
            changed -= {full}
        assert not changed
    assert all(not torch.equal(value, policy[name]) for name, value in net.policy.items() if "out" in name)


def test_9_equal_seeds_give_equal_sizes() -> None:
    def sizes(seed: int) -> Tensor:
        net = net_of(first_chance=[0.3])
        searched(net, seed=seed)
        return torch.cat([net.sizes(field) for field in net.growth])

    assert torch.equal(sizes(5), sizes(5))
    assert not torch.equal(sizes(5), sizes(6))


# ---- the published reward -------------------------------------------------------------------------------------------


def test_the_published_reward_teaches_nothing() -> None:
    """An action is scored before anything is learned after it: the loss is the same for both, and the gradient zero."""
    net = net_of()
    moved(net)
    net.model.double().eval()
    batch = exact(table().take(torch.arange(64)))
    kept = net.model(batch)
    net.enlarge("user", batch.categorical[:, 0].unique())
    torch.testing.assert_close(net.model(batch), kept, rtol=0, atol=1e-12)
    logits = torch.tensor([0.0, -2.0], dtype=torch.double, requires_grad=True)
    logs, reward = logits.log_softmax(dim=0), 0.7
    expected = sum((logs[action].detach().exp() * reward * logs[action] for action in range(2)), torch.tensor(0.0))
    (gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, torch.zeros(2, dtype=torch.double))


def test_rewards_are_measured_against_those_of_categories_met_about_as_often() -> None:
    expected = Expected()
    count_N = torch.tensor([0, 0, 100])
    assert expected.advantages(count_N, torch.tensor([1.0, 3.0, 9.0])).tolist() == [0, 0, 0]
    torch.testing.assert_close(expected.advantages(count_N, torch.tensor([2.0, 5.0, 8.0])), torch.tensor([0.0, 3, -1]))
    # 0.95 of the first batch's mean, and 0.05 of the second's, over their weights.
    mean = (0.95 * 2 + 3.5) / 1.95
    torch.testing.assert_close(expected.advantages(torch.tensor([0]), torch.tensor([4.0])), torch.tensor([4 - mean]))


@pytest.mark.parametrize("last", [1, 4, 5])
def test_an_action_is_credited_half_of_t_plus_one_times_what_it_saves_from_then_on(last: int) -> None:
    """In the rewards of the T visits after it, and in none before and after these."""
    followed, one, rewards = Followed(1, last), torch.tensor([0]), []
    for visit in range(30):
        loss = torch.tensor([1.0 if visit < 15 else 0.6])
        rewards.append(float(followed.mean(one) - loss))
        followed.push(Visit(one, one, one, one), loss)
    assert sum(rewards[15 : 15 + last]) == pytest.approx(0.4 * (last + 1) / 2, abs=1e-5)
    assert [*rewards[1:15], *rewards[15 + last :]] == pytest.approx([0] * (29 - last), abs=1e-6)


def test_credits_are_those_of_a_plain_account() -> None:
    """Each user's history as a list: what it did, and how it then went, against users met about as often."""
    rows = table()
    net = net_of(first_chance=[0.3])
    learner = stream_of(net, rows)
    histories: dict[int, list[tuple[int, float]]] = {}
    counts: dict[int, int] = {}
    means: dict[int, tuple[float, float]] = {}
    for number, batch in enumerate(rows.batches(16)):
        users = batch.categorical[:, 0].tolist()
        before = net.sizes("user").clone()
        learner.before_step(batch, net.model)
        answer_B = learner.answer_N[16 * number :][: len(users)].double().numpy()
        loss_B = metrics.losses("ctr", batch.label.numpy(), answer_B)
        expected = torch.zeros(len(learner.credits["user"]))
        met = sorted({user for user in users if user in histories})
        now = {
            user: np.mean([loss for other, loss in zip(users, loss_B, strict=True) if other == user]) for user in users
        }
        bucketed: dict[int, list[float]] = {}
        for user in met:
            last = histories[user][-5:]
            reward = float(np.mean([loss for _, loss in last]) - now[user])
            place = int(2 * np.log2(1 + counts[user]))
            total, weight = means.get(place, (0.0, 0.0))
            advantage = reward - total / weight if weight else 0.0
            bucketed.setdefault(place, []).append(reward)
            for action, _ in last:
                expected[action] += advantage / len(met)
        torch.testing.assert_close(learner.credits["user"], expected, rtol=1e-3, atol=1e-6)
        for place, rewards in bucketed.items():
            total, weight = means.get(place, (0.0, 0.0))
            means[place] = (0.95 * total + 0.05 * float(np.mean(rewards)), 0.95 * weight + 0.05)
        for user in sorted(set(users)):
            state = int(2 * np.log2(1 + counts.get(user, 0))) * len(WIDTHS) + int(before[user])
            grew = int(net.sizes("user")[user] - before[user])
            histories.setdefault(user, []).append((2 * state + grew, float(now[user])))
            counts[user] = counts.get(user, 0) + users.count(user)
        learner.after_step(batch, net.model)


def test_a_fresh_policy_is_the_same_everywhere_and_never_grows_the_largest() -> None:
    for sizes in (2, 6):
        policy = Policy(1000, sizes, 0.05)
        chance_FS = policy.logs().detach()[:, 1].exp().view(-1, sizes)
        torch.testing.assert_close(chance_FS[:, :-1], torch.full_like(chance_FS[:, :-1], 0.05))
        assert not chance_FS[:, -1].any()
        counts, size = torch.arange(1001).repeat(sizes), torch.arange(sizes).repeat_interleave(1001)
        assert policy.states(counts, size).max() < len(chance_FS) * sizes
        assert len(set(policy.states(torch.tensor([1, 2, 3, 1]), torch.tensor([0, 0, 0, 1])).tolist())) == 4


# ---- rules ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0.3, 0.5, 0.8, 1.0])
def test_rules_keep_as_much_as_the_budget_lets(budget: float) -> None:
    fixed, rule = (net_of(select=select, budget=[budget]) for select in ("fixed", "frequency"))
    widest = max(width for width in WIDTHS if width <= budget * WIDTHS[-1])
    assert all((fixed.sizes(field) == WIDTHS.index(widest)).all() for field in fixed.growth)
    searched(rule)
    assert sum(rule.kept(rule.model.tables.sizes).values()) <= budget * rule.full
    thresholds = rule.growth["user"]
    counts = {field: table().visits([field], range(size)).long() for field, size in SIZES.items()}
    for least, fits in ((thresholds.least, True), (thresholds.least - 1, False)):
        reached = {field: Thresholds(least, len(WIDTHS)).reached(count_R) for field, count_R in counts.items()}
        assert (least > 0 and sum(rule.kept(reached).values()) <= budget * rule.full) == fits
    for field, count_R in counts.items():  # a size behind at most: what came last has not been looked at
        behind = thresholds.reached(count_R) - rule.sizes(field)
        assert behind.min() >= 0


def test_thresholds_double() -> None:
    rule = Thresholds(3, 4)
    count_N, size_N = torch.tensor([2, 3, 5, 6, 11, 12, 99]), torch.tensor([0, 0, 1, 1, 2, 2, 3])
    assert rule.states(count_N, size_N).tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert rule.reached(torch.tensor([0, 2, 3, 5, 6, 11, 12, 99])).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


# ---- what is derived ------------------------------------------------------------------------------------------------


def taken_over(net: Any, derived: Model) -> None:
    """The derived model gets the supernet's weights; maps over sizes that none has are put together."""
    own = net.model.state_dict()
    rest = [name for name in derived.state_dict() if "[" not in name and ".blocks." not in name]
    derived.load_state_dict({name: own[name] for name in rest}, strict=False)
    derived.double()
    for (view, field), [number, encoder] in {
        ("e", field): (place, derived.architecture.views["e"].encoders[field])
        for place, field in enumerate(derived.architecture.views["e"].encoders)
        if field in net.growth
    }.items():
        assert isinstance(encoder, RowsEncoder)
        size_R = net.sizes(field)
        used = sorted(set(size_R.tolist()))
        for block, size in enumerate(used):
            row_ND = net.model.tables.whole(f"{view}/{field}[{size}]")[size_R == size]
            derived.tables.whole(f"{view}/{field}[{block}]").data.copy_(row_ND)
        chain: Any = derived.views[f"view:{view}"].blocks[str(number)]  # type: ignore[union-attr, index]
        source = net.chain(view, field)
        ends = [*used[1:], len(WIDTHS) - 1]
        for map_, start, end in zip(chain.maps, used, ends, strict=False):
            x = torch.eye(WIDTHS[start], dtype=torch.double)
            zero = torch.zeros(1, WIDTHS[start], dtype=torch.double)
            for step in range(start, end):
                x, zero = source.maps[step](x), source.maps[step](zero)
            map_.weight.data, map_.bias.data = (x - zero).T, zero[0]
        chain.norm.load_state_dict(source.norm.state_dict())


@pytest.mark.parametrize("gone", [None, 0, 1, 2])
def test_the_derived_model_is_the_supernet_with_its_sizes(gone: int | None) -> None:
    net = net_of()
    moved(net)
    grown(net)
    if gone is not None:
        for field in net.growth:
            net.sizes(field)[net.sizes(field) == gone] = (gone + 1) % 3
    net.model.double()
    batch = exact(table().take(torch.arange(ROWS)))
    net.model(batch)  # statistics
    derived = build(net.derive(), label_mean=0.5, table_init=0.1, seed=9)
    taken_over(net, derived)
    torch.testing.assert_close(derived.eval()(batch), net.model.eval()(batch), rtol=0, atol=1e-10)
    view = derived.architecture.views["e"]
    kept = net.kept(net.model.tables.sizes)
    assert {field: encoder_parameters(derived.architecture, view, field) for field in net.growth} == kept


def test_an_index_names_the_blocks_of_sizes_that_are_there() -> None:
    encoder = sized_rows(bytes([3, 0, 3, 1]), [2, 4, 8, 16], "chain")
    assert encoder["blocks"] == [
        {"first": 0, "rows": 1, "dim": 2},
        {"first": 1, "rows": 1, "dim": 4},
        {"first": 2, "rows": 2, "dim": 16},
    ]
    assert list(unpacked(encoder["index"])) == [2, 0, 2, 1]
    assert sized_rows(bytes(5), [2, 4], "chain")["index"] is None


def test_only_the_named_fields_grow() -> None:
    net = net_of(fields=["item"])
    assert list(net.growth) == ["item"]
    searched(net)
    kinds = {field: encoder.kind for field, encoder in net.derive().views["e"].encoders.items()}
    assert (kinds["user"], kinds["item"]) == ("table", "rows")
    with pytest.raises(UserError, match=r"^search.esapn.fields: there is no categorical field 'age'; there are user,"):
        net_of(fields=["age"])


# ---- the stream -----------------------------------------------------------------------------------------------------


def test_rows_pass_once_in_their_order() -> None:
    net = Steps(net_of())
    searched(net)
    assert torch.equal(torch.cat([batch.numeric for batch in net.met])[:, 1], table().numeric[:, 1])
    assert METHODS["esapn"].in_order


def watched(**rest: Any) -> Watched:
    torch.manual_seed(0)
    return Watched(opened("esapn", **SMALL, first_chance=[0.3], policy_learning_rate=0.01, **rest))


def test_a_killed_stream_ends_like_one_left_alone_bit_by_bit(tmp_path: Path) -> None:
    whole = ended(watched())
    with pytest.raises(Killed):
        ended(Mortal(watched().net, 18), checkpoints=tmp_path / "middle", save_seconds=0.0)
    net = watched()
    resumed = ended(net, checkpoints=tmp_path / "middle")
    assert len(net.passes) == STEPS - 16
    resumed.assert_equal(whole)
    with pytest.raises(Killed):
        ended(watched(), checkpoints=tmp_path / "end", on_epoch=killed_after(0))
    net = watched()
    ended(net, checkpoints=tmp_path / "end").assert_equal(whole)
    assert net.passes == []


VARIETY: dict[str, tuple[Any, int, dict[str, Any]]] = {
    "ratings": ("rating", 16, {}),
    "bf16": ("ctr", 16, {"precision": "bf16"}),
    "lazily": ("ctr", 16, {"table_optimizer": "lazy_adam", "table_l2": 1e-3}),
    "by power": ("ctr", 16, {"table_l2": 1e-3, "table_l2_power": 0.5}),
    "a last batch of one row": ("rating", 319, {}),
    "one row at a time": ("ctr", 1, {}),
}


@pytest.mark.parametrize("what", VARIETY)
def test_streams_of_every_make_end_in_finite_weights(what: str) -> None:
    task, size, changed = VARIETY[what]
    train, valid = table(task=task), table(VALID_ROWS, task=task, seed=1)
    training = QUICK.model_copy(update=changed)
    train = train if size > 1 else train.select(torch.arange(9))
    net = opened("esapn", train=train, valid=valid, training=training, **(SMALL | {"batch_size": size}))
    found = searched(net, train=train, valid=valid, training=training)
    assert found.samples == train.rows
    values = [*net.model.parameters(), *net.policy.values()]
    assert all(value.isfinite().all() for value in values)


def test_quality_is_shown_by_how_often_a_category_had_been_met() -> None:
    rows = table()
    found = searched(net_of())
    seen: dict[int, int] = {}
    counts = []
    for start in range(0, ROWS, SMALL["batch_size"]):  # counts of before the batch
        users = rows.ids("user")[start : start + SMALL["batch_size"]].tolist()
        counts += [seen.get(user, 0) for user in users]
        for user in users:
            seen[user] = seen.get(user, 0) + 1
    lines = {line[0]: line[1] for line in found.figures[-1]["rows"]}
    limits = [0, 1, 10, 100, 1000, 10**9]
    for name, low, high in zip(BAND_NAMES, limits, limits[1:], strict=False):
        assert lines.get(f"user: {name}", 0) == sum(low <= count < high for count in counts)
    assert lines["all"] == ROWS
