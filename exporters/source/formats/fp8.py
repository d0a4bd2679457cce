"""Checkpoints of float8 numbers with scales, as DeepSeek, Qwen and transformers write them (fp8, fbgemm_fp8).

    X.weight              float8 [n, k], e4m3 or e5m2; or T float8 [experts, n, k]
    X.weight_scale_inv    a scale for each block, [ceil(n / block_n), ceil(k / block_k)], or one for all; T_scale_inv
    X.weight_scale        [n, 1], a scale for each row (fbgemm_fp8), or one for all; T_scale
    X.input_scale, X.activation_scale, X.input_scale_ub    of activations, which engines do not round to float8

number = float8 * scale, whatever "inv" says.

Source: transformers, integrations/finegrained_fp8.py and fbgemm_fp8.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import numpy as np
import torch

from enginewright.exporters.source.formats.safetensors import CONFIG
from enginewright.exporters.source.quantized.packing import exponents_to_scales
from enginewright.exporters.source.quantized.quantized_folder import (
    SETTINGS,
    QuantizedFolder,
    StoredMatrix,
    check_part,
    is_quantised_with,
    quantized_format,
)
from enginewright.exporters.source.quantized.shared_scales import ScaleTile
from enginewright.exporters.source.tensor_source import StoredTensor
from enginewright.exporters.source.unused import UnusedParts
from enginewright.runtime.errors import ExportError, UnsupportedError

METHODS = ("fp8", "fbgemm_fp8")
FLOATS = {"F8_E4M3": "float8 e4m3", "F8_E5M2": "float8 e5m2"}
_SCALES = ("_scale_inv", "_scale")
_ACTIVATIONS = ("input_scale", "activation_scale", "input_scale_ub")
_EXPONENTS = "ue8m0"


class Fp8Folder(QuantizedFolder):
    """An opened directory; `SOURCE.open` creates it."""

    def matrices(self) -> Mapping[str, StoredMatrix]:
        """The tensors of float8 numbers."""
        self._check_settings()
        return {
            name: self._matrix(name, stored) for name, stored in self.files.tensors.items() if stored.dtype in FLOATS
        }

    def unused(self) -> Iterable[UnusedParts]:
        """Yield the scales of activations."""
        names = [part for each in self._matrices.values() for part in each.parts[2:]]
        for file in dict.fromkeys(self.files.tensors[name].file for name in names):
            yield UnusedParts(
                file=file.name,
                names=tuple(name for name in names if self.files.tensors[name].file == file),
                reason="engines do not round activations to float8",
            )

    @property
    def _block(self) -> tuple[int, int] | None:
        """Rows and columns that share a scale; None: one scale is for a row, or for the whole matrix."""
        size = self.settings.get("weight_block_size")
        return None if size is None else (size[0], size[1])

    def _check_settings(self) -> None:
        where, settings = f"{self.path / CONFIG}: {SETTINGS}", self.settings
        size = settings.get("weight_block_size")
        is_pair = isinstance(size, list) and len(size) == 2 and all(type(each) is int and each > 0 for each in size)
        if size is not None and not is_pair:
            raise ExportError(f"{where}.weight_block_size got {size!r}, expected two positive integers; correct it")
        if settings.get("expert_dtype", "fp8") != "fp8":
            raise UnsupportedError(
                f"{where}.expert_dtype got {settings['expert_dtype']!r}, expected fp8; pass the unquantised checkpoint"
            )
        if settings.get("weight_scale_semantics") is not None or settings.get("weight_scale_method") is not None:
            raise UnsupportedError(
                f"{where}: got GPTQModel's scales, by which weights are divided, expected scales to multiply by; pass the "
                "unquantised checkpoint"
            )

    def _matrix(self, name: str, stored: StoredTensor) -> StoredMatrix:
        scale = next((name + end for end in _SCALES if name + end in self.files.tensors), name + _SCALES[0])
        if len(stored.shape) not in (2, 3):
            raise ExportError(
                f"{stored.file}: tensor {name!r} got {stored.dtype} {list(stored.shape)}, expected a matrix, or one for each "
                "expert; pass the unquantised checkpoint"
            )
        self._check_scale(scale, stored.shape)
        module = name.rpartition(".")[0]
        activations = [part for part in (f"{module}.{end}" for end in _ACTIVATIONS) if part in self.files.tensors]
        return StoredMatrix(
            parts=(name, scale, *activations),
            shape=stored.shape,
            codes_name=FLOATS[stored.dtype],
            read=partial(self._read, name, scale),
            restored="its numbers are float8",
        )

    def _check_scale(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ExportError unless the scales are there, and in a number that goes with the weight's shape."""
        *experts, n, k = shape
        known: list[tuple[int, ...]] = [(), (1,), tuple(experts), (*experts, 1, 1)]
        if (block := self._block) is None:
            known += [(*experts, n, 1), (*experts, n)]
        else:
            known = [(*experts, -(-n // block[0]), -(-k // block[1])), *known]
        stored = self.files.tensors.get(name)
        fits = stored is not None and stored.shape in known
        dtypes = ["F32", "BF16", "F16", "F8_E8M0", *(["U8"] if self.settings.get("scale_fmt") == _EXPONENTS else [])]
        check_part(self, name, stored.shape if stored is not None and fits else known[0], *dtypes)

    def _read(self, name: str, scale: str, part: int | None) -> torch.Tensor:
        numbers = self.array(name, part)
        scales = self._scales(scale, part, is_stack=numbers.ndim == 3)
        for index in np.ndindex(numbers.shape[:-2]):
            self._multiply(
                numbers[index], scales[index] if scales.shape[: len(index)] == numbers.shape[:-2] else scales
            )
        return torch.from_numpy(numbers)

    def _scales(self, name: str, part: int | None, *, is_stack: bool) -> np.ndarray:
        """The scales, float32; of one expert [1, ...] if they are a stack."""
        stored = self.files.tensors[name]
        one_each = is_stack and len(stored.shape) > 0 and stored.shape != (1,)
        found = self.array(name, part if one_each else None)
        return exponents_to_scales(found) if found.dtype == np.uint8 else found

    def _multiply(self, matrix: np.ndarray, scales: np.ndarray) -> None:
        """Multiply `matrix` [n, k] by its scales, in place."""
        n, k = matrix.shape
        rows, columns = (n, k) if scales.size == 1 else self._block or (1, k)
        tile = ScaleTile(shape=(n, k), rows=max(rows, 1), columns=max(columns, 1))
        tile.scale(matrix, scales)


SOURCE = quantized_format(
    "fp8",
    Fp8Folder,
    lambda path: is_quantised_with(path, *METHODS),
    expects=f"whose config.json has {SETTINGS} with quant_method {' or '.join(METHODS)}",
)
