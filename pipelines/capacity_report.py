"""What `dalil plan` prints: where the tables go, what fills each GPU, what a step waits for, what could change."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.capacity import Subject
from trainer.advice import Advice
from trainer.capacity import RESERVE, Dense, Memory, Placement, Plan, Times, usable

GIB = 1024**3
TABLES = 12
"""Tables that are listed one by one, the largest first."""
NEAR = 0.95
"""Ranks that take this share of the slowest one's time hold up a step as well."""


def show(console: Console, subject: Subject, plan: Plan, advice: Sequence[Advice]) -> None:
    """Print the plan; `advice` is what could change where it does not fit."""
    for line in _head(subject, plan):
        console.print(line, markup=False)
    console.print()
    console.print(_tables(plan))
    if (rest := len(plan.tables) - TABLES) > 0:
        smaller = sorted(plan.tables, key=_bytes, reverse=True)[TABLES:]
        console.print(f"and {rest} smaller tables, {_gib(sum(map(_bytes, smaller)))} GiB in all")
    console.print()
    console.print(_memory(plan))
    console.print()
    console.print(_times(plan))
    for line in _bottleneck(subject, plan):
        console.print(line, markup=False)
    console.print()
    console.print(verdict(plan), markup=False, style="bold")
    if not plan.fits:
        console.print(_culprits(plan), markup=False)
        console.print()
        console.print(_advice(advice))


def verdict(plan: Plan) -> str:
    """One line: whether the plan fits, or by how much it does not."""
    used, budget = plan.hbm(plan.fullest), plan.budget
    if plan.fits:
        return f"fits: {_gib(used)} of {_gib(budget)} GiB on the fullest GPU, rank {plan.fullest}"
    over = [plan.hbm(rank) - budget for rank in range(plan.cluster.world) if plan.hbm(rank) > budget]
    return (
        f"does not fit: {_gib(plan.missing)} GiB too much on the fullest GPU (rank {plan.fullest}),"
        f" {_gib(sum(over))} GiB on {len(over)} of {plan.cluster.world} GPUs;"
        f" GPUs of {plan.needs / GIB:.1f} GiB would hold this plan"
    )


def as_data(subject: Subject, plan: Plan, advice: Sequence[Advice]) -> dict[str, Any]:
    """The same as plain data: bytes and milliseconds."""
    return {
        "model": subject.model,
        "origin": subject.origin,
        "fields": subject.fields,
        "fits": plan.fits,
        "missing": plan.missing,
        "needs": plan.needs,
        "budget": plan.budget,
        "step": plan.step,
        "slowest": plan.slowest,
        "fullest": plan.fullest,
        **asdict(plan),
        "ranks": [
            {"hbm": plan.hbm(rank), "memory": asdict(memory), "times": asdict(times)}
            for rank, (memory, times) in enumerate(plan.ranks)
        ],
        "advice": [
            {
                "change": one.change,
                "how": one.how,
                "size": one.problem.size,
                "hbm": one.plan.hbm(one.plan.fullest),
                "fits": one.plan.fits,
            }
            for one in advice
        ],
    }


def _head(subject: Subject, plan: Plan) -> list[str]:
    cluster, problem = plan.cluster, subject.problem
    weights = sum(spec.rows * spec.dim for spec in problem.specs)
    host = f", {_gib(cluster.host)} GiB of host memory each" if cluster.host else ", no host memory for tables"
    return [
        f"{subject.model} ({subject.origin}); fields of {subject.fields}",
        f"{_count(weights)} weights in {len(problem.specs)} tables, {_count(plan.dense.parameters)} dense;"
        f" {_gib(problem.size)} GiB of tables with optimizer and copies",
        f"{cluster.nodes} x {cluster.gpus} GPUs of {_gib(cluster.hbm)} GiB{host}",
        f"tables in {problem.precision}, optimizer values 2 per weight, copies {problem.kept};"
        f" {plan.batch} rows per GPU and step",
    ]


def _tables(plan: Plan) -> Table:
    table = _table("table", "rows", "dim", "sharding", "kernel", "ranks", "shard", "GiB", left=(0, 3, 4))
    for one in sorted(plan.tables, key=_bytes, reverse=True)[:TABLES]:
        largest = max(one.shards, key=lambda shard: shard.rows * shard.dim)
        table.add_row(
            one.name,
            f"{one.rows:,}",
            str(one.dim),
            one.sharding,
            one.kernel,
            _ranges(one.ranks),
            f"{largest.rows:,} x {largest.dim}",
            _gib(_bytes(one)),
        )
    return table


def _bytes(table: Placement) -> int:
    return table.memory.hbm + table.memory.host


def _memory(plan: Plan) -> Table:
    order = sorted(range(plan.cluster.world), key=plan.hbm)
    chosen = _chosen(plan, "fullest", plan.fullest, order)
    table = _table("GiB of GPU memory", *chosen, left=(0,))
    _fill(table, [_memory_parts(plan.ranks[rank][0], plan.dense) for rank in chosen.values()], _gib)
    table.add_row("used", *(_gib(plan.hbm(rank)) for rank in chosen.values()), style="bold")
    budget = f"may be used ({1 - RESERVE:.0%} of {_gib(plan.cluster.hbm)})"
    table.add_row(budget, *[_gib(usable(plan.cluster.hbm))] * len(chosen))
    if plan.cluster.host:
        share = plan.cluster.host / plan.cluster.gpus
        table.add_row(f"host memory (of {_gib(share)})", *(_gib(plan.ranks[rank][0].host) for rank in chosen.values()))
    return table


