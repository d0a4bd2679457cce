"""What one problem is, and how its answer is read from a reply."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

LEVELS = ("standard", "hard")
HELD_OUT_SHARE = 16  # one in this many solutions is never trained on


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One question and its worked solution.

    kind: which family it belongs to, one of KINDS.
    level: "standard" or "hard"; hard ones have more steps.
    solution: the whole reply expected, one step a line; its last line is "Answer: X.".
    """

    kind: str
    level: str
    question: str
    solution: str

    @property
    def answer(self) -> str:
        """The final answer: what an evaluation compares."""
        return answer_of(self.solution)

    @property
    def held_out(self) -> bool:
        """Whether evaluation owns this problem: decided by the solution, so rewording a question cannot leak it."""
        return zlib.crc32(self.solution.encode()) % HELD_OUT_SHARE == 0


def answer_of(reply: str) -> str:
    """The text after the last "Answer: " without its full stop; the whole reply where there is none."""
    return reply.rpartition("Answer: ")[2].strip().removesuffix(".")
