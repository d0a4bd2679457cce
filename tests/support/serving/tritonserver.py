"""Installs and runs a real tritonserver on the loopback interface, in its own environment and with free ports.

    python tests/support/serving/tritonserver.py REPOSITORY --home DIR

This installs one from PyPI under DIR, where it is found the next time, and serves on Triton's usual ports until interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import enginewright.plugins
import enginewright.runtime
from enginewright.plugins.libraries.locate import ort_library
from tests.support.paths import ROOT

WHEEL = "nvidia-pytriton==0.7.0"
START_SECONDS = 60


@dataclass(frozen=True)
class Installation:
    """The places of the server's parts: binary, backends, interpreter, libraries."""

    python: Path
    site: Path
    backends: Path

    @property
    def binary(self) -> Path:
        return self.site / "pytriton/tritonserver/bin/tritonserver"


def missing() -> str | None:
    """The reason why no server can run here; None if one can."""
    if (sys.platform, platform.machine()) not in {("linux", "x86_64"), ("linux", "aarch64")}:
        return f"{WHEEL} has no wheel for {sys.platform} on {platform.machine()}"
    if sys.version_info[:2] not in {(3, 11), (3, 12), (3, 13)}:
        return f"{WHEEL} has no stub for Python {sys.version_info[0]}.{sys.version_info[1]}"
    if python_library() is None:
        return (
            f"no {_library_name()} in the interpreter's folder or on the loader's path, which the server's stub needs"
        )
    return None


def install(folder: Path) -> Installation:
    """Make the server's virtual environment in `folder`: the wheel, and what our runtime depends on."""
    environment = folder / "venv"
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info[0]}.{sys.version_info[1]}"
    subprocess.run([base, "-m", "venv", environment], check=True, timeout=120)
    python = environment / "bin/python"
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for packages in (["--no-deps", WHEEL], ["numpy<2", *wanted]):  # of the wheel, the server alone is used
        command = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    return find(environment)


def find(environment: Path) -> Installation:
    """Return the server in an environment that has the wheel; its backends are laid out as it looks for them."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    site = environment / f"lib/python{version}/site-packages"
    parts = site / "pytriton/tritonserver"
    backends = environment / "backends"
    target = backends / "python"
    target.mkdir(parents=True, exist_ok=True)
    links = [(path, target / path.name) for path in (parts / "backends/python").iterdir() if path.is_file()]
    stub = parts / f"python_backend_stubs/{version}/triton_python_backend_stub"
    for source, link in [*links, (stub, target / stub.name), *_package_links(site / "enginewright")]:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)  # of another checkout, perhaps
        link.symlink_to(source)
    return Installation(environment / "bin/python", site, backends)


def _package_links(package: Path) -> list[tuple[Path, Path]]:
    """The parts of the tested package that the server imports; an editable install keeps code and libraries apart."""
    plugins = Path(enginewright.plugins.__file__).parent
    sources = [
        (path, package / "plugins" / path.name) for path in plugins.iterdir() if path.name not in ("lib", "__pycache__")
    ]
    libraries = (ort_library().parent, package / "plugins/lib")
    return [(Path(enginewright.runtime.__file__).parent, package / "runtime"), *sources, libraries]


def python_library() -> Path | None:
    """The folder of the interpreter's shared library; None where it is built without one and the system has none."""
    folders = [Path(sysconfig.get_config_var("LIBDIR") or "/nowhere"), Path(sys.base_prefix) / "lib"]
    folders += [Path(sysconfig.get_config_var("LIBDIR") or "/") / (sysconfig.get_config_var("MULTIARCH") or "")]
    return next((folder for folder in folders if (folder / _library_name()).exists()), None)


def _library_name() -> str:
    return f"libpython{sys.version_info[0]}.{sys.version_info[1]}.so.1.0"


class Server:
    """A running server; created by `serve`."""

    def __init__(self, process: subprocess.Popen[bytes], ports: Sequence[int], log: Path) -> None:
        self.process = process
        self.http, self.grpc, self.metrics = (f"127.0.0.1:{port}" for port in ports)
        self.log = log

    def read(self, path: str, data: bytes | None = None, *, port: str | None = None, timeout: float = 60) -> bytes:
        """Return the body of an HTTP answer; the server's error is raised with its text."""
        headers = {} if data is None else {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://{port or self.http}{path}", data=data, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return bytes(answer.read())

    def is_ready(self, model: str = "") -> bool:
        """Whether the server, or one of its models, answers requests."""
        return self.answers(f"/v2/models/{model}/ready" if model else "/v2/health/ready", self.http)

    def answers(self, path: str, port: str) -> bool:
        """Whether a program listens at the port."""
        try:
            self.read(path, port=port)
        except (urllib.error.URLError, ConnectionError):
            return False
        return True

    def measure(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's values with these labels over all instances."""
        total, wanted = 0.0, [f'{key}="{value}"' for key, value in labels.items()]
        for line in self.read("/metrics", port=self.metrics).decode().splitlines():
            head, _, value = line.rpartition(" ")
            if head.partition("{")[0] == name and all(label in head for label in wanted):
                total += float(value)
        return total

    def processes(self) -> list[int]:
        """The server's process and its stubs'."""
        import psutil

        own = psutil.Process(self.process.pid)
        return [own.pid, *(child.pid for child in own.children(recursive=True))]

    def stop(self, seconds: float = 30) -> int:
        """Ask the server to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextlib.contextmanager
def serve(
    found: Installation,
    repository: Path,
    log: Path,
    *options: str,
    wait: bool = True,
    ports: Sequence[int] | None = None,
) -> Iterator[Server]:
    """Start a server of the models in `repository`; it has ended when the block is left.

    ports: for HTTP, gRPC and metrics; None: free ones.
    """
    ports = ports or _free_ports(3)
    names = ("http", "grpc", "metrics")
    library = python_library()
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))},
        "PATH": f"{found.python.parent}:{os.environ['PATH']}",  # the stub finds its packages by the first python on it
        "LD_LIBRARY_PATH": f"{library}:{found.site / 'nvidia_pytriton.libs'}",
    }
    command = [
        str(found.binary),
        f"--model-repository={repository}",
        f"--backend-directory={found.backends}",
        *(f"--{name}-address=127.0.0.1" for name in names),
        *(f"--{name}-port={port}" for name, port in zip(names, ports, strict=True)),
        "--allow-gpu-metrics=false",
        "--exit-on-error=false",
        *options,
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = Server(process, ports, log)
    try:
        end = time.monotonic() + START_SECONDS
        measures = "--allow-metrics=false" not in options  # that port opens a moment after the others
        while wait and not (server.is_ready() and (not measures or server.answers("/metrics", server.metrics))):
            assert process.poll() is None and time.monotonic() < end, log.read_text(errors="replace")[-4000:]
            time.sleep(0.05)
        yield server
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and, where it does not end by itself, its stubs: they are one session."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def main() -> None:
    """Serve a repository until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("repository", type=Path, metavar="REPOSITORY")
    parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="of the server's virtual environment")
    arguments = parser.parse_args()
    if reason := missing():
        sys.exit(reason)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))  # so that the server ends, too
    home = arguments.home.resolve()
    home.mkdir(parents=True, exist_ok=True)
    found = find(home / "venv") if (home / "venv").exists() else install(home)
    with serve(found, arguments.repository.resolve(), home / "log", ports=(8000, 8001, 8002)) as server:
        print(
            f"ready: HTTP {server.http}, gRPC {server.grpc}, metrics {server.metrics}; log in {server.log}", flush=True
        )
        server.process.wait()


if __name__ == "__main__":
    main()
