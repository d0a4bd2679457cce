"""Adapters: LoRA adapters that are chosen request by request, and loaded while the engine serves.

Each product W x of a chosen layer becomes W x + scale * B (A x), with the factors of the adapter that the token's request names
(the op AddLora). Rows without one, with one and with another run in one batch.

Source: Hu et al., "LoRA", arXiv 2106.09685; batches of several adapters: Chen et al., "Punica", arXiv 2310.18547.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from enginewright.exporters.methods.adapters.adapted_layers import ALL, find_targets
from enginewright.exporters.methods.adapters.add_lora_nodes import MarkProductsPass, complete
from enginewright.exporters.methods.anchors import Anchors
from enginewright.exporters.methods.hooks import Entries, Method
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.runtime.artifact.adapters.read_adapter import read_adapter
from enginewright.runtime.artifact.files.real_path import real_path
from enginewright.runtime.artifact.manifest import AdapterLayout, Condition, ConditionTensor
from enginewright.runtime.errors import ExportError

NAME = "adapter"
MOST = 4096


@dataclass(frozen=True, kw_only=True)
class Config:
    """What an engine has room for; `parse_method` creates it.

    capacity: adapters at once.
    rank: the largest rank of an adapter. Smaller ones take as much memory and time.
    targets: the layers that adapters may change: endings of their names, joined by +; "all": every linear layer of the blocks.
    load: folders of adapters that the engine has from the beginning, joined by +; each is named as its folder.
    """

    capacity: int = 8
    rank: int = 16
    targets: str = ALL
    load: str = ""

    def __post_init__(self) -> None:
        for name in ("capacity", "rank"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ExportError(f"adapters: {name}: got {getattr(self, name)}, expected 1 to {MOST}")


def conditions(config: Config, checkpoint: Checkpoint) -> dict[str, Condition]:
    """Declare the adapters: the factors of every target, each a tensor over the target's layers.

    Raises:
        ExportError: an ending in `targets` is that of no layer.
    """
    targets = find_targets(checkpoint, config.targets)
    tensors = {}
    for name, target in targets.items():
        layers = len(target.layers)
        tensors[f"{name}_a"] = ConditionTensor(dtype="float16", shape=(layers, config.rank, target.inputs))
        tensors[f"{name}_b"] = ConditionTensor(dtype="float16", shape=(layers, config.rank, target.outputs))
    layout = AdapterLayout(rank=config.rank, targets=targets)
    return {NAME: Condition(capacity=config.capacity, scaled=True, tensors=tensors, adapters=layout)}


def condition_entries(config: Config, conditions: dict[str, Condition]) -> Entries:
    """Give the adapters that the engine has from the beginning.

    Raises:
        ArtifactError: the files of an adapter are damaged, or do not fit.
        ExportError: two folders have one name.
        UnsupportedError: an adapter is more than factors of linear layers.
    """
    found: dict[str, dict[str, NDArray[np.float16]]] = {}
    for folder in map(Path, filter(None, config.load.split("+"))):
        name = real_path(folder.expanduser()).name
        if name in found:
            raise ExportError(f"adapters: load: got two folders called {name!r}, expected names of their own")
        found[name] = read_adapter(folder.expanduser(), conditions[NAME])
    return {NAME: found}


def passes(config: Config) -> tuple[ir.passes.PassBase, ...]:
    """Mark the products, while each has a weight with its layer's name."""
    return (MarkProductsPass(config.targets),)


def extend_graph(config: Config, anchors: Anchors) -> None:
    """Add each token's adapter to the products."""
    layout = anchors.declaration(NAME).adapters
    assert layout is not None
    complete(anchors.graph, anchors.family, layout.targets, anchors.condition(NAME))


METHOD = Method(
    name="adapters",
    summary="LoRA adapters that requests choose, loaded while the engine serves",
    paper="2106.09685",
    config=Config,
    conditions=conditions,
    condition_entries=condition_entries,
    passes=passes,
    extend_graph=extend_graph,
)
