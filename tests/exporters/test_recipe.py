"""Tests of recipes from flags and YAML files, and of their precedence."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from enginewright.exporters.commands import build
from enginewright.exporters.methods.lora import Config
from enginewright.exporters.methods.registry import Applied
from enginewright.exporters.recipe import Recipe, parse_method, parse_weights, read_recipe
from enginewright.exporters.weights.registry import Storage, choose_storage
from enginewright.runtime import cli
from enginewright.runtime.errors import ExportError


def lora(path: str, weight: float = 1.0) -> Applied:
    """The method with its config."""
    return Applied("lora", Config(path=path, weight=weight))


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("lora:path=a", lora("a")),
        ("lora:path=a,weight=-0.5", lora("a", -0.5)),
        ({"lora": {"path": "a", "weight": 2}}, lora("a", 2.0)),
    ],
)
def test_methods(spec: str | dict[str, Any], expected: Applied) -> None:
    assert parse_method(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("lroa:path=a", r"apply: unknown method 'lroa'; known: adapters, clp, evict, kvarn, lora"),
        ("", r"apply: unknown method ''; known: adapters, clp, evict, kvarn, lora"),
        ({"lroa": {}}, r"unknown method 'lroa'; known: adapters, clp, evict, kvarn, lora"),
        ("lora:path=a,wieght=1", r"lora: unknown key 'wieght'; known: path, weight"),
        ("lora", r"lora: key 'path' is missing; known keys: path, weight"),
        ({"lora": None}, r"lora: key 'path' is missing"),
        ("lora:path=a,weight=heavy", r"lora.weight: got 'heavy', expected float"),
        ("lora:path=a,weight=nan", r"lora: got weight=nan, expected a finite number"),
        ("lora:path=a,path=b", r"key 'path' stands twice"),
        ({"lora": {"path": "a"}, "other": {}}, r"apply: got .*, expected NAME:key=value"),
        ({"lora": "a"}, r"apply: lora: got 'a', expected a mapping"),
        ({"lora": ["path"]}, r"apply: lora: got \['path'\], expected a mapping"),
        ({1: {}}, r"unknown method 1; known: adapters, clp, evict, kvarn, lora"),
        (7, r"apply: got 7, expected NAME:key=value"),
        (None, r"apply: got None, expected NAME:key=value"),
    ],
)
def test_bad_methods(spec: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_method(spec)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("float32", choose_storage("float32")),
        ("stored", choose_storage()),
        ("int8", choose_storage("int8")),
        (
            "int4:block_size=64,compute=float32,embedding=false,lm_head=False",
            choose_storage("int4", {"block_size": 64, "compute": "float32", "embedding": False, "lm_head": False}),
        ),
        ({"kind": "int4", "block_size": 128}, choose_storage("int4", {"block_size": 128})),
    ],
)
def test_weights(spec: str | dict[str, Any], expected: Storage) -> None:
    assert parse_weights(spec) == expected


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("int3", r"weights: unknown kind 'int3'; known: bfloat16, float32, int4, int8"),
        ("", r"weights: unknown kind ''"),
        (
            "int4:blocksize=32",
            r"weights: unknown key 'blocksize'; known: block_size, compute, embedding, lm_head, symmetric",
        ),
        ("float32:block_size=32", r"weights: unknown key 'block_size'; known: compute"),
        ("int4:block_size=33", r"weights: got block_size 33, expected 16, 32"),
        ("int4:block_size=many", r"weights.block_size: got 'many', expected int"),
        ("int4:lm_head=maybe", r"weights.lm_head: got 'maybe', expected bool"),
        ("int4:kind=int8", r"key 'kind' stands twice"),
        ({"kind": 4}, r"weights: kind: got 4, expected one of bfloat16, float32, int4, int8"),
        (4, r"weights: got 4, expected"),
        (None, r"weights: got None, expected"),
    ],
)
def test_bad_weights(spec: Any, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_weights(spec)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kv_bits": 8}, "kv_bits: got 8, expected 16 or 32"),
        ({"plugins": "some"}, "plugins: got 'some', expected all or none"),
        (
            {"plugins": "none", "kv_bits": 16},
            "kv_bits: got 16, expected 32: with plugins none the cache has .* float32",
        ),
        ({"max_batch": 0}, "max_batch: got 0, expected 1 to 65536"),
        ({"max_context": 0}, "max_context: got 0, expected 1 to 2147483648"),
    ],
)
def test_bad_limits(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Recipe(**fields)


WHOLE = """
apply:
  - lora: {path: first, weight: 0.5}
  - lora:path=second
weights: {kind: int4, block_size: 64}
kv_bits: 32
max_batch: 4
max_context: 100
"""


def parse(*flags: str) -> Recipe:
    """The recipe of a command line."""
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    return build._recipe(parser.parse_args(["--model", "m", "--output", "o", *flags]))


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe that sets everything."""
    path = tmp_path / "recipe.yaml"
    path.write_text(WHOLE)
    return path


