"""Which request's tokens go into the next step."""

from __future__ import annotations

from collections import deque

import numpy as np

from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.prefix_cache import span_keys
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.decoding.decoder import Continuation, Emission
from enginewright.runtime.requests.request import Generation, Request, Scoring
from enginewright.runtime.scheduling.decode_layout import layout_of
from enginewright.runtime.scheduling.step import Ints, Step


class Scheduler:
    """Requests in order of arrival, their slots, and the tokens of the running ones.

    A row is wherever its request is: it has count[slot] known tokens, of which the tables hold some in the cache. The
    others are pending: one for a decoding row, more for a prompt or for a preempted request that comes back. Each step
    takes every single pending token and fills up to `step_tokens` with chunks of the longer ones, oldest request first.
    """

    def __init__(self, tables: TileTables, capacity: Capacity) -> None:
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self._tables = tables
        self._capacity = capacity
        self._tokens: Ints = np.zeros((capacity.rows, capacity.context), np.int64)
        self._count: Ints = np.zeros(capacity.rows, np.int64)
        self._drafts: Ints = np.zeros(capacity.rows, np.int64)
        self._trail: Ints = np.zeros(capacity.rows, np.int64)
        self._slots: list[Request | None] = [None] * capacity.rows
        self._steady: Step | None = None  # the last step, when the same rows decode in the next one
        self._latest: Ints = np.zeros(0, np.int64)  # its tokens, one of each row
        self._spare = 0  # how many more tokens of each row need no further tile

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to run."""
        return not self.running and not self.waiting

    @property
    def cache_use(self) -> float:
        """Share of the cache's tiles that running requests hold, of the layers where it is largest."""
        return self._tables.use

    def live(self) -> list[Request]:
        """Every request that has not ended, oldest first."""
        return [*self.running, *self.waiting]

    def submit(self, request: Request) -> None:
        """Queue `request` behind those of its priority; it has been checked to fit when alone."""
        if self._capacity.span and isinstance(request, Generation):  # a Scoring wants every logit
            request.spans = span_keys(request.tokens, self._capacity.span)
        place = len(self.waiting)
        while place and self.waiting[place - 1].priority > request.priority:
            place -= 1
        self.waiting.insert(place, request)

    def remove(self, request: Request) -> None:
        """Forget `request`, wherever it is; its slot and tiles are free for the next step."""
        if request.slot is not None:
            self._vacate(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self) -> Step:
        """Return the next step; its tokens have their tiles."""
        self._admit()
        if self._steady is not None and (step := self._continue(self._steady)) is not None:
            return step
        share = self._divide()
        while not self._tables.grow(share):
            newest = self.running[-1]
            assert newest.slot is not None and len(self.running) > 1, "a request was accepted that cannot fit alone"
            share[newest.slot] = 0
            self._preempt(newest)
        return self._pack(share)

    def commit(self, step: Step, emission: Emission) -> None:
        """Count the step's tokens as held and the sampled rows' next tokens, which their requests append, as known."""
        self._tables.advance(step.share if emission.more is None else self._take(step, emission.more))
        for request in step.reading:
            self._publish(request)
        if emission.more is None:
            self._count += step.ready
            self._latest = emission.tokens

    def _take(self, step: Step, more: list[Continuation]) -> Ints:
        """Note what each sampled row goes on with; returns how many of the step's tokens each row keeps."""
        kept = step.share
        for slot, each in zip(step.slots.tolist(), more, strict=True):
            if rejected := int(self._drafts[slot]) - each.accepted:
                kept = kept.copy() if kept is step.share else kept
                kept[slot] -= rejected
            end = int(self._count[slot]) + len(each.tokens)
            drafts = self._checkable(end, each.drafts)
            if drafts:
                self._tokens[slot, end : end + len(drafts)] = drafts
            self._count[slot], self._drafts[slot] = end, len(drafts)
            self._trail[slot] = len(drafts) or len(each.tokens) - 1 - each.accepted
        return kept

    def _checkable(self, known: int, drafts: list[int]) -> list[int]:
        """The drafts behind `known` tokens that can be taken back, and see what they would see if tokens came one by one.

        Where tiles are encoded, so are those up to a tile's last token, which ends the step that encodes the tile.
        """
        if not self._capacity.chunk:
            return drafts
        size = self._tables.tile_tokens
        return drafts[: max(size - 2 - (known - 1) % size, 0)]

    def _admit(self) -> None:
        """Give slots to waiting requests, oldest first, while their tokens find tiles beside everyone else's."""
        while self.waiting and len(self.running) < self._capacity.rows:
            request = self.waiting[0]
            keys: list[bytes] = []
            if isinstance(request, Generation) and request.spans:  # a token must be left to compute
                keys = request.spans[: (request.length - 1) // self._capacity.span]
            slot = self._tables.pick_row([i for i, holder in enumerate(self._slots) if holder is None], keys)
            self._count[slot] = request.length
            reused = self._tables.admit(slot, keys, self._count)
            if reused is None:
                self._count[slot] = 0
                return
            if isinstance(request, Generation) and request.spans:
                request.note_reuse(reused, self._capacity.span)
            self._tokens[slot, : request.length] = request.tokens[: request.length]
            request.tokens, request.slot = self._tokens[slot], slot
            self._slots[slot] = request
            self.running.append(self.waiting.popleft())
            self._steady = None

    def _publish(self, request: Generation) -> None:
        """Let others find the spans of the prompt that have been computed by now."""
        assert request.slot is not None
        computed = int(self._tables.held[request.slot]) // self._capacity.span
        while request.published < min(computed, len(request.spans)):
            is_new = self._tables.publish(request.slot, request.spans[request.published])
            request.published = request.published + 1 if is_new else len(request.spans)

    def _divide(self) -> Ints:
        """Return how many tokens each row gets in the next step."""
        pending = self._count + self._drafts - self._tables.held
        is_decoding = pending <= self._trail + 1
        share = np.where(is_decoding, pending, 0)
        budget = self._capacity.step_tokens - int(share.sum())
        scores = self._capacity.logit_rows - self._capacity.rows * self._capacity.width
        for request in () if is_decoding.all() else self.running:
            if share[request.slot] or not budget:
                continue
            limit = min(budget, scores) if isinstance(request, Scoring) else budget
            chunk = self._chunk(request, int(pending[request.slot]), limit)
            if isinstance(request, Scoring):
                scores -= chunk
            share[request.slot] = chunk
            budget -= chunk
        return share

    def _chunk(self, request: Request, pending: int, limit: int) -> int:
        """Return how many of a row's pending tokens go into the next step, which takes `limit` more.

        Where tiles are encoded, a prompt is cut at whole chunks. What is scored, or was generated before a preemption, is
        cut at whole tiles: so cut, each token sees what it sees when tokens come one by one.
        """
        if not self._capacity.chunk:
            return min(pending, limit)
        held, size = int(self._tables.held[request.slot]), self._tables.tile_tokens
        if isinstance(request, Generation) and held < request.prompt_tokens:
            size, pending = self._capacity.chunk, request.prompt_tokens - held
        chunk = min(pending, size - held % size)
        return chunk if chunk <= limit else 0

    def _pack(self, share: Ints) -> Step:
        """Return the step that computes the next `share[row]` pending tokens of each row."""
        held = self._tables.held
        starts = np.zeros(len(share) + 1, np.int32)
        np.cumsum(share, out=starts[1:])
        rows = np.repeat(np.arange(len(share)), share)
        positions = np.arange(len(rows)) + (held - starts[:-1])[rows]
        ready = (share > 0) & (held + share == self._count + self._drafts)
        slots = np.flatnonzero(ready)
        scored: list[tuple[Scoring, int, int]] = []
        wanted = starts[1:][slots].astype(np.int64) - 1
        requests = [self._slots[slot] for slot in slots.tolist()]
        sampled = [request for request in requests if isinstance(request, Generation)]
        if any(isinstance(request, Scoring) for request in self.running):
            slots = np.array([request.slot for request in sampled], np.int64)
            ready[:] = False
            ready[slots] = True
            scorings = [(r, r.slot) for r in self.running if isinstance(r, Scoring) and share[r.slot]]
            scored = [(request, int(held[slot]), int(share[slot])) for request, slot in scorings]
            spans = [np.arange(int(share[slot])) + starts[slot] for _, slot in scorings]
            wanted = np.concatenate([starts[1:][slots].astype(np.int64) - 1, *spans])
        fed: list[list[int]] = []
        if self._capacity.width > 1:
            fed = [self._tokens[s, held[s] + share[s] - self._trail[s] : held[s] + share[s]].tolist() for s in slots]
            judging = [np.arange(last - len(f), last + 1) for f, last in zip(fed, wanted, strict=False)]
            wanted = np.concatenate([*judging, wanted[len(fed) :]])
        if not len(wanted):
            wanted = np.zeros(1, np.int64)  # no row is ready; a graph need not take zero rows
        ids, copies = self._tokens[rows, positions], tuple(self._tables.sink_copies)
        reads_logits = bool(scored) or not all(request.is_plain_greedy for request in sampled)
        packed = PackedStep(ids, positions, starts, wanted, copies, reads_logits)
        self._tables.sink_copies.clear()
        reading = [
            r for r in self.running if isinstance(r, Generation) and r.published < len(r.spans) and share[r.slot]
        ]
        step = Step(packed, share, ready.astype(np.int64), slots, sampled, scored, reading, fed)
        is_steady = len(sampled) == len(self.running) and (self._capacity.width > 1 or len(rows) == len(sampled))
        self._steady = step if is_steady else None
        self._spare = 0
        return step

    def _continue(self, last: Step) -> Step | None:
        """Return the step after `last` when the same rows decode on, None where tiles run out; most steps are such."""
        if self._capacity.width == 1:
            if not self._has_tiles(last, last.share, 1):
                return None
            old = last.packed
            packed = PackedStep(
                self._latest, old.position_ids + 1, old.query_starts, old.sample_rows, reads_logits=old.reads_logits
            )
            self._steady = Step(packed, last.share, last.ready, last.slots, last.sampled, [], [], [])
            return self._steady
        layout = layout_of((self._trail + last.ready).tobytes())
        if not self._has_tiles(last, layout.share, layout.longest):
            return None
        positions = self._tables.held[layout.rows] + layout.places
        packed = PackedStep(
            self._tokens[layout.rows, positions],
            positions,
            layout.query_starts,
            layout.sample_rows,
            reads_logits=last.packed.reads_logits,
        )
        ids, fed, start = packed.input_ids.tolist(), list[list[int]](), 0
        for count in layout.counts:
            fed.append(ids[start + 1 : start + count])
            start += count
        self._steady = Step(packed, layout.share, last.ready, last.slots, last.sampled, [], [], fed)
        return self._steady

    def _has_tiles(self, last: Step, share: Ints, longest: int) -> bool:
        """Whether the rows of `last` have tiles for `share` more tokens, `longest` at most, now."""
        if self._spare < longest:
            if not self._tables.grow(share):
                return False
            self._spare = self._tables.spare(last.slots)
        self._spare -= longest
        return True

    def _preempt(self, request: Request) -> None:
        """Take slot and tiles away; `request` comes back first and recomputes prompt and generated tokens."""
        request.tokens = request.tokens[: request.length].copy()
        self._vacate(request)
        self.waiting.appendleft(request)

    def _vacate(self, request: Request) -> None:
        assert request.slot is not None
        self._tables.release(request.slot)
        self._count[request.slot] = self._drafts[request.slot] = self._trail[request.slot] = 0
        self._slots[request.slot] = None
        request.slot = None
        self.running.remove(request)
        self._steady = None
