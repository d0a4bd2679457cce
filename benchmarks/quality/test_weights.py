"""Tests of the command `benchmarks.quality.weights`: its cells, how it goes on, and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import results_file
from benchmarks.quality import weights
from benchmarks.quality.weights import Scores
from tests.support.paths import ROOT

GIVEN = ["--model", str(ROOT / "examples/tiny-text"), "--text", "none.txt", "--methods"]
DATA = ["--data", str(ROOT / "examples/tiny-text/held_out.txt"), "--window", "200", "--windows", "2", "--block", "64"]


@pytest.mark.native
@pytest.mark.slow
def test_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The float32 engine is at no distance from itself; a second run measures nothing again."""
    cells, results = tmp_path / "cells.json", tmp_path / "results.json"
    arguments = [*GIVEN, *DATA, "--forms", "int4:block_size=128", "--json", str(cells)]
    assert weights.main([*arguments, "--results", str(results)]) == 0
    exact, rounded = json.loads(cells.read_text()).values()
    assert sum(exact["tokens"]) == sum(rounded["tokens"]) == 2 * 199
    assert len(exact["tokens"]) == 2 * 4  # positions 0 to 198 in blocks of 64
    assert exact["nats"] == exact["exact_nats"] == rounded["exact_nats"] and sum(exact["kl"]) < 1e-9 < 1 < sum(
        rounded["kl"]
    )
    figures = results_file.read(results).figures
    assert [figure.name for figure in figures if figure.conditions == {"weights": "float32"}] == ["perplexity"]
    again = capsys.readouterr().out
    monkeypatch.setattr(weights, "build", None)
    assert weights.main(arguments) == 0 and capsys.readouterr().out == again and "398 tokens, 8 draws" in again


def test_scores() -> None:
    cell = Scores(tokens=[10, 30], nats=[30.0, 50.0], exact_nats=[20.0, 40.0], kl=[4.0, 8.0], agreed=[9, 21])
    assert cell.perplexity.value == pytest.approx(np.exp(2))
    assert (cell.more_nats.value, cell.mean_kl.value, cell.top1) == (0.5, 0.3, 0.75)
    assert cell.more_nats.low == pytest.approx(1 / 3) and cell.more_nats.high == pytest.approx(1)


@pytest.mark.parametrize(
    ("wrong", "message"), [(["--methods", "AWQ"], "got 'AWQ', expected some of"), (["--forms", "int5"], "--forms: ")]
)
def test_unknown_names(wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        weights.main(["--model", "m", "--text", "t", "--data", "d", "--json", "cells.json", *wrong])
    assert message in capsys.readouterr().err


def test_order_of_cells() -> None:
    arguments = ["--forms", "int8", "--bits", "4", "2", "--group-sizes", "32", "--json", "cells.json", "--data", "d"]
    args = weights.parse_arguments([*GIVEN, "GPTQ, absmax", "rounding, PiSO", *arguments])
    assert [cell.name for cell in weights.cells_of(args)] == [
        "float32",
        "int8",
        "GPTQ, absmax | 4 bits | groups of 32",
        "rounding, PiSO | 4 bits | groups of 32",
        "GPTQ, absmax | 2 bits | groups of 32",
        "rounding, PiSO | 2 bits | groups of 32",
    ]
