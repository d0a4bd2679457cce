"""Token ids to text, piece by piece, and the strings at which the text ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 character; a token carries at least one byte."""
_LONGEST_WINDOW = 64


class Detokenizer:
    """Emits the text of one token stream in pieces that never change afterwards; one per request.

    It decodes a short window of the newest tokens and emits what is new in it, so every kind of decoder works and a step
    costs the same however long the text is. The end of the text is held back while it may still be an unfinished
    character, that is, while the decoder ends it with U+FFFD.

    The pieces together equal the decoding of all ids. The one exception are tokenizers with byte fallback, which turn a
    whole run of byte tokens to U+FFFD when its last character is never finished: what was shown before stays.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._window: list[int] = []
        self._clean = 0  # window[:_clean] ended on a whole character
        self._shown = 0  # characters of the window's text that are out

    def push(self, token: int) -> str:
        """Return the text that `token` makes certain; often its own, sometimes none."""
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
        elif piece and len(self._window) > _LONGEST_WINDOW:  # only broken bytes: they resynchronise in one character
            self._slide(text, len(self._window) - 2 * _LONGEST_CHARACTER)
            self._clean = 0
        return piece

    def flush(self) -> str:
        """Return what is still held back; the stream has ended."""
        piece = self._decode(self._window)[self._shown :]
        self._window, self._clean, self._shown = [], 0, 0
        return piece

    def _slide(self, text: str, start: int) -> None:
        """Drop window[:start] unless the rest alone reads differently (a decoder may strip a leading space)."""
        held = len(text) - self._shown
        tail = self._decode(self._window[start:])
        if len(tail) > held and text.endswith(tail):
            del self._window[:start]
            self._shown = len(tail) - held


class StopStrings:
    """Cuts a text before the first stop string, holding back what may become one; one per request."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """Return the text that is certain to come before any stop string, and whether one was found."""
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
        """Return what is still held back; the text has ended."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` with which `stop` begins."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[len(text) - length :]):
            return length
    return 0
