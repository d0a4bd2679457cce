"""Prints as JSON how TensorRT-RTX reads engine directories; run as a process, because the library prints and may abort.

python rtx_probe.py DIR...
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

import onnx_ir as ir
import tensorrt_rtx as trt

from enginewright.builders.layer_check.residual_stream import find_residual_stream
from enginewright.builders.options import BackendOptions
from enginewright.builders.tensorrt.build import rewrite
from enginewright.builders.tensorrt.graph_file import save_rewritten
from enginewright.builders.tensorrt.network import PlanBuilder
from enginewright.builders.tensorrt.profiles import plan_profiles
from enginewright.runtime.artifact.directory import load


def probe(root: Path) -> dict[str, Any]:
    """Parse the decoder of `root`; return its layers, inputs, and the profiles as TensorRT gives them back."""
    manifest = load(root)
    graph = manifest.graphs["decoder"]
    model = ir.load(root / graph.files[0].path)
    stream = find_residual_stream(model.graph, len(manifest.cache.layers))
    rewrite(model)
    path = root / "graphs" / "probe.onnx"
    save_rewritten(model, path)
    builder = PlanBuilder(trt, "tensorrt-rtx", root.name)
    network = builder.parse(path)
    planned = plan_profiles(manifest, graph, 48)
    builder.configure(BackendOptions(), planned, aliases=False, timing_cache=None)
    made = {profile.name: builder.make_profile(profile) for profile in planned}
    names = [spec.name for spec in graph.inputs]
    return {
        "stream": [str(value.name) for value in stream],
        "ops": sorted({node.op_type for node in model.graph}),
        "domains": sorted({node.domain for node in model.graph}),
        "layers": [network.get_layer(i).type.name for i in range(network.num_layers)],
        "inputs": {network.get_input(i).name: list(network.get_input(i).shape) for i in range(network.num_inputs)},
        "outputs": [network.get_output(i).name for i in range(network.num_outputs)],
        "profiles": {k: {name: list(map(list, p.get_shape(name))) for name in names} for k, p in made.items()},
    }


if __name__ == "__main__":
    for directory in sys.argv[1:]:
        print(json.dumps({"root": directory, **probe(Path(directory))}))
