"""Turns token ids into text piece by piece, and cuts the text at stop strings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 character; a token carries at least one byte."""
_LONGEST_WINDOW = 64


class Detokenizer:
    """Emits the text of a request's tokens in pieces that never change afterwards; created by the LLM for each request.

    It decodes a short window of the newest tokens, and emits the new part of it. So it works with every kind of tokenizer,
    and a token costs the same however long the text is. The end of the text is held back while it may be an unfinished
    character, that is, while the decoded text ends in U+FFFD.

    The pieces together equal the decoding of all ids, with one exception. A tokenizer with byte fallback turns a whole run
    of byte tokens to U+FFFD when the run's last character is never finished; text that was emitted before then stays.

    decode: returns the text of token ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._clean = 0  # window[:_clean] ends with a whole character
        self._shown = 0  # characters of the window's text that have been emitted

    def push(self, token: int) -> str:
        """Return the text that `token` makes certain; often its own text, sometimes none."""
        self._window.append(token)
        text = self._decode(self._window)
        certain = len(text)
        if text.endswith(_BROKEN):
            unfinished = len(self._window) - self._clean < _LONGEST_CHARACTER
            certain = len(text.rstrip(_BROKEN)) if unfinished else len(text) - 1
        piece = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if certain == len(text):
            if piece:
                self._slide(text, self._clean)
            self._clean = len(self._window)
        elif piece and len(self._window) > _LONGEST_WINDOW:  # only broken bytes; a whole character ends them
            self._slide(text, len(self._window) - 2 * _LONGEST_CHARACTER)
            self._clean = 0
        return piece

    def flush(self) -> str:
        """Return the text that is still held back; there are no more tokens."""
        piece = self._decode(self._window)[self._shown :]
        self._window, self._clean, self._shown = [], 0, 0
        return piece

    def _slide(self, text: str, start: int) -> None:
        """Drop window[:start], unless the rest decodes to other text on its own: a tokenizer may strip a leading space."""
        held = len(text) - self._shown
        tail = self._decode(self._window[start:])
        if len(tail) > held and text.endswith(tail):
            del self._window[:start]
            self._shown = len(tail) - held


class StopStrings:
    """Cuts a text before its first stop string, and holds text back that may become one; created for each request."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Return the text that certainly comes before any stop string, and whether one was found."""
        if not self._stops:
            return piece, False
        text = self._held + piece
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self._held = ""
            return text[: min(starts)], True
        held = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        """Return the text that is still held back; the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest beginning of `stop`, short of all of it, with which `text` ends."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
