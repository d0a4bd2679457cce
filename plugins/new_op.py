"""Writes the files of a new op: its declaration, its oracle, its C++ and CUDA, and its tests.

    nox -s new-op -- NAME [FOLDER]

NAME is the op's name in a graph, such as ScaleRows. FOLDER is the subject's folder in `csrc/cpu` and `csrc/kernels`, by
default `rows`. The files compile and their tests pass as they are written; the op multiplies by a factor until they are
edited. They come from `plugins/skeleton`, and no other file changes: folders are the lists of ops.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from enginewright.plugins.ops.call import snake_case

SKELETON = Path(__file__).resolve().parent / "skeleton"


def new_files(name: str, folder: str) -> dict[str, str]:
    """Path from the checkout's root -> text of each file of an op.

    Raises:
        ValueError: the name is not one of an op, or the folder is not one word.
    """
    if not re.fullmatch(r"[A-Z][a-z0-9]+([A-Z][a-z0-9]+)*", name):
        raise ValueError(f"new-op: NAME: got {name!r}, expected words that begin with capitals, such as ScaleRows")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", folder):
        raise ValueError(f"new-op: FOLDER: got {folder!r}, expected a word in small letters, such as rows")
    stem = snake_case(name)
    words = {"@Name@": name, "@stem@": stem, "@NAME@": stem.upper(), "@folder@": folder}
    made = {}
    for template in sorted(SKELETON.rglob("*.in")):
        text = re.sub("|".join(words), lambda found: words[found[0]], template.read_text())
        path = template.relative_to(SKELETON).as_posix().removesuffix(".in")
        made[path.replace("STEM", stem).replace("FOLDER", folder)] = _with_imports_in_order(text)
    if not made:
        raise ValueError(f"new-op: got no templates in {SKELETON}, expected a checkout; clone the repository")
    return made


def _with_imports_in_order(text: str) -> str:
    """The text with the lines of each run of Python imports in alphabetical order, which depends on the op's name."""
    return re.sub(
        r"(^from \w+\..* import .*\n)+", lambda run: "".join(sorted(run[0].splitlines(keepends=True))), text, flags=re.M
    )


def write_op(root: Path, name: str, folder: str = "rows") -> list[Path]:
    """Write the files of op `name` into the checkout at `root` and return their paths.

    Raises:
        ValueError: as `new_files` says, or one of the files is there already.
    """
    made = {root / path: text for path, text in new_files(name, folder).items()}
    there = [str(path.relative_to(root)) for path in made if path.exists()]
    if there:
        raise ValueError(f"new-op: {name}: got a checkout that has {', '.join(there)}; choose another NAME")
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return list(made)


def main() -> None:
    """Write the op that the command line names into this checkout, and say what is next."""
    if len(sys.argv) not in (2, 3):
        sys.exit(
            f"new-op: got {len(sys.argv) - 1} arguments, expected NAME [FOLDER]; do: nox -s new-op -- ScaleRows rows"
        )
    root = SKELETON.parents[1]
    here = Path.cwd().resolve()
    if here != root and (here / "plugins" / "new_op.py").is_file():
        sys.exit(
            f"new-op: this Python has {root} installed, expected {here}; do: install the checkout, pip install -e ."
        )
    try:
        made = write_op(root, *sys.argv[1:])
    except ValueError as error:
        sys.exit(str(error))
    print("\n".join(str(path.relative_to(root)) for path in made))
    print("\nNow: python -m enginewright.plugins.build, then edit; docs/how-to/add-an-op.md is the guide.")


if __name__ == "__main__":
    main()
