"""Generated multi-step problems with written-out solutions, correct by construction; the standard library suffices."""

from enginewright.runtime.evaluation.problems.collection import (
    KINDS,
    held_out_problems,
    problem_of_size,
    sizes_of,
    training_problems,
)
from enginewright.runtime.evaluation.problems.problem import LEVELS, Problem, answer_of

__all__ = [
    "KINDS",
    "LEVELS",
    "Problem",
    "answer_of",
    "held_out_problems",
    "problem_of_size",
    "sizes_of",
    "training_problems",
]
