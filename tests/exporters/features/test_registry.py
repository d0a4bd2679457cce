"""The door of attention features: a file is a feature, and objects that are none are refused with their module."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaConfig

from enginewright.exporters import features
from enginewright.exporters.features.registry import find_features, read_features
from enginewright.runtime.artifact.extension import extend
from enginewright.runtime.errors import ExtensionError

WRITTEN = """
from enginewright.exporters.features.feature import Feature

class Loud:
    def describe(self):
        return "loud"

FEATURE = Feature(name="loud", title="Loud", summary="x", read=lambda config: Loud() if hasattr(config, "loud") else None)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of features next to the package's own; it is forgotten after the test."""
    monkeypatch.setattr(features, "__path__", list(features.__path__))
    (tmp_path / "features").mkdir()
    extend(tmp_path)
    yield tmp_path / "features"
    for name in [name for name in sys.modules if name.startswith(f"{features.__name__}.extra_")]:
        del sys.modules[name]


def test_the_packages_features() -> None:
    assert list(find_features()) == ["depth_attention"]
    assert read_features(LlamaConfig()) == ()


def test_a_file_is_a_feature(folder: Path) -> None:
    (folder / "extra_loud.py").write_text(WRITTEN)
    assert [found.describe() for found in read_features(LlamaConfig(loud=True))] == ["loud"]
    assert read_features(LlamaConfig()) == ()


def test_an_object_that_is_no_feature(folder: Path) -> None:
    (folder / "extra_wrong.py").write_text("FEATURE = 'loud'\n")
    with pytest.raises(
        ExtensionError, match=r"extra_wrong\.py: FEATURE: got an object of type str, expected a Feature"
    ):
        find_features()
