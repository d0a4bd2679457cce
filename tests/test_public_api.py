"""Tests of the public interface: the names that other programs may import, call and pass, as docs/stability.md promises.

A change in this file is a change of the public interface: it needs an entry in CHANGELOG.md, and before 1.0 a reason.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import runpy
import sys
import tomllib
from collections.abc import Callable
from typing import Any

import pytest

from enginewright import runtime
from enginewright.runtime import cli
from tests.support.paths import ROOT

RUNTIME_NAMES = {
    "ArtifactError",
    "Completion",
    "EnginewrightError",
    "ExtensionError",
    "Handle",
    "LLM",
    "LogitsProcessor",
    "Logprobs",
    "Prompt",
    "RequestError",
    "Sampling",
    "Token",
    "UnsupportedError",
    "extend",
    "load",
}

SIGNATURES = {  # parameters as a caller sees them, without types
    "extend": "(folder)",
    "load": "(path, threads=None, *, max_batch=None, cache_tokens=None, prefill_chunk=512, prefix_reuse=True, "
    "verify=True, backend=None)",
    "LLM.generate": "(self, prompts, sampling=None)",
    "LLM.chat": "(self, messages, sampling=None, *, tools=None, documents=None, chat_template=None, "
    "continue_final_message=False, chat_template_kwargs=None)",
    "LLM.stream": "(self, prompt, sampling=None)",
    "LLM.submit": "(self, prompt, sampling=None, *, priority=0, on_event=None)",
    "LLM.submit_all": "(self, prompts, sampling=None)",
    "LLM.logits": "(self, token_ids, sampling=None)",
    "LLM.score": "(self, texts, takes, sampling=None)",
    "LLM.apply_chat_template": "(self, messages, tools=None, documents=None, *, chat_template=None, "
    "add_generation_prompt=True, continue_final_message=False, chat_template_kwargs=None)",
    "LLM.add_condition": "(self, condition, entry, values)",
    "LLM.drop_condition": "(self, condition, entry)",
    "LLM.load_vector": "(self, path, name=None)",
    "LLM.drop_vector": "(self, name)",
    "LLM.load_adapter": "(self, path, name=None)",
    "LLM.drop_adapter": "(self, name)",
    "LLM.close": "(self)",
    "Handle.result": "(self)",
    "Handle.cancel": "(self)",
}

PROTOCOLS = {"LLM": {"__enter__", "__exit__"}, "Handle": {"__iter__"}}
PROPERTIES = {"Handle": {"done"}, "LLM": {"adapters", "vectors"}, "Sampling": set[str]()}

REQUIRED = "required"
FIELDS: dict[str, dict[str, object]] = {  # of the dataclasses, in order, with their defaults
    "Sampling": {
        "temperature": None,
        "top_k": None,
        "top_p": None,
        "min_p": None,
        "typical_p": None,
        "epsilon_cutoff": None,
        "eta_cutoff": None,
        "repetition_penalty": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": None,
        "max_tokens": None,
        "stop": None,
        "stop_token_ids": (),
        "logprobs": None,
        "logit_bias": {},
        "ignore_eos": False,
        "skip_special_tokens": True,
        "logits_processors": {},
        "conditions": {},
        "vector": None,
        "vector_scale": 1.0,
        "adapter": None,
        "adapter_scale": 1.0,
        "model_defaults": True,
    },
    "Completion": {
        "text": REQUIRED,
        "token_ids": REQUIRED,
        "finish_reason": REQUIRED,
        "prompt_tokens": REQUIRED,
        "logprobs": REQUIRED,
        "seed": REQUIRED,
        "reused_tokens": 0,
        "guessed_tokens": 0,
        "agreed_tokens": 0,
    },
    "Token": {"id": REQUIRED, "text": REQUIRED, "logprobs": None},
}
KEYWORD_ONLY = {"Sampling", "Completion"}

ERRORS = {
    "ArtifactError",
    "ExtensionError",
    "RequestError",
    "UnsupportedError",
}  # what `except EnginewrightError` catches

STABLE = {  # modules outside the runtime whose names are imported by other programs
    "plugins.oracles.kvarn": {"balance", "encode", "decode", "pack", "unpack", "hadamard", "to_record", "from_record"},
    "plugins.oracles.depth_mix": {"depth_mix", "mix_values"},
    "exporters.methods.piso.solver": {"int_grid", "solve"},
    "exporters.methods.clp": {"accept_lengths"},
    "exporters.methods.function_vectors": {"head_scores", "top_heads", "steering_vectors"},
    "exporters.methods.tada": {"probe", "gates", "merge"},
    "runtime.evaluation.repetition": {"repetition_ratio"},
    "runtime.cache.policies.scores": {
        "importance_decode",
        "importance_prompt",
        "redundancy",
        "rkv",
        "retention",
        "lazy_update",
        "lazy_score",
    },
    "runtime.cache.policies.budgets": {"pyramid_budgets", "ada_counts"},
    "runtime.cache.policies.select": {"keep"},
    "runtime.cache.policies.reasonalloc": {"share", "layer_budgets", "head_budgets", "needed_tokens"},
}

COMMANDS = {
    "build",
    "export-checkpoint",
    "compile",
    "tune",
    "check",
    "run",
    "inspect",
    "methods",
    "bench",
    "triton",
    "eval",
}


def untyped(function: Callable[..., Any]) -> str:
    """The signature without types, which may become more exact at any time."""
    signature = inspect.signature(function)
    parameters = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def public(kind: type, test: Callable[[object], bool]) -> set[str]:
    """The public members of a class itself that pass `test`."""
    return {name for name, value in vars(kind).items() if not name.startswith("_") and test(value)}


def test_the_runtime_offers_exactly_these_names() -> None:
    assert set(runtime.__all__) == RUNTIME_NAMES
    assert len(runtime.__all__) == len(RUNTIME_NAMES), "a name stands twice in __all__"
    for name in RUNTIME_NAMES:
        assert getattr(runtime, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = runtime.nonsense  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures(name: str) -> None:
    value: Any = runtime
    for part in name.split("."):
        value = getattr(value, part)
    assert untyped(value) == SIGNATURES[name]


@pytest.mark.parametrize("name", ["LLM", "Handle"])
def test_classes_have_exactly_these_methods(name: str) -> None:
    kind = getattr(runtime, name)
    expected = {each.removeprefix(f"{name}.") for each in SIGNATURES if each.startswith(f"{name}.")}
    assert public(kind, inspect.isfunction) == expected
    assert PROTOCOLS[name] <= set(vars(kind))


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties(name: str) -> None:
    assert public(getattr(runtime, name), lambda value: isinstance(value, property)) == PROPERTIES[name]


@pytest.mark.parametrize("name", FIELDS)
def test_fields(name: str) -> None:
    kind = getattr(runtime, name)
    found = {}
    for field in dataclasses.fields(kind):
        missing = field.default is dataclasses.MISSING
        default = REQUIRED if missing else field.default
        found[field.name] = field.default_factory() if callable(field.default_factory) else default
    assert list(found.items()) == list(FIELDS[name].items())
    assert all(field.kw_only is (name in KEYWORD_ONLY) for field in dataclasses.fields(kind))
    assert kind.__dataclass_params__.frozen


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_errors_have_one_base(name: str) -> None:
    assert issubclass(getattr(runtime, name), runtime.EnginewrightError)


@pytest.mark.parametrize("module", STABLE)
def test_stable_names_are_where_programs_import_them(module: str) -> None:
    found = importlib.import_module(f"enginewright.{module}")
    missing = sorted(name for name in STABLE[module] if not callable(getattr(found, name, None)))
    assert not missing, f"enginewright.{module} lost names that other programs import"


def test_commands() -> None:
    assert set(cli.COMMANDS) == COMMANDS


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_commands_have_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        cli.main([name, "--help"])
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: enginewright {name}")


def test_the_console_script_is_the_command_line() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts == {"enginewright": "enginewright.runtime.cli:main"}


def test_build_engine_is_the_build_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["build_engine.py", "--help"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(str(ROOT / "build_engine.py"), run_name="__main__")
    assert exit.value.code == 0
    assert capsys.readouterr().out.startswith("usage: enginewright build")
