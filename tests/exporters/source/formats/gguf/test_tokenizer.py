"""Tests of the tokenizer's files: token ids and chat prompts are those of the tokenizer that the metadata came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.runtime.errors import ExportError
from tests.support.exporters.gguf_files import make_model, write_gguf

TEXT = "Hello the  world, 1234 times!\n\n naïve 日本 <|end|> and <tool> 7x8\ttab"
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
NORMAL, UNKNOWN, CONTROL, USER = 1, 2, 3, 4


def of_bytes(splitting: str = "gpt-2", **more: Any) -> dict[str, Any]:
    """The metadata of a vocabulary of bytes with a few merges, among them one of two digits."""
    letters = [bytes_to_unicode()[byte] for byte in range(256)]
    merges = ["t h", "th e", "Ġ the", "1 2", "Ġ 1", "l l", "o r"]
    tokens = ["<pad>", "<s>", "<|end|>", "<tool>", *letters, *(merge.replace(" ", "") for merge in merges)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": splitting,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL] * 3 + [USER] + [NORMAL] * (len(tokens) - 4),
        "tokenizer.ggml.merges": merges,
        **more,
    }


def opened(path: Path, metadata: dict[str, Any]) -> Checkpoint:
    """A checkpoint with such metadata."""
    size = len(metadata.get("tokenizer.ggml.tokens", ())) or 250
    return open_checkpoint(str(write_gguf(make_model("qwen2", vocab_size=size), path / "m.gguf", metadata=metadata)))


def ids(checkpoint: Checkpoint, text: str = TEXT) -> list[int]:
    """The ids of a text, with those that the tokenizer adds."""
    found: list[int] = Tokenizer.from_str(checkpoint.read_file("tokenizer.json").decode()).encode(text).ids
    return found


def expected_of_bytes(metadata: dict[str, Any], pre: pre_tokenizers.PreTokenizer) -> list[int]:
    """The ids by a tokenizer that is made by hand."""
    tokens = metadata["tokenizer.ggml.tokens"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(m.split(" ")) for m in metadata["tokenizer.ggml.merges"]]))
    tokenizer.pre_tokenizer = pre
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in tokens[:3]])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False)])
    found: list[int] = tokenizer.encode(TEXT).ids
    return found


def test_a_vocabulary_of_bytes(tmp_path: Path) -> None:
    metadata = of_bytes()
    got = ids(opened(tmp_path, metadata))
    assert got == expected_of_bytes(metadata, pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert 2 in got and 3 in got


def test_numbers_are_split_into_digits_where_the_vocabulary_is(tmp_path: Path) -> None:
    metadata = of_bytes("smollm")
    pre = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
    got = ids(opened(tmp_path, metadata))
    assert got == expected_of_bytes(metadata, pre) != expected_of_bytes(metadata, pre_tokenizers.ByteLevel(False))


@pytest.mark.parametrize("splitting", ["llama-bpe", "qwen2", "tekken"])
def test_ids_are_those_of_transformers_own_reading(splitting: str, tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, of_bytes(splitting, **{"tokenizer.ggml.add_bos_token": True}))
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert ids(checkpoint) == theirs(TEXT)["input_ids"]
    assert ids(checkpoint)[0] == 1 and checkpoint.unused.parts == ()


@pytest.mark.parametrize(("splitting", "name"), [("frankish", "=frankish"), (None, " (missing)")])
def test_a_way_to_split_text_that_is_not_known_is_named(splitting: str | None, name: str, tmp_path: Path) -> None:
    metadata = of_bytes(splitting or "")
    if splitting is None:
        del metadata["tokenizer.ggml.pre"]
    told = [str(parts) for parts in opened(tmp_path, metadata).unused.parts]
    assert told == [
        f"m.gguf: tokenizer.ggml.pre{name}: not used: no way to split text that is known here; it is split as GPT-2 does, "
        "and token ids may differ"
    ]


def of_pieces() -> dict[str, Any]:
    """The metadata of a vocabulary of sentencepiece, with bytes and scores."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words = ["▁", "t", "h", "e", "th", "the", "▁the", "l", "o", "lo", "▁w"]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [*pieces, *words],
        "tokenizer.ggml.scores": [0.0] * len(pieces) + [-float(number) for number in range(len(words))],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL, *[6] * 256, *[NORMAL] * len(words)],
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": None,
    }


def test_a_vocabulary_of_sentencepiece(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, of_pieces())
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert ids(checkpoint) == theirs(TEXT)["input_ids"] and ids(checkpoint)[0] == 1  # a text begins with <s>


def test_the_chat_template(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, of_bytes(**{"tokenizer.chat_template": TEMPLATE}))
    for name, content in checkpoint.tokenizer_files().items():
        (tmp_path / name).write_bytes(content)
    prompt = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        [{"role": "user", "content": "hi"}], tokenize=False
    )
    assert prompt == "<s><user>hi<|end|>"


def test_the_files(tmp_path: Path) -> None:
    assert opened(tmp_path, {}).file_names() == ("config.json", "generation_config.json")
    plain = opened(tmp_path, of_bytes())
    assert plain.file_names()[2:] == ("tokenizer.json", "tokenizer_config.json")
    settings = json.loads(plain.read_file("tokenizer_config.json"))
    assert settings["bos_token"] == "<s>" and settings["eos_token"] == "<|end|>" and settings["pad_token"] == "<pad>"


def test_a_tokenizer_of_an_unknown_kind(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, of_bytes(**{"tokenizer.ggml.model": "rwkv"}))
    with pytest.raises(ExportError, match=r"m.gguf: transformers cannot make a tokenizer .*'rwkv'"):
        checkpoint.tokenizer_files()
