"""Turns token ids into text piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

_BROKEN = "\ufffd"
_LONGEST_CHARACTER = 4
"""Bytes of the longest UTF-8 character; a token carries at least one byte."""
_LONGEST_WINDOW = 64
_PROMPT_WINDOW = 8

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Emits the text of a request's tokens in pieces that never change afterwards; created by the LLM for each request.

    It decodes a short window of the newest tokens, and emits the new part of it. So it works with every kind of tokenizer,
    and a token costs the same however long the text is. The first window has the last tokens of the prompt, because the text
    continues the prompt's: many tokenizers write a token's leading space only where another token comes before it. The end
    of the text is held back while it may be an unfinished character, that is, while the decoded text ends in U+FFFD.

    The pieces together equal the decoding of prompt and tokens without that of the prompt, with one exception. A tokenizer
    with byte fallback turns a whole run of byte tokens to U+FFFD when the run's last character is never finished; text that
    was emitted before then stays, and a run that begins before the window is not seen whole. Where a character begins in the
    prompt and ends in the tokens, the pieces have all of it.

    decode: returns the text of token ids.
    hidden: tokens that `decode` leaves out.
    prompt[n] int64: the tokens before the first one; may be empty.
    """

    def __init__(self, decode: Decode, hidden: Collection[int] = (), prompt: NDArray[np.int64] | None = None) -> None:
        self._decode = decode
        self._hidden = hidden
        self._window: list[int] = [] if prompt is None else _end_of_prompt(decode, hidden, prompt)
        self._prompt = decode(self._window) if self._window else ""  # its text, until the first piece
        self._clean = self._count_clean()  # window[:_clean] ends with a whole character
        self._whole_prompt = decode(self._window[: self._clean])  # without a character that the tokens may finish
        self._shown = len(self._prompt)  # characters of the window's text that have been emitted, or are the prompt's

    def push(self, token: int) -> str:
        """Return the text that `token` makes certain; often its own text, sometimes none."""
        if token in self._hidden:
            return ""
        self._window.append(token)
        text = self._decode(self._window)
        certain = len(text)
        if text.endswith(_BROKEN):
            unfinished = len(self._window) - self._clean < _LONGEST_CHARACTER
            certain = len(text.rstrip(_BROKEN)) if unfinished else len(text) - 1
        if self._prompt:
            self._find_start(text, certain)
        piece = text[self._shown : certain]
        self._shown = max(self._shown, certain)
        if certain == len(text):
            if piece:
                self._slide(text, self._clean)
            elif len(self._window) > _LONGEST_WINDOW and self._shown == len(text):
                del self._window[-1]  # it has no text, as an id that the vocabulary lacks
            self._clean = len(self._window)
        elif piece and len(self._window) > _LONGEST_WINDOW:  # only broken bytes; a whole character ends them
            self._slide(text, len(self._window) - 2 * _LONGEST_CHARACTER)
            self._clean = 0
        return piece

    def flush(self) -> str:
        """Return the text that is still held back; there are no more tokens."""
        text = self._decode(self._window)
        if self._prompt:
            self._find_start(text, len(text))
        piece = text[self._shown :]
        self._window, self._clean, self._shown = [], 0, 0
        return piece

    def _find_start(self, text: str, certain: int) -> None:
        """Find where the prompt ends in the window's text, again until there is a piece: tokens may finish its last character."""
        is_prefix = text.startswith(self._prompt)
        self._shown = len(self._prompt) if is_prefix else _count_common(text, self._whole_prompt)
        if certain > self._shown:
            self._prompt = ""

    def _slide(self, text: str, start: int) -> None:
        """Drop window[:start], unless the rest decodes to other text on its own: a tokenizer may strip a leading space."""
        held = len(text) - self._shown
        tail = self._decode(self._window[start:])
        if len(tail) > held and text.endswith(tail):
            del self._window[:start]
            self._shown = len(tail) - held

    def _count_clean(self) -> int:
        """Return how many tokens of the first window make whole characters; 0 where that cannot be told."""
        counts = range(len(self._window), max(len(self._window) - _LONGEST_CHARACTER, -1), -1)
        return next((n for n in counts if not self._decode(self._window[:n]).endswith(_BROKEN)), 0)


def _count_common(text: str, prompt: str) -> int:
    """Return the number of characters with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(text, prompt, strict=False)) if a != b), min(len(text), len(prompt)))


def _end_of_prompt(decode: Decode, hidden: Collection[int], prompt: NDArray[np.int64]) -> list[int]:
    """Return the last tokens of the prompt: as few as give text that begins with a whole character, but for hidden ones."""
    count = _PROMPT_WINDOW
    while True:
        tokens = [token for token in prompt[-count:].tolist() if token not in hidden]
        start = decode(tokens)[:1]
        if count >= len(prompt) or (start and (start != _BROKEN or count > _LONGEST_WINDOW)):
            return tokens
        count += 1 if count < _PROMPT_WINDOW + _LONGEST_CHARACTER else count
