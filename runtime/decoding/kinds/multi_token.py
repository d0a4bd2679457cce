"""Decoding with extra heads: several tokens for each request in a step, with or without verification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.decoding.causal import CausalProgram
from enginewright.runtime.decoding.decode_layout import DecodeLayout, layout_of
from enginewright.runtime.decoding.kind import DecodingKind
from enginewright.runtime.decoding.program import Emission, Feed, Program, SteadyBatch, Taken
from enginewright.runtime.decoding.sampler import choose_token, judge_drafts
from enginewright.runtime.decoding.scoring import ScoringProgram
from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.requests.completion import Logprobs
from enginewright.runtime.requests.request import Generation, Scoring

Ints = NDArray[np.int64]

TOKENS, COUNTS = "clp_tokens", "clp_counts"
"""The graph's outputs int64 [N, k], the greedy token and the guesses after it, and int64 [N], how many of them count."""


class MultiToken:
    """Decides the model's own token, and uses its heads' guesses at the following ones; created by KIND.

    Without verification, every guess becomes a token. The model's own choices, known one step later, serve only to count
    how many guesses it agrees with. With verification, the guesses are drafts: those that the model would have chosen, after
    the request's logits processors, become tokens, so that the output is the one that plain decoding gives. A request that
    samples, or asks for log-probabilities, gets one token a step; without verification, so does one that changes logits.
    """

    def __init__(self, pieces: Pieces, *, verify: bool) -> None:
        self.verify = verify
        self.pieces = pieces

    def start(self, request: Generation) -> Program:
        """Return the program of a new request."""
        return NextAndGuesses(request, self)

    def score(self, request: Scoring) -> Program:
        """Return the program of a text to score."""
        return ScoringProgram(request, self.pieces)

    def guesses_for(self, request: Generation) -> bool:
        """Whether the heads' guesses are of use to `request`."""
        return request.is_plain_greedy or (self.verify and request.is_greedy)

    def warn_of(self, request: Generation) -> str | None:
        """Name the options that leave the guesses unused."""
        if self.guesses_for(request):
            return None
        sampling = request.sampling
        fields = ", ".join(f"{name}={getattr(sampling, name)!r}" for name in sampling.beyond_greedy)
        return f"Sampling with {fields}: extra heads guess what greedy decoding gives, so such requests get one token a step"

    def steady(self, programs: Sequence[Program], rows: int) -> SteadyBatch | None:
        """Return the rows as arrays, where all of them are of this kind."""
        own = [program for program in programs if isinstance(program, NextAndGuesses)]
        return GuessedRows(own, rows) if len(own) == len(programs) else None


@dataclass(frozen=True, slots=True)
class _Results:
    """A step's outputs as lists, which are faster to read one by one."""

    logits: NDArray[np.float32]
    greedy: list[int]
    guessed: list[list[int]]
    counts: list[int]


def _read(outputs: Outputs) -> _Results:
    extra = outputs.extra
    return _Results(outputs.logits, outputs.greedy.tolist(), extra[TOKENS].tolist(), extra[COUNTS].tolist())


