"""Tests of the search for the text part in a whole model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from enginewright.exporters.source.multimodal import whole_model
from enginewright.exporters.source.multimodal.text_config import is_multimodal
from enginewright.exporters.source.multimodal.whole_model import build_whole
from enginewright.exporters.source.tensor_matching import find_targets
from enginewright.runtime.errors import ExportError, UnsupportedError

PLACES = {
    "gemma3": "model.language_model",
    "idefics3": "model.text_model",
    "blip-2": "language_model",
    "qwen2_5_omni": "thinker.model.language_model",
    "qwen3_vl": "model.language_model",
}


@pytest.mark.parametrize("family", PLACES)
def test_the_text_part_is_found_by_its_config(family: str) -> None:
    """At the size of the type's default config, which is that of a published model."""
    found = build_whole(AutoConfig.for_model(family))
    assert found.place == PLACES[family]
    assert all(parameter.is_meta for parameter in found.model.parameters())
    with torch.device("meta"):
        alone = AutoModelForCausalLM.from_config(found.text)
    assert set(found.names.values()) == set(alone.state_dict())


def test_tensors_of_a_text_model_are_not_converted_again() -> None:
    """Those of a text part are made as its class has them; a conversion of the text class would then change them."""
    kinds: dict[str, PreTrainedConfig] = {}
    for family in ("aria", "gemma3", "gemma4", "llava", "minimax_m3_vl", "mistral3", "qwen2_audio", "lighton_ocr"):
        config = CONFIG_MAPPING[family]()
        assert is_multimodal(config)
        kinds[config.get_text_config().model_type] = config.get_text_config()
    for family in ("qwen2", "qwen3", "qwen3_moe"):
        kinds[family] = CONFIG_MAPPING[family]()
    for config in kinds.values():
        assert type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        for each in find_targets(model, model.state_dict()):
            assert (each.target, each.converter) == (each.name, None)


def test_another_text_model_is_refused_by_the_first_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("qwen3_vl")
    other = AutoConfig.for_model("qwen2", vocab_size=config.text_config.vocab_size)
    monkeypatch.setattr(whole_model, "find_text_config", lambda _: other)
    with pytest.raises(
        UnsupportedError, match=r"qwen3_vl: its text part model.language_model (has|lacks) the tensor 'model"
    ):
        build_whole(config)


def test_a_text_model_of_another_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("llava")
    other = AutoConfig.for_model("llama", hidden_size=512)
    monkeypatch.setattr(whole_model, "find_text_config", lambda _: other)
    with pytest.raises(
        UnsupportedError, match=r"llava: its text part .* got shape \[32000, 4096\] of 'model.embed_tokens"
    ):
        build_whole(config)


def test_a_config_that_transformers_cannot_build_is_named() -> None:
    config = AutoConfig.for_model(
        "aya_vision", vision_config={"model_type": "siglip_vision_model", "num_attention_heads": 7}
    )
    with pytest.raises(
        ExportError, match=r"config.json: transformers cannot make a model of type aya_vision of it \(.*num_heads"
    ):
        build_whole(config)
