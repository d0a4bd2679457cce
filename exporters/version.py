"""What engines and checkpoints say made them."""

from __future__ import annotations

from importlib import metadata


def package_version() -> str:
    """This package's version; "checkout" where it is not installed."""
    try:
        return metadata.version("enginewright")
    except metadata.PackageNotFoundError:
        return "checkout"
