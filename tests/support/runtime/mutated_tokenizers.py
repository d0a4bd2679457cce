"""Tokenizer files with errors of every kind: wrong types, huge values, parts of other tokenizers, cut and flipped bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

_SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
_METASPACE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
_ADDED = {"special": False, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
PARTS: dict[str, list[Any]] = {
    "normalizer": [
        {"type": "Replace", "pattern": {"String": ""}, "content": "x"},
        {"type": "Replace", "pattern": {"Regex": "(a|a)*$"}, "content": ""},
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Strip", "strip_left": True, "strip_right": True},
        {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAAAA"},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True},
        {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Nmt"}]},
    ],
    "pre_tokenizer": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        _SPLIT,
        _METASPACE,
        {"type": "Digits", "individual_digits": True},
        {"type": "CharDelimiterSplit", "delimiter": "a"},
        {"type": "FixedLength", "length": 0},
        {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, _SPLIT, {"type": "UnicodeScripts"}]},
    ],
    "decoder": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        {"type": "Strip", "content": " ", "start": 0, "stop": 9},
        {"type": "Strip", "content": "a", "start": 2**40, "stop": 1},
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
        {"type": "BPEDecoder", "suffix": "</w>"},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}, _METASPACE]},
        {"type": "Sequence", "decoders": [{"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 1}]},
    ],
    "post_processor": [
        {"type": "BertProcessing", "sep": ["b", 70000], "cls": ["a", 1]},
        {"type": "RobertaProcessing", "sep": ["b", 1], "cls": ["a", 0], "trim_offsets": True, "add_prefix_space": True},
        {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"a": {"id": "a", "ids": [70000], "tokens": ["a"]}},
        },
    ],
    "model": [
        {"type": "WordLevel", "vocab": {"a": 0, " ": 1, "[UNK]": 2}, "unk_token": "[UNK]"},
        {"type": "WordPiece", "vocab": {"a": 0, "##b": 1, "[UNK]": 2}, "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9},
        {"type": "Unigram", "vocab": [["<unk>", 0.0], ["a", -1.0], ["▁", -2.0]], "unk_id": 0, "byte_fallback": True},
        {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2, " ": 3}, "merges": [["a", "b"]], "unk_token": None, "byte_fallback": True, "fuse_unk": True, "dropout": None},
    ],
    "added_tokens": [
        [{"id": 0, "content": "a", **_ADDED}, {"id": 9, "content": "<x>", **_ADDED, "special": True}],
        [{"id": 2**32 - 1, "content": "<y>", **_ADDED}],
        [{"id": 5, "content": "", **_ADDED}],
    ],
    "truncation": [{"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 7}],
    "padding": [{"strategy": {"Fixed": 10**6}, "direction": "Left", "pad_to_multiple_of": 0, "pad_id": 0, "pad_type_id": 0, "pad_token": "a"}],
}  # fmt: skip
ODD: list[Any] = [
    *(
        None,
        True,
        "",
        "a",
        " ",
        "\0",
        "\ud7ff",
        "▁" * 99,
        "(",
        "(?:a|a)*b",
        -1,
        0,
        1,
        9,
        2**31,
        2**32 - 1,
        2**32,
        2**53,
    ),
    *(2**63, 10**30, 1.5, -1e308, [], {}, [[]], [0], ["a", 0], {"type": "Sequence"}, {"a": 0}, {"type": 3}),
]


def mutated(source: str, draw: random.Random) -> bytes:
    """Return a tokenizer.json with one to three errors: in its tree, most of the time, or in its bytes."""
    if draw.random() < 0.2:
        return _broken_bytes(source.encode(), draw)
    tree = json.loads(source)
    for _ in range(draw.randint(1, 3)):
        if draw.random() < 0.4:
            name = draw.choice(list(PARTS))
            tree[name] = copy.deepcopy(draw.choice(PARTS[name]))
        else:
            _change(tree, draw)
    return json.dumps(tree).encode()


def _change(tree: Any, draw: random.Random) -> None:
    """Replace, drop, repeat or nest one value within the tree."""
    holder, key = draw.choice(list(_places(tree)))
    value = holder[key]
    act = draw.randrange(5)
    if act == 0:
        del holder[key]
    elif act == 1 and isinstance(holder, dict):
        holder[draw.choice(["", "x", "type", "a" * 99, key + " "])] = copy.deepcopy(value)
    elif act == 2:
        for _ in range(draw.choice([1, 3, 90, 130])):
            value = [value] if draw.random() < 0.5 else {"type": "Sequence", "decoders": [value]}
        holder[key] = value
    else:
        holder[key] = copy.deepcopy(draw.choice(ODD))


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of the tree, but only a few of each large part."""
    items = list(tree.items() if isinstance(tree, dict) else enumerate(tree))
    for key, value in items if len(items) < 20 else items[:: len(items) // 8]:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def _broken_bytes(content: bytes, draw: random.Random) -> bytes:
    changed = bytearray(content)
    act = draw.randrange(4)
    if act == 0:
        return content[: draw.randrange(len(content))]
    if act == 1:
        at = draw.randrange(len(content))
        return content[:at] + b"[" * draw.choice([1, 200, 100_000]) + content[at:]
    for _ in range(draw.randint(1, 8)):
        changed[draw.randrange(len(changed))] = (
            draw.choice(b'\xff\xc0\xed\x00"[]{}:,0-9e') if act == 2 else draw.randrange(256)
        )
    return bytes(changed)
