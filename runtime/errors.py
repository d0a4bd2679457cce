"""The errors that users see. Each message has the form `where: got X, expected Y; do Z`."""

_MOST_SHOWN = 200


def shown(value: object) -> str:
    """Return the value as messages name it: its representation, shortened where it is long or cannot be made."""
    try:
        text = repr(value)
    except Exception as e:  # a whole number of thousands of digits, or a class of the caller's own
        return f"{type(value).__name__} ({e})"
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


class EnginewrightError(Exception):
    """Base of every error that the commands report with exit code 2."""


class ArtifactError(EnginewrightError):
    """The directory is not an engine that this version can read, or a file in it is damaged."""


class ExportError(EnginewrightError):
    """The checkpoint cannot be exported: a file is missing, broken, or disagrees with another."""


class BuildError(EnginewrightError):
    """The graphs cannot be turned into an engine of the backend."""


class TargetError(BuildError):
    """The backend accepts the graphs, but this machine cannot build for it; the machine that runs them has to."""


class UnsupportedError(EnginewrightError):
    """The model, method or platform is known, and this version does not support it."""


class ExtensionError(EnginewrightError):
    """A module that adds a method, a decoding kind or the like is not what its folder is for, or clashes with another."""


class RequestError(EnginewrightError):
    """A prompt or a sampling parameter that this engine cannot serve."""
