"""Writes the C++ headers of the ops and of their kernels' calls from `plugins/ops`.

    python plugins/generate.py FOLDER

CMake runs this when it configures, and configures again when a declaration has changed. So the ports, attributes and
defaults of an op, and the fields of a call, are written only once, in Python. C++ includes FOLDER/generated:

    attributes/scale_rows.h    the op's attributes as plain data
    declarations/scale_rows.h  its inputs as an enum, its declaration for hosts, and the reader of its attributes
    calls/scale_rows.h         the structure of its kernel's call, the C functions that take it, and the kernel's sizes
    tile_tokens.h              the check that Python's TILE_TOKENS is that of C++

Each op has headers of its own, so that a new op compiles no other one again. The checks of values and shapes are written by
hand, in `csrc/ops`. This script uses the standard library only, and runs even where enginewright is not installed.
"""

from __future__ import annotations

import importlib
import importlib.machinery as machinery
import json
import sys
import textwrap
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from enginewright.plugins.ops.call import Call, Structure
    from enginewright.plugins.ops.op import Attribute, Op, Tensor

PLUGINS = Path(__file__).resolve().parent
ELEMENT_TYPES = {
    "float32": "kFloat",
    "float16": "kFloat16",
    "bfloat16": "kBfloat16",
    "int8": "kInt8",
    "int32": "kInt32",
    "int64": "kInt64",
}
"""Element type -> its name in `ops/declaration.h`."""
_NUMBERS = {"int": "std::int64_t", "float": "float"}
_NOTE = "// Generated from plugins/ops by plugins/generate.py."
_COLUMNS = 120


def all_headers() -> dict[str, str]:
    """The headers of everything that `plugins/ops` declares; no other function here knows its modules."""
    registry = importlib.import_module("enginewright.plugins.ops.registry")
    tiles = importlib.import_module("enginewright.plugins.ops.tiles")
    return headers(registry.OPS, registry.CALLS, tiles.TILE_TOKENS)


def constant(name: str) -> str:
    """The C++ constant for a name: query_starts -> kQueryStarts."""
    return "k" + "".join(word.capitalize() for word in name.split("_"))


def literal(value: int | float) -> str:
    """A number as a C++ literal."""
    return f"{value!r}f" if isinstance(value, float) else repr(value)


def element_type(tensor: Tensor, variable: tuple[str, ...]) -> str:
    """The C++ element type of a tensor; kType if the op allows several types.

    variable: the types that kType stands for.

    Raises:
        ValueError: the tensor allows several types, but not exactly those of `variable`.
    """
    if len(tensor.types) == 1:
        return ELEMENT_TYPES[tensor.types[0]]
    if tensor.types != variable:
        raise ValueError(
            f"{tensor.name}: got types {tensor.types}, expected {variable}, because an op has one variable type; change its "
            "declaration in plugins/ops"
        )
    return "kType"


def port(tensor: Tensor, variable: tuple[str, ...]) -> str:
    """The C++ `Port` of one input or output."""
    presence = "kVariadic" if tensor.variadic else "kOptional" if tensor.optional else "kRequired"
    alias = "kNoAlias" if tensor.alias is None else constant(tensor.alias)
    return f'{{"{tensor.name}", {element_type(tensor, variable)}, {presence}, {alias}}}'


def read_call(attribute: Attribute) -> str:
    """The C++ expression that reads one attribute of a node."""
    fallback = "" if attribute.default is None else f", {literal(attribute.default)}"
    if attribute.type == "float":
        return f'node.number("{attribute.name}"{fallback})'
    return (
        f'within("{attribute.name}", node.integer("{attribute.name}"{fallback}), {attribute.least}, {attribute.most})'
    )


def attribute_values(op: Op) -> str:
    """The C++ struct of an op's attributes."""
    members = "".join(f"  {_NUMBERS[a.type]} {a.name};  // {a.doc}\n" for a in op.attributes)
    return _in_namespace(op, f"struct AttributeValues {{\n{members}}};\n")


def declaration(op: Op) -> str:
    """The C++ declaration of an op: enum of inputs, ports, attributes, `Declaration`, and the reader of its attributes."""
    variable = next((t.types for t in (*op.inputs, *op.outputs) if len(t.types) > 1), ())
    ports, updated = ([port(t, variable) for t in tensors] for tensors in (op.inputs, op.outputs))
    attributes = [f'{{"{a.name}", "{a.type}", "{json.dumps(a.default)}"}}' for a in op.attributes]
    declared = f"inline constexpr AttributeDeclaration kAttributes[] = {_listed(attributes)};\n" if attributes else ""
    template = "template <ElementType kType>\ninline constexpr "
    return _in_namespace(
        op,
        f"using namespace ops;\n"
        f"enum Input {_listed([*(constant(tensor.name) for tensor in op.inputs), 'kInputCount'])};\n"
        f"{template}Port kInputs[] = {_listed(ports)};\n"
        f"{template}Port kOutputs[] = {_listed(updated)};\n"
        f"{declared}"
        f'{template}Declaration kDeclaration = {{"{op.name}", {op.version}, '
        f"kInputs<kType>, {len(ports)}, kOutputs<kType>, {len(updated)}, "
        f"{'kAttributes' if attributes else 'nullptr'}, {len(attributes)}}};\n"
        "inline AttributeValues read_attributes([[maybe_unused]] const AttributeReader& node) {\n"
        f"  return {_listed([read_call(attribute) for attribute in op.attributes])};\n"
        "}\n",
    )


