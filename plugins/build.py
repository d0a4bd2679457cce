"""Builds the native libraries of a checkout into `plugins/lib`, for tests and development.

    python -m enginewright.plugins.build

An installed package has its libraries already; this is what `pip install` runs, without the install.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from enginewright.plugins.library import LibraryError

PLUGINS = Path(__file__).resolve().parent


def build(build_dir: Path | None = None) -> Path:
    """Configure, build and install; returns `plugins/lib`.

    build_dir: where objects go; `build/plugins` in the checkout when not given.

    Raises:
        LibraryError: CMake or the sources are missing, or the build fails.
    """
    cmake = shutil.which("cmake")
    if cmake is None:
        raise LibraryError("plugins: got no cmake on PATH, expected CMake 3.22 or later; do: pip install cmake ninja")
    if not (PLUGINS / "CMakeLists.txt").exists():
        raise LibraryError(f"plugins: got no CMakeLists.txt in {PLUGINS}, expected a source checkout")
    objects = build_dir or PLUGINS.parent / "build" / "plugins"
    configure = [cmake, "-S", str(PLUGINS), "-B", str(objects), "-DENGINEWRIGHT_ORT=ON"]
    if shutil.which("ninja") and not (objects / "CMakeCache.txt").exists():
        configure += ["-G", "Ninja"]
    for command in (
        [*configure, f"-DCMAKE_INSTALL_PREFIX={PLUGINS}"],
        [cmake, "--build", str(objects), "--parallel"],
        [cmake, "--install", str(objects)],
    ):
        if subprocess.run(command).returncode != 0:
            raise LibraryError(f"plugins: `{' '.join(command)}` failed; its output says why")
    return PLUGINS / "lib"


if __name__ == "__main__":
    try:
        print(build())
    except LibraryError as error:
        sys.exit(str(error))
