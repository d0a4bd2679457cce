"""Tests of the registry of ops: the folder is the list."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import enginewright.plugins.ops as folder
from enginewright.plugins.ops.call import Call
from enginewright.plugins.ops.op import Op
from enginewright.plugins.ops.registry import CALLS, OPS, find_declared

PACKAGE = "declarations_of_a_test"
ONLY_CPU = {"BlockLinear", "BlockLookup", "ExpertMixture", "GreedyLinear"}  # ops without kernels for GPUs
OP = 'from enginewright.plugins.ops.op import Op\n{} = Op("{}", 1, "", (), (), (), "oracle:function")\n'


@pytest.fixture
def declarations(tmp_path: Path) -> Iterator[ModuleType]:
    """An empty folder of declarations, as a package."""
    package = ModuleType(PACKAGE)
    package.__path__ = [str(tmp_path)]
    sys.modules[PACKAGE] = package
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]


def test_every_declaration_is_found() -> None:
    """A constant of another name than its module's would be an op that nothing knows."""
    found: set[object] = set()
    for info in pkgutil.iter_modules(folder.__path__):
        values = vars(importlib.import_module(f"{folder.__name__}.{info.name}")).values()
        found |= {value for value in values if isinstance(value, (Op, Call))}
    assert found == {*OPS.values(), *CALLS.values()}


def test_names_and_files_agree() -> None:
    stems = {Path(path).stem for path in folder.__path__ for path in Path(path).glob("*.py")}
    assert {op.torch_name for op in OPS.values()} <= stems
    assert {call.file_stem for call in CALLS.values()} <= stems
    assert list(OPS) == sorted(OPS) and set(OPS) - set(CALLS) == ONLY_CPU


def test_a_new_file_is_a_new_op(declarations: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "scale_rows.py").write_text(OP.format("SCALE_ROWS", "ScaleRows"))
    (tmp_path / "add_rows.py").write_text(OP.format("ADD_ROWS", "AddRows"))
    (tmp_path / "ports.py").write_text("ROWS = 1\n")
    assert list(find_declared(declarations, "", Op)) == ["AddRows", "ScaleRows"]
    assert find_declared(declarations, "_CALL", Call) == {}


def test_two_ops_of_one_name_are_refused(declarations: ModuleType, tmp_path: Path) -> None:
    for stem in ("first", "second"):
        (tmp_path / f"{stem}.py").write_text(OP.format(stem.upper(), "ScaleRows"))
    message = (
        r"second\.py: SECOND: got the name ScaleRows, which is that of .*first\.py already, .*; rename one of them"
    )
    with pytest.raises(ValueError, match=message):
        find_declared(declarations, "", Op)


def test_a_constant_of_another_type_is_refused(declarations: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "scale_rows.py").write_text("SCALE_ROWS = 3\n")
    with pytest.raises(ValueError, match=r"scale_rows\.py: SCALE_ROWS: got int, expected Op"):
        find_declared(declarations, "", Op)
