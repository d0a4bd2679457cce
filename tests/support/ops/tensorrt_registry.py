"""A program that loads a plugin library into TensorRT's registry and runs a node through its ONNX parser.

python tensorrt_registry.py LIBRARY [MODEL]: prints what it saw as JSON lines, because the parser of TensorRT-RTX 1.7.1
aborts when it has made a plugin: what was printed before is what tests read.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import tensorrt_rtx as trt

DOMAIN = "enginewright"


def say(**seen: Any) -> None:
    """Print at once."""
    print(json.dumps(seen), flush=True)


class Logger(trt.ILogger):
    """Prints every message."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)

    def log(self, severity: Any, message: str) -> None:
        say(message=message)


def fields(**values: float) -> Any:
    """Plugin fields as a program makes them: ints of 32 bits and floats."""
    kinds = {int: (np.int32, trt.PluginFieldType.INT32), float: (np.float32, trt.PluginFieldType.FLOAT32)}
    return trt.PluginFieldCollection(
        [trt.PluginField(n, np.array([v], kinds[type(v)][0]), kinds[type(v)][1]) for n, v in values.items()]
    )


def look_at_plugins(registry: Any) -> None:
    """Create a plugin and one that is refused."""
    creator = registry.get_creator("PagedAttention", "1", DOMAIN)
    plugin = creator.create_plugin("node", fields(layer=0, scale=0.125), trt.TensorRTPhase.BUILD)
    core, build, runtime = (
        plugin.get_capability_interface(kind)
        for kind in (trt.PluginCapabilityType.CORE, trt.PluginCapabilityType.BUILD, trt.PluginCapabilityType.RUNTIME)
    )
    names = [core.plugin_name, core.plugin_version, core.plugin_namespace]
    say(plugin=[*names, build.num_outputs, runtime is not None])
    say(refused=creator.create_plugin("node", fields(layer=0), trt.TensorRTPhase.BUILD) is None)


def main() -> None:
    """Load, look, and parse."""
    logger = Logger()
    builder = trt.Builder(logger)
    registry = trt.get_plugin_registry()
    say(loaded=registry.load_library(sys.argv[1]) is not None)
    ours = [c for c in registry.all_creators if c.plugin_namespace == DOMAIN]
    say(creators=[[c.name, c.plugin_version, c.plugin_namespace] for c in ours])
    if len(sys.argv) == 2:
        look_at_plugins(registry)
        return
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    with open(sys.argv[2], "rb") as file:
        say(parsed=parser.parse(file.read()))


if __name__ == "__main__":
    main()
