"""Scales: integer codes of the row and column means of a second moment, and the Fisher weighting that they give.

The means of exp_avg_sq are stored as logarithms, eight to an octave. They are the rank-1 fill of the second moment, and
they weigh the weights' residuals, which therefore never depend on a moment.

Where an optimizer keeps a momentum and no second moment (SGD, Lion, Muon), the scales are those of its square: but for
a factor, a mean of gradients has their variance.

# R = rows, C = columns
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ckzd.checkpoint import RawArray
from ckzd.codec.arrays import Float64, HalfOctaves, Numbers, Scale
from ckzd.codec.dtypes import SMALLEST, SMALLEST_NORMAL, from_numbers, is_single
from ckzd.codec.entropy.tables import OCTAVE
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Lengths, Moments, MomentSums, Used

ZERO = np.int16(-32768)
MAX_SCALE_CODE = 4000  # 2**500: a product of two is still a normal float64, and no float32 mean is anywhere near
STEPS_AN_OCTAVE = 8
_MANTISSAS = np.array(OCTAVE, np.float64) * 2.0**-52
_MIDDLES = (_MANTISSAS + np.append(_MANTISSAS[1:], 2.0)) / 2
BELOW_ALL = -16  # what a row that is all 0 weighs: two octaves below the smallest other
REACH = 64  # eighths of an octave: no row or column weighs less than one so far below the mean, a quarter in steps
_FITS = 8  # of rows and columns in turn, where a mask leaves gaps
_LEAST_SUM = 2.0**-500
_PRIOR_ELEMENTS = 8  # as if a row or column of a momentum's square had this many more elements, of average size
_SMALLEST_SHARE = 2.0**-60  # of the mean variance: what a row or column may have at least, if it has any


@dataclass(frozen=True, slots=True)
class Scales:
    """Codes of the row means (R,) of a second moment and of its column means over the overall mean (C,).

    `reach` bounds what a row or column weighs from below, see `REACH`; None before format 6, as `fill_of` knows.
    """

    rows: Scale
    columns: Scale
    reach: int | None = REACH


def checked_scales(rows: RawArray, columns: RawArray, reach: int | None) -> Scales:
    """Scales whose codes are possible; ValueError for others."""
    for codes in (rows, columns):
        if codes.dtype != np.int16 or np.any((np.abs(codes.astype(np.int32)) > MAX_SCALE_CODE) & (codes != ZERO)):
            raise ValueError(f"a scale outside -{MAX_SCALE_CODE}..{MAX_SCALE_CODE}")
    return Scales(rows.astype(np.int16), columns.astype(np.int16), reach)


def code_of(means: Float64) -> Scale:
    """Nearest eighth of an octave; ZERO for 0."""
    positive = means > 0
    logs = np.log2(np.where(positive, means, 1.0))
    codes = np.clip(np.rint(STEPS_AN_OCTAVE * logs), -MAX_SCALE_CODE, MAX_SCALE_CODE).astype(np.int16)
    return np.where(positive, codes, ZERO)


def nearest_code(values: Float64) -> Scale:
    """Nearest eighth of an octave of positive values, exactly the same on every machine: nothing but comparisons."""
    mantissas, exponents = np.frexp(values)
    octaves = STEPS_AN_OCTAVE * (exponents - 1)
    codes: Scale = (octaves + np.searchsorted(_MIDDLES, 2 * mantissas, side="right")).astype(np.int16)
    return codes


def value_of(codes: Scale) -> Float64:
    """2**(code / 8) from committed mantissas, exactly the same on every machine; 0 for ZERO."""
    wide = codes.astype(np.int32)
    values = np.ldexp(_MANTISSAS[wide & 7], wide >> 3)
    return np.where(codes == ZERO, 0.0, values)


def scales_of(moments: Moments, dtype: str) -> Scales:
    """Scales of a second moment (R, C), from where one of both moments is not 0; a row without is zero.

    A row of which `dtype` could hold nothing but 0 counts as a quarter of the smallest number that it has.
    """
    sums = elementwise.moment_sums(moments)
    used_rows, used_columns = sums.used_rows > 0, sums.used_columns > 0
    if sums.used_rows.sum() == used_rows.sum() * used_columns.sum():  # no gaps but whole rows and columns
        columns = sums.columns / max(float((sums.rows / np.maximum(sums.used_rows, 1)).sum()), _LEAST_SUM)
        rows = sums.rows / max(float(columns.sum()), _LEAST_SUM)
    else:
        rows, columns = _fitted(moments, sums)
    rows, columns = np.maximum(rows, SMALLEST[dtype] / 4), np.maximum(columns, 2.0**-40)
    if not sums.rows.any():
        columns = np.ones(columns.size)
    return Scales(code_of(np.where(used_rows, rows, 0.0)), code_of(np.where(used_columns, columns, 0.0)))


def _fitted(moments: Moments, sums: MomentSums) -> tuple[Float64, Float64]:
    """Row means (R,) and relative column means (C,) whose products have these sums where a moment is not 0."""
    alive = ((moments.second != 0) | (moments.first != 0)).astype(np.float64)
    rows, columns = sums.rows / np.maximum(sums.used_rows, 1), np.ones(alive.shape[1])
    for _ in range(_FITS):
        columns = sums.columns / np.maximum(alive.T @ rows, _LEAST_SUM)
        rows = sums.rows / np.maximum(alive @ columns, _LEAST_SUM)
    return rows, columns


def scales_beside(other: Scales, rows: int) -> Scales:
    """Scales of rows whose moments are all 0, given those of others of their tensor: they weigh as in one piece."""
    used = other.rows[other.rows != ZERO]
    weight = max(int(used.min()) + BELOW_ALL, int(used.mean(dtype=np.float64)) - REACH) if used.size else 0
    moved = np.clip(other.columns.astype(np.int32) + weight, -MAX_SCALE_CODE, MAX_SCALE_CODE)
    columns: Scale = np.where(other.columns == ZERO, ZERO, moved).astype(np.int16)
    return Scales(np.full(rows, ZERO, np.int16), columns)


def uniform_scales(shape: tuple[int, int], code: int) -> Scales:
    """Scales of a weight (R, C) without moments: all its elements weigh the same."""
    rows, columns = shape
    return Scales(np.full(rows, code, np.int16), np.zeros(columns, np.int16))


def typical_scale(scales: Iterable[Scales]) -> int:
    """The code that the typical element has, by the means of codes; 0 of none."""
    found = [(each, each.rows[each.rows != ZERO], each.columns[each.columns != ZERO]) for each in scales]
    means = [
        (int(own.rows.size) * own.columns.size, rows.mean() + columns.mean())
        for own, rows, columns in found
        if rows.size and columns.size
    ]
    elements = sum(size for size, _ in means)
    return round(sum(size * mean for size, mean in means) / elements) if elements else 0


def scales_of_momentum(momentum: Float64) -> Scales:
    """Scales of a momentum's square (R, C). A few values tell little of a gradient: short rows lean on the mean."""
    squares = momentum**2
    mean = squares.mean() if squares.any() else 1.0
    rows, columns = (_relative_means(squares, mean, axis) for axis in (1, 0))
    return Scales(code_of(mean * rows), code_of(columns))


