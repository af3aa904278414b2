"""Passes over a weight and its moments in NumPy: what each of them is, and what a machine without a compiler runs.

`elementwise.c` has the same passes, fused. Both give the same bits (`tests/codec/kernels`). `Numbers` are a matrix
(R, C) in float32 or float64, which every pass widens; sums are of each row, in the order that `_row_sums` says.

# R = rows, C = columns of a tensor seen as a matrix
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ckzd.codec.arrays import MAX_LEVEL, Float64, Numbers, Plane, Trend
from ckzd.codec.kernels.plain import Sums

RowSums = Float64  # (R,)
TREND_UNITS = 32.0  # of a step
_LANES = 8
_LARGEST_SINGLE = float(np.finfo(np.float32).max)


class Lengths(NamedTuple):
    """What multiplies each row (R,) and each column (C,)."""

    rows: Float64
    columns: Float64

    @property
    def outer(self) -> tuple[Float64, Float64]:
        """To be multiplied with a matrix, rows first."""
        return self.rows[:, None], self.columns[None, :]


class Moments(NamedTuple):
    """exp_avg and exp_avg_sq."""

    first: Numbers
    second: Numbers


class Used(NamedTuple):
    """Rows (R,) and columns (C,) that count, as 0 or 1."""

    rows: npt.NDArray[np.bool_]
    columns: npt.NDArray[np.bool_]


class MomentSums(NamedTuple):
    """Sums of a second moment by row (R,) and by column (C,), and how many elements have a moment that is not 0."""

    rows: Float64
    columns: Float64
    used_rows: Sums
    used_columns: Sums


class Energies(NamedTuple):
    """Sums of squares by row: of a Fisher-weighted weight, of its used part, of its residual's used part..."""

    weight: RowSums
    trained: RowSums
    residual: RowSums  # 0 without a reference
    update: RowSums  # of exp_avg / sqrt(exp_avg_sq), where the latter is not 0
    unweighted_first: RowSums  # of exp_avg over the Fisher weighting
    updates: Sums  # how many elements `update` is of


class Losses(NamedTuple):
    """What a weight loses, by row."""

    error: RowSums  # Fisher-weighted, squared
    own: RowSums  # the weight itself, likewise
    first_order: RowSums  # exp_avg times the error
    progress: RowSums  # exp_avg times what the weight moved since its reference
    plain_error: RowSums  # unweighted
    plain_own: RowSums


class Updates(NamedTuple):
    """What updates are together, by row."""

    second: RowSums  # of the second moment
    length: RowSums  # of squared updates
    longest: RowSums  # magnitude of an update
    zeros: Sums  # of the second moment


class AlongTrend(NamedTuple):
    """Inner products by row of updates and of a trend that is seen as one."""

    agreement: RowSums  # of both
    fall: RowSums  # of exp_avg and the trend's
    of_update: RowSums  # of the update with itself
    of_trend: RowSums


