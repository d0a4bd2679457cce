"""The registry of checkpoint formats: finds the one that a path is of, and fetches hub repositories."""

from __future__ import annotations

from pathlib import Path

from enginewright.exporters.source.tensor_source import SourceFormat
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.extension import Door
from enginewright.runtime.errors import ExportError

FILES = (".gguf", ".safetensors")  # names that end so are of files, and never of hub repositories
FORMATS = Door("enginewright.exporters.source.formats", "SOURCE", SourceFormat)

TOKENIZER_PATTERNS = (
    "*.jinja",
    "*.model",
    "*.tiktoken",
    "vocab.txt",
    "merges.txt",
)  # those in JSON are fetched as such


def find_source(path: Path) -> SourceFormat:
    """Return the format that recognises `path`.

    Raises:
        ExportError: no format does, or several do of which none goes before the others.
    """
    known = FORMATS.entries()
    found = {name: known[name] for name in sorted(known) if known[name].recognise(path)}
    replaced = {entry.instead_of for entry in found.values()}
    left = [entry for name, entry in found.items() if name not in replaced]
    if len(left) == 1:
        return left[0]
    if not left:
        if (path / directory.MANIFEST).is_file():
            raise ExportError(
                f"{path}: got an engine directory, expected a checkpoint; pass the one that it was built from"
            )
        plain = "; ".join(f"{name} ({known[name].expects})" for name in sorted(known) if not known[name].instead_of)
        others = ", ".join(name for name in sorted(known) if known[name].instead_of)
        raise ExportError(
            f"{path}: got no checkpoint of a known format{_pickle(path)}, expected one of: {plain}; or a directory that "
            f"config.json says to be quantised by {others}"
        )
    names = " and ".join(entry.name for entry in left)
    raise ExportError(
        f"{path}: got a checkpoint that is {names} at once, expected one format; take the files of the others out, or "
        "pass the path of the one file that is meant"
    )


def locate(model: str) -> Path:
    """Return the path of `model`, or the directory of the hub repository of that name after it has been fetched.

    Raises:
        ExportError: there is neither, or the hub does not answer.
    """
    if not model:
        raise ExportError("model: got an empty name, expected a checkpoint's path or a hub id like owner/name")
    path = Path(model).expanduser()
    if path.exists():
        return path
    if model.count("/") != 1 or model.startswith((".", "/", "~")) or path.suffix in FILES:
        raise ExportError(f"{model}: got no file or directory, expected a checkpoint or a hub id like owner/name")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    weights = dict.fromkeys(pattern for _, entry in sorted(FORMATS.entries().items()) for pattern in entry.hub_files)
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", *weights, *TOKENIZER_PATTERNS]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise ExportError(f"{model}: no such file or directory, and the hub did not provide it ({e})") from e


def _pickle(path: Path) -> str:
    """A hint about weights in the directory that are never read."""
    pickles = (
        sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in path.glob(pattern)) if path.is_dir() else []
    )
    if not pickles:
        return ""
    return f" ({pickles[0]} is a pickle, which can run code when read: convert it to safetensors first)"
