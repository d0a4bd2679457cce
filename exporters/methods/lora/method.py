"""LoRA: merges adapters into the weights as W + weight * scaling * B A.

Source: Hu et al., "LoRA", arXiv 2106.09685, section 4.1; rank-stabilised scaling: arXiv 2312.03732; the file format is
PEFT's (adapter_config.json, adapter_model.safetensors). Several adapters, each with its own `--apply lora:...`, are summed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from enginewright.exporters.methods.hooks import Method
from enginewright.exporters.methods.lora.merge import merge_adapter
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError


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
        UnsupportedError: the adapter is of a kind that cannot be merged.
    """
    return merge_adapter(Path(config.path).expanduser(), config.weight, weights, checkpoint)


METHOD = Method(
    name="lora",
    summary="adapters merged while the weights are written",
    paper="2106.09685",
    config=Config,
    repeatable=True,
    transform_weights=transform_weights,
)
