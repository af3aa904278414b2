"""The scalar method stays finite whatever an archive says."""

import numpy as np
from codec.known import known_weight

from ckzd.codec.methods.method import Coded
from ckzd.codec.methods.scalar import Scalar
from ckzd.codec.scales import MAX_SCALE_CODE, Scales


def test_nothing_that_an_archive_can_say_breaks_the_arithmetic():
    """The largest step, levels and scales that the format allows stay finite in float64: no warning, no NaN."""
    for rows in (MAX_SCALE_CODE, -MAX_SCALE_CODE):
        scales = Scales(np.array([rows], np.int16), np.array([-MAX_SCALE_CODE, MAX_SCALE_CODE], np.int16))
        coded = Coded(b"\xff\xff\xff", np.array([[32767, -32768]], np.int16))
        known = known_weight(np.zeros((1, 2), np.float32), scales, "float32")
        assert np.isfinite(Scalar().restored(coded, known, 2.0**128).values).all()
