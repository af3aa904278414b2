"""Exact linear algebra in NumPy: what an archive means, wherever it was made."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ckzd.codec.algebra.exact import Algebra, Order
from ckzd.codec.arrays import Float64
from ckzd.codec.kernels import is_compiled, kernels
from ckzd.codec.kernels.plain import shifted

_CACHED = 1 << 16  # elements: half a megabyte, one block of 256 directions


class OnCores(Algebra[Float64]):
    """Arrays of NumPy."""

    def together(self, width: int) -> int:
        """As many as fit a cache; Gram-Schmidt in NumPy, whose calls are on few numbers, takes sixteen."""
        return max(1 if is_compiled else 16, _CACHED // width**2)

    def put(self, values: npt.NDArray[np.generic]) -> Float64:
        """See `Algebra`; float64 is not copied."""
        return values.astype(np.float64, copy=False)

    def get(self, values: Float64) -> Float64:
        """See `Algebra`; not copied."""
        return values

    def empty_like(self, values: Float64) -> Float64:
        """See `Algebra`."""
        return np.empty_like(values)

    def stacked(self, matrices: Sequence[Float64]) -> Float64:
        """See `Algebra`; of a single one it is a view."""
        return matrices[0][None] if len(matrices) == 1 else np.stack(matrices)

    def shifted(self, values: Float64, bits: int) -> Float64:
        """See `Algebra`."""
        return shifted(values, bits)

    def orthonormal(self, rows: Float64) -> Float64:
        """See `Algebra`."""
        return kernels.orthonormal(rows)

    def largest(self, values: Float64) -> Float64:
        """See `Algebra`."""
        found: Float64 = np.abs(values).max((1, 2))
        return found

    def ordered(self, rows: Float64, order: Order) -> Float64:
        """See `Algebra`."""
        return rows[np.arange(len(rows))[:, None], order]  # row by row: `take_along_axis` goes by element


CORES = OnCores()
