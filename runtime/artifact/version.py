"""The version of this package, which engines and exported checkpoints record."""

from __future__ import annotations

from importlib import metadata


def package_version() -> str:
    """Return the version of this package; "checkout" where it is not installed."""
    try:
        return metadata.version("enginewright")
    except metadata.PackageNotFoundError:
        return "checkout"
