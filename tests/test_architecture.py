"""The architecture: which package and folder may import which, and how large modules, functions and folders may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PACKAGES = ("exporters", "builders", "plugins", "runtime")
MODULE_LINES, FUNCTION_LINES = 400, 60
FOLDER_FILES, ROOT_ENTRIES = 15, 16
MANY = {"exporters/passes": 20, "plugins/ops": 24}  # folders of many small modules of one kind

# What each package may import from the others; a name allows its submodules as well.
ARROWS = {
    "exporters": {
        "plugins.ops",
        "plugins.libraries.scale_sweep",
        "runtime.artifact",
        "runtime.cache.policies",  # the options and scores that the method of a policy writes into an engine
        "runtime.errors",
        "runtime.machine",
    },
    "builders": {
        "plugins",
        "runtime.artifact",
        "runtime.backends.device.cuda_runtime",
        "runtime.backends.onnxruntime.load_errors",
        "runtime.cache.capacity",
        "runtime.errors",
        "runtime.machine",
        "runtime.triton.ports",
    },
    "runtime": {"plugins.libraries", "plugins.ops"},
    "plugins": set[str](),
}
# Commands compose packages; `build` an export and a backend's build; parity compares an engine with its model, for `check`
# and for the trial of a new engine.
COMPOSITION = ("exporters/build.py", "exporters/parity.py", "exporters/trial.py")

# Each package as a column of floors, the highest first. A folder, or a module at the package's root, may import from
# lower floors alone: not from its own floor, and never upward.
COLUMNS = {
    "runtime": (
        ("commands", "triton"),
        ("evaluation",),
        ("loader",),
        ("llm",),
        ("scheduling",),
        ("decoding",),
        ("backends",),
        ("requests", "cache"),
        ("text", "cli"),
        ("artifact", "machine"),
        ("errors",),
    ),
    "exporters": (
        ("commands",),
        ("build",),
        ("trial",),
        ("export", "parity", "checkpoint_export"),
        ("recipe",),
        ("methods",),
        ("calibration", "passes"),
        ("capture", "tokenizer"),
        ("source",),
        ("features", "weights"),
        ("config_text",),
    ),
    "builders": (
        ("commands",),
        ("layer_check", "onnxruntime", "triton"),
        ("tensorrt",),
        ("passes", "options", "supported_kernels"),
    ),
    "plugins": (
        ("build", "generate", "new_op", "oracles"),
        ("libraries",),
        ("ops",),
    ),
}


def modules() -> list[Path]:
    """Every Python file of the four packages."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def name_of(path: Path) -> str:
    """The path as error messages show it."""
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything imported from our own packages, at any depth, `a.b` for `from a import b`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("enginewright."):
                yield node.lineno, name.removeprefix("enginewright.")


def is_composition(path: Path) -> bool:
    """Whether the module may import across packages."""
    return path.parent.name == "commands" or name_of(path) in COMPOSITION


@pytest.mark.parametrize("package", PACKAGES)
def test_arrows(package: str) -> None:
    allowed = {package, *ARROWS[package]}
    wrong = [
        f"{name_of(path)}:{line} imports {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        if not is_composition(path)
        for line, name in imports(path)
        if not any(name == known or name.startswith(f"{known}.") for known in allowed)
    ]
    assert not wrong, f"allowed: {', '.join(sorted(allowed))}"


def place_of(name: str) -> str:
    """The folder or module directly under its package that `a.b.c` belongs to: b; empty for the package itself."""
    package, _, rest = name.partition(".")
    place = rest.partition(".")[0]
    known = {path.stem for path in (ROOT / package).iterdir()}
    return place if place in known else ""


