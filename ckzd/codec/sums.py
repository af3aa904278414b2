"""Sums over whole arrays without arrays in between; only the encoder asks, so float rounding is free."""

import math

import numpy as np

from ckzd.codec.arrays import Float64


def inner(one: Float64, other: Float64) -> float:
    """The sum of products of two arrays of one shape."""
    return float(np.vdot(one, other))


def energy(values: Float64) -> float:
    """The sum of squares."""
    return inner(values, values)


def norm(values: Float64) -> float:
    """The root of the sum of squares."""
    return math.sqrt(energy(values))