def _relative_means(squares: Float64, mean: float, axis: int) -> Float64:
    """Means of rows (axis 1) or columns (axis 0) over the mean of all, drawn towards it; 0 where all is 0."""
    count = squares.shape[axis]
    share = count / (count + _PRIOR_ELEMENTS) if count > 1 else 0.0
    relative = squares.sum(axis) / (max(count, 1) * mean)
    drawn: Float64 = np.where(relative > 0, np.maximum(relative, _SMALLEST_SHARE) ** share, 0.0)
    return drawn


def product_of(scales: Scales) -> Float64:
    """Row times column (R, C): the rank-1 second moment, or the variance that a momentum's levels are relative to."""
    return value_of(scales.rows)[:, None] * value_of(scales.columns)


def values_of(scales: Scales) -> Lengths:
    """What codes of rows and columns stand for."""
    return Lengths(value_of(scales.rows), value_of(scales.columns))


def used_by(scales: Scales) -> Used:
    """Rows and columns that have moments."""
    return Used(scales.rows != ZERO, scales.columns != ZERO)


def fill_of(scales: Scales, dtype: str) -> RawArray:
    """The restored rank-1 second moment (R, C) in its stored dtype.

    It is 0 only where both original moments were 0 throughout the row or column, else at least the smallest number that
    its dtype has (before format 6 the smallest normal one, which in float16 is more than most second moments are): a
    zero there would make the first resumed steps several times too long.
    """
    floor = (SMALLEST_NORMAL if scales.reach is None else SMALLEST)[dtype]
    return from_numbers(elementwise.fill(values_of(scales), floor, single=is_single(dtype)), dtype)


