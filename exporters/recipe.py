"""Recipes: the methods, the weight precision and the limits of an export, from the command line, a YAML file or Python."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from enginewright.exporters.config_text import split_spec
from enginewright.exporters.methods.registry import Applied, apply_method, check_together
from enginewright.exporters.passes.narrow_activations import DTYPES
from enginewright.exporters.weights.registry import DEFAULT, FORMS, Storage, choose_storage
from enginewright.runtime.artifact.files.bounded_file import read_bounded
from enginewright.runtime.artifact.value_ranges import MOST_BATCH, MOST_CONTEXT
from enginewright.runtime.errors import ExportError

PLUGINS = ("all", "none")
_MOST = 1 << 16  # bytes of a recipe: YAML is read slowly


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides what an export writes; the command `build` or the caller of `build` creates it.

    apply: methods with their configs, in order.
    weights: how weights are stored.
    dtype: the type that the graph computes in, and of weights that are not quantised: float32, or float16 or bfloat16 for
        devices.
    plugins: all, or none for a graph of standard ops.
    kv_bits: width of a cached element, 16 or 32. None: 16; with plugins none the width of dtype.
    max_batch: rows in one step.
    max_context: tokens of one request; None: the longest that the model was made for.

    Raises:
        ExportError: a value that is not known or out of range, or values that do not go together.
    """

    apply: tuple[Applied, ...] = ()
    weights: Storage = dataclasses.field(default_factory=choose_storage)
    dtype: str = "float32"
    plugins: str = "all"
    kv_bits: int | None = None
    max_batch: int = 32
    max_context: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ExportError(f"dtype: got {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.plugins not in PLUGINS:
            raise ExportError(f"plugins: got {self.plugins!r}, expected {' or '.join(PLUGINS)}")
        if self.dtype != "float32" and self.kv_bits not in (None, 16):
            raise ExportError(f"kv_bits: got {self.kv_bits}, expected 16 with dtype {self.dtype}")
        if self.kv_bits not in (None, 16, 32):
            raise ExportError(f"kv_bits: got {self.kv_bits}, expected 16 or 32")
        if self.plugins == "none" and self.kv_bits not in (None, self.cache_bits):
            raise ExportError(
                f"kv_bits: got {self.kv_bits}, expected {self.cache_bits}: with plugins none the cache has the graph's own "
                f"type, {self.dtype}"
            )
        if not 1 <= self.max_batch <= MOST_BATCH:
            raise ExportError(f"max_batch: got {self.max_batch}, expected 1 to {MOST_BATCH}")
        if self.max_context is not None and not 1 <= self.max_context <= MOST_CONTEXT:
            raise ExportError(f"max_context: got {self.max_context}, expected 1 to {MOST_CONTEXT}")
        check_together(self.apply)

    @property
    def for_cpu(self) -> bool:
        """Whether graphs are for ONNX Runtime's kernels for CPUs, which compute in float32, and have our ops."""
        return self.dtype == "float32" and self.plugins == "all"

    @property
    def cache_bits(self) -> int:
        """Width of a cached element."""
        if self.plugins == "none":
            return 32 if self.dtype == "float32" else 16
        return self.kv_bits or 16


def parse_method(spec: str | dict[str, Any]) -> Applied:
    """Read a method from `lora:path=DIR,weight=0.5`, or from a mapping {lora: {path: DIR, weight: 0.5}}."""
    if isinstance(spec, str):
        name, options = split_spec(spec)
        return apply_method(name, options)
    if not isinstance(spec, dict) or len(spec) != 1:
        raise ExportError(f"apply: got {spec!r}, expected NAME:key=value,... or one mapping NAME: {{key: value}}")
    ((name, mapping),) = spec.items()
    if mapping is not None and not isinstance(mapping, dict):
        raise ExportError(f"apply: {name}: got {mapping!r}, expected a mapping of keys to values")
    return apply_method(name, mapping or {})


def parse_weights(spec: str | dict[str, Any]) -> Storage:
    """Read a stored form from `int4:block_size=32,lm_head=false`, or from a mapping with the key `kind`."""
    if isinstance(spec, dict):
        kind = spec.get("kind", DEFAULT)
        if not isinstance(kind, str):
            raise ExportError(f"weights: kind: got {kind!r}, expected one of {', '.join(FORMS.names())}")
        return choose_storage(kind, {key: value for key, value in spec.items() if key != "kind"})
    if not isinstance(spec, str):
        raise ExportError(f"weights: got {spec!r}, expected KIND:key=value,... or a mapping")
    kind, options = split_spec(spec)
    if "kind" in options:
        raise ExportError(f"{spec!r}: key 'kind' stands twice")
    return choose_storage(kind, options)


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the fields of Recipe that the YAML file at `path` sets.

    Raises:
        ExportError: the file is missing, is not YAML, or has a key or a value that Recipe does not take.
    """
    import yaml

    try:
        content = read_bounded(path, _MOST, ExportError, "pass a YAML file")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(content)):  # nested ones grow without bound
            raise ExportError(f"{path}: got an alias (*name), expected none; write its value out")
        raw = yaml.safe_load(content)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: also a number or a date that is none
        raise ExportError(f"{path}: not valid YAML ({e})") from e
    known = [field.name for field in dataclasses.fields(Recipe)]
    if not isinstance(raw, dict):
        raise ExportError(f"{path}: got {type(raw).__name__}, expected a mapping with {', '.join(known)}")
    if unknown := [key for key in raw if key not in known]:
        raise ExportError(f"{path}: unknown key {unknown[0]!r}; known: {', '.join(known)}")
    fields = dict(raw)
    if "weights" in raw:
        fields["weights"] = parse_weights(raw["weights"])
    if "apply" in raw:
        fields["apply"] = tuple(parse_method(entry) for entry in _methods(raw["apply"], path))
    for name in ("kv_bits", "max_batch", "max_context"):
        if name in fields and not _is_whole(fields[name], optional=name != "max_batch"):
            raise ExportError(f"{path}: {name}: got {fields[name]!r}, expected a whole number")
    return fields


def _methods(raw: Any, path: Path) -> list[Any]:
    if raw is None or isinstance(raw, list):
        return raw or []
    raise ExportError(f"{path}: apply: got {raw!r}, expected a list of methods")


def _is_whole(value: Any, *, optional: bool) -> bool:
    return type(value) is int or (optional and value is None)
