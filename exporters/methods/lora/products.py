"""The arithmetic of merging, in float32 and in PEFT's order of operations, so that results are its own to the bit.

W[out, in] is a weight, A[r, in] and B[out, r] a pair of factors. Weights that are stored as [in, out] are called transposed.
"""

from __future__ import annotations

import torch


def turn(matrix: torch.Tensor, transposed: bool) -> torch.Tensor:
    """The matrix as it is stored: with its axes exchanged if the weight is transposed."""
    return matrix.T if transposed else matrix


def product(a: torch.Tensor, b: torch.Tensor, scaling: float, *, transposed: bool) -> torch.Tensor:
    """Return scaling * B A, as the weight is stored."""
    return turn(b @ a, transposed) * scaling


def expert_product(
    a: torch.Tensor, b: torch.Tensor, scaling: float, expert: int, experts: int, *, transposed: bool
) -> torch.Tensor:
    """Return scaling * B A of one expert as [1, out, in], or as [1, in, out] if the weights are transposed.

    a: [experts * r, in], expert by expert.
    b: [out, r * experts], rank by rank.
    """
    own_a = a.reshape(experts, -1, a.shape[1])[expert]
    own_b = b.reshape(b.shape[0], -1, experts)[:, :, expert]
    return product(own_a, own_b, scaling, transposed=transposed)[None]


def with_magnitude(
    weight: torch.Tensor, delta: torch.Tensor, magnitude: torch.Tensor, *, transposed: bool
) -> torch.Tensor:
    """Return magnitude * (W + delta) / |W + delta|, where |.| is the norm of each row [in].

    For an embedding [V, D], which counts as transposed, it is the norm of each column [V].

    Source: Liu et al., "DoRA", arXiv 2402.09353, equation 5.
    """
    norm = torch.linalg.norm(turn(weight, transposed) + turn(delta, transposed), dim=1)
    factor = turn((magnitude / norm).view(-1, 1), transposed)
    return factor * (weight + delta)


def residual(weight: torch.Tensor, kind: str, rank: int, scaling: float, *, transposed: bool) -> torch.Tensor:
    """Return the weight without the part that the factors of a new adapter hold.

    kind: "pissa": its `rank` largest singular values (Meng et al., arXiv 2404.02948). "olora": the first `rank` columns of Q
        and rows of R (Büyükakyüz, arXiv 2406.01775).
    """
    matrix = turn(weight, transposed)
    if kind == "pissa":
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        roots = torch.diag(torch.sqrt(values[:rank] / scaling))
        a, b = roots @ right[:rank], left[:, :rank] @ roots
    else:
        q, r = torch.linalg.qr(matrix)
        a, b = r[:rank].contiguous(), q[:, :rank].contiguous()
    return turn(matrix - scaling * b @ a, transposed)
