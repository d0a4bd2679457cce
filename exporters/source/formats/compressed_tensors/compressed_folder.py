"""An opened directory of compressed-tensors: each module that is stored as codes, with the settings of its group."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from enginewright.exporters.source.formats.compressed_tensors.layouts import IS_PACKED, LAYOUTS, PACKED, SCALE, WEIGHT
from enginewright.exporters.source.formats.compressed_tensors.scheme import Scheme
from enginewright.exporters.source.formats.compressed_tensors.targets import Targets, read_groups
from enginewright.exporters.source.formats.compressed_tensors.whole_codes import GROUPS
from enginewright.exporters.source.formats.safetensors import CONFIG, DTYPES
from enginewright.exporters.source.quantized.activation_folder import ACTIVATIONS, CACHE, ActivationFolder
from enginewright.exporters.source.quantized.quantized_folder import SETTINGS, StoredMatrix
from enginewright.exporters.source.quantized.stored_parts import ModuleParts, modules_of_codes
from enginewright.exporters.source.unused import UnusedParts
from enginewright.runtime.errors import ExportError, UnsupportedError

METHOD = "compressed-tensors"
_OFFLINE = ("weight_input", "weight_output")  # rotations that are in the stored weights
_DESCRIBES = ("quant_method", "quantization_status", "global_compression_ratio", "version")
_TAKEN = ("format", "ignore", "config_groups", "sparsity_config", "transform_config", "kv_cache_scheme")


class CompressedFolder(ActivationFolder):
    """An opened directory; `SOURCE.open` creates it."""

    def matrices(self) -> Mapping[str, StoredMatrix]:
        """Every module with a scale, or with packed codes."""
        _check_sparsity(self.settings, f"{self.path / CONFIG}: {SETTINGS}")
        _check_rotations(self.settings, f"{self.path / CONFIG}: {SETTINGS}")
        targets, found = self._targets, self._modules()
        schemes = {module: targets.find(module) for module in found}
        for module in targets.named():
            if module not in schemes and f"{module}.{WEIGHT}" in self.files.tensors:
                raise ExportError(
                    f"{targets.where}: config_groups: {module!r} is to be codes, but has numbers and no {SCALE}; the settings "
                    "belong to another checkpoint"
                )
        self._check_orders(schemes)
        return {f"{module}.{WEIGHT}": self._matrix(module, scheme) for module, scheme in schemes.items()}

    def unused(self) -> Iterator[UnusedParts]:
        """Tensors for activations and caches, and settings that the engine does not follow."""
        yield from super().unused()
        groups = [f"{SETTINGS}.config_groups.{group.name}" for group in self._targets.groups]
        activations = [
            f"{name}.{key}"
            for name, group in zip(groups, self._targets.groups, strict=True)
            for key in group.activations
        ]
        yield UnusedParts(file=CONFIG, names=tuple(activations), reason=ACTIVATIONS)
        if self.settings.get("kv_cache_scheme"):
            yield UnusedParts(file=CONFIG, names=(f"{SETTINGS}.kv_cache_scheme",), reason=CACHE)
        idle = [
            name
            for name, group in zip(groups, self._targets.groups, strict=True)
            if group.scheme is not None and group.name not in self._targets.used
        ]
        yield UnusedParts(
            file=CONFIG, names=tuple(idle), reason="no module that is stored as codes is one of its targets"
        )
        unknown = [key for key, value in self.settings.items() if key not in (*_DESCRIBES, *_TAKEN) and value]
        yield UnusedParts(
            file=CONFIG, names=tuple(f"{SETTINGS}.{key}" for key in unknown), reason="the setting is not known here"
        )

    @functools.cached_property
    def _targets(self) -> Targets:
        return read_groups(self.settings, self.path / CONFIG)

    def _modules(self) -> list[str]:
        names = [name for name in self.files.tensors if name.endswith((f".{PACKED}", f".{SCALE}"))]
        return list(dict.fromkeys([name.rpartition(".")[0] for name in names] + modules_of_codes(self)))

    def _check_orders(self, schemes: Mapping[str, Scheme]) -> None:
        """Raise ExportError where columns are reordered, but no module of a group says how.

        A module alone may lack it: compressed-tensors leaves out what was never set, and its columns are in their order.
        """
        by_scheme: dict[str, list[str]] = {}
        for module, scheme in schemes.items():
            if scheme.is_reordered:
                by_scheme.setdefault(scheme.where, []).append(module)
        for where, modules in by_scheme.items():
            if not any(f"{module}.{GROUPS}" in self.files.tensors for module in modules):
                raise ExportError(
                    f"{self.path}: tensor {f'{modules[0]}.{GROUPS}'!r} is missing, but {where} has actorder group, which "
                    "needs it; download the checkpoint again"
                )

    def _matrix(self, module: str, scheme: Scheme) -> StoredMatrix:
        parts = ModuleParts(self, module, self.code_bits.get(module, 0))
        weight = self.files.tensors.get(parts.name(WEIGHT))
        wanted = PACKED if IS_PACKED[scheme.format] else WEIGHT
        if weight is not None and weight.dtype in DTYPES:
            status = self.settings.get("quantization_status")
            raise UnsupportedError(
                f"{weight.file}: tensor {parts.name(WEIGHT)!r} got {weight.dtype}, expected codes of {scheme.format} in "
                f"{wanted!r}: with quantization_status {status!r}, numbers are stored that are to be rounded at every use; "
                "save the model compressed"
            )
        if other := next((part for part in (PACKED, WEIGHT) if part != wanted and parts.has(part)), None):
            raise ExportError(
                f"{self.path}: tensor {parts.name(other)!r} is not one of {scheme.format}, which {scheme.where} names, "
                f"expected {wanted!r}; the settings belong to another checkpoint"
            )
        return LAYOUTS[scheme.format](parts, scheme)


def _check_sparsity(settings: dict[str, Any], where: str) -> None:
    sparsity = settings.get("sparsity_config") or {}
    found = sparsity.get("format", "dense") if isinstance(sparsity, dict) else sparsity
    if found != "dense":
        raise UnsupportedError(
            f"{where}: sparsity_config: got format {found!r}, whose zeros are left out, and this is not read; expected dense; "
            "save the model without compressed zeros"
        )


def _check_rotations(settings: dict[str, Any], where: str) -> None:
    """Refuse rotations that are made at every step; those of weights are in the stored ones."""
    config = settings.get("transform_config") or {}
    groups = config.get("config_groups", {}) if isinstance(config, dict) else None
    if not isinstance(groups, dict):
        raise ExportError(f"{where}: transform_config: got {config!r}, expected config_groups; download the file again")
    for name, group in groups.items():
        for each in group.get("apply", []) if isinstance(group, dict) else [group]:
            location = each.get("location") if isinstance(each, dict) else each
            if location not in _OFFLINE:
                raise UnsupportedError(
                    f"{where}: transform_config.config_groups.{name}: got a transform at {location!r}, which is made at every "
                    f"step, expected none, or those at {' and '.join(_OFFLINE)}; save the model without it"
                )
