"""Random descriptions: each is built, or refused by inference with a place; none fails inside forward."""

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.trainer.mixed import batch_of, mixed_schema, parameters
from trainer.architecture import Architecture, ArchitectureError, ItemsHead, fields_of
from trainer.build import Model, build
from trainer.index import packed
from trainer.modules.values import multiplied_out
from trainer.routed import routed
from trainer.shapes import count, infer

SCHEMA = mixed_schema()
FIELDS = [field.name for field in SCHEMA.fields]
DIMS = (1, 2, 4)
Draw = random.Random


def some(draw: Draw, options: list[str], most: int) -> list[str]:
    return [draw.choice(options) for _ in range(draw.randint(1, most))]


def encoder(draw: Draw, field: str, kind: str, dim: int, rows: float = 0.2) -> dict[str, Any]:
    """Mostly one that fits the field."""
    if field == "history":
        return draw.choice([{"kind": "share", "view": "v0"}, {"kind": "table", "dim": dim}])
    if kind == "pairs_table":
        return {"kind": kind, "dim": dim}
    if SCHEMA.field(field).kind == "numeric":
        return {"kind": "raw"} if kind == "raw" else {"kind": "scale", "dim": dim}
    if draw.random() < rows / 2:
        return quantized_encoder(draw, SCHEMA.field(field).cardinality, dim)
    if draw.random() < rows:
        return rows_encoder(draw, SCHEMA.field(field).cardinality, dim)
    return {"kind": "table", "dim": dim}


def rows_encoder(draw: Draw, cardinality: int, dim: int) -> dict[str, Any]:
    """Mostly blocks that fit; now and then one that ends behind the last row or makes a vector too wide."""
    if draw.random() < 0.3:
        return indexed_encoder(draw, cardinality, dim)
    blocks = []
    for _ in range(draw.randint(1, 3)):
        first = draw.randrange(cardinality)
        rows = draw.randint(1, cardinality - first + (draw.random() < 0.05))
        blocks.append({"first": first, "rows": rows, "dim": draw.choice([1, 1, 1, dim])})
    return {"kind": "rows", "dim": draw.choice([dim, dim + 2]), "blocks": blocks, "align": draw.choice(["lift", "pad"])}


def indexed_encoder(draw: Draw, cardinality: int, dim: int) -> dict[str, Any]:
    """Blocks by an index, which seldom says something else; in a chain they have to rise in width."""
    number_R = bytes([0, 1, *(draw.randrange(2) for _ in range(cardinality - 2))])
    rows = [number_R.count(number) + (draw.random() < 0.05) for number in range(2)]
    dims = [max(dim - 1, 1), dim]
    blocks = [{"first": first, "rows": n, "dim": d} for first, n, d in zip((0, rows[0]), rows, dims, strict=True)]
    align = draw.choice(["lift", "pad"] if dim == 1 and draw.random() < 0.9 else ["chain"])
    width = draw.choice([dim, dim, dim + 2])
    return {"kind": "rows", "dim": width, "blocks": blocks, "align": align, "index": packed(number_R)}


