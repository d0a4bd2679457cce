"""gpt-oss as it is published: experts in MXFP4, blocks of 32 numbers of 4 bits that share a power of two.

    experts.gate_up_proj_blocks   uint8 [experts, n, k / 32, 16], two codes in a byte, the earlier one in the low nibble
    experts.gate_up_proj_scales   uint8 [experts, n, k / 32], exponents that count from 127

number = E2M1 code * 2^(scale - 127). The model has the transposed matrices, gate_up_proj [experts, k, n].

Source: OCP Microscaling Formats (MX) 1.0; github.com/openai/gpt-oss, gpt_oss/torch/weights.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch

from enginewright.exporters.source.quantized.packing import E2M1, exponents_to_scales, unpack_pairs
from enginewright.exporters.source.quantized.quantized_folder import (
    QuantizedFolder,
    StoredMatrix,
    check_part,
    is_quantised_with,
    quantized_format,
)
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError

METHOD = "mxfp4"
BLOCK = 32
_LARGEST = 252  # with it, 6 * 2^(scale - 127) is still a float32; 255 stands for NaN
_CODES, _SCALES = "_blocks", "_scales"
_BITS = 5  # codes are doubled to be whole, so that they run from -12 to 12


class Mxfp4Folder(QuantizedFolder):
    """An opened directory; `SOURCE.open` creates it."""

    def matrices(self) -> Mapping[str, StoredMatrix]:
        """The experts, which alone are in MXFP4."""
        return {
            name.removesuffix(_CODES): self._matrix(name.removesuffix(_CODES))
            for name in self.files.tensors
            if name.endswith(_CODES)
        }

    def matrix_of(self, part: str) -> str:
        """The name without the end that says which part it is."""
        return part.removesuffix(_CODES).removesuffix(_SCALES)

    def _matrix(self, name: str) -> StoredMatrix:
        stored = self.files.tensors[f"{name}{_CODES}"]
        if len(stored.shape) != 4 or stored.shape[-1] * 2 != BLOCK:
            raise ExportError(
                f"{stored.file}: tensor {name + _CODES!r} got {list(stored.shape)}, expected [experts, rows, blocks, {BLOCK // 2}]"
            )
        check_part(self, f"{name}{_CODES}", stored.shape, "U8")
        check_part(self, f"{name}{_SCALES}", stored.shape[:-1], "U8")
        experts, rows, blocks, _ = stored.shape
        return StoredMatrix(
            parts=(f"{name}{_CODES}", f"{name}{_SCALES}"),
            shape=(experts, blocks * BLOCK, rows),
            codes_name="MXFP4",
            read=partial(self._read, name),
            codes=lambda part: QuantizedRows(
                bits=_BITS, group_size=BLOCK, load=partial(self._load, name, part), input_axis=0
            ),
        )

    def _load(self, name: str, part: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Codes [n, k] and scales [n, k / 32] of one expert."""
        blocks = self.array(f"{name}{_CODES}", part)[0]
        codes = E2M1[unpack_pairs(blocks)].reshape(len(blocks), -1)
        exponents = self.array(f"{name}{_SCALES}", part)[0]
        if (exponents > _LARGEST).any():
            where = self.files.tensors[f"{name}{_SCALES}"].file
            raise ExportError(f"{where}: tensor {name + _SCALES!r} holds NaN or infinity; the checkpoint is damaged")
        return codes, exponents_to_scales(exponents, 2)

    def _read(self, name: str, part: int | None) -> torch.Tensor:
        experts = self.files.tensors[f"{name}{_CODES}"].shape[0]
        numbers = range(experts) if part is None else (part,)
        rows = (
            QuantizedRows(bits=_BITS, group_size=BLOCK, load=partial(self._load, name, i), input_axis=0)
            for i in numbers
        )
        return torch.stack([torch.from_numpy(np.ascontiguousarray(each.restore())) for each in rows])


SOURCE = quantized_format(METHOD, Mxfp4Folder, lambda path: is_quantised_with(path, METHOD))
