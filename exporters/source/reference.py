"""The reference model: the checkpoint as transformers runs it, which engines are compared with."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from enginewright.exporters.features.registry import read_features
from enginewright.exporters.source.buffers import bind_buffers
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.rope_scaling import fix_rotary
from enginewright.exporters.source.tied import untie
from enginewright.exporters.weights.weight import Weight


class WeightTransform(Protocol):
    """An applied method, as far as the reference sees it: a change of the weights."""

    def transform_weights(self, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
        """Return the weights by parameter name, changed."""
        ...


def load_reference(
    model: str | Checkpoint, applied: Sequence[WeightTransform], *, max_context: int | None = None
) -> PreTrainedModel:
    """Return transformers' model of the checkpoint in float32, with eager attention and the weights that methods make.

    model: a checkpoint, or what `open_checkpoint` takes.
    max_context: of the engine that it is compared with, whose rotary frequencies the model then has for texts of every
        length; None: frequencies follow the length as in transformers.
    """
    checkpoint = open_checkpoint(model) if isinstance(model, str) else model
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    reference, is_filled = _load_model(checkpoint)
    if applied or not is_filled:
        weights = bind_parameters(checkpoint, reference)
        for method in applied:
            weights = method.transform_weights(weights, checkpoint)
        untie(reference, weights)
        for name, parameter in reference.named_parameters():
            parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(weights[name].load())))
    if not is_filled:
        for name, values in bind_buffers(checkpoint, reference).items():
            reference.get_buffer(name).copy_(values)
    if max_context is not None:
        fix_rotary(reference, max_context)
    for feature in read_features(reference.config):
        feature.add_to_reference(reference)
    reference.eval()  # type: ignore[no-untyped-call]
    return reference


def _load_model(checkpoint: Checkpoint) -> tuple[PreTrainedModel, bool]:
    """Return the model, and whether transformers has filled it; else its weights are random.

    transformers fills it if it knows the format and the model is no part of another one, and if the files are to its liking:
    it wants all that an index lists, and an index with metadata.
    """
    settings: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    if checkpoint.format.in_transformers and not checkpoint.is_text_part and not checkpoint.missing:
        try:
            return AutoModelForCausalLM.from_pretrained(checkpoint.path, trust_remote_code=False, **settings), True
        except (KeyError, OSError, ValueError):
            pass  # what is wrong with the checkpoint itself was refused when it was opened
    model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(checkpoint.config), **settings)  # type: ignore[no-untyped-call]
    return model, False
