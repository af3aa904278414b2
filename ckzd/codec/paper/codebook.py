"""Codebooks: levels that name the centres of a tensor's k-means; the decoder's half, which needs no scikit-learn.

Level 0 means pruned.

# R = rows, C = columns, K = codebook size
"""

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import Float64, Plane


@dataclass(frozen=True, slots=True)
class Codebook:
    """Ascending float32 centres (K,); the first `below` have levels -below..-1, the rest 1, 2, ..."""

    centres: npt.NDArray[np.float32]
    below: int

    def to_bytes(self) -> bytes:
        """u8 K, u8 below, f32[K]."""
        return struct.pack("<BB", self.centres.size, self.below) + self.centres.astype("<f4").tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> tuple["Codebook", int]:
        """The codebook at the start of `data`, and its length in bytes."""
        size, below = struct.unpack_from("<BB", data)
        centres = np.frombuffer(data, "<f4", size, 2)
        if below > size or not np.isfinite(centres).all():
            raise ValueError(f"a codebook of {size} centres, {below} of them below zero, or one that is not finite")
        return Codebook(centres, below), 2 + 4 * size


@dataclass(frozen=True, slots=True)
class KmeansCode:
    """Levels (R, C), 0 where pruned, and their codebook."""

    levels: Plane
    codebook: Codebook


def dequantize_kmeans(code: KmeansCode) -> Float64:
    """Values (R, C), 0 where pruned; ValueError if a level has no centre."""
    centres, below, levels = code.codebook.centres, code.codebook.below, code.levels
    if levels.min(initial=0) < -below or levels.max(initial=0) > centres.size - below:
        raise ValueError(f"a level lies outside the codebook of {centres.size} centres")
    table = np.insert(centres.astype(np.float64), below, 0.0)
    values: Float64 = table[levels.astype(np.int32) + below]
    return values
