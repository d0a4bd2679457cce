"""Tests of the arrays of a step: names, the zeros of conditions that no request names, and what is passed on unchanged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from enginewright.runtime.artifact.decoder_graph import CONDITION_INDEX, CONDITION_SCALE, CONDITION_TENSOR, PER_STEP
from enginewright.runtime.backends.session import NO_ARRAYS, PackedStep
from enginewright.runtime.backends.step_arrays import StepArrays

TOKENS = np.arange(5)
STARTS = np.array([0, 2, 2, 5], np.int32)


def test_without_conditions_they_are_the_steps_own() -> None:
    step, arrays = PackedStep(TOKENS, TOKENS, STARTS, TOKENS[:1]), StepArrays((CONDITION_TENSOR,))
    assert arrays.names == PER_STEP and step.conditions is NO_ARRAYS
    assert all(array is getattr(step, name) for name, array in arrays.of(step).items())


def test_conditions_that_a_step_lacks_are_zeros_and_the_same_array_each_time() -> None:
    index = np.ones(5, np.int32)
    per_row = replace(CONDITION_INDEX, name="cond.row.index", axes=("B",))
    arrays = StepArrays((CONDITION_INDEX, CONDITION_SCALE, per_row))
    step = PackedStep(TOKENS, TOKENS, STARTS, TOKENS[:1], conditions={CONDITION_INDEX.name: index})
    found = arrays.of(step)
    assert tuple(found) == arrays.names == (*PER_STEP, CONDITION_INDEX.name, CONDITION_SCALE.name, "cond.row.index")
    assert found[CONDITION_INDEX.name] is index
    scale, row = found[CONDITION_SCALE.name], found["cond.row.index"]
    assert scale.tolist() == [0.0] * 5 and scale.dtype == np.float32
    assert row.tolist() == [0] * 3 and row.dtype == np.int32
    again = arrays.of(PackedStep(TOKENS + 1, TOKENS, STARTS, TOKENS[:1]))
    assert again[CONDITION_SCALE.name] is scale and again["cond.row.index"] is row
    assert not again[CONDITION_INDEX.name].any()
