"""Which request's tokens go into the next step."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.decoder import Emission, Fed
from enginewright.runtime.prefixes import span_keys
from enginewright.runtime.request import Generation, Request, Scoring
from enginewright.runtime.session import PackedStep
from enginewright.runtime.tiles import Capacity, TileTables

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """One step's work. Logits come in the order: `decided_rows` of the requests in `sampled`, then the rows of `scored`.

    share[rows] int64: new tokens of each row. ready[rows] int64: 1 where the next token is decided.
    slots: of the requests in `sampled`. scored: with first position and count. reading: those whose prompts go on.
    fed: which rows are whose, where a step may decide several tokens; otherwise empty, and each request has one row.
    """

    packed: PackedStep
    share: Ints
    ready: Ints
    slots: Ints
    sampled: list[Generation]
    scored: list[tuple[Scoring, int, int]]
    reading: list[Generation]
    fed: list[Fed]

    @property
    def decided_rows(self) -> int:
        """Rows of logits that decide tokens, or judge them."""
        return self.fed[-1].rows.stop if self.fed else len(self.sampled)


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
        self._steady: Step | None = None  # the last step, when the next one differs from it in ids and positions alone
        self._latest: Ints = np.zeros(0, np.int64)  # its tokens
        self._spare = 0  # how many steps like it need no further tile

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to run."""
        return not self.running and not self.waiting

    def live(self) -> list[Request]:
        """Every request that has not ended, oldest first."""
        return [*self.running, *self.waiting]

    def submit(self, request: Request) -> None:
        """Queue `request`; it has been checked to fit when alone."""
        if self._capacity.span and isinstance(request, Generation):  # a Scoring wants every logit
            request.spans = span_keys(request.tokens, self._capacity.span)
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        """Forget `request`, wherever it is; its slot and tiles are free for the next step."""
        if request.slot is not None:
            self._vacate(request)
        elif request in self.waiting:
            self.waiting.remove(request)

    def schedule(self) -> Step:
        """Return the next step; its tokens have their tiles."""
        self._admit()
        if self._steady is not None and (self._spare or self._tables.grow(self._steady.share)):
            return self._repeat(self._steady)
        share = self._divide()
        while not self._tables.grow(share):
            newest = self.running[-1]
            assert newest.slot is not None and len(self.running) > 1, "a request was accepted that cannot fit alone"
            share[newest.slot] = 0
            self._preempt(newest)
        return self._pack(share)

    def commit(self, step: Step, emission: Emission) -> None:
        """Count the step's tokens as held and the sampled rows' next tokens, which their requests append, as known."""
        self._tables.advance(step.share)
        for request in step.reading:
            self._publish(request)
        if emission.more is None:
            self._count += step.ready
            self._latest = emission.tokens
            return
        for slot, more in zip(step.slots.tolist(), emission.more, strict=True):
            if rejected := int(self._drafts[slot]) - more.accepted:
                self._tables.retract(slot, rejected)
            self._count[slot] += len(more.tokens)
            drafts = self._checkable(slot, more.drafts)
            end = int(self._count[slot])
            self._tokens[slot, end : end + len(drafts)] = drafts
            self._drafts[slot] = len(drafts)
            self._trail[slot] = len(drafts) or len(more.tokens) - 1 - more.accepted

    def _checkable(self, slot: int, drafts: list[int]) -> list[int]:
        """The drafts that can be taken back, and see what they would see if tokens came one by one.

        Where tiles are encoded, so are those up to a tile's last token, which ends the step that encodes the tile.
        """
        if not self._capacity.chunk:
            return drafts
        size = self._tables.tile_tokens
        newest = int(self._count[slot]) - 1
        return drafts[: max(size - 2 - newest % size, 0)]

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
        fed: list[Fed] = []
        if self._capacity.width > 1:
            fed = self._feed(slots, held + share)
            judging = [
                np.arange(len(f.tokens) + 1) - len(f.tokens) + last for f, last in zip(fed, wanted, strict=False)
            ]
            wanted = np.concatenate([*judging, wanted[len(fed) :]]) if fed else wanted
        if not len(wanted):
            wanted = np.zeros(1, np.int64)  # no row is ready; a graph need not take zero rows
        packed = PackedStep(self._tokens[rows, positions], positions, starts, wanted, tuple(self._tables.sink_copies))
        self._tables.sink_copies.clear()
        reading = [
            r for r in self.running if isinstance(r, Generation) and r.published < len(r.spans) and share[r.slot]
        ]
        step = Step(packed, share, ready.astype(np.int64), slots, sampled, scored, reading, fed)
        is_steady = len(rows) == len(sampled) == len(self.running) and not fed
        self._steady = step if is_steady else None
        self._spare = 0
        return step

    def _repeat(self, last: Step) -> Step:
        """Return the step after `last` when the same rows decode one token each; most steps are such."""
        self._spare = (self._spare or self._tables.spare(last.slots)) - 1
        positions = last.packed.position_ids + 1
        packed = PackedStep(self._latest, positions, last.packed.query_starts, last.packed.sample_rows)
        self._steady = Step(packed, last.share, last.ready, last.slots, last.sampled, last.scored, [], [])
        return self._steady

    def _feed(self, slots: Ints, ends: Ints) -> list[Fed]:
        """Return which rows of logits belong to the requests in `slots`, and what they guessed."""
        fed, row = list[Fed](), 0
        for slot in slots.tolist():
            count = int(self._trail[slot])
            tokens = self._tokens[slot, ends[slot] - count : ends[slot]].tolist()
            fed.append(Fed(slice(row, row + count + 1), tokens))
            row += count + 1
        return fed

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
