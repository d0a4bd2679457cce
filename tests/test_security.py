"""Tests of SECURITY.md's promises about untrusted checkpoints and engines, on the sources of the four packages."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator

import pytest

from tests.support.paths import ROOT

PACKAGES = ("exporters", "builders", "plugins", "runtime")

# Call -> the keyword that makes it safe with files of other people, and its value.
NEEDS = {
    "from_pretrained": ("trust_remote_code", False),  # left out, transformers asks on the terminal
    "torch.load": ("weights_only", True),
}
NEVER = {  # runs what a file says
    "eval",
    "exec",
    "marshal.load",
    "marshal.loads",
    "os.system",
    "pickle.load",
    "pickle.loads",
    "yaml.load",
    "yaml.unsafe_load",
}


def name_of(call: ast.Call) -> str:
    """The called name as it is written: `a.b` for `a.b(...)`, the last part alone where it begins with a call."""
    return ast.unparse(call.func) if isinstance(call.func, ast.Name | ast.Attribute) else ""


def wrong_calls(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each call that could run code of a file."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node)
        keywords = {each.arg: ast.literal_eval(each.value) for each in node.keywords if is_literal(each.value)}
        if name in NEVER:
            yield node.lineno, name
        if keywords.get("allow_pickle") is True:
            yield node.lineno, f"{name} with allow_pickle=True"
        for known, (keyword, value) in NEEDS.items():
            if (name == known or name.endswith(f".{known}")) and keywords.get(keyword) is not value:
                yield node.lineno, f"{name} without {keyword}={value}"


def is_literal(node: ast.expr) -> bool:
    """Whether the value of a keyword is written out."""
    return isinstance(node, ast.Constant)


def test_json_of_others_has_one_reader() -> None:
    """Only it bounds size and depth, and turns every failure into an error of the product."""
    reader = ROOT / "runtime/artifact/files/json_file.py"
    own = {
        *("plugins/libraries/cpu.py", "plugins/libraries/tensorrt.py"),  # what our own libraries say of themselves
        "runtime/text/chat/wire.py",  # what a process of our own answers, whose size is bounded before
    }
    found = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path != reader
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and name_of(node) in ("json.load", "json.loads")
    }
    assert found == own


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_run(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT).as_posix()}:{line} {call}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, call in wrong_calls(path.read_text())
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("AutoConfig.from_pretrained(path, trust_remote_code=False)", []),
        ("AutoConfig.from_pretrained(path)", ["AutoConfig.from_pretrained without trust_remote_code=False"]),
        ("T.from_pretrained(p, trust_remote_code=flag)", ["T.from_pretrained without trust_remote_code=False"]),
        ("torch.load(path, weights_only=True)", []),
        ("torch.load(path)", ["torch.load without weights_only=True"]),
        ("model.eval()", []),
        ("eval(text)", ["eval"]),
        ("yaml.safe_load(text)", []),
        ("np.load(path)", []),
        ("np.load(path, allow_pickle=True)", ["np.load with allow_pickle=True"]),
    ],
)
def test_the_check_sees_and_spares(source: str, expected: list[str]) -> None:
    assert [call for _, call in wrong_calls(source)] == expected


def test_a_jinja_with_known_ways_out_of_its_sandbox_is_not_taken() -> None:
    """CVE-2024-56326 and CVE-2025-27516 are ways out of older sandboxes; transformers 5 refuses them, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (jinja,) = (each for each in project["dependencies"] if each.startswith("jinja2"))
    assert jinja == "jinja2>=3.1.6"
