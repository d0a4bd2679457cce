"""Doors: folders of the package whose modules each add one thing, such as a method or a decoding kind.

A door is a Python package with an attribute name. Each module of the package, or each folder in it that is a package
itself, gives that attribute an object that has a `name`. No list has to be edited: the folder is the list. `extend` lets a
folder of the user's own stand next to the package's.

Standard library only, because every package has doors.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, Protocol, TypeVar, cast

from enginewright.runtime.artifact.files.real_path import real_path
from enginewright.runtime.errors import ExtensionError


class Named(Protocol):
    """An object that a door finds by its name."""

    @property
    def name(self) -> str: ...


T = TypeVar("T", bound=Named)

_read: dict[tuple[str, ...], tuple[Mapping[str, Named], Mapping[str, str]]] = {}  # door and its folders -> contents

FOLDERS = {
    "methods": "enginewright.exporters.methods",
    "features": "enginewright.exporters.features",
    "sources": "enginewright.exporters.source.formats",
    "stored_forms": "enginewright.exporters.weights.forms",
    "decoding_kinds": "enginewright.runtime.decoding.kinds",
    "logits_processors": "enginewright.runtime.decoding.processors",
    "cache_policies": "enginewright.runtime.cache.policies",
}
"""The folders that a user's extension may have, and the package that each one stands next to."""


@dataclass(frozen=True)
class Door(Generic[T]):
    """A folder of modules that each add one thing; the module that uses these things creates it.

    package: the folder as a Python package, such as "enginewright.exporters.methods".
    attribute: the name under which each module has its object, such as "METHOD".
    kind: the type that the object must have.
    """

    package: str
    attribute: str
    kind: type[T]

    def names(self) -> tuple[str, ...]:
        """The names of everything that the door has, in alphabetical order."""
        return tuple(sorted(self.entries()))

    def entries(self) -> Mapping[str, T]:
        """Everything that the door has, by name. A module without the attribute adds nothing.

        The folders are read once; `extend` makes them be read again.

        Raises:
            ExtensionError: a module of an extension cannot be imported, a module's object is of another type or its name is no
                text, or two modules' objects have the same name.
        """
        return cast(Mapping[str, T], self._look()[0])

    def is_bundled(self, name: str) -> bool:
        """Whether the object `name` came with the package, and not from a folder of the user's own."""
        return Path(self._look()[1][name]).is_relative_to(_own_folder(self.package))

    def _look(self) -> tuple[Mapping[str, Named], Mapping[str, str]]:
        """The door's objects and the files of their modules, by name."""
        key = (self.package, self.attribute, *importlib.import_module(self.package).__path__)
        if key not in _read:
            _read[key] = self._read_folders()
        return _read[key]

    def _read_folders(self) -> tuple[dict[str, Named], dict[str, str]]:
        found: dict[str, Named] = {}
        places: dict[str, str] = {}
        for name, folder in sorted(_modules(self.package).items()):
            module = self._import(name, folder)
            entry = getattr(module, self.attribute, None)
            if entry is None:
                continue
            if not isinstance(entry, self.kind):
                raise ExtensionError(
                    f"{_place(module)}: {self.attribute}: got an object of type {type(entry).__name__}, expected a "
                    f"{self.kind.__name__}"
                )
            if not isinstance(entry.name, str) or not entry.name:
                raise ExtensionError(f"{_place(module)}: {self.attribute}: name: got {entry.name!r}, expected text")
            if entry.name in found:
                raise ExtensionError(
                    f"{_place(module)}: {self.attribute}: the name {entry.name!r} is that of {places[entry.name]} already; "
                    "choose another name"
                )
            found[entry.name], places[entry.name] = entry, _place(module)
        return found, places

    def _import(self, name: str, folder: str) -> ModuleType:
        """Import a module; an error in one of an extension is reported with its place."""
        try:
            return importlib.import_module(f"{self.package}.{name}")
        except ExtensionError:
            raise
        except Exception as error:  # of any kind: the module's code is the user's own
            if folder == _own_folder(self.package):
                raise
            raise ExtensionError(
                f"{Path(folder) / name}: cannot be imported ({type(error).__name__}: {error}); mend it, or take it out"
            ) from error


def extend(folder: str | Path) -> None:
    """Let the modules under `folder` stand next to the package's own; the same folder again changes nothing.

    The folder has one folder for each door that it adds to, with the names in FOLDERS: `methods/mine.py` adds a method.
    The modules are imported, so their code runs: pass only folders that you trust.

    Raises:
        ExtensionError: there is no such folder, or it has none of these folders, or one that is not known, or a module in it
            has the file name of a module that it would stand next to.
    """
    if not str(folder):
        raise ExtensionError("extend: got no name, expected that of a folder")
    root = real_path(Path(folder).expanduser())
    if not root.is_dir():
        raise ExtensionError(f"{folder}: no such folder; expected one with {', '.join(FOLDERS)}, or some of them")
    inside = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))
    unknown = [name for name in inside if name not in FOLDERS]
    if unknown or not inside:
        got = ", ".join(unknown) or "no folder in it"
        raise ExtensionError(
            f"{root}: got {got}, expected folders called {', '.join(FOLDERS)}, or some of them; keep others next to it"
        )
    for name in inside:
        _refuse_hidden(FOLDERS[name], str(root / name))
    for name in inside:
        path: Any = importlib.import_module(FOLDERS[name]).__path__
        if str(root / name) not in path:
            path.append(str(root / name))
    importlib.invalidate_caches()
    _read.clear()


def _modules(package: str) -> dict[str, str]:
    """The folder of each module that stands in `package`; of modules with one name, the first, as Python imports it."""
    found: dict[str, str] = {}
    for folder in importlib.import_module(package).__path__:
        for info in pkgutil.iter_modules([folder]):
            found.setdefault(info.name, folder)
    return found


def _own_folder(package: str) -> str:
    return str(next(iter(importlib.import_module(package).__path__)))


def _refuse_hidden(package: str, folder: str) -> None:
    """Raise ExtensionError where a module in `folder` would be hidden by one that stands in `package` already."""
    known = _modules(package)
    for info in pkgutil.iter_modules([folder]):
        if known.get(info.name, folder) != folder:
            raise ExtensionError(
                f"{Path(folder) / info.name}: got a module of this name, but {known[info.name]} has one too, which would hide it; "
                "rename the file"
            )


def _place(module: ModuleType) -> str:
    return str(getattr(module, "__file__", None) or module.__name__)
