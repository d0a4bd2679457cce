"""The project's chores, one session each: `nox -l` lists them, `nox -s quick` runs one, plain `nox` the first three.

Sessions run in the environment that nox itself runs in, the one CONTRIBUTING.md sets up, so nothing is installed twice
and no network is needed. `nox --force-venv-backend venv` gives every session a fresh environment of its own instead.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
CXX = tuple(
    f":(glob){folder}/**/*.{kind}" for folder in ("plugins/csrc", "tests") for kind in ("h", "cpp", "cuh", "cu")
)

nox.needs_version = ">=2025.2"
nox.options.default_venv_backend = "none"
nox.options.reuse_venv = "yes"
nox.options.error_on_external_run = True
nox.options.sessions = ["lint", "types", "quick"]


def _prepare(session: nox.Session, *extras: str) -> str:
    """Install the checkout with `extras` where the session has an environment of its own; returns its Python."""
    if session.venv_backend == "none":
        return sys.executable
    session.install("-e", f".[{','.join(extras)}]")
    return "python"


def _run(session: nox.Session, *command: str | os.PathLike[str], **variables: str) -> None:
    session.run(*command, env=variables or None, external=True)


def _pytest(session: nox.Session, *arguments: str, **variables: str) -> None:
    """Run pytest with a process per core; what follows `--` on nox's command line goes to pytest.

    Each process takes a run of neighbouring tests, and steals from another when it has none left: most tests find what an
    earlier one of their file has made.
    """
    python = _prepare(session, "test")
    processes = ("-n", "logical", "--dist", "worksteal")
    _run(session, python, "-m", "pytest", *processes, *arguments, *session.posargs, **variables)


def _script(session: nox.Session, name: str) -> str:
    """The program `name` of the session's environment, whether or not that of nox is activated."""
    own = Path(sys.executable).with_name(name)
    return str(own) if session.venv_backend == "none" and own.is_file() else name


@nox.session
def lint(session: nox.Session) -> None:
    """Rules and formatting of Python and C++; changes no file."""
    python = _prepare(session, "test")
    _run(session, python, "-m", "ruff", "check", ".")
    _run(session, python, "-m", "ruff", "format", "--check", ".")
    sources = Path(session.create_tmp()) / "sources.txt"
    sources.write_text("\n".join(_cxx_sources()))
    _run(session, _script(session, "clang-format"), "--dry-run", "--Werror", f"--files={sources}")


@nox.session
def types(session: nox.Session) -> None:
    """Static types of the four packages: mypy, strict."""
    _run(session, _prepare(session, "test"), "-m", "mypy", *session.posargs)


@nox.session
def quick(session: nox.Session) -> None:
    """The tests to run while working, in about three minutes on two cores: none that is slow, or compiles, or wants a GPU."""
    _pytest(session, "-m", "not slow and not emulated and not cuda")


@nox.session
def tests(session: nox.Session) -> None:
    """Every test that this machine can run; what the extra [test] and a C++ compiler bring may not be missing."""
    required = os.environ.get("ENGINEWRIGHT_REQUIRE", "native,emulated,rtx")
    _pytest(session, "--durations=60", "--durations-min=4", ENGINEWRIGHT_REQUIRE=required)


@nox.session
def kernels(session: nox.Session) -> None:
    """The CUDA kernels on an emulated device, so no GPU is needed; the first run compiles them, which takes minutes."""
    _pytest(session, "tests/kernels")


@nox.session
def fuzz(session: nox.Session) -> None:
    """Hostile and damaged inputs, a hundred times as many as CI tries; ENGINEWRIGHT_FUZZ has another factor."""
    _pytest(session, "tests/fuzz", ENGINEWRIGHT_FUZZ=os.environ.get("ENGINEWRIGHT_FUZZ", "100"))


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation into build/site/; a broken link or an unknown name fails. `nox -s docs -- serve` shows it live."""
    python = _prepare(session, "docs")
    _run(session, python, "-m", "mkdocs", *(session.posargs or ("build", "--strict")))


@nox.session
def bench(session: nox.Session) -> None:
    """One benchmark: `nox -s bench -- speed.long_context --help`; without a name, the list of them."""
    if not session.posargs:
        session.error(f"bench: got no name; known: {', '.join(_benchmarks())}; do: nox -s bench -- NAME [OPTION ...]")
    name, *options = session.posargs
    _run(session, _prepare(session, "test"), "-m", f"benchmarks.{name}", *options)


@nox.session
def families(session: nox.Session) -> None:
    """Engines of every model type next to transformers: `nox -s families -- qwen3`; `-- --help` has the options."""
    _run(session, _prepare(session, "test"), "-m", "benchmarks.families", *session.posargs)


@nox.session(name="new-op")
def new_op(session: nox.Session) -> None:
    """The files of a new op, which compile and pass their tests: `nox -s new-op -- ScaleRows`; then edit them."""
    _run(session, _prepare(session), "-m", "enginewright.plugins.new_op", *session.posargs)


@nox.session
def readme(session: nox.Session) -> None:
    """README's commands as they stand there, each in a fresh clone and a fresh environment (downloads torch)."""
    _run(session, "bash", str(ROOT / ".ci" / "run"))


def _benchmarks() -> list[str]:
    """Names of the modules in benchmarks/ that are commands."""
    home = ROOT / "benchmarks"
    commands = [path for path in home.rglob("*.py") if 'if __name__ == "__main__"' in path.read_text()]
    names = {path.parent if path.name == "__main__.py" else path.with_suffix("") for path in commands}
    return sorted(".".join(name.relative_to(home).parts) for name in names)


def _cxx_sources() -> list[str]:
    """The C++ and CUDA files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *CXX]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.split("\0") if (ROOT / name).is_file()]
