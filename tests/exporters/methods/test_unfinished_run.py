"""Tests of the folder of a run that was broken off: it is taken up again, by the same request alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from enginewright.exporters.methods.unfinished_run import UNFINISHED, unfinished_run
from enginewright.runtime.errors import ExportError

REQUEST = {"model": "a", "sizes": (1, 2)}


def test_a_run_that_is_done_leaves_its_results_alone(tmp_path: Path) -> None:
    with unfinished_run(tmp_path / "out", REQUEST) as folder:
        assert folder == tmp_path / "out" / UNFINISHED
        (folder / "part").write_text("kept")
        (tmp_path / "out/result").write_text("done")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["result"]


def test_a_run_that_was_broken_off_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), unfinished_run(tmp_path, REQUEST) as folder:
        (folder / "part").write_text("kept")
        raise KeyboardInterrupt
    (tmp_path / "result").write_text("half")
    with pytest.raises(ExportError, match="holds an unfinished run of another model, data or options; remove it"):
        unfinished_run(tmp_path, {**REQUEST, "model": "b"}).__enter__()
    with unfinished_run(tmp_path, REQUEST) as folder:
        assert (folder / "part").read_text() == "kept"
    assert not folder.exists()


def test_two_runs_are_not_at_work_at_once(tmp_path: Path) -> None:
    with unfinished_run(tmp_path / "out", REQUEST), pytest.raises(ExportError, match="another process works there"):
        unfinished_run(tmp_path / "out", REQUEST).__enter__()


def test_an_output_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/note").write_text("mine")
    for output in (tmp_path / "full", tmp_path / "full/note"):
        with pytest.raises(ExportError, match="is not empty"):
            unfinished_run(output, REQUEST).__enter__()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["note"]
