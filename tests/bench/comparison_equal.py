"""Bytes at equal error: two methods' curves of settings, read off where the error is the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

EXTRAPOLATE = 2.0  # at most by this factor of KL beyond a curve's end


class Setting(NamedTuple):
    """One setting of a method."""

    error: float
    size: float  # bytes of the delta that has this error


class Reading(NamedTuple):
    """A curve's size at an error."""

    size: float
    extrapolated: bool


@dataclass(frozen=True)
class Equal:
    """What two methods need for the same error; a reading is None where its curve says nothing about it."""

    measure: str
    error: float
    baseline: Reading | None
    ckzd: Reading | None

    @property
    def factor(self) -> float | None:
        """Bytes of the baseline over bytes of ckzd."""
        return self.baseline.size / self.ckzd.size if self.baseline and self.ckzd else None

    @property
    def extrapolated(self) -> bool:
        """Whether one of the sizes lies beyond its curve."""
        return any(reading is not None and reading.extrapolated for reading in (self.baseline, self.ckzd))


def size_at_divergence(curve: Sequence[Setting], divergence: float) -> Reading | None:
    """Log KL against log bytes, straight between settings; beyond the ends by a factor of EXTRAPOLATE at most."""
    logs = [Setting(math.log(error), math.log(size)) for error, size in sorted(curve) if error > 0]
    target, beyond = math.log(divergence), math.log(EXTRAPOLATE)
    inside = _least_between(logs, target)
    if inside is not None:
        return Reading(math.exp(inside), extrapolated=False)
    for (end, inner), outwards in ((logs[:2], -1), (logs[:-3:-1], 1)) if len(logs) > 1 else ():
        if 0 < outwards * (target - end.error) <= beyond and end.error != inner.error:
            slope = (end.size - inner.size) / (end.error - inner.error)
            if slope <= 0:  # more bytes for more error tell nothing of what lies beyond
                return Reading(math.exp(end.size + slope * (target - end.error)), extrapolated=True)
    return None


def size_at_gap(curve: Sequence[Setting], gap: float) -> Reading | None:
    """Gap against log bytes, straight between neighbouring sizes; never beyond the ends: gaps are small and noisy."""
    ordered = sorted(curve, key=lambda setting: setting.size)
    inside = _least_between([Setting(error, math.log(size)) for error, size in ordered], gap)
    return None if inside is None else Reading(math.exp(inside), extrapolated=False)


def _least_between(curve: Sequence[Setting], target: float) -> float | None:
    """The least size at which the line through the settings, in this order, has the error."""
    sizes = [size for error, size in curve if error == target]
    for before, after in pairwise(curve):
        if (before.error - target) * (after.error - target) < 0:
            share = (target - before.error) / (after.error - before.error)
            sizes.append(before.size + share * (after.size - before.size))
    return min(sizes, default=None)
