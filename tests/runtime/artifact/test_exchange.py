"""Tests of exchanging two directories' names in one step."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace

import pytest

from enginewright.runtime.artifact.exchange import exchange


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two directories, each with a file of its own name."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    return tmp_path / "a", tmp_path / "b"


def test_both_names_change_or_neither(pair: tuple[Path, Path]) -> None:
    first, second = pair
    is_exchanged = exchange(first, second)  # false on a file system that cannot
    assert (first / "b").exists() == (second / "a").exists() == is_exchanged
    assert (first / "a").exists() == (second / "b").exists() == (not is_exchanged)


def test_a_system_without_the_call(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())
    assert not exchange(*pair)
    assert (pair[0] / "a").exists()


def test_a_refusal_of_the_system_is_no_failure(pair: tuple[Path, Path]) -> None:
    inner = pair[0] / "inner"
    inner.mkdir()
    assert not exchange(pair[0], inner)  # EINVAL, as from a file system without the exchange


def test_a_failure_names_both_paths(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a.*missing"):
        exchange(pair[0], tmp_path / "missing")