@pytest.mark.parametrize("package", COLUMNS)
def test_columns(package: str) -> None:
    """Inside a package no arrow goes up, and none along a floor."""
    floors = {place: number for number, floor in enumerate(COLUMNS[package]) for place in floor}
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        place = place_of(name_of(path).removesuffix(".py").replace("/", "."))
        if not place or place == "__init__":  # the package's face
            continue
        wrong += [
            f"{name_of(path)}:{line} imports {name}"
            for line, name in imports(path)
            if name.partition(".")[0] == package
            and (other := place_of(name)) not in ("", place)
            and floors[other] <= floors[place]
        ]
    assert not wrong, "imports from the same floor or a higher one"


@pytest.mark.parametrize("package", COLUMNS)
def test_columns_are_complete(package: str) -> None:
    """Every folder and module of the package has its floor."""
    floors = {place for floor in COLUMNS[package] for place in floor}
    places = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or list(path.glob("*.py"))}
    assert places - {"__init__"} == floors


def test_folders_are_small() -> None:
    counts = Counter(path.parent for path in modules() if path.name != "__init__.py")
    large = {name_of(f): n for f, n in counts.items() if n > MANY.get(name_of(f), FOLDER_FILES)}
    assert not large, f"more than {FOLDER_FILES} modules directly in a folder: which noun is missing?"


def test_the_root_of_the_runtime_is_a_column() -> None:
    entries = [path for path in (ROOT / "runtime").iterdir() if path.suffix == ".py" or list(path.glob("*.py"))]
    assert len(entries) <= ROOT_ENTRIES


def test_the_check_sees_imports() -> None:
    """The reader finds what is there, so that an empty list of wrong ones means something."""
    found = {name for _, name in imports(ROOT / "builders/onnxruntime/cpu.py")}
    assert {"plugins.libraries.locate.ort_library", "runtime.artifact.directory"} <= found


def test_modules_are_short() -> None:
    long = {name_of(p): n for p in modules() if (n := len(p.read_text().splitlines())) > MODULE_LINES}
    assert not long, f"longer than {MODULE_LINES} lines; one concept a file"


def test_functions_are_short() -> None:
    long = [
        f"{name_of(path)}:{node.lineno} {node.name}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES
    ]
    assert not long, f"longer than {FUNCTION_LINES} lines"


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        (
            "runtime",
            ["torch", "transformers", "onnx", "onnx_ir", "tensorrt", "tensorrt_rtx", "cuda", "onnxruntime", "numpy"],
        ),
        ("runtime.llm", ["torch", "transformers", "onnx", "onnx_ir", "tensorrt", "tensorrt_rtx", "cuda"]),
        (
            "runtime.backends.tensorrt.packed_session",
            ["torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"],
        ),
        ("runtime.backends.tensorrt.dense_graph", ["torch", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda"]),
        ("runtime.artifact.directory", ["torch", "transformers", "onnx", "onnxruntime", "numpy"]),
        ("runtime.cli", ["torch", "transformers", "onnx", "onnxruntime", "numpy"]),
        ("builders", ["torch", "transformers", "onnx_ir", "tensorrt"]),
        ("builders.commands.triton", ["torch", "transformers", "onnx", "onnx_ir", "onnxruntime", "numpy"]),
        ("plugins.ops.registry", ["torch", "transformers", "onnx", "onnxruntime"]),
        ("plugins.libraries.cpu", ["torch", "transformers", "onnx", "onnxruntime"]),
        ("plugins.libraries.cuda", ["torch", "transformers", "onnx", "onnxruntime", "numpy"]),
        (
            "plugins.libraries.tensorrt",
            ["torch", "transformers", "onnx", "onnxruntime", "numpy", "tensorrt", "tensorrt_rtx"],
        ),
    ],
)
def test_importing_loads_no_more_than_it_needs(module: str, forbidden: list[str]) -> None:
    code = (
        "import sys, types, importlib\n"
        "package = types.ModuleType('enginewright')\n"
        f"package.__path__ = [{str(ROOT)!r}]\n"
        "sys.modules['enginewright'] = package\n"
        f"importlib.import_module('enginewright.{module}')\n"
        f"print(*[name for name in {forbidden!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == []
