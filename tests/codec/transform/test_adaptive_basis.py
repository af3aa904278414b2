"""Adaptive bases: exact on every machine, orthonormal after any residuals, and structured ones concentrate."""

import io
from unittest import mock

import numpy as np
import plain_decoder
import pytest
import torch
from codec.chains import compressed_run, decode, encode, restored
from codec.exactness import largest_sum, watched
from scipy.linalg import hadamard
from threadpoolctl import ThreadpoolController

from ckzd.checkpoint import TensorSpec
from ckzd.codec.algebra.on_cores import CORES
from ckzd.codec.records import reference_tensors
from ckzd.codec.records.index import Method
from ckzd.codec.records.reconstruction import ArrayFile
from ckzd.codec.records.reference_tensors import ReferenceTensor, basis_of, put_reference_tensor
from ckzd.codec.transform import quantize
from ckzd.codec.transform.adaptive_basis import (
    MAX_COEFFICIENT,
    SLACK,
    AdaptiveBasis,
    BasisSide,
    Observed,
    in_fine_units,
    tracked,
)

ONE = 2.0**14
FIELDS = ("left", "left_energy", "right", "right_energy")


def residuals(rows, columns, count, *, rank=3, seed=0):
    """In steps: a few directions that stay, and noise."""
    draw = np.random.default_rng(seed)
    left, right = draw.normal(0, 1, (rows, rank)), draw.normal(0, 1, (rank, columns))
    return [
        2 * left @ np.diag(draw.normal(0, 1, rank)) @ right + draw.normal(0, 0.3, (rows, columns)) for _ in range(count)
    ]


def turned(basis, residual, step=1.0):
    """The basis after a residual was coded in it, and what was restored of it."""
    code = quantize.quantize_scalar(basis.gained(in_fine_units(residual, step)), 1.0, 0.5)
    fixed = basis.fixed(quantize.dequantize_scalar(code, 1.0))
    return learned(basis, fixed), basis.residual(fixed) * step


def learned(basis, fixed, slack=SLACK):
    (found,) = tracked([Observed(basis, fixed)], slack)
    return found


def off(basis):
    """How far the products of any two directions are from what they should be."""
    found = []
    for side in (basis.left, basis.right):
        for _, vectors in side.blocks(CORES):
            found.append(np.abs(vectors.T @ vectors / ONE**2 - np.eye(len(vectors))).max())
    return max(found)


def same(one, other):
    pairs = [(a, b) for side in ("left", "right") for a, b in [(getattr(one, side), getattr(other, side))]]
    return all(np.array_equal(a.vectors, b.vectors) and np.array_equal(a.codes, b.codes) for a, b in pairs)


def hard_residuals():
    draw = np.random.default_rng(1)
    rest = draw.normal(0, 2, (40, 48))
    rest[20:] = 0
    return {
        "half of the rows at rest": rest,
        "half of the columns at rest": rest.T.copy(),
        "constant": np.full((40, 48), 3.0),
        "rank one": np.outer(draw.normal(0, 3, 40), draw.normal(0, 1, 48)),
        "nothing": np.zeros((40, 48)),
        "one number": np.eye(40, 48) * (np.arange(40) == 7)[:, None] * 500,
        "two blocks a side": draw.normal(0, 1, (260, 1)) * draw.normal(0, 1, (1, 20)),
    }


@pytest.mark.parametrize("name", hard_residuals())
def test_directions_stay_orthonormal_and_none_is_lost(name):
    """Ten turns by residuals without full rank, then one that has it: a lost direction would never be coded again."""
    residual = hard_residuals()[name]
    basis, draw = AdaptiveBasis.unknown(*residual.shape), np.random.default_rng(2)
    for _ in range(10):
        basis, _ = turned(basis, residual * draw.choice([-1.0, 0.5, 2.0]))
        basis = AdaptiveBasis(basis.left, basis.right)
        assert off(basis) < 0.002
        for side in (basis.left, basis.right):
            BasisSide.checked(side.vectors, side.codes)
    other = draw.normal(0, 20, residual.shape)
    _, found = turned(basis, other, step=0.5)
    assert np.linalg.norm(found - other) < 0.2 * np.linalg.norm(other)


def test_a_basis_concentrates_what_stays():
    """The directions of all residuals but the last are where the last one's energy falls."""
    *seen, last = residuals(48, 64, 6)
    basis = AdaptiveBasis.unknown(48, 64)
    for residual in seen:
        basis, _ = turned(basis, residual)
        basis = AdaptiveBasis(basis.left, basis.right)
    fixed = in_fine_units(last, 1.0)
    coefficients = basis.coefficients(fixed) / 2**12
    assert (coefficients[:3, :3] ** 2).sum() > 0.9 * (last**2).sum()
    assert (coefficients**2).sum() == pytest.approx((last**2).sum(), rel=0.01)
    assert np.all(np.diff(basis.left.codes) <= 0)
    assert basis.left.codes[0] > 20
    assert basis.left.codes[-1] < 0
    coded, before = (quantize.quantize_scalar(known.gained(fixed), 4.0, 0.5).levels for known in
                     (basis, AdaptiveBasis.unknown(48, 64)))  # fmt: skip
    assert np.count_nonzero(coded) < 0.5 * np.count_nonzero(before)


