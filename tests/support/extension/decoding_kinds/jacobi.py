"""A sample decoding kind: Jacobi iteration, which guesses a block of tokens and revises them until the model agrees.

Each step brings the newest token and the guesses after it. The model's own choices become the next guesses, and the leading
ones that it agrees with become tokens. So greedy output is that of plain decoding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from enginewright.runtime.backends.session import Outputs
from enginewright.runtime.cache.pieces import Pieces
from enginewright.runtime.decoding.causal import CausalProgram
from enginewright.runtime.decoding.kind import DecodingKind
from enginewright.runtime.decoding.program import Feed, Program, SteadyBatch, Taken
from enginewright.runtime.decoding.sampler import choose_token, judge_drafts
from enginewright.runtime.decoding.scoring import ScoringProgram
from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.requests.request import Generation, Scoring


class Jacobi:
    """The kind, opened for an engine; `block` is the number of tokens that a row brings."""

    def __init__(self, pieces: Pieces, block: int) -> None:
        self._pieces, self._block = pieces, block

    def start(self, request: Generation) -> Program:
        """Return the program of a new request."""
        return RevisedBlock(request, self._pieces, self._block)

    def score(self, request: Scoring) -> Program:
        """Return the program of a text to score."""
        return ScoringProgram(request, self._pieces)

    def warn_of(self, request: Generation) -> str | None:
        """Say that only greedy requests are guessed for."""
        return None if request.is_greedy else "Jacobi iteration guesses for greedy requests alone"

    def steady(self, programs: Sequence[Program], rows: int) -> SteadyBatch | None:
        """Let the programs run one by one."""
        return None


class RevisedBlock(CausalProgram):
    """The program of a request whose guesses are revised in each step."""

    def __init__(self, request: Generation, pieces: Pieces, block: int) -> None:
        super().__init__(request, pieces)
        self._block = block

    def take(self, feed: Feed, outputs: Outputs) -> Taken:
        """Take the guesses that the model agrees with, and its choices as the next guesses."""
        if not len(feed.wanted):
            return Taken(len(feed.tokens))
        request = self.request
        if not request.is_greedy:
            token, logprobs = choose_token(outputs.logits[0], int(outputs.greedy[0]), request)
            return Taken(len(feed.tokens), [token], logprobs)
        brought, own = list(self.drafts), outputs.greedy.tolist()
        chosen = judge_drafts(outputs.logits, own, brought, request) if request.processors else own
        agreed = next((i for i, guess in enumerate(brought) if chosen[i] != guess), len(brought))
        request.count_guesses(len(brought), agreed)
        tokens = [*brought[:agreed], chosen[agreed]]
        guesses = [*own[agreed + 1 :], *([tokens[-1]] * self._block)][: self._block - 1]
        self.check_next(guesses, after=len(tokens))
        return Taken(len(feed.tokens) - len(brought) + agreed, tokens)


def _block(decoding: Mapping[str, Any]) -> int:
    block = decoding.get("k")
    if type(block) is not int or block < 1:
        raise ArtifactError(f"manifest.json: decoding: got k {block!r}, expected a whole number from 1 up")
    return block


KIND = DecodingKind(name="jacobi", open=lambda decoding, pieces: Jacobi(pieces, _block(decoding)), width=_block)
