"""Tests of the collection of a checkpoint's parts that an engine does not use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from enginewright.exporters.source.unused import REPORT, Unused
from enginewright.runtime.errors import ExportError


def test_parts_are_named_once_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    unused = Unused()
    for _ in range(2):
        unused.add("model.safetensors", [f"extra.{i}" for i in range(7)], "no parameter has this name")
    unused.add("config.json", [], "there is none")
    unused.settle(strict=False)
    shown = capsys.readouterr().err
    assert shown == (
        "model.safetensors: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more: not used: no parameter has this name\n"
    )


def test_strict_names_them_in_an_error() -> None:
    unused = Unused()
    unused.settle(strict=True)
    unused.add("generation_config.json", ["num_beams"], "an engine has no beam search")
    with pytest.raises(
        ExportError, match=r"strict: .*\ngeneration_config.json: num_beams: not used: an engine has no beam"
    ):
        unused.settle(strict=True)


def test_the_report_has_all_of_them(tmp_path: Path) -> None:
    unused = Unused()
    unused.add("model.safetensors", ["a", "b"], "no parameter has this name")
    unused.save(tmp_path)
    assert json.loads((tmp_path / REPORT).read_text()) == [
        {"file": "model.safetensors", "names": ["a", "b"], "reason": "no parameter has this name", "by_design": False}
    ]
