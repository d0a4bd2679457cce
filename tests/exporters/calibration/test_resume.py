"""Tests that a calibration interrupted anywhere and started again ends with the same bytes."""

from __future__ import annotations

import errno
import hashlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from enginewright.exporters.calibration import (
    Calibration,
    LinearGroup,
    Quantize,
    activation_file,
    atomic_files,
    block_walk,
)
from enginewright.exporters.calibration.block_results import QuantizedLayer
from enginewright.exporters.calibration.calibrate import hash_layers
from enginewright.runtime.errors import ExportError
from tests.support.exporters.calibration_reference import draw_tokens, round_group, start
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.paths import ROOT

TOKENS = draw_tokens(sequences=5, length=24)


class Stop(Exception):
    """Interrupts a run."""


def run(path: Path, folder: Path, objective: str = "self", quantize: Quantize = round_group, key: str = "test") -> None:
    """Calibrate in batches of 2, 2 and 1."""
    start(path, TOKENS, Calibration(objective=objective, batch_tokens=48), quantize, folder, key=key)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of the folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def counting(calls: list[str], stop_at: int | None = None) -> Quantize:
    """A quantiser that records its calls and interrupts the run at one of them."""

    def quantize(group: LinearGroup) -> tuple[torch.Tensor, torch.Tensor]:
        if len(calls) == stop_at:
            raise Stop
        calls.append(group.names[0])
        return round_group(group)

    return quantize


