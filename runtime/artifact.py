"""The engine directory: what every stage reads and writes, and the only thing that crosses a stage.

    my-model/
      manifest.json             Manifest: the only file with meaning; names every other file with its sha256
      graphs/<name>.onnx        one graph, its weights in <name>.onnx.data beside it
      engines/<name>.<tag>...   what a backend built from a graph, valid only where Engine says
      tokenizer/                tokenizer.json, tokenizer_config.json, chat_template.jinja, as in the checkpoint
      reports/                  measurements about this engine; not part of its identity

Standard library only, so the runtime stays thin.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from enginewright.runtime.errors import ArtifactError
from enginewright.runtime.records import decode

FORMAT = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One named graph input or output.

    dtype: ONNX name in lower case: "float32", "int8".
    shape: ints for fixed sizes, strings for named dynamic ones.
    alias: for an output that updates an input's buffer in place (a cache pool), that input's name.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    alias: str | None = None


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the engine: path relative to its root, size in bytes, sha256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What a backend built from one graph; usable only where backend, version, compute and plugins all agree.

    version: of the backend's library ("1.31.1"). compute: "x86_64-avx512", "sm90". plugins: op -> version.
    """

    backend: str
    version: str
    compute: str
    files: tuple[File, ...]
    plugins: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """One ONNX graph: its files (the .onnx first), signature, custom ops with versions, and engines built from it."""

    files: tuple[File, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ops: dict[str, int] = field(default_factory=dict)
    engines: tuple[Engine, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CacheLayer:
    """Cache of one attention layer.

    window: tokens a token sees, itself included; 0: all. exact_bytes: of a tile that is not encoded, where tiles are
    (KVarN: a sequence's first tile and its newest, which lie in a buffer of their own); 0: tiles are kept as they are.
    """

    kv_heads: int
    key_dim: int
    value_dim: int
    tile_bytes: int
    window: int = 0
    exact_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Cache:
    """The buffers the decoder graph works on, per layer.

    `kv.<l>.tiles` int8 [tiles, tile_bytes]; `kv.<l>.exact` float16 [rows, kv_heads, tiles of a row, exact_bytes / 2] where
    the layer has them. kind: "paged" or "kvarn"; "dense": each row has one tile as long as a request may be, which are
    `kv.<l>.key` and `kv.<l>.value` [rows, kv_heads, tile_tokens, dim]. kv_bits: width of an element that is not encoded.
    """

    kind: str
    tile_tokens: int
    kv_bits: int
    layers: tuple[CacheLayer, ...]

    @property
    def is_dense(self) -> bool:
        """Whether it is that of a graph of standard ops."""
        return self.kind == "dense"


@dataclass(frozen=True, kw_only=True)
class Model:
    """What the runtime has to know about the model itself.

    family: the checkpoint's model_type. max_positions: longest context it was made for. parameters: their number.
    """

    family: str
    vocab_size: int
    hidden_size: int
    max_positions: int
    parameters: int
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the engine serves at most: rows in one step, and tokens (prompt and completion) in one request."""

    max_batch: int
    max_context: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one stage hands to the next.

    decoding: {"kind": "autoregressive"} or another kind with its own keys.
    weights: how weights are stored: {"precision": "int4", "block_size": 32, ...}.
    applied: methods in order, each {"name": ..., its config}: provenance, not behaviour.
    tokenizer: files under tokenizer/; empty when the checkpoint has none.
    """

    name: str
    created_by: str
    model: Model
    limits: Limits
    cache: Cache
    graphs: dict[str, Graph]
    decoding: dict[str, Any] = field(default_factory=lambda: {"kind": "autoregressive"})
    weights: dict[str, Any] = field(default_factory=dict)
    applied: tuple[dict[str, Any], ...] = ()
    tokenizer: tuple[File, ...] = ()
    format: int = FORMAT

    @property
    def dtype(self) -> str:
        """What the graphs compute in: float32, float16 or bfloat16."""
        found = self.weights.get("dtype", self.weights.get("kind"))
        return found if found in ("float16", "bfloat16") else "float32"

    def files(self) -> Iterator[File]:
        """Every file the manifest names."""
        for graph in self.graphs.values():
            yield from graph.files
            for engine in graph.engines:
                yield from engine.files
        yield from self.tokenizer


def describe_file(root: Path, path: Path) -> File:
    """Return the File entry of `path`, which lies under `root`."""
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

    Raises:
        ArtifactError: the manifest is missing, not readable, of another format, or disagrees with the files.
    """
    path = Path(root) / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{root}: got no {MANIFEST}, expected an engine directory; `enginewright build` writes one")
    try:
        raw = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ArtifactError(f"{path}: not valid JSON ({e}); build the engine again") from e
    found = raw.get("format") if isinstance(raw, dict) else None
    if found != FORMAT:
        newer = isinstance(found, int) and found > FORMAT
        fix = "upgrade enginewright" if newer else "build the engine again"
        raise ArtifactError(f"{path}: got format {found!r}, expected {FORMAT}; {fix}")
    try:
        manifest = decode(Manifest, raw, MANIFEST)
    except ValueError as e:
        raise ArtifactError(f"{path.parent / str(e)}; build the engine again") from e
    for file in manifest.files():
        _check_file(Path(root), file, verify)
    return manifest


@contextmanager
def staged(output: Path, *, overwrite: bool, mark: str = MANIFEST) -> Iterator[Path]:
    """Yield an empty directory beside `output` that becomes `output` when the block ends well.

    Until then an engine that stands at `output` stays whole; when the block fails, nothing of the new one is left.
    mark: the file by which a directory is known as one that may be replaced.

    Raises:
        ArtifactError: `output` exists and may not be overwritten, or is not such a directory.
    """
    output = Path(output).resolve()  # a link to an engine stays a link
    check_output(output, overwrite=overwrite, mark=mark)
    missing = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.partial-"))
        try:
            stage.chmod(0o755)
            yield stage
            _swap(stage, output)
        except BaseException:
            shutil.rmtree(stage, ignore_errors=True)
            raise
    except BaseException:
        for parent in missing:  # innermost first
            with suppress(OSError):  # not made, or another process writes there by now
                parent.rmdir()
        raise


def check_output(output: Path, *, overwrite: bool, mark: str = MANIFEST) -> None:
    """Raise ArtifactError unless an engine, or what else has the file `mark`, may be written to `output`."""
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ArtifactError(f"{output}: exists; pass --overwrite to replace it, or choose another --output")
    if not (output / mark).is_file():
        reason = "is no engine directory" if mark == MANIFEST else f"has no {mark}"
        raise ArtifactError(f"{output}: exists and {reason}, so it is not overwritten; remove it yourself")


def _swap(stage: Path, output: Path) -> None:
    """Put `stage` in the place of `output`; on failure `output` is what it was."""
    if not output.exists():
        stage.rename(output)
        return
    old = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}.old-"))
    try:
        os.replace(output, old)  # an empty directory may be renamed over
    except BaseException:
        old.rmdir()
        raise
    try:
        os.replace(stage, output)
    except BaseException:
        os.replace(old, output)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _check_file(root: Path, file: File, verify: bool) -> None:
    if "\0" in file.path:
        raise ArtifactError(
            f"{root / MANIFEST}: got a file named {file.path!r}, expected a path; build the engine again"
        )
    path = root / file.path
    if not path.resolve().is_relative_to(root.resolve()):
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
