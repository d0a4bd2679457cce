"""A problem with its worked solution, and the answer in a reply."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

LEVELS = ("standard", "hard")
HELD_OUT_SHARE = 16  # one in this many solutions is never trained on


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A question and its worked solution.

    kind: the kind of problem, one of KINDS.
    level: "standard" or "hard"; hard problems have more steps.
    question: the text of the question.
    solution: the whole reply that is expected, with a step on each line; its last line is "Answer: X.".
    """

    kind: str
    level: str
    question: str
    solution: str

    @property
    def answer(self) -> str:
        """The final answer, which an evaluation compares."""
        return answer_of(self.solution)

    @property
    def held_out(self) -> bool:
        """Whether the problem is kept for evaluation, and never trained on.

        The solution decides it, so that another wording of the question cannot bring it into training.
        """
        return zlib.crc32(self.solution.encode()) % HELD_OUT_SHARE == 0


def answer_of(reply: str) -> str:
    """Return the text after the last "Answer: ", without its full stop; the whole reply where there is none."""
    return reply.rpartition("Answer: ")[2].strip().removesuffix(".")
