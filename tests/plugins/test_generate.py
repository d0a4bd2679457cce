"""Tests of the C++ headers of the ops' declarations: written without an installed package, the only source of defaults."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from enginewright.plugins import generate
from enginewright.plugins.build import PLUGINS
from enginewright.plugins.ops.kvarn_attention import KVARN_ATTENTION
from enginewright.plugins.ops.registry import CALLS, OPS
from enginewright.plugins.ops.split_qkv import SPLIT_QKV
from enginewright.plugins.ops.tiles import TILE_TOKENS

CSRC = PLUGINS / "csrc"


def test_a_bare_interpreter_writes_them(tmp_path: Path) -> None:
    """The script runs as CMake runs it: without site-packages, environment variables or the package."""
    subprocess.run([sys.executable, "-I", "-S", str(PLUGINS / "generate.py"), str(tmp_path)], check=True)
    root = tmp_path / "generated"
    written = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.h")}
    assert written == generate.headers(OPS, CALLS, TILE_TOKENS)
    assert {"attributes/clp_emit.h", "declarations/clp_emit.h", "calls/clp_emit.h", "calls/attention.h"} <= set(written)


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    """An unchanged header is not written, or every build would compile everything."""
    first, second, *_ = generate.write(tmp_path)
    first.write_text("something else")
    date = second.stat().st_mtime_ns
    generate.write(tmp_path)
    assert first.read_text() != "something else" and second.stat().st_mtime_ns == date


def test_headers_of_an_op_that_is_gone_are_deleted(tmp_path: Path) -> None:
    stale = tmp_path / "generated" / "calls" / "gone.h"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    assert stale not in generate.write(tmp_path) and not stale.exists()


def test_it_needs_a_folder() -> None:
    ran = subprocess.run([sys.executable, str(PLUGINS / "generate.py")], capture_output=True, text=True)
    assert ran.returncode == 1 and "got 0 arguments, expected one, the folder to write into" in ran.stderr


def test_the_reader_has_the_defaults() -> None:
    text = generate.declaration(KVARN_ATTENTION)
    assert 'node.integer("k_bits", 4),' in text and '{"k_bits", "int", "4"},' in text
    assert 'node.number("scale"),' in text and '{"scale", "float", "null"},' in text
    assert 'node.number("epsilon", 1e-06f),' in generate.declaration(SPLIT_QKV)


def test_an_op_has_one_variable_type() -> None:
    first, *others = SPLIT_QKV.outputs
    other = replace(SPLIT_QKV, outputs=(replace(first, types=("float32", "float16")), *others))
    with pytest.raises(ValueError, match=r"query: got types \('float32', 'float16'\), expected .*one variable type"):
        generate.declaration(other)


def test_no_default_is_written_by_hand() -> None:
    """Sources read attributes through the generated reader, and declare none themselves."""
    sources = [path for path in CSRC.rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert len(sources) > 100
    by_hand = re.compile(r"\b(integer|number)\(\"|AttributeDeclaration k\w+\[\]|Port k\w+\[\]")
    assert not [path.relative_to(CSRC).as_posix() for path in sources if by_hand.search(path.read_text())]


@pytest.mark.emulated
def test_the_headers_compile(tmp_path: Path) -> None:
    compiler = shutil.which("c++") or "g++"
    generate.write(tmp_path)
    source = tmp_path / "both.cpp"
    source.write_text(
        '#include "generated/declarations/kvarn_attention.h"\n'
        '#include "generated/declarations/paged_attention.h"\n'
        "using namespace ew;\n"
        "static_assert(declared::kvarn_attention::kInputCount == 11);\n"
        "constexpr auto& op = declared::paged_attention::kDeclaration<ops::kFloat16>;\n"
        "static_assert(op.inputs[0].type == ops::kFloat16 && op.inputs[4].type == ops::kInt32);\n"
        "static_assert(op.outputs[1].alias == declared::paged_attention::kTiles && op.attribute_count == 5);\n"
    )
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-I", str(CSRC), "-I", str(tmp_path)]
    subprocess.run([compiler, *options, str(source)], check=True)


def test_sizes_become_macros() -> None:
    paged = generate.size_macros(CALLS["PagedAttention"])
    assert "#define EW_PAGED_ATTENTION_DIMS(X) X(32, 32) X(64, 64)" in paged
    kvarn, mix = generate.size_macros(CALLS["KVarNAttention"]), generate.size_macros(CALLS["DepthMix"])
    assert "#define EW_KVARN_ATTENTION_DIMS(X) X(32) X(64) X(128) X(256)\n" in kvarn
    assert "#define EW_DEPTH_MIX_MOST_DIM 512\n" in mix and generate.size_macros(CALLS["SplitQkv"]) == ""