@pytest.mark.parametrize("slack", [None, 0, 9, 14])
@pytest.mark.parametrize("shape", [(16, 16), (20, 300), (257, 17)])
def test_the_page_says_the_same(shape, slack):
    """A basis that is new, and what it is after one turn and after two, coefficient by coefficient."""
    kept, basis = plain_decoder.Reconstruction(), AdaptiveBasis.unknown(*shape)
    for residual in residuals(*shape, 2):
        plain = plain_decoder.Frame(("w",), shape, kept)
        code = quantize.quantize_scalar(basis.gained(in_fine_units(residual, 0.5)), 1.0, 0.5)
        fixed = basis.fixed(quantize.dequantize_scalar(code, 1.0))
        assert np.array_equal(plain.coefficients(plain_decoder.fractions(code.centres, code.levels)), fixed)
        assert np.array_equal(plain.residual(fixed.astype(np.int64)), basis.residual(fixed))
        plain.learn(fixed.astype(np.int64), slack)
        basis = learned(basis, fixed, slack)
        basis = AdaptiveBasis(basis.left, basis.right)
        for name, plain_side, side in (("left", plain.left, basis.left), ("right", plain.right, basis.right)):
            vectors, codes = plain_side.stored()
            assert np.array_equal(vectors, side.vectors)
            assert np.array_equal(codes, side.codes)
            kept.put(("w",), name, vectors)
            kept.put(("w",), f"{name}_energy", codes)


def extreme_coefficients(rows, columns, kind):
    draw = np.random.default_rng(0)
    signs = {"equal": np.ones((rows, columns)), "random": draw.choice([-1.0, 1.0], (rows, columns))}
    return MAX_COEFFICIENT * signs.get(kind, np.outer(draw.choice([-1.0, 1.0], rows), np.ones(columns)))


@pytest.mark.parametrize("kind", ["equal", "random", "rank one"])
@pytest.mark.parametrize("shape", [(256, 256), (256, 3000)])
def test_no_sum_reaches_53_bits(shape, kind):
    """256 directions, the largest coefficients there may be, a wide side: no order of summation can matter."""
    basis, fixed = AdaptiveBasis.unknown(*shape), watched(extreme_coefficients(*shape, kind))
    with largest_sum() as found:
        for _ in range(2):  # three passes, then one
            basis = learned(basis, fixed)
            basis.residual(fixed)
    assert 2.0**40 < found[0] < 2.0**53


def test_the_same_bits_on_any_number_of_threads_and_in_any_order():
    first, second = [np.rint(residual * 2**12) for residual in residuals(256, 40, 2)]

    def after_both(look=np.asarray):
        return learned(learned(AdaptiveBasis.unknown(256, 40), look(first)), look(second))

    plain = after_both()
    for threads in (1, 2):
        with ThreadpoolController().limit(limits=threads):
            assert same(after_both(), plain)
    for order in ("backwards", "sevens"):
        with largest_sum(order) as found:
            assert same(after_both(watched), plain)
        assert found[0] > 0


def test_the_same_bits_whatever_else_is_learned_beside():
    """Blocks of one width turn in stacks; bases that are new turn further."""
    shapes = [(16, 40), (40, 16), (40, 40), (600, 20), (16, 16), (256, 300), (40, 300)]
    news = [AdaptiveBasis.unknown(*shape) for shape in shapes]
    fixed = [np.rint(residuals(*shape, 1)[0] * 2**12) for shape in shapes]
    alone = [learned(basis, seen) for basis, seen in zip(news, fixed, strict=True)]
    coded = [Observed(basis, seen) for known in (news, alone, news) for basis, seen in zip(known, fixed, strict=True)]
    again = [learned(basis, seen) for basis, seen in zip(alone, fixed, strict=True)]
    for basis, expected in zip(tracked(coded), [*alone, *again, *alone], strict=True):
        assert same(basis, expected)
    assert all(basis.settled for basis in again)
    assert not any(basis.left.codes.any() for basis in news), "they are not learned in place"


def test_no_zero_is_negative():
    """Its sign would be in the bytes of a moment, and whether sums of -0 are -0 is up to the BLAS."""
    basis, _ = turned(AdaptiveBasis.unknown(20, 30), residuals(20, 30, 1)[0])
    coefficients = np.full((20, 30), -0.0)
    for _ in range(20):
        found = basis.residual(coefficients)
        assert not np.signbit(found[found == 0]).any()
        coefficients.flat[np.random.default_rng(3).integers(600)] -= 1
    assert (found == 0).any()


