"""Tests of streaming text: pieces never change afterwards, and together they are the decoding of all tokens."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from enginewright.runtime.text.detokenizer import Detokenizer
from enginewright.runtime.text.tokenizer import Tokenizer as Own
from tests.support.runtime.kinds_of_tokenizers import SPECIAL, TOKENIZERS, ids_of, sentencepiece_like


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


def test_endless_tokens_without_text_come_at_a_bounded_cost(byte_tokenizer: Tokenizer) -> None:
    unused = byte_tokenizer.get_vocab_size() + 3
    decoded: list[int] = []

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return byte_tokenizer.decode(ids)

    detokenizer = Detokenizer(decode)
    ids = [*byte_tokenizer.encode("ab").ids, *[unused] * 500, *byte_tokenizer.encode("end🙂").ids]
    pieces = [detokenizer.push(token) for token in ids]
    assert "".join(pieces) + detokenizer.flush() == byte_tokenizer.decode(ids) == "abend🙂"
    assert max(decoded) < 100


def test_text_comes_as_soon_as_it_is_certain(byte_tokenizer: Tokenizer) -> None:
    ids = byte_tokenizer.encode("a🙂b").ids
    assert _pieces(byte_tokenizer, ids)[0] == ["a", "", "", "", "🙂", "b"]


@given(st.lists(st.sampled_from([" Hello", " world", "ly", "!", "世", "🙂", " ", "\n", "</s>"]), max_size=25))
@settings(max_examples=150, deadline=None)
def test_leading_spaces_and_byte_fallback(parts: list[str]) -> None:
    core = sentencepiece_like()
    ids = ids_of(core, parts)
    pieces, whole = _pieces(core, ids)
    assert whole == core.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)


def test_word_suffix_decoder() -> None:
    core = Tokenizer(models.WordLevel({"a</w>": 0, "b": 1, "c</w>": 2}, unk_token="b"))
    core.decoder = decoders.BPEDecoder()
    assert _pieces(core, [0, 1, 2, 0, 2])[1] == core.decode([0, 1, 2, 0, 2]) == "a bc a c"


def _continue(core: Tokenizer, prompt: list[int], ids: list[int], *, skip: bool) -> str:
    """The text of tokens after a prompt, as the pieces give it."""
    tokenizer = Own(core, None)
    decode = partial(tokenizer.decode, skip_special_tokens=skip)
    hidden = tokenizer.special_tokens.keys() if skip else ()
    detokenizer = Detokenizer(decode, hidden, np.array(prompt, np.int64))
    return "".join(map(detokenizer.push, ids)) + detokenizer.flush()


@pytest.mark.parametrize("kind", sorted(set(TOKENIZERS) - {"sentencepiece"}))
@given(data=st.data(), skip=st.booleans())
@settings(max_examples=100, deadline=None)
def test_the_text_continues_the_prompt(kind: str, data: st.DataObject, skip: bool) -> None:
    core = TOKENIZERS[kind]()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
    tokens = st.sampled_from(range(core.get_vocab_size())) | st.sampled_from(range(len(SPECIAL)))
    prompt = data.draw(st.lists(tokens, min_size=1, max_size=24))
    ids = data.draw(st.lists(tokens, max_size=40))
    before = theirs.decode(prompt, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    whole = theirs.decode(prompt + ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
    if whole.startswith(before):
        assert _continue(core, prompt, ids, skip=skip) == whole[len(before) :]


PARTS = [" Hello", " world", "ly", "!", "世", "🙂", "é", " ", "  ", "\n", *SPECIAL]


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=20), st.data(), st.booleans())
@settings(max_examples=300, deadline=None)
def test_byte_fallback_continues_the_prompt_even_within_a_character(
    parts: list[str], data: st.DataObject, skip: bool
) -> None:
    """The prompt may end in any part, and in the middle of its bytes: then the text has the whole character."""
    core = sentencepiece_like()
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
    cut = data.draw(st.integers(0, len(parts) - 1))
    before, part, after = ids_of(core, parts[:cut]), ids_of(core, parts[cut : cut + 1]), ids_of(core, parts[cut + 1 :])
    inside = data.draw(st.integers(0 if before else 1, len(part)))
    settled = before + part if inside == len(part) else before
    text = theirs.decode(settled, skip_special_tokens=skip)
    whole = theirs.decode(before + part + after, skip_special_tokens=skip)
    assert _continue(core, before + part[:inside], part[inside:] + after, skip=skip) == whole[len(text) :]


def test_a_space_between_prompt_and_text_stays() -> None:
    core = sentencepiece_like()
    hello, world = ids_of(core, [" Hello"]), ids_of(core, [" world"])
    end, start = core.token_to_id("</s>"), core.token_to_id("<s>")
    assert core.decode(world) == "world", "alone, it has none"
    assert _continue(core, hello, world, skip=True) == " world"
    assert _continue(core, [*hello, *[end] * 50], world, skip=True) == " world", "special tokens do not hide the word"
    assert _continue(core, [start], world, skip=True) == core.decode([start, *world]) == "world"


def test_a_long_prompt_is_not_decoded_whole() -> None:
    core, decoded = sentencepiece_like(), list[int]()

    def decode(ids: list[int]) -> str:
        decoded.append(len(ids))
        return core.decode(ids)

    detokenizer = Detokenizer(decode, (), np.array(ids_of(core, [" Hello"]) * 100_000))
    assert detokenizer.push(ids_of(core, [" world"])[0]) == " world"
    assert max(decoded) < 20 and len(decoded) < 8


def test_hidden_tokens_cost_no_decoding() -> None:
    core = sentencepiece_like()
    detokenizer = Detokenizer(core.decode, {1}, np.array(ids_of(core, [" Hello"])))
    assert [detokenizer.push(1) for _ in range(1000)] == [""] * 1000
    assert detokenizer.push(ids_of(core, [" world"])[0]) == " world"
