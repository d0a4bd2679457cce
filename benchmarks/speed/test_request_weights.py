"""A small run of the comparison of engines with vectors and adapters, to its table and its results file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speed.request_weights import SIDES, main
from tests.support.paths import EXAMPLES


@pytest.mark.native
@pytest.mark.slow
def test_every_side_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--rows", "3", "--adapters", "2", "--rank", "4", "--context", "20", "--rounds", "2", "--turns", "1"]
    given = ["--checkpoint", str(EXAMPLES / "tiny-reasoner"), "--work", str(tmp_path), "--weights", "float32"]
    assert main([*given, *sizes, "--threads", "1", "--results", str(tmp_path / "results.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:-1]] == list(SIDES)
    assert lines[2].endswith("| 100.0 % | 100.0 % [100.0, 100.0] |")
    found = json.loads((tmp_path / "results.json").read_text())["figures"]
    assert {each["conditions"]["side"] for each in found} == set(SIDES) and len(found) == 4 * len(SIDES)
