"""Tests of the engine directory: bad manifests are refused on reading, and writing is all or nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.manifest import (
    FORMAT,
    BuiltGraph,
    Cache,
    CacheLayer,
    Condition,
    ConditionTensor,
    Graph,
    Limits,
    Manifest,
    Model,
    TensorSpec,
)
from enginewright.runtime.errors import ArtifactError


def write_engine(root: Path, content: bytes = b"graph") -> Manifest:
    """An engine directory of a graph, an engine and a tokenizer that hold bytes without meaning."""
    files = {}
    for name, data in {
        "graphs/g.onnx": content,
        "engines/g.ort.onnx": b"engine",
        "conditions/calm.npz": b"values",
        "tokenizer/t.json": b"{}",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
        files[name] = directory.describe_file(root, root / name)
    pool = TensorSpec(name="kv.0.tiles", dtype="int8", shape=("tiles", 64))
    graph = Graph(
        files=(files["graphs/g.onnx"],),
        inputs=(pool,),
        outputs=(dataclasses.replace(pool, name="kv.0.tiles.out", alias="kv.0.tiles"),),
        ops={"PagedAttention": 1},
        engines=(BuiltGraph(backend="ort", version="1", compute="any", files=(files["engines/g.ort.onnx"],)),),
    )
    manifest = Manifest(
        name="m",
        created_by="tests",
        model=Model(family="f", vocab_size=7, hidden_size=4, max_positions=9, parameters=1, eos_token_ids=(2, 3)),
        limits=Limits(max_batch=1, max_context=9),
        cache=Cache(
            kind="paged",
            tile_tokens=128,
            kv_bits=16,
            layers=(CacheLayer(kv_heads=1, key_dim=2, value_dim=2, tile_bytes=64, window=5),),
        ),
        graphs={"g": graph},
        weights={"kind": "int4", "block_size": 32},
        conditions={
            "steer": Condition(
                capacity=2,
                scaled=True,
                tensors={"vector": ConditionTensor(dtype="float32", shape=(4,))},
                entries={"calm": files["conditions/calm.npz"]},
            )
        },
        applied=({"name": "lora", "path": "p", "weight": 0.5},),
        tokenizer=(files["tokenizer/t.json"],),
    )
    directory.save(manifest, root)
    return manifest


def contents(root: Path) -> dict[str, bytes]:
    """Every file under `root`, by its relative path."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def edit(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's JSON in place."""
    path = root / directory.MANIFEST
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A whole engine directory, alone in its folder."""
    root = tmp_path / "place" / "engine"
    write_engine(root)
    return root


class TestLoad:
    def test_round_trip(self, tmp_path: Path) -> None:
        written = write_engine(tmp_path)
        assert directory.load(tmp_path) == written
        assert (tmp_path / directory.MANIFEST).stat().st_mode & 0o777 == 0o644
        assert [file.path for file in written.files()] == [
            "graphs/g.onnx",
            "engines/g.ort.onnx",
            "conditions/calm.npz",
            "tokenizer/t.json",
        ]

    def test_tokens_per_row(self, tmp_path: Path) -> None:
        written = write_engine(tmp_path)
        assert written.tokens_per_row == 1
        assert dataclasses.replace(written, decoding={"kind": "multi_token", "k": 3}).tokens_per_row == 3

    def test_directory_without_a_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(ArtifactError, match=r"got no manifest.json.*enginewright build"):
            directory.load(tmp_path)
        with pytest.raises(ArtifactError, match=r"got no manifest.json"):
            directory.load(tmp_path / "nowhere")

    @pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b'{"format": 1,}'])
    def test_broken_json(self, engine: Path, text: bytes) -> None:
        (engine / directory.MANIFEST).write_bytes(text)
        with pytest.raises(ArtifactError, match=r"manifest.json: not valid JSON .*build the engine again"):
            directory.load(engine)

    @pytest.mark.parametrize(
        ("found", "fix"),
        [(FORMAT + 1, "upgrade"), (0, "build"), ("1", "build"), (None, "build"), (True, "")],
    )
    def test_other_formats_name_both_and_the_fix(self, engine: Path, found: object, fix: str) -> None:
        edit(engine, lambda raw: raw.update(format=found))
        with pytest.raises(ArtifactError, match=rf"got (format )?{found!r}, expected .*{fix}"):
            directory.load(engine)

    @pytest.mark.parametrize("text", ["[]", '"engine"', "null"])
    def test_json_that_is_no_object(self, engine: Path, text: str) -> None:
        (engine / directory.MANIFEST).write_text(text)
        with pytest.raises(ArtifactError, match="got format None, expected 1"):
            directory.load(engine)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda raw: raw.pop("cache"), "manifest.json: key 'cache' is missing"),
            (lambda raw: raw.update(colour=1), "manifest.json: unknown key 'colour'; known: name, created_by"),
            (lambda raw: raw["model"].update(vocab_size="7"), "manifest.json.model.vocab_size: got '7', expected int"),
            (lambda raw: raw["cache"]["layers"][0].pop("key_dim"), r"cache.layers\[0\]: key 'key_dim' is missing"),
            (lambda raw: raw["graphs"]["g"].update(inputs=3), "graphs.g.inputs: got 3"),
            (
                lambda raw: raw["conditions"]["steer"].update(per="layer"),
                "conditions.steer.per: got 'layer', expected one",
            ),
            (
                lambda raw: raw["conditions"].update({"a.b": raw["conditions"]["steer"]}),
                "manifest.json.conditions: got the name 'a.b', expected letters, digits, _ and - alone; build the engine",
            ),
            (
                lambda raw: raw["conditions"]["steer"]["tensors"].update({"": {"dtype": "float32", "shape": []}}),
                "conditions.steer.tensors: got the name '', expected letters",
            ),
            (
                lambda raw: raw["conditions"]["steer"].update(capacity=0),
                "conditions.steer.capacity: got 0, expected a whole number from 1 to 1048576; build the engine again",
            ),
            (
                lambda raw: raw["conditions"]["steer"]["tensors"].update(scale={"dtype": "float32", "shape": []}),
                "conditions.steer.tensors: got vector, scale, expected one or more, none of them called index or scale",
            ),
            (
                lambda raw: raw["conditions"]["steer"]["tensors"]["vector"].update(dtype="bfloat16"),
                "conditions.steer.tensors.vector.dtype: got 'bfloat16', expected one of float32, float16",
            ),
            (
                lambda raw: raw["conditions"]["steer"]["tensors"]["vector"].update(shape=[0]),
                r"conditions.steer.tensors.vector.shape: got \[0\], expected sizes of at least 1",
            ),
        ],
    )
    def test_wrong_keys_are_named(self, engine: Path, change: Callable[[dict[str, Any]], object], message: str) -> None:
        edit(engine, change)
        with pytest.raises(ArtifactError, match=message):
            directory.load(engine)

    @pytest.mark.parametrize("name", ["graphs/g.onnx", "engines/g.ort.onnx", "tokenizer/t.json"])
    def test_every_named_file_is_checked(self, engine: Path, name: str) -> None:
        path = engine / name
        whole = path.read_bytes()
        path.write_bytes(whole + b"x")
        with pytest.raises(ArtifactError, match=rf"{name}: got {len(whole) + 1} bytes, expected {len(whole)}"):
            directory.load(engine)
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(ArtifactError, match=rf"{name}: content differs .*sha256"):
            directory.load(engine)
        directory.load(engine, verify=False)  # sizes only
        path.unlink()
        with pytest.raises(ArtifactError, match=rf"{name}: named in manifest.json but missing"):
            directory.load(engine, verify=False)

    @pytest.mark.parametrize("escape", ["../outside", "/etc/hostname", "graphs/../../outside", "link"])
    def test_paths_stay_inside(self, engine: Path, escape: str) -> None:
        (engine.parent / "outside").write_bytes(b"secret")
        (engine / "link").symlink_to(engine.parent / "outside")
        edit(engine, lambda raw: raw["tokenizer"][0].update(path=escape, size=6))
        with pytest.raises(ArtifactError, match="outside the engine directory"):
            directory.load(engine, verify=False)

    @pytest.mark.parametrize("name", ["a\0b", "a" * 300, "a/" * 3000, "\udcff"])
    def test_a_path_that_no_file_can_have(self, engine: Path, name: str) -> None:
        edit(engine, lambda raw: raw["tokenizer"][0].update(path=name))
        with pytest.raises(ArtifactError):
            directory.load(engine)
        with pytest.raises(ArtifactError):
            directory.load(engine.parent / name)

    @pytest.mark.parametrize("name", ["manifest.json", "graphs/g.onnx", "tokenizer/t.json", "."])
    def test_links_that_lead_to_themselves(self, engine: Path, name: str) -> None:
        path = engine / name
        engine.rename(engine.with_name("moved")) if name == "." else path.unlink()
        path.symlink_to(path)
        with pytest.raises(ArtifactError):
            directory.load(engine)

    @pytest.mark.parametrize("name", ["manifest.json", "graphs/g.onnx", "tokenizer/t.json"])
    def test_a_pipe_is_not_waited_for(self, engine: Path, name: str) -> None:
        (engine / name).unlink()
        os.mkfifo(engine / name)
        with pytest.raises(ArtifactError):
            directory.load(engine)

    def test_a_name_that_is_not_utf_8(self, engine: Path) -> None:
        """ONNX Runtime takes no such path."""
        engine = engine.rename(engine.with_name("engine\udcff"))
        with pytest.raises(ArtifactError, match="not UTF-8"):
            directory.load(engine)


class TestSave:
    def test_failed_write_keeps_the_old_manifest(self, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        before = contents(engine)

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(OSError):
            directory.save(dataclasses.replace(directory.load(engine), name="new"), engine)
        assert contents(engine) == before


class TestStaged:
    def test_success(self, tmp_path: Path) -> None:
        output = tmp_path / "deep" / "er" / "engine"
        with directory.staged(output, overwrite=False) as root:
            assert not output.exists() and not any(root.iterdir())
            manifest = write_engine(root)
        assert directory.load(output) == manifest
        assert output.stat().st_mode & 0o777 == 0o755
        assert os.listdir(output.parent) == ["engine"]

    def test_an_empty_directory_is_filled(self, tmp_path: Path) -> None:
        (tmp_path / "engine").mkdir()
        with directory.staged(tmp_path / "engine", overwrite=False) as root:
            write_engine(root)
        directory.load(tmp_path / "engine")
        assert os.listdir(tmp_path) == ["engine"]

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_failure_leaves_the_old_engine_whole_and_nothing_beside_it(
        self, engine: Path, error: type[BaseException]
    ) -> None:
        before = contents(engine.parent)
        with pytest.raises(error), directory.staged(engine, overwrite=True) as root:
            write_engine(root, b"new")
            raise error
        assert contents(engine.parent) == before
        assert os.listdir(engine.parent) == ["engine"]

    def test_failure_leaves_no_new_parent(self, tmp_path: Path) -> None:
        (tmp_path / "kept").mkdir()
        with pytest.raises(RuntimeError), directory.staged(tmp_path / "kept/a/b/engine", overwrite=False) as root:
            write_engine(root)
            raise RuntimeError
        assert os.listdir(tmp_path) == ["kept"] and not os.listdir(tmp_path / "kept")

    def test_overwrite_replaces_everything(self, engine: Path) -> None:
        (engine / "reports").mkdir()
        (engine / "reports/old.json").write_text("{}")
        with directory.staged(engine, overwrite=True) as root:
            write_engine(root, b"new")
        assert (engine / "graphs/g.onnx").read_bytes() == b"new"
        assert not (engine / "reports").exists()
        assert os.listdir(engine.parent) == ["engine"]

    def test_an_engine_is_replaced_only_when_told(self, engine: Path) -> None:
        with pytest.raises(ArtifactError, match=r"exists; pass --overwrite"), directory.staged(engine, overwrite=False):
            pytest.fail("the block must not run")
        assert os.listdir(engine.parent) == ["engine"]

    @pytest.mark.parametrize("overwrite", [False, True])
    @pytest.mark.parametrize("kind", ["directory", "file"])
    def test_what_is_no_engine_is_never_replaced(self, tmp_path: Path, overwrite: bool, kind: str) -> None:
        output = tmp_path / "mine"
        if kind == "file":
            output.write_text("mine")
        else:
            output.mkdir()
            (output / "thesis.txt").write_text("mine")
        with pytest.raises(ArtifactError, match="exists"), directory.staged(output, overwrite=overwrite):
            pytest.fail("the block must not run")
        assert "mine" in "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
        assert os.listdir(tmp_path) == ["mine"]

    @pytest.mark.parametrize("name", ["a\0b", "engine\udcff", "loop"])
    def test_a_place_that_no_engine_can_have(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        with pytest.raises(ArtifactError), directory.staged(tmp_path / name, overwrite=True):
            pytest.fail("the block must not run")
        with pytest.raises(ArtifactError):
            directory.check_output(tmp_path / name, overwrite=True)
        assert os.listdir(tmp_path) == ["loop"]

    def test_a_link_to_an_engine_keeps_being_a_link(self, engine: Path, tmp_path: Path) -> None:
        link = tmp_path / "current"
        link.symlink_to(engine)
        with directory.staged(link, overwrite=True) as root:
            write_engine(root, b"new")
        assert link.is_symlink() and (engine / "graphs/g.onnx").read_bytes() == b"new"
        assert sorted(os.listdir(tmp_path)) == ["current", "place"]
        assert os.listdir(engine.parent) == ["engine"]

    def test_a_full_disk_in_mid_write(self, engine: Path) -> None:
        """A real write that the system cuts off: RLIMIT_FSIZE stands for the full disk."""
        before = contents(engine)
        code = (
            "import sys, pathlib\n"
            "import types; package = types.ModuleType('enginewright')\n"
            f"package.__path__ = [{str(Path(directory.__file__).parents[2])!r}]\n"
            "sys.modules['enginewright'] = package\n"
            "from enginewright.runtime.artifact import directory\n"
            "with directory.staged(pathlib.Path(sys.argv[1]), overwrite=True) as root:\n"
            "    (root / 'graphs').mkdir()\n"
            "    (root / 'graphs/g.onnx').write_bytes(bytes(100_000))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(engine)],
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 1 and "File too large" in done.stderr
        assert contents(engine) == before
        assert os.listdir(engine.parent) == ["engine"]
