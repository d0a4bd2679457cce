"""Tests of the file of a demand curve: what is written is read, and other files are refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from enginewright.exporters.methods.measured_file import SourceModel
from enginewright.exporters.methods.reasonalloc.curve import DemandCurve, read_curve
from enginewright.runtime.errors import ExportError

SHA = "0123456789abcdef" * 4
CURVE = DemandCurve(
    model=SourceModel(name="small", sha256=SHA),
    rho=0.93,
    demand=(20.5, None, 3.0),
    aggregate="mean",
    heads=((20.0, 21.0), None, (2.0, 4.0)),
    data="reasoning",
    texts=1,
    tokens=200,
    positions=64,
)


def test_a_curve_is_read_as_it_was_written(tmp_path: Path) -> None:
    CURVE.write(tmp_path / "curve.json")
    assert read_curve(tmp_path / "curve.json", sha256=SHA, layers=3) == CURVE
    assert CURVE.shares == {0: 20.5, 2: 3.0}
    assert [each.name for each in tmp_path.iterdir()] == ["curve.json"]


@pytest.mark.parametrize(("sha256", "layers"), [("f" * 64, 3), (SHA, 4)])
def test_a_curve_of_another_model_is_refused(sha256: str, layers: int, tmp_path: Path) -> None:
    CURVE.write(tmp_path / "curve.json")
    with pytest.raises(
        ExportError, match=r"curve\.json: got the curve of 'small', 3 layers, sha256 0123456789ab, expected"
    ):
        read_curve(tmp_path / "curve.json", sha256=sha256, layers=layers)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"rho": 1.5}, "rho: got 1.5"),
        ({"demand": [None, None, None]}, "demand: got"),
        ({"demand": [-1.0]}, "demand: got"),
        ({"demand": ["many"]}, "demand.0.: got 'many'"),
        ({"aggregate": "median"}, "aggregate: got 'median'"),
        ({"extra": 1}, "unknown key 'extra'"),
    ],
)
def test_a_file_that_is_no_curve_is_refused(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "curve.json"
    path.write_text(json.dumps({**dataclasses.asdict(CURVE), **change}))
    with pytest.raises(ExportError, match=rf"curve\.json.*{complaint}.*make the curve by"):
        read_curve(path, sha256=SHA, layers=3)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"curve\.json"):
        read_curve(tmp_path / "curve.json", sha256=SHA, layers=3)


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"--output .*: cannot be written"):
        CURVE.write(tmp_path / "missing" / "curve.json")