def structure(described: Structure) -> str:
    """The C structure of a call, or of a part of calls."""
    members = []
    for field in described.fields:
        type = field.type if isinstance(field.type, str) else field.type.c_name
        members.append(f"  {type} {field.name};" + (f"  // {field.doc}" if field.doc else "") + "\n")
    comment = "".join(f"// {line}\n" for line in textwrap.wrap(described.doc, _COLUMNS - 3))
    return f"{comment}typedef struct {described.c_name} {{\n{''.join(members)}}} {described.c_name};\n"


def functions(call: Call) -> str:
    """The two C functions of a call, and for C++ one name for those of all calls."""
    name, type = f"ew_cuda_{call.file_stem}", call.c_name
    return (
        '#ifdef __cplusplus\nextern "C" {\n#endif\n'
        f"EW_EXPORT int64_t {name}_workspace(const {type}* call);\n"
        f"EW_EXPORT int {name}(const {type}* call, void* workspace, int64_t bytes, void* stream);\n"
        "#ifdef __cplusplus\n}\n\n"
        f"inline int64_t ew_cuda_workspace(const {type}& call) {{ return {name}_workspace(&call); }}\n"
        f"inline int ew_cuda_run(const {type}& call, void* workspace, int64_t bytes, void* stream) {{\n"
        f"  return {name}(&call, workspace, bytes, stream);\n"
        "}\n#endif\n"
    )


def size_macros(call: Call) -> str:
    """The macros of the sizes that a kernel is compiled for."""
    made = []
    for sizes in call.sizes:
        name = f"EW_{call.file_stem}_{sizes.name}".upper()
        if isinstance(sizes.values, int):
            made.append(f"// {sizes.doc}\n#define {name} {sizes.values}\n")
            continue
        each = [value if isinstance(value, tuple) else (value,) for value in sizes.values]
        listed = " ".join(f"X({', '.join(map(str, value))})" for value in each)
        made.append(f"// {sizes.doc}\n#define {name}(X) {listed}\n")
    return "".join(made)


def call_header(described: Structure, rest: str = "") -> str:
    """The text of the header of a structure that is a part of calls; or of a call's, then with the rest of the call."""
    included = "".join(f'#include "generated/calls/{part.file_stem}.h"\n' for part in described.parts)
    return f'{_NOTE}\n#pragma once\n\n#include "abi/cuda_calls.h"\n{included}\n{structure(described)}\n{rest}'


def _listed(items: list[str]) -> str:
    return "{\n" + "".join(f"    {item},\n" for item in items) + "}"


def _in_namespace(op: Op, text: str) -> str:
    return f"namespace {op.torch_name} {{\n{text}}}  // namespace {op.torch_name}\n"


def header(includes: Iterable[str], body: str) -> str:
    """The text of a header whose contents lie in namespace `ew::declared`."""
    included = "".join(f"#include {name}\n" for name in includes)
    return f"{_NOTE}\n#pragma once\n\n{included}\nnamespace ew::declared {{\n\n{body}\n}}  // namespace ew::declared\n"


def headers(ops: Mapping[str, Op], calls: Mapping[str, Call], tile_tokens: int) -> dict[str, str]:
    """Path from `generated` on -> text of each header."""
    needed = ('"ops/attributes.h"', '"ops/declaration.h"')
    check = f'static_assert(kTileTokens == {tile_tokens}, "plugins/ops: TILE_TOKENS");\n'
    made = {"tile_tokens.h": header(['"layout/tile.h"'], check)}
    for op in ops.values():
        attributes = f"attributes/{op.torch_name}.h"
        made[attributes] = header(["<cstdint>"], attribute_values(op))
        made[f"declarations/{op.torch_name}.h"] = header([f'"generated/{attributes}"', *needed], declaration(op))
    for call in calls.values():
        made |= {f"calls/{part.file_stem}.h": call_header(part) for part in call.parts}
        made[f"calls/{call.file_stem}.h"] = call_header(call, f"{functions(call)}\n{size_macros(call)}")
    return made


def write(folder: Path) -> list[Path]:
    """Write the headers into `folder/generated` and return their paths; headers of ops that are gone are deleted.

    A file that already has the right text is not touched, so that nothing is compiled again because of it.
    """
    root = folder / "generated"
    made = {root / name: text for name, text in all_headers().items()}
    for path, text in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
    for path in set(root.rglob("*.h")) - set(made):
        path.unlink()
    return list(made)


def main() -> None:
    """Write the headers for this checkout, even if another enginewright is installed."""
    if len(sys.argv) != 2:
        sys.exit(f"generate.py: got {len(sys.argv) - 1} arguments, expected one, the folder to write into")
    package = types.ModuleType("enginewright")
    package.__path__ = [str(PLUGINS.parent)]
    sys.modules["enginewright"] = package
    # an editable install finds its own checkout's modules by their full names, whatever the package's path says
    sys.meta_path[:] = [machinery.BuiltinImporter, machinery.FrozenImporter, machinery.PathFinder]
    write(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
