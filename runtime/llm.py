"""The Python interface of a loaded engine: prompts in, tokens, completions and logits out."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Manifest
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.decoding.processor_kind import check_switched_off, open_processors
from enginewright.runtime.errors import RequestError
from enginewright.runtime.requests.completion import Completion, Event, Token
from enginewright.runtime.requests.request import Generation, Scoring, TakeLogits
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling, default_limit, limit_new_tokens, resolve
from enginewright.runtime.requests.sampling import Sampling
from enginewright.runtime.requests.token_ids import check_token_ids
from enginewright.runtime.scheduling.condition_store import ConditionStore
from enginewright.runtime.scheduling.handle import Handle, wait_for
from enginewright.runtime.scheduling.step_loop import StepLoop
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.text_stream import TextStream, open_text
from enginewright.runtime.text.tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[int]
Message: TypeAlias = Mapping[str, Any]


class LLM:
    """A loaded engine; created by `load`, and closed by `close` or at the end of a with block.

    Several threads may call it at once.

    manifest: the manifest of the engine directory.
    tokenizer: the engine's tokenizer; None if the checkpoint had none.
    loop: the step loop that serves the requests.
    capacity: the sizes that the engine was loaded with.
    """

    def __init__(self, manifest: Manifest, tokenizer: Tokenizer | None, loop: StepLoop, capacity: Capacity) -> None:
        self.manifest = manifest
        self.tokenizer = tokenizer
        self.loop = loop
        self.capacity = capacity
        self._tables = loop.scheduler.tables
        self._conditions = ConditionStore(manifest, loop)
        self._has_warned = False
        self._close = weakref.finalize(self, loop.close)  # also runs at interpreter exit

    def __repr__(self) -> str:
        model, sizes = self.manifest.model, self.capacity
        weights = self.manifest.weights.get("kind", self.manifest.dtype)
        return (
            f"<LLM {self.manifest.name}: {model.family}, {model.parameters / 1e6:.4g}M parameters, {weights} weights, "
            f"{self.manifest.cache.kind} cache, up to {sizes.rows} requests of {sizes.context} tokens>"
        )

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Completion]:
        """Return one completion for each prompt, in the order of the prompts.

        prompts: one prompt, as text or as a list of token ids, or a list of prompts.
        sampling: one Sampling for all prompts, or one for each.

        Raises:
            RequestError: this engine cannot serve a prompt or parameter; then no request runs.
        """
        handles = self.submit_all(prompts, sampling)
        try:
            return [handle.result() for handle in handles]
        finally:
            for handle in handles:  # some still run if one has failed, or if the caller is interrupted
                handle.cancel()

    def chat(
        self,
        messages: Sequence[Message],
        sampling: Sampling | None = None,
        *,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[dict[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | str = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> Completion:
        """Return the answer to a conversation, or the rest of its last message.

        The parameters are those of `apply_chat_template`.
        """
        prompt = self.apply_chat_template(
            messages,
            tools,
            documents,
            chat_template=chat_template,
            add_generation_prompt=not continue_final_message,
            continue_final_message=continue_final_message,
            chat_template_kwargs=chat_template_kwargs,
        )
        return self.generate([prompt], sampling)[0]

    def stream(self, prompt: Prompt, sampling: Sampling | None = None) -> Iterator[Token]:
        """Yield the tokens as they come; to leave the loop early cancels the request."""
        handle = self.submit(prompt, sampling)
        return _cancelling(handle)

    def submit(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        priority: int = 0,
        on_event: Callable[[Event], None] | None = None,
    ) -> Handle:
        """Queue a prompt and return at once.

        priority: of the requests that wait, those with lower numbers run first.
        on_event: called with each Token, then with the Completion or the error, instead of iteration over the handle. It is
            called on the step loop's thread, and must not wait. What it raises ends the request, and `result` raises it.
        """
        request = self._generation(prompt, sampling)
        request.priority = priority
        if on_event is not None:
            request.deliver = on_event
            request.events.put(RequestError("Handle: got an iteration, but the tokens go to on_event; use either"))
        self.loop.submit(self.loop.scheduler.decoder.start(request))
        return Handle(self, self.loop, request)

    def submit_all(
        self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> list[Handle]:
        """Queue prompts for the same step, and return at once; the parameters are those of `generate`."""
        batch = _as_batch(prompts)
        samplings = [sampling] * len(batch) if sampling is None or isinstance(sampling, Sampling) else list(sampling)
        if len(samplings) != len(batch):
            raise RequestError(
                f"generate: got {len(samplings)} samplings for {len(batch)} prompts, expected one for each"
            )
        requests: list[Generation] = []
        try:
            requests += (self._generation(prompt, each) for prompt, each in zip(batch, samplings, strict=True))
            self.loop.submit(*map(self.loop.scheduler.decoder.start, requests))
        except BaseException:
            for request in requests:  # those before the one that is refused; what they have chosen is free again
                request.done.set()
            raise
        return [Handle(self, self.loop, request) for request in requests]

    def logits(self, token_ids: Sequence[int], sampling: Sampling | None = None) -> NDArray[np.float32]:
        """Return float32 [n, vocab]: row i is the model's prediction after token_ids[: i + 1].

        sampling: of which only the vector and the conditions count, as in `score`.
        """
        prompt = self._check_scored(token_ids)
        result = np.empty((len(prompt), self.manifest.model.vocab_size), np.float32)

        def keep(position: int, logits: NDArray[np.float32]) -> None:
            result[position : position + len(logits)] = logits

        self.score([prompt.tolist()], [keep], sampling)
        return result

    def score(
        self, texts: Sequence[Sequence[int]], takes: Sequence[TakeLogits], sampling: Sampling | None = None
    ) -> None:
        """Compute the teacher-forced logits of texts, and hand them out piece by piece, so that none is held whole.

        With a KVarN cache, a token sees what it would see if the text had been generated: every full tile before its own is
        encoded.

        texts: token ids of each text; all texts are in flight together.
        takes[i]: called as take(position, logits[n, vocab]) for text i, in order of position; logits[k] predicts the token
            after texts[i][: position + k + 1]. It runs on the step loop's thread, which waits for it. The logits are valid
            only during the call. An exception that it raises is raised by `score`.

        sampling: of which only the vector and the conditions count, for every token of every text; None: there are none.

        Raises:
            RequestError: this engine cannot take a text; then none runs.
        """
        requests = [Scoring(self._check_scored(tokens), take) for tokens, take in zip(texts, takes, strict=True)]
        for request in requests:
            self._conditions.apply(sampling or Sampling(), request)
        self.loop.submit(*(self.loop.scheduler.decoder.score(request) for request in requests))
        try:
            for request in requests:
                wait_for(self.loop, request)
        finally:
            self.loop.cancel(*requests)

    def apply_chat_template(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[dict[str, Any]] | None = None,
        *,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool | str = False,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation as a prompt, those that transformers' method of this name gives.

        messages: each of the form `{"role": ..., "content": ...}`, with whatever else the template reads.
        tools: JSON schemas of functions that the model may call.
        documents: objects that the model is to answer from, mostly with "title" and "text".
        chat_template: name of one of the engine's templates, or the text of another; by default "tool_use" where there are
            tools and such a template, else "default".
        add_generation_prompt: whether the prompt ends with the opening of an answer.
        continue_final_message: whether the prompt ends within the last message, for the model to go on with: True for its
            content, or the name of its key.
        chat_template_kwargs: variables of the template, such as enable_thinking.

        Raises:
            RequestError: the template fails, or does not read the tools, the documents or a variable.
        """
        conversation = Conversation(
            messages=messages,
            tools=tools,
            documents=documents,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            chat_template_kwargs={} if chat_template_kwargs is None else chat_template_kwargs,
        )
        return self._need_tokenizer().chat(conversation)

    def add_condition(self, condition: str, entry: str, values: Mapping[str, NDArray[Any]]) -> None:
        """Add an entry that requests can name in `Sampling.conditions`, or replace its values.

        Requests that run with the entry go on with the new values.

        condition: one of `manifest.conditions`.
        values: an array for each of the condition's tensors, by name, of the tensor's shape.

        Raises:
            RequestError: the engine has no such condition or no room for another entry, or the arrays are others.
        """
        self._conditions.add(condition, entry, values)

    def drop_condition(self, condition: str, entry: str) -> None:
        """Forget an entry, so that another can have its place.

        Raises:
            RequestError: the engine has no such condition or entry, or a request that has not ended uses it.
        """
        self._conditions.drop(condition, entry)

    @property
    def vectors(self) -> tuple[str, ...]:
        """The names that `Sampling.vector` may have."""
        return self._conditions.entries.names(self._conditions.entries.of_kind("vector", "LLM.vectors"))

    def load_vector(self, path: str | Path, name: str | None = None) -> str:
        """Add the vectors of a folder that `enginewright tune` wrote, or replace those of the name, and return the name.

        It may be called while requests run: the files are read on the calling thread, and the values written between two
        steps. Requests name it in `Sampling.vector`.

        path: the folder, with vectors.safetensors and task.json.
        name: that requests use; None: the task's own.

        Raises:
            RequestError: the engine adds no vectors, or holds as many as it can.
            ArtifactError: the files are damaged, or made on another model, or do not fit the engine's layers.
        """
        return self._conditions.load_vector(Path(path), name)

    def drop_vector(self, name: str) -> None:
        """Forget a vector; RequestError where there is none of the name, or a request that has not ended uses it."""
        self._conditions.drop(self._conditions.entries.of_kind("vector", "drop_vector"), name)

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that `Sampling.adapter` may have."""
        return self._conditions.entries.names(self._conditions.entries.of_kind("adapter", "LLM.adapters"))

    def load_adapter(self, path: str | Path, name: str | None = None) -> str:
        """Add a LoRA adapter in PEFT's format, or replace that of the name, and return the name.

        It may be called while requests run: the files are read on the calling thread, and the values written between two
        steps. Requests name it in `Sampling.adapter`.

        path: the folder, with adapter_config.json and adapter_model.safetensors.
        name: that requests use; None: the folder's own.

        Raises:
            RequestError: the engine adds no adapters, or holds as many as it can.
            ArtifactError: the files are damaged, or do not fit the engine's layers or its rank.
            UnsupportedError: the adapter is more than factors of linear layers, such as DoRA.
        """
        return self._conditions.load_adapter(Path(path), name)

    def drop_adapter(self, name: str) -> None:
        """Forget an adapter; RequestError where there is none of the name, or a request that has not ended uses it."""
        self._conditions.drop(self._conditions.entries.of_kind("adapter", "drop_adapter"), name)

    def close(self) -> None:
        """Cancel all requests and stop; may be called again."""
        self._close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _need_tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise RequestError(
                f"{self.manifest.name}: got text, but the engine has no tokenizer, as its checkpoint has none; pass token ids to "
                "LLM.generate, or add a tokenizer to the checkpoint and build again"
            )
        return self.tokenizer

    def _generation(self, prompt: Prompt, sampling: Sampling | None) -> Generation:
        """Return the request, after checking everything that could keep it from being served."""
        self.loop.check_process()
        wanted = sampling or Sampling()
        check_switched_off(wanted)
        sampling = resolve(wanted, self.manifest.generation)
        vocab = self.manifest.model.vocab_size
        ids = check_token_ids(self._need_tokenizer().encode(prompt) if isinstance(prompt, str) else prompt, vocab)
        for name in ("stop_token_ids", "logit_bias"):
            if outside := [token for token in getattr(sampling, name) if token >= vocab]:
                raise RequestError(f"Sampling.{name}: got token id {outside[0]}, expected ids below {vocab}")
        ends = frozenset(sampling.stop_token_ids)
        if not sampling.ignore_eos:
            ends |= frozenset(self.manifest.model.eos_token_ids)
        longest = self._tables.longest_for(len(ids))
        limit = limit_new_tokens(len(ids), sampling.max_tokens, self.capacity.context, longest)
        limit = default_limit(sampling, self.manifest.generation, prompt=len(ids), limit=limit)
        request = Generation(
            ids,
            sampling,
            vocab=vocab,
            limit=limit,
            ends=ends,
            text=self._text_after(ids, sampling),
            processors=open_processors(sampling, ids, vocab),
        )
        self._conditions.apply(sampling, request)
        self._warn_of(request)
        return request

    def _text_after(self, prompt: NDArray[np.int64], sampling: ResolvedSampling) -> TextStream | None:
        """Return what makes the text of a request's tokens; None where the engine has no tokenizer."""
        if self.tokenizer is not None:
            return open_text(self.tokenizer, prompt, sampling.stop, skip_special_tokens=sampling.skip_special_tokens)
        if sampling.stop:
            raise RequestError("Sampling.stop: the engine has no tokenizer; use stop_token_ids instead")
        if not sampling.skip_special_tokens:
            raise RequestError(
                "Sampling.skip_special_tokens: got False, but the engine has no tokenizer, and gives no text"
            )
        return None

    def _warn_of(self, request: Generation) -> None:
        """Warn once of a request that this engine's decoding kind serves more slowly than others."""
        if not self._has_warned and (reason := self.loop.scheduler.decoder.warn_of(request)) is not None:
            self._has_warned = True
            warnings.warn(f"{self.manifest.name}: {reason}; this is said once", stacklevel=4)

    def _check_scored(self, token_ids: Sequence[int]) -> NDArray[np.int64]:
        """Return the token ids as an array, after checking that they fit."""
        self.loop.check_process()
        limit = min(self.capacity.context, self._tables.longest_for(0))
        if len(token_ids) > limit:
            raise RequestError(f"logits: got {len(token_ids)} tokens, expected at most {limit}; score fewer at a time")
        return check_token_ids(token_ids, self.manifest.model.vocab_size)


def _cancelling(handle: Handle) -> Iterator[Token]:
    try:
        yield from handle
    finally:
        handle.cancel()


def _as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """Return a list of prompts, also where a single one is given."""
    if isinstance(prompts, str):
        return [prompts]
    if len(prompts) and all(isinstance(item, (int, np.integer)) for item in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]
