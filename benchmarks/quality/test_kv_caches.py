"""Tests of the command `benchmarks.quality.kv_caches`: its runs over several caches, its tables and figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import results_file
from benchmarks.quality import kv_caches
from tests.support.paths import ROOT

MODEL = str(ROOT / "examples/tiny-reasoner")

pytestmark = [pytest.mark.native, pytest.mark.slow]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> str:
    from enginewright.exporters.build import build
    from enginewright.exporters.recipe import Recipe

    root = tmp_path_factory.mktemp("engine") / "halves"
    build(MODEL, root, Recipe(max_batch=8), "onnxruntime")
    return str(root)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert kv_caches.main(["--threads", "1", "--max-batch", "8", *arguments]) == 0
    return capsys.readouterr().out


def test_answers(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--caches", "fp16,kvarn-k8v8,kivi-k8v8", "--kinds", "variables", "--count", "3", "--engine", engine]
    run(
        capsys,
        "--fp16",
        engine,
        *chosen,
        "--json",
        str(tmp_path / "answers.json"),
        "--results",
        str(tmp_path / "results.json"),
    )
    figures = results_file.read(tmp_path / "results.json").figures
    assert len([figure for figure in figures if figure.name == "right"]) == 4
    report = json.loads((tmp_path / "answers.json").read_text())
    assert [cache["name"] for cache in report["caches"]] == ["fp16", "kvarn-k8v8", "kivi-k8v8", "halves"]
    exact, *_, itself = report["caches"]
    assert exact["right"] == itself["right"] and len(exact["right"]) == 3
    assert (exact["key_bits"], exact["bytes_per_token"]) == (itself["key_bits"], itself["bytes_per_token"]) == (16, 256)
    assert [(each["of"], each["against"]) for each in report["differences"]] == [
        ("kvarn-k8v8", "fp16"),
        ("kivi-k8v8", "fp16"),
        ("halves", "fp16"),
        ("kivi-k8v8", "kvarn-k8v8"),
    ]
    assert report["differences"][2]["points"]["value"] == 0 and report["differences"][2]["same_reply"] == 1


def test_norms(engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--caches", "fp16,kvarn-k8v8,kvarn-k2v2", "--kinds", "variables", "--count", "2", "--norms"]
    other = Path(engine).with_name("other")
    other.symlink_to(engine)
    report = tmp_path / "errors.json"
    run(capsys, "--fp16", engine, *chosen, "--engine", str(other), "--json", str(report))
    fine, coarse, itself = json.loads(report.read_text())
    assert (itself["name"], itself["static"]) == ("halves", None) and itself["mean_kl"]["value"] < 1e-6
    assert (fine["name"], coarse["name"]) == ("kvarn-k8v8", "kvarn-k2v2")
    for kind in ("static", "accumulated"):
        assert all(0 < fine[kind][name] < 0.05 < coarse[kind][name] for name in ("keys", "values", "key_norm"))
    assert 0 <= fine["mean_kl"]["value"] < coarse["mean_kl"]["value"] and fine["top1"] > 0.99


def test_tables(engine: str, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--caches", "fp16,kvarn-k8v8", "--kinds", "variables,retrieval", "--level", "hard", "--count", "1"]
    table = run(capsys, "--model", MODEL, *few)
    assert all(word in table for word in ("2 problems", "retrieval", "8.50 8.62", "137", "McNemar", "same reply"))
    table = run(capsys, "--fp16", engine, *few, "--norms")
    assert all(
        word in table
        for word in ("in 2 draws", "perplexity", "key norm", "accumulated", "same top token", "256 to 1024")
    )


@pytest.mark.parametrize("wrong", [["--caches", "kivi-k3v3"], ["--caches", "none"], ["--kinds", "poems"]])
def test_unknown_names(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run(capsys, "--model", MODEL, *wrong)
    assert "expected" in capsys.readouterr().err
