"""Runs both attention ops on a device, with the same cases and arrays as their tests on the CPU.

A case's query, key and value become float16 or bfloat16 first, for the oracle, too, so that only the kernels' own errors are
compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from enginewright.plugins.libraries.cuda_calls import CallStructure, structure_of
from enginewright.plugins.ops.attention_ports import ATTENTION_FIELDS
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION_CALL
from enginewright.plugins.ops.paged_attention import PAGED_ATTENTION_CALL
from tests.support.kernels.device import TYPES, Buffer, Device, download, from_bits, rounded, run, to_bits

Attention = structure_of(ATTENTION_FIELDS)
KVarNAttention = structure_of(KVARN_ATTENTION_CALL)
PagedAttention = structure_of(PAGED_ATTENTION_CALL)

Arrays = dict[str, np.ndarray]
ACTIVATIONS = ("query", "key", "value")


def typed(arrays: Arrays, type: str) -> Arrays:
    """The call with activations rounded to numbers that `type` can hold."""
    with np.errstate(over="ignore"):
        return arrays | {name: rounded(arrays[name], type) for name in ACTIVATIONS}


class _Call:
    """Buffers of a call's arrays, and the output's."""

    def __init__(self, device: Device, arrays: Arrays, attributes: Mapping[str, Any], type: str) -> None:
        self.device, self.type, self.attributes = device, type, attributes
        self.buffers = {name: device.upload(self._as_given(name, array)) for name, array in arrays.items()}
        tokens, query_heads, head_dim = arrays["query"].shape
        kv_heads, value_dim = arrays["value"].shape[1:]
        starts = arrays["query_starts"]
        self.output = device.upload(np.full((tokens, query_heads, value_dim), 0xFFFF, np.uint16))
        self.attention = Attention(
            output=self.output.address,
            kv_lens=self.layer("kv_lens"),
            table=self.layer("tile_table"),
            tokens=tokens,
            rows=len(starts) - 1,
            query_heads=query_heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            value_dim=value_dim,
            table_heads=arrays["kv_lens"].shape[-1],
            table_width=arrays["tile_table"].shape[-1],
            window=attributes.get("window", 0),
            softcap=attributes.get("softcap", 0.0),
            scale=attributes["scale"],
            longest=int(np.diff(starts).max(initial=0)),
            type=TYPES[type],
            **{name: self.buffers[name].address for name in (*ACTIVATIONS, "query_starts")},
            **({"sinks": self.buffers["sinks"].address} if "sinks" in arrays else {}),
        )

    def _as_given(self, name: str, array: np.ndarray) -> np.ndarray:
        return to_bits(array, self.type) if name in ACTIVATIONS else array

    def layer(self, name: str, index: int = 0) -> int:
        """The address of the node's layer in array [layers, ...], or in [index] of [n, layers, ...]."""
        buffer = self.buffers[name]
        inner = {"kv_lens": 2, "tile_table": 3, "encoded_lens": 2}[name]
        size = int(np.prod(buffer.shape[-inner:])) * buffer.dtype.itemsize
        layers = buffer.shape[-inner - 1]
        return int(buffer.address + (index * layers + self.attributes["layer"]) * size)

    def finish(self, call: CallStructure, *caches: str) -> list[np.ndarray]:
        """Runs it; float32 output, then the caches."""
        run(self.device, call)
        written: list[Buffer] = [self.buffers[name] for name in caches]
        for name in self.buffers.keys() - set(caches):
            download(self.device, self.buffers[name])  # which looks behind its end
        output = from_bits(download(self.device, self.output), self.type)
        return [output, *(download(self.device, buffer) for buffer in written)]


def paged_attention(device: Device, arrays: Arrays, attributes: Mapping[str, Any], type: str) -> list[np.ndarray]:
    """Output [T, Hq, Dv] and the pool, as the op PagedAttention gives them.

    Raises:
        ValueError: the library refuses the call.
    """
    call = _Call(device, arrays, attributes, type)
    tiles = call.buffers["tiles"]
    return call.finish(
        PagedAttention(
            attention=call.attention,
            tiles=tiles.address,
            tile_count=tiles.shape[0],
            kv_bits=attributes.get("kv_bits", 16),
        ),
        "tiles",
    )


def kvarn_attention(device: Device, arrays: Arrays, attributes: Mapping[str, Any], type: str) -> list[np.ndarray]:
    """Output [T, Hq, D], the pool and the exact tiles, as the op KVarNAttention gives them.

    Raises:
        ValueError: the library refuses the call.
    """
    call = _Call(device, arrays, attributes, type)
    buffers = call.buffers
    return call.finish(
        KVarNAttention(
            attention=call.attention,
            tiles=buffers["tiles"].address,
            exact=buffers["exact"].address,
            slots=buffers["slots"].address,
            encoded_before=call.layer("encoded_lens", 0),
            encoded_after=call.layer("encoded_lens", 1),
            record_count=buffers["tiles"].shape[0],
            slot_count=buffers["exact"].shape[0],
            exact_tiles=buffers["exact"].shape[2],
            iterations=attributes.get("iterations", 8),
            k_bits=attributes.get("k_bits", 4),
            v_bits=attributes.get("v_bits", 2),
            robust=attributes.get("robust", 0),
            rotate_values=attributes.get("rotate_values", 1),
        ),
        "tiles",
        "exact",
    )


Run = Callable[[Device, Arrays, Mapping[str, Any], str], list[np.ndarray]]


def other_rows_empty(arrays: Arrays, row: int) -> tuple[Arrays, slice]:
    """The same batch in which only `row` has tokens, and the range of these tokens; the row's part of the grid is unchanged."""
    start, end = arrays["query_starts"][row : row + 2].tolist()
    starts = np.where(np.arange(len(arrays["query_starts"])) > row, end - start, 0).astype(np.int32)
    return arrays | {name: arrays[name][start:end] for name in ACTIVATIONS} | {"query_starts": starts}, slice(
        start, end
    )


ROUNDING = {"float16": 2**-11, "bfloat16": 2**-8}
"""The largest relative error of one rounding to a type."""


def relative_tolerance(type: str, logit_size: float, roundings: int = 1) -> float:
    """The allowed ratio of the root mean square of a token's errors to that of its outputs.

    Weights and prepared queries are halves: up to 4e-4 for each rounding, of queries of a logit, by which weights change
    as by a factor. Outputs are rounded less often.
    """
    return 4e-4 * roundings * (1 + logit_size) + ROUNDING[type] * (1 + roundings) / 4


def check_output(got: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """Check that each token's root mean square error is within `tolerance` of the expected output's root mean square."""
    assert got.shape == wanted.shape
    assert np.isfinite(got).all()
    error, size = (np.sqrt((x.astype(np.float64) ** 2).mean(axis=(1, 2))) for x in (got - wanted, wanted))
    np.testing.assert_array_less(error, tolerance * size + 1e-30)
