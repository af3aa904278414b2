"""The kernels of `elementwise.c`: see `plain_elementwise` for what each of them is."""

import ctypes
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ckzd.codec.arrays import Float64, Numbers, Plane, Trend
from ckzd.codec.kernels.native import address, int64
from ckzd.codec.kernels.plain_elementwise import (
    AlongTrend,
    Energies,
    Lengths,
    Losses,
    Moments,
    MomentSums,
    Updates,
    Used,
)


class _Matrix(ctypes.Structure):
    """A matrix in float32 or float64, or none."""

    _fields_: ClassVar[Sequence[tuple[str, type]]] = [("data", ctypes.c_void_p), ("is_single", ctypes.c_int32)]


class NativeElementwise:
    """The functions of `plain_elementwise`, of a library that was built."""

    def __init__(self, built: ctypes.CDLL) -> None:
        self._built = built

    def moment_sums(self, moments: Moments) -> MomentSums:
        """See `plain_elementwise`."""
        rows, columns = moments.first.shape
        found = MomentSums(np.empty(rows), np.zeros(columns), np.empty(rows, np.int64), np.zeros(columns, np.int64))
        self._built.ckzd_moment_sums(*map(_matrix, moments), *_shape(moments.first), *map(address, found))
        return found

    def energies(
        self,
        weight: Numbers,
        before: Numbers | None,
        moments: Moments,
        weighting: Lengths,
        used: Used,
    ) -> Energies:
        """See `plain_elementwise`."""
        sums, counts = np.empty((5, len(weight))), np.empty(len(weight), np.int64)
        lengths = (*weighting, *(1.0 / each for each in weighting), *(each.astype(np.float64) for each in used))
        matrices = map(_matrix, (weight, before, *moments))
        self._built.ckzd_energies(*matrices, *_shape(weight), *map(address, lengths), address(sums), address(counts))
        return Energies._make([*sums, counts])

    def weighed(self, weight: Numbers, before: Numbers | None, weighting: Lengths) -> Float64:
        """See `plain_elementwise`."""
        found = np.empty(weight.shape)
        self._built.ckzd_weighed(
            _matrix(weight), _matrix(before), *_shape(weight), *map(address, weighting), address(found)
        )
        return found

    def restored(
        self, before: Numbers | None, residual: Float64, step: float, weighting: Lengths, *, single: bool
    ) -> Numbers:
        """See `plain_elementwise`."""
        residual, found = np.ascontiguousarray(residual), _empty(residual.shape, single)
        how = address(residual), ctypes.c_double(step), *_shape(residual), *map(address, weighting)
        self._built.ckzd_restored(_matrix(before), *how, address(found), single)
        return found

    def trend(self, residual: Float64) -> Trend:
        """See `plain_elementwise`."""
        residual, found = np.ascontiguousarray(residual), np.empty(residual.shape, np.int8)
        self._built.ckzd_trend(address(residual), int64(residual.size), address(found))
        return found

    def losses(self, weight: Numbers, restored: Numbers, before: Numbers, first: Numbers, weighting: Lengths) -> Losses:
        """See `plain_elementwise`."""
        sums = np.empty((6, len(weight)))
        matrices = map(_matrix, (weight, restored, before, first))
        self._built.ckzd_losses(*matrices, *_shape(weight), *map(address, weighting), address(sums))
        return Losses(*sums)

    def fill(self, values: Lengths, least: float, *, single: bool) -> Numbers:
        """See `plain_elementwise`."""
        found = _empty((values.rows.size, values.columns.size), single)
        self._built.ckzd_fill(*map(address, values), ctypes.c_double(least), *_shape(found), address(found), single)
        return found

    def updates(self, moments: Moments, eps: float) -> Updates:
        """See `plain_elementwise`."""
        sums, zeros = np.empty((3, len(moments.first))), np.empty(len(moments.first), np.int64)
        how = *map(_matrix, moments), ctypes.c_double(eps), *_shape(moments.first)
        self._built.ckzd_updates(*how, address(sums), address(zeros))
        return Updates._make([*sums, zeros])

    def along_trend(self, moments: Moments, trend: Trend, weighting: Lengths) -> AlongTrend:
        """See `plain_elementwise`."""
        sums = np.empty((4, len(trend)))
        how = *map(_matrix, moments), address(trend), *_shape(trend)
        self._built.ckzd_along_trend(*how, *map(address, weighting), address(sums))
        return AlongTrend(*sums)

    def against_trend(self, trend: Trend, times: float, weighting: Lengths, used: Used, *, single: bool) -> Numbers:
        """See `plain_elementwise`."""
        found = _empty(trend.shape, single)
        how = address(trend), ctypes.c_double(times), *_shape(trend), *map(address, weighting), *map(address, used)
        self._built.ckzd_against_trend(*how, address(found), single)
        return found

    def quantize_update(self, moments: Moments, step: float, dead_zone: float) -> Plane:
        """See `plain_elementwise`."""
        levels = np.empty(moments.first.shape, np.int16)
        how = ctypes.c_double(step), ctypes.c_double(1.0 - dead_zone), int64(levels.size)
        self._built.ckzd_quantize_update(*map(_matrix, moments), *how, address(levels))
        return levels

    def restored_update(self, levels: Plane, second: Numbers, step: float, *, single: bool) -> Numbers:
        """See `plain_elementwise`."""
        levels, found = np.ascontiguousarray(levels), _empty(levels.shape, single)
        how = address(levels), _matrix(second), ctypes.c_double(step), int64(levels.size)
        self._built.ckzd_restored_update(*how, address(found), single)
        return found


def _matrix(values: Numbers | None) -> _Matrix:
    return _Matrix(None, 0) if values is None else _Matrix(address(values), values.dtype == np.float32)


def _empty(shape: tuple[int, ...], single: bool) -> Numbers:  # noqa: FBT001  # what `Numbers` it is to be
    return np.empty(shape, np.float32) if single else np.empty(shape, np.float64)


def _shape(values: Numbers | Trend) -> tuple[ctypes.c_int64, ctypes.c_int64]:
    rows, columns = values.shape
    return int64(rows), int64(columns)
