"""Tests of `tune tada`: what it writes, against PEFT and dense algebra; how it goes on; and what it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from enginewright.exporters.methods.lora import Config
from enginewright.exporters.methods.tada import gates, layer_merge, merge, merge_report, merging, probe
from enginewright.exporters.methods.unfinished_run import UNFINISHED
from enginewright.exporters.recipe import Recipe, parse_method
from enginewright.runtime import load
from enginewright.runtime.cli import main
from tests.support.exporters.adapted import make_base_of
from tests.support.exporters.adapted import merge as merge_into_base
from tests.support.exporters.adapters import make_base_model, merge_with_peft, train_with_peft
from tests.support.exporters.fixtures import built_once
from tests.support.paths import ROOT

MODEL = ROOT / "examples/tiny-reasoner"
TEXTS = [f"What is {number} + {3 * number}? It is {4 * number}." for number in range(2, 7)]
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]
Tune = Callable[..., int]


def load_base() -> Any:
    """The model of all tests here, from transformers."""
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters that share three projections, and texts."""
    root = tmp_path_factory.mktemp("tada")
    train_with_peft(load_base(), root / "task", seed=1, target_modules=PROJECTIONS)
    domain = {"r": 6, "target_modules": [*PROJECTIONS[1:], "up_proj"], "use_rslora": True}
    train_with_peft(load_base(), root / "domain", seed=2, **domain)
    (root / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return root


@pytest.fixture
def tune(folder: Path) -> Tune:
    """Runs the command in process, on both adapters."""

    def run(output: Path, *options: str, task: Path | None = None, domain: Path | None = None) -> int:
        adapters = ["--task", str(task or folder / "task"), "--domain", str(domain or folder / "domain")]
        texts = [] if "ramp" in options or "const" in options else ["--texts", str(folder / "texts.jsonl")]
        command = ["tune", "tada", "--model", str(MODEL), *adapters, *texts, "--output", str(output)]
        return main([*command, "--threads", "1", "--no-picture", *options])

    return run


def changes(adapter: Path) -> dict[str, torch.Tensor]:
    """What PEFT's merge adds to each weight."""
    before = load_base()
    after = dict(merge_with_peft(load_base(), adapter).named_parameters())
    return {
        name.removesuffix(".weight"): (after[name] - old).detach()
        for name, old in before.named_parameters()
        if not torch.equal(after[name], old)
    }


def read_report(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "report.json").read_text())
    return found


def test_the_adapter_is_what_the_functions_give(tune: Tune, folder: Path, tmp_path: Path) -> None:
    """Probes from hooks on the whole model with padding-free texts, then gates and merges of the factors that PEFT applies."""
    assert tune(tmp_path / "out") == 0
    task, domain, merged = (changes(path) for path in (folder / "task", folder / "domain", tmp_path / "out"))
    found = read_report(tmp_path / "out")
    assert found["method"] == "TaDA-R" and found["texts"] == 5 and found["rank"] == 6
    layers = {each["module"]: each for each in found["layers"]}
    assert merged.keys() == layers.keys() == task.keys() | domain.keys()
    probes = whole_model_probes([x for x in layers if layers[x]["adapters"] == "both"], task, domain)
    for projection in ("k_proj", "v_proj", "o_proj"):
        own = [name for name in probes if name.endswith(projection)]
        for name, gate in zip(own, gates(*np.array([probes[name] for name in own]).T), strict=True):
            assert (layers[name]["rho_task"], layers[name]["rho_domain"]) == pytest.approx(probes[name], rel=1e-4)
            assert layers[name]["gate"] == pytest.approx(gate, abs=2e-3)
            b, a, info = merge(*(factors_of(each[name], 6) for each in (task, domain)), layers[name]["gate"])
            torch.testing.assert_close(merged[name].double(), torch.from_numpy(b @ a), atol=2e-5, rtol=1e-4)
            dropped = [each["number"] for each in layers[name]["dropped_task"]]
            assert dropped == np.flatnonzero(~info["kept_task"][:4]).tolist()
            assert layers[name]["norm"] == pytest.approx(np.linalg.norm(b @ a), rel=1e-4)
    for name in layers:
        if layers[name]["adapters"] != "both":
            torch.testing.assert_close(merged[name], (task if name in task else domain)[name], atol=1e-5, rtol=1e-4)
            assert layers[name]["gate"] == float(name in domain) and layers[name]["cosines"] is None
    assert found["depth"].keys() == {"self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"}
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "report.json",
    ]


