"""LoRA adapters for tests, written as PEFT writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel


@dataclass
class Adapter:
    """A LoRA adapter: pairs[module] = A [r, in], B [out, r], and the keys of adapter_config.json that differ from the defaults."""

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]
    settings: dict[str, Any] = field(default_factory=dict)

    def save(self, root: Path) -> Path:
        """Write it as PEFT does."""
        root.mkdir(parents=True)
        defaults = {
            "peft_type": "LORA",
            "r": 4,
            "lora_alpha": 8,
            "bias": "none",
            "use_dora": False,
            "use_rslora": False,
        }
        (root / "adapter_config.json").write_text(json.dumps({**defaults, **self.settings}))
        tensors = {}
        for module, (a, b) in self.pairs.items():
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b
        save_file(tensors, root / "adapter_model.safetensors", {"format": "pt"})
        return root


def random_adapter(
    model: PreTrainedModel, modules: set[str], ranks: dict[str, int] | None = None, **settings: Any
) -> Adapter:
    """An adapter of rank 4, or `ranks` by the module's last name, that changes answers visibly."""
    generator = torch.Generator().manual_seed(len(modules))
    pairs = {}
    for name in sorted(modules):
        out, into = model.get_submodule(name).weight.shape
        rank = (ranks or {}).get(name.rpartition(".")[2], 4)
        a, b = (torch.randn(shape, generator=generator) * 0.1 for shape in ((rank, into), (out, rank)))
        pairs[name] = a, b
    return Adapter(pairs, settings)
