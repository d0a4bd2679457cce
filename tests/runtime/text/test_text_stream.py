"""Tests of a request's text: special tokens are hidden from it, and stop strings are found in the text with them."""

from __future__ import annotations

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core

from enginewright.runtime.text.text_stream import PartlyHiddenText, PlainText, open_text
from enginewright.runtime.text.tokenizer import Tokenizer
from tests.support.runtime.kinds_of_tokenizers import SPECIAL, TOKENIZERS

WORDS = ["ĠHello", "Ġworld", "ly", "abc", "a", "<", "|", "x", ">", "Ġ"]
STOPS = [*SPECIAL, "x", "<|", "|>", "ly<|x|>", "</s><s>", "abc", "<|x|>abc", "Hello<|x|>world"]


def stream_of(core: Core, prompt: list[int], ids: list[int], stop: list[str], *, skip: bool = True) -> tuple[str, int]:
    """The text that the pieces give, and the number of tokens at which a stop string ended it; 0 where none did."""
    stream = open_text(Tokenizer(core, None), np.array(prompt, np.int64), stop, skip_special_tokens=skip)
    text = ""
    for n, token in enumerate(ids, 1):
        piece, found = stream.push(token)
        text += piece
        if found:
            return text, n
    return text + stream.flush(), 0


class Reference:
    """The text after a prompt, by decoding all of it with transformers, again for every token."""

    def __init__(self, core: Core, prompt: list[int]) -> None:
        self._theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=core)
        self._prompt = prompt

    def text(self, ids: list[int], *, skip: bool) -> str:
        before, whole = (
            self._theirs.decode(tokens, skip_special_tokens=skip) for tokens in (self._prompt, self._prompt + ids)
        )
        assert whole.startswith(before)
        return whole[len(before) :]

    def cut(self, ids: list[int], stop: list[str]) -> tuple[str, int]:
        """The shown text before the first stop string to be complete, in the shown text or in that with special tokens."""
        for n in range(1, len(ids) + 1):
            shown, whole = (self.text(ids[:n], skip=skip) for skip in (True, False))
            ends = [shown.find(each) for each in stop if each in shown]
            ends += [self._shown_before(ids[:n], whole.find(each)) for each in stop if each in whole]
            if ends:
                return shown[: min(ends)], n
        return self.text(ids, skip=True), 0

    def _shown_before(self, ids: list[int], position: int) -> int:
        """The number of shown characters of the text with special tokens before `position`."""
        count = 0
        for n, token in enumerate(ids, 1):
            start, end = (len(self.text(ids[:m], skip=False)) for m in (n - 1, n))
            if token >= len(SPECIAL):
                count += max(min(end, position) - start, 0)
        return count


@given(data=st.data())
@settings(max_examples=300, deadline=None)
def test_stop_strings_with_special_tokens(data: st.DataObject) -> None:
    """Any stop string: one of a list, or a part of what comes."""
    core = TOKENIZERS["byte level"]()
    tokens = st.sampled_from([core.token_to_id(word) for word in (*WORDS, *SPECIAL)])
    ids = data.draw(st.lists(tokens, max_size=15))
    reference = Reference(core, [core.token_to_id("a")])
    whole = reference.text(ids, skip=False)
    stop = data.draw(st.lists(st.sampled_from(STOPS), max_size=2))
    if whole:
        start = data.draw(st.integers(0, len(whole) - 1))
        stop.append(whole[start : start + data.draw(st.integers(1, 12))])
    assert stream_of(core, [core.token_to_id("a")], ids, stop) == reference.cut(ids, stop)


