"""Random checkpoints that look trained: norms that are not one, biases and buffers that are not zero, logits of several units."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel


def make_model(config: PreTrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """Return a float32 model of `config` whose every stored tensor differs from what its constructor makes."""
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    look_trained(model)
    return model


def look_trained(model: PreTrainedModel) -> None:
    """Give every stored tensor of `model` other values than its constructor makes, and put it into evaluation mode."""
    with torch.no_grad():
        for parameter in model.parameters():
            _train(parameter)
        _scale_scores(model)
        buffers = dict(model.named_buffers())
        for name in set(model.state_dict()) & set(buffers):
            if buffers[name].is_floating_point():
                buffers[name].add_(torch.randn_like(buffers[name]), alpha=0.1)
    model.eval()  # type: ignore[no-untyped-call]


def _scale_scores(model: PreTrainedModel) -> None:
    """Let the norms of queries scale scores where attention itself does not; trained ones do, or a softmax sees one token."""
    for module in model.modules():
        norm = getattr(getattr(module, "q_norm", None), "weight", None)
        if norm is not None and getattr(module, "scaling", None) == 1.0:
            norm.mul_(norm.shape[-1] ** -0.5)


def _train(parameter: torch.nn.Parameter) -> None:
    """Spread matrices so that states keep their size, and move vectors away from zero and one."""
    if parameter.ndim < 2:
        parameter.add_(torch.randn_like(parameter), alpha=0.2)
    else:
        parameter.normal_(std=0.7 / math.sqrt(parameter.shape[-1]))


def save_checkpoint(config: PreTrainedConfig, path: Path) -> None:
    """Write the checkpoint of `make_model(config)` into the directory `path`."""
    make_model(config).save_pretrained(path)
