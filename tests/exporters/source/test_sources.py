"""Tests of the door of checkpoint formats: recognition, sources of an extension, stored bytes and stored codes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from enginewright.exporters.build import build
from enginewright.exporters.checkpoint_export.writer import export_checkpoint
from enginewright.exporters.methods.model_hash import hash_of
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.exporters.source.checkpoint import Checkpoint, open_checkpoint
from enginewright.exporters.source.formats.safetensors import SOURCE, WEIGHTS, SafetensorsSource
from enginewright.exporters.source.parameters import bind_parameters
from enginewright.exporters.source.reference import load_reference
from enginewright.exporters.source.registry import FORMATS, find_source
from enginewright.exporters.source.skeleton import build_skeleton
from enginewright.exporters.source.tensor_source import SourceFormat, StoredTensor
from enginewright.exporters.weights.weight import QuantizedRows
from enginewright.runtime.errors import ExportError
from enginewright.runtime.loader import load
from enginewright.runtime.requests.sampling import Sampling
from tests.support.exporters.families import save_checkpoint
from tests.support.extensions import SAMPLES, extended
from tests.support.paths import ROOT

TINY = ROOT / "examples/tiny-reasoner"
MODULE = """
from enginewright.exporters.source.formats.safetensors import SafetensorsSource
from enginewright.exporters.source.tensor_source import SourceFormat
SOURCE = SourceFormat(name={name!r}, expects="{name} files", recognise=lambda p: p.is_dir(), open=SafetensorsSource{more})
"""


@pytest.fixture
def sample() -> Iterator[None]:
    """The sample extension, for one test."""
    with extended(SAMPLES):
        yield


def to_npy(model: Path, target: Path) -> Path:
    """Write a checkpoint of one safetensors file as a folder of .npy files."""
    target.mkdir()
    for path in model.iterdir():
        if path.suffix in (".json", ".jinja"):
            shutil.copy(path, target)
    for name, tensor in load_file(model / WEIGHTS).items():
        np.save(target / f"{name}.npy", tensor.float().numpy())
    return target


def files(root: Path) -> dict[str, str]:
    """The hash of each file of an engine's graphs."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (root / "graphs").iterdir()}


def test_a_path_that_no_format_knows_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"got no checkpoint of a known format, .* safetensors \(a directory with"):
        find_source(tmp_path)
    with extended(SAMPLES), pytest.raises(ExportError, match=r"npy_folder \(a directory with config.json and NAME.npy"):
        find_source(tmp_path)


def extension(root: Path, **modules: str) -> Path:
    """A folder with sources that recognise every directory; a module's text is what its format has besides a name."""
    (root / "more/sources").mkdir(parents=True)
    for name, more in modules.items():
        (root / f"more/sources/{name}.py").write_text(MODULE.format(name=name, more=more))
    return root / "more"


def test_two_formats_that_know_one_path_are_named(tmp_path: Path) -> None:
    with (
        extended(extension(tmp_path, greedy="")),
        pytest.raises(ExportError, match="tiny-reasoner: got a checkpoint that is greedy and safetensors at once"),
    ):
        open_checkpoint(str(TINY))


def test_a_format_may_go_before_another(tmp_path: Path) -> None:
    with extended(extension(tmp_path, special=", instead_of='safetensors'")):
        assert open_checkpoint(str(TINY)).format.name == "special"
    assert open_checkpoint(str(TINY)).format.name == "safetensors"
    with (
        extended(extension(tmp_path / "two", a=", instead_of='safetensors'", b=", instead_of='safetensors'")),
        pytest.raises(ExportError, match="is a and b at once"),
    ):
        open_checkpoint(str(TINY))


def test_the_bundled_formats() -> None:
    assert {"awq", "fp8", "gguf", "gptq", "mxfp4", "safetensors"} <= set(FORMATS.names())


def test_content_is_what_is_stored(tmp_path: Path) -> None:
    save_checkpoint("mistral", tmp_path / "m", max_shard_size="60KB")
    opened = open_checkpoint(str(tmp_path / "m"))
    assert len({stored.file for stored in opened.tensors.values()}) > 1
    for name, stored in opened.tensors.items():
        values = load_file(stored.file)[name]
        content = b"".join(opened.content(name))
        assert content == values.view(torch.uint8).numpy().tobytes() and len(content) == stored.size
        assert stored.shape == tuple(values.shape)


