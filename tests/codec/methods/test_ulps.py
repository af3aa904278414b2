"""Sixteen-bit floats by how many ulps they moved: whatever they are they come back, and what hardly moved is small."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from codec.chains import compressed_run, decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from ckzd.checkpoint import STORED_AS, TensorSpec
from ckzd.codec.choose_exact import ExactChooser
from ckzd.codec.methods.ulps import ULPS, KnownBits
from ckzd.codec.methods.verbatim import encoded_exactly
from ckzd.codec.records.index import Method
from ckzd.codec.records.reconstruction import Reconstruction, ReconstructionWriter
from ckzd.codec.records.reference_tensors import ReferenceTensor, put_reference_tensor, seal

DTYPES = ["bfloat16", "float16"]
ODD = [0x0000, 0x8000, 0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x7C00, 0x0001, 0x8001, 0x3C00, 0xBC00]  # zeros, NaN, limits
SHAPE = (96, 64)


def spec(dtype, shape):
    return TensorSpec(("w",), dtype, shape, 2 * int(np.prod(shape)))


def reference_of(tensor, kept):
    file = io.BytesIO()
    writer = ReconstructionWriter(file)
    put_reference_tensor(writer, tensor, kept, None)
    seal(writer, b"", b"", b"")
    return Reconstruction(file)


def moved_on(known, bits):
    """What a decoder has after `bits` follow."""
    return ULPS.restored(ULPS.coded(bits.view(STORED_AS[known.tensor.dtype]), known), known)


@settings(deadline=None, max_examples=80)
@given(st.data(), st.sampled_from(DTYPES))
def test_any_bits_come_back_along_a_chain(data, dtype):
    shape = data.draw(array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    words = arrays(np.uint16, shape, elements=st.sampled_from(ODD) | st.integers(0, 0xFFFF))
    tensor, steps = spec(dtype, shape), [data.draw(words) for _ in range(3)]
    kept = ReferenceTensor(steps[0].view(STORED_AS[dtype]))
    for bits in steps[1:]:
        kept = moved_on(KnownBits(tensor, reference_of(tensor, kept)), bits)
        assert np.array_equal(kept.values.view(np.uint16), bits)
        assert kept.values.shape == shape


def test_a_change_leaves_a_trace_that_fades():
    before = np.full((1, 4), 0x3F80, np.uint16)
    tensor, kept, traces = spec("bfloat16", (1, 4)), ReferenceTensor(before), []
    for change in ([0, 1, -9, 0], [0, 0, 0, 300], [0, 0, 1, 0], [0, 0, 0, 0]):
        bits = (kept.values.astype(np.int64) + change).astype(np.uint16)
        kept = moved_on(KnownBits(tensor, reference_of(tensor, kept)), bits)
        traces.append(kept.levels.tolist()[0])
    assert traces == [[0, 3, -3, 0], [0, 2, -2, 3], [0, 1, 3, 2], [0, 0, 2, 1]]


def test_levels_of_a_lossy_archive_fade_like_a_trace():
    before = np.full((1, 4), 0x3F80, np.uint16)
    tensor = spec("bfloat16", (1, 4))
    kept = ReferenceTensor(before, np.array([[127, -127, 1, 0]], np.int16))
    assert moved_on(KnownBits(tensor, reference_of(tensor, kept)), before).levels.tolist() == [[2, -2, 0, 0]]


@pytest.mark.parametrize("case", ["no reference", "another shape", "another dtype", "32 bits"])
def test_what_the_reference_does_not_have_in_16_bits_is_an_error(case):
    """An archive that says so lies; an encoder takes another way."""
    tensor = spec("bfloat16", (2, 3))
    kept = reference_of(tensor, ReferenceTensor(np.zeros((2, 3), np.uint16)))
    known = {
        "no reference": KnownBits(tensor, None),
        "another shape": KnownBits(spec("bfloat16", (3, 2)), kept),
        "another dtype": KnownBits(spec("float16", (2, 3)), kept),
        "32 bits": KnownBits(replace(tensor, dtype="float32", nbytes=24), kept),
    }[case]
    assert ULPS.coded(np.zeros(known.tensor.shape, STORED_AS[known.tensor.dtype]), known) is None
    with pytest.raises(ValueError, match="does not have it in 16 bits"):
        ULPS.side_information(b"\0", known)


class Run:
    """Weights alone in 16 bits, of masters that an optimizer moves by so much at most."""

    def __init__(self, dtype, size, seed=0):
        self.generator, self.size, self.dtype = torch.Generator().manual_seed(seed), size, dtype
        self.masters = {f"layers.{n}.w": 0.02 * self.draw(*SHAPE) for n in range(12)} | {"norm": torch.ones(64)}

    def draw(self, *shape):
        return torch.randn(shape, generator=self.generator)

    def saved(self, path):
        state = {name: master.to(self.dtype) for name, master in self.masters.items()}
        torch.save({"model": state}, path)
        for master in self.masters.values():
            master.add_(self.draw(*master.shape), alpha=self.size)
        return path


def paths_of(run, directory, count=4):
    directory.mkdir(exist_ok=True)
    return [run.saved(directory / f"step_{n}.pt") for n in range(count)]


def methods_of(chain):
    return [set(each.methods(before).values()) for each, before in zip(chain[1:], chain, strict=False)]


def check_exact(paths, chain):
    for path, archive, before in zip(paths, chain, [None, *chain], strict=False):
        for own in (False, True):
            assert decode(archive, before, own=own) == [path.read_bytes()]
        assert (hashlib.sha256(path.read_bytes()).hexdigest(),) == archive.encoded.restored_sha256


def changed(paths):
    last, now = (torch.load(path, weights_only=True)["model"] for path in paths[-2:])
    moved = sum(int((now[name] != last[name]).sum()) for name in now)
    return moved / sum(tensor.numel() for tensor in now.values())


@pytest.mark.parametrize(("size", "share", "least"), [(2.5e-7, 0.01, 90), (4e-6, 0.1, 26), (1e-5, 0.2, 15)])
@pytest.mark.parametrize("preset", ["lossless", "resume"])
def test_weights_that_hardly_move_are_small(tmp_path, preset, size, share, least):
    """Of 150 KB, container and all. Weights alone lose nothing whatever the preset is."""
    paths = paths_of(Run(torch.bfloat16, size), tmp_path / "run")
    assert 0.8 * share < changed(paths) < 1.2 * share
    chain = compressed_run(paths, preset)
    check_exact(paths, chain)
    assert all(Method.ULPS in methods for methods in methods_of(chain))
    assert paths[-1].stat().st_size / chain[-1].nbytes > least


def test_half_precision_too(tmp_path):
    paths = paths_of(Run(torch.float16, 1e-6), tmp_path / "run")
    chain = compressed_run(paths, "lossless")
    check_exact(paths, chain)
    assert Method.ULPS in methods_of(chain)[-1]


@pytest.mark.parametrize("size", [1e-4, 1e-3, 1e-2, 1.0])
def test_what_moves_everywhere_is_as_small_as_before(tmp_path, size):
    """Per tensor the smaller of both ways, but for what an estimate may be off."""
    paths = paths_of(Run(torch.bfloat16, size), tmp_path / "run", 2)
    chain = compressed_run(paths, "lossless")
    check_exact(paths, chain)
    before, now = (torch.load(path, weights_only=True)["model"] for path in paths)
    others = 0
    for name, tensor in now.items():
        bits, old = (each.view(torch.int16).numpy().view(np.uint16) for each in (tensor, before[name]))
        others += len(encoded_exactly(bits.tobytes(), spec("bfloat16", bits.shape), old)[1])
    assert chain[1].encoded.parts["weights"] + len(chain[1].entries.get("tables", b"")) <= 1.02 * others


def test_pruned_weights_stay_zero_for_next_to_nothing(tmp_path):
    """What is exactly 0 does not look like what is merely small, and moves often."""
    sparse, dense = Run(torch.bfloat16, 4e-6), Run(torch.bfloat16, 4e-6)
    mask = torch.rand(SHAPE, generator=torch.Generator().manual_seed(1)) < 0.5
    sizes = []
    for run, keep in ((sparse, mask), (dense, torch.ones(SHAPE, dtype=torch.bool))):
        paths = []
        for number in range(3):
            for name in list(run.masters)[:-1]:
                run.masters[name][~keep] = 0.0
            paths.append(run.saved(tmp_path / f"{int(keep.all())}_{number}.pt"))
        sizes.append(compressed_run(paths, "lossless")[-1].nbytes)
    assert sizes[0] < 0.6 * sizes[1]


def test_a_published_pipeline_is_as_it_was(tmp_path):
    chain = compressed_run(paths_of(Run(torch.bfloat16, 1e-6), tmp_path / "run", 2), "paper")
    assert methods_of(chain) == [{Method.DELTA}]


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    paths = paths_of(Run(torch.bfloat16, 1e-5), tmp_path / "run", 3)
    chain = compressed_run(paths, "lossless")
    assert encode(paths[2], chain[1], "lossless").fingerprint() == chain[2].fingerprint()


def trained(directory, rate, step):
    """Three checkpoints of bfloat16 weights with Adam's moments, whose masters in float32 are not in them."""
    generator = torch.Generator().manual_seed(3)
    masters = {f"layers.{n}.w": (0.02 * torch.randn(SHAPE, generator=generator)).requires_grad_() for n in range(4)}
    optimizer = torch.optim.AdamW(masters.values(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    drift = [torch.outer(torch.randn(SHAPE[0], generator=generator), torch.linspace(-1, 1, SHAPE[1])) for _ in masters]
    paths = []
    for number in range(3):
        for _ in range(4 if number else 60):
            for master, mean in zip(masters.values(), drift, strict=True):
                master.grad = 0.2 * mean + torch.randn(SHAPE, generator=generator)
            optimizer.step()
        paths.append(directory / f"step_{number}.pt")
        model = {name: master.detach().bfloat16() for name, master in masters.items()}
        moments, count = optimizer.state_dict(), torch.tensor(float(step + number))  # it is as old as it is told to be
        moments["state"] = {key: own | {"step": count} for key, own in moments["state"].items()}
        torch.save({"model": model, "optimizer": moments, "step": step + number}, paths[-1])
    return paths


def check_weights_exact(path, archive, before, names):
    (data,) = decode(archive, before)
    assert [data] == decode(archive, before, own=True)
    assert (hashlib.sha256(data).hexdigest(),) == archive.encoded.restored_sha256
    original, found = (torch.load(file, weights_only=True)["model"] for file in (path, io.BytesIO(data)))
    assert all(torch.equal(original[name], found[name]) for name in names)


def ways(archive, before, name):
    methods = archive.methods(before)
    return {methods[name.format(n)] for n in range(4)}


@pytest.mark.parametrize("preset", ["resume", "archive"])
def test_a_weight_is_exact_where_that_takes_no_more_than_a_loss(tmp_path, monkeypatch, preset):
    """As in a young run, whose losses are held to be small."""
    first, second, _ = trained(tmp_path, 2e-6, 60)
    base = encode(first, None, "lossless")
    delta = encode(second, base, preset)
    methods = delta.methods(base)
    exact = [name for name in (f"layers.{n}.w" for n in range(4)) if methods[f"model.{name}"] is Method.ULPS]
    assert exact
    check_weights_exact(second, delta, base, exact)
    monkeypatch.setattr(ExactChooser, "instead_of", lambda *_, **__: None)
    assert delta.encoded.parts["weights"] < encode(second, base, preset).encoded.parts["weights"]


def test_a_weight_whose_loss_takes_less_keeps_it(tmp_path):
    first, second, _ = trained(tmp_path, 1e-3, 5000)
    base = encode(first, None, "lossless")
    assert Method.ULPS not in ways(encode(second, base), base, "model.layers.{}.w")


def test_a_first_moment_follows_an_exact_weight_as_it_would_a_lossy_one(tmp_path, monkeypatch):
    monkeypatch.setattr(ExactChooser, "_bits", lambda *_: 0.0)
    first, second, _ = trained(tmp_path, 2e-6, 5000)
    base = encode(first, None, "lossless")
    delta = encode(second, base)
    assert ways(delta, base, "model.layers.{}.w") == {Method.ULPS}
    assert ways(delta, base, "optimizer.state.{}.exp_avg") == {Method.TREND}
    check_weights_exact(second, delta, base, [f"layers.{n}.w" for n in range(4)])
    original, (data,) = torch.load(second, weights_only=True), decode(delta, base)
    restored = torch.load(io.BytesIO(data), weights_only=True)
    for number in range(4):
        own, other = (each["optimizer"]["state"][number]["exp_avg"].ravel() for each in (original, restored))
        assert torch.dot(own, other) > 0.1 * own.norm() * other.norm() > 0
