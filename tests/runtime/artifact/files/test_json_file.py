"""Tests of the one reader of JSON: what it takes, and that each refusal names the file and what to do."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from enginewright.runtime.artifact.files.bounded_file import read_bounded
from enginewright.runtime.artifact.files.json_file import MOST_BYTES, MOST_DEPTH, parse_json, read_json, read_object
from enginewright.runtime.errors import ArtifactError, RequestError

TAKEN: dict[str, tuple[bytes, object]] = {
    "a byte order mark": (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
    "a whole pair of surrogates": (rb'"\ud83d\ude00"', "\U0001f600"),
    "an escaped backslash before a u": (rb'"\\ud800"', r"\ud800"),
    "the last of equal keys": (b'{"a": 1, "a": 2}', {"a": 2}),
    "a large number": (b"[" + b"9" * 4300 + b"]", [int("9" * 4300)]),
    "all of the depth": (b"[" * MOST_DEPTH + b"]" * MOST_DEPTH, ...),
}
REFUSED = {
    "nothing": (b"", "Expecting value"),
    "half of it": (b'{"a": ', "Expecting value"),
    "more than one value": (b"{} {}", "Extra data"),
    "a level too deep": (b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1), "nested more than 100 deep"),
    "objects a level too deep": (b'{"a":' * (MOST_DEPTH + 1) + b"0" + b"}" * (MOST_DEPTH + 1), "nested more than 100"),
    "far too deep": (b"[" * 100_000, "nested more than 100 deep"),
    "a number of too many digits": (b"9" * 4301, "a number of too many digits"),
    "NaN": (b'{"a": NaN}', "NaN, expected a finite number"),
    "infinity": (b"[-Infinity]", "-Infinity, expected a finite number"),
    "a number that is infinite": (b"1e999", "1e999, expected a finite number"),
    "half a surrogate pair": (rb'{"a": "\ud800"}', "half a surrogate pair"),
    "half a pair in a key": (rb'{"\uDFFF": 0}', "half a surrogate pair"),
    "no UTF-8": (b'"\xff"', "can't decode byte"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), "can't decode byte"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_is_taken(tmp_path: Path, case: str) -> None:
    content, expected = TAKEN[case]
    (tmp_path / "x.json").write_bytes(content)
    found = read_json(tmp_path / "x.json", ArtifactError, "mend it")
    assert expected is ... or found == expected


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(tmp_path: Path, case: str) -> None:
    content, reason = REFUSED[case]
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(RequestError, match=rf"/x\.json: not valid JSON \(.*{reason}.*\); mend it"):
        read_json(tmp_path / "x.json", RequestError, "mend it")


def test_no_object(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ArtifactError, match=r"x\.json: got a JSON list, expected an object; mend it"):
        read_object(tmp_path / "x.json", ArtifactError, "mend it")


def test_a_large_file_is_refused_by_its_size(tmp_path: Path) -> None:
    """The file is sparse: its 5 GB are neither on disk nor read."""
    with (tmp_path / "x.json").open("wb") as file:
        file.write(b"{}")
        file.truncate(5 << 30)
    with pytest.raises(ArtifactError, match=r"x\.json: got 5,368,709,120 bytes, expected 16,777,216 at most; mend it"):
        read_object(tmp_path / "x.json", ArtifactError, "mend it")


def test_a_long_text_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"there: got 16,777,217 bytes of JSON, expected 16,777,216 at most"):
        parse_json(b" " * (MOST_BYTES + 1), "there", ArtifactError, "mend it")


def test_a_file_without_an_end_is_not_read_to_it() -> None:
    with pytest.raises(ArtifactError, match=r"/dev/zero: got more than 1,000 bytes, expected 1,000 at most"):
        read_bounded(Path("/dev/zero"), 1000, ArtifactError, "mend it")


def test_a_pipe_is_read(tmp_path: Path) -> None:
    """As the shell passes with <(command)."""
    end, start = os.pipe()
    os.write(start, b"[1]")
    os.close(start)
    try:
        assert read_json(Path(f"/dev/fd/{end}"), ArtifactError, "mend it") == [1]
    finally:
        os.close(end)


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "No such file"), ("", "Is a directory"), ("\0", "embedded null byte")]
)
def test_what_cannot_be_read(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(ArtifactError, match=rf"cannot be read \({reason}.*\); mend it"):
        read_json(tmp_path / name, ArtifactError, "mend it")
