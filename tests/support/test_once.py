"""Shared work is done once for a key, and done again where it failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.once import made_once


def test_each_key_is_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    calls: list[Path] = []

    def make(folder: Path) -> None:
        calls.append(folder)
        (folder / "content").write_text("made")

    folders = [made_once(tmp_path_factory, key, make) for key in ("once: one", "once: other", "once: one")]
    assert folders[0] == folders[2] != folders[1] and calls == folders[:2]
    assert all((folder / "content").read_text() == "made" for folder in folders)


def test_what_failed_is_made_anew(tmp_path_factory: pytest.TempPathFactory) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        made_once(tmp_path_factory, "once: failed", fail)
    folder = made_once(tmp_path_factory, "once: failed", lambda folder: (folder / "whole").touch())
    assert [path.name for path in folder.iterdir()] == ["whole"]
