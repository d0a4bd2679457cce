"""Tests of results files: figures are read back unchanged, wrong files are refused, and results/ is consistent."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import results_file
from benchmarks.results_file import Figure, ResultsError

HERE = Path(__file__).resolve().parent
PUBLISHED = sorted((HERE / "results").glob("*.json"))
NAME = "benchmarks.speed.long_context"
FIGURES = (
    Figure(name="decode step", value=1.5, unit="ms", conditions={"cache": "16 bits", "batch": 8}),
    Figure(name="right", value=88, unit="%", interval=(84.4, 90.8)),
)


def parser_of(benchmark: str) -> argparse.ArgumentParser:
    """The parser of a module, or of a package that runs as a command."""
    found = importlib.util.find_spec(benchmark)
    assert found is not None, f"there is no {benchmark}"
    module = importlib.import_module(f"{benchmark}.__main__" if found.submodule_search_locations else benchmark)
    parser: argparse.ArgumentParser = module.make_parser()
    return parser


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_a_published_file_names_a_command_that_is_accepted(file: Path) -> None:
    found = results_file.read(file)
    parser = parser_of(found.benchmark)
    assert parser.prog == f"python -m {found.benchmark}"
    parser.parse_args(found.arguments())


def test_the_readme_has_every_published_file() -> None:
    text = (HERE / "README.md").read_text()
    assert len(text.splitlines()) <= 80
    assert set(re.findall(r"\(results/([\w.]+)\)", text)) == {file.name for file in PUBLISHED}
    for benchmark in {results_file.read(file).benchmark for file in PUBLISHED}:
        assert f"python -m {benchmark}" in text


def test_a_run_comes_back(tmp_path: Path) -> None:
    arguments = ["--half", "a folder", "--results", "x.json", "--kvarn", "K", "--results=y.json"]
    run = results_file.record(NAME, arguments, FIGURES, notes="not idle")
    assert run.command == f"python -m {NAME} --half 'a folder' --kvarn K"
    assert run.arguments() == ["--half", "a folder", "--kvarn", "K"]
    assert run.machine.cores and run.machine.memory_gib and run.machine.cpu and run.machine.python.startswith("3.")
    run.write(tmp_path / "run.json")
    assert results_file.read(tmp_path / "run.json") == run
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_without_the_option_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    parser = results_file.benchmark_parser(NAME, "A benchmark.")
    results_file.save(parser.parse_args([]).results, NAME, [], FIGURES)
    assert not list(tmp_path.iterdir())
    results_file.save(parser.parse_args(["--results", "run.json"]).results, NAME, [], FIGURES)
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_place_that_cannot_be_written_is_refused_before_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = results_file.benchmark_parser(NAME, "A benchmark.")
    for wrong in (tmp_path, tmp_path / "none" / "run.json"):
        with pytest.raises(SystemExit):
            parser.parse_args(["--results", str(wrong)])
        assert "expected a file in a folder that exists" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": ""},
        {"unit": ""},
        {"value": float("nan")},
        {"value": "1"},
        {"value": True},
        {"interval": (2.0, 1.0)},
        {"interval": (1.0,)},
        {"conditions": {"sizes": [1, 2]}},
    ],
)
def test_wrong_figures_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ResultsError, match="expected"):
        Figure(**{"name": "decode", "value": 1.0, "unit": "ms", **wrong})


@pytest.mark.parametrize(
    "wrong",
    [
        {"command": "python -m benchmarks.speed.long_contexts"},
        {"command": "python tests/benchmarks/long_context.py"},
        {"date": "yesterday"},
        {"date": "20261129"},
        {"commit": ""},
        {"figures": []},
        {"figures": [{"name": "decode", "value": 1.0}]},
        {"machine": {"cpus": 2}},
        {"speed": 1},
    ],
)
def test_wrong_files_are_refused(wrong: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    results_file.record(NAME, [], FIGURES).write(file)
    file.write_text(json.dumps({**json.loads(file.read_text()), **wrong}))
    with pytest.raises(ResultsError, match=r"run\.json.*expected"):
        results_file.read(file)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"benchmark": "x"}'])
def test_what_is_no_results_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ResultsError, match=r"run\.json"):
        results_file.read(tmp_path / "run.json")


def test_every_command_offers_the_option() -> None:
    """Every module with a `make_parser` has `--results`; the processes of other runtimes have no such function."""
    for path in HERE.glob("*/**/*.py"):
        if "def make_parser" in path.read_text():
            module = ".".join(path.relative_to(HERE.parent).with_suffix("").parts).removesuffix(".__main__")
            assert "--results" in parser_of(module).format_usage(), module
