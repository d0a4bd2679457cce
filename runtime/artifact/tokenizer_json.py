"""tokenizer.json and tokenizer_config.json, as a build writes them and the runtime reads them.

Whatever the tokenizers library does with a damaged file becomes an error of the product: it raises `Exception` itself, and a
panic of its Rust code reaches Python as a `BaseException` that no module exports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import tokenizers

from enginewright.runtime.errors import EnginewrightError

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
_PANICS = "pyo3_runtime"  # the module that PanicException says it is of
_PROBED = 64  # ids, so that a decoder that panics on most tokens is found when it is loaded


@contextmanager
def tokenizer_errors(make: Callable[[str], EnginewrightError]) -> Iterator[None]:
    """Raise `make(reason)` in place of anything that the tokenizers library raises in the block, panics included."""
    try:
        yield
    except EnginewrightError:
        raise
    except BaseException as e:
        if not is_of_library(e):
            raise
        raise make(_reason(e)) from e


def is_of_library(error: BaseException) -> bool:
    """Whether the tokenizers library can have raised it: an Exception, because it raises nothing narrower, or a panic."""
    return isinstance(error, Exception) or type(error).__module__ == _PANICS


def parse_tokenizer(content: bytes) -> tokenizers.Tokenizer:
    """Return the tokenizer that a tokenizer.json of this content describes; it never cuts or pads a text.

    Use it within `tokenizer_errors`.
    """
    core = tokenizers.Tokenizer.from_buffer(content)
    core.no_truncation()
    core.no_padding()
    core.decode(list(range(_PROBED)), skip_special_tokens=False)
    return core


def _reason(error: BaseException) -> str:
    return str(error) if type(error) is Exception else f"{type(error).__name__}: {error}"
