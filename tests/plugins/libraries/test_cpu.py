"""Tests of the native library: how it is found, its exports and its declarations."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from enginewright.plugins.libraries import cpu, locate
from enginewright.plugins.ops.op import DOMAIN
from enginewright.plugins.ops.registry import OPS


def test_a_missing_library_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(locate, "_library_folders", lambda: [tmp_path])
    with pytest.raises(locate.LibraryError, match=r"got no .*enginewright_ort.* do: install a C\+\+ compiler"):
        locate.ort_library()


@pytest.mark.native
def test_declarations_equal_pythons() -> None:
    """The library has those that were generated when it was compiled: an old one does not pass."""
    declared = cpu.declared_ops()
    assert declared["domain"] == DOMAIN
    assert [op["name"] for op in declared["ops"]] == sorted(OPS), "the order does not depend on the linker"
    for op in declared["ops"]:
        wanted = OPS[op["name"]]
        assert op["version"] == wanted.version
        for ports, tensors in ((op["inputs"], wanted.inputs), (op["outputs"], wanted.outputs)):
            assert [port["name"] for port in ports] == [tensor.name for tensor in tensors]
            assert [port["optional"] for port in ports] == [tensor.optional for tensor in tensors]
            assert [port["variadic"] for port in ports] == [tensor.variadic for tensor in tensors]
            assert all(port["type"] in tensor.types for port, tensor in zip(ports, tensors, strict=True))
        assert op["attributes"] == [{"name": a.name, "type": a.type, "default": a.default} for a in wanted.attributes]


def official_header() -> Path | None:
    """ONNX Runtime's C header: from ENGINEWRIGHT_ORT_HEADER, or where Debian's libonnxruntime-dev puts it."""
    named = os.environ.get("ENGINEWRIGHT_ORT_HEADER")
    usual = Path("/usr/include/onnxruntime/onnxruntime_c_api.h")
    return Path(named) if named else usual if usual.exists() else None


def entry_names(header: str) -> list[str]:
    """The members of `struct OrtApi`, in order."""
    body = header[header.index("\nstruct OrtApi {") :]
    body = body[: body.index("\n};")]
    body = re.sub(r"/\*.*?\*/|//[^\n]*", "", body, flags=re.DOTALL)
    member = re.compile(r"ORT_API2_STATUS\(\s*(\w+)|ORT_CLASS_RELEASE\(\s*(\w+)|\(\s*ORT_API_CALL\s*\*\s*(\w+)\s*\)")
    return [m[1] or m[3] or "Release" + m[2] for m in member.finditer(body)]


@pytest.mark.native
def test_abi_table_equals_the_official_header() -> None:
    header = official_header()
    if header is None:
        pytest.skip("no onnxruntime_c_api.h here (ENGINEWRIGHT_ORT_HEADER, or Debian's libonnxruntime-dev)")
    names = entry_names(header.read_text())
    entries = cpu.ort_entries()
    assert entries == {name: names.index(name) for name in entries}


@pytest.mark.native
def test_an_unknown_instruction_set_is_refused() -> None:
    before = cpu.cpu_isa()
    assert not cpu.set_cpu_isa("mmx")
    assert cpu.cpu_isa() == before