def test_content_of_a_file_that_shrank(tmp_path: Path) -> None:
    save_checkpoint("mistral", tmp_path / "m")
    opened = open_checkpoint(str(tmp_path / "m"))
    last = max(opened.tensors, key=lambda name: opened.source._begins[name])  # type: ignore[attr-defined]
    path = tmp_path / "m" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ExportError, match=rf"{WEIGHTS}: tensor '{last}' cannot be read .*shorter.; download"):
        list(opened.content(last))


def test_the_hash_of_the_bundled_backbone_is_that_of_its_heads() -> None:
    heads = json.loads((ROOT / "examples/tiny-reasoner-clp/clp_config.json").read_text())
    assert hash_of(open_checkpoint(str(TINY))) == heads["backbone"]["sha256"]


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.usefixtures("sample")
def test_a_source_of_an_extension_builds_the_same_engine(tmp_path: Path) -> None:
    model = to_npy(TINY, tmp_path / "tiny-reasoner")
    recipe = Recipe(max_batch=2, max_context=256)
    build(str(TINY), tmp_path / "expected", recipe, "onnxruntime")
    manifest = build(str(model), tmp_path / "got", recipe, "onnxruntime")
    assert files(tmp_path / "got") == files(tmp_path / "expected")
    assert {Path(file.path).name for file in manifest.tokenizer} >= {"tokenizer.json", "tokenizer_config.json"}
    with load(tmp_path / "got", threads=1) as llm:
        assert llm.generate(["12 + 7 ="], Sampling(max_tokens=4))[0].token_ids


SINGLE = """
import io
import numpy as np
import torch
from enginewright.exporters.source.tensor_source import SourceFormat, StoredTensor

class Archive:
    def __init__(self, path):
        self.path, self._content = path, np.load(path)

    @property
    def tensors(self):
        return {
            name: StoredTensor(file=self.path, dtype="F32", shape=self._content[name].shape, size=self._content[name].nbytes)
            for name in self._content.files if not name.endswith(".json")
        }

    @property
    def missing(self):
        return {}

    def read(self, name, part=None):
        values = self._content[name]
        return torch.from_numpy(values if part is None else values[part : part + 1])

    def content(self, name):
        yield self._content[name].tobytes()

    def codes(self, name):
        return None

    def file_names(self):
        return tuple(name for name in self._content.files if name.endswith(".json"))

    def read_file(self, name):
        return self._content[name].tobytes()

    def unused(self):
        return ()

SOURCE = SourceFormat(name="archive", expects="one .npz file", recognise=lambda p: p.suffix == ".npz", open=Archive)
"""


def test_a_source_may_be_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "more/sources").mkdir(parents=True)
    (tmp_path / "more/sources/archive.py").write_text(SINGLE)
    content = {name: tensor.float().numpy() for name, tensor in load_file(TINY / WEIGHTS).items()}
    for name in ("config.json", "tokenizer.json"):
        content[name] = np.frombuffer((TINY / name).read_bytes(), np.uint8)
    np.savez(tmp_path / "tiny.npz", **content)
    with extended(tmp_path / "more"):
        opened = open_checkpoint(str(tmp_path / "tiny.npz"))
        assert opened.name == "tiny" and opened.generation == {}
        assert opened.tokenizer_files() == {"tokenizer.json": (TINY / "tokenizer.json").read_bytes()}
        skeleton = build_skeleton(opened.config, attention="eager", max_context=64)
        weights = bind_parameters(opened, skeleton.model)
    assert {name for name, _ in skeleton.model.named_parameters()} <= weights.keys()
    np.testing.assert_array_equal(weights["model.norm.weight"].load(), content["model.norm.weight"])


@pytest.mark.usefixtures("sample")
def test_the_reference_is_filled_from_a_source_that_transformers_does_not_read(tmp_path: Path) -> None:
    ids = torch.arange(7)[None]
    with torch.no_grad():
        expected = load_reference(str(TINY), ())(input_ids=ids).logits
        got = load_reference(str(to_npy(TINY, tmp_path / "m")), ())(input_ids=ids).logits
    assert torch.equal(got, expected)


