"""The text of a request as its reader gets it: without special tokens if they are hidden, and cut at stop strings."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.text.detokenizer import Detokenizer
from enginewright.runtime.text.stop_strings import StopStrings
from enginewright.runtime.text.tokenizer import Tokenizer


class TextStream(Protocol):
    """Turns the tokens of one request into pieces of text; created by `open_text`."""

    def push(self, token: int) -> tuple[str, bool]:
        """Return the text that `token` makes certain, and whether a stop string ends the text there."""
        ...

    def flush(self) -> str:
        """Return the text that is still held back, up to a stop string in it; there are no more tokens."""
        ...


def open_text(
    tokenizer: Tokenizer, prompt: NDArray[np.int64], stop: Sequence[str], *, skip_special_tokens: bool
) -> TextStream:
    """Return the stream of a text that continues `prompt[n]` int64 and ends before any of `stop`.

    skip_special_tokens: leave special tokens out of the text; a stop string that takes in one is found all the same.
    """
    special = tokenizer.special_tokens
    decode_whole = partial(tokenizer.decode, skip_special_tokens=False)
    if not skip_special_tokens:
        return PlainText(Detokenizer(decode_whole, (), prompt), StopStrings(stop))
    shown = Detokenizer(tokenizer.decode, special.keys(), prompt)
    reaching = _reaching(stop, special.values()) if stop else []
    if not reaching:
        return PlainText(shown, StopStrings(stop))
    whole = Detokenizer(decode_whole, (), prompt)
    return PartlyHiddenText(shown, StopStrings(stop), whole, StopStrings(reaching))


class PlainText:
    """A text that is searched for stop strings as it is shown."""

    def __init__(self, shown: Detokenizer, stops: StopStrings) -> None:
        self._shown = shown
        self._stops = stops

    def push(self, token: int) -> tuple[str, bool]:
        """Return the text that `token` makes certain, and whether a stop string ends the text there."""
        return self._stops.push(self._shown.push(token))

    def flush(self) -> str:
        """Return the text that is still held back, up to a stop string in it."""
        text, found = self._stops.push(self._shown.flush())
        return text if found else text + self._stops.flush()


class PartlyHiddenText:
    """A text without special tokens that is also searched for stop strings as it would be with them.

    shown, stops: make the text that is shown, and find the stop strings in it.
    whole, reaching: make the text with special tokens, and find the stop strings that may take in one of them.
    """

    def __init__(self, shown: Detokenizer, stops: StopStrings, whole: Detokenizer, reaching: StopStrings) -> None:
        self._shown, self._stops = shown, stops
        self._whole, self._reaching = whole, reaching
        self._pending = ""  # shown text that has not been returned
        self._free_of_stops = self._free_of_reaching = 0  # characters of it that come before what a search holds back
        self._pieces = deque[tuple[int, int]]()  # token by token, characters that `reaching` holds back: whole, shown

    def push(self, token: int) -> tuple[str, bool]:
        """Return the text that `token` makes certain, and whether a stop string ends the text there."""
        return self._search(self._shown.push(token), self._whole.push(token))

    def flush(self) -> str:
        """Return the text that is still held back, up to a stop string in it."""
        text, found = self._search(self._shown.flush(), self._whole.flush())
        return text if found else text + self._pending

    def _search(self, shown: str, whole: str) -> tuple[str, bool]:
        """Take a new piece of both texts; return the shown text that comes before any stop string, and whether one came."""
        self._pending += shown
        self._pieces.append((len(whole), len(shown)))
        before, in_shown = self._stops.push(shown)
        whole_before, in_whole = self._reaching.push(whole)
        self._free_of_stops += len(before)
        self._free_of_reaching += self._count_shown(len(whole_before))
        searches = ((self._free_of_stops, in_shown), (self._free_of_reaching, in_whole))
        found = in_shown or in_whole
        free = min(count for count, here in searches if here or not found)
        text, self._pending = self._pending[:free], self._pending[free:]
        self._free_of_stops -= free
        self._free_of_reaching -= free
        return text, found

    def _count_shown(self, count: int) -> int:
        """Return how many characters of the shown text lie within the next `count` of the whole text, and pass them.

        Where a token's pieces differ, they end in the same way: a space may come before the token in only one of them.
        """
        passed = 0
        while self._pieces and self._pieces[0][0] <= count:
            whole, shown = self._pieces.popleft()
            count -= whole
            passed += shown
        if count:
            whole, shown = self._pieces[0]
            part = max(shown - (whole - count), 0)
            self._pieces[0] = (whole - count, shown - part)
            passed += part
        return passed


def _reaching(stop: Sequence[str], special: Collection[str]) -> list[str]:
    """Return the stop strings that may take in the text of a special token, or a part of it at their edge."""
    texts = "\0".join(("", *special, ""))

    def reaches(string: str) -> bool:
        edges = (edge for n in range(1, len(string) + 1) for edge in (f"{string[:n]}\0", f"\0{string[-n:]}"))
        return string in texts or any(text in string for text in special) or any(edge in texts for edge in edges)

    return [string for string in stop if reaches(string)]