@pytest.mark.parametrize(("family", "objective"), [("gemma2", "self"), ("qwen3", "cross")])
def test_resumes_after_any_group(family: str, objective: str, checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    path, every = checkpoint(family), list[str]()
    run(path, tmp_path / "whole", objective, counting(every))
    expected = contents(tmp_path / "whole")
    for stop_at in range(len(every)):
        folder, before, after = tmp_path / str(stop_at), list[str](), list[str]()
        with pytest.raises(Stop):
            run(path, folder, objective, counting(before, stop_at))
        assert not list(folder.glob("*.scratch"))
        run(path, folder, objective, counting(after))
        assert after == every[stop_at // 4 * 4 :], "blocks of four groups that are done are not calibrated again"
        assert contents(folder) == expected


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["self", "cross"])
def test_a_full_disk_leaves_the_blocks_that_are_done(
    objective: str, checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint("mistral")
    run(path, tmp_path / "whole", objective)
    expected, stopped, writes = contents(tmp_path / "whole"), 0, 0
    while True:
        folder = tmp_path / f"full-{writes}"
        with monkeypatch.context() as patch:
            left = fill_disk_after(patch, writes)
            try:
                run(path, folder, objective)
            except ExportError as e:
                stopped += 1
                assert str(folder) in str(e) and "make room" in str(e)
            if not left():
                break
        run(path, folder, objective)
        assert contents(folder) == expected
        writes += 5  # odd, so that it comes upon states, parts, results and notes
    assert stopped > 5


def fill_disk_after(patch: pytest.MonkeyPatch, writes: int) -> Callable[[], bool]:
    """Make every write after the first `writes` find the disk full; return whether one did."""
    count = 0

    class Full(activation_file.FileIO):
        def write(self, content: object, /) -> int:
            take()
            return super().write(content)  # type: ignore[arg-type]

    def take() -> None:
        nonlocal count
        count += 1
        if count > writes:
            raise OSError(errno.ENOSPC, "No space left on device")

    def replace(path: Path, content: bytes) -> None:
        with atomic_files.disk_errors(path.parent):
            take()
        original(path, content)

    original = atomic_files.replace_file
    patch.setattr(activation_file, "FileIO", Full)
    patch.setattr("enginewright.exporters.calibration.block_results.replace_file", replace)
    patch.setattr("enginewright.exporters.calibration.resume.replace_file", replace)
    return lambda: count > writes


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import tests.conftest  # an installed package, or the checkout
import torch
torch.set_num_threads(1)
from tests.support.exporters import calibration_reference
from pathlib import Path
from tests.exporters.calibration.test_resume import TOKENS, run
calls = 0
def quantize(group):
    global calls
    calls += 1
    if calls == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return calibration_reference.round_group(group)
run(Path({path!r}), Path({folder!r}), "cross", quantize)
"""


@pytest.mark.slow
def test_resumes_after_being_killed(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    path, killed = checkpoint("qwen2"), tmp_path / "killed"
    killed.mkdir()
    (killed / "mine.tmp").write_bytes(b"not the calibration's to delete")
    code = KILLED.format(tests=str(ROOT), path=str(path), folder=str(killed))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (killed / "block-0000.safetensors").is_file() and list(killed.glob("*.scratch"))
    after: list[str] = []
    run(path, killed, "cross", counting(after))
    assert len(after) == 4
    run(path, tmp_path / "whole", "cross")
    (killed / "mine.tmp").unlink()
    assert contents(killed) == contents(tmp_path / "whole")


def test_a_finished_folder_is_only_read(
    checkpoint: CheckpointMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(checkpoint("llama"), tmp_path)
    before = contents(tmp_path)
    monkeypatch.setattr(block_walk.BlockWalk, "run", lambda *_: pytest.fail("nothing is to be computed"))
    run(checkpoint("llama"), tmp_path)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("objective", ["self", "cross"])
@pytest.mark.parametrize("missing", [[0], [1], [2], [0, 2]])
def test_deleted_results_are_made_anew(
    missing: list[int], objective: str, checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    model = checkpoint("gemma2", num_hidden_layers=3)
    run(model, tmp_path, objective)
    before, calls = contents(tmp_path), list[str]()
    for number in missing:
        (tmp_path / f"block-{number:04d}.safetensors").unlink()
    run(model, tmp_path, objective, counting(calls))
    assert contents(tmp_path) == before
    assert calls[::4] == [f"model.layers.{number}.self_attn.q_proj.weight" for number in missing]


def test_states_that_changed_are_not_used(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    path, broken, calls = checkpoint("qwen3"), tmp_path / "broken", list[str]()
    run(path, tmp_path / "whole")
    with pytest.raises(Stop):
        run(path, broken, quantize=counting([], 5))
    (states,) = broken.glob("*.states")
    content = bytearray(states.read_bytes())
    content[100] ^= 1
    states.write_bytes(content)
    run(path, broken, quantize=counting(calls))
    assert contents(broken) == contents(tmp_path / "whole")
    assert len(calls) == 4, "the result of the first block is kept"


def test_another_key_is_refused(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    run(checkpoint("qwen3"), tmp_path)
    with pytest.raises(ExportError, match=rf"{tmp_path}.*key: got 'test', expected 'other'; choose another folder"):
        run(checkpoint("qwen3"), tmp_path, key="other")
    with pytest.raises(ExportError, match=r"settings: got"):
        run(checkpoint("qwen3"), tmp_path, "cross")
    with pytest.raises(ExportError, match=r"tokens: got"):
        start(checkpoint("qwen3"), TOKENS[:2], Calibration(objective="self", batch_tokens=48), round_group, tmp_path)


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"x" * len(data)])
def test_damaged_results_are_named(
    damage: Callable[[bytes], bytes], checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    path, file = checkpoint("qwen3"), tmp_path / "block-0001.safetensors"
    results = start(path, TOKENS, Calibration(objective="self", batch_tokens=48), round_group, tmp_path)
    before = contents(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ExportError, match=r"block-0001.safetensors: damaged .*; delete this file"):
        run(path, tmp_path)
    with pytest.raises(ExportError, match=r"block-0001.safetensors: damaged"):
        results["model.layers.1.mlp.down_proj.weight"].load()
    results["model.layers.0.mlp.down_proj.weight"].load()
    file.unlink()
    run(path, tmp_path)
    assert contents(tmp_path) == before


def test_a_damaged_note_is_named(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    run(checkpoint("qwen3"), tmp_path)
    for content in (b"", b"{}", b"[]", b'{"key": {}, "next": "x"}'):
        (tmp_path / "calibration.json").write_bytes(content)
        with pytest.raises(ExportError, match=r"calibration.json: (damaged|not valid JSON).*calibrate again"):
            run(checkpoint("qwen3"), tmp_path)
    (tmp_path / "calibration.json").unlink()
    with pytest.raises(ExportError, match=r"got block-000.\.safetensors without a calibration\.json"):
        run(checkpoint("qwen3"), tmp_path)


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("columns", [7, 8])
def test_codes_come_back(bits: int, columns: int, tmp_path: Path) -> None:
    from enginewright.exporters.calibration.block_results import QuantizedLayer, open_block, save_block

    layer = QuantizedLayer(name="w", rows=3, columns=columns, bits=bits, group_size=columns)
    low = -(1 << (bits - 1))
    codes = torch.from_numpy(np.random.default_rng(0).integers(low, -low, (3, columns)).astype(np.int8))
    codes[0, 0], codes[2, -1] = low, -low - 1
    scales = torch.tensor([[0.5], [1e-6], [3.0]])
    save_block(tmp_path / "x.safetensors", [layer], {"w": codes}, {"w": scales})
    rows = open_block(tmp_path / "x.safetensors", [layer])["w"]
    found = rows.load()
    assert np.array_equal(found[0], codes) and np.array_equal(found[1], scales)
    assert (rows.bits, rows.group_size) == (bits, columns)


def test_a_folder_in_use_is_refused(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    """The first run is not disturbed, and the second, started again, takes its results."""

    def meanwhile(group: LinearGroup) -> tuple[torch.Tensor, torch.Tensor]:
        with pytest.raises(ExportError, match="another process works there"):
            run(checkpoint("qwen2"), tmp_path)
        return round_group(group)

    run(checkpoint("qwen2"), tmp_path, quantize=meanwhile)
    done = contents(tmp_path)
    run(checkpoint("qwen2"), tmp_path)
    assert contents(tmp_path) == done


def test_folders_of_earlier_versions_are_found_again() -> None:
    """The digest of the layers is what version 0.1.0 has always written."""
    layers = [[QuantizedLayer(name="model.layers.0.q.weight", rows=4, columns=32, bits=3, group_size=16)], []]
    written = "[[Layer(name='model.layers.0.q.weight', rows=4, columns=32, bits=3, group_size=16)], []]"
    assert hash_layers(layers) == hashlib.sha256(written.encode()).hexdigest()
