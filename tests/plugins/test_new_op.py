"""Tests of the generator of new ops: what it writes builds and runs on every host, and no file that stands changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import clang_format
import pytest

from enginewright.plugins.new_op import new_files, write_op
from enginewright.plugins.ops.registry import CALLS
from tests.support.paths import ROOT

NAME, STEM = "ScaleRows", "scale_rows"
TESTS = [f"tests/{folder}/test_{STEM}.py" for folder in ("plugins/ops", "kernels", "plugins/hosts/tensorrt")]
# What the tests of an op are run with, besides plugins/.
NEEDED = (
    "pyproject.toml",
    ".clang-format",
    "tests/conftest.py",
    "tests/kernels/conftest.py",
    "tests/plugins/conftest.py",
)
NEEDED_FOLDERS = ("plugins", "tests/support", "tests/plugins/hosts/tensorrt")
# Runs pytest on the package in the working directory, whichever is installed.
RUN = """
import importlib.machinery as machinery, sys, types
sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter, machinery.PathFinder]
package = types.ModuleType("enginewright")
package.__path__, package.__spec__ = ["."], machinery.ModuleSpec("enginewright", None, is_package=True)
sys.modules["enginewright"] = package
from enginewright.plugins.build import build
build()
import pytest
sys.exit(pytest.main(["-q", "-n0", "-p", "no:cacheprovider", "-k", "not cuda", *sys.argv[1:]]))
"""


def is_of_an_op(path: Path) -> bool:
    """Whether the file belongs to one of today's ops alone. What is left is what a new op may rely on."""
    if path.parts[0] != "plugins" or path.parts[1] in ("skeleton", "lib"):
        return path.parts[:2] == ("plugins", "lib")
    stems = (*(call.file_stem for call in CALLS.values()), "attention", "decode", "prefill", "kvarn", "linear")
    subjects = {"attention", "kvarn", "emission", "policy"}
    return path.stem.startswith(stems) or bool(subjects & set(path.parts))


def copy_checkout(root: Path) -> None:
    """Copy what all ops share, and none of the ops, so that little has to be compiled."""
    folders = [path for folder in NEEDED_FOLDERS for path in (ROOT / folder).rglob("*")]
    for path in (*(ROOT / name for name in NEEDED), *folders):
        name = path.relative_to(ROOT)
        if path.is_file() and "__pycache__" not in name.parts and not is_of_an_op(name):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, root / name)


def contents(root: Path) -> dict[str, str]:
    """Path -> digest of every file."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
@pytest.mark.emulated
def test_a_new_op_runs_on_every_host_and_edits_no_file(tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    before = contents(tmp_path)
    written = write_op(tmp_path, NAME)
    environment = {**os.environ, "ENGINEWRIGHT_REQUIRE": "native,emulated"}
    command = [sys.executable, "-c", RUN, *TESTS]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout.splitlines()[-1]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    made = {path.relative_to(tmp_path).as_posix() for path in written}
    left = {name for name in after.keys() - before.keys() - made if "__pycache__" not in name}
    assert all(name.startswith(("build/", "plugins/lib/")) for name in left)


def test_files_lie_in_folders_that_stand() -> None:
    made = [ROOT / path for path in new_files(NAME, "rows")]
    assert all(path.parent.is_dir() and not path.exists() for path in made)
    assert {path.parent.name for path in made} >= {"ort_cpu", "ort_cuda", "tensorrt", "launchers", "oracles"}


def test_files_pass_the_linters(tmp_path: Path) -> None:
    copy_checkout(tmp_path)
    written = write_op(tmp_path, NAME)
    python = [str(path) for path in written if path.suffix == ".py"]
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, *python], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    formatter = clang_format.get_executable("clang-format")
    sources = [str(path) for path in written if path.suffix != ".py"]
    subprocess.run([formatter, "--dry-run", "--Werror", *sources], check=True)


def test_no_word_of_the_skeleton_is_left() -> None:
    for path, text in new_files(NAME, "rows").items():
        assert not {"@", "STEM", "FOLDER"} & set(path) and "@Name@" not in text and "@stem@" not in text, path
    assert 'name="ScaleRows"' in new_files(NAME, "rows")[f"plugins/ops/{STEM}.py"]


@pytest.mark.parametrize("name", ["scaleRows", "Scale_Rows", "SCALE", "", "Scale Rows"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"new-op: NAME: got .*, expected words that begin with capitals"):
        new_files(name, "rows")


def test_what_is_no_folder_is_refused() -> None:
    with pytest.raises(ValueError, match=r"new-op: FOLDER: got '../rows', expected a word in small letters"):
        new_files(NAME, "../rows")


def test_an_op_that_is_there_is_refused(tmp_path: Path) -> None:
    write_op(tmp_path, NAME)
    with pytest.raises(ValueError, match=rf"new-op: ScaleRows: got a checkout that has .*{STEM}\.cpp"):
        write_op(tmp_path, NAME)


def test_the_command_needs_a_name() -> None:
    done = subprocess.run([sys.executable, "-m", "enginewright.plugins.new_op"], capture_output=True, text=True)
    assert done.returncode == 1 and "new-op: got 0 arguments, expected NAME [FOLDER]" in done.stderr