@pytest.mark.usefixtures("sample")
def test_a_checkpoint_of_another_format_is_exported_as_safetensors(tmp_path: Path) -> None:
    model = to_npy(TINY, tmp_path / "m")
    lora = parse_method(f"lora:path={ROOT / 'examples/tiny-reasoner-lora'}")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    export_checkpoint(open_checkpoint(str(model)), tmp_path / "a", (lora,), "compressed-tensors")
    export_checkpoint(open_checkpoint(str(TINY)), tmp_path / "b", (lora,), "compressed-tensors")
    got, source = load_file(tmp_path / "a" / WEIGHTS), load_file(tmp_path / "b" / WEIGHTS)
    assert got.keys() == source.keys()
    assert all(torch.equal(got[name].to(source[name].dtype), source[name]) for name in got)
    assert not (tmp_path / "a/model.safetensors.index.json").exists()
    assert open_checkpoint(str(tmp_path / "a")).format is SOURCE


@pytest.mark.usefixtures("sample")
def test_types_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    model = to_npy(TINY, tmp_path / "m")
    name = "model.layers.0.mlp.up_proj.weight"
    np.save(model / f"{name}.npy", np.zeros((4, 4), np.int32))
    opened = open_checkpoint(str(model))
    skeleton = build_skeleton(opened.config, attention="eager", max_context=64)
    with pytest.raises(ExportError, match=rf"{name}.npy: tensor '{name}' got type int32, expected float32 or float16"):
        bind_parameters(opened, skeleton.model)


class _Codes(SafetensorsSource):
    """The bundled model, of which one matrix is stored as codes."""

    NAME = "model.layers.0.mlp.up_proj.weight"
    ROWS = QuantizedRows(
        bits=4,
        group_size=32,
        load=lambda: (
            np.random.default_rng(0).integers(-8, 8, (768, 256)).astype(np.int8),
            np.full((768, 8), 0.01, np.float32),
        ),
    )

    @property
    def tensors(self) -> dict[str, StoredTensor]:  # type: ignore[override]
        stored = super().tensors
        return {**stored, self.NAME: replace(stored[self.NAME], codes="Q")}

    def codes(self, name: str, part: int | None = None) -> QuantizedRows | None:
        return self.ROWS if name == self.NAME else None

    def read(self, name: str, part: int | None = None) -> torch.Tensor:
        return torch.from_numpy(self.ROWS.restore()) if name == self.NAME else super().read(name, part)


def with_codes() -> Checkpoint:
    """The bundled checkpoint with codes in it."""
    opened = open_checkpoint(str(TINY))
    return replace(opened, source=_Codes(opened.path))


def test_codes_of_a_source_are_kept() -> None:
    opened = with_codes()
    skeleton = build_skeleton(opened.config, attention="eager", max_context=64)
    shape = opened.tensors[_Codes.NAME].shape
    weight = bind_parameters(opened, skeleton.model, restored="")[_Codes.NAME]
    assert weight.quantized is _Codes.ROWS and weight.shape == shape
    np.testing.assert_array_equal(weight.load(), _Codes.ROWS.restore())


def test_codes_of_a_source_are_numbers_for_what_changes_weights() -> None:
    opened = with_codes()
    skeleton = build_skeleton(opened.config, attention="eager", max_context=64)
    weight = bind_parameters(opened, skeleton.model)[_Codes.NAME]
    assert weight.quantized is None and weight.stored is not None
    assert (weight.stored.name, weight.stored.restored) == ("Q", "the command reads numbers")
    np.testing.assert_array_equal(weight.load(), _Codes.ROWS.restore())
    adapter = parse_method(f"lora:path={ROOT / 'examples/tiny-reasoner-lora'}")
    changed = adapter.transform_weights(bind_parameters(opened, skeleton.model), opened)[_Codes.NAME]
    assert not np.array_equal(changed.load(), weight.load())


def test_a_source_that_gives_another_shape_is_named() -> None:
    class Wrong(SafetensorsSource):
        def read(self, name: str, part: int | None = None) -> torch.Tensor:
            return super().read(name, part)[:-1]

    opened = replace(open_checkpoint(str(TINY)), source=Wrong(TINY))
    with pytest.raises(ExportError, match=r"'model.norm.weight' got torch.float32 \[255\] from safetensors, expected"):
        opened.read("model.norm.weight")


def test_a_format_with_an_unknown_part_is_an_error() -> None:
    with pytest.raises(TypeError, match="recognize"):
        SourceFormat(name="x", expects="x", recognize=lambda _: True, open=SafetensorsSource)  # type: ignore[call-arg]
