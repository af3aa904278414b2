"""The leading singular vectors of a matrix; only the encoder asks, so float rounding is free.

# R = rows, C = columns, K = vectors
"""

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import Float64

Float32 = npt.NDArray[np.float32]


def leading(matrix: Float32, count: int, rounds: int) -> tuple[Float64, Float64, Float64]:
    """About the leading `count` singular vectors and values, (R, K), (K,) descending, (C, K): randomized SVD.

    Halko, Martinsson and Tropp 2011, with so many rounds of subspace iteration on the shorter side.
    """
    if matrix.shape[0] < matrix.shape[1]:
        right, sizes, left = leading(matrix.T, count, rounds)
        return left, sizes, right
    basis = np.random.default_rng(0).standard_normal((matrix.shape[1], count), np.float32)
    for _ in range(rounds):
        basis, _ = np.linalg.qr(matrix.T @ (matrix @ basis))
    seen = (matrix @ basis).astype(np.float64)
    squares, turn = np.linalg.eigh(seen.T @ seen)
    sizes, turn = np.sqrt(np.maximum(squares[::-1], 0.0)), turn[:, ::-1]
    return seen @ (turn / np.maximum(sizes, 1e-30)), sizes, basis.astype(np.float64) @ turn
