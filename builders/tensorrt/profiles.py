"""The shapes that a TensorRT engine is prepared for: one profile for steps in which every row decodes, one for prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from enginewright.runtime.artifact.decoder_graph import SPARE, Axis, inputs
from enginewright.runtime.artifact.manifest import Graph, Manifest, TensorSpec
from enginewright.runtime.cache.capacity import EXACT_TILES, plan_step, plan_tiles
from enginewright.runtime.errors import BuildError

Range = tuple[int, int, int]
Shape = tuple[int, ...]
Corners = tuple[Shape, Shape, Shape]


@dataclass(frozen=True, kw_only=True)
class ProfileShapes:
    """One profile of an engine; created by `plan_profiles`.

    name: "decode" or "prefill", in this order in the engine.
    shapes: input -> its smallest, most likely and largest shape.
    """

    name: str
    shapes: dict[str, Corners]


def plan_profiles(manifest: Manifest, graph: Graph, chunk: int) -> tuple[ProfileShapes, ...]:
    """Return the profiles of `graph`.

    chunk: the largest number of prompt tokens in one step.

    Raises:
        BuildError: the graph has an input that no session feeds, or an axis whose size nothing bounds.
    """
    sizes = _dense_sizes(manifest, chunk) if manifest.cache.is_dense else _packed_sizes(manifest, chunk)
    axes = {port.name: port.axes for port in inputs(manifest)}
    return tuple(
        ProfileShapes(name=name, shapes={spec.name: _shapes(spec, ranges, axes) for spec in graph.inputs})
        for name, ranges in sizes.items()
    )


def _dense_sizes(manifest: Manifest, chunk: int) -> dict[str, dict[str, Range]]:
    """The sizes of a dense graph: decoding takes rows of one token each; a prompt comes alone, in pieces."""
    rows, tokens = manifest.limits.max_batch, min(chunk, manifest.limits.max_context)
    every = (1, rows, rows)
    return {
        "decode": {"B": every, "T": (1, 1, 1), "N": every},
        "prefill": {"B": (1, 1, 1), "T": (1, tokens, tokens), "N": (1, 1, tokens)},
    }


def _packed_sizes(manifest: Manifest, chunk: int) -> dict[str, dict[str, Range]]:
    """The sizes of a packed graph, where decoding rows and pieces of prompts share a step, as the runtime plans it."""
    cache, rows, context = manifest.cache, manifest.limits.max_batch, manifest.limits.max_context
    width = manifest.tokens_per_row
    step = plan_step(cache, rows=rows, width=width, prefill_chunk=chunk, vocab_size=manifest.model.vocab_size)
    longest = step.tokens
    blocks = -(-context // cache.tile_tokens)
    held = rows * blocks * cache.tile_tokens
    tiles = plan_tiles(cache, rows=rows, context=context, step_tokens=longest, cache_tokens=held)
    every: dict[str, Range] = {
        "B": (1, rows, rows),
        "B1": (2, rows + 1, rows + 1),
        "M": (1, blocks, blocks),
        "slots": (1, rows + SPARE, rows + SPARE),
        "exact": (EXACT_TILES, EXACT_TILES, EXACT_TILES),
        **{
            f"tiles_{i}": (layer.kv_heads, most + SPARE, most + SPARE)
            for i, (layer, most) in enumerate(zip(cache.layers, tiles, strict=True))
        },
    }
    logits = min(rows * width + step.scored, longest)
    return {
        "decode": {**every, "T": (1, rows * width, rows * width), "N": (1, rows * width, rows * width)},
        "prefill": {**every, "T": (1, longest, longest), "N": (1, min(rows, logits), logits)},
    }


def _shapes(spec: TensorSpec, ranges: Mapping[str, Range], known: Mapping[str, tuple[Axis, ...]]) -> Corners:
    axes = _axes(spec, known)
    corners = []
    for which in range(3):
        shape = []
        for axis, size in enumerate(spec.shape):
            if not isinstance(size, int):
                if axis not in axes:
                    raise BuildError(
                        f"decoder input {spec.name!r}: got a size {size!r} on axis {axis}, expected a number or one of "
                        f"{', '.join(axes.values()) or 'none'}; upgrade enginewright"
                    )
                size = ranges[axes[axis]][which]
            shape.append(size)
        corners.append(tuple(shape))
    return corners[0], corners[1], corners[2]


def _axes(spec: TensorSpec, known: Mapping[str, tuple[Axis, ...]]) -> dict[int, str]:
    """The name of the size of each varying axis of an input.

    Raises:
        BuildError: the input is unknown.
    """
    if spec.name not in known:
        raise BuildError(
            f"decoder input {spec.name!r}: got a name unknown to this builder, expected one of {', '.join(known)}; "
            "upgrade enginewright"
        )
    return {index: axis for index, axis in enumerate(known[spec.name]) if isinstance(axis, str)}