class NextAndGuesses(CausalProgram):
    """The program of a request that gets the model's token and guesses at the tokens after it.

    newest: the tokens of the next feed: the model's own token, then the `judged` ones.
    """

    def __init__(self, request: Generation, decoder: MultiToken) -> None:
        super().__init__(request, decoder.pieces)
        self._verify = decoder.verify
        self._guesses = decoder.guesses_for(request)
        self.newest: list[int] = []

    def take(self, feed: Feed, outputs: Outputs) -> Taken:
        """Choose the next tokens, once all known tokens have been read."""
        if not len(feed.wanted):
            return Taken(len(feed.tokens))
        brought = feed.tokens[len(feed.tokens) - self.judged :].tolist()
        tokens, rejected, logprobs = self.decide(brought, _read(outputs), 0)
        return Taken(len(feed.tokens) - rejected, tokens, logprobs)

    def decide(self, brought: list[int], results: _Results, start: int) -> tuple[list[int], int, Logprobs | None]:
        """Return the request's tokens, and how many drafts are rejected; sets the next drafts.

        brought: the judged tokens that the step had of this request.
        results: those of the step; the request's rows begin at `start`.
        """
        request, end = self.request, start + len(brought) + 1
        if not self._guesses:
            token, logprobs = choose_token(results.logits[start], results.greedy[start], request)
            self.newest = [token]
            return self.newest, 0, logprobs
        own = results.greedy[start:end]
        chosen = judge_drafts(results.logits[start:end], own, brought, request) if request.processors else own
        agreed = len(brought) if chosen[:-1] == brought else self._agreed(chosen, brought)
        request.count_guesses(len(brought), agreed)
        last = start + (agreed if self._verify else len(brought))
        guesses = results.guessed[last][1 : results.counts[last]]
        if not self._verify:
            tokens = self.newest = [own[-1], *guesses]
            self.judged = len(guesses)
            return tokens, 0, None
        tokens = [*brought[:agreed], chosen[agreed]]
        if guesses and not 0 <= min(guesses) <= max(guesses) < request.vocab:  # the request fails on it, and names it
            return [*tokens, next(each for each in guesses if not 0 <= each < request.vocab)], 0, None
        # guesses follow the model's own token, which a processor may have changed
        self.check_next(guesses if chosen[agreed] == results.greedy[last] else (), after=len(tokens))
        self.newest = [tokens[-1], *self.drafts]
        return tokens, len(brought) - agreed, None

    def _agreed(self, own: Sequence[int], guesses: Sequence[int]) -> int:
        """How many guesses are the model's own choices; with verification, only those before the first that is not."""
        same = [mine == guess for mine, guess in zip(own, guesses, strict=False)]
        return [*same, False].index(False) if self._verify else sum(same)


class GuessedRows:
    """A SteadyBatch of requests that get the model's token and guesses."""

    def __init__(self, programs: Sequence[NextAndGuesses], rows: int) -> None:
        self._programs = programs
        self._requests = [program.request for program in programs]
        self._rows = np.array([request.row for request in self._requests], np.int64)
        self._counts = np.zeros(rows, np.int64)
        self._layout: DecodeLayout | None = None
        for program in programs:
            known, became_known = program.request.length, program.judged - len(program.drafts)
            program.newest = [*program.request.tokens[known - 1 - became_known : known].tolist(), *program.drafts]
        self.reads_logits = not all(request.is_plain_greedy for request in self._requests)

    def layout(self) -> DecodeLayout:
        """Return each row's newest token and those that are judged."""
        self._counts[self._rows] = [len(program.newest) for program in self._programs]
        self._layout = layout_of(self._counts.tobytes())
        return self._layout

    def feed(self, held: Ints) -> tuple[Ints, Ints]:
        """Return each row's newest token and those that are judged."""
        assert self._layout is not None
        tokens = [token for program in self._programs for token in program.newest]
        return np.array(tokens, np.int64), held[self._layout.rows] + self._layout.places

    def take(self, outputs: Outputs) -> Emission:
        """Choose the next tokens of each row."""
        assert self._layout is not None
        results, start = _read(outputs), 0
        kept = self._layout.new_tokens
        tokens, logprobs = list[list[int]](), list[Logprobs | None]()
        for program in self._programs:
            count = len(program.newest)
            own, rejected, logprob = program.decide(program.newest[1:], results, start)
            if rejected:
                kept = kept.copy() if kept is self._layout.new_tokens else kept
                kept[program.request.row] -= rejected
            tokens.append(own)
            logprobs.append(logprob)
            start += count
        return Emission(kept, self._requests, tokens, logprobs)


def _width(decoding: Mapping[str, Any]) -> int:
    """Return k, the tokens of a step at most.

    Raises:
        ArtifactError: a setting has the wrong type, or k is below 2.
    """
    width, verify = decoding.get("k"), decoding.get("verify", False)
    if type(width) is not int or width < 2 or type(verify) is not bool:
        raise ArtifactError(
            f"manifest.json: decoding: got k {width!r} and verify {verify!r}, expected a whole number from 2 up, and true or false; "
            "build the engine again"
        )
    return width


def _open(decoding: Mapping[str, Any], pieces: Pieces) -> MultiToken:
    _width(decoding)
    return MultiToken(pieces, verify=decoding.get("verify", False))


KIND = DecodingKind(name="multi_token", open=_open, width=_width, outputs=(TOKENS, COUNTS))
