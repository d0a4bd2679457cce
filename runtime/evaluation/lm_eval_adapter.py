"""An engine directory as a model of lm-evaluation-harness (`pip install 'enginewright[eval]'`).

lm_eval finds a model only if its module has been imported. So this module registers the model `enginewright`, and then runs
lm_eval's own command:

    python -m enginewright.runtime.evaluation.lm_eval_adapter run --model enginewright \
        --model_args engine=DIR,threads=2 --tasks TASK [--include_path FOLDER] [--apply_chat_template]

model_args: the parameters of EngineLM. The harness's --batch_size and --device are accepted without effect: up to
`max_batch` requests share the engine's steps.

From Python: `lm_eval.simple_evaluate(model=EngineLM(DIR), tasks=[...])`.

Text is cut into context and continuation, and long text into windows, in the same way as by the harness's own `hf` model,
so that results can be compared with published ones.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray
from tqdm import tqdm

from enginewright.runtime.artifact.files.bounded_file import read_bounded
from enginewright.runtime.artifact.files.json_file import MOST_BYTES, read_object
from enginewright.runtime.errors import EnginewrightError, RequestError
from enginewright.runtime.evaluation.softmax import blocks, log_softmax
from enginewright.runtime.loader import load
from enginewright.runtime.requests.request import TakeLogits
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.text.chat.conversation import Conversation

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

Pair = tuple[Any, list[int], list[int]]  # the harness's cache key, context and continuation

_SAMPLING = ("top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty")
_HANDLED = ("do_sample", "temperature", "max_gen_toks", "until")


@register_model("enginewright")
class EngineLM(TemplateLM):  # type: ignore[misc]  # lm_eval declares no types
    """An engine that the harness evaluates; created by lm_eval from --model_args.

    engine: the engine directory.
    threads, max_batch: as in `load`.
    max_length: the most tokens of context and continuation together; default: the engine's context.
    max_gen_toks: the most new tokens, where a task does not set it.
    seed: seed of sampled replies; each reply uses the seed plus its place among the requests.
    harness: options that the harness adds for every model.

    Raises:
        RequestError: an unknown parameter, or an engine without a tokenizer.
    """

    def __init__(
        self,
        engine: str,
        *,
        threads: int | None = None,
        max_batch: int | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 0,
        **harness: object,
    ) -> None:
        super().__init__()
        if unknown := sorted(harness.keys() - {"batch_size", "max_batch_size", "device"}):
            known = "engine, threads, max_batch, max_length, max_gen_toks, seed"
            raise RequestError(f"--model_args: unknown key {unknown[0]!r}; known: {known}")
        self.llm = load(engine, threads, max_batch=max_batch)
        if self.llm.tokenizer is None:
            raise RequestError(f"{engine}: got an engine without a tokenizer, expected one that can write the tasks")
        self.max_length = max_length or self.llm.capacity.context
        self.max_gen_toks = max_gen_toks
        self._seed = seed
        self._files = {Path(f.path).name: Path(engine) / f.path for f in self.llm.manifest.tokenizer}
        self._core = self.llm.tokenizer.core
        self._config = (
            read_object(path, RequestError, "build the engine again")
            if (path := self._files.get("tokenizer_config.json"))
            else {}
        )

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        ends = self.llm.manifest.model.eos_token_ids
        found = self._special("eos_token")
        if found is None and not ends:
            raise RequestError(f"{self.llm.manifest.name}: got no end token, expected one to begin a text with")
        return ends[0] if found is None else found

    @property
    def prefix_token_id(self) -> int:
        """The token after which a text without context is scored."""
        found = self._special("bos_token")
        return self.eot_token_id if found is None else found

    @property
    def tokenizer_name(self) -> str:
        """A name by which the harness tells the request caches of different tokenizers apart."""
        files = {Path(file.path).name: file.sha256 for file in self.llm.manifest.tokenizer}
        return f"enginewright-{files['tokenizer.json'][:16]}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return the ids of `string`; by default with the tokenizer's special tokens, unless it begins with its own bos."""
        if add_special_tokens is None:
            prefix = self._core.id_to_token(self.prefix_token_id)
            add_special_tokens = prefix is None or not string.startswith(prefix)
        assert self.llm.tokenizer is not None
        return self.llm.tokenizer.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the conversation as text; without a generation prompt it ends with the last message, to be continued."""
        assert self.llm.tokenizer is not None
        conversation = Conversation(
            messages=chat_history,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return self.llm.tokenizer.render(conversation)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the template's source, by which the harness tells results apart."""
        if not chat_template:
            return ""
        if path := self._files.get("chat_template.jinja"):
            return read_bounded(path, MOST_BYTES, RequestError, "build the engine again").decode()
        return str(self._config.get("chat_template", ""))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-likelihood of each whole text, scored in windows, every token once."""
        pairs: list[Pair] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            for window in windows:
                pairs.append((None, *make_disjoint_window(window)))
                owners.append(index)
        sums = np.zeros(len(requests))
        np.add.at(sums, owners, [value for value, _ in self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm)])
        for request, value in zip(requests, sums.tolist(), strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return list(map(float, sums))

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the continuation of each context up to its first stop string; all are in flight together."""
        arguments = [request.args for request in requests]
        samplings = [self._sampling(options, self._seed + place) for place, (_, options) in enumerate(arguments)]
        prompts = [
            self.tok_encode(context)[-self._room(sampling) :]
            for (context, _), sampling in zip(arguments, samplings, strict=True)
        ]
        handles = self.llm.submit_all(prompts, samplings)
        try:
            progress = tqdm(handles, desc="Generating", disable=True if disable_tqdm else None)
            replies = [handle.result().text for handle in progress]
        finally:
            for handle in handles:
                handle.cancel()
        for argument, reply in zip(arguments, replies, strict=True):
            self.cache_hook.add_partial("generate_until", argument, reply)
        return replies

    def _loglikelihood_tokens(
        self, requests: Sequence[Pair], disable_tqdm: bool = False, **_: object
    ) -> list[tuple[float, bool]]:
        """Return the log-likelihood of each continuation, and whether greedy decoding gives the same tokens."""
        for key, context, continuation in requests:
            if not (context and 0 < len(continuation) <= self.max_length):
                raise RequestError(
                    f"loglikelihood: {key or 'tokens'}: got {len(context)} tokens of context and {len(continuation)} of "
                    f"continuation, expected at least one of each, and at most {self.max_length} of continuation"
                )
        scored: dict[tuple[int, ...], list[_Continuation]] = {}
        continuations = []
        for _key, context, continuation in requests:
            tokens = (*context, *continuation)[-(self.max_length + 1) :]  # a long context loses its beginning
            continuations.append(_Continuation(continuation, len(tokens) - 1))
            # continuations of one token after the same context share their logits
            scored.setdefault(tokens[:-1], []).append(continuations[-1])
        bar = tqdm(total=sum(map(len, scored)), desc="Scoring", unit="token", disable=True if disable_tqdm else None)
        with bar:
            self.llm.score(list(scored), [_taker(sharing, bar) for sharing in scored.values()])
        results = [(float(each.logprobs.sum()), bool(each.greedy.all())) for each in continuations]
        for (key, _context, _continuation), result in zip(requests, results, strict=True):
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, result)
        return results

    def _sampling(self, options: dict[str, Any], seed: int) -> Sampling:
        """Return a task's generation options as a Sampling."""
        values: dict[str, Any] = dict(normalize_gen_kwargs(options, self.max_gen_toks))
        if unknown := sorted(values.keys() - {*_HANDLED, *_SAMPLING}):
            known = ", ".join(sorted((*_HANDLED, *_SAMPLING)))
            raise RequestError(f"generation_kwargs: got {unknown[0]!r}, expected one of {known}")
        return Sampling(
            temperature=values.get("temperature", 1.0) if values["do_sample"] else 0.0,
            max_tokens=values["max_gen_toks"],
            stop=[text for text in values["until"] if text],
            seed=seed if values["do_sample"] else None,
            model_defaults=False,
            **{name: values[name] for name in _SAMPLING if name in values},
        )

    def _room(self, sampling: Sampling) -> int:
        """Return how many tokens of context leave room for the reply."""
        assert sampling.max_tokens is not None
        room = self.max_length - sampling.max_tokens
        if room < 1:
            raise RequestError(
                f"max_gen_toks: got {sampling.max_tokens}, expected less than {self.max_length}, the length of "
                f"context and reply; pass --gen_kwargs max_gen_toks=N or an engine with a larger --max-context"
            )
        return room

    def _special(self, name: str) -> int | None:
        token = self._config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        return None if text is None else self._core.token_to_id(str(text))


