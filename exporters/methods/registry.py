"""Inference methods, one module each, found by name.

A method is a module with a frozen dataclass `Config` (its options; the command line and recipes read it) and those of
these functions that it needs:

    transform_weights(config, weights, checkpoint) -> weights    before anything else
    choose_cache(config, cache) -> cache             which format of the cache the graph is captured with
    choose_decoding(config, decoding) -> decoding    the manifest's `decoding`: how the runtime makes tokens of outputs
    check_model(config, checkpoint)                  refuses a checkpoint that it is not for, before any work
    extend_graph(config, graph)                      adds nodes and outputs to the decoder graph, weights still recipes

`transform_weights` takes and returns {parameter name: Weight}: recipes, of which it computes no more than it must. A method
that quantises sets `Weight.quantized`, and none may change such a weight after it. `choose_cache` takes and returns a
`caches.CacheFormat`.
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

METHODS = {
    "clp": "enginewright.exporters.methods.clp.method",
    "kvarn": "enginewright.exporters.methods.kvarn",
    "lora": "enginewright.exporters.methods.lora",
    "piso": "enginewright.exporters.methods.piso.method",
}


@dataclass(frozen=True)
class Applied:
    """A method chosen for an export, with its config."""

    name: str
    config: Any

    def describe(self) -> dict[str, Any]:
        """The manifest's record of it."""
        return {"name": self.name, **dataclasses.asdict(self.config)}


def find_method(name: str) -> ModuleType:
    """Import the method `name`; ExportError lists the known ones."""
    if name not in METHODS:
        raise ExportError(f"apply: unknown method {name!r}; known: {', '.join(sorted(METHODS))}")
    return importlib.import_module(METHODS[name])


def _hooks(applied: tuple[Applied, ...], name: str) -> Iterator[tuple[Callable[..., Any], Any]]:
    """The function `name` of every method that has it, with that method's config, in order."""
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
    """Pass the cache's format through every method that chooses one, in order."""
    for hook, config in _hooks(applied, "choose_cache"):
        cache = hook(config, cache)
    return cache


def choose_decoding(applied: tuple[Applied, ...]) -> dict[str, Any]:
    """Return the manifest's decoding after every method that chooses one, in order."""
    decoding: dict[str, Any] = {"kind": "autoregressive"}
    for hook, config in _hooks(applied, "choose_decoding"):
        decoding = hook(config, decoding)
    return decoding


def check_model(applied: tuple[Applied, ...], checkpoint: Checkpoint) -> None:
    """Let every method refuse the checkpoint."""
    for hook, config in _hooks(applied, "check_model"):
        hook(config, checkpoint)


def extend_graph(applied: tuple[Applied, ...], graph: ir.Graph) -> None:
    """Let every method add to the decoder graph, in order."""
    for hook, config in _hooks(applied, "extend_graph"):
        hook(config, graph)