def factors_of(change: torch.Tensor, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Factors of a change by its dense decomposition."""
    u, s, v = np.linalg.svd(change.double().numpy(), full_matrices=False)
    return u[:, :rank] * s[:rank], v[:rank]


def whole_model_probes(
    names: list[str], task: dict[str, torch.Tensor], domain: dict[str, torch.Tensor]
) -> dict[str, tuple[float, float]]:
    """The probes of layers from hooks on the whole model, one text after another."""
    tokenizer, model, inputs = AutoTokenizer.from_pretrained(MODEL), load_base(), {name: [] for name in names}
    for name in names:
        model.get_submodule(name).register_forward_pre_hook(lambda _, x, name=name: inputs[name].append(x[0][0]))
    with torch.no_grad():
        for text in TEXTS:
            model(input_ids=torch.tensor([tokenizer.encode(text)]))
    return {
        name: tuple(probe(*factors_of(each[name], 6), torch.cat(inputs[name]).numpy()) for each in (task, domain))
        for name in names
    }


@pytest.mark.native
@pytest.mark.slow
def test_the_engine_gives_the_logits_of_peft(
    tune: Tune, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tune(tmp_path / "out")
    engine = built_once(tmp_path_factory, MODEL, Recipe(apply=(parse_method(f"lora:path={tmp_path / 'out'}"),)))
    ids = list(range(3, 40))
    with torch.no_grad():
        expected = merge_with_peft(load_base(), tmp_path / "out")(input_ids=torch.tensor([ids])).logits[0].numpy()
    with load(engine, threads=1) as llm:
        found = llm.logits(np.array(ids))
    np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())


def test_lora_reads_what_is_written(tune: Tune, tmp_path: Path) -> None:
    tune(tmp_path / "out", "--gate", "const")
    base = make_base_of(load_base(), MODEL)
    merged = merge_into_base(base, Config(path=str(tmp_path / "out")))
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    for name in [key for key in tensors if key.endswith("lora_B.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
        change = tensors[name] @ tensors[name.replace("lora_B", "lora_A")]
        expected = base.model.get_submodule(module).weight + change
        torch.testing.assert_close(torch.from_numpy(merged[f"{module}.weight"].load()), expected, atol=1e-5, rtol=0)


def test_a_probe_of_another_seed_or_mean(tune: Tune, tmp_path: Path) -> None:
    found = {}
    for name, options in {"one": [], "other": ["--seed", "1"], "rms": ["--mean", "rms"]}.items():
        tune(tmp_path / name, "--samples", "2", *options)
        found[name] = read_report(tmp_path / name)
    rho = {name: [each["rho_task"] for each in found[name]["layers"] if each["gate"]] for name in found}
    assert rho["one"] != rho["other"] and rho["one"] != rho["rms"] and found["one"]["texts"] == 2


def dense_baseline(name: str, task: torch.Tensor, domain: torch.Tensor) -> torch.Tensor:
    """The schemes that leave nothing to chance, as their papers define them."""
    if name in ("linear", "svd"):
        return 0.5 * (task + domain)
    left, values, right = torch.linalg.svd(torch.cat([task, domain], dim=1), full_matrices=False)
    rows = values > 1e-4 * values[0]  # the rest is float32 rounding of the merged weights
    both = values[rows, None] * right[rows]
    shared = list(both.where(both.abs() > 1e-9 * values[0], 0).chunk(2, dim=1))  # a sign of rounding would count
    parts = [task, domain] if name == "ties" else shared
    trimmed = [x * (x.abs() >= x.abs().flatten().sort(descending=True).values[int(0.2 * x.numel()) - 1]) for x in parts]
    sign = (trimmed[0] + trimmed[1]).sign()
    agree = [x.sign() == sign for x in trimmed]
    total = sum(x * one for x, one in zip(trimmed, agree, strict=True))
    mean = total / (agree[0].int() + agree[1].int()).clamp(min=1)
    return mean if name == "ties" else 0.5 * left[:, rows] @ mean


@pytest.mark.parametrize("name", ["linear", "svd", "ties", "knots-ties"])
def test_baselines(name: str, tune: Tune, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path / "out", "--merge", name) == 0
    assert f"texts.jsonl: not used: --merge {name} has no probe" in capsys.readouterr().err
    task, domain, merged = (changes(path) for path in (folder / "task", folder / "domain", tmp_path / "out"))
    found = read_report(tmp_path / "out")
    assert found["method"] == name and found["rank"] == (10 if name == "linear" else 6)
    for each in found["layers"]:
        module = each["module"]
        whole = dense_baseline(
            name, *(x.get(module, torch.zeros_like(merged[module])).double() for x in (task, domain))
        )
        u, s, v = torch.linalg.svd(whole)
        rank = 10 if name == "linear" else {"task": 4, "domain": 6, "both": 6}[each["adapters"]]
        expected = (u[:, :rank] * s[:rank]) @ v[:rank]
        torch.testing.assert_close(merged[module].double(), expected, atol=5e-5, rtol=1e-3)
        assert each["tail"] == pytest.approx(float(s[rank:].norm()), rel=1e-3, abs=1e-4)


def test_dare_ties_is_peft_s(tune: Tune, folder: Path, tmp_path: Path) -> None:
    """Nothing dropped and all kept, it is TIES of everything; with a seed it is the same again."""
    tune(tmp_path / "all", "--merge", "dare-ties", "--drop", "0", "--scale", "1")
    tune(tmp_path / "ties", "--merge", "ties", "--density", "1")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("all", "ties"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    for name, seed in (("first", "3"), ("again", "3"), ("else", "4")):
        tune(tmp_path / name, "--merge", "dare-ties", "--seed", seed)
    first, again, third = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("first", "again", "else")
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], third[key]) for key in first if "lora_B" in key)


@pytest.mark.parametrize("stop", ["probe", "layer", "end"])
def test_a_run_goes_on_where_it_was_broken_off(
    stop: str, tune: Tune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tune(tmp_path / "whole")
    merged: list[str] = []

    def breaking(*arguments: Any, **options: Any) -> Any:
        merged.append(arguments[0].module)
        if len(merged) == (1 if stop == "probe" else 6):
            raise KeyboardInterrupt
        return layer_merge.merge_layer(*arguments, **options)

    if stop == "end":
        monkeypatch.setattr(merge_report.MergeReport, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    else:
        monkeypatch.setattr(merging, "merge_layer", breaking)
    assert tune(tmp_path / "out") == 130 and (tmp_path / "out" / UNFINISHED).is_dir()
    monkeypatch.undo()
    assert tune(tmp_path / "out", "--theta", "0.3") != 0  # of another request
    monkeypatch.setattr(merging, "probe_pair", None)  # not called again
    count = {"probe": 20, "layer": 15, "end": 0}[stop]

    def counting(*arguments: Any, **options: Any) -> Any:
        merged.append(arguments[0].module)
        return layer_merge.merge_layer(*arguments, **options)

    merged.clear()
    monkeypatch.setattr(merging, "merge_layer", counting)
    assert tune(tmp_path / "out") == 0 and len(merged) == count
    for name in ("adapter_model.safetensors", "adapter_config.json", "report.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not (tmp_path / "out" / UNFINISHED).exists()


def test_the_picture(folder: Path, tmp_path: Path) -> None:
    adapters = ["--task", str(folder / "task"), "--domain", str(folder / "domain")]
    command = ["tune", "tada", "--model", str(MODEL), *adapters, "--texts", str(folder / "texts.jsonl")]
    assert main([*command, "--output", str(tmp_path / "out"), "--threads", "1"]) == 0
    assert (tmp_path / "out/gates.png").read_bytes().startswith(b"\x89PNG")


def test_stored_types(tune: Tune, folder: Path, tmp_path: Path) -> None:
    """bfloat16 stays where both adapters have it."""
    narrow = {}
    for name in ("task", "domain"):
        narrow[name] = tmp_path / name
        shutil.copytree(folder / name, narrow[name])
        file = narrow[name] / "adapter_model.safetensors"
        save_file({key: x.bfloat16() for key, x in load_file(file).items()}, file)
    tune(tmp_path / "both", **narrow)
    tune(tmp_path / "one", task=narrow["task"])
    for name, dtype in (("both", torch.bfloat16), ("one", torch.float32)):
        assert {x.dtype for x in load_file(tmp_path / name / "adapter_model.safetensors").values()} == {dtype}


def test_the_same_adapter_twice(tune: Tune, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path / "out", domain=folder / "task") == 0
    assert "is the same adapter as" in capsys.readouterr().err
    task, merged = changes(folder / "task"), changes(tmp_path / "out")
    for name in task:
        torch.testing.assert_close(merged[name], task[name], atol=1e-5, rtol=1e-4)
    layers = read_report(tmp_path / "out")["layers"]
    assert {round(each["gate"], 6) for each in layers} == {0.5} and not any(each["dropped_task"] for each in layers)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no texts for the probe": (["--gate", "ratio", "--texts", ""], "got no file"),
    "an option of another scheme": (["--density", "0.5"], "--density: got 0.5, which --merge tada with --gate sigmoid"),
    "an option of another gate": (["--share", "0.5"], "--share: got 0.5, which --merge tada"),
    "a gate of a baseline": (
        ["--merge", "ties", "--gate", "ramp"],
        "--gate: got ramp, which --merge ties does not use",
    ),
    "a number out of range": (["--theta", "-1"], "--theta: got -1.0, expected 0 to 2"),
    "no number": (["--scale", "nan"], "--scale: got nan, expected"),
    "no samples": (["--samples", "0"], "--samples: got 0, expected 1 or more"),
    "no threads": (["--threads", "0"], "--threads: got 0, expected 1 or more"),
    "too long texts": (["--length", "9999999"], "--length: got 9999999, expected at most"),
    "a second domain": (["--domain", "another"], "--domain: got 2 adapters, expected one"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_options(case: str, tune: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = REFUSED[case]
    assert tune(tmp_path / "out", *options) != 0
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_texts_are_wanted(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adapters = ["--task", str(folder / "task"), "--domain", str(folder / "domain"), "--output", str(tmp_path / "out")]
    assert main(["tune", "tada", "--model", str(MODEL), *adapters]) != 0
    assert "--texts: got none, expected texts of the domain, which --gate sigmoid probes" in capsys.readouterr().err
    for name, content, message in (
        ("empty.txt", "", "got an empty file"),
        ("short.txt", "Few words.", "tokens, expected at least"),
        ("none.jsonl", " \n", "got an empty file"),
    ):
        (tmp_path / name).write_text(content)
        assert main(["tune", "tada", "--model", str(MODEL), *adapters, "--texts", str(tmp_path / name)]) != 0
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_windows_of_a_text(tune: Tune, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" ".join(TEXTS) * 9)
    assert tune(tmp_path / "out", "--texts", str(tmp_path / "text.txt"), "--samples", "3", "--length", "20") == 0
    assert (read_report(tmp_path / "out")["texts"], read_report(tmp_path / "out")["tokens"]) == (3, 60)


def test_wrong_adapters(tune: Tune, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = load_base()
    train_with_peft(base, tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    train_with_peft(make_base_model("llama"), tmp_path / "other shapes", target_modules=["q_proj"])
    shutil.copytree(folder / "domain", tmp_path / "other base")
    config = tmp_path / "other base/adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "base_model_name_or_path": "somebody/else"}))
    (tmp_path / "nothing").mkdir()
    for name, message in (
        ("dora", "got use_dora, expected an adapter of plain factors alone"),
        ("other shapes", "the adapter is for another model"),
        ("other base", "got an adapter of 'somebody/else', expected one of"),
        ("nothing", "adapter_config.json"),
    ):
        assert tune(tmp_path / "out", domain=tmp_path / name) != 0
        assert message in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_fused_projections_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_base_model("phi3")
    model.save_pretrained(tmp_path / "model")
    train_with_peft(model, tmp_path / "adapter", target_modules=["qkv_proj"])
    adapters = ["--task", str(tmp_path / "adapter"), "--domain", str(tmp_path / "adapter")]
    command = ["tune", "tada", "--model", str(tmp_path / "model"), *adapters, "--gate", "const", "--no-picture"]
    assert main([*command, "--output", str(tmp_path / "out")]) != 0
    assert "qkv_proj', several projections in one; expected one projection each" in capsys.readouterr().err


def test_a_folder_of_something_else_stays(tune: Tune, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    assert tune(tmp_path / "out") != 0 and "exists and is not empty" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("package", "options"), [("matplotlib", []), ("peft", ["--merge", "ties"])])
def test_missing_packages(
    package: str,
    options: list[str],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == package else True)
    adapters = ["--task", str(folder / "task"), "--domain", str(folder / "domain")]
    command = ["tune", "tada", "--model", str(MODEL), *adapters, "--output", str(tmp_path / "out")]
    assert main([*command, "--texts", str(folder / "texts.jsonl"), *options]) != 0
    assert f"got no Python package '{package}'" in capsys.readouterr().err and not (tmp_path / "out").exists()
