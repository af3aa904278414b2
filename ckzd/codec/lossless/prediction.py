"""A matrix of floats predicted from its rows and columns, in the domain of their bits.

Bits of a float, read as an integer, are nearly a logarithm: a sum of a row's and a column's term predicts what a
product of scales would, and further factors predict what those leave. Terms are integers, so that every machine
predicts the same; how they were found is the encoder's business.

# R = rows, C = columns, F = factors
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckzd.codec import zstd
from ckzd.codec.arrays import Float64
from ckzd.codec.parsing import read_leb, write_leb
from ckzd.codec.svd import Float32, leading

Unsigned = npt.NDArray[np.unsignedinteger]

MAX_FACTORS = 32  # sums of so many products of int8 stay under 2**24: exact in float32, in any order
_FACTORS = (4, 8, 16, 32)  # counts that are tried
_SKETCH = 8  # leading factors, found in one round, that tell whether to look for more: of first moments none pay
_TERM_BITS = 5.0  # of a factor's entry, measured on second moments
_FACTOR_RANGE = 20.0  # finer factors cost more than they save
_ZSTD_LEVEL = 3  # 19 gains 0.04 % of second moments and costs a third of their speed
_ROUNDS = 2  # of subspace iteration: a third gains 0.1 % of second moments and costs a fifth of their speed
_LOWEST = 0.002  # quantile: the logarithm of what is nearly 0 says little about its row
_SAMPLES = 4096


@dataclass(frozen=True, slots=True)
class Prediction:
    """(rows + columns) * 2**unit + left @ right * 2**factor_unit, modulo 2**bits."""

    rows: npt.NDArray[np.int16]  # (R,)
    columns: npt.NDArray[np.int16]  # (C,)
    unit: int
    left: npt.NDArray[np.int8]  # (R, F)
    right: npt.NDArray[np.int8]  # (F, C)
    factor_unit: int

    def values(self, dtype: np.dtype[np.unsignedinteger]) -> Unsigned:
        """The prediction, (R * C,)."""
        values: Unsigned = np.add.outer(self.rows.astype(dtype), self.columns.astype(dtype))
        values <<= self.unit
        if self.right.size:
            product = self.left.astype(np.float32) @ self.right.astype(np.float32)
            values += product.astype(np.int32).astype(dtype) << self.factor_unit
        return values.ravel()

    def to_bytes(self) -> bytes:
        """LEB128 of columns and of the block, u8 units and F; then zstd of the arrays, factors by their columns."""
        arrays = (self.rows, self.columns, np.ascontiguousarray(self.left.T), self.right)
        plain = b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in arrays)
        block = zstd.compress(plain, _ZSTD_LEVEL)
        head = write_leb(self.columns.size) + write_leb(len(block))
        return head + bytes([self.unit, self.factor_unit, len(self.right)]) + block

    @classmethod
    def from_bytes(cls, data: bytes, start: int, count: int, bits: int) -> "tuple[Prediction | None, int]":
        """A prediction of `count` elements, or None, and where it ends; ValueError or IndexError if it is malformed."""
        columns, start = read_leb(data, start)
        if columns == 0:
            return None, start
        length, start = read_leb(data, start)
        unit, factor_unit, factors = data[start], data[start + 1], data[start + 2]
        rows, odd = divmod(count, columns)
        if odd or not rows or max(unit, factor_unit) >= bits or factors > min(rows, columns, MAX_FACTORS):
            raise ValueError(f"expected a prediction of {count} elements, got {columns} columns, {factors} factors")
        start += 3
        plain = zstd.decompress_exactly(data[start : start + length], (rows + columns) * (2 + factors))
        ends = 2 * rows, 2 * (rows + columns), 2 * (rows + columns) + rows * factors
        terms = np.frombuffer(plain[: ends[0]], "<i2"), np.frombuffer(plain[ends[0] : ends[1]], "<i2")
        left = np.frombuffer(plain[ends[1] : ends[2]], np.int8).reshape(factors, rows).T
        right = np.frombuffer(plain[ends[2] :], np.int8).reshape(factors, columns)
        return cls(terms[0], terms[1], unit, left, right, factor_unit), start + length


def fit_prediction(values: Unsigned, columns: int) -> Prediction:
    """What predicts a matrix of values of so many columns; of float bits without their sign."""
    bits = 8 * values.itemsize
    sample = np.sort(values[:: max(1, values.size // _SAMPLES)])
    floor = sample[int(_LOWEST * sample.size)]
    matrix = np.maximum(values, floor).reshape(-1, columns).astype(np.float32)
    rows = matrix.mean(1, dtype=np.float64)
    columns_ = matrix.mean(0, dtype=np.float64) - rows.mean()
    spread = float(sample[-1 - sample.size // 8] - sample[sample.size // 8]) / 16
    unit = max(int(np.log2(max(spread, 1.0))), bits - 14)  # of int16 terms
    coded = [np.rint(term * 2.0**-unit).astype(np.int16) for term in (rows, columns_)]
    matrix -= np.add.outer(*coded).astype(np.float32) * np.float32(2.0**unit)
    left, right, factor_unit = _factors(matrix, bits)
    return Prediction(coded[0], coded[1], unit, left, right, factor_unit)


def _factors(residual: Float32, bits: int) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.int8], int]:
    """Factors that save more than they cost; (R, 0) and (0, C) if none do."""
    rows, columns = residual.shape
    most = min(MAX_FACTORS, rows // 4, columns // 4)
    residual *= np.float32(2.0**-bits)
    if not _paying(residual, leading(residual, min(_SKETCH, most), rounds=1)[1]):
        return np.empty((rows, 0), np.int8), np.empty((0, columns), np.int8), 0
    left, sizes, right = leading(residual, most, rounds=_ROUNDS)
    best = _paying(residual, sizes)
    roots, balance = np.sqrt(sizes[:best]), (rows / columns) ** 0.25
    left, right = left[:, :best] * (roots * balance), (right[:, :best] * (roots / balance)).T
    step = max(np.abs(left).max(initial=0), np.abs(right).max(initial=0)) / _FACTOR_RANGE
    factor_unit = int(np.clip(np.rint(bits + 2 * np.log2(max(step, 1e-30))), 0, bits - 1))
    scale = 2.0 ** ((bits - factor_unit) / 2)
    coded = [np.clip(np.rint(factor * scale), -127, 127).astype(np.int8) for factor in (left, right)]
    return coded[0], coded[1], factor_unit


def _paying(residual: Float32, sizes: Float64) -> int:
    """How many of the leading factors save most, each of so many sizes; 0 if none do."""
    energy = max(float(np.vdot(residual, residual)), 1e-30)
    counts = np.array([0, *(count for count in _FACTORS if count <= sizes.size)])
    taken = np.concatenate([[0.0], np.cumsum(sizes**2)])[counts] / energy
    saved = -0.5 * residual.size * np.log2(np.maximum(1 - taken, 1e-6))
    return int(counts[np.argmax(saved - _TERM_BITS * sum(residual.shape) * counts)])