def _row_sums(terms: Float64) -> RowSums:
    """Lane n of 8 adds elements n, n + 8, ... one by one; then the lanes are added one by one."""
    rows, columns = terms.shape
    whole = np.zeros((rows, -(-columns // _LANES) * _LANES))
    whole[:, :columns] = terms
    lanes = _added(whole.reshape(rows, -1, _LANES))
    return _added(lanes)


def _added(terms: Float64) -> Float64:
    """Over axis 1, one by one from 0: `sum` would take pairs."""
    if not terms.shape[1]:
        return np.zeros((len(terms), *terms.shape[2:]))
    return np.add.accumulate(terms, axis=1)[:, -1] + 0.0


def _wide(values: Numbers) -> Float64:
    return values.astype(np.float64)


def _narrow(values: Float64, single: bool) -> Numbers:  # noqa: FBT001  # what `Numbers` it is to be
    return np.clip(values, -_LARGEST_SINGLE, _LARGEST_SINGLE).astype(np.float32) if single else values


# What a checkpoint holds


def moment_sums(moments: Moments) -> MomentSums:
    """Sums of a second moment; an element is used where one of both moments is not 0."""
    first, second = moments
    wide, used = _wide(second), (second != 0) | (first != 0)
    columns = _added(wide.T[..., None])[..., 0] if len(wide) else np.zeros(wide.shape[1])
    return MomentSums(_row_sums(wide), columns, used.sum(1, dtype=np.int64), used.sum(0, dtype=np.int64))


def energies(weight: Numbers, before: Numbers | None, moments: Moments, weighting: Lengths, used: Used) -> Energies:
    """Energies of a weight (R, C), its reference's values if there are some, and its moments."""
    row, column = weighting.outer
    under_row, under_column = 1.0 / row, 1.0 / column
    counted = used.rows.astype(np.float64)[:, None] * used.columns.astype(np.float64)
    squares = (_wide(weight) * row * column) ** 2
    residual = np.zeros(len(weight))
    if before is not None:
        residual = _row_sums(((_wide(weight) - _wide(before)) * row * column) ** 2 * counted)
    moment, variance = map(_wide, moments)
    positive = variance > 0
    update = np.where(positive, moment * moment / np.where(positive, variance, 1.0), 0.0)
    return Energies(
        weight=_row_sums(squares),
        trained=_row_sums(squares * counted),
        residual=residual,
        update=_row_sums(update),
        unweighted_first=_row_sums((moment * under_row * under_column) ** 2),
        updates=positive.sum(1, dtype=np.int64),
    )


# Weights


def weighed(weight: Numbers, before: Numbers | None, weighting: Lengths) -> Float64:
    """A weight, Fisher-weighted; with a reference its residual, which is 0 where the weight is."""
    row, column = weighting.outer
    wide = _wide(weight)
    residual = wide if before is None else np.where(wide != 0, wide - _wide(before), 0.0)
    return residual * row * column


def restored(before: Numbers | None, residual: Float64, step: float, weighting: Lengths, *, single: bool) -> Numbers:
    """Reference + Fisher-weighted residual in steps, rounded once; saturating in float32, which `single` asks for.

    Numbers of the reference that are not finite count as 0.
    """
    row, column = weighting.outer
    values = residual * step / row / column
    if before is not None:
        wide = _wide(before)
        values = np.where(np.isfinite(wide), wide, 0.0) + values
    return _narrow(values, single)


def trend(residual: Float64) -> Trend:
    """A Fisher-weighted residual in steps as dependents see it, in 1/32 steps."""
    return np.clip(np.rint(residual * TREND_UNITS), -127, 127).astype(np.int8)


def losses(weight: Numbers, restored: Numbers, before: Numbers, first: Numbers, weighting: Lengths) -> Losses:
    """What a weight loses if this is what it restores to."""
    row, column = weighting.outer
    own, moment = _wide(weight), _wide(first)
    error = _wide(restored) - own
    return Losses(
        error=_row_sums((error * row * column) ** 2),
        own=_row_sums((own * row * column) ** 2),
        first_order=_row_sums(moment * error),
        progress=_row_sums(moment * (own - _wide(before))),
        plain_error=_row_sums(error * error),
        plain_own=_row_sums(own * own),
    )


# Moments


def fill(values: Lengths, least: float, *, single: bool) -> Numbers:
    """Row times column, at least `least` unless it is 0."""
    row, column = values.outer
    product = row * column
    return _narrow(np.where(product > 0, np.maximum(product, least), 0.0), single)


def updates(moments: Moments, eps: float) -> Updates:
    """exp_avg / (sqrt(exp_avg_sq) + eps), where eps > 0."""
    moment, variance = map(_wide, moments)
    update = moment / (np.sqrt(variance) + eps)
    zeros = (variance == 0).sum(1, dtype=np.int64)
    return Updates(_row_sums(variance), _row_sums(update * update), np.abs(update).max(1, initial=0.0), zeros)


def along_trend(moments: Moments, trend: Trend, weighting: Lengths) -> AlongTrend:
    """How updates and a trend agree, where the second moment is not 0; the trend is against what the weight moved."""
    row, column = weighting.outer
    moment, root, against = _wide(moments.first), np.sqrt(_wide(moments.second)), trend * row * column
    used = root > 0
    divisor = np.where(used, root, 1.0)
    update, moving = np.where(used, moment / divisor, 0.0), np.where(used, -against / divisor, 0.0)
    terms = (update * moving, moment * moving, update * update, moving * moving)
    return AlongTrend(*map(_row_sums, terms))


def against_trend(trend: Trend, times: float, weighting: Lengths, used: Used, *, single: bool) -> Numbers:
    """So many times what the weight moved, the other way; 0 in rows and columns that are not used."""
    row, column = weighting.outer
    against = times * (trend * row * column)
    return _narrow(np.where(used.rows[:, None] & used.columns, 0.0 - against, 0.0), single)


def quantize_update(moments: Moments, step: float, dead_zone: float) -> Plane:
    """exp_avg / sqrt(exp_avg_sq) in units of `step`, with a dead zone; 0 where the second moment is 0."""
    unit = np.sqrt(_wide(moments.second)) * step
    relative = np.where(unit > 0, _wide(moments.first) / np.where(unit > 0, unit, 1.0), 0.0)
    magnitude = np.minimum(np.floor(np.abs(relative) + (1.0 - dead_zone)), MAX_LEVEL)
    return np.copysign(magnitude, relative).astype(np.int16)


def restored_update(levels: Plane, second: Numbers, step: float, *, single: bool) -> Numbers:
    """The inverse of `quantize_update` up to its loss."""
    return _narrow(levels.astype(np.float64) * (np.sqrt(_wide(second)) * step), single)
