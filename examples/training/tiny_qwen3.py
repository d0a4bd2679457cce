"""The parts that all example models share: architecture, byte-level tokenizer, and writing to a folder."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM


def tiny_qwen3(tokenizer: PreTrainedTokenizerFast, context_length: int) -> Qwen3ForCausalLM:
    """A random model of four layers with 3.1 million parameters besides the embedding.

    Every side of a matrix is a multiple of 128.
    """
    sizes = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "head_dim": 64}
    return Qwen3ForCausalLM(tiny_config(tokenizer, context_length, **sizes))


def tiny_config(tokenizer: PreTrainedTokenizerFast, context_length: int, **sizes: Any) -> Qwen3Config:
    """A config with four query and two key-value heads, a tied embedding and the tokenizer's entries.

    sizes: further keys of the config.
    """
    return Qwen3Config(
        vocab_size=len(tokenizer),
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        max_position_embeddings=context_length,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        **sizes,
    )


def byte_level_bpe(texts: Iterable[str], *, split: str, vocab_size: int, special_tokens: list[str]) -> Tokenizer:
    """Train a tokenizer for any text with `vocab_size` entries on `texts`; no entry crosses the pieces that `split` matches."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the weights in bfloat16, the generation defaults and the tokenizer; the model itself is not changed."""
    rounded = Qwen3ForCausalLM(model.config).bfloat16()
    rounded.load_state_dict(model.state_dict())
    rounded.generation_config = model.generation_config
    rounded.save_pretrained(output)
    tokenizer.save_pretrained(output, save_jinja_files=False)  # the chat template goes into tokenizer_config.json
