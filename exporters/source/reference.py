"""The reference model: the checkpoint as transformers runs it, which engines are compared with."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from enginewright.exporters.methods.depth_attention.reference import add_depth_attention
from enginewright.exporters.methods.depth_attention.rule import read_depth_attention
from enginewright.exporters.methods.registry import Applied, transform_weights
from enginewright.exporters.source.checkpoint import open_checkpoint
from enginewright.exporters.source.parameters import bind_parameters


def load_reference(model: str, applied: Sequence[Applied]) -> PreTrainedModel:
    """Return transformers' model of the checkpoint in float32, with eager attention and the weights that methods make."""
    checkpoint = open_checkpoint(model)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    reference: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        checkpoint.path, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False
    )
    if applied:
        weights = transform_weights(tuple(applied), bind_parameters(checkpoint, reference), checkpoint)
        for name, parameter in reference.named_parameters():
            parameter.data.copy_(torch.from_numpy(np.ascontiguousarray(weights[name].load())))
    depth = read_depth_attention(reference.config)
    if depth is not None:
        add_depth_attention(reference, depth)
    reference.eval()  # type: ignore[no-untyped-call]
    return reference
