"""Other states of optimizers: scales of their own beside those of their weight, and what no encoder writes."""

import struct

import numpy as np
import pytest

from ckzd.checkpoint import TensorSpec
from ckzd.codec.dtypes import SMALLEST, from_float64, to_float64
from ckzd.codec.methods.method import Coded
from ckzd.codec.methods.registry import state_method
from ckzd.codec.methods.state import KnownState
from ckzd.codec.records.index import Method
from ckzd.codec.scales import uniform_scales

SHAPE = (24, 40)
DTYPES = ["float64", "float32", "bfloat16", "float16"]


def known(dtype="float32", expected=None):
    size = 4 if dtype == "float32" else 2
    return KnownState(TensorSpec(("v",), dtype, SHAPE, size * SHAPE[0] * SHAPE[1]), expected)


def variance(spread, seed=0):
    draw = np.random.default_rng(seed)
    product = np.outer(np.exp2(draw.normal(0, 3, SHAPE[0])), np.exp2(draw.normal(0, 3, SHAPE[1])))
    return product * np.exp2(draw.normal(0, spread, SHAPE)) * 1e-3


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_variance_of_rank_1_is_its_scales(dtype):
    stored = from_float64(variance(0), dtype)
    method = state_method(Method.STATE_FILL)
    found = to_float64(method.restored(method.coded(stored, known(dtype), 0.0), known(dtype)), dtype)
    true = to_float64(stored, dtype)
    seen = true > 8 * SMALLEST[dtype]
    assert (np.abs(np.log2(found[seen] / true[seen])) < 0.5).all()
    assert (found > 0).all()  # an update is never divided by 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_another_variance_is_within_a_quarter_octave(dtype):
    stored = from_float64(variance(4), dtype)
    method = state_method(Method.STATE_VARIANCE)
    found = to_float64(method.restored(method.coded(stored, known(dtype), 0.0), known(dtype)), dtype)
    true = to_float64(stored, dtype)
    seen = true > 64 * SMALLEST[dtype]
    assert (np.abs(np.log2(found[seen] / true[seen])) < 0.3).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_mean_is_within_its_step(dtype):
    stored = from_float64(np.random.default_rng(1).normal(0, 1e-2, SHAPE), dtype)
    method = state_method(Method.STATE_MEAN)
    found = to_float64(method.restored(method.coded(stored, known(dtype), 0.5), known(dtype)), dtype)
    true = to_float64(stored, dtype)
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.95


def test_a_mean_of_zeros_is_zeros():
    stored, method = np.zeros(SHAPE, np.float32), state_method(Method.STATE_MEAN)
    assert not method.restored(method.coded(stored, known(), 0.7), known()).any()


def test_scales_like_those_of_the_weight_cost_next_to_nothing():
    stored, method = np.full(SHAPE, 2.0**-20, np.float32), state_method(Method.STATE_FILL)
    near = uniform_scales(SHAPE, -160)
    assert len(method.coded(stored, known(expected=near), 0.0).head) < 16
    assert (method.restored(method.coded(stored, known(expected=near), 0.0), known(expected=near)) == stored).all()


@pytest.mark.parametrize("name", [Method.STATE_FILL, Method.STATE_VARIANCE, Method.STATE_MEAN])
def test_what_no_encoder_writes_is_an_error(name):
    method = state_method(name)
    coded = method.coded(variance(1).astype(np.float32), known(), 0.7)
    (length,) = struct.unpack_from("<I", coded.head)
    scales = coded.head[4 : 4 + length]
    wrong = [b"", b"\1\0", struct.pack("<I", length + 1) + scales, struct.pack("<I", 0)]
    if name is Method.STATE_FILL:
        wrong.append(coded.head + b"\0")
    if name is Method.STATE_MEAN:
        head = coded.head[: 4 + length]
        wrong += [head + struct.pack("<f", step) for step in (-1.0, float("nan"), float("inf"))]
    for head in wrong:
        with pytest.raises((ValueError, IndexError, struct.error)):
            method.restored(Coded(head, coded.levels), known())
