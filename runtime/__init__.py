"""Engine directory to tokens.

    from enginewright.runtime import Sampling, load

    with load("my-engine") as llm:
        print(llm.generate("Hello", Sampling(max_tokens=32))[0].text)

Names load on first use, so that the commands and the offline stages do not pay for what they do not touch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginewright.runtime.artifact.extension import extend
    from enginewright.runtime.errors import (
        ArtifactError,
        EnginewrightError,
        ExtensionError,
        RequestError,
        UnsupportedError,
    )
    from enginewright.runtime.llm import LLM, Prompt
    from enginewright.runtime.loader import load
    from enginewright.runtime.requests.completion import Completion, Logprobs, Token
    from enginewright.runtime.requests.logits_processor import LogitsProcessor
    from enginewright.runtime.requests.sampling import Sampling
    from enginewright.runtime.scheduling.handle import Handle

_HOMES = {
    "ArtifactError": "errors",
    "Completion": "requests.completion",
    "EnginewrightError": "errors",
    "ExtensionError": "errors",
    "Handle": "scheduling.handle",
    "LLM": "llm",
    "LogitsProcessor": "requests.logits_processor",
    "Logprobs": "requests.completion",
    "Prompt": "llm",
    "RequestError": "errors",
    "Sampling": "requests.sampling",
    "Token": "requests.completion",
    "UnsupportedError": "errors",
    "extend": "artifact.extension",
    "load": "loader",
}

__all__ = [
    "LLM",
    "ArtifactError",
    "Completion",
    "EnginewrightError",
    "ExtensionError",
    "Handle",
    "LogitsProcessor",
    "Logprobs",
    "Prompt",
    "RequestError",
    "Sampling",
    "Token",
    "UnsupportedError",
    "extend",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
