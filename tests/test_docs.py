"""Tests that the documentation agrees with the code: links, paths, commands, options and modules exist, examples run.

Reference pages are made by `docs/generate.py`; the tests read pages as it fills them.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT

DOCS = ROOT / "docs"
README_LINES = 150
OTHERS = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "examples/README.md",
    "benchmarks/README.md",
)  # those that are there
HISTORY = (DOCS / "changelog.md", ROOT / "CHANGELOG.md")  # tell of names that were
PAGES = sorted(DOCS.rglob("*.md")) + [ROOT / name for name in OTHERS if (ROOT / name).exists()]
PRESENT = [page for page in PAGES if page not in HISTORY]
FOLDERS = ("exporters", "builders", "plugins", "runtime", "benchmarks", "tests", "examples", "docs", ".ci")
INVENTED = {
    "plugins/ops/scale_rows.py",
    "plugins/oracles/scale_rows.py",
    "plugins/oracles/scale_rows",
    "exporters/methods/prune",
}  # of the how-to pages
UNTRACKED = ("plugins/lib",)

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(rf"(?<![\w/.-])((?:{'|'.join(map(re.escape, FOLDERS))})/[\w./*-]*)")
MODULE = re.compile(r"(?<![\w.])enginewright(?:\.(?!json\b)\w+)+")
OPTION = re.compile(r"^(--[a-z][a-z-]*)(?:=.*)?$")


def name_of(page: Path) -> str:
    """The page as error messages show it."""
    return page.relative_to(ROOT).as_posix()


@functools.cache
def generator() -> ModuleType:
    """The module `docs/generate.py`."""
    return load_script("generate")


def load_script(name: str) -> ModuleType:
    """Import a script of the folder `docs`."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def text_of(page: Path) -> str:
    """A page's Markdown, generated tables included."""
    text = page.read_text()
    return str(generator().on_page_markdown(text)) if DOCS in page.parents else text


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str
    is_run: bool


def blocks(language: str) -> list[Block]:
    """Every fenced block in `language`; `<!-- not run -->` above one says that it is a fragment."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in FENCE.finditer(text):
            is_run = not text[: match.start()].rstrip().endswith("<!-- not run -->")
            if match[1] == language:
                found.append(Block(page, match[1], match[2], is_run))
    return found


def inline_codes(page: Path) -> list[str]:
    """The texts between backticks outside of fenced blocks."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as mkdocs and GitHub both make them for plain titles."""
    titles = re.findall(r"^#{1,6} (.+)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in titles}


# ---- README and pages ----------------------------------------------------------------------


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize("mark", ["first-command", "second-command"])
def test_readme_has_the_commands_that_ci_runs(mark: str) -> None:
    assert re.search(rf"^<!-- {mark} -->\n```sh\n.+?^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    broken = []
    for target in LINK.findall(FENCE.sub("", text_of(page))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists() or (anchor and (other.suffix != ".md" or anchor not in anchors(other))):
            broken.append(target)
    assert not broken


def test_navigation_has_every_page() -> None:
    def pages(entry: Any) -> Iterator[str]:
        for part in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else [entry]:
            yield from pages(part) if not isinstance(part, str) else [part]

    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(listed) == sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))


def test_pictures_are_well_formed() -> None:
    for picture in DOCS.rglob("*.svg"):
        assert ET.parse(picture).getroot().tag.endswith("svg")


# ---- paths and modules ---------------------------------------------------------------------


def exists(path: str) -> bool:
    """Whether the checkout has the path, a pattern or a path with an omitted suffix among them."""
    path = path.rstrip("./")
    return path in INVENTED or path.startswith(UNTRACKED) or any(ROOT.glob(path))


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_paths_exist(page: Path) -> None:
    told = [*inline_codes(page), *(block.text for block in blocks("sh") if block.page == page)]
    missing = {path for code in told for path in PATH.findall(code) if not exists(path)}
    assert not missing


def test_the_tree_of_folders_exists() -> None:
    tree = next(m[2] for m in FENCE.finditer((DOCS / "architecture.md").read_text()) if "exporters/" in m[2])
    missing, package = [], ""
    for line in tree.splitlines():
        words = line[:25].split()
        package = words[0] if not line.startswith(" ") else package
        paths = words if not line.startswith(" ") else [package + word for word in words]
        missing += [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def module_file(dotted: str) -> Path | None:
    """The file of a module, or of the module that a dotted name is taken from; None where there is none."""
    parts = dotted.split(".")[1:]
    for end in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:end])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                return path if end >= len(parts) - 2 else None
        if base.is_dir() and end == len(parts):
            return base
    return None