def typical_root(scales: Scales) -> float:
    """Fourth root of a moment's typical variance, from the means of its codes (rounded down): a unit of its own."""
    used = [codes[codes != ZERO] for codes in (scales.rows, scales.columns)]
    code = sum(int(codes.sum(dtype=np.int64)) // max(codes.size, 1) for codes in used)
    return float(np.sqrt(np.sqrt(value_of(np.array(code, np.int16)))))


def half_octaves(scales: Scales) -> HalfOctaves:
    """Row times column (R, C) over the mean of the rows, in half octaves: what moments' contexts see."""
    used = scales.rows[scales.rows != ZERO]
    middle = _mean_code(used) if used.size else 0
    codes = scales.rows.astype(np.int32)[:, None] + scales.columns.astype(np.int32)
    near: HalfOctaves = np.clip((codes - (middle - 2)) >> 2, -64, 63).astype(np.int8)
    return near


def _mean_code(codes: Scale) -> int:
    """Code of the mean of values, by a sum of integers."""
    largest = int(codes.max())
    total = np.floor(value_of(codes - codes.max()) * 2.0**30).astype(np.int64).sum()
    return largest + int(nearest_code(np.array(int(total) / codes.size * 2.0**-30)))


class FisherWeighting(Lengths):
    """What multiplies a residual before it is quantized: fourth roots of the second moment's row and column means.

    A second moment is about the diagonal of the Fisher information, so that its root says how much an error of a weight
    costs; here the square root of that is split between row and column.
    """

    __slots__ = ()

    def weigh(self, residual: Numbers) -> Float64:
        """Into the domain in which every unit of error costs about the same; (R, C)."""
        return elementwise.weighed(residual, None, self)

    def unweigh(self, weighted: Float64) -> Float64:
        """Out of that domain again, (R, C)."""
        return elementwise.restored(None, weighted, 1.0, self, single=False).astype(np.float64, copy=False)


def fisher_weighting(scales: Scales) -> FisherWeighting:
    """Fourth roots by two square roots. A row that is all zero weighs as if two octaves below the smallest other."""
    return FisherWeighting(*(_fourth_root(codes, scales.reach) for codes in (scales.rows, scales.columns)))


def _fourth_root(codes: Scale, reach: int | None) -> Float64:
    """Within `reach` below the mean code (rounded down): what never had a gradient must not move by half its size."""
    used = codes[codes != ZERO].astype(np.int64)
    floor = int(used.min()) + BELOW_ALL if used.size else 0
    weighed = np.where(codes == ZERO, floor, codes.astype(np.int64))
    if reach is not None and used.size:
        weighed = np.maximum(weighed, int(used.sum()) // used.size - reach)
    return np.sqrt(np.sqrt(value_of(weighed.astype(np.int16))))
