"""A request from submission to end: its prompt, its tokens so far, and its result."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.errors import ArtifactError, RequestError
from enginewright.runtime.requests.completion import Completion, Event, FinishReason, Logprobs, Token
from enginewright.runtime.requests.logits_processor import NO_TOKEN, NOT_FINITE, LogitsProcessor
from enginewright.runtime.requests.random_stream import Draws
from enginewright.runtime.requests.resolved_sampling import ResolvedSampling
from enginewright.runtime.text.text_stream import TextStream

Ints = NDArray[np.int64]
TakeLogits: TypeAlias = Callable[[int, NDArray[np.float32]], None]


class Request:
    """One request, from submission to end; created by the LLM, then used by the step loop's thread alone.

    tokens[:length] int64: prompt and generated tokens. While the request has a row, they are the row's part of the
        scheduler's table; see `move_to`.
    prompt_tokens: number of tokens in the prompt.
    reserve: the most tokens that the request can hold in the cache.
    row: its row, set by the scheduler; None while it waits.
    priority: of the requests that wait, those with lower numbers get rows first; set before submission.
    conditions: for each condition that the request chooses, the number of its entry, from 1, and the scale; set by the LLM.
    prefix_salt: text that tells keys of its prompt's spans from those of the same tokens under other conditions.
    shareable: how many of its prompt's tokens other requests may share; set by the LLM.
    reused: tokens that were in the cache when the request first got a row; None before; set by the scheduler.
    error: the error that ended the request, if one did.
    done: set when the request has ended, after `error` or the result is there.
    """

    priority = 0

    def __init__(self, prompt: Ints, reserve: int) -> None:
        self.tokens = prompt
        self.prompt_tokens = len(prompt)
        self.reserve = reserve
        self.row: int | None = None
        self.conditions: Mapping[str, tuple[int, float]] = {}
        self.prefix_salt = b""
        self.shareable = len(prompt)
        self.reused: int | None = None
        self.error: Exception | None = None
        self.done = threading.Event()

    @property
    def length(self) -> int:
        """Number of known tokens, prompt and output."""
        return self.prompt_tokens

    @property
    def policy_prompt(self) -> int:
        """Number of tokens in the prompt, as cache policies count it: 0 where a text is scored."""
        return self.prompt_tokens

    @property
    def conditions_begin(self) -> int:
        """Position of the first token to which conditions of decoded tokens apply: the prompt's last token."""
        return self.prompt_tokens - 1

    def move_to(self, row: int, buffer: Ints) -> None:
        """Move into `row`: copy the known tokens to the start of `buffer`, and keep the tokens there from now on.

        buffer[context] int64: the row's part of the scheduler's table. The request writes each token that it receives to
        buffer[length]; the scheduler reads the tokens there, and writes nothing but drafts, after them.
        """
        buffer[: self.length] = self.tokens[: self.length]
        self.tokens, self.row = buffer, row

    def move_out(self) -> None:
        """Leave the row, with the known tokens in an array of the request's own."""
        self.tokens, self.row = self.tokens[: self.length].copy(), None

    def fail(self, error: BaseException) -> None:
        """End with `error`, which the owner's next call raises."""
        self.error = as_error(error)
        self.done.set()

    def cancel(self) -> None:
        """End now, because the owner wants it."""
        self.done.set()


class Scoring(Request):
    """A request for the logits of every prompt position.

    take: called on the step loop's thread as take(position, logits[n, vocab]), piece by piece in order of position. The
        logits are valid only during the call. An exception that it raises ends the request.
    """

    def __init__(self, prompt: Ints, take: TakeLogits) -> None:
        super().__init__(prompt, reserve=len(prompt))
        self._take = take
        self._taken = 0

    @property
    def policy_prompt(self) -> int:
        return 0

    @property
    def conditions_begin(self) -> int:
        return 0

    def receive(self, position: int, logits: NDArray[np.float32]) -> bool:
        """Take the logits from `position` on; return True when these are the last."""
        fresh = self._taken - position  # above 0 after a preemption, when first positions are computed again
        if fresh < len(logits):
            self._take(self._taken, logits[fresh:])
            self._taken = position + len(logits)
        if self._taken == self.prompt_tokens:
            self.done.set()
        return self.done.is_set()

    def cancel(self) -> None:
        self.fail(RequestError("logits: cancelled before the end, because the LLM was closed"))


