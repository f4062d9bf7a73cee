"""The form of all models that AMEIR finds, and what is decided of one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trainer.architecture import Architecture, fields_of
from trainer.errors import UserError
from trainer.methods.base import WIDTH, Data
from trainer.methods.settings import AMEIRSettings
from trainer.schema import DatasetSchema
from trainer.space import choice

FIELDS, DEEP, STATE, PRODUCTS, EXCITED = "e", "deep", "state", "products", "excited"
"""Names of the view of all fields, of the layers, of their image as wide as an item, of the products, and of SE."""


def history(number: int) -> str:
    """The name of the view of the n-th sequence field, and the beginning of those of its nodes."""
    return f"history{number}"


@dataclass(frozen=True)
class Decided:
    """The open parts of a skeleton; as it is made, what stands for them while nobody has searched them."""

    units: tuple[int, ...]
    activations: tuple[str, ...]
    blocks: Mapping[str, tuple[Data, ...]] = field(default_factory=dict)
    """By sequence field: `norm`, `layer` and `activation` of each block."""
    pooling: Mapping[str, str] = field(default_factory=dict)
    """By sequence field: mean, last or target."""
    products: tuple[tuple[str, ...], ...] = ()
    excitation: bool = False


def space(schema: DatasetSchema, settings: AMEIRSettings) -> Data:
    """The skeleton with nothing decided: pooled histories beside all fields, then layers."""
    dim = choice(WIDTH, settings.dims, default=settings.dims[0])
    encoders = _encoders(schema, dim)
    sequences = schema.names("sequence")
    if not encoders:
        raise UserError("search.methods: ameir needs a field that is no sequence, and the dataset has none")
    views = {FIELDS: {"encoders": encoders}}
    views |= {history(n): {"encoders": {name: {"kind": "share", "view": FIELDS}}} for n, name in enumerate(sequences)}
    units = choice("mlp.units", settings.units, default=settings.units[0])
    dropout = choice("mlp.dropout", settings.dropout, default=settings.dropout[0])
    pooled = [{"id": f"{history(n)}-pool", "op": "pool", "in": [history(n)]} for n in range(len(sequences))]
    inputs = [*([] if schema.task == "next_item" else [FIELDS]), *(node["id"] for node in pooled)]
    deep = {"id": DEEP, "op": "mlp", "in": inputs, "units": units, "dropout": dropout, "shortcut": "linear"}
    nodes: list[Data] = [*pooled, deep]
    head: Data = {"mode": "linear", "in": [DEEP]}
    if schema.task == "next_item":
        nodes.append({"id": STATE, "op": "mlp", "in": [DEEP], "units": [dim], "activation": "identity"})
        head = {"mode": "items", "in": [STATE], "items": f"{FIELDS}.{schema.target}"}
    return {
        "version": 1,
        "task": schema.task,
        "fields": fields_of(schema),
        "views": views,
        "nodes": nodes,
        "head": head,
    }


def _encoders(schema: DatasetSchema, dim: Data) -> dict[str, Data]:
    """One table or scaled vector per field; to predict an item, only of the fields whose histories are read.

    Other fields of a row may describe the very item that was chosen.
    """
    kinds = {"categorical": {"kind": "table", "dim": dim}, "numeric": {"kind": "scale", "dim": dim}}
    fields = [one for one in schema.fields if one.kind != "sequence"]
    if schema.task == "next_item":
        read = {schema.target, *(one.of for one in schema.fields if one.kind == "sequence")}
        fields = [one for one in fields if one.name in read]
    return {one.name: kinds[one.kind] for one in fields}


class Skeleton:
    """A filled skeleton, and the models that come of it."""

    def __init__(self, architecture: Architecture, plan: Mapping[str, Any]) -> None:
        self.data, self.task, self.plan = architecture.to_dict(), architecture.task, plan
        self.nodes = {node["id"]: node for node in self.data["nodes"]}
        self.units: tuple[int, ...] = tuple(self.nodes[DEEP]["units"])
        views = self.data["views"]
        self.histories = [next(iter(view["encoders"])) for name, view in views.items() if name != FIELDS]
        self.fields = [] if self.task == "next_item" else list(views[FIELDS]["encoders"])
        """Those that are read beside the histories, and can be multiplied."""
        self.start = Decided(self.units, ("relu",) * len(self.units))

    @property
    def dim(self) -> int:
        dim: int = next(iter(self.data["views"][FIELDS]["encoders"].values()))["dim"]
        return dim

    def poolings(self, sequence: str) -> list[str]:
        """Those of the plan that are possible: a row has no target where that is what is predicted."""
        target = self.data["fields"][sequence]["of"] in self.fields
        return [kind for kind in self.plan["pooling"] if kind != "target" or target]

    def architecture(self, decided: Decided) -> Architecture:
        """The model of what is decided, to be trained from scratch."""
        return self.described(decided).live()

    def described(self, decided: Decided) -> Architecture:
        """The same with the blocks that skip."""
        nodes = [node for n, name in enumerate(self.histories) for node in self._behavior(n, name, decided)]
        inputs = [*([FIELDS] if self.fields else []), *(f"{history(n)}-pool" for n in range(len(self.histories)))]
        if decided.products:
            sets = [list(one) for one in decided.products]
            nodes.append({"id": PRODUCTS, "op": "hadamard", "in": [FIELDS], "sets": sets})
            inputs.append(PRODUCTS)
        if decided.excitation:
            nodes.append({"id": EXCITED, "op": "se", "in": inputs})
            inputs = [EXCITED]
        layers = {"units": list(decided.units), "activation": list(decided.activations)}
        nodes.append({**self.nodes[DEEP], "in": inputs, **layers})
        nodes += [self.nodes[STATE]] if STATE in self.nodes else []
        return Architecture.from_dict({**self.data, "nodes": nodes})

    def _behavior(self, number: int, sequence: str, decided: Decided) -> list[Data]:
        name = history(number)
        nodes: list[Data] = []
        if self.plan["positions"]:
            nodes.append({"id": f"{name}-positions", "op": "positions", "in": [name]})
        for place, block in enumerate(decided.blocks.get(sequence, ())):
            last = nodes[-1]["id"] if nodes else name
            nodes.append({"id": block_name(number, place), "op": "seq", "in": [last], **block})
        last = nodes[-1]["id"] if nodes else name
        pool: Data = {"id": f"{name}-pool", "in": [last]}
        match decided.pooling.get(sequence, "mean"):
            case "target":
                target = f"{FIELDS}.{self.data['fields'][sequence]['of']}"
                pool |= {"op": "target_attention", "in": [last, target]}
            case "last":
                pool["op"] = "last"
            case kind:
                pool |= {"op": "pool", "kind": kind}
        return [*nodes, pool]


def block_name(number: int, place: int) -> str:
    """The node of a block of the n-th sequence field."""
    return f"{history(number)}-block{place}"
