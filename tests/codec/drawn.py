"""What hypothesis draws of small matrices and their moments, in every dtype that may lose precision."""

from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from ckzd.codec.arrays import Float64
from ckzd.codec.dtypes import from_float64, to_float64

DTYPES = ["float64", "float32", "bfloat16", "float16"]
positive = st.one_of(st.just(0.0), st.floats(2.0**-149, 2.0**120, width=32), st.floats(2.0**-46, 2.0**-7, width=32))
signed = st.one_of(st.just(0.0), st.floats(-(2.0**100), 2.0**100, width=32))
matrices = array_shapes(min_dims=2, max_dims=2, max_side=6)


def stored(values: Float64, dtype: str) -> Float64:
    """Values as a dtype holds them."""
    return to_float64(from_float64(values, dtype), dtype)
