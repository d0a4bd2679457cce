"""Generated multi-step problems with worked solutions, correct by construction; imports the standard library alone."""

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