def test_a_residual_has_exact_coefficients_or_none():
    """The largest elements that are taken, all of them gathered in one coefficient."""
    side = BasisSide((ONE / 16 * hadamard(256)).astype(np.int16), np.zeros(256, np.int16))
    fixed = in_fine_units(np.full((256, 256), 2.0**18), 1.0)
    with largest_sum() as found:
        coefficients = AdaptiveBasis(side, side).coefficients(watched(fixed))
    assert found[0] == 2.0**52
    assert coefficients[0, 0] == 2.0**38 == np.abs(coefficients).sum()
    assert in_fine_units(np.full((256, 256), 2.0**18 + 1), 1.0) is None


def test_coefficients_no_encoder_writes_are_refused():
    basis, largest = AdaptiveBasis.unknown(16, 16), MAX_COEFFICIENT / 2**12
    assert basis.fixed(np.full((16, 16), largest)).max() == MAX_COEFFICIENT
    for beyond in (largest + 1, -largest - 1):
        with pytest.raises(ValueError, match="a coefficient beyond"):
            basis.fixed(np.where(np.eye(16) > 0, beyond, 0.0))
    levels = np.zeros((16, 16), np.int16)
    assert basis.reaches(levels)
    levels[3, 4] = 32767
    assert not basis.reaches(levels)


# In a reconstruction

SPEC = TensorSpec(("model", "w"), "float32", (20, 300), 24000)


def kept_with(**changed):
    """A file that holds a basis of a (20, 300) tensor, some arrays of it changed."""
    basis, _ = turned(AdaptiveBasis.unknown(20, 300), residuals(20, 300, 1)[0])
    file = ArrayFile(io.BytesIO())
    put_reference_tensor(file, SPEC, ReferenceTensor(np.zeros((20, 300), np.float32), None, basis), None)
    for name, change in changed.items():
        array = change(file.get(SPEC.path, name).copy())
        file.put(SPEC.path, name, array)
    return basis, file


def test_a_basis_comes_back_from_a_reconstruction():
    basis, file = kept_with()
    assert same(basis_of(SPEC, file), basis)
    assert basis_of(TensorSpec(SPEC.path, "float32", (300, 20), 24000), file) is None
    assert basis_of(TensorSpec(("model", "v"), "float32", (20, 300), 24000), file) is None
    assert list(file._table) == ["model\0w\0" + name for name in ("weights", *FIELDS)]


def put(value):
    def change(array):
        array.flat[0] = value
        return array

    return change


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("", lambda vectors: vectors[:-1]),
        ("", lambda vectors: vectors[:, :-1]),
        ("", lambda vectors: vectors.astype(np.int32)),
        ("", lambda vectors: vectors.ravel()),
        ("_energy", lambda codes: codes.astype(np.float32)),
        ("_energy", put(81)),
        ("_energy", put(-32768)),
    ],
    ids=["a row less", "a column less", "wider numbers", "flat", "fractions", "too much energy", "too little"],
)
def test_a_damaged_basis_is_refused(side, field, change):
    _, file = kept_with(**{side + field: change})
    with pytest.raises(ValueError, match=r"expected vectors|a direction's variance"):
        basis_of(SPEC, file)


# In chains


def run_of(path, moves, *, shape=(20, 24), dtype=torch.float32):
    """Checkpoints of one matrix under Adam, and of a vector that always moves; a move makes the next matrix."""
    draw = torch.Generator().manual_seed(0)
    weight, vector = torch.randn(shape, generator=draw), torch.randn(200, generator=draw)
    like = {"w": weight, "v": vector}
    state = {
        k: {"step": torch.tensor(9.0), "exp_avg": 1e-3 * torch.randn(tensor.shape, generator=draw),
            "exp_avg_sq": torch.full(tensor.shape, 1e-6)}
        for k, tensor in enumerate(like.values())
    }  # fmt: skip
    optimizer = {"state": state, "param_groups": [{"params": [0, 1], "betas": (0.9, 0.999)}]}
    paths = []
    for step, move in enumerate(moves, start=1):
        weight = move(weight)
        vector = vector + 0.1 * torch.randn(200, generator=draw)
        paths.append(path / f"step_{step}.pt")
        torch.save({"model": {"w": weight.to(dtype), "v": vector}, "optimizer": optimizer, "step": step}, paths[-1])
    return paths


def moving(weight):
    draw = torch.Generator().manual_seed(int(weight.double().sum() * 1e6) % 1000)
    return weight + 0.3 * torch.outer(torch.randn(20, generator=draw), torch.arange(24.0) / 24)


