"""Tests of the command `benchmarks.quality.function_vectors`: its tasks, its rows, and how it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results_file
from benchmarks.quality import function_vectors, word_tasks
from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe, parse_method
from tests.support.paths import ROOT


def test_tasks_have_items_enough() -> None:
    """Eight tasks or more with 40 test items, no input twice, no answer that is its question."""
    tasks = word_tasks.word_tasks()
    assert sum(len(pairs) * 3 // 10 >= 40 for pairs in tasks.values()) >= 8
    for pairs in tasks.values():
        assert len({pair.input for pair in pairs}) == len(pairs) and all(pair.input != pair.output for pair in pairs)
    assert {pair.input: pair.output for pair in tasks["gerund"]}["follow"] == "following"
    assert {pair.input: pair.output for pair in tasks["third person"]}["wash"] == "washes"
    assert {pair.input: pair.output for pair in tasks["capital"]}["France"] == "Paris"


def test_intervals() -> None:
    assert function_vectors.interval([1] * 9) == (1, 1)
    low, high = function_vectors.interval([0, 1] * 50)
    assert 0.38 < low < 0.45 and 0.55 < high < 0.62


@pytest.mark.native
@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results.json"
    arguments = [
        *(
            "--model",
            str(ROOT / "examples/tiny-text"),
            "--work",
            str(tmp_path / "work"),
            "--tasks",
            "plural",
            "first letter",
        ),
        *("--seeds", "42", "--items", "10", "--shots", "3", "--prompts", "3", "--heads", "2"),
    ]
    assert function_vectors.main([*arguments, "--results", str(results)]) == 0
    found = results_file.read(results).figures
    rows = {figure.conditions["row"] for figure in found if figure.name == "hits"}
    kinds = [f"{kind}, {of} heads" for kind in ("relevance", "AIE") for of in ("task's", "global")]
    assert rows == {
        "unsteered",
        "DFV, random heads",
        *(f"{place}, {kind}" for place in ("DFV", "FV") for kind in kinds),
    }
    assert all(figure.conditions["items"] == 6 for figure in found if figure.conditions.get("task") == "all")
    assert [figure.conditions["than"] for figure in found if figure.name == "more hits"] == [
        other for _, other in function_vectors.CONTRASTS
    ]
    assert {figure.conditions["by"] for figure in found if figure.unit == "s"} == {"relevance", "AIE", "one pass"}
    again = capsys.readouterr().out
    monkeypatch.setattr(function_vectors, "score_task", None)
    monkeypatch.setattr(function_vectors, "measure_task", None)
    assert function_vectors.main(arguments) == 0 and capsys.readouterr().out == again
    recipe = Recipe(apply=(parse_method("steering:capacity=1"),), kv_bits=32, max_batch=4, max_context=64)
    build(str(ROOT / "examples/tiny-text"), tmp_path / "engine", recipe, "onnxruntime")
    capsys.readouterr()
    assert function_vectors.main([*arguments, "--engine", str(tmp_path / "engine")]) == 0
    assert capsys.readouterr().out == f"{again}| items as in PyTorch | DFV, relevance, task's heads | 6 | heads | 1 |\n"
    assert function_vectors.main([*arguments[:-10], "--tasks", "none"]) == 2
