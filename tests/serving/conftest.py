"""Fixtures of the serving tests: a server of the bundled model, and the same engine in this process for comparison."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from enginewright.exporters.recipe import Recipe
from enginewright.runtime import LLM, cli, load
from tests.support.exporters.fixtures import built_once
from tests.support.once import made_once
from tests.support.paths import ROOT
from tests.support.serving import tritonserver
from tests.support.serving.streams import MODEL
from tests.support.serving.tritonserver import Installation, Server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of servers come first: pytest-xdist then leaves them to its first process, and one server serves them all."""
    here = Path(__file__).parent
    items.sort(key=lambda item: not item.path.is_relative_to(here))


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """The server, in a virtual environment of its own."""
    if reason := tritonserver.missing():
        pytest.skip(reason)
    home = made_once(tmp_path_factory, tritonserver.WHEEL, tritonserver.install)
    return tritonserver.find(home / "venv")


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as an engine directory."""
    return built_once(tmp_path_factory, ROOT / "examples/tiny-reasoner", Recipe())


@pytest.fixture(scope="session")
def repository(engine: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository that serves it."""
    root = tmp_path_factory.mktemp("repository")
    command = ["triton", str(engine), "--output", str(root), "--name", MODEL, "--max-queue", "64", "--threads", "1"]
    assert cli.main(command) == 0
    return root


@pytest.fixture(scope="session")
def server(installation: Installation, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that every test may use and none may stop."""
    log = tmp_path_factory.mktemp("server") / "log"
    with tritonserver.serve(installation, repository, log) as running:
        yield running


@pytest.fixture(scope="session")
def llm(engine: Path) -> Iterator[LLM]:
    """The same engine in this process."""
    with load(engine, threads=1) as opened:
        yield opened