def quantized_encoder(draw: Draw, cardinality: int, dim: int) -> dict[str, Any]:
    """Mostly codes that fit; now and then one of a centroid that is not there, or a dim that cannot be divided."""
    subspaces = draw.choice([1, dim, max(dim // 2, 1)]) + (draw.random() < 0.03)
    centroids = draw.randint(2, 5)
    tail = draw.choice([None, {"first": draw.randrange(cardinality), "centroids": draw.randint(1, centroids)}])
    codes = []
    for number in range(cardinality * subspaces):
        rare = tail is not None and number >= tail["first"] * subspaces
        codes.append(draw.randrange(tail["centroids"] if tail and rare else centroids) + (draw.random() < 0.001))
    made = {"dim": dim, "subspaces": subspaces, "centroids": centroids, "tail": tail}
    return {"kind": "quantized", **made, "index": packed(bytes(codes))}


def view(draw: Draw, first: bool) -> dict[str, Any]:
    if not first and draw.random() < 0.25:
        return {"encoders": {"history": encoder(draw, "history", "", draw.choice(DIMS))}}
    kind = draw.choice(["plain", "plain", "plain", "raw", "pairs_table"])
    chosen = [field for field in FIELDS[:-1] if draw.random() < 0.6] or ["user"]
    chosen = ["item", *chosen] if first and "item" not in chosen else chosen
    same = draw.choice(DIMS) if draw.random() < 0.7 or kind == "pairs_table" else None
    rest: dict[str, Any] = {}
    if draw.random() < 0.3:
        rest = {"align": draw.choice(["lift", "min", "pad"]), "width": draw.choice([None, None, 4, 5])}
    encoders = {field: encoder(draw, field, kind, same or draw.choice(DIMS)) for field in chosen}
    if rest.get("align") == "pad":
        encoders = {field: placed(draw, made, rest["width"] or max(DIMS)) for field, made in encoders.items()}
    return {"encoders": encoders, **rest}


def placed(draw: Draw, made: dict[str, Any], width: int) -> dict[str, Any]:
    """Mostly places that the view has."""
    if made["kind"] != "table" or draw.random() < 0.5:
        return made
    return {**made, "places": sorted(draw.sample(range(width + (draw.random() < 0.1)), made["dim"]))}


def fields_rule(draw: Draw) -> dict[str, Any]:
    return draw.choice([{}, {"align": "min"}, {"align": "pad"}, {"dim": 3}, {"dim": 2, "align": "lift"}])


def sequence_layer(draw: Draw) -> dict[str, Any]:
    kind = draw.choice(["skip", "conv", "mean_pool", "max_pool", "gru", "attention", "feed_forward", "identity"])
    sizes = {
        "conv": {"kernel": draw.randint(1, 4), "dilation": draw.randint(1, 3)},
        "mean_pool": {"kernel": draw.randint(2, 4)},
        "max_pool": {"kernel": draw.randint(2, 4)},
        "attention": {"heads": draw.randint(1, 2)},
    }
    return {"kind": kind, **sizes.get(kind, {})}


ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "identity")
OPS: dict[str, Callable[[Draw], dict[str, Any]]] = {
    "concat": lambda draw: {},
    "inner": fields_rule,
    "elementwise": lambda draw: {
        "kind": draw.choice(["sum", "average", "multiply", "max", "min"]),
        **fields_rule(draw),
    },
    "fm": fields_rule,
    "pairs": lambda draw: {
        "weight": draw.choice(["one", "scalar", {"attention": 3}]),
        "norm": draw.choice(["none", "none", "batch"]),
        "out": draw.choice(["sum", "each", "linear", "vector"]),
        **fields_rule(draw),
    },
    "triples": lambda draw: {
        "weight": draw.choice(["one", "scalar"]),
        "norm": draw.choice(["none", "batch"]),
        "out": draw.choice(["sum", "each"]),
        **fields_rule(draw),
    },
    "groups": lambda draw: {
        "order": draw.randint(1, 3),
        "norm": draw.choice(["none", "batch"]),
        **fields_rule(draw),
    },
    "hadamard": fields_rule,
    "se": lambda draw: {"reduction": draw.randint(1, 3), **fields_rule(draw)},
    "ffm": lambda draw: {},
    "dot": lambda draw: {"triangle": draw.choice(["strict", "full"]), **fields_rule(draw)},
    "cross": lambda draw: {"layers": draw.randint(1, 3), "kind": draw.choice(["vector", "matrix"])},
    "mha": lambda draw: {
        "dim": draw.choice(DIMS),
        "heads": draw.randint(1, 3),
        "layers": draw.randint(1, 2),
        "residual": draw.random() < 0.5,
        **draw.choice([{}, {"width": 3}, {"align": "min"}]),
    },
    "mlp": lambda draw: {
        "units": [draw.choice((2, 5)) for _ in range(draw.randint(1, 3))],
        "norm": draw.choice(["none", "batch"]),
        "dropout": draw.choice([0.0, 0.3]),
        "activation": draw.choice([*ACTIVATIONS, [draw.choice(ACTIVATIONS) for _ in range(2)]]),
        "shortcut": draw.choice(["none", "linear"]),
    },
    "pool": lambda draw: {"kind": draw.choice(["mean", "sum", "max"])},
    "positions": lambda draw: {"dropout": draw.choice([0.0, 0.1])},
    "seq": lambda draw: {
        "norm": draw.choice(["none", "layer"]),
        "layer": sequence_layer(draw),
        "activation": draw.choice(ACTIVATIONS),
        "residual": draw.random() < 0.8,
        "causal": draw.random() < 0.5,
        "dropout": draw.choice([0.0, 0.1]),
    },
    "last": lambda draw: {},
    "target_attention": lambda draw: {"units": [draw.choice(DIMS)]},
}
LISTING = {"pairs": ("keep", 2), "triples": ("keep", 3), "groups": ("sets", 2), "hadamard": ("sets", 2)}
STEPWISE_OPS = ("positions", "seq")
SEQUENCE_OPS = ("pool", "last", *STEPWISE_OPS)


def labels(ref: str, views: dict[str, Any]) -> list[str]:
    name, _, field = ref.partition(".")
    return [field] if field else list(views[name]["encoders"]) if name in views else [name]


def listing(draw: Draw, op: str, names: list[str]) -> dict[str, Any]:
    """Sets of fields, mostly some that the op takes."""
    key, least = LISTING[op]
    if key == "keep" and (len(names) < least or draw.random() < 0.5):
        return {key: "all"}
    names = names if draw.random() < 0.9 else [*names, "zip"]
    least = min(least, len(names))
    most = least if key == "keep" else len(names)
    sets = {tuple(draw.sample(names, draw.randint(least, most))) for _ in range(draw.randint(1, 3))}
    return {key: sorted(sets)}


def description(draw: Draw) -> dict[str, Any]:
    views = {f"v{i}": view(draw, first=i == 0) for i in range(draw.randint(1, 4))}
    sequences = [name for name, spec in views.items() if "history" in spec["encoders"]]
    aware = [name for name, spec in views.items() if any(e["kind"] == "pairs_table" for e in spec["encoders"].values())]
    refs = [name for name in views if name not in sequences + aware]
    refs += [f"{name}.{field}" for name in refs for field in views[name]["encoders"]]
    next_item = draw.random() < 0.3
    if next_item and draw.random() < 0.9:  # mostly what does not hold the answer
        refs, aware = [ref for ref in refs if "item" not in labels(ref, views)], []
    views_left = [ref for ref in refs if ref in views]
    nodes: list[dict[str, Any]] = []
    for number in range(draw.randint(0, 5)):
        op = draw.choice(list(OPS))
        inputs = some(draw, refs or list(views), 3)
        # Mostly inputs of the right kind, so that most descriptions come through.
        if op in SEQUENCE_OPS and sequences:
            inputs = [draw.choice(sequences)]
        elif op == "target_attention" and sequences and refs:
            inputs = [draw.choice(sequences), draw.choice(refs)]
        elif op == "ffm" and aware:
            inputs = [draw.choice(aware)]
        elif op in LISTING and draw.random() < 0.7:
            # Fields met twice cannot be listed by name.
            inputs = [draw.choice(views_left or refs or list(views))]
        elif op in (*SEQUENCE_OPS, "target_attention", "ffm") and draw.random() < 0.9:
            op = "mlp"
        node = {"id": f"n{number}", "op": op, "in": inputs, **OPS[op](draw)}
        if op in LISTING:
            node |= listing(draw, op, [label for ref in inputs for label in labels(ref, views)])
        nodes.append(node)
        (sequences if op in STEPWISE_OPS else refs).append(f"n{number}")
    task, mode = draw.choice(["ctr", "rating"]), draw.choice(["sum", "linear"])
    head: dict[str, Any] = {"mode": mode, "in": some(draw, refs or list(views), 3), "bias": draw.random() < 0.8}
    if next_item:
        task = "next_item"
        if draw.random() < 0.9:
            head |= {"mode": "items", "items": "v0.item"}
    return {"task": task, "fields": fields_of(SCHEMA), "views": views, "nodes": nodes, "head": head}


def routed_model(draw: Draw) -> dict[str, Any]:
    """Two or three models as one; seldom with a router that does not fit or parts that meet."""
    parts: list[Architecture] = []
    wanted = draw.randint(2, 3)
    while len(parts) < wanted:
        with suppress(ArchitectureError):
            part = Architecture.from_dict({**description(draw), "task": "ctr"})
            infer(part)
            parts.append(part)
    voters = draw.sample(["user", "item", "site.id"], draw.randint(1, 3))
    rows = {field: SCHEMA.field(field).cardinality + (draw.random() < 0.05) for field in voters}
    votes = {field: bytes(draw.randrange(256) for _ in range(size * (wanted - 1))) for field, size in rows.items()}
    data = joined(votes, parts)
    if draw.random() < 0.1:
        data["head"]["parts"][0]["in"] = data["head"]["parts"][1]["in"]
    return data


def joined(votes: dict[str, bytes], parts: list[Architecture]) -> dict[str, Any]:
    """As `routed` joins them, with whatever votes."""
    fits = {"user": packed(bytes(SCHEMA.field("user").cardinality * (len(parts) - 1)))}
    data = routed(fits, parts).to_dict()
    data["head"]["router"] = {field: packed(one) for field, one in votes.items()}
    return data


def behavior_model(draw: Draw) -> dict[str, Any]:
    """A stack of blocks over the history, products of fields and layers, all of which fit."""
    share = {"encoders": {"history": {"kind": "share", "view": "v0"}}}
    views = {"v0": {"encoders": {field: encoder(draw, field, "", 4, rows=0) for field in FIELDS[:-1]}}, "s": share}
    blocks = [
        {"id": f"s{n}", "op": op, "in": [f"s{n - 1}" if n else "s"], **OPS[op](draw)}
        for n, op in enumerate(draw.choice(["positions", "seq", "seq"]) for _ in range(draw.randint(1, 4)))
    ]
    for block in blocks:
        if block.get("layer") == {"kind": "skip"}:
            block["residual"] = True
    names = [*FIELDS[:-1], "taste"]
    sets = {tuple(sorted(draw.sample(names, draw.randint(2, 4)))) for _ in range(draw.randint(1, 3))}
    units = [3] * draw.randint(1, 3)
    nodes = [
        *blocks,
        {"id": "taste", "op": draw.choice(["pool", "last"]), "in": [blocks[-1]["id"]]},
        {"id": "products", "op": "hadamard", "in": ["v0", "taste"], "sets": draw.sample(sorted(sets), len(sets))},
        {"id": "scaled", "op": "se", "in": ["taste", "products"], "reduction": draw.randint(1, 3)},
        {
            **{"id": "deep", "op": "mlp", "in": [draw.choice(["scaled", "products"]), "v0"], "units": units},
            **{"activation": [draw.choice(ACTIVATIONS) for _ in units], "shortcut": draw.choice(["none", "linear"])},
        },
    ]
    fields = {"fields": fields_of(SCHEMA), "views": views}
    return {"task": "ctr", **fields, "nodes": nodes, "head": {"mode": "sum", "in": ["deep"]}}


def check(data: dict[str, Any]) -> bool:
    """True if it was built and ran, False if it was refused."""
    try:
        architecture = Architecture.from_dict(data)
        infer(architecture)
    except ArchitectureError as refused:
        return check_refused(str(refused))
    counts = count(architecture)
    model = build(architecture, label_mean=0.4, table_init=0.1, seed=0)
    assert parameters(model.table_parameters()) == counts.tables
    assert parameters(model.lift_parameters()) == counts.lifts
    assert parameters(model.dense_parameters()) == counts.lifts + counts.dense
    output = multiplied_out(model(batch_of(SCHEMA, rows=3)))
    if isinstance(architecture.head, ItemsHead):
        target = architecture.head.items.partition(".")[2]
        assert output.shape == (3, architecture.fields[target].cardinality)
        assert torch.equal(output[:, 0].isneginf(), torch.ones(3, dtype=torch.bool))
        assert_blind(model, target)
        output = output[:, 1:]
    else:
        assert output.shape == (3,)
    if output.requires_grad:
        output.sum().backward()
    live = architecture.live()
    assert live.live() == live
    assert count(live) == counts
    assert live.hash == architecture.hash == Architecture.from_dict(architecture.to_dict()).hash
    return True


def assert_blind(model: Model, target: str) -> None:
    """What is predicted does not depend on the row's own value of it."""
    model.eval()
    batch = batch_of(SCHEMA, rows=3)
    ids_BC = batch.categorical.clone()
    column = SCHEMA.names("categorical").index(target)
    ids_BC[:, column] = (ids_BC[:, column] + 1) % SCHEMA.field(target).cardinality
    output, changed = (multiplied_out(model(rows)) for rows in (batch, replace(batch, categorical=ids_BC)))
    assert torch.equal(output, changed)
    model.train()


def check_refused(message: str) -> bool:
    assert message.startswith(("node '", "view '", "head: ")), message
    return False


def run(numbers: range) -> float:
    """The share of random descriptions that were built."""
    built = []
    for number in numbers:
        data = description(random.Random(number))
        try:
            built.append(check(data))
        except Exception as error:
            raise AssertionError(f"description {number} fails: {data}") from error
    return sum(built) / len(built)


def test_random_descriptions() -> None:
    torch.manual_seed(0)
    share = run(range(300))
    assert 0.2 < share < 0.9  # of thousands 0.28


def test_random_routed_models() -> None:
    torch.manual_seed(0)
    outcomes = [check(routed_model(random.Random(number))) for number in range(60)]
    assert 0.5 < sum(outcomes) / len(outcomes) < 1


def test_random_behavior_models() -> None:
    torch.manual_seed(0)
    for number in range(50):
        assert check(behavior_model(random.Random(number))), number


@pytest.mark.slow
def test_ten_thousand_random_descriptions() -> None:
    torch.manual_seed(0)
    run(range(300, 10_000))