class Generation(Request):
    """A request for new tokens.

    text: makes the text of its tokens; None where the engine has no tokenizer, and once the text has ended.
    deliver: called with each Token as it comes, then with the Completion or the error. It fills `events`, unless the LLM
        sets another one before submission. What it raises ends the request.
    vocab: the vocabulary's size; every token is below it.
    processors: what changes its logits before a token is chosen.
    processor_error: what one of them raised; set by the sampler.
    """

    def __init__(
        self,
        prompt: Ints,
        sampling: ResolvedSampling,
        *,
        vocab: int,
        limit: int,
        ends: frozenset[int],
        text: TextStream | None,
        processors: Sequence[LogitsProcessor] = (),
    ) -> None:
        super().__init__(prompt, reserve=len(prompt) + limit - 1)
        self.sampling = sampling
        self.vocab = vocab
        self.is_plain_greedy = sampling.is_plain_greedy
        self.seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self.draws = Draws(self.seed)
        self.generated: list[int] = []
        self.events: SimpleQueue[Event] = SimpleQueue()
        self.deliver: Callable[[Event], None] = self.events.put
        self.completion: Completion | None = None
        self.processors = processors
        self.processor_error: BaseException | None = None
        self._guessed = self._agreed = 0
        self._limit = limit
        self._ends = ends
        self._text = text
        self._pieces: list[str] = []
        self._logprobs: list[Logprobs] = []

    @property
    def length(self) -> int:
        return self.prompt_tokens + len(self.generated)

    def receive(self, tokens: Sequence[int], logprobs: Logprobs | None = None) -> bool:
        """Take the next tokens, up to the request's last one; return True when that is among them.

        NOT_FINITE and NO_TOKEN stand for a token that could not be chosen, and end the request with an error. So does any other
        number that the vocabulary does not have, before it can get into a step.

        logprobs: log-probabilities where there is a single token and the request asks for them.
        """
        position = self.length
        for token in tokens:
            if not 0 <= token < self.vocab:
                self.fail(self._explain(token))
                return True
            self.tokens[position] = token
            position += 1
            self.generated.append(token)
            if logprobs is not None:
                self._logprobs.append(logprobs)
            try:
                text, reason = self._read(token)
            except BaseException as error:  # of any kind, also a panic of a library: other requests must go on
                self.fail(error)
                return True
            self._pieces.append(text)
            if not self._hand_over(Token(token, text, logprobs)):
                self.done.set()
                return True
            if reason is not None:
                self._finish(reason)
                return True
        return False

    @property
    def is_greedy(self) -> bool:
        """Whether its token is that of the largest logit, after its processors, and nothing but tokens is asked for."""
        return self.sampling.temperature == 0 and self.sampling.logprobs is None

    @property
    def tokens_left(self) -> int:
        """Number of tokens that may still come."""
        return self._limit - len(self.generated)

    def count_guesses(self, guessed: int, agreed: int) -> None:
        """Count guesses that the model has judged, and those among them that it agrees with."""
        self._guessed += guessed
        self._agreed += agreed

    def _explain(self, token: int) -> Exception:
        """Return the error of a request for which no token could be chosen."""
        if token == NO_TOKEN:
            error = RequestError(
                f"Sampling.logits_processors: got an error from a processor ({describe(self.processor_error)}); other requests "
                "go on"
                if self.processor_error is not None
                else "Sampling.logits_processors: got logits of which none is finite, expected at least one token that is "
                "allowed; check what the processors, or logit_bias, rule out"
            )
            error.__cause__ = self.processor_error
            return error
        if token != NOT_FINITE:
            return ArtifactError(
                f"decoder graph: got token id {token} from it, expected 0 to {self.vocab - 1}, as the manifest's vocab_size says; "
                "build the engine again"
            )
        return ArtifactError(
            "logits: got values that are not finite, expected numbers; the engine's weights are damaged, or "
            "too large for its precision: compare it with its model by `enginewright check`"
        )

    def _read(self, token: int) -> tuple[str, FinishReason | None]:
        """Return the text that `token` makes certain, and why it ends the request, if it does."""
        text, found = "", False
        if self._text is not None and token not in self._ends:
            text, found = self._text.push(token)
        if found:
            self._text = None  # the text that it holds back comes after the stop string
            return text, "stop"
        if token in self._ends:
            return self._flush(), "stop"
        return (text + self._flush(), "length") if len(self.generated) == self._limit else (text, None)

    def cancel(self) -> None:
        try:
            self._pieces.append(self._flush())
        except BaseException as error:  # of any kind, as in `receive`
            self.fail(error)
        else:
            self._finish("cancelled")

    def fail(self, error: BaseException) -> None:
        known = as_error(error)
        super().fail(known)
        self._hand_over(known)

    def _hand_over(self, event: Event) -> bool:
        """Deliver `event`; False where that raises, which becomes the request's error. Nothing is delivered after it."""
        try:
            self.deliver(event)
        except BaseException as error:  # of any kind: it is the owner's own, and other requests must go on
            self.deliver = _drop
            self.error = self.error or as_error(error)
            return False
        return True

    def _flush(self) -> str:
        """Return the text that is still held back, up to a stop string in it."""
        return "" if self._text is None else self._text.flush()

    def _finish(self, reason: FinishReason) -> None:
        self.completion = Completion(
            text="".join(self._pieces),
            token_ids=tuple(self.generated),
            finish_reason=reason,
            prompt_tokens=self.prompt_tokens,
            logprobs=None if self.sampling.logprobs is None else tuple(self._logprobs),
            seed=self.seed,
            reused_tokens=self.reused or 0,
            guessed_tokens=self._guessed,
            agreed_tokens=self._agreed,
        )
        self._hand_over(self.completion)
        self.done.set()


def as_error(error: BaseException) -> Exception:
    """Return `error` if it is an Exception, else an error of ours: a SystemExit must not end the thread that waits for it."""
    if isinstance(error, Exception):
        return error
    known = RequestError(
        f"request: ended by {describe(error)}, which its own callback or processor, or a library, raised while the engine ran; other "
        "requests go on"
    )
    known.__cause__ = error
    return known


def describe(error: BaseException) -> str:
    """Return the error's own representation; where that raises too, the name of its class."""
    try:
        return repr(error)
    except BaseException:  # of any kind: the class may be the user's own
        return type(error).__name__


def _drop(_: Event) -> None:
    """Deliver nothing more: the owner has failed."""
