"""Declares BlockLinear, the product of rows with a matrix of codes that ONNX Runtime's kernels are half as fast at."""

from __future__ import annotations

from collections.abc import Mapping

from enginewright.plugins.ops.op import Attribute, Op, Shapes, Tensor

PANEL_ROWS = 16
"""Rows of a panel: outputs that a CPU computes together."""
CHUNK_COLUMNS = 32
"""Columns whose activations share a scale, and whose codes stand together."""
LINEAR_BITS = (2, 3, 4, 5, 6, 8)
"""Bits of a code."""
FACTOR_COLUMNS = 256
"""Columns whose scales of 8 bits share a factor."""
NUMBER_BITS = 16
"""The attribute `bits` of a matrix that is no codes but numbers of bfloat16."""
GATES = {"silu": 1, "gelu_tanh": 2, "gelu": 3}
"""The activation of a gate -> its number as the attribute `gate`."""
OFFSETS = {"": 0, "minima": 1, "zero_points": 2}
"""What a block has besides its scale -> its number as the attribute `minima`."""

PANELS = Tensor("panels", ("int8",), ("N", "bytes"), "W's codes, scales and minima, or its numbers, 16 rows in a panel")
CODE_ATTRIBUTES = (
    Attribute("rows", "int", "rows of W", least=1, most=1 << 24),
    Attribute("columns", "int", "columns of W", least=1, most=1 << 20),
    Attribute("bits", "int", "bits of a code: 2, 3, 4, 5, 6 or 8; 16: numbers of bfloat16", least=2, most=16),
    Attribute(
        "block", "int", "columns that share a scale: 16, or a multiple of 32; 32 with bfloat16", least=16, most=1 << 20
    ),
    Attribute(
        "scale_bits",
        "int",
        "bits of a scale and of a minimum: 16 (IEEE half), 32, or 8, a signed number times a half that 256 columns share",
        default=16,
        least=8,
        most=32,
    ),
    Attribute(
        "minima",
        "int",
        "1: a block has a minimum, too; 2: in its place a zero point, and the minimum is -zero_point * scale",
        default=0,
        most=2,
    ),
)


def unsupported(shapes: Shapes, attributes: Mapping[str, object]) -> str:
    """Say that GPUs have no kernel for codes, or bfloat16, in panels."""
    if attributes.get("bits") == NUMBER_BITS:
        return (
            "got weights of bfloat16 in panels for CPUs, expected those of a graph in bfloat16; build the engine with --dtype "
            "bfloat16 in place of --weights bfloat16"
        )
    return (
        "got weights in panels for CPUs, expected codes that GPUs multiply by; build the engine with "
        "--weights KIND:linear=onnxruntime"
    )


BLOCK_LINEAR = Op(
    name="BlockLinear",
    version=1,
    doc=(
        "Multiplies rows by the transpose of a matrix W [rows, columns] of codes: W = (code - 2^(bits - 1)) scale, or with "
        "minima code * scale + minimum, in blocks of columns. Unless `exact`, each 32 activations of a row are rounded to codes "
        "of 8 bits with a scale of their own, and sums of codes are whole numbers. With `bits` of 16, W is numbers of bfloat16, "
        "activations are rounded to bfloat16 unless `exact`, and sums are float32. A row's result depends on no other row and "
        "on no thread. The layout of `panels` is in `plugins/csrc/layout/panel.h`."
    ),
    inputs=(
        Tensor(
            "x",
            ("float32",),
            ("one", "T", "columns"),
            "rows of activations; or [T, heads, columns / heads], as attention leaves them",
        ),
        PANELS,
        Tensor("bias", ("float32",), ("rows",), "added to each row of the product", optional=True),
        Tensor("residual", ("float32",), ("one", "T", "width"), "added to each row of the result", optional=True),
        Tensor(
            "norm",
            ("float32",),
            ("columns",),
            "scale of an RMS norm; given, each row of x is divided by its root mean square and multiplied by it first",
            optional=True,
        ),
    ),
    outputs=(
        Tensor(
            "out",
            ("float32",),
            ("one", "T", "width"),
            "x W^T; with a gate half as wide: the activation of the first half times the second half",
        ),
    ),
    attributes=(
        *CODE_ATTRIBUTES,
        Attribute("width", "int", "columns of `out`: `rows`, or half of them with a gate", least=1, most=1 << 24),
        Attribute("exact", "int", "1: activations stay numbers", default=0, most=1),
        Attribute("epsilon", "float", "added to the mean square of a row, where there is a norm", default=1e-6),
        Attribute("gate", "int", "0: none; 1: SiLU; 2: GELU in its tanh form; 3: GELU", default=0, most=3),
    ),
    oracle="enginewright.plugins.oracles.block_linear:block_linear",
    unsupported=unsupported,
)