def _times(plan: Plan) -> Table:
    order = sorted(range(plan.cluster.world), key=lambda rank: plan.ranks[rank][1].total)
    chosen = _chosen(plan, "slowest", plan.slowest, order)
    table = _table("ms per step", *chosen, left=(0,))
    _fill(table, [_time_parts(plan.ranks[rank][1], plan.dense) for rank in chosen.values()], "{:.3f}".format)
    dense = plan.dense.compute + plan.dense.comms
    table.add_row("sum", *(f"{plan.ranks[rank][1].total + dense:.3f}" for rank in chosen.values()), style="bold")
    return table


def _memory_parts(memory: Memory, dense: Dense) -> dict[str, float]:
    """Bytes of a GPU by what takes them."""
    return {
        "tables": memory.tables,
        "optimizer of the tables": memory.optimizer,
        "copies of the tables": memory.copies,
        "gradients of tables on all ranks": memory.gradients,
        "ids and looked-up rows": memory.io,
        "dense weights and all beside them": dense.weights,
        "dense activations": dense.activations,
        "buffers for ids": dense.inputs,
    }


def _time_parts(times: Times, dense: Dense) -> dict[str, float]:
    """Milliseconds of a step by what takes them."""
    return {
        "forward compute": times.forward_compute,
        "forward comms": times.forward_comms,
        "backward compute": times.backward_compute,
        "backward comms": times.backward_comms,
        "prefetch": times.prefetch,
        "dense part (estimate)": dense.compute,
        "dense gradients (estimate)": dense.comms,
    }


def _fill(table: Table, columns: Sequence[dict[str, float]], shown: Callable[[float], str]) -> None:
    """A row for each part that is not zero everywhere."""
    for name in columns[0]:
        if any(values := [parts[name] for parts in columns]):
            table.add_row(name, *map(shown, values))


def _chosen(plan: Plan, most: str, rank: int, order: Sequence[int]) -> dict[str, int]:
    """Column -> rank: the greatest, the one in the middle and the least."""
    if plan.cluster.world == 1:
        return {"rank 0": 0}
    middle, least = order[len(order) // 2], order[0]
    return {f"{most}: rank {rank}": rank, f"median: rank {middle}": middle, f"least: rank {least}": least}


def _bottleneck(subject: Subject, plan: Plan) -> Iterable[str]:
    totals = [times.total for _, times in plan.ranks]
    slow = [rank for rank, total in enumerate(totals) if total >= NEAR * totals[plan.slowest]]
    parts = _time_parts(plan.ranks[plan.slowest][1], plan.dense)
    part = max(parts, key=lambda name: parts[name])
    spread = totals[plan.slowest] / (statistics.fmean(totals) or 1)
    batch = subject.problem.settings.batch_size
    yield (
        f"bottleneck: {part} on rank{'s' if len(slow) > 1 else ''} {_ranges(slow)};"
        f" the slowest rank has {spread:.2f} times the mean"
    )
    rates = plan.rates
    yield (
        f"{batch:,} rows per step, {_count(batch / plan.step * 1e3)} rows/s: estimated, never run; from"
        f" {_rate(rates.hbm)} of GPU memory, {_rate(rates.host)} to the host, {_rate(rates.inside)} within and"
        f" {_rate(rates.across)} between"
        f" machines, and {rates.flops / 1e12:.0f} TFLOP/s for the dense part, one after another"
    )


def _culprits(plan: Plan) -> str:
    """The tables that fill the fullest GPU, until what is missing is reached."""
    on = {
        table.name: sum(shard.memory.hbm for shard in table.shards if shard.rank == plan.fullest)
        for table in plan.tables
    }
    listed: list[str] = []
    total = 0
    for name, taken in sorted(on.items(), key=lambda item: -item[1]):
        if total >= plan.missing or len(listed) == TABLES:
            break
        listed.append(f"{name} {_gib(taken)}")
        total += taken
    return f"what fills it, GiB: {', '.join(listed)}; the dense part {_gib(plan.dense.hbm)}"


def _advice(advice: Sequence[Advice]) -> Table:
    table = _table("change", "what to write", "tables, GiB", "fullest GPU", "", left=(0, 1, 4))
    table.columns[1].no_wrap = True
    for one in advice:
        enough = "fits" if one.plan.fits else f"{_gib(one.plan.missing)} too much"
        used, budget = one.plan.hbm(one.plan.fullest), one.plan.budget
        table.add_row(one.change, one.how, _gib(one.problem.size), f"{_gib(used)} of {_gib(budget)}", enough)
    return table


def _table(*headings: str, left: tuple[int, ...]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for position, heading in enumerate(headings):
        table.add_column(heading, justify="left" if position in left else "right", overflow="fold")
    return table


def _ranges(ranks: Iterable[int]) -> str:
    """0, 1, 2, 5 as 0-2,5."""
    runs = [[rank for _, rank in run] for _, run in groupby(enumerate(sorted(ranks)), lambda pair: pair[1] - pair[0])]
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs]
    return ",".join(texts) if len(texts) <= 6 else f"{','.join(texts[:5])},... ({sum(map(len, runs))})"


def _gib(number: float) -> str:
    value = number / GIB
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 or value == 0 else f"{value:.3g}"


def _rate(number: float) -> str:
    return f"{number / GIB:,.4g} GiB/s"


def _count(number: float) -> str:
    for limit, word in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if number >= limit:
            return f"{number / limit:.3g}{word}"
    return f"{number:.3g}"
