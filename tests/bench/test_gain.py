"""Adaptive tables cost what a decoder could decode: what they predict a pass from is known before it."""

from dataclasses import replace

import numpy as np
from gain import AdaptiveTables, coded_bytes

from ckzd.codec.entropy.context import GRID, SideInformation
from ckzd.codec.entropy.models import Models
from ckzd.codec.entropy.planes import PlaneToCode, histograms_of
from ckzd.codec.kernels.plain import ALPHABET


def plane(seed):
    deviation = np.geomspace(0.1, 4, 64)  # of columns: contexts tell them apart
    levels = np.rint(np.random.default_rng(seed).normal(0, deviation, (64, 64))).astype(np.int16)
    return PlaneToCode(0, 0, levels, SideInformation())


def test_before_the_first_pass_nothing_is_known_and_then_what_was_decoded():
    tables, first, second = AdaptiveTables(), plane(0), plane(1)
    _, _, density = next(iter(histograms_of(replace(first, kind=0, side_information=SideInformation()))))
    tables.begin(first)
    assert np.ptp(tables.rows(0, 0, density), axis=1).max() == 0
    assert tables.rows(0, 3, density).shape == (GRID, ALPHABET)
    assert np.ptp(tables.rows(0, 3, density), axis=1).max() > 0
    tables.begin(second)
    assert np.ptp(tables.rows(0, 0, density), axis=1).max() > 0


def test_a_plane_like_the_last_is_cheaper():
    alone = [coded_bytes([plane(seed)], Models(AdaptiveTables())) for seed in (0, 1)]
    assert coded_bytes([plane(0), plane(1)], Models(AdaptiveTables())) < 0.98 * sum(alone)
