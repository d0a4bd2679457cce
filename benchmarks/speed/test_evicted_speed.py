"""Small runs of the two comparisons of a cache of a fixed size with the full one, to their tables and results files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results_file
from benchmarks.results_file import Figure
from benchmarks.speed import evicted_decoding, evicted_requests
from enginewright.runtime.errors import UnsupportedError
from tests.support.paths import EXAMPLES


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    from enginewright.exporters.build import build
    from enginewright.exporters.recipe import Recipe, parse_method

    found = []
    for name, applied in (("full", ()), ("evicting", (parse_method("evict:budget=256"),))):
        root = tmp_path_factory.mktemp("engines") / name
        recipe = Recipe(apply=applied, kv_bits=16, max_batch=64)
        build(str(EXAMPLES / "tiny-reasoner"), root, recipe, "onnxruntime", trial="none")
        found.append(str(root))
    return found


def value_of(figures: tuple[Figure, ...], name: str, cache: str | None = None) -> float:
    (found,) = [each.value for each in figures if each.name == name and each.conditions.get("cache") == cache]
    return found


def test_an_answer_ends_with_its_end() -> None:
    assert evicted_requests.up_to_end([5, 6, 2, 7], frozenset({2})) == (5, 6, 2)
    assert evicted_requests.up_to_end([5, 6], frozenset({2})) == (5, 6)


@pytest.mark.native
@pytest.mark.slow
def test_more_requests_with_equal_answers(engines: list[str], tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    sizes = ["--memory", "0.016", "--tokens", "1500", "--turns", "1"]
    assert evicted_requests.main([*engines, *sizes, "--results", str(results)]) == 0
    figures = results_file.read(results).figures
    assert value_of(figures, "at once, evicting / full") >= 2
    count = value_of(figures, "requests at once", "evicting")
    assert value_of(figures, "equal answers") == count
    for cache in ("full cache", "evicting"):
        assert value_of(figures, "tokens computed", cache) == count * 1499  # none was preempted


@pytest.mark.native
@pytest.mark.slow
def test_turns(engines: list[str], tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    sizes = ["--rows", "3", "--contexts", "300", "800", "--turns", "2"]
    assert evicted_decoding.main([*engines, *sizes, "--results", str(results)]) == 0
    figures = results_file.read(results).figures
    full, evicting = (value_of(figures, "most bytes of tiles", each) for each in ("full cache", "evicting"))
    assert full > evicting > 0
    assert value_of(figures, "evicting, share of time", "evicting") > 1
    for cache in ("full cache", "evicting"):
        assert value_of(figures, "tokens/s, best", cache) >= value_of(figures, "tokens/s, median", cache) > 0


@pytest.mark.parametrize(
    ("sizes", "message"),
    [(["--contexts", "300", "500"], "expected room for 5 turns"), (["--rows", "64"], "--rows: got 64, whose prompts")],
)
def test_sizes_that_cannot_be(sizes: list[str], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        evicted_decoding.main(["none", "none", *sizes])
