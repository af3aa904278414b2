"""torch gives NumPy's bits, on the CPU everywhere, and on a GPU where there is one."""

from unittest import mock

import numpy as np
import pytest
import torch
from codec.chains import Zoo, compressed_run, decode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ckzd.codec import encode as encoding
from ckzd.codec.algebra.exact import refine
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.algebra.on_torch import OnTorch
from ckzd.codec.kernels.plain import ROW_BITS
from ckzd.codec.transform.adaptive_basis import MAX_COEFFICIENT, AdaptiveBasis, Observed, in_fine_units, tracked

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES, scope="module")
def there(request):
    """torch's algebra, which leaves nothing to the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield OnTorch(request.param, few=0)
    torch.set_num_threads(threads)


def stacks(width):
    """Full rank, low rank, all rows alike, one direction, nothing, rows at rest, 2**40 apart, the largest."""
    draw = np.random.default_rng(width)

    def integers(*shape, bits=22):
        return np.rint(draw.normal(0, 2.0 ** (bits - 2), shape))

    rest = integers(width, width)
    rest[width // 2 :] = 0
    return np.stack([
        integers(width, width),
        integers(width, 3) @ integers(3, width, bits=8),
        np.full((width, width), 7.0),
        np.outer(integers(width), np.ones(width)),
        np.zeros((width, width)),
        rest,
        np.rint(integers(width, width, bits=4) * 2.0 ** np.linspace(40, 0, width)[:, None]),
        np.full((width, width), 2.0**44),
        2.0**44 * draw.choice([-1.0, 1.0], (width, width)),
        np.eye(width) * 5,
    ])  # fmt: skip


def powers(rows):
    """What a basis makes of such coefficients."""
    energy = rows @ rows.swapaxes(1, 2)
    scale = rows.shape[1] / np.maximum(np.trace(energy, axis1=1, axis2=2), 1.0)
    whole = np.rint((0.75 * energy * scale[:, None, None] + np.eye(rows.shape[1]) / 16) * 2.0**14)
    return whole @ (whole + 2.0**14 * np.eye(rows.shape[1]))


@pytest.mark.parametrize("width", [1, 16, 17, 33, 64, 100, 193, 256])
def test_rows_are_made_orthonormal_alike(there, width):
    for rows in (stacks(width), powers(np.clip(stacks(width), -(2**17), 2**17))):
        assert np.array_equal(there.get(there.orthonormal(there.put(rows))), CORES.orthonormal(rows))


@pytest.mark.parametrize("device", DEVICES)
def test_few_rows_are_left_to_the_cores(device):
    rows = stacks(40)
    with mock.patch.object(OnTorch, "_gram_schmidt") as never:
        found = OnTorch(device).orthonormal(OnTorch(device).put(rows))
    assert np.array_equal(OnTorch(device).get(found), CORES.orthonormal(rows))
    never.assert_not_called()


@settings(max_examples=60)
@given(st.data(), st.integers(1, 40), st.integers(1, 4))
def test_any_integers_are_made_orthonormal_alike(there, data, width, count):
    numbers = st.one_of(st.just(0), st.integers(-3, 3), st.integers(-(2**44), 2**44))
    rows = data.draw(arrays(np.float64, (count, width, width), elements=numbers.map(float)))
    assert np.array_equal(there.get(there.orthonormal(there.put(rows))), CORES.orthonormal(rows))


@settings(max_examples=60)
@given(arrays(np.float64, (2, 3, 5), elements=st.integers(-(2**52), 2**52).map(float)), st.integers(-40, 3))
def test_numbers_are_shifted_alike(there, values, bits):
    assert there.get(there.shifted(there.put(values), bits)).tobytes() == CORES.shifted(values, bits).tobytes()
    assert there.get(there.shifted(there.put(-values), bits)).tobytes() == CORES.shifted(-values, bits).tobytes()


@pytest.mark.parametrize("slack", [None, 0, 9, 14])
def test_columns_are_refined_alike(there, slack):
    draw = np.random.default_rng(0)
    vectors = CORES.orthonormal(np.rint(draw.normal(0, 2.0**20, (5, 48, 48))))
    vectors[1] += np.rint(draw.normal(0, 2.0**5, (48, 48)))
    vectors[2] += np.rint(draw.normal(0, 2.0**9, (48, 48)))
    vectors[3, 7] = 0
    found = there.put(vectors)
    near = refine(found, ROW_BITS, slack, there)
    assert near.tolist() == refine(vectors, ROW_BITS, slack, CORES).tolist() == [True, True, True, False, True]
    assert np.array_equal(there.get(found), vectors)


def residuals(shape, kind, draw):
    """In steps."""
    few = draw.normal(0, 3, (shape[0], 2)) @ draw.normal(0, 1, (2, shape[1]))
    kinds = {
        "noise": draw.normal(0, 2, shape),
        "few directions": few + draw.normal(0, 0.3, shape),
        "rank one": np.outer(draw.normal(0, 3, shape[0]), draw.normal(0, 1, shape[1])),
        "half at rest": np.where(np.arange(shape[0])[:, None] % 2, draw.normal(0, 4, shape), 0.0),
        "nothing": np.zeros(shape),
        "constant": np.full(shape, 3.0),
        "the largest": MAX_COEFFICIENT / 2**13 * draw.choice([-1.0, 1.0], shape),
    }
    return kinds[kind]


KINDS = ("noise", "few directions", "rank one", "half at rest", "nothing", "constant", "the largest")
SHAPES = ((16, 16), (20, 300), (257, 17), (40, 40), (512, 64))


@pytest.mark.parametrize("slack", [None, 9])
def test_bases_turn_alike(there, slack):
    """New ones, then those that have learned, of all shapes and kinds of residuals at once: to residuals and back."""
    draw = np.random.default_rng(0)
    forms = [(shape, kind) for shape in SHAPES for kind in KINDS]
    bases = [AdaptiveBasis.unknown(*shape) for shape, _ in forms]
    for _ in range(3):
        observed = []
        for basis, (shape, kind) in zip(bases, forms, strict=True):
            fixed = in_fine_units(residuals(shape, kind, draw), 1.0)
            coefficients = basis.coefficients(fixed)
            assert basis.coefficients(fixed, there).tobytes() == coefficients.tobytes()
            assert basis.gained(fixed, there).tobytes() == basis.gained(fixed).tobytes()
            assert basis.residual(coefficients, there).tobytes() == basis.residual(coefficients).tobytes()
            observed.append(Observed(basis, coefficients))
        bases = tracked(observed, slack)
        for one, other in zip(bases, tracked(observed, slack, there), strict=True):
            for mine, others in zip(one.sides, other.sides, strict=True):
                assert np.array_equal(mine.vectors, others.vectors)
                assert np.array_equal(mine.codes, others.codes)
    assert sum(bool(basis.left.codes.any()) for basis in bases) > len(forms) / 2


@pytest.mark.parametrize("preset", ["resume", "archive", "paper"])
def test_archives_are_alike(there, tmp_path, preset):
    """Bytes and reconstruction ids of a chain of everything at once, which a decoder reads without torch."""
    zoo, paths = Zoo(), []
    for step in range(3):
        zoo.advance()
        paths.append(zoo.save(tmp_path / f"step_{step}.pt"))
    chain = compressed_run(paths, preset)
    with mock.patch.object(encoding, "algebra_on", return_value=there) as asked:
        again = compressed_run(paths, preset)
    assert asked.call_count == len(paths)
    assert [archive.fingerprint() for archive in again] == [archive.fingerprint() for archive in chain]
    assert [archive.encoded.reconstruction for archive in again] == [a.encoded.reconstruction for a in chain]
    decode(again[-1], again[-2])
