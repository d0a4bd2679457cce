"""Writes an adapter in PEFT's format, which `--apply lora` and other tools for LoRA read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save

from enginewright.exporters.calibration.atomic_files import replace_file
from enginewright.exporters.methods.lora.adapter_file import PREFIX, WEIGHTS
from enginewright.runtime.artifact.adapters.settings import CONFIG


def write_adapter(
    root: Path,
    factors: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
    *,
    base: str,
    alpha: float | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write an adapter to the directory `root`; each file appears whole or not at all.

    factors: B [o, r] and A [r, n] by the layer's name in the model; r is the same in all of them.
    base: the name of the model, which the adapter is for.
    alpha: the weights gain alpha / r * B A; None: r, so that they gain B A.
    dtype: of the tensors in the file.
    """
    ranks = {a.shape[0] for _, a in factors.values()} | {b.shape[1] for b, _ in factors.values()}
    if len(ranks) != 1:
        raise ValueError(f"got factors of the ranks {sorted(ranks)}, expected one rank")
    rank = ranks.pop()
    settings = {
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": rank if alpha is None else alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted(factors),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    tensors = {}
    for module, (b, a) in factors.items():
        tensors[f"{PREFIX}{module}.lora_A.weight"] = a.to(dtype).contiguous()
        tensors[f"{PREFIX}{module}.lora_B.weight"] = b.to(dtype).contiguous()
    root.mkdir(parents=True, exist_ok=True)
    replace_file(root / WEIGHTS, save(tensors, {"format": "pt"}))
    replace_file(root / CONFIG, f"{json.dumps(settings, indent=2)}\n".encode())
