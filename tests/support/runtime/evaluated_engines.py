"""Fixtures of engine directories for the evaluation's tests, and of engines that answer by script."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from enginewright.runtime.requests.completion import Completion
from enginewright.runtime.requests.request import TakeLogits
from enginewright.runtime.requests.sampling import Sampling

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<reply>"
VOCAB = 300


@pytest.fixture(scope="session")
def asked_engine(make_engine: Callable[..., Path], byte_tokenizer: tokenizers.Tokenizer) -> Path:
    """An engine of random weights with a chat template."""
    return make_engine(tokenizer=byte_tokenizer, config=json.dumps({"chat_template": TEMPLATE}))


@pytest.fixture(scope="session")
def other_engine(make_engine: Callable[..., Path], byte_tokenizer: tokenizers.Tokenizer) -> Path:
    """The same weights with narrower windows, so that long texts give other logits."""
    config = json.dumps({"chat_template": TEMPLATE})
    return make_engine(tokenizer=byte_tokenizer, config=config, windows=(0, 8, 0), max_context=1000)


class Scripted:
    """Stands in for an LLM: replies by a function, and its logits depend on the last token and on `flavour`.

    reply: prompt -> (text, finish reason). loaded, most_loaded: how many are open now, and were at once.
    """

    loaded = most_loaded = 0

    def __init__(
        self, core: tokenizers.Tokenizer, reply: Callable[[str], tuple[str, str]], flavour: float = 0.0
    ) -> None:
        self.limits: list[int | None] = []
        self._core, self._reply = core, reply
        rng = np.random.default_rng(0)
        self.table = rng.normal(0, 2, (VOCAB, VOCAB)) + flavour * np.random.default_rng(1).normal(0, 1, (VOCAB, VOCAB))

    def submit_all(self, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]) -> list[Completed]:
        """Answer at once."""
        self.limits += [sampling.max_tokens for sampling in samplings]
        return [Completed(self._complete(prompt)) for prompt in prompts]

    def _complete(self, prompt: Sequence[int]) -> Completion:
        text, reason = self._reply(self._core.decode(list(prompt)))
        tokens = (*self._core.encode(text).ids, *((0,) if reason == "stop" else ()))
        return Completion(
            text=text, token_ids=tokens, finish_reason=reason, prompt_tokens=len(prompt), logprobs=None, seed=0
        )

    def score(self, texts: Sequence[Sequence[int]], takes: Sequence[TakeLogits]) -> None:
        """Hand over the logits in pieces of seven rows."""
        for tokens, take in zip(texts, takes, strict=True):
            logits = self.table[np.array(tokens)].astype(np.float32)
            for begin in range(0, len(logits), 7):
                take(begin, logits[begin : begin + 7])

    def __enter__(self) -> Scripted:
        Scripted.loaded += 1
        Scripted.most_loaded = max(Scripted.loaded, Scripted.most_loaded)
        return self

    def __exit__(self, *_: object) -> None:
        Scripted.loaded -= 1


class Completed:
    """A handle of a request that has ended."""

    def __init__(self, completion: Completion) -> None:
        self._completion = completion

    def result(self) -> Completion:
        """Return it."""
        return self._completion

    def cancel(self) -> None:
        """Change nothing."""


@pytest.fixture(scope="session")
def scripted() -> type[Scripted]:
    """The class, for tests to make some."""
    return Scripted
