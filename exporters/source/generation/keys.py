"""Settings of generation_config.json that no engine acts on, each with the reason: told to the user, or without effect."""

from __future__ import annotations

_BEAMS = "an engine follows one text, not several beams"
_ENCODER = "it is for models with an encoder"
_DRAFTS = "it is for drafts of another model, which an engine does not have"

UNUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "num_beams": ((1,), _BEAMS),
    "num_beam_groups": ((1,), _BEAMS),
    "diversity_penalty": ((0,), _BEAMS),
    "constraints": ((), _BEAMS),
    "force_words_ids": ((), _BEAMS),
    "num_return_sequences": ((1,), "a request has one answer; send it again with another seed"),
    "penalty_alpha": ((0,), "contrastive search is not there"),
    "dola_layers": ((), "logits of inner layers are not there"),
    "guidance_scale": ((1,), "a request runs without a second prompt to compare with"),
    "watermarking_config": ((), "answers get no watermark"),
    "token_healing": ((False,), "the prompt's last tokens stay as they are"),
    "encoder_repetition_penalty": ((1,), _ENCODER),
    "encoder_no_repeat_ngram_size": ((0,), _ENCODER),
    "forced_bos_token_id": ((), _ENCODER),
    "forced_eos_token_id": ((), "an answer that reaches its longest length ends there, without a token for it"),
    "remove_invalid_values": ((False,), "logits that are not finite end their request with an error"),
    "max_time": ((), "requests have no time limit of the model's; cancel them, or pass timeout_ms to Triton"),
    "top_h": ((1,), "the rule is not there"),
    "use_mtp": ((False,), _DRAFTS),
    "prompt_lookup_num_tokens": ((), _DRAFTS),
    "assistant_early_exit": ((), _DRAFTS),
    "assistant_ensemble_weight": ((), _DRAFTS),
    "speculation_type": ((), _DRAFTS),
}
"""Key -> the values with which it has no effect besides null, and why others are not used."""

WITHOUT_EFFECT: dict[str, str] = {
    "transformers_version": "says what wrote the file",
    "_from_model_config": "says where the file came from",
    "_commit_hash": "says where the file came from",
    "_name_or_path": "says where the file came from",
    "eos_token_id": "is read as the model's end tokens",
    "bos_token_id": "is read from config.json; the tokenizer adds it to prompts",
    "pad_token_id": "is for rows of unequal lengths, which an engine does not pad",
    "decoder_start_token_id": "is for models with an encoder",
    "early_stopping": "acts with several beams alone",
    "length_penalty": "acts with several beams alone",
    "low_memory": "acts in contrastive search alone",
    "renormalize_logits": "adds one number to all logits, which changes no token",
    "use_cache": "changes speed alone",
    "cache_implementation": "changes speed and memory alone",
    "cache_config": "changes speed and memory alone",
    "max_cache_len": "changes speed and memory alone",
    "prefill_chunk_size": "changes speed and memory alone",
    "compile_config": "changes speed alone",
    "disable_compile": "changes speed alone",
    "continuous_batching_config": "changes speed and memory alone",
    "output_attentions": "is about what a Python call returns",
    "output_hidden_states": "is about what a Python call returns",
    "output_scores": "is about what a Python call returns",
    "output_logits": "is about what a Python call returns",
    "return_dict_in_generate": "is about what a Python call returns",
    "is_assistant": "acts with drafts of another model alone",
    "num_assistant_tokens": "acts with drafts of another model alone",
    "num_assistant_tokens_schedule": "acts with drafts of another model alone",
    "assistant_confidence_threshold": "acts with drafts of another model alone",
    "assistant_lookbehind": "acts with drafts of another model alone",
    "target_lookbehind": "acts with drafts of another model alone",
    "max_matching_ngram_size": "acts with drafts taken from the prompt alone",
}
"""Key -> why it changes no token of an engine, whatever its value."""
