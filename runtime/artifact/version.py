"""The version of this package, which engines and checkpoints name as their maker."""

from __future__ import annotations

from importlib import metadata


def package_version() -> str:
    """This package's version; "checkout" where it is not installed."""
    try:
        return metadata.version("enginewright")
    except metadata.PackageNotFoundError:
        return "checkout"
