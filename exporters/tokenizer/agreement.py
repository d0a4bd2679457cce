"""A comparison of a tokenizer.json with the tokenizer of transformers that it was saved from.

Some classes of transformers do a part of their work in Python. The runtime has the file alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import tokenizers
from transformers import PreTrainedTokenizerBase

from enginewright.exporters.tokenizer.file_checks import WAY_OUT
from enginewright.runtime.errors import UnsupportedError

_TEXTS = (
    "Hello, world! It's 2024.",
    "  two  spaces\n\n\ta tab and a line ",
    "naïve café, 世界 🙂 ﬁne print",
    "def f(x): return x + 1  # don't",
    "",
)


def check_agreement(core: tokenizers.Tokenizer, loaded: PreTrainedTokenizerBase, where: str) -> None:
    """Encode and decode sample texts, each added token among words, and every single id, with both.

    core: as it is read from the saved file.
    where: names the tokenizer, for error messages.

    Raises:
        UnsupportedError: they give different ids or texts.
    """
    if core.get_vocab(with_added_tokens=True) != loaded.get_vocab():
        raise _differs(where, "a vocabulary that changes when it is saved", loaded)
    for text in _texts(core, loaded):
        expected = loaded.encode(text)
        ids = core.encode(text).ids
        if ids != expected:
            raise _differs(
                where, f"ids {_head(ids)} of {text[:40]!r} without that class, {_head(expected)} with it", loaded
            )
        for skip in (False, True):
            shown = loaded.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            if core.decode(ids, skip_special_tokens=skip) != shown:
                raise _differs(where, f"another text of ids {_head(ids)} than {shown[:40]!r}", loaded)
    core.decode_batch([[token] for token in core.get_vocab(with_added_tokens=True).values()])


def fill_token(loaded: PreTrainedTokenizerBase) -> str | None:
    """The token at which CodeLlamaTokenizer cuts a text in two and rearranges it; no other class has one."""
    token: str | None = getattr(loaded, "fill_token", None)
    return token


def _texts(core: tokenizers.Tokenizer, loaded: PreTrainedTokenizerBase) -> Iterator[str]:
    added = [token.content for _, token in sorted(core.get_added_tokens_decoder().items())]
    added = [token for token in added if token != fill_token(loaded)]
    yield from _TEXTS
    yield "a".join(added)
    yield " the ".join(["", *added, ""])


def _differs(where: str, got: str, loaded: PreTrainedTokenizerBase) -> UnsupportedError:
    return UnsupportedError(
        f"{where}: got {got}, expected that tokenizer.json holds all of {type(loaded).__name__}; {WAY_OUT}"
    )


def _head(ids: list[int]) -> str:
    return f"{ids[:8]}{'...' if len(ids) > 8 else ''}"
