"""Tests that the wheel and the source distribution contain the required files and no others."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("exporters", "builders", "plugins", "runtime")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
DIST_INFO = f"enginewright-{VERSION}.dist-info"
WHEEL_BYTES, SDIST_BYTES = 1_000_000, 2_500_000
NATIVE_SOURCES = {".h", ".cpp", ".cuh", ".cu", ".cmake", ".txt"}

pytestmark = pytest.mark.slow


def build(source: Path, output: Path, *kinds: str) -> None:
    """Build distributions of `source`, without a compiler and without the network."""
    command = [sys.executable, "-m", "build", "--no-isolation", *(f"--{kind}" for kind in kinds)]
    environment = {**os.environ, "ENGINEWRIGHT_NO_NATIVE": "1"}
    done = subprocess.run(
        [*command, "--outdir", str(output), str(source)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"build of {source}:\n{done.stdout}{done.stderr}"


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("distributions")
    build(ROOT, output, "sdist", "wheel")
    return output


@pytest.fixture(scope="module")
def wheel(distributions: Path) -> Path:
    (path,) = distributions.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(distributions: Path) -> Path:
    """The source distribution, unpacked."""
    (path,) = distributions.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(distributions, filter="data")
    return distributions / path.name.removesuffix(".tar.gz")


def modules(root: Path) -> set[str]:
    """The Python modules of the four packages, as paths in the checkout."""
    paths = (path for package in PACKAGES for path in (root / package).rglob("*.py"))
    return {path.relative_to(root).as_posix() for path in paths if "__pycache__" not in path.parts}


def files(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_holds_every_module_and_nothing_else(wheel: Path) -> None:
    expected = {f"enginewright/{name}" for name in modules(ROOT)}
    expected |= {"enginewright/__init__.py", "enginewright/py.typed"}
    expected |= {f"{DIST_INFO}/{name}" for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt")}
    expected |= {f"{DIST_INFO}/licenses/LICENSE"}
    found = files(wheel)
    assert sorted(expected - found) == [], "missing from the wheel"
    assert sorted(found - expected) == [], "in the wheel, and belongs elsewhere"


def test_the_wheel_holds_no_tests_and_no_benchmarks(wheel: Path) -> None:
    """No package contains a test or a benchmark, which the exact list of files would not notice."""
    wrong = [
        name
        for name in files(wheel)
        if Path(name).name.startswith(("test_", "conftest", "bench_"))
        or {"tests", "benchmarks", "bench_cuda", "docs", "examples", "csrc"} & set(Path(name).parts)
    ]
    assert not sorted(wrong)


def test_the_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < WHEEL_BYTES


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert f'__version__ = "{VERSION}"' in archive.read("enginewright/__init__.py").decode()
        entry_points = archive.read(f"{DIST_INFO}/entry_points.txt").decode()
        metadata = archive.read(f"{DIST_INFO}/METADATA").decode()
    assert "enginewright = enginewright.runtime.cli:main" in entry_points.replace("=", " = ").replace("  ", " ")
    assert "License-Expression: Apache-2.0" in metadata
    assert "\n# enginewright" in metadata, "README.md is the description"


def test_the_source_distribution_holds_what_a_build_needs(unpacked: Path) -> None:
    assert modules(unpacked) == modules(ROOT)
    for name in ("pyproject.toml", "README.md", "LICENSE", "build_engine.py", "plugins/CMakeLists.txt"):
        assert (unpacked / name).read_bytes() == (ROOT / name).read_bytes(), name
    sources = {path.relative_to(ROOT) for path in (ROOT / "plugins/csrc").rglob("*") if path.suffix in NATIVE_SOURCES}
    missing = [path.as_posix() for path in sources if not (unpacked / path).is_file()]
    assert not sorted(missing)


def test_the_source_distribution_is_clean_and_small(distributions: Path, unpacked: Path) -> None:
    (archive,) = distributions.glob("*.tar.gz")
    assert archive.stat().st_size < SDIST_BYTES, "it is to hold sources; the bundled models' weights stay out"
    outputs = ("*.so", "*.pyc", "*.safetensors", "build", "site", ".nox", ".mypy_cache", ".venv*", "__pycache__")
    wrong = [path.relative_to(unpacked).as_posix() for pattern in outputs for path in unpacked.rglob(pattern)]
    assert not sorted(wrong)
    held_out = unpacked / "examples/tiny-text/held_out.txt"
    assert not held_out.exists(), "it is under a licence of its own, which the package does not declare"


def test_a_wheel_of_the_source_distribution_is_the_same(unpacked: Path, wheel: Path, tmp_path: Path) -> None:
    build(unpacked, tmp_path, "wheel")
    (again,) = tmp_path.glob("*.whl")
    assert files(again) == files(wheel)


@pytest.mark.emulated
def test_the_native_build_finds_its_sources_in_the_source_distribution(unpacked: Path, tmp_path: Path) -> None:
    """Configures without compiling: CMake names each source that is not there."""
    command = ["cmake", "-S", str(unpacked / "plugins"), "-B", str(tmp_path), "-DENGINEWRIGHT_ORT=ON"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
