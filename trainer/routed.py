"""Several architectures as one, which sends each row to one of them (`architecture.RoutedHead`)."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.architecture import Architecture

Data = dict[str, Any]


def routed(router: Mapping[str, str], parts: Sequence[Architecture]) -> Architecture:
    """Architectures for the same task and fields as the parts of one, group k going to `parts[k]`.

    `router`: packed votes by field. Views and nodes of part k get `g<k>-` before their names. Nodes that list sets of
    fields must call them by the fields' names, not by those of nodes.
    """
    data: Data = {"task": parts[0].task, "fields": parts[0].to_dict()["fields"], "views": {}, "nodes": []}
    heads = []
    for number, part in enumerate(parts):
        described, prefix = part.to_dict(), f"g{number}-"
        for name, view in described["views"].items():
            data["views"][prefix + name] = {**view, "encoders": _shared(view["encoders"], prefix)}
        data["nodes"] += [{**_read(node, prefix), "id": prefix + node["id"]} for node in described["nodes"]]
        heads.append(_read(described["head"], prefix))
    return Architecture.from_dict(data | {"head": {"mode": "routed", "router": dict(router), "parts": heads}})


def _read(user: Data, prefix: str) -> Data:
    return {**user, "in": [prefix + ref for ref in user["in"]]}


def _shared(encoders: Data, prefix: str) -> Data:
    return {
        field: {**encoder, "view": prefix + encoder["view"]} if encoder["kind"] == "share" else encoder
        for field, encoder in encoders.items()
    }