def test_flags_equal_the_file(recipe_file: Path) -> None:
    expected = Recipe(
        apply=(lora("first", 0.5), lora("second")),
        weights=choose_storage("int4", {"block_size": 64}),
        kv_bits=32,
        max_batch=4,
        max_context=100,
    )
    assert parse("--recipe", str(recipe_file)) == expected
    flags = "--apply lora:path=first,weight=0.5 --apply lora:path=second --weights int4:block_size=64 --kv-bits 32"
    assert parse(*flags.split(), "--max-batch", "4", "--max-context", "100") == expected


def test_a_recipe_survives_its_file(tmp_path: Path) -> None:
    recipe = Recipe(apply=(lora("a"), lora("b", 3.0)), weights=choose_storage("int8", {"lm_head": False}), max_batch=2)
    fields = dataclasses.asdict(recipe)
    fields["apply"] = [{method.name: dataclasses.asdict(method.config)} for method in recipe.apply]
    fields["weights"] = {"kind": recipe.weights.kind, **dataclasses.asdict(recipe.weights.options)}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(fields))
    assert parse("--recipe", str(tmp_path / "r.yaml")) == recipe


def test_nothing_said_is_the_default() -> None:
    assert parse() == Recipe()


def test_flags_go_before_the_file_and_methods_add_up(recipe_file: Path) -> None:
    got = parse("--recipe", str(recipe_file), "--kv-bits", "16", "--weights", "float32", "--apply", "lora:path=third")
    assert (got.kv_bits, got.weights, got.max_batch) == (16, choose_storage("float32"), 4)
    assert got.apply == (lora("first", 0.5), lora("second"), lora("third"))


@pytest.mark.parametrize("text", ["apply:\n", "apply: []\n", "weights: stored\n", "max_context:\n"])
def test_harmless_files(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(text)
    assert parse("--recipe", str(tmp_path / "r.yaml")) == Recipe()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b"kvbits: 16",
            r"r.yaml: unknown key 'kvbits'; known: apply, weights, dtype, plugins, kv_bits, max_batch, max_context",
        ),
        (b"1: 2\nx: 3", r"r.yaml: unknown key"),
        (b"[1, 2]", r"r.yaml: got list, expected a mapping with apply"),
        (b"", r"r.yaml: got NoneType, expected a mapping"),
        (b"a: [", r"r.yaml: not valid YAML"),
        (b"a: !!python/object/apply:os.getcwd []", r"r.yaml: not valid YAML"),
        (b"\xff\xfe\x00", r"r.yaml: not valid YAML"),
        (b"name: caf\xe9", r"r.yaml: not valid YAML"),
        (b"[" * 5000, r"r.yaml: not valid YAML"),
        (b"max_batch: " + b"9" * 5000, r"r.yaml: not valid YAML"),
        (b"max_batch: 2026-13-45", r"r.yaml: not valid YAML"),
        (b"a: &a [1]\nb: [*a, *a]", r"r.yaml: got an alias \(\*name\), expected none; write its value out"),
        (b"#" * 70_000, r"r.yaml: got 70,000 bytes, expected 65,536 at most"),
        (b"kv_bits: sixteen", r"r.yaml: kv_bits: got 'sixteen', expected a whole number"),
        (b"max_batch: true", r"r.yaml: max_batch: got True, expected a whole number"),
        (b"max_batch:", r"r.yaml: max_batch: got None, expected a whole number"),
        (b"kv_bits: 8", r"kv_bits: got 8, expected 16 or 32"),
        (b"apply: lora:path=a", r"r.yaml: apply: got 'lora:path=a', expected a list"),
        (b"apply: {lora: {path: a}}", r"r.yaml: apply: got .*, expected a list"),
        (b"apply: [lroa]", r"unknown method 'lroa'; known: adapters, clp, evict, kvarn, lora"),
        (b"weights: 4", r"weights: got 4, expected"),
        (b"weights: {bits: 4}", r"weights: unknown key 'bits'; known: compute"),
        (b"weights: {1: 4}", r"weights: unknown key 1; known: compute"),
    ],
)
def test_bad_files(text: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(text)
    with pytest.raises(ExportError, match=message):
        parse("--recipe", str(tmp_path / "r.yaml"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"r.yaml: cannot be read \(No such file or directory\)"):
        read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--apply", "lroa:x=1"], "apply: unknown method 'lroa'; known: adapters, clp, evict, kvarn, lora"),
        (["--apply", "lora:pth=1"], "lora: unknown key 'pth'; known: path, weight"),
        (["--weights", "int5"], "weights: unknown kind 'int5'"),
        (["--backend", "tensorflow"], "--backend: unknown backend 'tensorflow'; known: onnxruntime"),
        (["--recipe", "/no/where.yaml"], "/no/where.yaml: cannot be read"),
        (["--kv-bits", "7"], "kv_bits: got 7, expected 16 or 32"),
        ([], "got no file or directory, expected a checkpoint or a hub id"),
    ],
)
def test_the_command_reports_each_with_exit_code_2(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["build", "--model", str(tmp_path / "m"), "--output", str(tmp_path / "new" / "o"), *flags]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("enginewright build: error: ") and message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir()), "nothing may be written, no parent directory either"
