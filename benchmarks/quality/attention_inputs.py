"""Records the queries, keys, values and outputs of every attention op while an engine runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from benchmarks.quality.cache_codecs import Floats
from enginewright.plugins.ops.tiles import TILE_TOKENS
from enginewright.runtime.backends.onnxruntime.cpu_session import CpuSession
from enginewright.runtime.backends.session import Outputs, PackedStep, TilesAlone

OP = "PagedAttention"
TAPS = ("query", "key", "value", "output")


@dataclass(frozen=True, kw_only=True)
class RecordedAttention:
    """The recorded attention of one layer over a text; created by `join_steps`.

    query: [T, Hq, D].
    key, value: [T, Hkv, D], rounded to halves as the cache holds them.
    output: [T, Hq, Dv].
    scale: factor of q . k.
    window: the number of tokens that each token sees, itself included; 0: all before it.
    """

    query: Floats
    key: Floats
    value: Floats
    output: Floats
    scale: float
    window: int = 0

    def over(self, keys: Floats, values: Floats, every: int = 1) -> Floats:
        """Compute attention over a quantised cache: [tokens, Hq, Dv] for the tokens in `rows(every)`.

        keys, values: [tiles, Hkv, TILE_TOKENS, D], the cache's contents for the second tile and those after it.
        every: compute only every so many tiles of tokens.

        A token sees these contents for whole tiles, and the exact ones in the first tile and in its own tile.
        """
        return np.concatenate([self._block(block, keys, values) for block in self._blocks(every)])

    def rows(self, every: int = 1) -> NDArray[np.int64]:
        """The positions for which `over` computes attention."""
        spans = [np.arange(block * TILE_TOKENS, self._end(block)) for block in self._blocks(every)]
        return np.concatenate(spans)

    def _blocks(self, every: int) -> range:
        return range(2, -(-len(self.query) // TILE_TOKENS), every)

    def _end(self, block: int) -> int:
        return min((block + 1) * TILE_TOKENS, len(self.query))

    def _block(self, block: int, keys: Floats, values: Floats) -> Floats:
        """The output for the tokens of tile number `block`."""
        begin, end = block * TILE_TOKENS, self._end(block)
        behind = np.arange(begin, end)[:, None] - np.arange(end)  # how far each token sees back
        hidden = (behind < 0) | (behind >= self.window) if self.window else behind < 0
        group = self.query.shape[1] // self.key.shape[1]
        parts = []
        for head in range(self.key.shape[1]):
            k, v = (
                np.concatenate(
                    [own[:TILE_TOKENS, head], stored[: block - 1, head].reshape(-1, own.shape[2]), own[begin:end, head]]
                )
                for own, stored in ((self.key, keys), (self.value, values))
            )
            for query in range(head * group, (head + 1) * group):
                logits = np.where(hidden, -np.inf, self.query[begin:end, query] @ k.T * self.scale)
                weights = np.exp(logits - logits.max(axis=1, keepdims=True))
                parts.append(weights @ v / weights.sum(axis=1, keepdims=True))
        return np.stack(parts, axis=1)


class TappedSession(TilesAlone):
    """A Session that runs an engine written by `write_tapped_engine` and records the arrays of its attention ops.

    taken: the [layer][tap] arrays of every step since the list was last emptied; the measuring code empties it.
    """

    offers: frozenset[str] = frozenset()

    def __init__(self, inner: CpuSession, capacity: int) -> None:
        self.run_seconds = 0.0
        self.taken: list[list[list[NDArray[np.float32]]]] = []
        self._inner = inner
        shapes = {output.name: output.shape[1:] for output in inner._session.get_outputs()}
        layers = sum(name.startswith("tap.output.") for name in shapes)
        self._buffers = []
        for layer in range(layers):
            names = [f"tap.{tap}.{layer}" for tap in TAPS]
            query, key, value = (shapes[name] for name in names[:3])
            sizes = (query, key, value, (query[0], value[1]))  # ONNX Runtime may not know the output's shape
            pairs = zip(names, sizes, strict=True)
            self._buffers.append({name: np.zeros((capacity, *size), np.float32) for name, size in pairs})

    def run(self, step: PackedStep) -> Outputs:
        """Run the step and record its taps."""
        count = len(step.input_ids)
        views = [{name: buffer[:count] for name, buffer in own.items()} for own in self._buffers]
        for own in views:
            for name, view in own.items():
                self._inner._bind_output(name, view)
        outputs = self._inner.run(step)
        self.run_seconds = self._inner.run_seconds
        self.taken.append([[view.copy() for view in own.values()] for own in views])
        return outputs

    def fill(self, port: str, entry: int, values: NDArray[Any]) -> None:
        """Pass the entry of a condition on."""
        self._inner.fill(port, entry, values)


def write_tapped_engine(engine: Path, copy: Path) -> tuple[float, ...]:
    """Copy the engine at `engine` to `copy`, with the taps as outputs of its graph; return the scale of each layer."""
    shutil.copytree(engine, copy)
    model = onnx.load(engine / "graphs/decoder.onnx", load_external_data=False)
    scales = {}
    for node in [node for node in model.graph.node if node.op_type == OP]:
        attributes = {attribute.name: attribute for attribute in node.attribute}
        layer = attributes["layer"].i
        scales[layer] = attributes["scale"].f
        for tap, name in zip(TAPS, (*node.input[:3], node.output[0]), strict=True):
            model.graph.node.append(onnx.helper.make_node("Identity", [name], [f"tap.{tap}.{layer}"]))
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(f"tap.{tap}.{layer}"))
    graph = copy / "graphs/decoder.onnx"
    onnx.save(model, graph)
    manifest = json.loads((engine / "manifest.json").read_text())
    decoder = manifest["graphs"]["decoder"]
    decoder["engines"] = []  # built engines do not have the taps
    decoder["files"][0]["size"] = graph.stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    return tuple(scales[layer] for layer in sorted(scales))


def join_steps(
    steps: Sequence[list[list[NDArray[np.float32]]]], scales: Sequence[float], windows: Sequence[int]
) -> list[RecordedAttention]:
    """The attention of each layer over all steps of one text; keys and values are rounded as a cache of halves rounds them."""
    layers = []
    for layer, (scale, window) in enumerate(zip(scales, windows, strict=True)):
        query, key, value, output = (np.concatenate([step[layer][tap] for step in steps]) for tap in range(len(TAPS)))
        key, value = (x.astype(np.float16).astype(np.float32) for x in (key, value))
        layers.append(RecordedAttention(query=query, key=key, value=value, output=output, scale=scale, window=window))
    return layers
