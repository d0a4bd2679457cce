"""The engine directory on disk: reads and checks it, and writes a new one in a single step.

my-model/
  manifest.json             Manifest: the only file with meaning; names every other file with its sha256
  graphs/<name>.onnx        one graph; its weights are in <name>.onnx.data next to it
  engines/<name>.<tag>...   files that a backend built from a graph, valid only where BuiltGraph says
  tokenizer/                tokenizer.json, tokenizer_config.json, chat_template.jinja, copied from the checkpoint
  reports/                  measurements about this engine; not part of its identity
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from enginewright.runtime.artifact.files.json_file import read_json
from enginewright.runtime.artifact.files.real_path import is_within, real_path
from enginewright.runtime.artifact.manifest import FORMAT, File, Manifest
from enginewright.runtime.artifact.reservation import is_interrupted, replace, reserved
from enginewright.runtime.artifact.strict_json import parse
from enginewright.runtime.errors import ArtifactError, EnginewrightError

T = TypeVar("T")

MANIFEST = "manifest.json"
_WAIT_S, _WAITS = 0.01, 200  # seconds of a wait, and waits, for a build between its two renames


def describe_file(root: Path, path: Path) -> File:
    """Return the manifest's entry of `path`, a file under `root`."""
    return File(path=path.relative_to(root).as_posix(), size=path.stat().st_size, sha256=_sha256(path))


def save(manifest: Manifest, root: Path) -> None:
    """Write `root/manifest.json` atomically: a reader sees the old one or the new one, whole."""
    text = json.dumps(dataclasses.asdict(manifest), indent=2) + "\n"
    handle, temporary = tempfile.mkstemp(dir=root, prefix=f".{MANIFEST}.")
    try:
        with os.fdopen(handle, "w") as f:
            f.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, root / MANIFEST)
    except BaseException:
        os.unlink(temporary)
        raise


def load(root: Path, *, verify: bool = True) -> Manifest:
    """Read `root/manifest.json`; with verify, also compare every named file's size and sha256.

    An engine that a build replaces meanwhile is read again, whole; one whose replacement was cut short is put back.

    Raises:
        ArtifactError: the manifest is missing, not readable, of another format, or disagrees with the files.
    """
    return settled(root, lambda: _load(root, verify))


def settled(root: Path, read: Callable[[], T]) -> T:
    """Return what `read` makes of the engine at `root`, called again as long as a build replaces the engine meanwhile.

    So no result, and no error of enginewright or of the system, comes from files of two engines.

    Raises:
        ArtifactError: a build that replaces the engine does not end, or `read` raised it, as any other error.
    """
    waits = 0
    while True:
        with _held(root) as is_current:
            try:
                result = read()
            except (OSError, EnginewrightError):
                if is_current() and not _mend(root, waits) and is_current():
                    raise
                waits += 1
                continue
            if is_current():
                return result
            del result  # before the next is made: it may be large


