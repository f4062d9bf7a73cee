"""The pipeline model as Kubernetes wants it: a structural OpenAPI v3 schema for a CustomResourceDefinition.

Rules of structural schemas (https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/
custom-resource-definitions/#specifying-a-structural-schema): every value has a type, no references, no
`additionalProperties: false` beside properties, `nullable` instead of a union with null, boolean `exclusiveMinimum`.
"""

from typing import Any

from pipelines.spec import SearchPipeline

Schema = dict[str, Any]

_KEPT = (
    "type",
    "description",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "minItems",
    "maxItems",
    "maxProperties",
)


def structural_schema() -> Schema:
    """The `openAPIV3Schema` of `SearchPipeline`. `metadata` holds what Kubernetes lets a schema say: the name."""
    whole = SearchPipeline.model_json_schema()
    schema = _structural(whole, whole["$defs"])
    properties = schema["properties"]
    properties["apiVersion"] = {"type": "string"}
    properties["kind"] = {"type": "string"}
    name = properties["metadata"]["properties"]["name"]
    properties["metadata"] = {"type": "object", "properties": {"name": name}}
    schema["required"] = ["spec"]
    return schema


def _structural(node: Schema, models: dict[str, Schema]) -> Schema:
    node = _resolved(node, models)
    if "anyOf" in node:
        return _nullable(node, models)
    schema = {key: node[key] for key in _KEPT if key in node}
    if "const" in node:
        schema["enum"] = [node["const"]]
    for bound in ("Minimum", "Maximum"):
        if f"exclusive{bound}" in node:
            schema[bound.lower()] = node[f"exclusive{bound}"]
            schema[f"exclusive{bound}"] = True
    if node.get("default") is not None:
        # An object's own default is empty: the API server fills its keys with theirs.
        schema["default"] = {} if isinstance(node["default"], dict) else node["default"]
    if "properties" in node:
        schema["properties"] = {key: _structural(value, models) for key, value in node["properties"].items()}
        schema |= {key: node[key] for key in ("required",) if key in node}
    elif isinstance(node.get("additionalProperties"), dict) and node["additionalProperties"]:
        schema["additionalProperties"] = _structural(node["additionalProperties"], models)
    elif node.get("type") == "object":
        schema["x-kubernetes-preserve-unknown-fields"] = True
    if "items" in node:
        schema["items"] = _structural(node["items"], models)
    return schema


def _resolved(node: Schema, models: dict[str, Schema]) -> Schema:
    """The node with its reference replaced by what it refers to; the node's own description wins."""
    if "$ref" not in node:
        return node
    return {**models[node["$ref"].rsplit("/", 1)[1]], **{key: node[key] for key in node if key != "$ref"}}


def _nullable(node: Schema, models: dict[str, Schema]) -> Schema:
    """`X | None`, the one union in the model."""
    (inner,) = [option for option in node["anyOf"] if option != {"type": "null"}]
    schema = _structural({**inner, **{key: node[key] for key in node if key != "anyOf"}}, models)
    return {**schema, "nullable": True} | ({"enum": [*schema["enum"], None]} if "enum" in schema else {})
