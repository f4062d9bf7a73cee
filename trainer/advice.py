"""What would have to change for a model to fit a cluster: each change is planned, not guessed."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from trainer.architecture import Architecture, ArchitectureError, ShareEncoder, TableEncoder, View
from trainer.capacity import Cluster, Plan, Problem, TablePrecision, even_plan, padded
from trainer.methods.mde import mixed_dims
from trainer.settings import TrainSettings
from trainer.shapes import F, infer

TEMPERATURES = (0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6)
"""Of the power law that narrows tables by their number of rows, the mildest first."""
TRIES = 6
HOST_UNLIMITED = 1 << 60

Widths = Callable[[str, int], int]
"""(field, width of its table) -> the width to plan with"""


@dataclass(frozen=True)
class Advice:
    """One change, what to write for it, and the plan that it leads to: of the least memory, or one that fits."""

    change: str
    how: str
    problem: Problem
    plan: Plan


def advise(problem: Problem, short: Plan) -> Iterator[Advice]:
    """The changes that could make `problem` fit, `short` being its plan that does not. Some may not be enough."""
    if not problem.specs:
        return
    cluster = short.cluster
    yield from _hardware(problem, short)
    if problem.settings.average:
        changed = _with_settings(problem, average=0.0)
        yield _planned("no running average of weights", "--set train.average=0", changed, cluster)
    if problem.precision == "fp32":
        formats: tuple[tuple[TablePrecision, str], ...] = (("fp16", "fp16 or bf16 tables"), ("int8", "int8 tables"))
        for precision, name in formats:
            yield _planned(name, f"--table-precision {precision}", replace(problem, precision=precision), cluster)
    for find in (_hashed, _halved, _by_rows):
        if (found := find(problem, short)) is not None:
            yield found


def _hopeless(problem: Problem, short: Plan) -> bool:
    """Whether not even an even share of the tables fits a GPU; told without a plan, which takes seconds."""
    return problem.size / short.cluster.world > short.budget - short.dense.hbm


def _planned(change: str, how: str, problem: Problem, cluster: Cluster) -> Advice:
    return Advice(change, how, problem, even_plan(problem, cluster))


def _with_settings(problem: Problem, **values: object) -> Problem:
    settings: TrainSettings = problem.settings.model_copy(update=values)
    return replace(problem, settings=settings)


# ---- another cluster ------------------------------------------------------------------------------------------------


def _hardware(problem: Problem, short: Plan) -> Iterator[Advice]:
    cluster, nodes = short.cluster, short.cluster.nodes
    for _ in range(TRIES):
        found = short if nodes == cluster.nodes else even_plan(problem, replace(cluster, nodes=nodes))
        if found.fits:
            break
        room, tables = found.budget - found.dense.hbm, found.hbm(found.fullest) - found.dense.hbm
        nodes = max(nodes + 1, math.ceil(nodes * tables / room) if room > 0 else 2 * nodes)
    if found is not short:
        yield Advice("more machines", f"--nodes {found.cluster.nodes}", problem, found)
    host = even_plan(problem, replace(cluster, host=HOST_UNLIMITED))
    if host.fits:
        per_rank = max(memory.host for memory, _ in host.ranks)
        gib = math.ceil(per_rank * cluster.gpus / 1024**3)
        change, how = "tables in host memory (UVM caching)", f"--host-memory {gib}GiB"
        yield Advice(change, how, problem, replace(host, cluster=replace(cluster, host=gib * 1024**3)))


# ---- fewer rows -----------------------------------------------------------------------------------------------------


def hashed(architecture: Architecture, rows: int) -> Architecture:
    """`architecture` for fields that are hashed so that no table has more than `rows` rows."""
    fields = {
        name: field.model_copy(update={"cardinality": min(field.cardinality, rows)})
        for name, field in architecture.fields.items()
    }
    return architecture.model_copy(update={"fields": fields})


def _hashed(problem: Problem, short: Plan) -> Advice | None:
    size, found = problem.size, short
    for _ in range(TRIES):
        size -= found.missing * short.cluster.world
        rows = _rows_for(problem, size)
        if rows < 2:
            return None
        changed = replace(problem, architecture=hashed(problem.architecture, rows))
        found = even_plan(changed, short.cluster)
        if found.fits:
            break
    names = dict.fromkeys(spec.field or spec.sequences[0] for spec in problem.specs if spec.rows > rows)
    listed = ", ".join(names)
    return Advice(f"at most {rows:,} rows: hash {listed}", f"hash_buckets: {rows - 1}", changed, found)


def _rows_for(problem: Problem, size: float) -> int:
    """The most rows per table, 1 + a round number, with which all tables, optimizer and copies take `size` bytes."""
    low, high = 0, max(spec.rows for spec in problem.specs)
    while low < high:
        middle = (low + high + 1) // 2
        taken = sum(problem.row_bytes(spec) * min(spec.rows, middle) for spec in problem.specs)
        low, high = (middle, high) if taken <= size else (low, middle - 1)
    unit = int(10 ** max(len(str(low)) - 2, 0))
    return max(low - 1, 0) // unit * unit + 1


# ---- narrower rows --------------------------------------------------------------------------------------------------


def narrowed(architecture: Architecture, widths: Widths) -> Architecture | None:
    """`architecture` with narrower tables, lifted to their old width by linear maps, so that nothing else changes.

    Tables that sequences share stay as they are, and so do those of views that no map can align. None: nothing is left.
    """
    shared = {
        encoder.view
        for view in architecture.views.values()
        for encoder in view.encoders.values()
        if isinstance(encoder, ShareEncoder)
    }
    shapes = infer(architecture)
    views = {
        name: _narrowed(view, widths) if name not in shared and isinstance(shapes[name], F) else view
        for name, view in architecture.views.items()
    }
    changed = architecture.model_copy(update={"views": views})
    if changed == architecture:
        return None
    try:
        infer(changed)
    except ArchitectureError:
        return None
    return changed


def _narrowed(view: View, widths: Widths) -> View:
    dims = {name: encoder.dim for name, encoder in view.encoders.items() if isinstance(encoder, TableEncoder)}
    every = {getattr(encoder, "dim", 0) for encoder in view.encoders.values()}
    less = {name: min(dim, widths(name, dim)) for name, dim in dims.items()}
    if not dims or view.align == "min" or (view.align is None and len(every) > 1) or less == dims:
        return view
    encoders = {**view.encoders, **{name: TableEncoder(dim=dim) for name, dim in less.items()}}
    return view.model_copy(update={"encoders": encoders, "align": "lift", "width": view.width or max(every)})


def _halved(problem: Problem, short: Plan) -> Advice | None:
    def half(times: int) -> Widths:
        return lambda _, dim: max(min(4, dim), dim >> times)

    # Until the widest is 4 wide.
    levels = (max(spec.dim for spec in problem.specs) - 1 >> 2).bit_length()
    changes = {f"tables 1/{2**times} as wide": half(times) for times in range(1, levels + 1)}
    return _narrow_advice(changes, problem, short)


def _by_rows(problem: Problem, short: Plan) -> Advice | None:
    """Fields of many rows, which are the rarer ones, get narrow rows: where AutoDim and NIS end up, by a power law."""
    rows = {name: field.cardinality for name, field in problem.architecture.fields.items() if field.cardinality}
    changes = {f"widths by rows^-{temperature}": _power_law(rows, temperature) for temperature in TEMPERATURES}
    return _narrow_advice(changes, problem, short)


def _power_law(rows: dict[str, int], temperature: float) -> Widths:
    return lambda name, dim: padded(mixed_dims(rows, dim, temperature)[name]) if dim > 4 else dim


def _narrow_advice(changes: dict[str, Widths], problem: Problem, short: Plan) -> Advice | None:
    """The first of these changes with which the model fits, or the last one that changes anything."""
    how = "search.methods: autodim, mde, field_dims"
    possible = {change: narrowed(problem.architecture, widths) for change, widths in changes.items()}
    left = [(name, replace(problem, architecture=made)) for name, made in possible.items() if made is not None]
    while left:
        (change, changed), *left = left
        if left and _hopeless(changed, short):
            continue
        found = _planned(change, how, changed, short.cluster)
        if found.plan.fits or not left:
            return found
    return None
