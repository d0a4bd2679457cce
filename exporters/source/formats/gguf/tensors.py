"""The tensors of a GGUF checkpoint as parameters of the model: names, shapes, and their reading, one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from enginewright.exporters.source.formats.gguf.header import FileTensor
from enginewright.exporters.source.formats.gguf.stored_codes import CODE_TYPES, FACTORED, HALVES, BlockCodes
from enginewright.exporters.source.formats.gguf.tensor_types import PLAIN, decode, refusal_of, type_name
from enginewright.exporters.source.formats.gguf.transformers_reading import ArchitectureReading
from enginewright.exporters.source.quantized.finite import check_finite
from enginewright.exporters.source.tensor_source import StoredTensor
from enginewright.exporters.weights.factored_scales import FactoredScales, join_factored
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

_PIECE = 1 << 24  # bytes read at once
_JOINED = ("ffn_gate_exps", "ffn_up_exps")  # the halves of one parameter, in its order
_JOINED_ALONG = 1


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """A parameter, and the tensors of the file that it is made of: one, or two that are joined; `TensorTable` creates it."""

    parts: tuple[FileTensor, ...]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> str:
        """Safetensors' name of the type where it has it; a vector's values may be changed, and are float32."""
        names = sorted({type_name(part.kind) for part in self.parts})
        if names[0] in PLAIN and len(self.shape) < 2:
            return "F32"
        return names[0] if len(names) == 1 and names[0] in PLAIN else "+".join(names) + " blocks"

    @property
    def is_plain(self) -> bool:
        """Whether it is stored as numbers and not as blocks."""
        return self.dtype in PLAIN

    @property
    def codes(self) -> str:
        """The names of its types of blocks; empty for numbers."""
        return "" if self.is_plain else "+".join(sorted({type_name(part.kind) for part in self.parts}))

    @property
    def content_size(self) -> int:
        """Bytes of `TensorTable.content`."""
        width = 4 if self.dtype == "F32" else 2
        return width * math.prod(self.shape) if self.is_plain else sum(part.size for part in self.parts)


class TensorTable:
    """The tensors by the names of transformers' parameters; those that belong to none keep their name in the file.

    `GgufSource` creates it.
    """

    def __init__(
        self, tensors: Mapping[str, FileTensor], reading: ArchitectureReading, names: Mapping[str, str]
    ) -> None:
        self._reading = reading
        found: dict[str, list[FileTensor]] = {}
        for name, tensor in tensors.items():
            target = names.get(name) or names.get(name.removesuffix(".weight")) or name
            found.setdefault(target, []).append(tensor)
        self._parameters = {name: self._parameter(name, parts) for name, parts in found.items()}

    def describe(self) -> dict[str, StoredTensor]:
        """The tensors as generic code sees them."""
        return {name: self._describe(parameter) for name, parameter in self._parameters.items()}

    def __getitem__(self, name: str) -> Parameter:
        return self._parameters[name]

    def read(self, name: str, part: int | None) -> np.ndarray:
        """Return the values of a parameter, or those of one slice [1, ...], float32."""
        parameter = self._parameters[name]
        halves = [self._read_tensor(tensor, part) for tensor in parameter.parts]
        return halves[0] if len(halves) == 1 else np.concatenate(halves, _JOINED_ALONG)

    def content(self, name: str) -> Iterator[bytes]:
        """Yield the numbers of a parameter that is stored as numbers, or else the blocks as they are in the file."""
        parameter = self._parameters[name]
        if not parameter.is_plain:
            for tensor in parameter.parts:
                yield from _pieces(tensor)
        elif parameter.dtype == "BF16":
            yield (self.read(name, None).view(np.uint32) >> 16).astype(np.uint16).tobytes()
        else:
            yield self.read(name, None).astype(np.float32 if parameter.dtype == "F32" else np.float16).tobytes()

    def codes(self, name: str, part: int | None = None) -> QuantizedRows | None:
        """Return codes and scales of a matrix, or of one slice of experts, its rows where the parameter has them.

        None for a parameter that cannot keep them.
        """
        parameter = self._parameters[name]
        if not parameter.codes or self._restored(parameter):
            return None
        tensors, kind = parameter.parts, parameter.parts[0].kind
        found = CODE_TYPES[kind]

        def join(halves: Sequence[np.ndarray]) -> np.ndarray:
            placed = [self._reading.apply(tensor.name, half) for tensor, half in zip(tensors, halves, strict=True)]
            return placed[0] if len(placed) == 1 else np.concatenate(placed)

        def load() -> tuple[np.ndarray, np.ndarray]:
            blocks = [_read_codes(tensor, part) for tensor in tensors]
            return join([each.codes for each in blocks]), join([each.scales for each in blocks])

        def minima() -> np.ndarray:
            blocks = [_read_codes(tensor, part) for tensor in tensors]
            return join([each.minima for each in blocks if each.minima is not None])

        def factored() -> FactoredScales:
            blocks = [_read_codes(tensor, part) for tensor in tensors]
            return join_factored([each.factored for each in blocks if each.factored is not None], join)

        return QuantizedRows(
            bits=found.bits,
            group_size=found.group_size,
            load=load,
            minima=minima if found.has_minima else None,
            halves=found.scales == HALVES,
            factored=factored if found.scales == FACTORED else None,
        )

    def _restored(self, parameter: Parameter) -> str:
        """Why the codes of a parameter cannot be kept, as a phrase; empty where they can."""
        if len({part.kind for part in parameter.parts}) > 1:
            return "its halves have codes of two types"
        if parameter.parts[0].kind not in CODE_TYPES:
            return "its codes stand for numbers that are no multiples of a scale"
        if len(parameter.parts[0].shape) not in (2, 3):
            return "it is no matrix"
        return "" if self._reading.keeps_rows else "the model has it transposed"

    def _describe(self, parameter: Parameter) -> StoredTensor:
        refusals = [refusal for part in parameter.parts if (refusal := refusal_of(part.kind))]
        return StoredTensor(
            file=parameter.parts[0].file,
            dtype=parameter.dtype,
            shape=parameter.shape,
            size=parameter.content_size,
            refusal=refusals[0] if refusals else "",
            codes=parameter.codes,
            restored=self._restored(parameter) if parameter.codes else "",
        )

    def _parameter(self, name: str, parts: list[FileTensor]) -> Parameter:
        shapes = [self._shape(part) for part in parts]
        if len(parts) == 1:
            return Parameter(parts=tuple(parts), shape=shapes[0])
        order = [half for kind in _JOINED for half in parts if f".{kind}." in half.name]
        first = parts[0]
        if len(order) != len(parts) or len(parts) != len(_JOINED) or len(set(shapes)) != 1 or len(shapes[0]) < 2:
            got = " and ".join(f"{part.name} {list(part.shape)}" for part in parts)
            raise ExportError(f"{first.file}: got {got}, expected one tensor for {name!r}; the file is damaged")
        joined = list(shapes[0])
        joined[_JOINED_ALONG] *= len(parts)
        return Parameter(parts=tuple(order), shape=tuple(joined))

    def _shape(self, tensor: FileTensor) -> tuple[int, ...]:
        """The shape of the tensor's parameter, found with values that need no memory where they are not moved."""
        try:
            return self._reading.apply(tensor.name, np.broadcast_to(np.int8(0), tensor.shape)).shape
        except ValueError as e:
            raise ExportError(
                f"{tensor.file}: tensor {tensor.name!r} got shape {list(tensor.shape)}, expected one that goes with the heads "
                f"that the metadata name ({e}); the file is damaged"
            ) from e

    def _read_tensor(self, tensor: FileTensor, part: int | None) -> np.ndarray:
        shape, begin, size = tensor.shape, tensor.begin, tensor.size
        if part is not None and len(shape) == 3:  # experts, whose values are never changed
            size //= shape[0]
            begin, shape = begin + part * size, (1, *shape[1:])
        values = self._reading.apply(tensor.name, decode(read_bytes(tensor, begin, size), tensor.kind, shape))
        return values if part is None or len(tensor.shape) == 3 else values[part : part + 1]


