"""Engine directories with a plan for the fake TensorRT, in whose profiles a builder's sizes are."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_cuda import FakeCuda
from fake_trt_runtime import make_module, write_plan

from enginewright.plugins.ops import OPS
from enginewright.plugins.tensorrt import TensorRTLibrary
from enginewright.runtime import artifact, trt_plan
from enginewright.runtime.artifact import Engine, Manifest, TensorSpec
from enginewright.runtime.tiles import plan_tiles

Range = tuple[int, int]
VERSION = "11.1.0"


def add_plan(root: Path, target: Path, *, chunk: int = 512, spare: bool = True, **changes: Any) -> Path:
    """Copy the engine directory `root` to `target` and give it a plan.

    chunk: most tokens of a step of a prompt. spare: whether profiles admit a tile and a slot more than rows can fill.
    changes: of the Engine (backend, version, compute, plugins) or of the plan (see `write_plan`). weights: the file that a
    plan without weights takes them from.
    """
    shutil.copytree(root, target)
    manifest = artifact.load(target)
    graph = manifest.graphs["decoder"]
    backend, weights = changes.pop("backend", "tensorrt"), changes.pop("weights", None)
    fields = {name: changes.pop(name) for name in ("version", "compute", "plugins") if name in changes}
    sizes = (dense_sizes if manifest.cache.kind == "dense" else packed_sizes)(manifest, chunk, spare)
    changes.setdefault("profiles", [{s.name: shapes(s, own) for s in graph.inputs} for own in sizes])
    changes.setdefault("aliases", {spec.name: spec.alias for spec in graph.outputs if spec.alias is not None})
    (target / "engines").mkdir(exist_ok=True)
    path = target / f"engines/decoder.{backend}.plan"
    write_plan(path, target / graph.files[0].path, changes.pop("profiles"), **changes)
    written = (path, target / weights) if weights is not None else (path,)
    files = tuple(artifact.describe_file(target, each) for each in written)
    engine = Engine(backend=backend, version=VERSION, compute="sm_90", files=files, plugins=graph.ops)
    others = tuple(each for each in graph.engines if each.backend != backend)
    graph = dataclasses.replace(graph, engines=(*others, dataclasses.replace(engine, **fields)))
    artifact.save(dataclasses.replace(manifest, graphs={"decoder": graph}), target)
    return target


def dense_sizes(manifest: Manifest, chunk: int, spare: bool) -> list[dict[str, Range]]:
    """Decoding: rows of one token each; a prompt comes alone."""
    rows = manifest.limits.max_batch
    return [{"B": (1, rows), "T": (1, 1), "N": (1, rows)}, {"B": (1, 1), "T": (1, chunk), "N": (1, chunk)}]


def packed_sizes(manifest: Manifest, chunk: int, spare: bool) -> list[dict[str, Range]]:
    """Decoding: a few tokens; prompts: a chunk, beside rows that decode."""
    cache, rows, context = manifest.cache, manifest.limits.max_batch, manifest.limits.max_context
    few = rows * int(manifest.decoding.get("k", 1))
    encodes = any(layer.exact_bytes for layer in cache.layers)
    longest = chunk + few if encodes else max(chunk, few)
    tiles = plan_tiles(cache, rows=rows, context=context, step_tokens=longest, cache_tokens=rows * context)
    every = {
        "B": (1, rows),
        "B1": (2, rows + 1),
        "M": (1, -(-context // cache.tile_tokens)),
        "F": (2, 2),
        "exact": (2, 2),
    }
    every["slots"] = 1, rows + spare
    for i, most in enumerate(tiles):
        every[f"tiles{i}"] = every[f"tiles_{i}"] = 1, most + spare
    return [{**every, "T": (1, most), "N": (1, most)} for most in (few, longest)]


def shapes(spec: TensorSpec, sizes: dict[str, Range]) -> list[list[int]]:
    """The least, the likeliest and the largest shape of an input."""
    ranges = [(size, size) if isinstance(size, int) else sizes[size] for size in spec.shape]
    least, most = ([each[i] for each in ranges] for i in (0, 1))
    return [least, most, most]


def install(
    monkeypatch: pytest.MonkeyPatch,
    cuda: FakeCuda,
    plugins: Path | None = None,
    *,
    name: str = "tensorrt",
    **options: Any,
) -> None:
    """Make `cuda` and a fake TensorRT on it what the runtime imports. plugins: the library that has our ops."""
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)
    monkeypatch.setitem(sys.modules, name, make_module(cuda, name, **options))
    if plugins is not None:
        versions = {op: declaration.version for op, declaration in OPS.items()}
        library = TensorRTLibrary(path=plugins, version="0.1.0", op_versions=versions)
        monkeypatch.setattr(trt_plan, "open_tensorrt_library", lambda: library)
