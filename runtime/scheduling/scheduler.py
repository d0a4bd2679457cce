"""The scheduler: gives programs rows, and packs the tokens of the next step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from enginewright.runtime.artifact.manifest import Condition
from enginewright.runtime.backends.session import PackedStep
from enginewright.runtime.cache.capacity import Capacity
from enginewright.runtime.cache.policy import CacheSession
from enginewright.runtime.cache.prefix_cache import span_keys
from enginewright.runtime.cache.tile_tables import TileTables
from enginewright.runtime.decoding.decode_layout import DecodeLayout
from enginewright.runtime.decoding.program import Decoder, Emission, Feed, Program, Room, SteadyBatch
from enginewright.runtime.errors import ExtensionError
from enginewright.runtime.requests.request import Request
from enginewright.runtime.scheduling.row_conditions import RowConditions
from enginewright.runtime.scheduling.snapshot import SchedulerSnapshot
from enginewright.runtime.scheduling.step import FedRows, QueuedProgram, Step

Ints = NDArray[np.int64]

_NO_ROWS = np.zeros(1, np.int64)  # no logits are wanted; a graph need not accept zero rows


class Scheduler:
    """Keeps the programs in order of arrival, and their rows; created by `load`.

    A program says what its row brings into a step, and takes what the step decides; the scheduler never asks what it is.
    Each step takes all tokens of the rows that are steady, and is then filled up to `step_tokens` with the feeds of the
    others, oldest request first.

    waiting: entries without a row, in the order in which they get one.
    running: entries that have a row, oldest first.
    tables: the tiles of each row; the scheduler alone changes them.
    decoder: the engine's decoding kind.
    """

    def __init__(
        self,
        tables: TileTables,
        capacity: Capacity,
        decoder: Decoder,
        conditions: Mapping[str, Condition] | None = None,
    ) -> None:
        self.waiting: deque[QueuedProgram] = deque()
        self.running: list[QueuedProgram] = []
        self.tables = tables
        self._capacity = capacity
        self.decoder = decoder
        self._tokens: Ints = np.zeros((capacity.rows, capacity.context), np.int64)  # known tokens of each row
        self._entries: list[QueuedProgram | None] = [None] * capacity.rows
        self._conditions = RowConditions(conditions or {}, capacity.rows)
        self._batch: SteadyBatch | None = None  # where all rows of the last step are steady, and still run
        self._last: PackedStep | None = None  # the batch's last step
        self._batch_rows: Ints = np.zeros(0, np.int64)
        self._tokens_with_tiles = 0  # how many more tokens each row of the batch can take before one needs a tile

    @property
    def is_idle(self) -> bool:
        """Whether there is nothing to run."""
        return not self.running and not self.waiting

    def live(self) -> list[Request]:
        """Every request that has not ended, oldest first."""
        return [entry.request for entry in (*self.running, *self.waiting)]

    def snapshot(self) -> SchedulerSnapshot:
        """Return the state as it is now.

        May be called from any thread. While a step is being scheduled or committed, its parts may be of different moments.
        """
        entries = list(self._entries)
        return SchedulerSnapshot(
            waiting=len(self.waiting),
            running=len(self.running),
            rows_in_use=tuple(row for row, entry in enumerate(entries) if entry is not None),
            known=_lengths(entries),
            held=self.tables.held.copy(),
            free_tiles=self.tables.free_tiles,
            cache_use=self.tables.use,
        )

    def submit(self, program: Program) -> None:
        """Queue `program` after those of its priority; it has been checked that it fits into the cache on its own."""
        entry = QueuedProgram(program)
        if self._capacity.span and program.shares_prefix:
            request = program.request
            entry.spans = span_keys(request.tokens[: request.shareable], self._capacity.span, request.prefix_salt)
        place = len(self.waiting)
        while place and self.waiting[place - 1].request.priority > program.request.priority:
            place -= 1
        self.waiting.insert(place, entry)

    def remove(self, request: Request) -> None:
        """Forget `request`, whether it waits or runs; its row and tiles are free for the next step."""
        if request.row is not None:
            entry = self._entries[request.row]
            assert entry is not None
            self._vacate(entry)
            return
        for entry in self.waiting:
            if entry.request is request:
                self.waiting.remove(entry)
                return

    def schedule(self) -> Step:
        """Return the next step, with tiles for all of its tokens."""
        self._admit()
        if self._batch is None:
            self._open_batch()
        if self._batch is not None:
            layout = self._batch.layout()
            if self._has_tiles(layout):
                return self._continue(self._batch, layout)
            self._batch = None
        feeds = self._collect_feeds()
        while not self.tables.grow(self._extents(feeds) - self.tables.held):
            newest = self.running[-1]
            assert len(self.running) > 1, "a request was accepted that cannot fit alone"
            feeds[newest.row] = None
            self._preempt(newest)
        return self._pack(feeds)

    def commit(self, step: Step, emission: Emission) -> None:
        """Count the step's tokens as held in the cache, as far as they stay there.

        The requests themselves append the decided tokens, in `Request.receive`.
        """
        self.tables.advance(emission.kept)
        for entry in step.reading:
            self._publish(entry)

    def evict_due(self, session: CacheSession) -> None:
        """Let the rows that are due evict what their cache policy does not keep; newer rows go where tiles lack for it."""
        while (row := self.tables.evict_due(session)) is not None:
            newest = next((entry for entry in reversed(self.running) if entry.row != row), None)
            assert newest is not None, "a request was accepted that cannot evict alone"
            self._preempt(newest)

    def _admit(self) -> None:
        """Give rows to waiting programs, in their order, while there are tiles for them and for all running ones."""
        while self.waiting and len(self.running) < self._capacity.rows:
            entry = self.waiting[0]
            request = entry.request
            # one token must be left to compute
            keys = entry.spans[: (request.length - 1) // self._capacity.span] if entry.spans else []
            row = self.tables.pick_row([i for i, holder in enumerate(self._entries) if holder is None], keys)
            lengths = _lengths(self._entries)
            lengths[row] = request.length
            reused = self.tables.admit(row, keys, lengths, request.policy_prompt)
            if reused is None:
                return
            if entry.spans:
                entry.published = reused // self._capacity.span
                if request.reused is None:  # a preempted request finds its own tokens later
                    request.reused = reused
            request.move_to(row, self._tokens[row])
            self._conditions.enter(row, request)
            self._entries[row] = entry
            self.running.append(self.waiting.popleft())
            self._batch = None

    def _publish(self, entry: QueuedProgram) -> None:
        """Let other requests find the spans of the prompt that have been computed by now."""
        computed = int(self.tables.held[entry.row]) // self._capacity.span
        while entry.published < min(computed, len(entry.spans)):
            is_new = self.tables.publish(entry.row, entry.spans[entry.published])
            entry.published = entry.published + 1 if is_new else len(entry.spans)

    def _open_batch(self) -> None:
        """Let the rows go on as arrays, where all of them are steady and of one kind."""
        entries = [entry for entry in self._entries if entry is not None]
        held = self.tables.held.tolist()
        if entries and all(
            entry.program.is_steady(held[entry.row]) and entry.published >= len(entry.spans) for entry in entries
        ):
            self._batch = self.decoder.steady([entry.program for entry in entries], self._capacity.rows)
            self._batch_rows = np.array([entry.row for entry in entries], np.int64)
            self._tokens_with_tiles = 0
            self._last = None

    def _has_tiles(self, layout: DecodeLayout) -> bool:
        """Whether the batch's rows now have tiles for the tokens of `layout`."""
        if self._tokens_with_tiles < layout.longest:
            if layout.longest > 1 and min(map(self.tables.tokens_before_due, self._batch_rows)) < layout.longest:
                return False  # a row is due before the step's end, and evicts with the tiles that are left
            if not self.tables.grow(layout.new_tokens):
                return False
            self._tokens_with_tiles = self.tables.tokens_before_tiles(self._batch_rows)
        self._tokens_with_tiles -= layout.longest
        return True

    def _continue(self, batch: SteadyBatch, layout: DecodeLayout) -> Step:
        """Return the batch's next step. Most steps come from here, and reuse the arrays of the one before."""
        tokens, positions = batch.feed(self.tables.held)
        self._last = PackedStep(
            tokens,
            positions,
            layout.query_starts,
            layout.sample_rows,
            self._take_sink_copies(),
            batch.reads_logits,
            self._conditions.arrays(positions, layout.query_starts, self._last),
        )
        return Step(self._last, batch)

    def _collect_feeds(self) -> list[Feed | None]:
        """Return each row's feed of the next step: first those of steady rows, then as many others as there is room for."""
        held = self.tables.held.tolist()
        feeds: list[Feed | None] = [None] * self._capacity.rows
        tokens, width = self._capacity.step_tokens, self._capacity.width
        wanted = self._capacity.logit_rows - self._capacity.rows * width
        steady = [entry for entry in self.running if entry.program.is_steady(held[entry.row])]
        for entry in steady:
            feeds[entry.row] = feed = entry.program.feed(held[entry.row], self._room(entry, tokens, wanted))
            assert feed is not None, "a steady row fits into every step"
            if len(feed.tokens) > width:
                raise ExtensionError(
                    f"{type(entry.program).__name__}: got a feed of {len(feed.tokens)} tokens from a steady row, expected at most "
                    f"{width}, the width of the decoding kind"
                )
            tokens -= len(feed.tokens)
        for entry in () if len(steady) == len(self.running) else self.running:
            if feeds[entry.row] is not None or tokens <= 0:
                continue
            feeds[entry.row] = feed = entry.program.feed(held[entry.row], self._room(entry, tokens, wanted))
            if feed is not None:
                tokens -= len(feed.tokens)
                wanted -= len(feed.wanted) if len(feed.wanted) > width else 0
        return feeds

    def _room(self, entry: QueuedProgram, tokens: int, wanted: int) -> Room:
        return Room(tokens, wanted, self.tables.tokens_before_due(entry.row))

    def _extents(self, feeds: Sequence[Feed | None]) -> Ints:
        """Return for how many tokens each row needs tiles in the next step, int64 [rows]."""
        extents = self.tables.held.copy()
        for row, feed in enumerate(feeds):
            if feed is not None:
                extents[row] = extents[row] + len(feed.tokens) if feed.extent is None else feed.extent
        return extents

    def _pack(self, feeds: Sequence[Feed | None]) -> Step:
        """Return the step of these feeds, one for each row."""
        counts = [0 if feed is None else len(feed.tokens) for feed in feeds]
        starts = np.zeros(len(counts) + 1, np.int32)
        np.cumsum(counts, out=starts[1:])
        fed = list(self._fed(feeds))
        assert fed, "no program feeds anything, although each fits into a step on its own"
        wanted = [feed.wanted + starts[entry.row] for entry, feed in fed if len(feed.wanted)]
        positions = np.concatenate([feed.positions for _, feed in fed])
        packed = PackedStep(
            np.concatenate([feed.tokens for _, feed in fed]),
            positions,
            starts,
            np.concatenate(wanted) if wanted else _NO_ROWS,
            self._take_sink_copies(),
            any(feed.reads_logits for _, feed in fed),
            {**self._conditions.arrays(positions, starts, None), **_own_ports([feed for _, feed in fed])},
        )
        reading = [entry for entry, _ in fed if entry.published < len(entry.spans)]
        return Step(packed, FedRows([(entry.program, feed) for entry, feed in fed], len(feeds)), reading)

    def _fed(self, feeds: Sequence[Feed | None]) -> Iterator[tuple[QueuedProgram, Feed]]:
        """The rows that bring something, in order."""
        for entry, feed in zip(self._entries, feeds, strict=True):
            if entry is not None and feed is not None:
                yield entry, feed

    def _take_sink_copies(self) -> tuple[tuple[int, int], ...]:
        if not self.tables.sink_copies:
            return ()
        copies = tuple(self.tables.sink_copies)
        self.tables.sink_copies.clear()
        return copies

    def _preempt(self, entry: QueuedProgram) -> None:
        """Take row and tiles from `entry`; it is the next to get a row, and computes prompt and output again."""
        self._vacate(entry)
        self.waiting.appendleft(entry)

    def _vacate(self, entry: QueuedProgram) -> None:
        row = entry.row
        self.tables.release(row)
        entry.program.leave()
        self._conditions.leave(row)
        self._entries[row] = None
        entry.request.move_out()
        self.running.remove(entry)
        self._batch = None


def _own_ports(feeds: Sequence[Feed]) -> dict[str, NDArray[Any]]:
    """Return the values of the inputs that only a decoding kind has, 0 where a feed names none."""
    names = {name for feed in feeds if feed.ports for name in feed.ports}
    return {
        name: np.concatenate([(feed.ports or {}).get(name, np.zeros(len(feed.tokens), np.int64)) for feed in feeds])
        for name in names
    }


def _lengths(entries: Sequence[QueuedProgram | None]) -> Ints:
    """Return the number of known tokens of each row, 0 for a free one."""
    return np.array([0 if entry is None else entry.request.length for entry in entries], np.int64)
