"""Tokenizers of every kind that decodes in a way of its own, each with the special tokens <s>, </s> and <|x|>."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models

SPECIAL = ("<s>", "</s>", "<|x|>")
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _make(words: Iterable[str], decoder: Any, *, is_bpe: bool = False) -> Tokenizer:
    vocab = {word: i for i, word in enumerate(dict.fromkeys([*SPECIAL, "<unk>", *words]))}
    model = models.BPE(vocab, [], byte_fallback=True) if is_bpe else models.WordLevel(vocab, unk_token="<unk>")
    core = Tokenizer(model)
    core.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIAL])
    core.decoder = decoder
    return core


def byte_level() -> Tokenizer:
    """Single bytes and a few words, the decoder of GPT-2's tokenizer and most since."""
    from tokenizers.pre_tokenizers import ByteLevel

    return _make([*sorted(ByteLevel.alphabet()), "ĠHello", "Ġworld", "ly", "abc"], decoders.ByteLevel())


def sentencepiece_like() -> Tokenizer:
    """Metaspace words with byte fallback, the decoder that Llama 2's and Phi-3's tokenizers have."""
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    words = [*_BYTES, "▁", "▁▁", "▁Hello", "▁world", "ly", "!", "ab", "cd"]
    return _make(words, decoders.Sequence(parts), is_bpe=True)


def metaspace(scheme: str) -> Callable[[], Tokenizer]:
    """Make words that begin with U+2581, as SentencePiece writes a space; `scheme` says where one is added and taken off."""
    words = ["▁Hello", "▁world", "▁", "ly", "!", "ab", "cd"]
    return lambda: _make(words, decoders.Metaspace("▁", prepend_scheme=scheme))


def word_piece() -> Tokenizer:
    """Words, and parts of words that begin with ##, the decoder of BERT's tokenizer."""
    return _make(["Hello", "world", "##ly", "!", "##ab", "cd", "##cd"], decoders.WordPiece("##", cleanup=False))


def word_suffix() -> Tokenizer:
    """Words that end with </w>, the decoder of the first GPT's tokenizer."""
    return _make(["Hello</w>", "wor", "ld</w>", "ab", "cd</w>"], decoders.BPEDecoder("</w>"))


def plain_words() -> Tokenizer:
    """Words, and no decoder: spaces are written between them."""
    return _make(["Hello", "world", "ab", "cd"], None)


TOKENIZERS: Mapping[str, Callable[[], Tokenizer]] = {
    "byte level": byte_level,
    "sentencepiece": sentencepiece_like,
    "metaspace always": metaspace("always"),
    "metaspace first": metaspace("first"),
    "metaspace never": metaspace("never"),
    "wordpiece": word_piece,
    "word suffix": word_suffix,
    "words": plain_words,
}


def ids_of(core: Tokenizer, parts: Iterable[str]) -> list[int]:
    """Return the ids of texts that are tokens of a SentencePiece vocabulary, and of the bytes of all others."""
    ids: list[int] = []
    for part in parts:
        known = core.token_to_id(part.replace(" ", "▁"))
        ids += [known] if known is not None else [core.token_to_id(f"<0x{byte:02X}>") for byte in part.encode()]
    return ids
