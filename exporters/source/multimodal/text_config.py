"""The config of a multimodal model's text part, and the class of the whole model, both by what transformers knows of the type."""

from __future__ import annotations

import copy
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from enginewright.exporters.source.multimodal.twins import TWINS, twin_config
from enginewright.runtime.errors import UnsupportedError

# Tables of transformers with the classes that generate text; the first one that has a type decides.
_GENERATING: tuple[Any, ...] = (
    modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    modeling_auto.MODEL_FOR_TEXT_TO_WAVEFORM_MAPPING,
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING,
)
_CARRIED = ("bos_token_id", "eos_token_id")
"""Settings of the whole model that go before those of its text part, as in transformers' `generate`."""
_DRAFTS = "a model that drafts for another one from its hidden states; expected a language model"
_REFUSED = {
    "gemma4_assistant": _DRAFTS,
    "gemma4_unified_assistant": _DRAFTS,
    "shieldgemma2": "a classifier of images; expected a model that answers to text",
    "paligemma": "tokens of a prompt attend to later ones of it, as its processor asks for with token_type_ids; expected a "
    "model whose tokens attend to earlier ones alone",
}
"""Types whose text part has a class of its own that does not answer as the whole model does."""


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Whether `config` is that of a model with a text part among others, and not that of a text model itself."""
    return config.get_text_config() is not config


def find_text_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of a text model that is equal to the text part of the multimodal model of `config`.

    It is a copy. `tie_word_embeddings` in it is not decided yet.

    Raises:
        UnsupportedError: the model does not generate text, or otherwise than its text part alone does.
    """
    family = config.model_type
    if reason := _REFUSED.get(family):
        raise UnsupportedError(f"{family}: {reason}")
    find_class(config)
    nested = config.get_text_config()
    text = twin_config(nested) if nested.model_type in TWINS else copy.deepcopy(nested)
    for name in _CARRIED:
        if (value := getattr(config, name, None)) is not None:
            setattr(text, name, list(value) if isinstance(value, tuple) else value)  # some types refuse tuples
    if getattr(text, "dtype", None) is None:
        text.dtype = getattr(config, "dtype", None)
    return text


def find_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Return transformers' class of the whole model of `config`, one that generates text.

    Raises:
        UnsupportedError: there is none.
    """
    for table in _GENERATING:
        if type(config) in table:
            found = table[type(config)]
            kind: type[PreTrainedModel] = found[0] if isinstance(found, tuple) else found
            return kind
    raise UnsupportedError(
        f"{config.model_type}: a model of several parts that does not generate text; expected a language model, or a "
        "multimodal model with one in it"
    )
