"""Methods: unknown and misspelt hooks, methods that exclude each other, and names that two of them claim are refused."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from enginewright.exporters import methods
from enginewright.exporters.export import GRAPHS, export
from enginewright.exporters.methods import registry
from enginewright.exporters.methods.hooks import HOOKS, Method, check_functions
from enginewright.exporters.methods.registry import Applied, check_together, find_method, find_methods, find_options
from enginewright.exporters.methods.tuner import Tuner
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime.artifact import directory
from enginewright.runtime.artifact.extension import extend
from enginewright.runtime.artifact.manifest import Condition, ConditionTensor
from enginewright.runtime.errors import ExportError, ExtensionError
from tests.support.exporters.fixtures import CheckpointMaker
from tests.support.paths import ROOT

HEAD = """
from dataclasses import dataclass
from enginewright.exporters.methods.hooks import Method

@dataclass(frozen=True, kw_only=True)
class Config:
    \"\"\"share: of something.\"\"\"
    share: float = 0.5
"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of the methods of these tests."""

    size: int = 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of methods next to the package's own; it is forgotten after the test."""
    monkeypatch.setattr(methods, "__path__", list(methods.__path__))
    before = set(sys.modules)
    (tmp_path / "methods").mkdir()
    extend(tmp_path)
    yield tmp_path / "methods"
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]
            vars(methods).pop(name.rpartition(".")[2], None)


def known(monkeypatch: pytest.MonkeyPatch, *more: Method[Any]) -> None:
    """Let the registry know these methods alone."""
    monkeypatch.setattr(registry, "find_methods", lambda: {method.name: method for method in more})


def test_the_packages_methods() -> None:
    assert list(find_methods()) == [
        "adapters",
        "clp",
        "evict",
        "function_vectors",
        "kvarn",
        "lora",
        "nsru",
        "piso",
        "reasonalloc",
        "steering",
        "tada",
    ]
    assert list(find_options()) == ["adapters", "clp", "evict", "kvarn", "lora", "piso", "steering"]
    for method in find_methods().values():
        assert method.paper and method.summary and not method.summary.endswith(".")
        assert method.tuners or any(getattr(method, hook) is not None for hook in HOOKS)


def test_a_file_is_a_method(folder: Path) -> None:
    (folder / "halve.py").write_text(HEAD + 'METHOD = Method(name="halve", summary="half of it", config=Config)\n')
    assert parse_method("halve:share=0.25").describe() == {"name": "halve", "share": 0.25}
    with pytest.raises(ExportError, match="halve: unknown key 'shore'; known: share"):
        parse_method("halve:shore=1")


@pytest.mark.parametrize(
    ("hook", "hint"),
    [
        ("transform_weight", "; do you mean transform_weights?"),
        ("on_load", ""),
        ("chose_cache", "do you mean choose_cache"),
    ],
)
def test_an_unknown_hook_is_named_with_its_module(hook: str, hint: str, folder: Path) -> None:
    given = f'METHOD = Method(name="bad", summary="x", config=Config, {hook}=lambda *_: None)\n'
    (folder / "bad_hook.py").write_text(HEAD + given)
    with pytest.raises(
        ExtensionError, match=rf"bad_hook\.py: METHOD: got '{hook}', expected hooks among .*{hint}"
    ) as e:
        find_methods()
    assert all(name in str(e.value) for name in HOOKS)


@pytest.mark.parametrize(
    ("name", "hook"), [("transform_weights", "transform_weights"), ("extend_graphs", "extend_graph")]
)
def test_a_function_that_METHOD_does_not_name(name: str, hook: str, folder: Path) -> None:
    text = HEAD + f'def {name}(*_):\n    ...\nMETHOD = Method(name="lost", summary="x", config=Config)\n'
    (folder / "lost.py").write_text(text)
    with pytest.raises(
        ExtensionError, match=rf"lost\.py: got a function {name}, which no METHOD names; do: .* as {hook}"
    ):
        find_methods()


def test_a_hook_that_is_no_function_and_hooks_that_no_option_reaches() -> None:
    with pytest.raises(ExtensionError, match="METHOD 'bad': choose_cache: got a int, expected a function"):
        Method(name="bad", summary="x", config=Options, choose_cache=3)  # type: ignore[arg-type]
    with pytest.raises(ExtensionError, match="METHOD 'bad': got passes and no config, expected a frozen dataclass"):
        Method(name="bad", summary="x", passes=lambda _: ())


@pytest.mark.parametrize("name", ["check_layers", "_transform_weight", "quantize"])
def test_other_functions_are_spared(name: str, folder: Path) -> None:
    text = HEAD + f'def {name}(*_):\n    ...\nMETHOD = Method(name="fine", summary="x", config=Config)\n'
    (folder / "fine.py").write_text(text)
    assert "fine" in find_methods()


def test_a_hook_under_another_name_and_in_another_module() -> None:
    def spread(config: Options, decoding: dict[str, Any]) -> dict[str, Any]:
        return decoding

    check_functions([Method(name="spread", summary="x", config=Options, choose_decoding=spread)])


