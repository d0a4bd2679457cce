"""A multimodal model without weights, and the place of its text model in it, by the names of their tensors.

Both are built on the meta device by transformers' classes, which takes about a second at any size, so that no table of names
is needed: checkpoints of all ages are named as the multimodal class can read them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from enginewright.exporters.source.bounds.bounded_building import BoundedBuilding
from enginewright.exporters.source.multimodal.text_config import find_class, find_text_config
from enginewright.exporters.source.supported_models import MODEL_ERRORS
from enginewright.runtime.errors import ExportError, UnsupportedError


@dataclass(frozen=True, kw_only=True)
class WholeModel:
    """A multimodal model; `build_whole` creates it.

    model: the model, on the meta device.
    text: config of the text model that is equal to its text part.
    place: path of the text part's module, such as "model.language_model".
    names: tensors of `model` that belong to the text part -> their names in the text model.
    """

    model: PreTrainedModel
    text: PreTrainedConfig
    place: str
    names: Mapping[str, str]


def build_whole(config: PreTrainedConfig) -> WholeModel:
    """Build the multimodal model of `config`, and find its text part.

    Raises:
        ExportError: transformers cannot make a model of the config.
        UnsupportedError: its text part has other tensors than the text model.
    """
    kind, text = find_class(config), find_text_config(config)
    model = _build(kind, config)
    place, part = _find_part(model)
    head_name, head = _find_head(model, place)
    # a text model of its own is tied where the whole model has tied the two
    text.tie_word_embeddings = head.weight is part.get_input_embeddings().weight
    alone = _build(None, text)
    names = _match(part, place, alone)
    own_head, _ = _find_head(alone, "")
    names.update({f"{head_name}.{leaf}": f"{own_head}.{leaf}" for leaf in head.state_dict()})
    _compare(model, names, alone, place)
    return WholeModel(model=model, text=text, place=place, names=names)


def _build(kind: type[PreTrainedModel] | None, config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model on the meta device; `kind` is None for the causal language model of the config."""
    own = copy.deepcopy(config)
    try:
        with torch.device("meta"), BoundedBuilding():
            if kind is not None:
                whole: PreTrainedModel = kind._from_config(own, dtype=torch.float32)  # type: ignore[no-untyped-call]
                return whole
            alone: PreTrainedModel = AutoModelForCausalLM.from_config(own, dtype=torch.float32)  # type: ignore[no-untyped-call]
            return alone
    except MODEL_ERRORS as e:
        reason = " ".join(str(e).split())
        raise ExportError(
            f"config.json: transformers cannot make a model of type {config.model_type} of it ({reason})"
        ) from e


def _find_part(model: PreTrainedModel) -> tuple[str, PreTrainedModel]:
    """Return the outermost module that has the nested text config, with its path."""
    nested = model.config.get_text_config()
    for name, module in model.named_modules():
        if isinstance(module, PreTrainedModel) and module is not model and module.config is nested:
            return name, module
    raise UnsupportedError(
        f"{model.config.model_type}: {type(model).__name__} has no module of its own for its text part"
    )


def _find_head(model: PreTrainedModel, place: str) -> tuple[str, torch.nn.Module]:
    """Return the output projection of the text part, with its path: that of the innermost module around it that has one."""
    for name in _upwards(place):
        module = model.get_submodule(name)
        head: Any = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None  # type: ignore[no-untyped-call]
        if head is not None:
            return next(path for path, each in model.named_modules() if each is head), head
    raise UnsupportedError(f"{model.config.model_type}: its text part has no output projection")


def _upwards(place: str) -> Iterator[str]:
    """Yield `place` and the modules around it; the whole model, whose path is empty, comes last."""
    while place:
        yield place
        place = place.rpartition(".")[0]
    yield ""


def _match(part: PreTrainedModel, place: str, alone: PreTrainedModel) -> dict[str, str]:
    """Return the names in `alone` of the tensors of `part`, which is either equal to it or to its base model."""
    stored = part.state_dict()
    prefix = "" if stored.keys() == alone.state_dict().keys() else f"{alone.base_model_prefix}."
    return {f"{place}.{name}": f"{prefix}{name}" for name in stored}


def _compare(model: PreTrainedModel, names: Mapping[str, str], alone: PreTrainedModel, place: str) -> None:
    """Raise UnsupportedError unless the tensors of the text part are those of the text model, by name and shape."""
    whole, expected = model.state_dict(), alone.state_dict()
    family = f"{model.config.model_type}: its text part {place}"
    if other := sorted(set(names.values()) ^ expected.keys()):
        got, lacks = ("has", "lacks") if other[0] not in expected else ("lacks", "has")
        raise UnsupportedError(f"{family} {got} the tensor {other[0]!r}, which {alone.config.model_type} {lacks}")
    for name, own in names.items():
        if whole[name].shape != expected[own].shape:
            raise UnsupportedError(
                f"{family} got shape {list(whole[name].shape)} of {own!r}, expected {list(expected[own].shape)} of "
                f"{alone.config.model_type}"
            )
