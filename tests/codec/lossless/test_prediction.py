"""What rows, columns and factors predict is the same on every machine, and comes back from its bytes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckzd.codec import zstd
from ckzd.codec.lossless.prediction import MAX_FACTORS, Prediction, fit_prediction
from ckzd.codec.parsing import write_leb

WIDTHS = (2, 4, 8)


def second_moments(rows=64, columns=96, dtype="<f4", spread=0.1, seed=0):
    """Products of row and column scales, with noise: bits without the sign."""
    draw = np.random.default_rng(seed)
    exponents = draw.normal(0, 2, (rows, 1)) + draw.normal(0, 2, columns) + draw.normal(0, spread, (rows, columns))
    values = np.exp2(exponents).astype(dtype)
    return values.view(f"<u{values.itemsize}").ravel() << 1


@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8"])
def test_scales_of_rows_and_columns_are_found(dtype):
    values = second_moments(dtype=dtype)
    octave = 2 << {"<f2": 10, "<f4": 23, "<f8": 52}[dtype]
    missed = (values - fit_prediction(values, 96).values(values.dtype)).view(values.dtype.str.replace("u", "i"))
    assert np.abs(missed.astype(float)).mean() < 0.25 * octave
    assert values.astype(float).std() > 2 * octave


def test_factors_are_kept_where_they_pay():
    draw = np.random.default_rng(0)
    rows, columns = 256, 512
    factors = draw.normal(0, 1, (rows, 3)) @ draw.normal(0, 1, (3, columns))
    noisy = draw.normal(0, 0.1, (rows, columns))
    structured, shapeless = (np.exp2(x).astype("<f4").view("<u4").ravel() << 1 for x in (factors + noisy, noisy))
    fitted = fit_prediction(structured, columns)
    assert fitted.right.shape[0] >= 3
    missed = (structured - fitted.values(structured.dtype)).view("<i4") / 2.0**24
    assert missed.std() < 0.25 < factors.std()
    assert fit_prediction(shapeless, columns).right.shape == (0, columns)


@given(st.data(), st.sampled_from(WIDTHS), st.integers(16, 20), st.integers(16, 20))
def test_any_matrix_is_predicted_somehow(data, width, rows, columns):
    nbytes = width * rows * columns
    pool = data.draw(st.binary(min_size=nbytes, max_size=nbytes) | st.sampled_from((bytes(nbytes), b"\xff" * nbytes)))
    values = np.frombuffer(pool, f"<u{width}")
    fitted = fit_prediction(values, columns)
    coded = b"x" + fitted.to_bytes() + b"rest"
    again, end = Prediction.from_bytes(coded, 1, values.size, 8 * width)
    assert coded[end:] == b"rest"
    assert np.array_equal(again.values(values.dtype), fitted.values(values.dtype))


@pytest.mark.parametrize("width", WIDTHS)
def test_the_loudest_terms_wrap_as_integers_do(width):
    draw = np.random.default_rng(1)
    left, right = (draw.choice([-128, 127], shape).astype(np.int8) for shape in ((40, MAX_FACTORS), (MAX_FACTORS, 50)))
    rows, columns = (draw.choice([-32768, 32767], size).astype(np.int16) for size in (40, 50))
    bits = 8 * width
    loud = Prediction(rows, columns, bits - 1, left, right, bits // 2)
    expected = [
        ((int(rows[i]) + int(columns[j])) * 2 ** (bits - 1) + int(left[i].astype(int) @ right[:, j]) * 2 ** (bits // 2))
        % (1 << bits)
        for i in range(40)
        for j in range(50)
    ]
    assert loud.values(np.dtype(f"<u{width}")).tolist() == expected


def test_what_no_encoder_writes_is_refused():
    def coded(columns, unit=3, factor_unit=3, factors=0, nbytes=None):
        rows = 400 // max(columns, 1)
        block = zstd.compress(bytes((rows + columns) * (2 + factors) if nbytes is None else nbytes))
        return write_leb(columns) + write_leb(len(block)) + bytes([unit, factor_unit, factors]) + block

    assert Prediction.from_bytes(coded(20, factors=20), 0, 400, 32)[0] is not None
    assert Prediction.from_bytes(b"\0", 0, 400, 32) == (None, 1)
    for bad in (
        coded(21), coded(500), coded(20, unit=32), coded(20, factor_unit=40), coded(20, factors=33),
        coded(4, factors=5), coded(20, nbytes=81), coded(20, nbytes=1 << 24), coded(20)[:-1],
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"expected|claims|decompress|input|determining"):
            Prediction.from_bytes(bad, 0, 400, 32)
