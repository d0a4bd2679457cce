"""Writes a random checkpoint of gpt-oss as it is published, and its twin with the numbers that transformers makes of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tests.support.exporters.families import save_checkpoint

EXPERTS = "model.layers.0.mlp.experts.gate_up_proj"
SETTINGS = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"],
}


def write_mxfp4(root: Path) -> tuple[Path, Path]:
    """Return the directories: experts in blocks of 32 and everything else in bfloat16; and the same numbers in float32."""
    save_checkpoint("gpt_oss", root / "packed")
    shutil.copytree(root / "packed", root / "twin")
    random = torch.Generator().manual_seed(0)
    stored, plain = {}, {}
    for name, tensor in load_file(root / "packed/model.safetensors").items():
        if tensor.ndim < 3:
            stored[name] = tensor.bfloat16()
            plain[name] = stored[name].float()
            continue
        experts, k, n = tensor.shape
        blocks = torch.randint(0, 256, (experts, n, k // 32, 16), generator=random, dtype=torch.uint8)
        scales = torch.randint(117, 123, (experts, n, k // 32), generator=random, dtype=torch.uint8)
        stored.update({f"{name}_blocks": blocks, f"{name}_scales": scales})
        plain[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).contiguous()
    save_file(stored, root / "packed/model.safetensors", {"format": "pt"})
    save_file(plain, root / "twin/model.safetensors", {"format": "pt"})
    config = json.loads((root / "packed/config.json").read_text())
    (root / "packed/config.json").write_text(json.dumps({**config, "quantization_config": SETTINGS}))
    return root / "packed", root / "twin"
