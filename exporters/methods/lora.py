"""LoRA: merges adapters into the weights as W + weight * scaling * B A.

Source: Hu et al., "LoRA", arXiv 2106.09685, section 4.1; rank-stabilised scaling: arXiv 2312.03732; the file format is
PEFT's (adapter_config.json, adapter_model.safetensors). Several adapters, each with its own `--apply lora:...`, are summed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.json_file import read_json
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError, UnsupportedError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"^base_model\.model\.(?P<module>.+)\.lora_(?P<side>A|B)(?:\.default)?\.weight$")
CHANGES_RESULT = {  # key -> the value with which the result is W + scaling * B A; null means the same
    "use_dora": False,
    "use_qalora": False,
    "use_bdlora": None,
    "kasa_config": None,
    "lora_bias": False,
    "bias": "none",
    "fan_in_fan_out": False,
    "layer_replication": None,
    "alora_invocation_tokens": None,
}
CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")  # initialisations that first subtract B A from W


@dataclass(frozen=True, kw_only=True)
class Config:
    """The adapter to merge, and its weight; `parse_method` creates it.

    path: the adapter's directory.
    weight: the factor on what the adapter adds; 1 is the adapter as trained.
    """

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise ExportError(f"lora: got weight={self.weight}, expected a finite number")


def transform_weights(config: Config, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
    """Return `weights` with the adapter at `config.path` merged; each product is computed when its weight is written.

    Raises:
        ExportError: a file is missing or broken, or the adapter does not fit the model.
        UnsupportedError: the adapter is of a kind that is more than B A, or changes a tied weight.
    """
    root = Path(config.path).expanduser()
    settings = _read_settings(root)
    pairs = _read_pairs(root / WEIGHTS)
    merged = dict(weights)
    for module, (a, b) in pairs.items():
        name = f"{module}.weight"
        if name not in weights:
            raise ExportError(f"{root}: adapts {module!r}, which the model does not have; it is for another model")
        base = weights[name]
        if base.quantized is not None:
            raise ExportError(
                f"{root}: adapts {module!r}, which is quantised by then; apply lora before what quantises"
            )
        if tied := [other for other, weight in weights.items() if weight is base and other != name]:
            raise UnsupportedError(
                f"{root}: adapts {module!r}, whose weight is tied to {tied[0]!r}: merging would change both, and the "
                "adapter was trained to change one; untie them in the checkpoint first"
            )
        if not _fits(a, b, base.shape):
            raise ExportError(
                f"{root}: {module!r} got A {list(a.shape)} and B {list(b.shape)}, expected a product of "
                f"{list(base.shape)}; the adapter is for another model"
            )
        factor = config.weight * _scaling(settings, module, a.shape[0])
        merged[name] = base.derive(base.shape, lambda w, a=a, b=b, f=factor: w + f * (b @ a))  # type: ignore[misc]
    return merged


def _fits(a: np.ndarray, b: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether B A has `shape`, with a rank of at least 1."""
    return a.ndim == b.ndim == 2 and shape == (b.shape[0], a.shape[1]) and a.shape[0] == b.shape[1] > 0


def _read_settings(root: Path) -> dict[str, Any]:
    settings = read_json(root / CONFIG)
    if settings.get("peft_type") != "LORA":
        raise UnsupportedError(f"{root / CONFIG}: got peft_type {settings.get('peft_type')!r}, expected 'LORA'")
    for key, neutral in CHANGES_RESULT.items():
        if settings.get(key) not in (neutral, None):
            raise UnsupportedError(f"{root / CONFIG}: {key}={settings[key]!r} cannot be merged; expected {neutral!r}")
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise UnsupportedError(
            f"{root / CONFIG}: init_lora_weights={start!r} changes the base weights as well; convert the adapter to plain "
            "LoRA (PEFT's path_initial_model_for_weight_conversion) first"
        )
    if settings.get("modules_to_save") or settings.get("target_parameters"):
        raise UnsupportedError(f"{root / CONFIG}: whole modules or single parameters in an adapter cannot be merged")
    return settings


def _scaling(settings: dict[str, Any], module: str, rank: int) -> float:
    """Return alpha / r, or alpha / sqrt(r) with rslora; a pattern may set alpha for some modules."""
    patterns = settings.get("alpha_pattern") or {}
    default = settings.get("lora_alpha", 8)  # PEFT's own default
    alpha = next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _read_pairs(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {module name: (A [r, in], B [out, r])}, float32."""
    if not path.is_file():
        pickled = path.with_suffix(".bin").is_file()
        hint = f"; {path.stem}.bin is a pickle, which can run code when read: save the adapter anew" if pickled else ""
        raise ExportError(f"{path}: not found; expected a PEFT adapter saved as safetensors{hint}")
    sides: dict[str, dict[str, np.ndarray]] = {}
    try:
        with safe_open(path, framework="pt") as f:
            for key in f.keys():  # noqa: SIM118 (no mapping)
                match = KEY.match(key)
                if match is None:
                    raise UnsupportedError(f"{path}: tensor {key!r} is no lora_A or lora_B of a linear layer")
                tensor = f.get_tensor(key).float().numpy().copy()
                if not np.isfinite(tensor).all():
                    raise ExportError(f"{path}: tensor {key!r} holds NaN or infinity")
                sides.setdefault(match["module"], {})[match["side"]] = tensor
    except SafetensorError as e:
        raise ExportError(f"{path}: not a whole safetensors file ({e})") from e
    if not sides:
        raise ExportError(f"{path}: holds no adapter; expected lora_A and lora_B of at least one module")
    for module, found in sides.items():
        if len(found) != 2:
            raise ExportError(f"{path}: {module!r} has lora_{next(iter(found))} alone, expected lora_A and lora_B")
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


METHOD = Method(
    name="lora",
    summary="adapters merged while the weights are written",
    paper="2106.09685",
    config=Config,
    repeatable=True,
    transform_weights=transform_weights,
)
