"""Finds the files of a GGUF checkpoint: one file, the parts of a split one, or the one checkpoint in a directory."""

from __future__ import annotations

import re
from pathlib import Path

from enginewright.exporters.source.formats.gguf.header import FileTensor, Header, read_header
from enginewright.runtime.errors import ExportError

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def find_file(path: Path) -> Path:
    """Return `path`, or the first file of the one checkpoint in the directory `path`.

    Raises:
        ExportError: the directory has several checkpoints.
    """
    if not path.is_dir():
        return path
    names = sorted(file.name for file in path.glob("*.gguf"))
    parts = {name: found for name in names if (found := _PART.fullmatch(name))}
    firsts = [name for name in names if name not in parts] + sorted({_name(found, 1) for found in parts.values()})
    if len(firsts) > 1:
        raise ExportError(
            f"{path}: got {len(firsts)} GGUF files ({', '.join(firsts)}), expected one; pass the path of one"
        )
    return path / firsts[0]


def read_headers(file: Path) -> Header:
    """Return the header of the checkpoint that `file` is, or is a part of: the first part's metadata, and all tensors.

    Raises:
        ExportError: a part is missing, damaged or of another checkpoint.
    """
    part = _PART.fullmatch(file.name)
    header = read_header(file)
    count = header.get("split.count", 0)
    if count in (0, 1):
        return header
    if part is None or int(part["count"]) != count:
        raise ExportError(
            f"{file}: got one of {count} parts, expected a name that ends in -00001-of-{count:05d}.gguf; rename the parts"
        )
    files = [file.with_name(_name(part, number)) for number in range(1, count + 1)]
    if missing := [each.name for each in files if not each.is_file()]:
        raise ExportError(
            f"{file.parent}: {', '.join(missing)} not found; the checkpoint is incomplete, download it again"
        )
    headers = [read_header(each) for each in files]
    return Header(file=files[0], metadata=headers[0].metadata, tensors=_join(headers))


def _join(headers: list[Header]) -> dict[str, FileTensor]:
    tensors: dict[str, FileTensor] = {}
    for number, header in enumerate(headers):
        if header.get("split.no") != number or header.get("split.count") != len(headers):
            got = f"part {header.get('split.no')} of {header.get('split.count')}, counted from 0"
            raise ExportError(f"{header.file}: got {got}, expected part {number} of {len(headers)}; download it again")
        if twice := sorted(tensors.keys() & header.tensors.keys()):
            raise ExportError(
                f"{header.file}: tensor {twice[0]!r} is in {tensors[twice[0]].file.name} too; download it again"
            )
        tensors.update(header.tensors)
    expected = headers[0].get("split.tensors.count", len(tensors))
    if len(tensors) != expected:
        raise ExportError(
            f"{headers[0].file}: got {len(tensors)} tensors in all parts, expected {expected}; download them again"
        )
    return tensors


def _name(part: re.Match[str], number: int) -> str:
    return f"{part['stem']}-{number:05d}-of-{part['count']}.gguf"
