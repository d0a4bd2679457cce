"""Reads how a checkpoint of ModelOpt is quantised: one algorithm for all modules, or one for each, from either of two files."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginewright.exporters.source.formats.safetensors import CONFIG
from enginewright.exporters.source.formats.safetensors import recognise as has_safetensors
from enginewright.exporters.source.json_file import read_json
from enginewright.exporters.source.quantized.quantized_folder import SETTINGS, read_settings
from enginewright.runtime.errors import ExportError, UnsupportedError

FILE = "hf_quant_config.json"
METHOD = "modelopt"
MIXED = "MIXED_PRECISION"
# Algorithm -> the group size of one that names none; 0: there are no groups.
ALGORITHMS = {"W4A16_AWQ": 128, "W4A16": 0, "W8A16": 0, "FP8": 0, "NVFP4": 16, "NVFP4_AWQ": 16}
NONE = (None, "NO_QUANT")


@dataclass(frozen=True, kw_only=True)
class Algorithm:
    """The algorithm of a module; `Algorithms.find` returns it.

    name: one of ALGORITHMS.
    group_size: columns that share a scale; 0: a whole row, or the whole matrix.
    """

    name: str
    group_size: int


@dataclass(frozen=True, kw_only=True)
class Algorithms:
    """The algorithms of a checkpoint; `read_algorithms` creates it.

    where: the file and the setting, for error messages.
    common: of all modules; None: they differ, or there are no codes.
    by_module: of each module, where they differ.
    excluded: patterns of the names of modules that are numbers.
    cache: name of the cache's algorithm, and of the setting; empty without one.
    """

    where: str
    common: Algorithm | None = None
    by_module: dict[str, Algorithm] = field(default_factory=dict)
    excluded: tuple[str, ...] = ()
    cache: tuple[str, str] = ("", "")

    def find(self, module: str) -> Algorithm:
        """Return the algorithm of a module that has a scale.

        Raises:
            ExportError: it is excluded, or none is named for it.
        """
        if excluded := next((each for each in self.excluded if fnmatch.fnmatchcase(module, each)), None):
            raise ExportError(
                f"{self.where}: got {excluded!r} among the excluded modules, but {module!r} has a scale; the settings belong "
                "to another checkpoint"
            )
        found = self.by_module.get(module, self.common)
        if found is None:
            raise ExportError(
                f"{self.where}: got no algorithm for {module!r}, which has a scale; the settings belong to another checkpoint"
            )
        return found


def recognise(path: Path) -> bool:
    """Whether `path` is a directory of safetensors files that config.json, or else FILE, says ModelOpt has quantised."""
    if not has_safetensors(path):
        return False
    settings = read_settings(path)
    if settings:
        return METHOD in (settings.get("quant_method"), settings.get("quant_library"))
    return (path / FILE).is_file()


def read_algorithms(path: Path) -> Algorithms:
    """Return the algorithms of the directory `path`, of FILE if it is there, or else of config.json.

    Raises:
        ExportError, UnsupportedError: an algorithm or a setting that is not read, or the two files disagree.
    """
    inline = read_settings(path)
    if not (path / FILE).is_file():
        return _read(inline, f"{path / CONFIG}: {SETTINGS}", inline.get("ignore"), "kv_cache_scheme")
    settings = read_json(path / FILE).get("quantization")
    where = f"{path / FILE}: quantization"
    if not isinstance(settings, dict):
        raise ExportError(f"{where}: got {settings!r}, expected settings; download the file again")
    own, other = settings.get("quant_algo"), inline.get("quant_algo")
    if other is not None and other != own:
        raise ExportError(
            f"{where}: quant_algo: got {own!r}, but {CONFIG} has {other!r}; one of the files belongs to another checkpoint"
        )
    return _read(settings, where, settings.get("exclude_modules"), "kv_cache_quant_algo")


def _read(settings: dict[str, Any], where: str, excluded: Any, cache_key: str) -> Algorithms:
    excluded = excluded or []
    if not isinstance(excluded, list) or not all(isinstance(each, str) for each in excluded):
        raise ExportError(
            f"{where}: got excluded modules {excluded!r}, expected a list of names; download the file again"
        )
    cache = settings.get(cache_key)
    found: dict[str, Any] = {"where": where, "excluded": tuple(excluded), "cache": (str(cache or ""), cache_key)}
    name = settings.get("quant_algo")
    if name in NONE:
        return Algorithms(**found)
    if name != MIXED:
        return Algorithms(**found, common=_read_one(settings, where))
    layers = settings.get("quantized_layers")
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise UnsupportedError(
            f"{where}: quantized_layers: got {layers!r} with {MIXED}, expected the algorithm of each module; export the model "
            f"with {FILE}"
        )
    by_module = {module: _read_one(layer, f"{where}.quantized_layers.{module}") for module, layer in layers.items()}
    return Algorithms(**found, by_module=by_module)


def _read_one(settings: dict[str, Any], where: str) -> Algorithm:
    name = settings.get("quant_algo")
    if not isinstance(name, str) or name not in ALGORITHMS:
        raise UnsupportedError(
            f"{where}: quant_algo: got {name!r}, expected one of {', '.join(ALGORITHMS)}, {MIXED}; export the model with one of "
            "these, or pass the unquantised checkpoint"
        )
    if settings.get("has_zero_point"):
        raise UnsupportedError(
            f"{where}: has_zero_point: got {settings['has_zero_point']!r}, expected false; export the model without zero points"
        )
    usual = ALGORITHMS[name]
    size = (settings.get("group_size") or usual) if usual else 0
    if not isinstance(size, int) or isinstance(size, bool) or size < 0 or (name.startswith("NVFP4") and size != usual):
        raise ExportError(
            f"{where}: group_size: got {size!r} with {name}, expected {usual if name.startswith('NVFP4') else 'a positive number'}"
            "; correct the settings"
        )
    return Algorithm(name=name, group_size=size)
