"""GPTQ checkpoints, as AutoGPTQ, GPTQModel and transformers write them, and those of AutoRound that are packed like these.

    X.qweight   int32 [k * bits / 32, n], the codes of a column of n as one stream of bits, lowest bit first
    X.qzeros    int32 [groups, n * bits / 32], zero points in the same way along n; in the first format, each less 1
    X.scales    float [groups, n]
    X.g_idx     int32 [k], the group of each input; without it, groups lie next to each other

number[i, j] = scales[g_idx[j], i] * (code[i, j] - zero_point[g_idx[j], i]).

Source: github.com/ModelCloud/GPTQModel, gptqmodel/nn_modules/qlinear/__init__.py and utils/model.py.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from enginewright.exporters.source.formats.safetensors import CONFIG
from enginewright.exporters.source.quantized.grouped_integers import (
    SCALES,
    GroupedIntegers,
    check_family,
    check_words,
    described_form,
    find_modules,
    pick,
    read_choice,
    read_group_size,
)
from enginewright.exporters.source.quantized.packing import unpack_words
from enginewright.exporters.source.quantized.quantized_folder import (
    SETTINGS,
    QuantizedFolder,
    StoredMatrix,
    check_part,
    is_packed_by_auto_round,
    is_quantised_with,
    quantized_format,
    where_missing,
)
from enginewright.runtime.errors import ExportError, UnsupportedError

METHOD = "gptq"
BITS = (2, 3, 4, 8)
_FIRST, _SECOND = "gptq", "gptq_v2"
_PACKINGS = ("auto_round:auto_gptq", "auto_round:gptq", "auto_gptq")  # of AutoRound, in the first format
_WORD_WISE = "gptqmodel"  # subtracts 1 from all zero points of a word at once


class GptqFolder(QuantizedFolder):
    """An opened directory; `SOURCE.open` creates it."""

    def matrices(self) -> Mapping[str, StoredMatrix]:
        """The linear layers that have a `qweight`; all other tensors are numbers."""
        check_family(self)
        self._format  # noqa: B018 (refuses an unknown one)
        return {f"{module}.weight": self._integers(module).describe("GPTQ") for module in find_modules(self)}

    @functools.cached_property
    def _format(self) -> str:
        """The format of zero points."""
        if self.settings.get("quant_method") != METHOD:
            if not str(self.settings.get("data_type", "int")).startswith("int"):
                raise UnsupportedError(
                    f"{self.where_set}.data_type got {self.settings['data_type']!r}, expected int; pass the "
                    "unquantised checkpoint"
                )
            return _FIRST  # AutoRound's
        named = self.settings.get("checkpoint_format") or self.settings.get("format") or _FIRST
        if named not in (_FIRST, _SECOND) or self.settings.get("is_marlin_format"):
            raise UnsupportedError(
                f"{self.where_set}.checkpoint_format got {'marlin' if named == _FIRST else named!r}, expected "
                f"{_FIRST} or {_SECOND}; pass a checkpoint in one of these, or the unquantised one"
            )
        return str(named)

    @functools.cached_property
    def _overrides(self) -> list[tuple[str, re.Pattern[str], dict[str, Any]]]:
        """The settings of single modules: key, pattern and settings, of which the first that matches counts."""
        found = []
        for key, settings in self._named_settings("dynamic"):
            try:
                pattern = re.compile(key.removeprefix("+:").removeprefix("-:"))
            except re.error as e:
                raise ExportError(
                    f"{self.where_set}.dynamic got {key!r}, expected a regular expression ({e}); correct it"
                ) from e
            found.append((key, pattern, settings))
        for key, settings in self._named_settings("extra_config"):
            found.append((key, re.compile(f"{re.escape(key)}$"), settings))
        return found

    def _named_settings(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """The settings of modules, by the modules' names, that the setting `name` has."""
        where, named = f"{self.where_set}.{name}", self.settings.get(name) or {}
        if not isinstance(named, dict):
            raise ExportError(f"{where} got {named!r}, expected settings by the names of modules; correct it")
        for key, settings in named.items():
            if not isinstance(settings, dict):
                raise ExportError(f"{where} {key!r} got {settings!r}, expected settings; correct it")
            yield key, settings

    def _settings_of(self, module: str) -> dict[str, Any]:
        for key, pattern, settings in self._overrides:
            if pattern.match(module):
                if key.startswith("-:"):
                    raise ExportError(
                        f"{self.where_set}.dynamic {key!r} leaves {module!r} as numbers, but the checkpoint has "
                        f"{module + '.qweight'!r}; they do not belong together"
                    )
                return {**self.settings, **settings}
        return self.settings

    def _integers(self, module: str) -> GroupedIntegers:
        settings = self._settings_of(module)
        bits = read_choice(self, settings, "bits", BITS)
        qweight, qzeros, scales, g_idx = (f"{module}.{part}" for part in ("qweight", "qzeros", "scales", "g_idx"))
        rows, n = check_words(self, qweight)
        if rows * 32 % bits:
            raise ExportError(
                f"{self.path}: tensor {qweight!r} got {rows} rows, expected a multiple of {bits} for {bits} bits; {CONFIG} "
                "belongs to another checkpoint"
            )
        k = rows * 32 // bits
        size = read_group_size(self, settings, module, k)
        check_part(self, qzeros, (k // size, -(-n * bits // 32)), "I32", need=described_form(bits, size))
        check_part(self, scales, (k // size, n), *SCALES, need=described_form(bits, size))
        has_groups = g_idx in self.files.tensors
        if has_groups:
            check_part(self, g_idx, (k,), "I32", "I64")
        elif settings.get("desc_act"):
            raise ExportError(
                f"{where_missing(self, g_idx)}: tensor {g_idx!r} is missing, but {SETTINGS}.desc_act reorders inputs by it; download the "
                "checkpoint again"
            )
        return GroupedIntegers(
            where=self.files.tensors[scales].file,
            parts=(qweight, qzeros, scales, *([g_idx] if has_groups else [])),
            shape=(n, k),
            bits=bits,
            group_size=size,
            codes=lambda: unpack_words(np.ascontiguousarray(self.array(qweight).T), bits, k),
            scales=lambda: self.array(scales).astype(np.float32),
            zero_points=lambda: self._checked_zero_points(qzeros, bits, n, settings),
            halves=self.has_halves(scales),
            groups=pick(self, g_idx) if has_groups else None,
        )

    def _checked_zero_points(self, name: str, bits: int, n: int, settings: Mapping[str, Any]) -> np.ndarray:
        """Zero points [groups, n] uint8; ExportError where `sym` contradicts all of them by 1, as a wrong format makes them."""
        found, middle = self._zero_points(name, bits, n), 1 << (bits - 1)
        if settings.get("sym") is True and found.size and np.all(np.abs(found.astype(np.int16) - middle) == 1):
            other = _SECOND if self._format == _FIRST else _FIRST
            raise ExportError(
                f"{self.files.tensors[name].file}: tensor {name!r} got zero points of {found.flat[0]} as {SETTINGS}."
                f"checkpoint_format {self._format} stores them, expected {middle}, since {SETTINGS}.sym is true; set "
                f"checkpoint_format to {other} in {CONFIG} if that is what the checkpoint is, or sym to false"
            )
        return found

    def _zero_points(self, name: str, bits: int, n: int) -> np.ndarray:
        """Zero points [groups, n] uint8.

        In the first format 0 is stored as the highest code. GPTQModel has borrowed from the next zero point of the word then,
        and takes that back when it reads; AutoGPTQ has not.
        """
        words = self.array(name)
        if self._format == _SECOND:
            return unpack_words(words, bits, n)
        if bits != 3 and self._is_word_wise:
            ones = sum(1 << shift for shift in range(0, 32, bits))
            return unpack_words((words.view(np.uint32) + np.uint32(ones)).view(np.int32), bits, n)
        return unpack_words(words, bits, n) + np.uint8(1) & np.uint8((1 << bits) - 1)

    @functools.cached_property
    def _is_word_wise(self) -> bool:
        """Whether GPTQModel has written the checkpoint."""
        meta = self.settings.get("meta")
        tools = meta.get("quantizer") if isinstance(meta, dict) else None
        return any(str(tool).startswith(_WORD_WISE) for tool in (tools if isinstance(tools, list) else [tools]))


SOURCE = quantized_format(
    METHOD,
    GptqFolder,
    lambda path: is_quantised_with(path, METHOD) or is_packed_by_auto_round(path, *_PACKINGS),
)
