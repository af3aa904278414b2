"""Factors: a weighted residual as a sum of few outer products of integer vectors.

Where no basis has been learned yet, or a few directions carry nearly all, two thin matrices of levels are smaller than
levels of every coefficient. Component k of a matrix is `left[:, k] right[:, k]' * 2**(-code / 8)` in units of the step;
all sums are of integers, so that every machine restores the same.

Stream: u8 K, u8[K] codes; for each component the low bits of its left and of its right levels (`wide`); the plane of
the rest of both, left above right.

# R = rows, C = columns of a tensor seen as a matrix, K = components
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ckzd.codec.arrays import Float64, Plane, Scale
from ckzd.codec.entropy.context import SideInformation
from ckzd.codec.kernels.plain import shifted
from ckzd.codec.scales import nearest_code, value_of
from ckzd.codec.transform import wide
from ckzd.codec.transform.adaptive_basis import FINE_BITS, MAX_COEFFICIENT

MAX_FACTOR_CODE = 160
FACTOR_BITS = 20  # of what a code stands for
_MAX_SUM = 2.0**52
_UNITS_A_DEVIATION = 4.0  # of the levels that contexts see


@dataclass(frozen=True)
class Factors:
    """Integer factors of a matrix (R, C)."""

    left: Plane  # (R, K)
    right: Plane  # (C, K)
    codes: Scale  # (K,), 0..160

    @cached_property
    def fixed(self) -> Float64:
        """The weighted residual (R, C) in 2**-12 steps, exactly; ValueError for one that no encoder writes."""
        left, right = self.left.astype(np.float64), self.right.astype(np.float64) * unit_of(self.codes)
        if (np.abs(left).max(0, initial=0.0) * np.abs(right).max(0, initial=0.0)).sum() > _MAX_SUM:
            raise ValueError(f"a sum of factors beyond {_MAX_SUM:g}")
        fixed = shifted(left @ right.T, FINE_BITS - FACTOR_BITS)
        if np.abs(fixed).max(initial=0.0) > MAX_COEFFICIENT:
            raise ValueError(f"a residual beyond {MAX_COEFFICIENT:g} / 4096 steps")
        return fixed

    @cached_property
    def _low_bits(self) -> tuple[Plane, Plane]:
        return wide.low_bits(self.left), wide.low_bits(self.right)

    @cached_property
    def plane(self) -> Plane:
        """The levels (R + C, K) of the plane."""
        return np.concatenate([side >> low for side, low in zip((self.left, self.right), self._low_bits, strict=True)])

    @property
    def head_bytes(self) -> int:
        """How much stands before it."""
        sides = zip((self.left, self.right), self._low_bits, strict=True)
        return 1 + self.codes.size + sum(wide.nbytes_of(low, len(side)) for side, low in sides)

    def head(self) -> bytes:
        """The stream before its plane."""
        parts = [bytes([self.codes.size]), self.codes.astype(np.uint8).tobytes()]
        for column, counts in enumerate(zip(*(low.tolist() for low in self._low_bits), strict=True)):
            parts += [
                wide.packed(side[:, column], count) for side, count in zip((self.left, self.right), counts, strict=True)
            ]
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Head:
    """The stream before its plane, taken apart."""

    codes: Scale
    low: tuple[tuple[bytes, bytes], ...]  # of each component's left and right
    nbytes: int

    @classmethod
    def of(cls, data: bytes, shape: tuple[int, int]) -> "Head":
        """ValueError or IndexError for bytes that no encoder writes."""
        codes = np.frombuffer(data, np.uint8, data[0], 1).astype(np.int16)
        if not 0 < codes.size <= min(shape) or codes.max() > MAX_FACTOR_CODE:
            raise ValueError(f"{codes.size} factors of a matrix of {shape}, codes up to {codes.max(initial=0)}")
        start, low = 1 + codes.size, []
        for _ in codes:
            sides = []
            for length in shape:
                nbytes = wide.packed_bytes(data, length, start)
                sides.append(data[start : start + nbytes])
                start += nbytes
            low.append((sides[0], sides[1]))
        return cls(codes, tuple(low), start)

    def side_information(self, shape: tuple[int, int]) -> SideInformation:
        """What the plane sees: how large the rest of each component is, if its vectors are unit vectors."""
        sides = []
        for side, length in enumerate(shape):
            low_bits = np.array([low[side][0] for low in self.low], np.int16)
            root = nearest_code(np.array([float(length)])) // np.int16(2)
            deviation = value_of(self.codes - root - np.int16(8) * low_bits)
            expected = np.minimum(np.floor(_UNITS_A_DEVIATION * deviation), 127).astype(np.int8)
            sides.append(np.broadcast_to(expected, (length, expected.size)))
        return SideInformation(np.concatenate(sides))

    def joined(self, plane: Plane, rows: int) -> Factors:
        """Factors from the plane (R + C, K) of what is not in the low bits."""
        columns = [
            [wide.joined(low, high) for low, high in zip(sides, (column[:rows], column[rows:]), strict=True)]
            for sides, column in zip(self.low, plane.T, strict=True)
        ]
        left, right = (np.stack(side, axis=1) for side in zip(*columns, strict=True))
        return Factors(left, right, self.codes)


def unit_of(codes: Scale) -> Float64:
    """What the product of two levels stands for, in 2**-20 steps: integers, at least 1."""
    return np.floor(np.ldexp(value_of(-codes), FACTOR_BITS))
