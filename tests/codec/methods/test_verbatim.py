"""Tensors that lose nothing: against the reference where that costs less, else by themselves."""

import numpy as np
import pytest

from ckzd.checkpoint import STORED_AS, TensorSpec
from ckzd.codec.methods.registry import verbatim
from ckzd.codec.methods.verbatim import encoded_exactly
from ckzd.codec.records.index import Method

SHAPE = (40, 50)
DTYPES = ["float64", "float32", "bfloat16", "float16"]


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "float64":
        return values
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(STORED_AS[dtype])


def with_one_nan(draw: np.ndarray) -> np.ndarray:
    return np.where(draw == draw.max(), np.nan, draw)


def all_nan(draw: np.ndarray) -> np.ndarray:
    return np.full_like(draw, np.nan)


CASES = {  # now, before, how it is coded (None: as it happens)
    "moved": (lambda draw: draw + 0.001, lambda draw: draw, Method.DELTA),
    "one nan before": (lambda draw: draw, with_one_nan, Method.DELTA),
    "one nan now": (with_one_nan, lambda draw: draw, Method.DELTA),
    "all nan before": (lambda draw: draw, all_nan, None),
    "all nan now": (all_nan, lambda draw: draw, Method.EXACT),
    "all alike": (np.ones_like, lambda draw: 1 + draw / 100, Method.EXACT),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_a_reference_is_used_where_it_helps(case, dtype):
    now, before, expected = CASES[case]
    draw = np.random.default_rng(0).normal(0, 1, SHAPE)
    payload, reference = stored(now(draw), dtype).tobytes(), stored(before(draw), dtype)
    tensor = TensorSpec(("w",), dtype, SHAPE, len(payload))
    method, data = encoded_exactly(payload, tensor, reference)
    assert method is (expected or method)
    assert verbatim(method).decoded(data, tensor, reference) == payload
    for other in (Method.DELTA, Method.EXACT):
        assert len(data) <= len(verbatim(other).encoded(payload, tensor, reference))
    assert encoded_exactly(payload, tensor, None)[0] is Method.EXACT
