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
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.tied import untie
from enginewright.exporters.weights.weight import Weight


class WeightTransform(Protocol):
    """An applied method, as far as the reference sees it: a change of the weights."""

    def transform_weights(self, weights: dict[str, Weight], checkpoint: Checkpoint) -> dict[str, Weight]:
        """Return the weights by parameter name, changed."""
        ...


def load_reference(model: str, applied: Sequence[WeightTransform]) -> PreTrainedModel:
    """Return transformers' model of the checkpoint in float32, with eager attention and the weights that methods make."""
    checkpoint = open_checkpoint(model)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    reference = _load_model(checkpoint)
    if applied or not checkpoint.format.in_transformers:
        weights = bind_parameters(checkpoint, reference)
        for method in applied:
            weights = method.transform_weights(weights, checkpoint)
        untie(reference, weights)
        for name, parameter in reference.named_parameters():
            parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(weights[name].load())))
    for feature in read_features(reference.config):
        feature.add_to_reference(reference)
    reference.eval()  # type: ignore[no-untyped-call]
    return reference


def _load_model(checkpoint: Checkpoint) -> PreTrainedModel:
    """Return the model as transformers loads it, or with random weights where transformers does not read the format."""
    settings: dict[str, Any] = {"attn_implementation": "eager", "dtype": torch.float32}
    model: PreTrainedModel
    if checkpoint.format.in_transformers:
        model = AutoModelForCausalLM.from_pretrained(checkpoint.path, trust_remote_code=False, **settings)
    else:
        model = AutoModelForCausalLM.from_config(copy.deepcopy(checkpoint.config), **settings)  # type: ignore[no-untyped-call]
    return model
