"""The arrows between the folders of csrc, read off the includes."""

from __future__ import annotations

import re

import pytest

from enginewright.plugins.build import PLUGINS

CSRC = PLUGINS / "csrc"
# Folder -> the folders that it may include besides its own; `generated` is written by plugins/generate.py.
ARROWS = {
    "layout": set[str](),
    "abi": set[str](),
    "emulation": set[str](),
    "ops": {"layout", "abi", "generated"},
    "cpu": {"layout", "generated"},
    "kernels": {"layout", "emulation"},  # the last for a kernel's device alone
    "launchers": {"kernels", "layout", "abi", "generated"},
    "hosts/ort_cpu": {"cpu", "ops", "layout"},
    "hosts/ort_cuda": {"hosts/ort_cpu", "ops", "abi"},
    "hosts/tensorrt": {"ops", "abi"},
}


def folder_of(path: str) -> str:
    """The entry of ARROWS that a path from csrc on belongs to."""
    return next((name for name in ARROWS if path.startswith(f"{name}/")), path.split("/")[0])


def includes() -> list[tuple[str, str]]:
    """Each source file, and each file of ours that it includes."""
    return [
        (path.relative_to(CSRC).as_posix(), name)
        for path in sorted(CSRC.rglob("*"))
        if path.suffix in (".h", ".cpp", ".cu", ".cuh")
        for name in re.findall(r'#include "([^"]+)"', path.read_text())
    ]


def test_the_reader_finds_includes() -> None:
    assert ("launchers/kvarn_store.cu", "kernels/kvarn/kvarn_store.cuh") in includes()


def test_includes_are_written_from_csrc_on() -> None:
    assert not [pair for pair in includes() if not (CSRC / pair[1]).exists() and not pair[1].startswith("generated/")]


@pytest.mark.parametrize("folder", ARROWS)
def test_arrows(folder: str) -> None:
    allowed = {folder, *ARROWS[folder]}
    mine = [(path, name) for path, name in includes() if folder_of(path) == folder]
    assert mine or folder == "abi"
    assert not [f"{path} includes {name}" for path, name in mine if folder_of(name) not in allowed]


def test_only_the_device_knows_its_emulation() -> None:
    assert {path for path, name in includes() if name.startswith("emulation/") and folder_of(path) == "kernels"} == {
        "kernels/device/device.cuh"
    }


def test_every_folder_has_arrows() -> None:
    assert {folder_of(path) for path, _ in includes()} <= set(ARROWS)
