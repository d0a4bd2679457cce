"""Tests of the device functions against numpy: PTX and its emulation must agree, or emulated tests would prove nothing."""

from __future__ import annotations

import numpy as np

from tests.support.kernels.device import Device, download, from_bits, to_bits

LANES = np.arange(32)


def halves(words: np.ndarray) -> np.ndarray:
    """[..., n] words as [..., n, 2] numbers."""
    return words.view(np.float16).reshape(*words.shape, 2).astype(np.float32)


def bfloats(words: np.ndarray) -> np.ndarray:
    """[..., n] words as [..., n, 2] numbers of type bfloat16."""
    return from_bits(words.view(np.uint16), "bfloat16").reshape(*words.shape, 2)


def product(left_words: np.ndarray, right_words: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """[32, 4] of the lanes: what they hold multiplied as matrices, added to `sums`; numbers [32, 4, 2], [32, 2, 2]."""
    group, place = LANES // 4, LANES % 4
    left, right = np.zeros((16, 16)), np.zeros((16, 8))
    for i, (row, column) in enumerate(((0, 0), (8, 0), (0, 8), (8, 8))):
        for h in range(2):
            left[group + row, 2 * place + column + h] = left_words[:, i, h]
    for i in range(2):
        for h in range(2):
            right[2 * place + 8 * i + h, group] = right_words[:, i, h]
    wanted = left @ right
    return sums + np.stack([wanted[group + 8 * (e // 2), 2 * place + e % 2] for e in range(4)], axis=1)


def test_collectives(device: Device) -> None:
    rng = np.random.default_rng(0)

    def words(*shape: int) -> np.ndarray:
        return rng.standard_normal((*shape, 2)).astype(np.float16).view(np.uint32).reshape(shape)

    a, b, c, matrices = words(32, 4), words(32, 2), rng.standard_normal((32, 4)).astype(np.float32), words(32, 4)
    outputs = [np.zeros((32, 4), np.float32), *(np.zeros((32, 4), np.uint32) for _ in range(2))]
    outputs += [np.zeros(32, np.uint32) for _ in range(4)]
    outputs += [np.zeros((32, 4), np.float32), np.zeros(32, np.uint32)]
    buffers = [device.upload(array) for array in (a, b, c, matrices, *outputs)]
    device.library.probe([buffer.address for buffer in buffers])
    device.synchronize()
    found, loaded, loaded_transposed, transposed, shuffled, voted, fused, bfloat_found, bfloat_fused = (
        download(device, buffer) for buffer in buffers[4:]
    )

    np.testing.assert_allclose(found, product(halves(a), halves(b), c), atol=2e-5)
    # the same bits as bfloat16 are up to 2^15 apart: float32 sums of 16 products, whose bits tensor cores cut
    wanted = product(bfloats(a), bfloats(b), c)
    np.testing.assert_allclose(bfloat_found, wanted, atol=1e-5 * np.abs(wanted).max())

    group, place = LANES // 4, LANES % 4
    tiles = matrices.view(np.uint16).reshape(4, 8, 8)
    for i in range(4):
        for h in range(2):
            np.testing.assert_array_equal(
                loaded.view(np.uint16).reshape(32, 4, 2)[:, i, h], tiles[i, group, 2 * place + h]
            )
            np.testing.assert_array_equal(
                loaded_transposed.view(np.uint16).reshape(32, 4, 2)[:, i, h], tiles[i, 2 * place + h, group]
            )
    one = a[:, 0].copy().view(np.uint16).reshape(8, 8)
    np.testing.assert_array_equal(transposed.view(np.uint16).reshape(8, 8), one.T)
    np.testing.assert_array_equal(shuffled, a[LANES ^ 5, 1] + a[7, 2])
    np.testing.assert_array_equal(voted, np.uint32(sum(int(x & 1) << i for i, x in enumerate(a[:, 0]))))

    def half(x: np.ndarray) -> np.ndarray:
        return x.astype(np.float16).astype(np.float64)

    x, y = halves(a).astype(np.float64), halves(b).astype(np.float64)
    expected = half(x[:, 0] * half(y[:, 0] - y[:, 1]) + half(x[:, 1] * x[:, 2]))
    np.testing.assert_array_equal(halves(fused), expected)

    x, y = bfloats(a).astype(np.float64), bfloats(b).astype(np.float64)
    rounded_sum = to_bits((x[:, 0] * y[:, 0] + y[:, 1]).astype(np.float32), "bfloat16").view(np.uint32).reshape(32)
    np.testing.assert_array_equal(bfloat_fused, rounded_sum)