def has(path: Path, name: str) -> bool:
    """Whether the file defines, imports or lists the name; or the package has such a module."""
    near = path.parent if path.name == "__init__.py" else path
    is_module = near.is_dir() and ((near / name).is_dir() or (near / f"{name}.py").exists())
    return is_module or (path.is_file() and re.search(rf"\b{re.escape(name)}\b", path.read_text()) is not None)


def is_there(dotted: str) -> bool:
    """Whether a dotted name is a module, a package, or a name of one."""
    path, last = module_file(dotted), dotted.rpartition(".")[2]
    if path is None:
        return False
    own = path.parent.name if path.name == "__init__.py" else path.stem
    return last == own or has(path, last)


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_modules_exist(page: Path) -> None:
    told = set(MODULE.findall(text_of(page)))
    invented = {f"enginewright.{path.replace('/', '.')}" for path in INVENTED}
    assert not [dotted for dotted in told if not is_there(dotted) and not any(dotted.startswith(i) for i in invented)]


@pytest.mark.parametrize("block", blocks("python"), ids=lambda b: name_of(b.page))
def test_python_compiles_and_imports_what_exists(block: Block) -> None:
    missing = []
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("enginewright"):
            path = module_file(node.module or "")
            missing += [f"{node.module}.{a.name}" for a in node.names if path is None or not has(path, a.name)]
    assert not missing


@pytest.mark.parametrize(
    "block", [b for b in blocks("python") if b.page.parent.name == "how-to" and b.is_run], ids=lambda b: name_of(b.page)
)
def test_how_to_code_can_be_imported(block: Block) -> None:
    module = ModuleType("how_to")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(block.text, str(block.page), "exec"), module.__dict__)
    assert set(module.__dict__) - set(vars(builtins))


# ---- commands ------------------------------------------------------------------------------


