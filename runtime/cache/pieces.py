"""Cuts the tokens of a row into the pieces that go into one step together, where the cache encodes tiles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The rule by which tokens are cut into pieces; created by `load`.

    Where tiles are encoded, a token sees the tokens of its own step exactly, so a piece decides what its tokens see.
    Elsewhere tokens may be cut anywhere.

    chunk: as in Capacity: tokens of a prompt that go into a step together; 0 where tokens may be cut anywhere.
    tile_tokens: tokens in a tile.
    """

    chunk: int
    tile_tokens: int

    def of_prompt(self, held: int, pending: int, limit: int) -> int:
        """Return how many of a prompt's `pending` tokens, after `held`, go into a step that has room for `limit`."""
        return self._cut(held, pending, limit, self.chunk)

    def of_tokens(self, held: int, pending: int, limit: int) -> int:
        """Return the same for tokens that are to see what they see when tokens come one by one: cut at whole tiles."""
        return self._cut(held, pending, limit, self.tile_tokens)

    def checkable(self, known: int, drafts: list[int]) -> list[int]:
        """Return as many of the drafts after `known` tokens as one step can check.

        A draft must be easy to take back, and must see what it would see if tokens came one by one. Where tiles are
        encoded, this holds for drafts before a tile's last token: the step that contains that token encodes the tile.
        """
        if not self.chunk:
            return drafts
        return drafts[: max(self.tile_tokens - 2 - (known - 1) % self.tile_tokens, 0)]

    def _cut(self, held: int, pending: int, limit: int, size: int) -> int:
        if not self.chunk:
            return min(pending, limit)
        piece = min(pending, size - held % size)
        return piece if piece <= limit else 0
