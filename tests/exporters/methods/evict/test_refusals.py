"""Engines that cannot evict are refused before their weights are read, with a message that names what works."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from enginewright import builders
from enginewright.exporters.build import build
from enginewright.exporters.export import export
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime.artifact.manifest import Graph
from enginewright.runtime.errors import BuildError, ExportError, UnsupportedError
from tests.support.exporters.fixtures import CheckpointMaker, EngineMaker

SMALL = "evict:budget=40,interval=16"


def recipe(*apply: str, **changes: Any) -> Recipe:
    return Recipe(apply=tuple(map(parse_method, apply)), **{"max_context": 256, **changes})


@pytest.mark.parametrize(
    ("apply", "changes", "backend", "message"),
    [
        (
            ("kvarn", SMALL),
            {},
            "onnxruntime",
            "evict: got a kvarn cache.*apply evict:granularity=tile, or build without",
        ),
        (
            (SMALL, "kvarn"),
            {},
            "onnxruntime",
            "evict: got a kvarn cache.*apply evict:granularity=tile, or build without",
        ),
        (
            ("kvarn", "evict:granularity=tile,score=h2o"),
            {},
            "onnxruntime",
            "evict: got a kvarn cache.*score=h2o, which marks tokens.*expected one of rkv, snapkv, snapkv-prompt, tova, streaming",
        ),
        (
            ("evict:granularity=tile,budget=383",),
            {},
            "onnxruntime",
            "evict: budget: got 383 with granularity tile, expected 384 or more: the first tile",
        ),
        ((SMALL,), {"plugins": "none"}, "onnxruntime", "plugins none: got the cache policy evict.*with plugins all"),
        ((SMALL,), {"dtype": "float16"}, "onnxruntime", "dtype: got float16 with evict.*build with dtype float32"),
        *(
            (
                (SMALL,),
                changes,
                backend,
                f"--backend {backend}: got an engine with the graphs of evict.*choose --backend onnxruntime",
            )
            for backend in ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
            for changes in ({}, {"dtype": "float16"})
        ),
    ],
)
def test_before_the_checkpoint_is_opened(
    apply: tuple[str, ...], changes: dict[str, Any], backend: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises((BuildError, ExportError, UnsupportedError), match=message):
        build(str(tmp_path / "no checkpoint"), tmp_path / "engine", recipe(*apply, **changes), backend)
    assert not (tmp_path / "engine").exists()


def test_an_export_alone_of_halves(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="dtype: got bfloat16 with evict"):
        export(str(tmp_path / "no checkpoint"), tmp_path, recipe(SMALL, dtype="bfloat16"))


def test_a_model_whose_every_layer_has_a_window(checkpoint: CheckpointMaker, tmp_path: Path) -> None:
    with pytest.raises(
        UnsupportedError, match=r"evict: got a model whose every layer has a window.*build without evict"
    ):
        export(str(checkpoint("mistral")), tmp_path, recipe(SMALL))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["onnxruntime-cuda", "tensorrt", "tensorrt-rtx"])
def test_compiling_an_engine_for_another_backend(
    backend: str, checkpoint: CheckpointMaker, engine: EngineMaker
) -> None:
    root, manifest = engine(checkpoint("llama"), Recipe(max_context=64))
    graph = Graph(files=(), inputs=(), outputs=())
    more = dataclasses.replace(manifest, graphs={**manifest.graphs, "scores": graph, "compact": graph})
    with pytest.raises(BuildError, match=f"--backend {backend}: got an engine with the graphs scores, compact"):
        builders.build(root, more, backend)
