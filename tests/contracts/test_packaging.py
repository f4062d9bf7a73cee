"""What is installed elsewhere than here (an image, another environment) has every file that the code reads."""

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("package", ["pipelines", "components", "trainer"])
def test_every_file_that_is_no_module_is_installed_too(package: str) -> None:
    folder = ROOT / package
    patterns = PROJECT["tool"]["setuptools"]["package-data"][package]
    installed = {path for pattern in patterns for path in folder.glob(pattern)}
    files = {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in files if path.suffix != ".py"} == installed
