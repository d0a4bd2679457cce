"""LoRA adapters for tests: written as PEFT writes them, or by PEFT itself, which also says what merging them gives."""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.support.exporters.families import FAMILIES, SIZES, make_model

MORE_FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # Conv1D, which stores weights as [in, out]
    "qwen3_moe": {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2},  # three tensors an expert
}


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


def make_base_model(family: str) -> PreTrainedModel:
    """A random model of one of the tests' families, or of `MORE_FAMILIES`."""
    if family in FAMILIES:
        return make_model(family)
    sizes = {key: SIZES[key] for key in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
    config = AutoConfig.for_model(family, **{**(sizes if family == "gpt2" else SIZES), **MORE_FAMILIES[family]})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model.eval()


def train_with_peft(model: PreTrainedModel, root: Path, seed: int = 0, **settings: Any) -> Path:
    """Let PEFT put a new adapter on the model, give all that it would train other values, and save it under `root`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, **settings}))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for _, parameter in adapted.named_parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=generator) * 0.1
        adapted.save_pretrained(root)
    return root


def load_with_peft(model: PreTrainedModel, root: Path) -> PeftModel:
    """The model with the adapter, as PEFT loads it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PeftModel.from_pretrained(model, root).eval()


def merge_with_peft(model: PreTrainedModel, root: Path) -> PreTrainedModel:
    """The model with the adapter merged by PEFT."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged: PreTrainedModel = load_with_peft(model, root).merge_and_unload()  # type: ignore[operator]
    return merged
