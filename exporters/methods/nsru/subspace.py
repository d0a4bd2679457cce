"""The subspace of a linear layer's inputs on retained text, and the projection of an adapter away from it.

Source: arXiv 2606.10989, equations 9 to 18.
"""

from __future__ import annotations

import torch


def retain_basis(
    samples: torch.Tensor, energy: float = 0.9, most: int = 128, *, of_total: bool = False
) -> torch.Tensor:
    """Return an orthonormal basis [d, k] of the directions that hold most of the samples' energy, in the samples' type.

    With sigma_1 .. sigma_K the largest singular values, K = min(most, n, d), k is the smallest number whose squares reach
    `energy` times the sum of all K squares; 0 for samples that are all zero. Computed in float64.

    samples: [n, d], a layer's input in each row.
    energy: the share of the energy; 0 or less: k = 0.
    most: the bound of k.
    of_total: whether the share is of all singular values; where the K largest do not reach it, k = K.

    Raises:
        ValueError: the samples are not a matrix of finite numbers.
    """
    if samples.dim() != 2 or not bool(samples.isfinite().all()):
        raise ValueError(f"got samples {list(samples.shape)}, expected a matrix [n, d] of finite numbers")
    bound = min(most, *samples.shape)
    if energy <= 0 or bound <= 0:
        return samples.new_zeros(samples.shape[1], 0)
    _, values, rows = torch.linalg.svd(samples.double(), full_matrices=False)
    squares = values.square()
    whole = squares.sum() if of_total else squares[:bound].sum()
    if not float(whole):
        return samples.new_zeros(samples.shape[1], 0)
    reached = int((squares[:bound].cumsum(0) < energy * whole).sum()) + 1
    basis: torch.Tensor = rows[: min(reached, bound)].T.to(samples.dtype).contiguous()
    return basis


def project(a: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Return a[r, d] (I - U U') for the basis U [d, k]; the matrix in brackets is never formed."""
    return a - (a @ basis) @ basis.T if basis.shape[1] else a


class InputSamples:
    """The samples of one layer's input, in at most about 3 d rows, whatever their number; the training creates it.

    An orthogonal change of the rows leaves singular values, directions and norms as they are. So many rows become the d rows
    of a triangular matrix. Deviations from the mean and the mean itself are kept apart, because the basis may be that of
    either.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._pieces: list[torch.Tensor] = []

    def add(self, samples: torch.Tensor) -> None:
        """Add samples [n, d].

        Source of the mean's update: Chan, Golub, LeVeque, The American Statistician 37 (1983).
        """
        if not len(samples):
            return
        added, mean = samples.double(), samples.double().mean(0)
        between = mean - self._mean
        total = self.count + len(added)
        self._pieces.append(added - mean)
        if self.count:
            self._pieces.append(between[None] * (self.count * len(added) / total) ** 0.5)
        self._mean = self._mean + between * (len(added) / total)
        self.count = total
        if sum(map(len, self._pieces)) > 3 * self.width:
            self._pieces = [torch.linalg.qr(torch.cat(self._pieces), mode="r").R]

    def rows(self, *, centred: bool = False) -> torch.Tensor:
        """Rows [m, d], float64, with the singular values and right singular vectors of the samples.

        centred: of the samples less their mean.
        """
        deviations = torch.cat([*self._pieces, self._mean.new_zeros(0, self.width)])
        return deviations if centred else torch.cat([deviations, self._mean[None] * self.count**0.5])

    @property
    def energy(self) -> float:
        """The sum of the squares of all samples."""
        return float(self.rows().square().sum())

    @property
    def mean_share(self) -> float:
        """The share of the energy that all samples have in common: n |mean|^2 over the sum of squares."""
        return self.count * float(self._mean.square().sum()) / self.energy if self.energy else 0.0

    def basis(self, energy: float, most: int, *, centred: bool, of_total: bool) -> torch.Tensor:
        """The samples' basis [d, k], float32."""
        found = retain_basis(self.rows(centred=centred), energy, min(most, self.count), of_total=of_total)
        return found.float()
