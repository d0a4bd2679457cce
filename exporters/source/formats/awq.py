"""AWQ checkpoints, as AutoAWQ, GPTQModel and transformers write them, and those of AutoRound that are packed like these.

Version gemm, 8 codes of n in a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits:

    X.qweight   int32 [k, n / 8]
    X.qzeros    int32 [groups, n / 8]
    X.scales    float [groups, n]

Version gemv, 8 codes of k in a word, in their order, and groups filled up to a width of the kernel's:

    X.qweight   int32 [n, k / 8]
    X.qzeros    int32 [n, at least groups / 8]
    X.scales    float [n, 8 for each of qzeros]

number[i, j] = scale * (code[i, j] - zero_point), both of the group of j.

Source: github.com/casper-hansen/AutoAWQ, awq/modules/linear/gemm.py and gemv.py.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from enginewright.exporters.source.quantized.grouped_integers import (
    SCALES,
    GroupedIntegers,
    check_family,
    check_words,
    described_form,
    find_modules,
    read_choice,
    read_group_size,
)
from enginewright.exporters.source.quantized.packing import unpack_words
from enginewright.exporters.source.quantized.quantized_folder import (
    QuantizedFolder,
    StoredMatrix,
    check_part,
    is_packed_by_auto_round,
    is_quantised_with,
    quantized_format,
)
from enginewright.runtime.errors import ExportError, UnsupportedError

METHOD = "awq"
BITS = 4
PER_WORD = 32 // BITS
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""The place in a word, from the lowest bits, of each of 8 codes that follow each other."""
_PACKINGS = ("auto_round:auto_awq", "auto_round:awq", "auto_awq")  # of AutoRound, in version gemm


class AwqFolder(QuantizedFolder):
    """An opened directory; `SOURCE.open` creates it."""

    def matrices(self) -> Mapping[str, StoredMatrix]:
        """The linear layers that have a `qweight`; all other tensors are numbers."""
        check_family(self)
        read_choice(self, {"bits": self.settings.get("w_bit"), **self.settings}, "bits", (BITS,))
        make = {"gemm": self._gemm, "gemv": self._gemv}[self._version()]
        return {f"{module}.weight": make(module).describe("AWQ") for module in find_modules(self)}

    def _version(self) -> str:
        settings = self.settings
        named = settings.get("version") or settings.get("checkpoint_format") or settings.get("format") or "gemm"
        version = "gemm" if settings.get("quant_method") != METHOD else str(named).lower()
        if version not in ("gemm", "gemv") or settings.get("backend") == "llm-awq":
            raise UnsupportedError(
                f"{self.where_set}.version got {named!r}, expected gemm or gemv; pass a checkpoint in one of "
                "these, or the unquantised one"
            )
        return version

    def _group_size(self, module: str, k: int) -> int:
        settings = self.settings
        return read_group_size(self, {"group_size": settings.get("q_group_size"), **settings}, module, k)

    def _parts(self, module: str) -> tuple[str, str, str]:
        """The names of a module's tensors.

        Raises:
            UnsupportedError: it has no zero points, and no version that is read has a layout without.
        """
        qzeros = f"{module}.qzeros"
        if self.settings.get("zero_point") is False and qzeros not in self.files.tensors:
            raise UnsupportedError(
                f"{self.where_set}.zero_point got false, and there is no tensor {qzeros!r}, expected zero "
                "points; pass the unquantised checkpoint"
            )
        return f"{module}.qweight", qzeros, f"{module}.scales"

    def _gemm(self, module: str) -> GroupedIntegers:
        parts = qweight, qzeros, scales = self._parts(module)
        k, words = check_words(self, qweight)
        n, size = words * PER_WORD, self._group_size(module, k)
        need = described_form(BITS, size)
        check_part(self, qzeros, (k // size, words), "I32", need=need)
        check_part(self, scales, (k // size, n), *SCALES, need=need)
        return GroupedIntegers(
            where=self.files.tensors[scales].file,
            parts=parts,
            shape=(n, k),
            bits=BITS,
            group_size=size,
            codes=lambda: np.ascontiguousarray(_unpack(self.array(qweight)).T),
            scales=lambda: self.array(scales).astype(np.float32),
            zero_points=lambda: _unpack(self.array(qzeros)),
            halves=self.has_halves(scales),
        )

    def _gemv(self, module: str) -> GroupedIntegers:
        parts = qweight, qzeros, scales = self._parts(module)
        n, words = check_words(self, qweight)
        k = words * PER_WORD
        size = self._group_size(module, k)
        stored = self.files.tensors.get(qzeros)
        width = stored.shape[-1] if stored is not None and stored.shape else 0
        if width * PER_WORD < k // size:
            raise ExportError(
                f"{self.path}: tensor {qzeros!r} got zero points of {width * PER_WORD} groups, expected {k // size} or more; "
                "download the checkpoint again"
            )
        check_part(self, qzeros, (n, width), "I32")
        check_part(self, scales, (n, width * PER_WORD), *SCALES)
        return GroupedIntegers(
            where=self.files.tensors[scales].file,
            parts=parts,
            shape=(n, k),
            bits=BITS,
            group_size=size,
            codes=lambda: unpack_words(self.array(qweight), BITS, k),
            scales=lambda: self.array(scales)[:, : k // size].T.astype(np.float32),
            zero_points=lambda: unpack_words(self.array(qzeros), BITS, k // size).T,
            halves=self.has_halves(scales),
        )


def _unpack(words: np.ndarray) -> np.ndarray:
    """The codes of version gemm: int32 [m, w] -> uint8 [m, 8 w]."""
    m, width = words.shape
    codes: np.ndarray = unpack_words(words, BITS, width * PER_WORD).reshape(m, width, PER_WORD)
    return codes[..., _PLACES].reshape(m, -1)


SOURCE = quantized_format(
    METHOD,
    AwqFolder,
    lambda path: is_quantised_with(path, METHOD) or is_packed_by_auto_round(path, *_PACKINGS),
)
