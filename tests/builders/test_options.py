"""Tests of BackendOptions: valid values, the options of each backend, and the conversion from and to a command line."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from enginewright import builders
from enginewright.builders import BACKENDS, options
from enginewright.builders.options import COMPUTES, PREFILL_CHUNK, TAKEN, BackendOptions
from enginewright.runtime.errors import BuildError

SET: dict[str, Any] = {
    "compute": ("sm_86", "sm_120"),
    "prefill_chunk": 256,
    "timing_cache": Path("timings"),
    "weight_streaming": True,
    "strip_weights": True,
    "refit": True,
    "optimization_level": 0,
}


TENSORRT = {"prefill_chunk", "timing_cache", "weight_streaming", "strip_weights", "refit", "optimization_level"}
TAKERS = {
    "onnxruntime": set[str](),
    "onnxruntime-cuda": set[str](),
    "tensorrt": TENSORRT,
    "tensorrt-rtx": {"compute", "prefill_chunk", "weight_streaming", "optimization_level"},
}


def test_every_option_and_backend_is_covered() -> None:
    names = {field.name for field in dataclasses.fields(BackendOptions)}
    assert set(SET) == names and set(TAKEN) == set(BACKENDS)
    assert set().union(*TAKEN.values()) == names


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SET)
def test_a_backend_takes_its_own(name: str, backend: str) -> None:
    chosen = BackendOptions(**{name: SET[name]})
    assert (name in TAKEN[backend]) == (name in TAKERS[backend])
    if name in TAKERS[backend]:
        builders.check_backend(backend, chosen)
        return
    flag = "--" + name.replace("_", "-")
    takers = ", ".join(taker for taker, taken in TAKERS.items() if name in taken)
    with pytest.raises(BuildError, match=f"{flag}: got it with --backend {backend}, .* choose {takers}"):
        builders.check_backend(backend, chosen)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_set_fits_all(backend: str) -> None:
    builders.check_backend(backend, BackendOptions())
    assert BackendOptions().chunk == PREFILL_CHUNK == 512 and BackendOptions(prefill_chunk=7).chunk == 7


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"compute": ("sm_86", "sm_42")}, "--compute: unknown name 'sm_42'; known: sm_75, sm_80, sm_86"),
        ({"compute": ("86",)}, "--compute: unknown name '86'"),
        ({"compute": ("sm_90",)}, "--compute: got sm_90, .* data-centre GPUs .* use --backend tensorrt"),
        ({"compute": ("sm_86", "sm_86")}, "expected each name once"),
        ({"prefill_chunk": 0}, "--prefill-chunk: got 0, expected 1 or more"),
        ({"optimization_level": 6}, "--optimization-level: got 6, expected 0 to 5"),
        ({"optimization_level": -1}, "--optimization-level: got -1, expected 0 to 5"),
    ],
)
def test_values_out_of_range(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BuildError, match=message):
        BackendOptions(**values)


def parse(*words: str) -> BackendOptions:
    """The options of a command line."""
    parser = argparse.ArgumentParser()
    options.add_arguments(parser)
    return options.from_arguments(parser.parse_args(words))


@pytest.mark.parametrize("name", SET)
def test_to_a_command_line_and_back(name: str) -> None:
    chosen = BackendOptions(**{name: SET[name]})
    assert parse(*options.to_arguments(chosen)) == chosen


def test_the_command_line() -> None:
    assert parse() == BackendOptions() and options.to_arguments(BackendOptions()) == []
    assert parse("--compute", "sm_86,sm_89,sm_120").compute == ("sm_86", "sm_89", "sm_120")
    assert parse("--compute", ",".join(COMPUTES)).compute == COMPUTES
    with pytest.raises(BuildError, match="unknown backend 'tensorrt-llm'; known: onnxruntime, onnxruntime-cuda, tens"):
        builders.check_backend("tensorrt-llm", parse())
