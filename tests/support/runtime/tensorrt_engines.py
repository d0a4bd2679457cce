"""Engine directories with a plan for the fake TensorRT, with the profiles that the builder gives it."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from enginewright.builders.tensorrt.profiles import plan_profiles
from enginewright.plugins.libraries.tensorrt import TensorRTLibrary
from enginewright.plugins.ops.registry import OPS
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import BuiltGraph, Manifest
from enginewright.runtime.backends.tensorrt import plan
from tests.support.runtime.fake_cuda import FakeCuda
from tests.support.runtime.fake_tensorrt import make_module, write_plan

VERSION = "11.1.0"


def add_plan(root: Path, target: Path, *, chunk: int = 512, spare: bool = True, **changes: Any) -> Path:
    """Copy the engine directory `root` to `target` and give it a plan.

    chunk: most tokens of a step of a prompt. spare: whether profiles admit a tile and a slot more than rows can fill.
    changes: of the Engine (backend, version, compute, plugins) or of the plan (see `write_plan`). weights: the file that a
    plan without weights takes them from.
    """
    shutil.copytree(root, target)
    manifest = directory.load(target)
    graph = manifest.graphs["decoder"]
    backend, weights = changes.pop("backend", "tensorrt"), changes.pop("weights", None)
    fields = {name: changes.pop(name) for name in ("version", "compute", "plugins") if name in changes}
    changes.setdefault("profiles", profiles_of(manifest, chunk, spare))
    changes.setdefault("aliases", {spec.name: spec.alias for spec in graph.outputs if spec.alias is not None})
    (target / "engines").mkdir(exist_ok=True)
    path = target / f"engines/decoder.{backend}.plan"
    write_plan(path, target / graph.files[0].path, changes.pop("profiles"), **changes)
    written = (path, target / weights) if weights is not None else (path,)
    files = tuple(directory.describe_file(target, each) for each in written)
    engine = BuiltGraph(backend=backend, version=VERSION, compute="sm_90", files=files, plugins=graph.ops)
    others = tuple(each for each in graph.engines if each.backend != backend)
    graph = dataclasses.replace(graph, engines=(*others, dataclasses.replace(engine, **fields)))
    directory.save(dataclasses.replace(manifest, graphs={"decoder": graph}), target)
    return target


def profiles_of(manifest: Manifest, chunk: int, spare: bool) -> list[dict[str, Any]]:
    """The builder's own profiles."""
    found = []
    for profile in plan_profiles(manifest, manifest.graphs["decoder"], chunk):
        shapes = {name: [list(corner) for corner in corners] for name, corners in profile.shapes.items()}
        for name in () if spare else shapes:
            if name.startswith("kv.") and manifest.cache.kind != "dense":
                for corner in shapes[name][1:]:
                    corner[0] -= 1
        found.append(shapes)
    return found


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
        monkeypatch.setattr(plan, "open_tensorrt_library", lambda: library)
