"""Tests of a request's text: what its Sampling asks for arrives, and an error in it ends that request alone."""

from __future__ import annotations

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models

from enginewright.runtime.errors import RequestError
from enginewright.runtime.llm import LLM
from enginewright.runtime.requests.request import Generation
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling
from enginewright.runtime.requests.sampling import Sampling
from tests.support.runtime.toy_model import greedy, make_llm
from tests.support.runtime.toy_session import VOCAB

PROMPT = [3, 4]


def make_special(at: int, text: str) -> LLM:
    """A toy whose words are SentencePiece's, but for one token that is special and ends the model's texts."""
    words = {text if i == at else f"▁w{i}": i for i in range(VOCAB)}
    core = tokenizers.Tokenizer(models.WordLevel(words, unk_token=text))
    core.add_special_tokens([AddedToken(text, normalized=False)])
    core.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    return make_llm(core, eos=(at,))


def test_special_tokens_in_a_text_and_as_stop_strings() -> None:
    tokens = greedy(PROMPT, 8)
    words = [f" w{token}" for token in tokens]
    whole = [*words[:4], "<|im_end|>", *words[5:]]
    with make_special(tokens[4], "<|im_end|>") as llm:
        endless = {"max_tokens": 8, "ignore_eos": True}
        ask = lambda **more: llm.generate([PROMPT], Sampling(**endless, **more))[0]  # noqa: E731
        assert ask().text == "".join([*words[:4], *words[5:]]), "the space after the prompt stays, too"
        assert ask(skip_special_tokens=False).text == "".join(whole)
        assert llm.generate([PROMPT], Sampling(skip_special_tokens=False))[0].text == "".join(words[:4])
        for stop, shown in (
            ("<|im_end|>", words[:4]),
            (f"{words[3]}<|im", words[:3]),
            (f"<|im_end|>{words[5]}", words[:4]),
        ):
            done = ask(stop=stop)
            end = 6 if stop.endswith(words[5]) else 5
            assert (done.text, done.finish_reason, len(done.token_ids)) == ("".join(shown), "stop", end)
            pieces = [token.text for token in llm.stream(PROMPT, Sampling(**endless, stop=stop))]
            assert "".join(pieces) == done.text and not any("<" in piece for piece in pieces)


@pytest.mark.parametrize("value", [None, 1, "no"])
def test_skip_special_tokens_is_true_or_false(value: object) -> None:
    with pytest.raises(RequestError, match=r"Sampling.skip_special_tokens: got .*, expected True or False"):
        Sampling(skip_special_tokens=value)  # type: ignore[arg-type]


def test_special_tokens_need_a_tokenizer() -> None:
    with (
        make_llm() as llm,
        pytest.raises(RequestError, match=r"Sampling.skip_special_tokens: got False, but .* no tokenizer"),
    ):
        llm.generate([PROMPT], Sampling(skip_special_tokens=False))


class Failing:
    """A text that cannot be made."""

    def push(self, token: int) -> tuple[str, bool]:
        return "", False

    def flush(self) -> str:
        raise SystemExit("panic")


@pytest.mark.parametrize("end", ["cancel", "limit", "end token"])
def test_an_error_at_the_end_of_the_text_is_the_requests(end: str) -> None:
    prompt, ends = np.array([1, 2, 0, 0]), frozenset([9])
    request = Generation(prompt, ResolvedSampling(), vocab=VOCAB, limit=2, ends=ends, text=Failing())
    request.prompt_tokens = 2
    if end == "cancel":
        request.cancel()
    else:
        assert request.receive([5, 6] if end == "limit" else [9])
    assert request.done.is_set() and request.completion is None
    assert isinstance(request.error, RequestError) and isinstance(request.error.__cause__, SystemExit)
    assert request.events.get() is request.error or request.events.get() is request.error
