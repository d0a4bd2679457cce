"""The decoder blocks of a model without weights, and one of them at a time with its weights."""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from enginewright.exporters.methods.depth_attention.rule import read_depth_attention
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.skeleton import Skeleton, build_skeleton
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The decoder blocks of a skeleton, on the meta device, in order; `prefix` is where they are in the model."""

    skeleton: Skeleton
    prefix: str
    modules: tuple[nn.Module, ...]

    def parameter(self, block: int, name: str) -> str:
        """The model's name of what the block calls `name`."""
        return f"{self.prefix}.{block}.{name}"

    def linears(self, block: int, exclude: Sequence[str]) -> dict[str, nn.Linear]:
        """The linear layers of the block by their name in it, without those whose parameter `exclude` names."""
        return {
            name: module
            for name, module in self.modules[block].named_modules()
            if isinstance(module, nn.Linear)
            and not any(fnmatch.fnmatchcase(self.parameter(block, f"{name}.weight"), one) for one in exclude)
        }

    def load(self, block: int, weights: Mapping[str, Weight], dtype: torch.dtype, device: torch.device) -> nn.Module:
        """A copy of the block with its weights in memory."""
        loaded = copy.deepcopy(self.modules[block])
        place_tensors(loaded, f"{self.prefix}.{block}.", self.skeleton.buffers, weights, dtype, device)
        return loaded


def load_blocks(checkpoint: Checkpoint, max_context: int | None) -> Blocks:
    """The blocks of the checkpoint's model.

    Raises:
        ExportError: they cannot be found, or its config names no longest context and neither does `max_context`.
        UnsupportedError: a block reads more of the blocks before it than their output.
    """
    config = checkpoint.config
    if read_depth_attention(config) is not None:
        raise UnsupportedError(
            f"{config.model_type}: with depth attention a block reads the values of earlier ones; expected blocks that "
            "can be run one by one"
        )
    context = max_context or int(getattr(config, "max_position_embeddings", 0) or 0)
    if not context:
        raise ExportError(f"{checkpoint.path}: config.json names no longest context; set max_context")
    own = copy.deepcopy(config)
    skeleton = build_skeleton(own, attention=choose_attention(own), max_context=context)
    prefix, modules = _find(skeleton.model)
    return Blocks(skeleton=skeleton, prefix=prefix, modules=modules)


def choose_attention(config: PreTrainedConfig) -> str:
    """The fastest of transformers' attention functions that computes what the model means."""
    model: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    return "sdpa" if model._supports_sdpa else "eager"


def place_tensors(
    module: nn.Module,
    prefix: str,
    buffers: Mapping[str, torch.Tensor],
    weights: Mapping[str, Weight],
    dtype: torch.dtype,
    device: torch.device,
    *,
    recurse: bool = True,
) -> None:
    """Replace the meta tensors of `module` by their values; `prefix` goes before their names in the model's.

    recurse: those of the modules in it, too.
    """
    shared: dict[int, nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(recurse=recurse, remove_duplicate=False)):
        if id(parameter) not in shared:
            shared[id(parameter)] = nn.Parameter(
                load_weight(weights, prefix + name, dtype, device), requires_grad=False
            )
        _owner(module, name).register_parameter(name.rpartition(".")[2], shared[id(parameter)])
    for name, _ in list(module.named_buffers(recurse=recurse)):
        _owner(module, name)._buffers[name.rpartition(".")[2]] = buffers[prefix + name].to(device)


def load_weight(
    weights: Mapping[str, Weight], name: str, dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """The values of a weight."""
    if name not in weights:
        raise ExportError(f"calibration: the model has a parameter {name!r}, but there is no weight for it")
    return torch.from_numpy(np.ascontiguousarray(weights[name].load())).to(device, dtype)


def _owner(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def _find(model: PreTrainedModel) -> tuple[str, tuple[nn.Module, ...]]:
    count = model.config.num_hidden_layers
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    outer = [name for name in found if not any(name.startswith(f"{other}.") for other in found)]
    if len(outer) != 1:
        raise ExportError(
            f"{model.config.model_type}: got {len(outer)} lists of {count} modules, expected one, the decoder's blocks; "
            "this model cannot be calibrated block by block"
        )
    return outer[0], tuple(found[outer[0]])
