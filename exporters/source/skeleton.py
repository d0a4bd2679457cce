"""Models without weights: parameters on the meta device, with the real values of the buffers kept apart.

`torch.device("meta")` alone would lose the buffers that no checkpoint holds (rotary frequencies, embedding scales).
Here only `torch.empty`, which makes weights, goes to the meta device; everything that is computed stays real.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from enginewright.exporters.source.bounds.bounded_building import BoundedBuilding, BuildingRoom, room_for
from enginewright.exporters.source.buffers import bind_buffers
from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.rope_scaling import fix_rotary
from enginewright.exporters.source.supported_models import MODEL_ERRORS
from enginewright.exporters.source.tensor_matching import persistent_buffers
from enginewright.runtime.errors import ExportError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model without weights; `load_skeleton` creates that of a checkpoint, `build_skeleton` that of a config.

    model: the model, with all its tensors on the meta device.
    buffers: the values of its buffers, by name.
    """

    model: PreTrainedModel
    buffers: dict[str, torch.Tensor]


def load_skeleton(checkpoint: Checkpoint, *, attention: str, max_context: int) -> Skeleton:
    """Return the model of `checkpoint` without weights, and the values of its buffers, those of the checkpoint included.

    attention, max_context: as of `build_skeleton`. The checkpoint's config stays as it is.

    Raises:
        ExportError, UnsupportedError: as `build_skeleton`, or the checkpoint lacks a buffer.
    """
    config, room = copy.deepcopy(checkpoint.config), room_for([each.size for each in checkpoint.tensors.values()])
    skeleton = build_skeleton(config, attention=attention, max_context=max_context, room=room)
    stored = bind_buffers(checkpoint, skeleton.model)
    return dataclasses.replace(skeleton, buffers={**skeleton.buffers, **stored})


def build_skeleton(
    config: PreTrainedConfig, *, attention: str, max_context: int, room: BuildingRoom | None = None
) -> Skeleton:
    """Build the model that `config` describes, float32, without weights. Its buffers are as the constructor makes them.

    attention: name of a registered attention function.
    max_context: fixes rotary embeddings whose frequencies depend on the length seen so far. One engine uses one set of
        frequencies, so that cached keys and new queries agree.
    room: what may be made; None: where it is not known what is stored.

    Raises:
        ExportError: transformers cannot make a model from the config, or one that is too large or without rotary frequencies.
        UnsupportedError: the value of a buffer depends on weights, and no checkpoint holds it.
    """
    config._attn_implementation = attention
    try:
        with BoundedBuilding(room):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    except MODEL_ERRORS as e:
        raise ExportError(f"config.json: transformers cannot make a {config.model_type} model of it ({e})") from e
    model.eval()  # type: ignore[no-untyped-call]
    fix_rotary(model, max_context)
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers(remove_duplicate=False)}
    stored = persistent_buffers(model)
    _check_frequencies(config, buffers)
    if missing := [name for name, buffer in buffers.items() if buffer.is_meta and name not in stored]:
        raise UnsupportedError(f"{config.model_type}: the value of buffer {missing[0]!r} is not known without weights")
    torch.nn.Module.to(model, "meta")
    model.tie_weights()  # moving has parted the tied parameters that were not on the meta device yet, such as biases
    return Skeleton(model=model, buffers=buffers)


def _check_frequencies(config: PreTrainedConfig, buffers: dict[str, torch.Tensor]) -> None:
    """Raise ExportError where the rotary settings give frequencies that are no numbers."""
    for name, buffer in buffers.items():
        if name.endswith("inv_freq") and not buffer.is_meta and not bool(buffer.isfinite().all()):
            found = getattr(config, "rope_parameters", None)
            raise ExportError(
                f"config.json: got the rotary settings {found}, whose frequencies are not finite, expected a rope_theta above 0 "
                "and finite factors; download it again"
            )
