"""Tests of the structures of calls: those of ctypes have the layout of those that C++ is compiled with."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from enginewright.plugins import generate
from enginewright.plugins.build import PLUGINS
from enginewright.plugins.libraries.cuda_calls import function_of, structure_of
from enginewright.plugins.ops.attention_ports import ATTENTION_FIELDS
from enginewright.plugins.ops.call import Call, Field, Structure, fields
from enginewright.plugins.ops.registry import CALLS

DESCRIBED = {structure.name: structure for call in CALLS.values() for structure in (call, *call.parts)}


def compiled_layout(folder: Path) -> list[str]:
    """Size of each C structure and offset of each of its fields, as a compiler lays them out."""
    generate.write(folder)
    lines = ["#include <cstddef>", "#include <cstdio>"]
    lines += [f'#include "generated/calls/{structure.file_stem}.h"' for structure in DESCRIBED.values()]
    lines.append("int main() {")
    for structure in DESCRIBED.values():
        lines.append(f'  std::printf("{structure.name} %zu\\n", sizeof({structure.c_name}));')
        for field in structure.fields:
            offset = f"offsetof({structure.c_name}, {field.name})"
            lines.append(f'  std::printf("{structure.name}.{field.name} %zu\\n", {offset});')
    source, program = folder / "layout.cpp", folder / "layout"
    source.write_text("\n".join([*lines, "}", ""]))
    compiler = shutil.which("c++") or "g++"
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", str(PLUGINS / "csrc"), "-I", str(folder)]
    subprocess.run([compiler, *options, str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.emulated
def test_layouts_are_those_of_the_compiler(tmp_path: Path) -> None:
    ours = []
    for name, structure in DESCRIBED.items():
        made = structure_of(structure)
        ours.append(f"{name} {ctypes.sizeof(made)}")
        ours += [f"{name}.{field.name} {getattr(made, field.name).offset}" for field in structure.fields]
    assert compiled_layout(tmp_path) == ours


@pytest.mark.emulated
def test_the_headers_are_also_c(tmp_path: Path) -> None:
    generate.write(tmp_path)
    source = tmp_path / "calls.c"
    source.write_text("".join(f'#include "generated/calls/{call.file_stem}.h"\n' for call in CALLS.values()))
    options = ["-std=c11", "-Wall", "-Werror", "-fsyntax-only", "-I", str(PLUGINS / "csrc"), "-I", str(tmp_path)]
    subprocess.run([shutil.which("cc") or "gcc", *options, str(source)], check=True)


def test_a_structure_is_made_once() -> None:
    call = CALLS["PagedAttention"]
    assert structure_of(call) is structure_of(call)
    attention = structure_of(ATTENTION_FIELDS)(tokens=3)
    made = structure_of(call)(attention=attention, kv_bits=16)
    assert made.attention.tokens == 3 and made.kv_bits == 16  # type: ignore[attr-defined]
    assert function_of(made) == "paged_attention"


def test_a_part_of_calls_has_no_function() -> None:
    with pytest.raises(ValueError, match="got a structure Attention, expected the call of a kernel"):
        function_of(structure_of(ATTENTION_FIELDS)())


def test_a_field_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(
        ValueError, match="rows: got the type 'size_t', expected a pointer, a structure or one of int64_t"
    ):
        Field("rows", "size_t")


def test_pointers_are_told_from_numbers() -> None:
    call = Call(
        "Some", "", (*fields("const float*", "x"), Field("part", Structure("Part", "", ())), Field("n", "float"))
    )
    assert [field.is_pointer for field in call.fields] == [True, False, False]
    assert [part.name for part in call.parts] == ["Part"]