def read_bytes(tensor: FileTensor, begin: int, size: int) -> bytes:
    """Return bytes of the tensor's file.

    Raises:
        ExportError: the file cannot be read any more, or has become shorter.
    """
    try:
        with tensor.file.open("rb") as opened:
            opened.seek(begin)
            content = opened.read(size)
    except OSError as e:
        raise _unreadable(tensor, e.strerror or str(e)) from e
    if len(content) != size:
        raise _unreadable(tensor, "the file has become shorter")
    return content


def _read_codes(tensor: FileTensor, part: int | None) -> BlockCodes:
    """The codes of a matrix, or of one slice of experts."""
    begin, size, shape = tensor.begin, tensor.size, tensor.shape
    if part is not None:
        size //= shape[0]
        begin, shape = begin + part * size, shape[1:]
    found = CODE_TYPES[tensor.kind].read(read_bytes(tensor, begin, size), shape, tensor.kind)
    for each in (found.scales, found.minima):
        if each is not None:
            check_finite(each, tensor.file, tensor.name)
    return found


def _pieces(tensor: FileTensor) -> Iterator[bytes]:
    for begin in range(0, tensor.size, _PIECE):
        yield read_bytes(tensor, tensor.begin + begin, min(_PIECE, tensor.size - begin))


def _unreadable(tensor: FileTensor, reason: str) -> ExportError:
    return ExportError(f"{tensor.file}: tensor {tensor.name!r} cannot be read ({reason}); download the file again")
