"""Reads the persistent buffers of a model from the tensors of a checkpoint.

Persistent buffers are tensors that training sets without a gradient, such as a router's correction of its scores. A
checkpoint holds them next to the parameters. Buffers that it does not hold are what the model's constructor makes them.
"""

from __future__ import annotations

import torch
from transformers import PreTrainedModel

from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.tensor_matching import check_shape, match_tensors, persistent_buffers


def bind_buffers(checkpoint: Checkpoint, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the values of every persistent buffer of `model`, in the buffer's own type and in memory.

    They are small. No method changes them: they are not weights.

    Raises:
        ExportError: a buffer has no tensor, or one of another shape or a type that cannot be read, in the checkpoint.
    """
    buffers = persistent_buffers(model)
    values: dict[str, torch.Tensor] = {}
    if not buffers:
        return values
    matching = match_tensors(checkpoint, model)
    for target, group in matching.groups.items():
        if target not in buffers or not group.whole:
            continue
        for name, shape in group.shapes(checkpoint, model, target).items():
            check_shape(checkpoint, f"buffer {name!r}", shape, buffers[name])
        made = group.make(model, target, checkpoint.read_exact)
        values.update({name: tensor.to(buffers[name].dtype) for name, tensor in made.items()})
    for name in buffers:
        if name not in values:
            raise matching.lack(checkpoint, name, "buffer")
    return values
