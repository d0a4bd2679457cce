"""Tests of packed graphs as TensorRT's parser gets them: the plugin library makes a plugin of every node."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enginewright.exporters.export import export
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights
from tests.support.exporters.families import save_checkpoint
from tests.support.ops.tensorrt_host import plugin_library
from tests.support.paths import ROOT, SUPPORT

PROBE = SUPPORT / "builders/plugin_probe.py"
HEADS = ROOT / "examples/tiny-reasoner-clp"


@pytest.mark.rtx
@pytest.mark.emulated
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "recipe", "expected"),
    [
        ("qwen3", {"dtype": "bfloat16"}, {"SplitQkv", "PagedAttention", "GreedySample"}),
        (
            "qwen3",
            {"dtype": "float16", "weights": parse_weights("int4"), "apply": (parse_method("kvarn"),)},
            {"SplitQkv", "KVarNAttention", "GreedySample"},
        ),
        ("gpt_oss", {"dtype": "float16"}, {"PagedAttention", "GreedySample"}),  # sinks
        (
            "",
            {"dtype": "float16", "apply": (parse_method(f"clp:heads={HEADS}"),)},
            {"SplitQkv", "PagedAttention", "GreedySample", "ClpEmit"},
        ),
    ],
    ids=["paged", "kvarn", "sinks", "heads"],
)
def test_every_node_makes_a_plugin(family: str, recipe: Any, expected: set[str], tmp_path: Path) -> None:
    path, model = plugin_library(), ROOT / "examples/tiny-reasoner"
    if family:
        model = tmp_path / "checkpoint"
        save_checkpoint(family, model)
    (tmp_path / "engine").mkdir()
    export(str(model), tmp_path / "engine", Recipe(**recipe))
    (tmp_path / "path").mkdir()
    (tmp_path / "path/enginewright").symlink_to(ROOT)
    paths = [str(tmp_path / "path"), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, PROBE, path, tmp_path / "engine"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    nodes = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {node["op"] for node in nodes} == expected
    assert all(node["made"] and not node["unknown"] for node in nodes), nodes
