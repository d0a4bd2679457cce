"""Text models of multimodal types of which transformers has no causal language model, but has an equal one of another type.

They differ in the positions alone: each token has three, of time, height and width, and rotary embeddings take some
frequencies by each. Those of a text token are all its place in the text, so the frequencies are those of one position.
Every name and shape of the parameters is compared when a checkpoint is opened; logits are compared by `nox -s families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from enginewright.runtime.errors import UnsupportedError

_WRITTEN_BY = {"model_type", "architectures", "transformers_version", "_name_or_path", "_commit_hash"}
_UNDECLARED = ("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "dtype")
"""Settings that any config may have, whether or not its type declares them."""
_ROPE = "rope_parameters"
_POSITIONS = ("mrope_section", "mrope_interleaved", "type")
"""Settings that say which frequencies take which of the three positions; `type` is an old name of `rope_type`."""


@dataclass(frozen=True, kw_only=True)
class Twin:
    """The equal model of a type.

    model_type: of it.
    fixed: settings of the twin that the type has in its code.
    undeclared: settings that the twin's code reads, though its config does not declare them.
    """

    model_type: str
    fixed: Mapping[str, Any] = field(default_factory=dict)
    undeclared: tuple[str, ...] = ()


TWINS: dict[str, Twin] = {
    "qwen2_vl_text": Twin(model_type="qwen2"),
    "qwen2_5_vl_text": Twin(model_type="qwen2"),
    "qwen2_5_omni_text": Twin(model_type="qwen2"),
    "qwen3_vl_text": Twin(model_type="qwen3"),
    "qwen3_vl_moe_text": Twin(model_type="qwen3_moe", fixed={"norm_topk_prob": True}, undeclared=("head_dim",)),
    "qwen3_omni_moe_text": Twin(model_type="qwen3_moe", undeclared=("head_dim",)),
}


def twin_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return the config of the twin of `config`, with all settings that the type of `config` declares.

    Raises:
        UnsupportedError: the twin does not know one of the settings.
    """
    family, twin = config.model_type, TWINS[config.model_type]
    kind = CONFIG_MAPPING[twin.model_type]
    known = {*kind().to_dict(), *kind.attribute_map, *twin.undeclared, *_UNDECLARED}
    declared = {*type(config)().to_dict(), *type(config).attribute_map, *twin.undeclared, *_UNDECLARED} - _WRITTEN_BY
    settings: dict[str, Any] = {name: getattr(config, name) for name in sorted(declared) if hasattr(config, name)}
    if unknown := sorted(settings.keys() - known):
        raise UnsupportedError(
            f"{family}: got the setting {unknown[0]}={settings[unknown[0]]!r}, which {twin.model_type} does not have; "
            "expected a model that is equal to it"
        )
    rope = settings.get(_ROPE)
    if isinstance(rope, dict):
        settings[_ROPE] = {name: value for name, value in rope.items() if name not in _POSITIONS}
    made: PreTrainedConfig = AutoConfig.for_model(twin.model_type, **{**settings, **twin.fixed})
    return made
