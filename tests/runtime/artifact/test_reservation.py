"""Tests of builds that meet at one output, that are killed, and that replace an engine while it is read."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from enginewright.runtime.artifact import directory, reservation
from enginewright.runtime.errors import ArtifactError
from tests.runtime.artifact.test_manifest import contents, write_engine
from tests.support.paths import ROOT

# A build in a process of its own. `stop` says at which step it waits (and is killed).
BUILD = """
import os, sys
from pathlib import Path
from enginewright.runtime.artifact import directory, reservation
from tests.runtime.artifact.test_manifest import write_engine

output, stop, has_exchange = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "True"

def wait():
    print("waiting", flush=True)
    sys.stdin.read(1)

def rename(source, target, rename=os.rename):
    if stop == "renames" and Path(source).name == "new":
        wait()
    rename(source, target)

def remove(path, **_):
    if Path(path).exists():
        wait()

if not has_exchange:
    reservation.exchange = lambda *_: False
os.rename = rename
with directory.staged(output, overwrite=True) as root:
    write_engine(root, b"other")
    if stop == "build":
        wait()
    if stop == "removal":
        reservation.shutil.rmtree = remove
"""


class Other:
    """A build of `output` in another process, which waits at a step."""

    def __init__(self, output: Path, stop: str, *, has_exchange: bool) -> None:
        command = [sys.executable, "-c", BUILD, str(output), stop, str(has_exchange)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "waiting\n"

    def go_on(self) -> None:
        self.process.communicate("x", timeout=60)
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A whole engine directory, alone in its folder."""
    root = tmp_path / "place" / "engine"
    write_engine(root)
    return root


