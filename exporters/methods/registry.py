"""The registry of inference methods: finds a method by name and calls its hooks.

A method is a module with a frozen dataclass `Config`, which holds its options and which the command line and recipes read.
It also has those of the following hooks that it needs, as functions of the module. An export calls them in this order:

    choose_cache(config, cache) -> cache                        replaces the format of the cache, a `CacheFormat`
    choose_decoding(config, decoding) -> decoding               changes the manifest's `decoding`, which tells the runtime
                                                                how to make tokens of the graph's outputs
    check_model(config, checkpoint)                             refuses a checkpoint that the method does not fit
    transform_weights(config, weights, checkpoint) -> weights   changes weights, before the graph is captured
    extend_graph(config, graph)                                 adds nodes and outputs to the decoder graph, whose weights
                                                                are still recipes

`transform_weights` takes and returns {parameter name: Weight}. A `Weight` is a recipe, and the hook computes no more than it
must. A method that quantises a weight sets `Weight.quantized`, and no method after it may change that weight.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import onnx_ir as ir

from enginewright.exporters.capture.cache_formats import CacheFormat
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError

METHODS = {  # name -> the module with its Config and hooks
    "clp": "enginewright.exporters.methods.clp.method",
    "kvarn": "enginewright.exporters.methods.kvarn",
    "lora": "enginewright.exporters.methods.lora",
    "piso": "enginewright.exporters.methods.piso.method",
}
HOOKS = ("choose_cache", "choose_decoding", "check_model", "transform_weights", "extend_graph")


@dataclass(frozen=True)
class Applied:
    """A method with its config, as one export applies it; `parse_method` creates it from a recipe, `check` from a manifest.

    name: in METHODS.
    config: an instance of the method's `Config`.
    """

    name: str
    config: Any

    def describe(self) -> dict[str, Any]:
        """The manifest's record of the method."""
        return {"name": self.name, **dataclasses.asdict(self.config)}

    def transform_weights(self, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
        """Pass the weights of `checkpoint`'s model through the method, if it changes any."""
        return transform_weights((self,), weights, checkpoint)


def find_method(name: str) -> ModuleType:
    """Import the method `name`; an ExportError about an unknown name lists the known ones."""
    if name not in METHODS:
        raise ExportError(f"apply: unknown method {name!r}; known: {', '.join(sorted(METHODS))}")
    return importlib.import_module(METHODS[name])


def _hooks(applied: tuple[Applied, ...], name: str) -> Iterator[tuple[Callable[..., Any], Any]]:
    """The hook `name` of every method that has it, with that method's config, in order."""
    for method in applied:
        hook = getattr(find_method(method.name), name, None)
        if hook is not None:
            yield hook, method.config


def transform_weights(
    applied: tuple[Applied, ...], weights: dict[str, Weight], checkpoint: Checkpoint
) -> dict[str, Weight]:
    """Pass the weights of `checkpoint`'s model through every method that changes them, in order."""
    for hook, config in _hooks(applied, "transform_weights"):
        weights = hook(config, weights, checkpoint)
    return weights


def choose_cache(applied: tuple[Applied, ...], cache: CacheFormat) -> CacheFormat:
    """Pass the format of the cache through every method that chooses one, in order."""
    for hook, config in _hooks(applied, "choose_cache"):
        cache = hook(config, cache)
    return cache


def choose_decoding(applied: tuple[Applied, ...]) -> dict[str, Any]:
    """Return the manifest's decoding, autoregressive unless a method chooses another."""
    decoding: dict[str, Any] = {"kind": "autoregressive"}
    for hook, config in _hooks(applied, "choose_decoding"):
        decoding = hook(config, decoding)
    return decoding


def check_model(applied: tuple[Applied, ...], checkpoint: Checkpoint) -> None:
    """Let every method look at the checkpoint, and refuse it by raising."""
    for hook, config in _hooks(applied, "check_model"):
        hook(config, checkpoint)


def extend_graph(applied: tuple[Applied, ...], graph: ir.Graph) -> None:
    """Let every method add to the decoder graph, in order."""
    for hook, config in _hooks(applied, "extend_graph"):
        hook(config, graph)