class _Continuation:
    """A continuation and its scores; created by EngineLM, and filled by the function that `_taker` returns.

    logprobs[n]: log-probability of each token.
    greedy[n]: whether the token is the most probable one.
    """

    def __init__(self, tokens: Sequence[int], end: int) -> None:
        self.tokens = np.array(tokens)
        self.first = end - len(tokens)  # the row that predicts its first token
        self.logprobs = np.empty(len(tokens))
        self.greedy = np.empty(len(tokens), np.bool_)


def _taker(sharing: Sequence[_Continuation], bar: tqdm[Any]) -> TakeLogits:
    """Return a function that turns one input's logits, piece by piece, into the scores of its continuations."""

    def take(position: int, logits: NDArray[np.float32]) -> None:
        bar.update(len(logits))
        for each in sharing:
            skipped = max(each.first - position, 0)
            rows = logits[skipped:]
            start = position + skipped - each.first
            for span in blocks(rows):
                part = rows[span]
                place = slice(start + span.start, start + span.start + len(part))
                targets = each.tokens[place]
                each.logprobs[place] = log_softmax(part)[np.arange(len(part)), targets]
                each.greedy[place] = part.argmax(axis=1) == targets

    return take


def main() -> int:
    """Run lm_eval's command, which knows this model."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except EnginewrightError as error:
        print(f"lm_eval: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