@pytest.fixture(params=[True, False], ids=["exchange", "renames"])
def has_exchange(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the file system can exchange two names; tests run with and without."""
    if not request.param:
        monkeypatch.setattr(reservation, "exchange", lambda *_: False)
    return bool(request.param)


def write_file(path: Path) -> None:
    path.write_text("mine")


def write_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("mine")


class TestAnOutputThatAppearsMeanwhile:
    @pytest.mark.parametrize("appear", [write_engine, write_folder, write_file])
    def test_is_not_touched(self, tmp_path: Path, appear: Callable[[Path], object]) -> None:
        output = tmp_path / "engine"
        with (
            pytest.raises(ArtifactError, match="engine: exists; pass --overwrite"),
            directory.staged(output, overwrite=False) as root,
        ):
            write_engine(root, b"new")
            appear(output)
            before = contents(output) or output.read_bytes()
        assert (contents(output) or output.read_bytes()) == before
        assert os.listdir(tmp_path) == ["engine"]

    def test_is_not_touched_between_the_last_look_and_the_rename(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        output, rename = tmp_path / "engine", os.rename

        def late(source: Path, target: Path) -> None:
            write_folder(output)
            rename(source, target)

        with (
            pytest.raises(ArtifactError, match="engine: exists"),
            directory.staged(output, overwrite=False) as root,
        ):
            write_engine(root)
            monkeypatch.setattr(os, "rename", late)
        assert os.listdir(tmp_path) == ["engine"] and os.listdir(output) == ["thesis.txt"]

    def test_is_not_overwritten_when_it_is_no_engine(self, engine: Path) -> None:
        with (
            pytest.raises(ArtifactError, match="is no engine directory"),
            directory.staged(engine, overwrite=True) as root,
        ):
            write_engine(root, b"new")
            os.rename(engine, engine.with_name("moved"))
            write_folder(engine)
        assert sorted(os.listdir(engine.parent)) == ["engine", "moved"]
        assert os.listdir(engine) == ["thesis.txt"]


class TestTwoBuilds:
    @pytest.mark.parametrize("overwrite", [False, True])
    def test_the_second_is_refused_and_the_first_goes_on(self, tmp_path: Path, overwrite: bool) -> None:
        output = tmp_path / "engine"
        first = Other(output, "build", has_exchange=True)
        with (
            pytest.raises(ArtifactError, match="engine: got another build that writes it now, expected none; wait"),
            directory.staged(output, overwrite=overwrite),
        ):
            pytest.fail("the block must not run")
        first.go_on()
        directory.load(output)
        assert (output / "graphs/g.onnx").read_bytes() == b"other"
        assert os.listdir(tmp_path) == ["engine"]

    def test_two_outputs_of_one_folder_do_not_meet(self, tmp_path: Path) -> None:
        with (
            directory.staged(tmp_path / "a", overwrite=False) as a,
            directory.staged(tmp_path / "b", overwrite=False) as b,
        ):
            write_engine(a)
            write_engine(b)
        assert sorted(os.listdir(tmp_path)) == ["a", "b"]

    def test_one_at_a_time_from_many_threads(self, tmp_path: Path) -> None:
        output, inside, most, built = tmp_path / "engine", [0], [0], [0]

        def build() -> None:
            for _ in range(25):
                try:
                    with directory.staged(output, overwrite=True) as root:
                        inside[0] += 1
                        most[0] = max(most[0], inside[0])
                        write_engine(root)
                        inside[0] -= 1
                    built[0] += 1
                except ArtifactError as e:
                    assert "another build" in str(e)

        threads = [threading.Thread(target=build) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert built[0] and most == [1]
        directory.load(output)
        assert os.listdir(tmp_path) == ["engine"]

    def test_without_locks_the_directory_is_the_lock(self, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def unsupported(*_: object) -> None:
            raise OSError(errno.EOPNOTSUPP, "Operation not supported")

        monkeypatch.setattr(fcntl, "flock", unsupported)
        with directory.staged(engine, overwrite=True) as root:
            write_engine(root, b"new")
            with (
                pytest.raises(
                    ArtifactError, match="new: got files of another build of engine, or of one that was killed"
                ),
                directory.staged(engine, overwrite=True),
            ):
                pytest.fail("the block must not run")
        directory.load(engine)
        assert (engine / "graphs/g.onnx").read_bytes() == b"new"
        assert os.listdir(engine.parent) == ["engine"]

    def test_a_link_in_the_place_of_the_hidden_directory_is_not_followed(self, engine: Path, tmp_path: Path) -> None:
        write_folder(tmp_path / "new")
        engine.with_name(".engine.enginewright").symlink_to(tmp_path)
        with pytest.raises(ArtifactError, match="move it away"), directory.staged(engine, overwrite=True):
            pytest.fail("the block must not run")
        assert os.listdir(tmp_path / "new") == ["thesis.txt"]


class TestKilledBuild:
    @pytest.mark.parametrize("stop", ["build", "removal"])
    def test_the_next_build_removes_what_is_left(self, engine: Path, has_exchange: bool, stop: str) -> None:
        Other(engine, stop, has_exchange=has_exchange).kill()
        directory.load(engine)
        assert len(os.listdir(engine.parent)) == 2
        with directory.staged(engine, overwrite=True) as root:
            assert not any(root.iterdir())
            write_engine(root, b"new")
        assert (engine / "graphs/g.onnx").read_bytes() == b"new"
        assert os.listdir(engine.parent) == ["engine"]

    def test_a_refused_build_removes_it_too(self, engine: Path) -> None:
        Other(engine, "build", has_exchange=True).kill()
        with pytest.raises(ArtifactError, match="exists; pass"), directory.staged(engine, overwrite=False):
            pytest.fail("the block must not run")
        assert os.listdir(engine.parent) == ["engine"]

    @pytest.mark.parametrize("how", ["load", "build", "link"])
    def test_between_two_renames_the_old_engine_comes_back(self, engine: Path, how: str) -> None:
        before = contents(engine)
        Other(engine, "renames", has_exchange=False).kill()
        assert not engine.exists()
        if how == "build":
            with pytest.raises(ArtifactError, match="exists; pass"), directory.staged(engine, overwrite=False):
                pytest.fail("the block must not run")
        elif how == "link":
            (engine.parents[1] / "link").symlink_to(engine)
            directory.load(engine.parents[1] / "link")
        else:
            directory.load(engine)
        assert contents(engine) == before
        assert os.listdir(engine.parent) == ["engine"]

    def test_what_has_taken_the_place_of_the_old_engine_is_not_touched(self, engine: Path) -> None:
        Other(engine, "renames", has_exchange=False).kill()
        write_folder(engine)
        before = contents(engine.parent)
        with (
            pytest.raises(ArtifactError, match="old: got the old content of"),
            directory.staged(engine, overwrite=True),
        ):
            pytest.fail("the block must not run")
        assert contents(engine.parent) == before

    def test_a_reader_waits_for_a_living_build(self, engine: Path) -> None:
        other = Other(engine, "renames", has_exchange=False)
        timer = threading.Timer(0.2, other.go_on)
        timer.start()
        directory.load(engine)
        timer.join()
        assert (engine / "graphs/g.onnx").read_bytes() == b"other"

    def test_a_reader_does_not_wait_for_ever(self, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(directory, "_WAITS", 3)
        other = Other(engine, "renames", has_exchange=False)
        with pytest.raises(ArtifactError, match="another build"):
            directory.load(engine)
        other.go_on()


class TestReplace:
    @pytest.mark.parametrize("failing", [1, 2])
    def test_a_failed_rename_leaves_the_old_engine(
        self, engine: Path, failing: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(reservation, "exchange", lambda *_: False)
        before, rename, calls = contents(engine), os.rename, []

        def fail_once(source: Path, target: Path) -> None:
            calls.append(target)
            if len(calls) == failing:
                raise OSError(5, "Input/output error")
            rename(source, target)

        with pytest.raises(OSError), directory.staged(engine, overwrite=True) as root:
            write_engine(root, b"new")
            monkeypatch.setattr(os, "rename", fail_once)
        assert contents(engine) == before
        assert os.listdir(engine.parent) == ["engine"]

    def test_a_failed_exchange_leaves_the_old_engine(self, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> bool:
            raise OSError(5, "Input/output error")

        before = contents(engine)
        monkeypatch.setattr(reservation, "exchange", fail)
        with pytest.raises(OSError), directory.staged(engine, overwrite=True) as root:
            write_engine(root, b"new")
        assert contents(engine) == before
        assert os.listdir(engine.parent) == ["engine"]

    def test_readers_always_find_one_whole_engine(self, engine: Path, has_exchange: bool) -> None:
        errors, loads, is_over = [], [0], threading.Event()

        def load_always() -> None:
            while not is_over.is_set():
                try:
                    directory.load(engine)
                    loads[0] += 1
                except BaseException as e:
                    errors.append(e)
                    return

        thread = threading.Thread(target=load_always)
        thread.start()
        for i in range(100):
            with directory.staged(engine, overwrite=True) as root:
                write_engine(root, bytes([65 + i % 2]) * (5 + i % 3))
            time.sleep(0.002)
        is_over.set()
        thread.join()
        assert not errors and loads[0]


class TestSettled:
    def test_reads_again_what_was_replaced_meanwhile(self, engine: Path, has_exchange: bool) -> None:
        seen = []

        def read() -> bytes:
            seen.append((engine / "graphs/g.onnx").read_bytes())
            if len(seen) < 3:
                with directory.staged(engine, overwrite=True) as root:
                    write_engine(root, b"new %d" % len(seen))
            if len(seen) == 2:
                raise ArtifactError("content differs")  # of one engine's manifest and the other's files
            return seen[-1]

        assert directory.settled(engine, read) == b"new 2"
        assert seen == [b"graph", b"new 1", b"new 2"]

    def test_an_error_of_an_engine_that_stays_is_raised_at_once(self, engine: Path) -> None:
        calls = []

        def read() -> None:
            calls.append(1)
            raise ArtifactError("damaged")

        with pytest.raises(ArtifactError, match="damaged"):
            directory.settled(engine, read)
        assert calls == [1]

    @pytest.mark.parametrize("path", ["missing", "place/engine/manifest.json", "missing/deeper", "nul\0", "/"])
    def test_no_engine(self, engine: Path, path: str) -> None:
        with pytest.raises(ArtifactError, match=r"got no manifest\.json"):
            directory.load(engine.parents[1] / path)
