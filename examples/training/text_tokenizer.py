"""Trains the text model's tokenizer: byte-level BPE within words, single digits, and runs of signs and spaces."""

from collections.abc import Iterable

from tiny_qwen3 import byte_level_bpe
from transformers import PreTrainedTokenizerFast

END = "<|endoftext|>"
# Words with the space before them, single digits, runs of signs, runs of spaces without the last one, which joins its word.
SPLIT = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s"


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, context_length: int) -> PreTrainedTokenizerFast:
    """Train a tokenizer with `vocab_size` entries on `texts`."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=byte_level_bpe(texts, split=SPLIT, vocab_size=vocab_size, special_tokens=[END]),
        bos_token=END,
        eos_token=END,
        pad_token=END,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
    )
