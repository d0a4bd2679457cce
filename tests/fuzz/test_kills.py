"""Tests of builds that are killed before each call of the file system that publishes them: one engine is always there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.fuzzing.figures import Figures
from tests.support.fuzzing.rounds import rounds, seed
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
def test_a_kill_before_any_call_leaves_one_engine(tmp_path: Path, has_exchange: bool, figures: Figures) -> None:
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "place"), str(has_exchange)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    figures.note("call", 0.0, attempts=found["calls"])
    assert found["calls"] > 20 and found["old"] > 1 and found["new"] > 1, found


# Overwrites an engine by builds of two models in turn, each in a forked child that is killed at a random moment; until then
# and afterwards, the engine is read. The process that forks has imported all modules, and started no thread.
BUILDS = """
import json, os, random, resource, signal, sys, time
from pathlib import Path
from enginewright.exporters.build import build
from enginewright.exporters.recipe import Recipe
from enginewright.runtime.artifact import directory

models, output, kills, draws = sys.argv[1:3], Path(sys.argv[3]), int(sys.argv[4]), random.Random(int(sys.argv[5]))

def start(model):
    child = os.fork()
    if not child:
        build(model, output, Recipe(), "onnxruntime", overwrite=True, trial="none")
        os._exit(0)
    return child

def family():
    return directory.load(output).model.family

def finish(model):
    begin = time.perf_counter()
    assert os.waitpid(start(model), 0)[1] == 0
    return time.perf_counter() - begin

seconds = max(finish(model) for model in (*models, models[0]))
current, found, loads, slowest = family(), {"old": 0, "new": 0}, 0, 0.0
known = {current}
for number in range(kills):
    begin, child = time.perf_counter(), start(models[(number + 1) % 2])
    end = begin + seconds * draws.uniform(0.0, 1.1)
    while time.perf_counter() < end:
        known.add(family())
        loads += 1
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    last = family()  # whole, or ArtifactError
    found["old" if last == current else "new"] += 1
    current = last
    slowest = max(slowest, time.perf_counter() - begin)
finish(models[0])
left = sorted(path.name for path in output.parent.iterdir())
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
print(json.dumps({"found": found, "loads": loads, "left": left, "known": len(known), "slowest": slowest, "peak": peak}))
"""


@pytest.mark.slow
@pytest.mark.native
def test_kills_at_random_moments_of_real_builds(tmp_path: Path, checkpoint: CheckpointMaker, figures: Figures) -> None:
    kills = rounds(5)
    models = [str(checkpoint(family)) for family in ("qwen3", "llama")]
    (tmp_path / "place").mkdir()
    command = [sys.executable, "-c", BUILDS, *models, str(tmp_path / "place/engine"), str(kills), str(seed(0))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    figures.note("kill", found["slowest"], attempts=kills)
    figures.peak = found["peak"]
    assert found["found"]["old"] + found["found"]["new"] == kills and found["found"]["old"] > 0
    assert found["left"] == ["engine"] and found["known"] <= 2 and found["loads"] > kills
