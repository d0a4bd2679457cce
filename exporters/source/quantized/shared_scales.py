"""Scales that a tile of a matrix's elements shares: the whole matrix, a row, a group of columns, or a block."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class ScaleTile:
    """The tile of a matrix [n, k] that shares a scale; a format creates it.

    shape: (n, k).
    rows: of a tile, at most n.
    columns: of a tile, at most k.
    """

    shape: tuple[int, int]
    rows: int
    columns: int

    @property
    def counts(self) -> tuple[int, int]:
        """Tiles along the rows and along the columns; the last ones may be cut off."""
        return -(-self.shape[0] // self.rows), -(-self.shape[1] // self.columns)

    @property
    def stored_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shapes in which files hold scales of such tiles, the usual one first."""
        down, across = self.counts
        return ((down, across), *([(down,)] if across == 1 else []), *([()] if down == across == 1 else []))

    @property
    def told(self) -> str:
        """The tiles in words, for reports: "in groups of 128"."""
        (n, k), tall = self.shape, self.rows
        if tall == n and self.columns == k and n > 1:
            return "with one scale"
        if tall > 1:
            return f"in blocks of {self.rows} x {self.columns}"
        return "with one scale a row" if self.columns == k else f"in groups of {self.columns}"

    @property
    def makes_groups(self) -> bool:
        """Whether every row is made of whole groups of columns."""
        return self.shape[1] % self.columns == 0

    def by_row(self, values: np.ndarray) -> np.ndarray:
        """Return what the tiles have, in one of the stored shapes, for the groups of each row: [n, groups]."""
        tiles = values.reshape(self.counts)
        return np.ascontiguousarray(np.repeat(tiles, self.rows, axis=0)[: self.shape[0]])

    def scale(self, numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Multiply `numbers` [n, k] in place by what their tiles have, in one of the stored shapes, and return them."""
        by_row = self.by_row(values)
        if self.makes_groups:
            groups = numbers.reshape(*by_row.shape, self.columns)
            groups *= by_row[..., None]
            return numbers
        for number in range(by_row.shape[1]):
            begin = number * self.columns
            numbers[:, begin : begin + self.columns] *= by_row[:, number : number + 1]
        return numbers
