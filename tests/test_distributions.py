"""The five distributions keep step: one version, one license, siblings that ask for exactly this core."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGES = Path(__file__).parents[1] / "packages"
DISTRIBUTIONS = sorted(path.name for path in PACKAGES.iterdir() if (path / "pyproject.toml").exists())


def project(distribution: str) -> dict[str, Any]:
    return tomllib.loads((PACKAGES / distribution / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def version(distribution: str) -> str:
    module = PACKAGES / distribution / "src" / distribution.replace("-", "_") / "__init__.py"
    found = re.search(r'^__version__ = "(.+)"$', module.read_text(encoding="utf-8"), re.MULTILINE)
    assert found, f"{module} has no __version__"
    return found[1]


def test_there_are_five():
    assert DISTRIBUTIONS == ["vila-core", "vila-eval", "vila-quant", "vila-serve", "vila-train"]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_versions_are_in_step(distribution: str):
    """`nox -s bump -- X.Y.Z` sets all of them."""
    assert version(distribution) == version("vila-core")
    for requirement in project(distribution)["dependencies"]:
        if requirement.startswith("vila-"):
            assert requirement == f"vila-core=={version('vila-core')}"


def test_a_dependency_has_one_range_everywhere():
    """Several distributions name it, and pip reads only those that are installed."""
    ranges: dict[str, set[str]] = {}
    for distribution in DISTRIBUTIONS:
        for text in project(distribution)["dependencies"]:
            requirement = Requirement(text)
            ranges.setdefault(canonicalize_name(requirement.name), set()).add(str(requirement.specifier))
    assert not {name: found for name, found in ranges.items() if len(found) > 1}


def test_every_pyav_of_the_range_converts_hd_colors_right():
    """PyAV 15 and 16 ignore the color space of a video; 17.0.0 is the first that does not."""
    (av,) = (text for text in project("vila-core")["dependencies"] if text.startswith("av"))
    assert "16.1.0" not in Requirement(av).specifier
    assert "17.0.0" in Requirement(av).specifier


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_license_is_the_same_text(distribution: str):
    license_text = (PACKAGES.parent / "LICENSE").read_bytes()
    assert project(distribution)["license"] == "Apache-2.0"
    assert (PACKAGES / distribution / "LICENSE").read_bytes() == license_text


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_types_are_announced(distribution: str):
    assert (PACKAGES / distribution / "src" / distribution.replace("-", "_") / "py.typed").exists()
