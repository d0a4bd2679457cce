"""Makes the plugin of every node of ours in engine directories, as TensorRT's parser does; prints JSON lines.

    python plugin_probe.py LIBRARY DIR...

It runs in a separate process, under TensorRT-RTX: its registry is a real one, though its networks take no plugins.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

if importlib.util.find_spec("enginewright") is None:  # not installed: the checkout root is the package path
    package = types.ModuleType("enginewright")
    package.__path__ = [str(Path(__file__).resolve().parents[3])]
    sys.modules["enginewright"] = package

import numpy as np
import onnx_ir as ir
import tensorrt_rtx as trt

from enginewright.builders.tensorrt.build import rewrite
from enginewright.plugins.ops.op import DOMAIN


def probe(registry: Any, node: ir.Node) -> dict[str, Any]:
    """Look the creator up by what the node says, and hand it the attributes it asks for."""
    version, namespace = (node.attributes.get_string(name) for name in ("plugin_version", "plugin_namespace"))
    creator = registry.get_creator(node.op_type, version, namespace)
    fields = []
    for field in creator.field_names:
        if field.name in node.attributes:
            kind = np.int32 if field.type == trt.PluginFieldType.INT32 else np.float32
            fields.append(trt.PluginField(field.name, np.array([node.attributes[field.name].value], kind), field.type))
    plugin = creator.create_plugin(node.name, trt.PluginFieldCollection(fields), trt.TensorRTPhase.BUILD)
    unknown = set(node.attributes) - {field.name for field in fields} - {"plugin_version", "plugin_namespace"}
    return {"op": node.op_type, "made": plugin is not None, "unknown": sorted(unknown)}


def main() -> None:
    """Load the library and probe each directory's decoder."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    registry = trt.get_plugin_registry()
    if registry.load_library(sys.argv[1]) is None:
        sys.exit(f"{sys.argv[1]}: not loaded")
    for root in sys.argv[2:]:
        model = ir.load(Path(root) / "graphs/decoder.onnx")
        rewrite(model)
        for node in model.graph:
            if node.domain == DOMAIN:
                print(json.dumps(probe(registry, node)))
    del builder


if __name__ == "__main__":
    main()
