"""The scheduler: gives requests rows, and chooses the tokens of the next step."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.prefix_cache import span_keys
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.decoding.decoder import Continuation, Emission
from enginewright.runtime.requests.request import Generation, Request, Scoring
from enginewright.runtime.scheduling.decode_layout import layout_of
from enginewright.runtime.scheduling.snapshot import SchedulerSnapshot
from enginewright.runtime.scheduling.step import Ints, Step


class Scheduler:
    """Keeps the requests in order of arrival, their rows, and the running ones' tokens; created by `load`.

    Each row has known tokens, prompt and output, some of which are in the cache already. The others are pending: one for a
    row that decodes, more for a prompt, or for a preempted request that comes back. Each step takes the pending token of
    every decoding row, and is then filled up to `step_tokens` with chunks of the longer rows, oldest request first.

    waiting: requests without a row, in the order in which they get one.
    running: requests that have a row, oldest first.
    tables: the tiles of each row; the scheduler alone changes them.
    """

    def __init__(self, tables: TileTables, capacity: Capacity) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.tables = tables
        self._capacity = capacity
        # known tokens of each row, then its drafts
        self._tokens: Ints = np.zeros((capacity.rows, capacity.context), np.int64)
        self._known: Ints = np.zeros(capacity.rows, np.int64)  # number of known tokens of each row
        self._drafts: Ints = np.zeros(capacity.rows, np.int64)  # number of drafts of each row
        # how many tokens at each row's end the model judges in the next step: its drafts, or guesses that became tokens
        self._drafts_to_check: Ints = np.zeros(capacity.rows, np.int64)
        self._requests: list[Request | None] = [None] * capacity.rows
        self._repeatable: Step | None = None  # the last step, where the same rows decode in the next one
        self._last_tokens: Ints = np.zeros(0, np.int64)  # the tokens that it decided, one for each row
        self._tokens_with_tiles = 0  # how many more tokens each row can take before one needs a tile

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to run."""
        return not self.running and not self.waiting

    def live(self) -> list[Request]:
        """Every request that has not ended, oldest first."""
        return [*self.running, *self.waiting]

    def snapshot(self) -> SchedulerSnapshot:
        """Return the state as it is now.

        May be called from any thread. While a step is being scheduled or committed, its parts may be of different moments.
        """
        return SchedulerSnapshot(
            waiting=len(self.waiting),
            running=len(self.running),
            rows_in_use=tuple(row for row, holder in enumerate(list(self._requests)) if holder is not None),
            known=self._known.copy(),
            held=self.tables.held.copy(),
            drafts=self._drafts.copy(),
            free_tiles=self.tables.free_tiles,
            cache_use=self.tables.use,
        )

    def submit(self, request: Request) -> None:
        """Queue `request` after those of its priority; it has been checked that it fits into the cache on its own."""
        if self._capacity.span and isinstance(request, Generation):  # a Scoring computes every position anyway
            request.spans = span_keys(request.tokens, self._capacity.span)
        place = len(self.waiting)
        while place and self.waiting[place - 1].priority > request.priority:
            place -= 1
        self.waiting.insert(place, request)

    def remove(self, request: Request) -> None:
        """Forget `request`, whether it waits or runs; its row and tiles are free for the next step."""
        if request.row is not None:
            self._vacate(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self) -> Step:
        """Return the next step, with tiles for all of its tokens."""
        self._admit()
        if self._repeatable is not None and (step := self._continue(self._repeatable)) is not None:
            return step
        new_tokens = self._divide_budget()
        while not self.tables.grow(new_tokens):
            newest = self.running[-1]
            assert newest.row is not None and len(self.running) > 1, "a request was accepted that cannot fit alone"
            new_tokens[newest.row] = 0
            self._preempt(newest)
        return self._pack(new_tokens)

    def commit(self, step: Step, emission: Emission) -> None:
        """Count the step's tokens, without rejected drafts, as held in the cache, and the tokens that it decided as known.

        The requests themselves append the decided tokens, in `Request.receive`.
        """
        continuations = emission.continuations
        self.tables.advance(
            step.new_tokens if continuations is None else self._commit_continuations(step, continuations)
        )
        for request in step.prefilling:
            self._publish(request)
        if continuations is None:
            self._known += step.ready
            self._last_tokens = emission.tokens

    def _commit_continuations(self, step: Step, continuations: list[Continuation]) -> Ints:
        """Record each sampled row's new tokens and drafts; return how many of the step's tokens each row keeps."""
        kept = step.new_tokens
        for row, each in zip(step.rows.tolist(), continuations, strict=True):
            if rejected := int(self._drafts[row]) - each.accepted:
                kept = kept.copy() if kept is step.new_tokens else kept
                kept[row] -= rejected
            end = int(self._known[row]) + len(each.tokens)
            drafts = self._checkable_drafts(end, each.drafts)
            if drafts:
                self._tokens[row, end : end + len(drafts)] = drafts
            self._known[row], self._drafts[row] = end, len(drafts)
            self._drafts_to_check[row] = len(drafts) or len(each.tokens) - 1 - each.accepted
        return kept

    def _checkable_drafts(self, known: int, drafts: list[int]) -> list[int]:
        """Return as many of the drafts after `known` tokens as one step can check.

        A draft must be easy to take back, and must see what it would see if tokens came one by one. Where tiles are encoded,
        this holds for drafts before a tile's last token: the step that contains that token encodes the tile.
        """
        if not self._capacity.chunk:
            return drafts
        size = self.tables.tile_tokens
        return drafts[: max(size - 2 - (known - 1) % size, 0)]

    def _admit(self) -> None:
        """Give rows to waiting requests, in their order, while there are tiles for them and for all running requests."""
        while self.waiting and len(self.running) < self._capacity.rows:
            request = self.waiting[0]
            keys: list[bytes] = []
            if isinstance(request, Generation) and request.spans:  # one token must be left to compute
                keys = request.spans[: (request.length - 1) // self._capacity.span]
            row = self.tables.pick_row([i for i, holder in enumerate(self._requests) if holder is None], keys)
            self._known[row] = request.length
            reused = self.tables.admit(row, keys, self._known, _prompt_of(request))
            if reused is None:
                self._known[row] = 0
                return
            if isinstance(request, Generation) and request.spans:
                request.note_reuse(reused, self._capacity.span)
            request.move_to(row, self._tokens[row])
            self._requests[row] = request
            self.running.append(self.waiting.popleft())
            self._repeatable = None

    def _publish(self, request: Generation) -> None:
        """Let other requests find the spans of the prompt that have been computed by now."""
        assert request.row is not None
        computed = int(self.tables.held[request.row]) // self._capacity.span
        while request.published < min(computed, len(request.spans)):
            is_new = self.tables.publish(request.row, request.spans[request.published])
            request.published = request.published + 1 if is_new else len(request.spans)

    def _divide_budget(self) -> Ints:
        """Return how many of its pending tokens each row computes in the next step, int64 [rows]."""
        pending = self._known + self._drafts - self.tables.held
        is_decoding = pending <= self._drafts_to_check + 1
        new_tokens = np.where(is_decoding, pending, 0)
        budget = self._capacity.step_tokens - int(new_tokens.sum())
        scores = self._capacity.logit_rows - self._capacity.rows * self._capacity.width
        for request in () if is_decoding.all() else self.running:
            if new_tokens[request.row] or not budget:
                continue
            limit = min(budget, scores) if isinstance(request, Scoring) else budget
            chunk = self._chunk_size(request, int(pending[request.row]), limit)
            if isinstance(request, Scoring):
                scores -= chunk
            new_tokens[request.row] = chunk
            budget -= chunk
        return new_tokens

    def _chunk_size(self, request: Request, pending: int, limit: int) -> int:
        """Return how many of a row's `pending` tokens go into the next step, which has room for `limit` more.

        Where tiles are encoded, a prompt is cut at whole chunks. Tokens that are scored, or that were generated before a
        preemption, are cut at whole tiles, so that each token sees what it sees when tokens come one by one.
        """
        if not self._capacity.chunk:
            assert request.row is not None
            return min(pending, limit, self.tables.tokens_before_due(request.row))
        held, size = int(self.tables.held[request.row]), self.tables.tile_tokens
        if isinstance(request, Generation) and held < request.prompt_tokens:
            size, pending = self._capacity.chunk, request.prompt_tokens - held
        chunk = min(pending, size - held % size)
        return chunk if chunk <= limit else 0

    def _pack(self, new_tokens: Ints) -> Step:
        """Return the step that computes the next `new_tokens[row]` pending tokens of each row."""
        held = self.tables.held
        starts = np.zeros(len(new_tokens) + 1, np.int32)
        np.cumsum(new_tokens, out=starts[1:])
        row_of = np.repeat(np.arange(len(new_tokens)), new_tokens)
        positions = np.arange(len(row_of)) + (held - starts[:-1])[row_of]
        ready, rows, sampled = self._decided_rows(new_tokens)
        drafts: list[list[int]] = []
        wanted = [starts[1:][rows].astype(np.int64) - 1]
        if self._capacity.width > 1:
            ends = (held + new_tokens)[rows].tolist()
            checked = self._drafts_to_check[rows].tolist()
            drafts = [
                self._tokens[row, end - count : end].tolist()
                for row, end, count in zip(rows.tolist(), ends, checked, strict=True)
            ]
            wanted = [
                np.arange(last - len(own), last + 1) for own, last in zip(drafts, wanted[0].tolist(), strict=True)
            ]
        scored, scored_rows = self._scored_rows(new_tokens, starts)
        sample_rows = np.concatenate([*wanted, *scored_rows]) if wanted or scored_rows else np.zeros(0, np.int64)
        if not len(sample_rows):
            sample_rows = np.zeros(1, np.int64)  # no token is decided; a graph need not accept zero rows
        packed = PackedStep(
            self._tokens[row_of, positions],
            positions,
            starts,
            sample_rows,
            tuple(self.tables.sink_copies),
            reads_logits=bool(scored) or not all(request.is_plain_greedy for request in sampled),
        )
        self.tables.sink_copies.clear()
        prefilling = [
            r for r in self.running if isinstance(r, Generation) and r.published < len(r.spans) and new_tokens[r.row]
        ]
        step = Step(packed, new_tokens, ready, rows, sampled, scored, prefilling, drafts)
        all_decode = len(sampled) == len(self.running) and (self._capacity.width > 1 or len(row_of) == len(sampled))
        self._repeatable = step if all_decode else None
        self._tokens_with_tiles = 0
        return step

    def _decided_rows(self, new_tokens: Ints) -> tuple[Ints, Ints, list[Generation]]:
        """Return the rows that get their next token in this step: as 0 or 1 for every row, as row numbers, as requests."""
        is_ready = (new_tokens > 0) & (self.tables.held + new_tokens == self._known + self._drafts)
        rows = np.flatnonzero(is_ready)
        requests = [self._requests[row] for row in rows.tolist()]
        sampled = [request for request in requests if isinstance(request, Generation)]
        if len(sampled) < len(requests):
            rows = np.array([request.row for request in sampled], np.int64)
            is_ready[:] = False
            is_ready[rows] = True
        return is_ready.astype(np.int64), rows, sampled

    def _scored_rows(
        self, new_tokens: Ints, starts: NDArray[np.int32]
    ) -> tuple[list[tuple[Scoring, int, int]], list[Ints]]:
        """Return the step's scoring requests, each with first position and count, and their tokens' places in the step."""
        scored, token_rows = list[tuple[Scoring, int, int]](), list[Ints]()
        for request in self.running:
            if isinstance(request, Scoring) and (count := int(new_tokens[request.row])):
                scored.append((request, int(self.tables.held[request.row]), count))
                token_rows.append(np.arange(count) + starts[request.row])
        return scored, token_rows

    def _continue(self, last: Step) -> Step | None:
        """Return the step that follows `last` if the same rows go on decoding; None where tiles run out.

        Most steps come from here, and reuse the arrays of the one before.
        """
        if self._capacity.width == 1:
            if not self._has_tiles(last, last.new_tokens, 1):
                return None
            old = last.packed
            packed = PackedStep(
                self._last_tokens,
                old.position_ids + 1,
                old.query_starts,
                old.sample_rows,
                reads_logits=old.reads_logits,
            )
            self._repeatable = Step(packed, last.new_tokens, last.ready, last.rows, last.sampled, [], [], [])
            return self._repeatable
        layout = layout_of((self._drafts_to_check + last.ready).tobytes())
        if not self._has_tiles(last, layout.new_tokens, layout.longest):
            return None
        positions = self.tables.held[layout.rows] + layout.places
        packed = PackedStep(
            self._tokens[layout.rows, positions],
            positions,
            layout.query_starts,
            layout.sample_rows,
            reads_logits=last.packed.reads_logits,
        )
        ids, drafts, start = packed.input_ids.tolist(), list[list[int]](), 0
        for count in layout.counts:
            drafts.append(ids[start + 1 : start + count])
            start += count
        self._repeatable = Step(packed, layout.new_tokens, last.ready, last.rows, last.sampled, [], [], drafts)
        return self._repeatable

    def _has_tiles(self, last: Step, new_tokens: Ints, longest: int) -> bool:
        """Whether the rows of `last` now have tiles for `new_tokens` more tokens, of which no row has more than `longest`."""
        if self._tokens_with_tiles < longest:
            if not self.tables.grow(new_tokens):
                return False
            self._tokens_with_tiles = self.tables.tokens_before_tiles(last.rows)
        self._tokens_with_tiles -= longest
        return True

    def _preempt(self, request: Request) -> None:
        """Take row and tiles from `request`; it is the next to get a row, and computes prompt and output again."""
        self._vacate(request)
        self.waiting.appendleft(request)

    def _vacate(self, request: Request) -> None:
        assert request.row is not None
        self.tables.release(request.row)
        self._known[request.row] = self._drafts[request.row] = self._drafts_to_check[request.row] = 0
        self._requests[request.row] = None
        request.move_out()
        self.running.remove(request)
        self._repeatable = None


def _prompt_of(request: Request) -> int:
    """The tokens of a request's prompt, as cache policies count them: a text that is scored counts as generated."""
    return request.prompt_tokens if isinstance(request, Generation) else 0
