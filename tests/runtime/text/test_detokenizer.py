"""Tests of streaming text: pieces never change afterwards, and together they are the decoding of all tokens."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from enginewright.runtime.text.detokenizer import Detokenizer, StopStrings


def _pieces(core: Tokenizer, ids: list[int]) -> tuple[list[str], str]:
    detokenizer = Detokenizer(core.decode)
    pieces = [detokenizer.push(token) for token in ids]
    return pieces, "".join(pieces) + detokenizer.flush()


@given(text=st.text(st.characters(codec="utf-8"), max_size=40) | st.text("🙂é👩‍👩‍👧 a世界\n", max_size=30))
@settings(max_examples=150, deadline=None)
def test_pieces_join_to_the_text(byte_tokenizer: Tokenizer, text: str) -> None:
    ids = byte_tokenizer.encode(text).ids
    pieces, whole = _pieces(byte_tokenizer, ids)
    assert whole == byte_tokenizer.decode(ids) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces), "an unfinished character was shown"


@given(ids=st.lists(st.integers(0, 289), max_size=120))
@settings(max_examples=150, deadline=None)
def test_any_token_sequence_joins_to_its_decoding(byte_tokenizer: Tokenizer, ids: list[int]) -> None:
    assert _pieces(byte_tokenizer, ids)[1] == byte_tokenizer.decode(ids)


def test_endless_broken_bytes_are_shown_at_a_bounded_cost(byte_tokenizer: Tokenizer) -> None:
    broken = byte_tokenizer.encode("é").ids[-1]
    decoded: list[int] = []

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return byte_tokenizer.decode(ids)

    detokenizer = Detokenizer(decode)
    ids = [broken] * 500 + byte_tokenizer.encode("end🙂").ids
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == byte_tokenizer.decode(ids)
    assert max(decoded) < 100


def test_text_comes_as_soon_as_it_is_certain(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("a🙂b").ids
    assert _pieces(byte_tokenizer, ids)[0] == ["a", "", "", "", "🙂", "b"]


def _sentencepiece_like() -> Tokenizer:
    """Metaspace words with byte fallback, the decoder that Llama 2's tokenizer has."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁Hello", "▁world", "ly", "!"]
    model = {"type": "BPE", "vocab": {w: i for i, w in enumerate(words)}, "merges": [], "byte_fallback": True}
    model |= {"unk_token": "<unk>", "fuse_unk": True, "dropout": None, "ignore_merges": False}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    special = {"id": 1, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    parts = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [{**special, "special": True}]}
    whole |= {"normalizer": None, "pre_tokenizer": None, "post_processor": None, "model": model}
    return Tokenizer.from_str(json.dumps({**whole, "decoder": {"type": "Sequence", "decoders": parts}}))


@given(st.lists(st.sampled_from([" Hello", " world", "ly", "!", "世", "🙂", " ", "\n", "</s>"]), max_size=25))
@settings(max_examples=150, deadline=None)
def test_leading_spaces_and_byte_fallback(parts: list[str]) -> None:
    core = _sentencepiece_like()
    ids: list[int] = []
    for part in parts:
        known = core.token_to_id(part.replace(" ", "▁"))
        ids += [known] if known is not None else [core.token_to_id(f"<0x{byte:02X}>") for byte in part.encode()]
    pieces, whole = _pieces(core, ids)
    assert whole == core.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_word_suffix_decoder() -> None:
    core = Tokenizer(models.WordLevel({"a</w>": 0, "b": 1, "c</w>": 2}, unk_token="b"))
    core.decoder = decoders.BPEDecoder()
    assert _pieces(core, [0, 1, 2, 0, 2])[1] == core.decode([0, 1, 2, 0, 2]) == "a bc a c"


@given(st.text("abx", max_size=30), st.lists(st.text("abx", min_size=1, max_size=4), max_size=3), st.data())
@settings(max_examples=200, deadline=None)
def test_stop_strings_cut_wherever_the_pieces_break(text: str, stops: list[str], data: st.DataObject) -> None:
    matcher, shown, found, rest = StopStrings(stops), "", False, text
    ends = [0]
    while rest and not found:
        length = data.draw(st.integers(0, 4))
        piece, found = matcher.push(rest[:length])
        rest, shown = rest[length:], shown + piece
        ends.append(ends[-1] + length)
    shown += "" if found else matcher.flush()
    # the first stop to be complete decides; among those complete with the same piece, the earliest start
    complete = [end for end in ends if any(stop in text[:end] for stop in stops)]
    assert found == bool(complete)
    seen = text[: complete[0]] if complete else text
    assert shown == (seen[: min(seen.find(s) for s in stops if s in seen)] if complete else text)


def test_a_partial_match_is_held_back_and_released() -> None:
    matcher = StopStrings(["worse"])
    assert [matcher.push(piece) for piece in ("hello w", "or", "ld")] == [
        ("hello ", False),
        ("", False),
        ("world", False),
    ]
    assert matcher.push("wor") == ("", False)
    assert matcher.flush() == "wor"


def test_no_stop_strings_hold_nothing_back() -> None:
    assert StopStrings(()).push("text") == ("text", False)
