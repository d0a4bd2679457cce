"""The plugin library in a plugin registry of TensorRT, and nodes through its ONNX parser; nothing here needs a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import GPU_OPS
from tests.support.ops.tensorrt_host import plugin_library
from tests.support.paths import SUPPORT

pytestmark = [pytest.mark.emulated, pytest.mark.rtx]
ATTRIBUTES: dict[str, dict[str, Any]] = {  # of other ops: those that they require, 1 and 0.5
    "PagedAttention": {"layer": 0, "scale": 0.125, "window": 3, "softcap": 0.5, "kv_bits": 16},
    "KVarNAttention": {"layer": 1, "scale": 0.125, "k_bits": 4, "v_bits": 4, "robust": 1},
    "DepthMix": {"scale": 0.5},
    "SplitQkv": {"query_heads": 4, "kv_heads": 2, "head_dim": 16, "value_dim": 8, "epsilon": 1e-5},
    "GreedySample": {},
    "ClpEmit": {"k": 3, "tau": 0.5, "activation": 1},
}
PARSER = {"plugin_version": "1", "plugin_namespace": DOMAIN}
"""Attributes by which the parser finds a creator."""


def watch(tmp_path: Path, *arguments: Path) -> tuple[dict[str, Any], str]:
    """What tensorrt_registry.py saw, and its messages; nothing of CUDA is on its search path."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    command = [sys.executable, str(SUPPORT / "ops/tensorrt_registry.py"), str(plugin_library()), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    seen = {name: value for line in lines for name, value in line.items() if name != "message"}
    messages = "\n".join(line["message"] for line in lines if "message" in line)
    assert seen.get("loaded"), done.stdout + done.stderr
    return seen, messages


def write_node(path: Path, op: str, inputs: int, attributes: dict[str, Any]) -> Path:
    """A model of one node with that many inputs."""
    from onnx import TensorProto, helper

    names = [f"input{i}" for i in range(inputs)]
    node = helper.make_node(op, names, [t.name for t in GPU_OPS[op].outputs], domain=DOMAIN, **attributes)
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [2, 2, 16]) for name in names]
    made = [helper.make_tensor_value_info(t.name, TensorProto.FLOAT16, None) for t in GPU_OPS[op].outputs]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, GPU_OPS[op].version)]
    model = helper.make_model(helper.make_graph([node], op, given, made), opset_imports=opsets, ir_version=10)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_registry_takes_the_library(tmp_path: Path) -> None:
    seen, messages = watch(tmp_path)
    assert sorted(seen["creators"]) == sorted([op.name, str(op.version), DOMAIN] for op in GPU_OPS.values())
    assert seen["plugin"] == ["PagedAttention", "1", DOMAIN, len(GPU_OPS["PagedAttention"].outputs), True]
    assert seen["refused"]
    assert "PagedAttention: scale: got no attribute, expected a float" in messages


@pytest.mark.parametrize("op", GPU_OPS)
def test_the_parser_makes_the_plugin_of_a_node(op: str, tmp_path: Path) -> None:
    required = {a.name: {"int": 1, "float": 0.5}[a.type] for a in GPU_OPS[op].attributes if a.default is None}
    attributes = ATTRIBUTES.get(op, required)
    model = write_node(tmp_path / "model.onnx", op, len(GPU_OPS[op].inputs), {**attributes, **PARSER})
    _, messages = watch(tmp_path, model)
    assert f"Successfully created plugin: {op}" in messages  # what it does next, it does to networks it cannot have


def test_the_parser_takes_the_nodes_domain_for_the_namespace(tmp_path: Path) -> None:
    _, messages = watch(tmp_path, write_node(tmp_path / "model.onnx", "DepthMix", 3, {"scale": 0.5}))
    assert "Successfully created plugin: DepthMix" in messages


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"scale": 1}, "DepthMix: scale: got an int, expected a float"),
        ({}, "DepthMix: scale: got no attribute, expected a float"),
        (
            {"scale": 0.5, "present": 3},
            "DepthMix: present: got 3, expected the bit of input 2, value, which is required",
        ),
        ({"scale": 0.5, "plugin_version": "2"}, "Plugin not found"),
    ],
)
def test_a_wrong_node_ends_the_parse_with_a_message(attributes: dict[str, Any], message: str, tmp_path: Path) -> None:
    seen, messages = watch(tmp_path, write_node(tmp_path / "model.onnx", "DepthMix", 3, {**PARSER, **attributes}))
    assert seen["parsed"] is False
    assert message in messages
