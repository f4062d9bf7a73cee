"""The CRD's schema is structural, as Kubernetes demands, and the reference page is up to date."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import pipelines
from pipelines.reference import reference_page
from pipelines.schema import structural_schema

ROOT = Path(pipelines.__file__).parents[1]
GALLERY = sorted((ROOT / "pipelines" / "gallery").glob("*.yaml"))

ALLOWED = {
    "type", "description", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum",
    "exclusiveMaximum", "minItems", "maxItems", "default", "nullable", "properties", "required", "additionalProperties",
    "maxProperties", "items", "x-kubernetes-preserve-unknown-fields",
}  # fmt: skip


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for key, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{key}")
    for key in ("items", "additionalProperties"):
        if key in schema:
            yield from nodes(schema[key], f"{path}.{key}")


ALL_NODES = list(nodes(structural_schema()))


@pytest.mark.parametrize(("path", "node"), ALL_NODES, ids=[path or "root" for path, _ in ALL_NODES])
def test_every_node_is_structural(path: str, node: dict[str, Any]) -> None:
    assert set(node) <= ALLOWED
    assert node.get("type") in ("object", "array", "string", "integer", "number", "boolean") or (
        node.get("x-kubernetes-preserve-unknown-fields") is True
    )
    assert not ("properties" in node and "additionalProperties" in node)
    assert isinstance(node.get("exclusiveMinimum", True), bool)
    assert set(node.get("required", ())) <= set(node.get("properties", ()))
    if node.get("type") == "array":
        assert isinstance(node["items"], dict)
    if "default" in node:
        assert node["default"] is not None
        jsonschema.validate(node["default"], draft(node))
    if node.get("nullable") and "enum" in node:
        assert None in node["enum"]


def test_only_the_choices_of_models_are_open() -> None:
    still_open = [path for path, node in ALL_NODES if "x-kubernetes-preserve-unknown-fields" in node]

    assert {path.rsplit(".", 1)[1] for path in still_open} == {"choices"}


def test_metadata_restricts_the_name_only() -> None:
    metadata = structural_schema()["properties"]["metadata"]

    assert metadata["type"] == "object"
    assert list(metadata["properties"]) == ["name"]


@pytest.mark.parametrize("file", GALLERY, ids=lambda file: file.stem)
def test_gallery_files_fit_the_schema(file: Path) -> None:
    jsonschema.validate(yaml.safe_load(file.read_text()), draft(structural_schema()))


def test_the_schema_refuses_what_the_model_refuses() -> None:
    data = yaml.safe_load(GALLERY[0].read_text())
    data["spec"]["search"]["trials"] = 0

    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, draft(structural_schema()))


def test_the_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "pipeline.md").read_text()

    assert page == reference_page(), "run: dalil schema --markdown > docs/pipeline.md"


def test_the_reference_page_names_every_key() -> None:
    page = reference_page()

    for path, node in ALL_NODES:
        for key in node.get("properties", ()):
            assert f"| `{key}` |" in page, f"{path}.{key}"


def draft(node: dict[str, Any]) -> dict[str, Any]:
    """An OpenAPI 3.0 schema in the dialect of the checker: nullable and boolean exclusive bounds spelled out."""
    plain = {key: value for key, value in node.items() if key != "nullable"}
    for bound in ("minimum", "maximum"):
        if plain.pop(f"exclusive{bound.title()}", False):
            plain[f"exclusive{bound.title()}"] = plain.pop(bound)
    if node.get("nullable") and "type" in plain:
        plain["type"] = [plain["type"], "null"]
    for key in ("items", "additionalProperties"):
        if key in plain:
            plain[key] = draft(plain[key])
    if "properties" in plain:
        plain["properties"] = {key: draft(value) for key, value in plain["properties"].items()}
    return plain