@pytest.mark.parametrize("kind", sorted(set(TOKENIZERS) - {"byte level"}))
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_kind_of_tokenizer_stops_there(kind: str, data: st.DataObject) -> None:
    """Where spaces around a special token belong to neither, only the token that ends the text is certain."""
    core = TOKENIZERS[kind]()
    vocab = [token for token in range(core.get_vocab_size()) if not core.id_to_token(token).startswith("<0x")]
    prompt = [len(vocab) - 1]
    ids = data.draw(st.lists(st.sampled_from(vocab) | st.sampled_from(range(len(SPECIAL))), max_size=12))
    reference = Reference(core, prompt)
    whole, shown = (reference.text(ids, skip=skip) for skip in (False, True))
    start, length = data.draw(st.integers(0, len(whole))), data.draw(st.integers(1, 12))
    stop = [text for text in (whole[start : start + length].strip(), "ly<|x|>") if text]
    text, end = stream_of(core, prompt, ids, stop)
    assert end == reference.cut(ids, stop)[1]
    assert shown.startswith(text) and not any(each in text for each in stop)


@pytest.mark.parametrize("kind", sorted(TOKENIZERS))
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_without_stop_strings_it_is_the_decoding(kind: str, data: st.DataObject) -> None:
    core = TOKENIZERS[kind]()
    vocab = [token for token in range(core.get_vocab_size()) if not core.id_to_token(token).startswith("<0x")]
    ids = data.draw(st.lists(st.sampled_from(vocab) | st.sampled_from(range(len(SPECIAL))), max_size=20))
    prompt, never = [len(vocab) - 1], ["never<|x|>"]
    for skip in (True, False):
        expected = Reference(core, prompt).text(ids, skip=skip)
        assert stream_of(core, prompt, ids, [], skip=skip) == (expected, 0)
        assert stream_of(core, prompt, ids, never, skip=skip) == (expected, 0)


def pieces(stop: str, *words: str, skip: bool = True) -> list[str]:
    core = TOKENIZERS["byte level"]()
    stream = open_text(Tokenizer(core, None), np.array([core.token_to_id("a")]), [stop], skip_special_tokens=skip)
    return [stream.push(core.token_to_id(word))[0] for word in words] + [stream.flush()]


def test_only_text_that_may_become_a_stop_string_is_held_back() -> None:
    stop = "ly<|x|>abc"
    assert pieces(stop, "ĠHello", "ly", "Ġworld", "ly", "<|x|>", "a") == [" Hello", "", "ly world", "", "", "", "lya"]
    assert pieces(stop, "ly", "<|x|>", "<s>", "ly") == ["", "", "", "ly", "ly"], "words may still spell <|x|>"
    assert pieces("<|x|>", "ly", "</s>", "abc") == ["ly", "", "abc", ""], "a special token has no text"
    assert pieces("never", "<|x|>", "abc", skip=False) == ["<|x|>", "abc", ""]


def test_a_stop_string_in_the_shown_text_may_lie_across_a_hidden_token() -> None:
    core = TOKENIZERS["byte level"]()
    ids = [core.token_to_id(word) for word in ("a", "<|x|>", "abc")]
    for stop in (["aa"], ["aa", "never</s>"]):
        assert stream_of(core, [ids[0]], ids, stop) == ("", 3)


@pytest.mark.parametrize(
    ("stop", "kind"),
    [
        (["end", "\n\n", "</think>"], PlainText),
        ([], PlainText),
        (["</s>"], PartlyHiddenText),
        (["say <|x|> now"], PartlyHiddenText),
        (["x|>"], PartlyHiddenText),
        (["word<"], PartlyHiddenText),
        (["> word"], PartlyHiddenText),
        (["|"], PartlyHiddenText),
    ],
)
def test_only_stop_strings_that_may_take_in_a_special_token_cost_a_second_decoding(stop: list[str], kind: type) -> None:
    tokenizer = Tokenizer(TOKENIZERS["byte level"](), None)
    assert type(open_text(tokenizer, np.array([5]), stop, skip_special_tokens=True)) is kind
    assert type(open_text(tokenizer, np.array([5]), stop, skip_special_tokens=False)) is PlainText
