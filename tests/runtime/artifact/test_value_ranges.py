"""Tests of the ranges of a manifest's values: each is refused by its name, on reading and on building."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from enginewright.exporters.recipe import Recipe
from enginewright.runtime import loader
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import Cache, CacheLayer, Limits
from enginewright.runtime.artifact.strict_json import parse
from enginewright.runtime.artifact.value_ranges import MOST_BATCH, MOST_CONTEXT
from enginewright.runtime.cache.capacity import plan_capacity
from enginewright.runtime.errors import ArtifactError, ExportError, RequestError
from tests.support.fuzzing.mutations import changed
from tests.support.runtime.tiny_engine import write_engine

LAYER = ("cache", "layers", 1)
WRONG: list[tuple[tuple[str | int, ...], Any, str]] = [
    (("limits", "max_batch"), 10**9, r"limits\.max_batch: got 1000000000, expected a whole number from 1 to 65536"),
    (("limits", "max_batch"), True, r"limits\.max_batch: got True, expected int"),
    (("limits", "max_context"), 0, r"limits\.max_context: got 0"),
    (("cache", "layers"), [], r"cache: got no layers, or no tile_tokens"),
    ((*LAYER, "kv_heads"), 0, r"cache\.layers\[1\]\.kv_heads: got 0, expected a whole number from 1 to 65536"),
    ((*LAYER, "key_dim"), -1, r"cache\.layers\[1\]\.key_dim: got -1"),
    ((*LAYER, "tile_bytes"), 2**80, r"cache\.layers\[1\]\.tile_bytes: got 1208925819614629174706176"),
    ((*LAYER, "window"), -2, r"cache\.layers\[1\]\.window: got -2"),
    (("cache", "kv_bits"), 10**50, r"cache\.kv_bits: got 1000000000000000000000000000000000000\.\.\., expected"),
    (("model", "vocab_size"), 0, r"model\.vocab_size: got 0"),
    (("model", "eos_token_ids"), [3, -1], r"model\.eos_token_ids: got -1"),
    (("graphs", "decoder", "files"), [], r"graphs\.decoder: got no files"),
    (("decoding", "k"), 0, r"decoding: k: got 0, expected a whole number from 1 to 1024"),
    (("generation", "top_p"), 10**400, r"generation\.top_p: got 10+, expected"),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG, ids=lambda each: "")
def test_manifests_are_refused_by_name(
    tmp_path: Path, path: tuple[str | int, ...], value: object, message: str
) -> None:
    root = write_engine(tmp_path / "engine")
    raw = json.loads((root / directory.MANIFEST).read_text())
    (root / directory.MANIFEST).write_text(json.dumps(changed(raw, path, value)))
    with pytest.raises(ArtifactError, match=rf"manifest\.json\.({message}).*; build the engine again"):
        directory.load(root)


@pytest.mark.parametrize("value", [0, MOST_BATCH + 1])
def test_a_recipe_has_the_same_bounds(value: int) -> None:
    with pytest.raises(ExportError, match=rf"max_batch: got {value}, expected 1 to {MOST_BATCH}"):
        Recipe(max_batch=value)
    with pytest.raises(ExportError, match=rf"max_context: got {2 * MOST_CONTEXT}, expected 1 to {MOST_CONTEXT}"):
        Recipe(max_context=2 * MOST_CONTEXT)


@pytest.mark.native
def test_tables_that_do_not_fit_are_refused_by_name(tmp_path: Path) -> None:
    manifest = directory.load(write_engine(tmp_path / "engine"))
    object.__setattr__(manifest, "limits", Limits(max_batch=MOST_BATCH, max_context=MOST_CONTEXT))
    options = {"max_batch": None, "cache_tokens": None, "prefill_chunk": 512, "prefix_reuse": True}
    with pytest.raises(RequestError, match=r"tables of 65536 requests of 2147483648 tokens.* smaller max_batch"):
        plan_capacity(manifest, 1 << 33, **options)  # type: ignore[arg-type]


@pytest.mark.native
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("threads", 10**9, "4096 at most"), ("prefill_chunk", 10**9, "1048576 at most"), ("cache_tokens", 0, "1 or more")],
)
def test_options_of_load_have_bounds(tmp_path: Path, name: str, value: int, expected: str) -> None:
    with pytest.raises(RequestError, match=rf"load: {name}: got {value}, expected {expected}"):
        loader.load(write_engine(tmp_path / "engine"), **{name: value})  # type: ignore[arg-type]


def test_whole_numbers_beyond_all_floats_are_no_floats() -> None:
    from enginewright.runtime.artifact.generation_defaults import GenerationDefaults

    with pytest.raises(ValueError, match=r"there\.temperature: got 10+, expected float"):
        parse(GenerationDefaults, {"temperature": 10**400}, "there")


def test_values_of_a_build_are_checked_too() -> None:
    with pytest.raises(ValueError, match="key_dim: got 0"):
        CacheLayer(kv_heads=1, key_dim=0, value_dim=2, tile_bytes=64)
    with pytest.raises(ValueError, match="kv_bits: got 65"):
        Cache(kind="paged", tile_tokens=128, kv_bits=65, layers=())
