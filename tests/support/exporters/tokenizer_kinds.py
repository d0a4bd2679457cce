"""Checkpoint folders with small tokenizers of the kinds that are in use, each written as its makers publish it."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedConfig

from enginewright.exporters.source.checkpoint import Checkpoint
from enginewright.exporters.source.formats.safetensors import SOURCE
from enginewright.exporters.source.tensor_source import FolderFiles

TEXTS = ["the cat sat on the mat", "Hello, world! It's 1234.", "café 世界 naïve 🙂", "low lower lowest (x+1)"] * 10
SPECIAL = ("<|a|>", "<|b|>", "</s>", "<s>", "[SEP]", "<pad>", "<|endoftext|>", "<tool>", "[/INST]")
"""Texts that are special or added tokens in one kind or another, to be mixed into what is encoded."""


def token(content: str, **options: bool) -> dict[str, Any]:
    """An added token as tokenizer_config.json describes it."""
    plain = {"special": True, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    return {"content": content, **plain, **options}


def save_json(path: Path, value: object) -> None:
    """Write `value` as JSON."""
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def byte_level(special: tuple[str, ...] = ("</s>",)) -> tokenizers.Tokenizer:
    """A BPE tokenizer over bytes, as of GPT-2."""
    core = tokenizers.Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=list(special), show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return core


def with_byte_fallback() -> tokenizers.Tokenizer:
    """A BPE tokenizer with bytes for unknown characters and a decoder that strips, as of Llama 2, and a normaliser."""
    pieces = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{b:02X}>" for b in range(256)),
        "▁",
        *"abcdefghijklmnopqrstuvwxyz",
        "th",
        "▁th",
    ]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    core = tokenizers.Tokenizer(
        models.BPE(vocabulary, [("t", "h"), ("▁", "th")], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    core.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core


def unigram() -> tokenizers.Tokenizer:
    """A unigram tokenizer with words that begin with a mark."""
    letters = "▁abcdefghijklmnopqrstuvwxyzHIé世界,.!'1234"
    pieces = [*letters, "the", "▁the", "▁cat", "low", "▁low", "est", "er", "on", "at"]
    scored = [(piece, -3.0 - index / 10) for index, piece in enumerate(pieces)]
    core = tokenizers.Tokenizer(models.Unigram([("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), *scored], unk_id=0))
    core.normalizer = normalizers.NFKC()
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    core.decoder = decoders.Metaspace(prepend_scheme="first")
    core.add_special_tokens(["<unk>", "<s>", "</s>"])
    return core


def _vocab_and_merges(folder: Path) -> None:
    byte_level().model.save(str(folder))


def _sentencepiece(folder: Path, kind: str) -> None:
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(TEXTS),
        model_writer=content,
        vocab_size=330 if kind == "bpe" else 60,
        model_type=kind,
        byte_fallback=kind == "bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(content.getvalue())


def _gpt2(folder: Path) -> dict[str, Any]:
    _vocab_and_merges(folder)
    return {"tokenizer_class": "GPT2Tokenizer"}


def _opt(folder: Path) -> dict[str, Any]:
    _vocab_and_merges(folder)
    save_json(
        folder / "special_tokens_map.json", {"bos_token": token("</s>"), "eos_token": "</s>", "unk_token": "</s>"}
    )
    return {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True}


def _added_tokens_file(folder: Path) -> dict[str, Any]:
    _vocab_and_merges(folder)
    save_json(folder / "added_tokens.json", {"<|a|>": 300, "<|b|>": 301})
    save_json(folder / "special_tokens_map.json", {"eos_token": "</s>", "additional_special_tokens": ["<|a|>"]})
    return {"tokenizer_class": "GPT2Tokenizer"}


def _qwen2(folder: Path) -> dict[str, Any]:
    _vocab_and_merges(folder)
    added = {"300": token("<|endoftext|>"), "301": token("<|a|>"), "302": token("<tool>", special=False)}
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": added,
        "eos_token": "<|a|>",
        "pad_token": "<|b|>",
    }


def _llama(folder: Path) -> dict[str, Any]:
    _sentencepiece(folder, "bpe")
    return {"tokenizer_class": "LlamaTokenizer", "legacy": False, "add_bos_token": True, "add_eos_token": True}


def _gemma(folder: Path) -> dict[str, Any]:
    _sentencepiece(folder, "bpe")
    return {"tokenizer_class": "GemmaTokenizer", "additional_special_tokens": ["<|a|>", "<|b|>"]}


def _xglm(folder: Path) -> dict[str, Any]:
    _sentencepiece(folder, "unigram")
    return {"tokenizer_class": "XGLMTokenizer"}


def _tiktoken(folder: Path) -> dict[str, Any]:
    ranks = [*(bytes([b]) for b in range(256)), b"th", b"he", b"the", b" c", b" ca", b" cat"]
    lines = (base64.b64encode(rank) + b" %d" % index for index, rank in enumerate(ranks))
    (folder / "tokenizer.model").write_bytes(b"\n".join(lines))
    added = {"262": token("<|a|>"), "264": token("<|b|>", lstrip=True)}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|a|>", "added_tokens_decoder": added}


def _bert(folder: Path) -> dict[str, Any]:
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "the",
        "cat",
        "cafe",
        "lo",
        "##w",
        "##er",
        "##s",
        *"abx.,!'",
        "世",
    ]
    (folder / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    return {"tokenizer_class": "BertTokenizer", "do_lower_case": True}


def _added_in_settings(folder: Path) -> dict[str, Any]:
    """Fault 6: tokens that tokenizer.json does not have, of every way to match them."""
    byte_level().save(str(folder / "tokenizer.json"))
    added = {
        "300": token("<|a|>", lstrip=True),
        "301": token("<|b|>", rstrip=True, special=False),
        "302": token("cats", single_word=True, special=False, normalized=True),
        "303": token("[/INST]", special=False),
    }
    return {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added, "eos_token": "</s>"}


def _additional(folder: Path) -> dict[str, Any]:
    byte_level().save(str(folder / "tokenizer.json"))
    save_json(folder / "special_tokens_map.json", {"bos_token": "<s>", "additional_special_tokens": ["<|a|>", "[SEP]"]})
    return {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|b|>"]}


def _flags(folder: Path) -> dict[str, Any]:
    """Flags that contradict the post-processor."""
    with_byte_fallback().save(str(folder / "tokenizer.json"))
    flags = {"add_bos_token": False, "add_eos_token": True}
    return {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", **flags}


def _llama_class(folder: Path) -> dict[str, Any]:
    """The class builds a tokenizer of its own from the vocabulary and the merges alone."""
    with_byte_fallback().save(str(folder / "tokenizer.json"))
    return {"tokenizer_class": "LlamaTokenizerFast", "legacy": False, "add_prefix_space": False}


def _unigram(folder: Path) -> dict[str, Any]:
    unigram().save(str(folder / "tokenizer.json"))
    named = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "image_token": "<|a|>"}
    return {"tokenizer_class": "PreTrainedTokenizerFast", **named, "extra_special_tokens": {"audio_token": "<|b|>"}}


def _prefix_space(folder: Path) -> dict[str, Any]:
    byte_level().save(str(folder / "tokenizer.json"))
    return {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}


def _split_special(folder: Path) -> dict[str, Any]:
    byte_level(("</s>", "<|a|>")).save(str(folder / "tokenizer.json"))
    return {"tokenizer_class": "PreTrainedTokenizerFast", "split_special_tokens": True, "eos_token": "</s>"}


def _cut_and_padded(folder: Path) -> dict[str, Any]:
    core = byte_level(("</s>", "<pad>"))
    core.enable_truncation(3)
    core.enable_padding(pad_id=1, pad_token="<pad>", length=12)
    core.save(str(folder / "tokenizer.json"))
    return {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 3, "padding_side": "left"}


def _words(folder: Path) -> dict[str, Any]:
    core = tokenizers.Tokenizer(
        models.WordLevel({"[UNK]": 0, "the": 1, "cat": 2, "low": 3, "[SEP]": 4}, unk_token="[UNK]")
    )
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.save(str(folder / "tokenizer.json"))
    return {"tokenizer_class": "PreTrainedTokenizerFast", "sep_token": "[SEP]", "unk_token": "[UNK]"}


KINDS: dict[str, tuple[str, Callable[[Path], dict[str, Any]]]] = {
    "vocab and merges": ("gpt2", _gpt2),
    "vocab and merges with bos": ("opt", _opt),
    "added_tokens.json": ("gpt2", _added_tokens_file),
    "vocab and merges with added tokens": ("qwen2", _qwen2),
    "SentencePiece BPE": ("llama", _llama),
    "SentencePiece BPE of Gemma": ("gemma", _gemma),
    "SentencePiece unigram": ("xglm", _xglm),
    "tiktoken": ("llama", _tiktoken),
    "word pieces": ("bert", _bert),
    "tokens in tokenizer_config.json": ("llama", _added_in_settings),
    "additional special tokens": ("llama", _additional),
    "flags against the post-processor": ("llama", _flags),
    "a class that builds its own": ("llama", _llama_class),
    "unigram with named tokens": ("llama", _unigram),
    "a space before the text": ("gpt2", _prefix_space),
    "special tokens are split": ("llama", _split_special),
    "truncation and padding": ("llama", _cut_and_padded),
    "words": ("llama", _words),
}
"""By name, the model_type, and what writes the files and returns the content of tokenizer_config.json."""


def write_tokenizer(folder: Path, kind: str, **settings: object) -> Path:
    """Write config.json and a tokenizer of KINDS into the new folder `folder`, and return it.

    settings: further content of tokenizer_config.json.
    """
    folder.mkdir(parents=True)
    model_type, make = KINDS[kind]
    save_json(folder / "config.json", {"model_type": model_type})
    save_json(folder / "tokenizer_config.json", {**make(folder), **settings})
    return folder


def open_folder(folder: Path, vocab_size: int = 1000) -> Checkpoint:
    """The folder as a checkpoint whose tensors are never read."""
    config = PreTrainedConfig(vocab_size=vocab_size)
    return Checkpoint(name=folder.name, format=SOURCE, source=_Files(folder), config=config)


class _Files(FolderFiles):
    """A source without tensors."""

    tensors: dict[str, Any] = {}  # noqa: RUF012 - never changed

    def read(self, name: str, part: int | None = None) -> Any:
        raise AssertionError(name)

    def content(self, name: str) -> Any:
        raise AssertionError(name)