@contextmanager
def _held(root: Path) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether `root` still is the directory, or the lack of one, that it is now."""
    try:
        handle = os.open(root, getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY)
    except (OSError, ValueError):
        yield lambda: not os.path.isdir(root)
        return

    def is_current() -> bool:
        try:
            return os.path.samestat(os.fstat(handle), os.stat(root))  # open, so no other can have its number
        except FileNotFoundError:
            return False

    try:
        yield is_current
    finally:
        os.close(handle)


def _mend(root: Path, waits: int) -> bool:
    """Put back an engine whose replacement was cut short, or wait for the build; return whether to read again."""
    if "\0" in str(root):
        return False
    output = real_path(root)  # of a link to an engine, the engine
    if not is_interrupted(output):
        return False
    try:
        with reserved(output):
            return True
    except ArtifactError:
        if waits >= _WAITS:
            raise
        time.sleep(_WAIT_S)  # between its two renames, a build needs a moment
        return True
    except OSError as e:
        raise ArtifactError(
            f"{root}: got an overwrite that was cut short, expected an engine directory; "
            f"load it once as a user who may write {output.parent}"
        ) from e


def _load(root: Path, verify: bool) -> Manifest:
    try:
        return _read_and_check(Path(root), verify)
    except OSError as e:
        raise ArtifactError(f"{e.filename or root}: cannot be read ({e.strerror or e}); build the engine again") from e


def _read_and_check(root: Path, verify: bool) -> Manifest:
    path = root / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{root}: got no {MANIFEST}, expected an engine directory; `enginewright build` writes one")
    _check_name(root)
    raw = read_json(path, ArtifactError, "build the engine again")
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        fix = "upgrade enginewright" if newer else "build the engine again"
        raise ArtifactError(f"{path}: got format {found!r}, expected {FORMAT}; {fix}")
    try:
        manifest = parse(Manifest, raw, MANIFEST)
        _check_whole(manifest)
    except ValueError as e:
        raise ArtifactError(f"{path.parent / str(e)}; build the engine again") from e
    for file in manifest.files():
        _check_file(root, file, verify)
    return manifest


@contextmanager
def staged(output: Path, *, overwrite: bool, mark: str = MANIFEST) -> Iterator[Path]:
    """Yield an empty directory near `output` that takes its place when the block ends without an error.

    Until then an engine at `output` stays whole; when the block fails, nothing of the new one is left. What has appeared
    at `output` by the end of the block is treated like what was there at its beginning.
    mark: the file that shows that a directory may be replaced.

    Raises:
        ArtifactError: another build writes `output`, or it exists and may not be overwritten, or is not such a directory.
    """
    _check_name(Path(output))
    output = real_path(output)  # a link to an engine stays a link
    missing = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with reserved(output) as stage:
            check_output(output, overwrite=overwrite, mark=mark)
            yield stage
            _publish(stage, output, overwrite=overwrite, mark=mark)
    except BaseException:
        for parent in missing:  # innermost first
            with suppress(OSError):  # not made, or another process writes there by now
                parent.rmdir()
        raise


@contextmanager
def kept(root: Path) -> Iterator[None]:
    """Let no other command replace or change the engine at `root` while the block changes it.

    There is no reservation where this user may not write next to the engine: none of the user's builds can replace it
    there, and an engine on a volume of its own can still be changed.

    Raises:
        ArtifactError: another build or compilation writes `root` now.
    """
    output = real_path(root)
    if not output.is_dir() or not os.access(output.parent, os.W_OK):
        yield
        return
    with reserved(output):
        yield


def check_output(output: Path, *, overwrite: bool, mark: str = MANIFEST) -> None:
    """Raise ArtifactError unless `output` is free, or may be overwritten and holds the file `mark`."""
    _check_name(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ArtifactError(f"{output}: exists; pass --overwrite to replace it, or choose another --output")
    if not (output / mark).is_file():
        reason = "is no engine directory" if mark == MANIFEST else f"has no {mark}"
        raise ArtifactError(f"{output}: exists and {reason}, so it is not overwritten; remove it yourself")


def _check_name(path: Path) -> None:
    """Raise ArtifactError for a path that ONNX Runtime cannot take, or that links make endless."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "\0"
    if "\0" in text:
        raise ArtifactError(f"{path!r}: got a name that is not UTF-8 or has a zero byte; choose another one")
    if os.path.islink(real_path(path)):
        raise ArtifactError(f"{path}: got a link that leads to itself, expected a place for a directory; remove it")


def _publish(stage: Path, output: Path, *, overwrite: bool, mark: str) -> None:
    """Put `stage` in the place of `output`; on failure `output` is what it was when the reservation has ended."""
    check_output(output, overwrite=overwrite, mark=mark)
    if (output / mark).is_file():
        replace(output, stage)
        return
    try:
        os.rename(stage, output)  # refuses all but an empty directory, also what has appeared since the check
    except OSError:
        check_output(output, overwrite=False, mark=mark)
        raise


def _check_whole(manifest: Manifest) -> None:
    """Raise ValueError where a part is missing that a manifest on disk always has."""
    if not manifest.cache.layers or not manifest.cache.tile_tokens:
        raise ValueError(f"{MANIFEST}.cache: got no layers, or no tile_tokens, expected one or more of both")
    for name, graph in manifest.graphs.items():
        if not graph.files or not all(engine.files for engine in graph.engines):
            raise ValueError(
                f"{MANIFEST}.graphs.{name}: got no files, expected those of the graph and of each of its engines"
            )


def _check_file(root: Path, file: File, verify: bool) -> None:
    if "\0" in file.path:
        raise ArtifactError(
            f"{root / MANIFEST}: got a file named {file.path!r}, expected a path; build the engine again"
        )
    path = root / file.path
    if not is_within(path, root):
        raise ArtifactError(f"{path}: named in {MANIFEST} but outside the engine directory; build the engine again")
    if not path.is_file():
        raise ArtifactError(f"{path}: named in {MANIFEST} but missing; build the engine again")
    if path.stat().st_size != file.size:
        raise ArtifactError(f"{path}: got {path.stat().st_size} bytes, expected {file.size}; build the engine again")
    if verify and _sha256(path) != file.sha256:
        raise ArtifactError(f"{path}: content differs from {MANIFEST} (sha256); build the engine again")


def _sha256(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
