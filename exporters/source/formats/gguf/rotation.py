"""The rotation of queries and keys: transformers' rope_parameters from GGUF's rope.* keys and tensors of factors."""

from __future__ import annotations

import math
from typing import Any

from transformers import PreTrainedConfig

from enginewright.exporters.source.formats.gguf.header import Header
from enginewright.exporters.source.formats.gguf.tensor_types import decode
from enginewright.exporters.source.formats.gguf.tensors import read_bytes
from enginewright.runtime.errors import UnsupportedError

FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_KEYS = (
    "freq_base",
    "freq_base_swa",
    "dimension_count",
    "scaling.type",
    "scaling.factor",
    "scaling.attn_factor",
    "scaling.yarn_attn_factor",
    "scaling.original_context_length",
    "scaling.yarn_beta_fast",
    "scaling.yarn_beta_slow",
    "scaling.finetuned",
    "scale_linear",
)
_WINDOWED = "sliding_attention"


def read_rotation(header: Header, architecture: str, config: PreTrainedConfig) -> tuple[dict[str, Any], set[str]]:
    """Return rope_parameters, and the keys and tensors that they are made of; nothing for a family without a rotation.

    Factors of frequencies (rope_freqs, as of Llama 3.1) become the kind "longrope", which divides each frequency by one.

    Raises:
        UnsupportedError: a kind of scaling that is not known.
    """
    default: dict[str, Any] = dict(getattr(config, "rope_parameters", None) or {})
    if not default:
        return {}, set()
    keys = _RotationKeys(header, architecture)
    used = {f"{architecture}.rope.{key}" for key in _KEYS if keys.get(key) is not None}
    used |= header.tensors.keys() & {FACTORS, LONG, SHORT}
    scaling = _scaling(keys, config)
    if not all(isinstance(each, dict) for each in default.values()):
        return _one(default, keys, "freq_base", config) | scaling, used
    layers = {kind: dict(each) for kind, each in default.items()}
    for kind, each in layers.items():  # a window's layers are never scaled
        layers[kind] = each | (
            _theta(keys, "freq_base_swa") if kind == _WINDOWED else _theta(keys, "freq_base") | scaling
        )
    return layers, used


class _RotationKeys:
    """The rope.* keys of a file's architecture; `read_rotation` creates it."""

    def __init__(self, header: Header, architecture: str) -> None:
        self.header, self._prefix = header, f"{architecture}.rope."

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        return self.header.get(self._prefix + key, default)


def _theta(keys: _RotationKeys, key: str) -> dict[str, Any]:
    base = keys.get(key)
    return {} if base is None else {"rope_theta": base}


def _one(default: dict[str, Any], keys: _RotationKeys, base: str, config: PreTrainedConfig) -> dict[str, Any]:
    """The parameters of a family that rotates in one way in all layers."""
    made = default | _theta(keys, base)
    dimensions = keys.get("dimension_count")
    if "partial_rotary_factor" in default and dimensions is not None:
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        made["partial_rotary_factor"] = dimensions / head
    return made


def _scaling(keys: _RotationKeys, config: PreTrainedConfig) -> dict[str, Any]:
    """The parameters that scale the rotation; empty for none."""
    header = keys.header
    factor = keys.get("scaling.factor", keys.get("scale_linear", 1.0)) or 1.0
    kind = keys.get("scaling.type", "linear")
    original = keys.get("scaling.original_context_length", config.max_position_embeddings)
    strength = keys.get("scaling.attn_factor", keys.get("scaling.yarn_attn_factor", 1.0))
    if LONG in header.tensors or SHORT in header.tensors:
        long, short = (_factors(header, name) for name in (LONG, SHORT))
        return _by_factors(long, short, original, strength)
    if FACTORS in header.tensors:
        if kind != "none" and factor != 1.0:
            raise UnsupportedError(f"{header.file}: got {FACTORS} and {kind} scaling by {factor}, expected one of them")
        factors = _factors(header, FACTORS)
        return _by_factors(factors, factors, config.max_position_embeddings, strength)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return {}
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn":
        return _yarn(keys, factor, original, strength)
    raise UnsupportedError(f"{header.file}: got rotations scaled by {kind!r}, expected none, linear, yarn or longrope")


def _yarn(keys: _RotationKeys, factor: float, original: int, strength: float) -> dict[str, Any]:
    made = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    made |= {
        name: value for name in ("beta_fast", "beta_slow") if (value := keys.get(f"scaling.yarn_{name}")) is not None
    }
    if strength != 1.0:
        made["attention_factor"] = strength * (0.1 * math.log(factor) + 1)  # llama.cpp multiplies its own by it
    return made


def _by_factors(long: list[float], short: list[float], original: int, strength: float) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "long_factor": long,
        "short_factor": short,
        "original_max_position_embeddings": original,
        "attention_factor": strength,
    }


def _factors(header: Header, name: str) -> list[float]:
    if name not in header.tensors:
        raise UnsupportedError(f"{header.file}: got no {name}, expected both {LONG} and {SHORT}")
    tensor = header.tensors[name]
    factors: list[float] = decode(read_bytes(tensor, tensor.begin, tensor.size), tensor.kind, tensor.shape).tolist()
    return factors
