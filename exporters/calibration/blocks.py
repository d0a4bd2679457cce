"""The decoder blocks of a model without weights; one block at a time is loaded with its weights."""

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

from enginewright.exporters.features.registry import read_features
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.skeleton import Skeleton, load_skeleton
from enginewright.exporters.weights.weight import Weight
from enginewright.runtime.errors import ExportError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The decoder blocks of a model; `load_blocks` creates it.

    skeleton: the model without weights.
    prefix: the name of the list of blocks in the model.
    modules: the blocks on the meta device, in order.
    """

    skeleton: Skeleton
    prefix: str
    modules: tuple[nn.Module, ...]

    def parameter(self, block: int, name: str) -> str:
        """The name in the model of the parameter that the block calls `name`."""
        return f"{self.prefix}.{block}.{name}"

    def linears(self, block: int, exclude: Sequence[str]) -> dict[str, nn.Linear]:
        """The linear layers of the block by their names in it, except those whose parameter matches a pattern in `exclude`."""
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


def load_blocks(checkpoint: Checkpoint, max_context: int | None, *, attention: str | None = None) -> Blocks:
    """Return the blocks of the checkpoint's model.

    attention: name of a registered attention function; None: transformers' fastest.

    Raises:
        ExportError: the blocks cannot be found, or neither the config nor `max_context` gives a longest context.
        UnsupportedError: a block reads more from the blocks before it than their output.
    """
    config = checkpoint.config
    for feature in read_features(config):
        if reason := feature.whole_model_reason():
            raise UnsupportedError(f"{config.model_type}: {reason}; expected blocks that can be run one by one")
    context = max_context or checkpoint.default_context
    if not context:
        raise ExportError(f"{checkpoint.path}: config.json names no longest context; set max_context")
    skeleton = load_skeleton(checkpoint, attention=attention or choose_attention(config), max_context=context)
    prefix, modules = _find_blocks(skeleton.model)
    return Blocks(skeleton=skeleton, prefix=prefix, modules=modules)


def choose_attention(config: PreTrainedConfig) -> str:
    """The name of the fastest of transformers' attention functions that the model supports."""
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
    """Replace the meta tensors of `module` by their values.

    prefix: what stands before the tensors' names in the model.
    recurse: whether the tensors of the modules in it are replaced, too.
    """
    shared: dict[tuple[int, int], nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(recurse=recurse, remove_duplicate=False)):
        key = id(parameter), id(weights.get(prefix + name))  # a method may have parted tied parameters
        if key not in shared:
            shared[key] = nn.Parameter(load_weight(weights, prefix + name, dtype, device), requires_grad=False)
        _owner_of(module, name).register_parameter(name.rpartition(".")[2], shared[key])
    for name, _ in list(module.named_buffers(recurse=recurse)):
        _owner_of(module, name)._buffers[name.rpartition(".")[2]] = buffers[prefix + name].to(device)


def load_weight(
    weights: Mapping[str, Weight], name: str, dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """The values of a weight, in `dtype` and on `device`."""
    if name not in weights:
        raise ExportError(f"calibration: the model has a parameter {name!r}, but there is no weight for it")
    return torch.from_numpy(np.ascontiguousarray(weights[name].load())).to(device, dtype)


def _owner_of(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def _find_blocks(model: PreTrainedModel) -> tuple[str, tuple[nn.Module, ...]]:
    """The name and the modules of the one outermost list that has as many modules as the config has layers."""
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