@functools.cache
def parsers() -> dict[str, argparse.ArgumentParser]:
    """The parser of every command, subcommands as `tune clp`."""
    return {command.name: command.parser for command in generator().commands()}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option that the parser takes."""
    return {flag for action in parser._actions for flag in action.option_strings} | {"--help"}


@functools.cache
def options_in(folder: Path) -> frozenset[str]:
    """Every option that a Python file directly in `folder` declares."""
    return frozenset(
        flag for path in folder.glob("*.py") for flag in re.findall(r"[\"'](--[a-z][a-z-]*)[\"']", path.read_text())
    )


def lines_of(script: str) -> Iterator[list[str]]:
    """The single commands of a shell script, as words."""
    text = re.sub(r"(^|\s)#.*$", "", script.replace("\\\n", " "), flags=re.MULTILINE)
    for line in re.split(r"\n|&&|\|\||;|(?<!\\)\|", text):
        try:
            words = shlex.split(line)
        except ValueError:
            words = line.split()
        while words and (words[0] in ("do", "then", "!") or re.match(r"^\w+=", words[0])):
            words.pop(0)
        if words:
            yield words


def all_commands(page: Path) -> list[list[str]]:
    """Every command line of a page: in shell blocks, indented blocks, and between backticks."""
    told = [block.text for block in blocks("sh") + blocks("bash") if block.page == page]
    told += re.findall(r"^    ((?:enginewright|python) .*)$", page.read_text(), re.MULTILINE)
    told += [code for code in inline_codes(page) if re.match(r"(enginewright|python|pytest) ", code)]
    return [words for script in told for words in lines_of(script)]


def wrong_in(words: list[str]) -> list[str]:
    """The words of a command line that do not exist: options, commands, files."""
    options = [match[1] for word in words if (match := OPTION.match(word))]
    if words[0] == "enginewright":
        name = words[1].split("\n")[0] if len(words) > 1 else ""
        if name == "COMMAND" or name.startswith("-"):
            return []
        if name not in parsers():
            return [f"enginewright {name}"]
        allowed = options_of(parsers()[name])
        inner = [key for key in parsers() if key.startswith(f"{name} ")]
        for key in inner:
            if len(words) < 3 or key.split()[1] in words[2].split("|"):
                allowed = allowed | options_of(parsers()[key])
        return [option for option in options if option not in allowed]
    if words[0].startswith("python") and len(words) > 1:
        return wrong_script(words[1:], options)
    return []


def wrong_script(words: list[str], options: list[str]) -> list[str]:
    """The words of `python SCRIPT ...` or `python -m MODULE ...` that do not exist."""
    if words[0] == "build_engine.py":
        return [option for option in options if option not in options_of(parsers()["build"])]
    if words[0] == "-m" and words[1].startswith(("enginewright.", "benchmarks.")):
        if not words[1].islower():
            return []  # a placeholder
        dotted = words[1] if words[1].startswith("enginewright.") else f"enginewright.{words[1]}"
        path = ROOT.joinpath(*dotted.split(".")[1:])
        path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    elif words[0].endswith(".py"):
        path = ROOT / words[0]
    else:
        return []
    if not path.exists():
        return [words[1] if words[0] == "-m" else words[0]]
    is_own = "argparse" in path.read_text()  # otherwise another program reads the options
    return [option for option in options if is_own and option not in options_in(path.parent)]


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_commands_exist(page: Path) -> None:
    wrong = [f"{word}: {' '.join(words)}" for words in all_commands(page) for word in wrong_in(words)]
    assert not wrong


@pytest.mark.parametrize("page", PRESENT, ids=name_of)
def test_options_exist(page: Path) -> None:
    """An option between backticks, of whatever command the sentence tells."""
    known = set().union(*map(options_of, parsers().values()), options_in(ROOT / "runtime"))  # those before a command
    for folder in ("benchmarks", "exporters", "plugins", "examples", "tests/support"):
        for path in [ROOT / folder, *(p for p in (ROOT / folder).rglob("*") if p.is_dir())]:
            known |= options_in(path)
    told = [word for code in inline_codes(page) if code.startswith("--") for word in code.split()]
    assert not [m[1] for word in told if (m := OPTION.match(word.split("[")[0])) and m[1] not in known]


def test_markers_exist() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    markers = {line.partition(":")[0] for line in options["markers"]}
    setup = (DOCS / "contributing/setup.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \| ", setup, re.MULTILINE)) == markers
    for page in PRESENT:
        required = re.findall(r"ENGINEWRIGHT_REQUIRE=([\w,]+)", page.read_text())
        asked = {name for names in required for name in names.split(",")}
        asked |= set(re.findall(r"pytest [^\n`]*-m (\w+)", page.read_text()))
        assert asked <= markers, name_of(page)


# ---- generated pages -----------------------------------------------------------------------


def test_the_command_reference_is_complete() -> None:
    from enginewright.runtime.cli import COMMANDS

    text = text_of(DOCS / "reference/commands.md")
    for name, parser in parsers().items():
        section = text.partition(f"## enginewright {name}\n")[2].partition("\n## ")[0]
        assert section, name
        missing = [flag for flag in options_of(parser) - {"--help", "-h"} if flag not in section]
        assert not missing, name
    assert set(COMMANDS) <= set(parsers())


def test_the_op_reference_is_complete() -> None:
    text = text_of(DOCS / "reference/ops.md")
    for name, op in generator().declared_ops().items():
        section = text.partition(f"## {name}\n")[2].partition("\n## ")[0]
        ports = [*op.inputs, *op.outputs, *op.attributes]
        assert ports and all(f"| `{port.name}` |" in section for port in ports), name


def test_every_method_has_its_page() -> None:
    from enginewright.exporters.methods.registry import find_methods

    for name in find_methods():
        assert f"<!-- generate: method-{name} -->" in (DOCS / f"methods/{name}.md").read_text()


def test_the_table_of_methods_is_theirs() -> None:
    """README's table is what the methods and features say of themselves; copy it from the failure."""
    table = generator().method_table("docs/methods/")
    assert table in (ROOT / "README.md").read_text(), table
    assert "| `kvarn` | a cache of 2, 4 or 8 bits | [2606.03458]" in table and "| Depth-Attention | " in table