def test_an_object_that_is_no_method(folder: Path) -> None:
    (folder / "wrong.py").write_text("METHOD = 3\n")
    with pytest.raises(ExtensionError, match=r"wrong\.py: METHOD: got an object of type int, expected a Method"):
        find_methods()


def test_several_options_and_tuners_enter_one_method(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wide(Options):
        width: int = 2

    tuner = Tuner(name="fit", summary="Fits it.", add_arguments=lambda _: None, run=lambda *_: 0)
    method = Method(name="one", summary="x", config=Options, other_options={"two": Wide}, tuners=(tuner,))
    alone = Method[Options](name="tuned", summary="y", tuners=(Tuner(**{**vars(tuner), "name": "fit-more"}),))
    known(monkeypatch, method, alone)
    assert find_method("two") is method and parse_method("two:width=3").config == Wide(width=3)
    assert list(find_options()) == ["one", "two"] and list(registry.find_tuners()) == ["fit", "fit-more"]
    with pytest.raises(ExportError, match="unknown method 'tuned'; known: one, two"):
        parse_method("tuned")
    with pytest.raises(ExportError, match="got one and two twice, expected it once; apply one once"):
        Recipe(apply=(Applied("one", Options()), Applied("two", Wide())))


def test_names_that_two_methods_claim(folder: Path) -> None:
    (folder / "other_lora.py").write_text(
        HEAD + 'METHOD = Method(name="other", summary="x", config=Config, other_options={"lora": Config})\n'
    )
    with pytest.raises(ExtensionError, match="--apply lora: got it from the methods lora and other"):
        find_methods()


@pytest.mark.parametrize(("hook", "what"), [("choose_cache", "the cache"), ("choose_decoding", "the decoding")])
def test_two_at_one_door_are_both_named(hook: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hooks: dict[str, Any] = {hook: lambda config, given: given}
    known(monkeypatch, *(Method(name=name, summary="x", config=Options, **hooks) for name in ("first", "second")))
    with pytest.raises(
        ExportError, match=f"apply: got first and second, which both choose {what}, expected one of them"
    ):
        check_together([Applied("first", Options()), Applied("second", Options())])


def test_two_that_declare_one_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    def declare(config: Options, checkpoint: Any) -> dict[str, Condition]:
        return {"mood": Condition(capacity=1, tensors={"vectors": ConditionTensor(dtype="float32", shape=(4,))})}

    known(monkeypatch, *(Method(name=n, summary="x", config=Options, conditions=declare) for n in ("first", "second")))
    with pytest.raises(ExportError, match="got first and second, which both declare the condition 'mood'"):
        registry.conditions([Applied("first", Options()), Applied("second", Options())], None)  # type: ignore[arg-type]


@pytest.mark.parametrize("spec", ["kvarn", "piso", "clp:heads=x"])
def test_the_same_method_twice(spec: str) -> None:
    name = spec.partition(":")[0]
    with pytest.raises(ExportError, match=f"apply: got {name} twice, expected it once; apply {name} once"):
        Recipe(apply=(parse_method(spec), parse_method(spec)))


def test_adapters_may_be_many() -> None:
    assert len(Recipe(apply=(parse_method("lora:path=a"), parse_method("lora:path=b"))).apply) == 2


@pytest.mark.slow
@pytest.mark.parametrize("plugins", ["all", "none"])
def test_a_file_with_a_condition_goes_into_the_engine(
    plugins: str, folder: Path, checkpoint: CheckpointMaker, tmp_path: Path
) -> None:
    """The sample method: its record in the manifest, its inputs in the graph, and its nodes at the anchors."""
    (folder / "nudge.py").write_text((ROOT / "tests/support/extension/methods/nudge.py").read_text())
    (tmp_path / "engine").mkdir()
    recipe = Recipe(apply=(parse_method("nudge:layers=0+1,capacity=3"),), plugins=plugins)
    export(str(checkpoint("qwen2")), tmp_path / "engine", recipe)
    manifest = directory.load(tmp_path / "engine")
    vectors = ConditionTensor(dtype="float32", shape=(2, 64))
    assert manifest.conditions == {
        "nudge": Condition(capacity=3, applies="decoded", scaled=True, tensors={"vectors": vectors})
    }
    inputs = {spec.name: (spec.dtype, spec.shape) for spec in manifest.graphs["decoder"].inputs}
    tokens = ("T",) if plugins == "all" else ("B", "T")
    assert inputs["cond.nudge.index"] == ("int32", tokens) and inputs["cond.nudge.scale"] == ("float32", tokens)
    assert inputs["cond.nudge.vectors"] == ("float32", (4, 2, 64))
    graph = ir.load(tmp_path / "engine" / GRAPHS.format("decoder")).graph
    assert sum(node.op_type == "Gather" for node in graph) == 2 + 2 * 2
    with pytest.raises(ExportError, match="nudge: got layer 2, expected 0 to 1"):
        export(str(checkpoint("qwen2")), tmp_path / "other", Recipe(apply=(parse_method("nudge:layers=2"),)))
