"""Tests that names are unique: those of public classes, and those of modules within a package."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("exporters", "builders", "plugins", "runtime", "benchmarks")

# Public classes that may share a name, and why: in each place the module or folder completes it.
SHARED_CLASSES = {
    "Config": "one per method: its options; always written as the method's, `kvarn.Config`",
}

# Modules that may share a name within a package, and why: the folder gives the word the same meaning each time.
SHARED_MODULES = {
    "__init__": "the face of a folder",
    "__main__": "what `python -m` runs of a folder",
    "backend": "the class that opens engines of the backend whose folder it is",
    "build": "a function, and the command that calls it",
    "conftest": "pytest's fixtures for the tests of its folder",
    "feature": "the interface, and the feature whose folder it is",
    "method": "the hooks of the method whose folder it is",
    "reference": "a definition that the rest of the folder is compared with",
    "registry": "the names that the folder knows",
}
# In plugins/ an op is one stem, and names both its declaration and its oracle.
OP_FOLDERS = {"plugins/ops", "plugins/oracles"}


def modules(package: str) -> list[Path]:
    """Every Python file of a package, none where there is no such folder."""
    return sorted(path for path in (ROOT / package).rglob("*.py") if "__pycache__" not in path.parts)


def name_of(path: Path) -> str:
    """The path as error messages show it."""
    return path.relative_to(ROOT).as_posix()


def public_classes() -> dict[str, list[str]]:
    """Name of every public class at the top of a module -> where it is defined."""
    places = defaultdict(list)
    for package in PACKAGES:
        for path in modules(package):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(f"{name_of(path)}:{node.lineno}")
    return places


def test_public_classes_have_names_of_their_own() -> None:
    shared = {
        name: places for name, places in public_classes().items() if len(places) > 1 and name not in SHARED_CLASSES
    }
    listing = "\n".join(f"{name}: {', '.join(places)}" for name, places in sorted(shared.items()))
    if shared:
        pytest.fail(f"rename all but one of each, for what it is of:\n{listing}", pytrace=False)


def test_shared_class_names_are_shared() -> None:
    classes = public_classes()
    assert not [name for name in SHARED_CLASSES if len(classes[name]) < 2], "take these out of SHARED_CLASSES"


@pytest.mark.parametrize("package", PACKAGES)
def test_modules_of_a_package_have_names_of_their_own(package: str) -> None:
    places = defaultdict(list)
    for path in modules(package):
        if path.stem not in SHARED_MODULES:
            places[path.stem].append(path)
    shared = {
        stem: paths
        for stem, paths in places.items()
        if len(paths) > 1 and not {name_of(path.parent) for path in paths} <= OP_FOLDERS
    }
    listing = "\n".join(f"{stem}: {', '.join(map(name_of, paths))}" for stem, paths in sorted(shared.items()))
    if shared:
        advice = "rename all but one of each, or say in SHARED_MODULES why the word means the same"
        pytest.fail(f"{advice}:\n{listing}", pytrace=False)


def test_shared_module_names_are_shared() -> None:
    stems = [[path.stem for path in modules(package)] for package in PACKAGES]
    stale = [name for name in SHARED_MODULES if not any(each.count(name) > 1 for each in stems)]
    assert not [name for name in stale if name != "__main__"], "take these out of SHARED_MODULES"


def test_the_check_sees_classes() -> None:
    """The reader finds what is there, so that an empty list of shared names means something."""
    assert {"LLM", "Sampling"} <= public_classes().keys()