@pytest.mark.native
@pytest.mark.slow
def test_the_decoder_graphs_page_has_the_ports_of_an_engine(tmp_path: Path) -> None:
    """The page has the ports of an engine with a KVarN cache, which has them all."""
    manifest = build_engine(tmp_path / "engine", "kvarn")
    graph, page = manifest.graphs["decoder"], generator().port_reference()
    inputs, outputs = page.partition("## Outputs")[0], page.partition("## Outputs")[2].partition("## Inputs of")[0]
    condition = page.partition("## Inputs of a condition")[2].partition("## Inputs of")[0]
    assert all(f"`cond.<name>.{port}`" in condition for port in ("index", "scale", "<tensor>"))
    for specs, side in ((graph.inputs, inputs), (graph.outputs, outputs)):
        rows = set(re.findall(r"^\| `([^`]+)` \| (\w+) ", side, flags=re.MULTILINE))
        own = [spec for spec in specs if spec.alias is None]
        assert {(re.sub(r"^kv\.\d+\.", "kv.<l>.", spec.name), spec.dtype) for spec in own} == rows


def test_docstrings_become_lists() -> None:
    """Fields that a docstring tells of in running text, and brackets that are no links."""
    text = "Opens it.\n\nthreads: of it; x[i][j]. k_bits, v_bits: of a code.\nmode: `a[b][c]` <d>\n\nRaises:\n    E: f"
    readable = load_script("docstrings").readable(text, ["threads", "k_bits", "v_bits", "mode"])
    assert readable.split("\n") == [
        "Opens it.",
        "",
        "- `threads`: of it; x[i]\\[j].",
        "- `k_bits, v_bits`: of a code.",
        "- `mode`: `a[b][c]` &lt;d>",
        "",
        "Raises:",
        "    E: f",
    ]


# ---- examples and the site -----------------------------------------------------------------


def build_engine(root: Path, *methods: str) -> Any:
    """Build tiny-reasoner with `methods` at `root`; return its manifest."""
    from enginewright.exporters.build import build
    from enginewright.exporters.recipe import Recipe, parse_method

    recipe = Recipe(apply=tuple(map(parse_method, methods)))
    return build(str(ROOT / "examples/tiny-reasoner"), root, recipe, "onnxruntime")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has `engines/tiny-reasoner`."""
    from enginewright.exporters.recipe import Recipe
    from tests.support.exporters.fixtures import built_once

    root = tmp_path_factory.mktemp("home")
    (root / "engines").mkdir()
    (root / "engines/tiny-reasoner").symlink_to(built_once(tmp_path_factory, ROOT / "examples/tiny-reasoner", Recipe()))
    return root


@pytest.mark.native
@pytest.mark.slow
@pytest.mark.parametrize(
    "block", [b for b in blocks("python") if "load(" in b.text and b.is_run], ids=lambda b: name_of(b.page)
)
def test_examples_run(
    block: Block, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(home)
    exec(compile(block.text, str(block.page), "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "site/index.html").exists()
