"""Tests of builds that are killed before each call of the file system that publishes them: one engine is always there."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from enginewright.runtime.artifact import directory
from tests.support.fuzzing.rounds import rounds
from tests.support.paths import ROOT

# Overwrites an engine again and again, each time in a child that ends one call later, once its files are written; prints how
# many calls there are, and how often the old and the new engine was there afterwards. Python announces its calls of the
# file system to audit hooks, so that none is missed, those within shutil and ctypes included.
DRIVER = """
import json, os, shutil, sys
from pathlib import Path
from enginewright.runtime.artifact import directory, reservation
from tests.runtime.artifact.test_manifest import contents, write_engine

place, has_exchange = Path(sys.argv[1]), sys.argv[2] == "True"
output = place / "engine"
if not has_exchange:
    reservation.exchange = lambda *_: False

def build(content, calls=0):
    global left
    with directory.staged(output, overwrite=True) as root:
        write_engine(root, content)
        left = calls

left = 0

def count(event, arguments):
    global left
    if left and event.partition(".")[0] in ("open", "os", "shutil", "fcntl", "ctypes", "tempfile"):
        left -= 1
        if not left:
            os._exit(9)

sys.addaudithook(count)
found = {b"old": 0, b"new": 0}
calls = 0
while True:
    calls += 1
    shutil.rmtree(place, ignore_errors=True)
    write_engine(output, b"old")
    child = os.fork()
    if not child:
        build(b"new", calls)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9), (calls, code)
    manifest = directory.load(output)  # whole, or ArtifactError
    found[(output / manifest.graphs["g"].files[0].path).read_bytes()] += 1
    build(b"last")
    assert contents(output)["graphs/g.onnx"] == b"last", calls
    assert [path.name for path in place.iterdir()] == ["engine"], (calls, list(place.iterdir()))
    if code == 0:
        break
print(json.dumps({"calls": calls, "old": found[b"old"], "new": found[b"new"]}))
"""


@pytest.mark.parametrize("has_exchange", [True, False])
def test_a_kill_before_any_call_leaves_one_engine(tmp_path: Path, has_exchange: bool) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "place"), str(has_exchange)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["calls"] > 20 and found["old"] > 1 and found["new"] > 1, found


@pytest.mark.slow
@pytest.mark.native
def test_kills_at_random_moments_of_real_builds(tmp_path: Path) -> None:
    model, output, rng = ROOT / "examples/tiny-text", tmp_path / "engine", random.Random(0)
    command = [sys.executable, "-m", "enginewright.runtime.cli", "build", "--overwrite", "--trial", "none"]
    command += ["--model", str(model), "--output", str(output)]
    begin = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    duration = time.perf_counter() - begin
    for _ in range(rounds(3)):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        time.sleep(duration * rng.uniform(0.3, 1.05))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert directory.load(output).graphs["decoder"].engines
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["engine"]
    shutil.rmtree(output)
