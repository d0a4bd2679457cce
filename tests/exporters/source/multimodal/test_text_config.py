"""Tests of the configs of text parts, and of the multimodal types that are refused, each with its reason."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM

from enginewright.exporters.source.multimodal.text_config import find_text_config, is_multimodal
from enginewright.exporters.source.multimodal.twins import TWINS, twin_config
from enginewright.exporters.source.supported_models import check_supported
from enginewright.runtime.errors import UnsupportedError
from tests.support.exporters.families import SIZES
from tests.support.exporters.multimodal import TYPES, make_whole

REFUSED = {
    "llama4": "llama4: its text part cannot be exported: llama4_text: got chunked_attention layers, expected full_attention",
    "kimi_k25": "kimi_k25: its text part cannot be exported: deepseek_v3: latent attention",
    "qwen3_5": "qwen3_5: its text part cannot be exported: qwen3_5_text: got linear_attention layers",
    "mllama": "mllama: its text part cannot be exported: mllama_text_model: transformers has no causal language model",
    "clip": "clip: a model of several parts that does not generate text; expected a language model, or a multimodal",
    "colpali": "colpali: a model of several parts that does not generate text",
    "paligemma": "paligemma: tokens of a prompt attend to later ones of it, as its processor asks for with token_type_ids",
    "shieldgemma2": "shieldgemma2: a classifier of images; expected a model that answers to text",
    "gemma4_unified_assistant": "gemma4_unified_assistant: a model that drafts for another one from its hidden states",
    "florence2": "florence2: an encoder-decoder model",
    "siglip_vision_model": "siglip_vision_model: transformers has no causal language model of this type",
}


@pytest.mark.parametrize("family", REFUSED)
def test_refused_types_name_the_reason(family: str) -> None:
    with pytest.raises(UnsupportedError, match=f"^{REFUSED[family]}"):
        check_supported(AutoConfig.for_model(family))


@pytest.mark.parametrize("family", [*TYPES, "llava_next", "internvl", "idefics3", "smolvlm", "aya_vision", "voxtral"])
def test_types_with_a_text_part_are_taken(family: str) -> None:
    config = AutoConfig.for_model(family)
    assert is_multimodal(config)
    check_supported(config)


def test_a_prompt_of_paligemma_attends_to_later_tokens() -> None:
    """With token_type_ids of 0, as its processor gives them to a prompt, the whole model is not its text part."""
    vision = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = AutoConfig.for_model(
        "paligemma",
        text_config={"model_type": "gemma", "head_dim": 16, **SIZES},
        vision_config={"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 14, **vision},
    )
    torch.manual_seed(0)
    kind: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    whole: Any = AutoModelForMultimodalLM.from_config(config, **kind).eval()
    text: Any = AutoModelForCausalLM.from_config(copy.deepcopy(config.text_config), **kind).eval()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.mul_(8.0)
        text.model.load_state_dict(whole.model.language_model.state_dict())
        tokens = torch.arange(8, 40)[None]
        causal = text(input_ids=tokens).logits
        assert (whole(input_ids=tokens).logits - causal).abs().max() < 1e-4 * causal.abs().max()
        prompt = whole(input_ids=tokens, token_type_ids=torch.zeros_like(tokens)).logits
    assert (prompt - causal).abs().max() > 0.01 * causal.abs().max()


def test_end_tokens_of_the_whole_model_go_before_those_of_its_text_part() -> None:
    config = AutoConfig.for_model("gemma3", text_config={"eos_token_id": 5, "bos_token_id": 4}, eos_token_id=[1, 106])
    text = find_text_config(config)
    assert (text.eos_token_id, text.bos_token_id) == ([1, 106], 4)
    assert config.text_config.eos_token_id == 5


@pytest.mark.parametrize("family", TWINS)
def test_a_twin_has_the_settings_of_the_type(family: str) -> None:
    """The values of a type that a twin's own defaults would hide."""
    config = AutoConfig.for_model(family, rms_norm_eps=3e-5, head_dim=48, eos_token_id=9, max_position_embeddings=4096)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 5e5, "mrope_section": [8, 8, 8]}
    twin = twin_config(config)
    assert twin.model_type == TWINS[family].model_type
    assert (twin.rms_norm_eps, twin.eos_token_id, twin.max_position_embeddings) == (3e-5, 9, 4096)
    assert twin.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}
    for name in ("hidden_size", "num_key_value_heads", "sliding_window", "num_experts_per_tok"):
        assert getattr(twin, name, None) == getattr(config, name, None), name


def test_a_setting_that_a_twin_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = AutoConfig.for_model("qwen3_vl_moe_text")
    monkeypatch.setitem(TWINS, "qwen3_vl_moe_text", TWINS["qwen2_vl_text"])
    with pytest.raises(UnsupportedError, match=r"qwen3_vl_moe_text: got the setting .*, which qwen2 does not have"):
        twin_config(config)


def test_the_text_config_is_a_copy() -> None:
    whole = make_whole("llava")
    text = find_text_config(whole.config)
    text.vocab_size = 3
    assert whole.config.text_config.vocab_size == SIZES["vocab_size"]