def everywhere(weight):
    """Nothing that a few directions tell."""
    draw = torch.Generator().manual_seed(int(weight.double().sum() * 1e6) % 1000)
    return weight + 0.3 * torch.randn(weight.shape, generator=draw)


def staying(weight):
    return weight.clone()


def broken(weight):
    weight = weight.clone()
    weight[3, 5] = float("nan")
    return weight


def healed(weight):
    return torch.nan_to_num(weight)


def stored_basis(archive):
    arrays = [archive.reconstruction.get(("model", "w"), name) for name in FIELDS]
    return [array.tobytes() for array in arrays if array is not None]


@pytest.mark.parametrize(("move", "first"), [(everywhere, Method.FRAMED), (moving, Method.FACTORED)])
def test_a_basis_is_learned_from_the_first_residual_and_turns_with_each(tmp_path, move, first):
    """Of few directions that stay: factors once, and then the basis that has learned from them."""
    archives = compressed_run(run_of(tmp_path, [move] * 4))
    methods = [archive.methods(before)["model.w"] for archive, before in zip(archives, [None, *archives], strict=False)]
    assert methods == [Method.WHOLE, first, Method.FRAMED, Method.FRAMED]
    found = [stored_basis(archive) for archive in archives]
    assert [len(arrays) for arrays in found] == [0, 4, 4, 4]
    assert found[1] != found[2] != found[3]
    for archive, before in zip(archives[1:], archives, strict=False):
        restored(archive, before)  # which holds the decoder's reconstruction, with its basis, against the encoder's


@pytest.mark.parametrize("preset", ["paper", "lossless"])
@pytest.mark.parametrize("between", ["same", "delta", "kmeans"])
def test_a_basis_survives_a_link_that_does_not_use_it(tmp_path, between, preset):
    """What was learned is not lost where a tensor stands still, breaks, or is coded by another preset for once."""
    moves = {"same": [staying, moving], "delta": [broken, healed, moving], "kmeans": [moving, moving]}[between]
    paths = run_of(tmp_path, [moving, moving, *moves])
    archives = compressed_run(paths[:2])
    presets = {"same": ["lossless"], "delta": ["resume", preset], "kmeans": [preset]}[between]
    if between == "same":  # bytes of the reconstruction, as a file that was restored and saved again has
        state = torch.load(paths[2])
        state["model"]["w"] = restored(archives[1], archives[0])["model"]["w"]
        torch.save(state, paths[2])
    for path, name in zip(paths[2:], [*presets, "resume"], strict=True):
        archives.append(encode(path, archives[-1], name))
    methods = [a.methods(b)["model.w"] for a, b in zip(archives[2:], archives[1:], strict=False)]
    expected = {
        "same": [Method.SAME],
        "delta": [Method.DELTA, Method.DELTA],
        "kmeans": [Method.KMEANS if preset == "paper" else Method.DELTA],
    }[between]
    assert methods == [*expected, Method.FRAMED]
    for link in archives[2:-1]:
        assert stored_basis(link) == stored_basis(archives[1]) != []
    assert stored_basis(archives[-1]) != stored_basis(archives[1])
    for archive, before in zip(archives, [None, *archives], strict=False):
        restored(archive, before)


def test_a_tensor_that_the_reference_lacks_has_no_basis_and_one_of_another_shape_starts_anew(tmp_path):
    (tmp_path / "other").mkdir()
    _, second = compressed_run(run_of(tmp_path, [moving, moving]))
    paths = run_of(tmp_path / "other", [staying, lambda weight: weight + 0.1], shape=(24, 20))
    third = encode(paths[0], second)
    fourth = encode(paths[1], third)
    assert third.methods(second)["model.w"] is Method.WHOLE
    assert stored_basis(third) == []
    assert fourth.methods(third)["model.w"] is Method.FACTORED
    assert fourth.reconstruction.get(("model", "w"), "left_energy").size == 24
    restored(third, second)
    restored(fourth, third)


def test_decoders_learn_what_encoders_learned(tmp_path):
    """One basis more or less, and every level of the next archive would stand for another value."""
    archives = compressed_run(run_of(tmp_path, [moving] * 3))
    decode(archives[2], archives[1])
    unchanged = mock.patch.object(reference_tensors, "tracked", lambda observed, *_: [each.basis for each in observed])
    with unchanged, pytest.raises(AssertionError):
        decode(archives[2], archives[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_bases_and_factors_of_half_precision(tmp_path, dtype):
    archives = compressed_run(run_of(tmp_path, [moving] * 3, dtype=dtype))
    methods = [Method.FACTORED, Method.FRAMED]
    for archive, before, method in zip(archives[1:], archives[:2], methods, strict=True):
        assert archive.methods(before)["model.w"] is method
        restored(archive, before)
