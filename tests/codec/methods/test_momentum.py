"""Optimizers that keep a momentum and no second moment: it is recognised, coded with loss, and never lost."""

import hashlib
import io

import numpy as np
import pytest
import torch
from bench.lion import Lion
from codec.chains import compressed_run, decode, encode, restored, same_tensor
from codec.known import known_moments
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from plain_decoder import PlainArchive
from torch import nn

import ckzd
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.arrays import MAX_LEVEL
from ckzd.codec.dtypes import from_float64
from ckzd.codec.kernels import elementwise
from ckzd.codec.kernels.plain_elementwise import Moments
from ckzd.codec.methods import scaled
from ckzd.codec.methods.method import Coded
from ckzd.codec.records.index import Method
from ckzd.codec.scales import checked_scales, product_of, scales_of_momentum
from ckzd.formats import read_checkpoint

WIDTH = 128  # batch norm's vectors are then as long as coded tensors


class Net(nn.Module):
    """A convolution, batch norm, two hidden layers of one shape, a head."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, WIDTH, 3), nn.BatchNorm2d(WIDTH)
        self.blocks = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.head = nn.Linear(WIDTH, 8)

    def forward(self, images):
        hidden = torch.relu(self.bn(self.conv(images))).mean((2, 3))
        for block in self.blocks:
            hidden = torch.tanh(block(hidden))
        return self.head(hidden)


def sgd(model):
    return [torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True, weight_decay=1e-4)]


def lion(model):
    return [Lion(model.parameters(), lr=1e-4, weight_decay=0.1)]


def muon(model):
    hidden = list(model.blocks.parameters())
    matrices = [parameter for parameter in hidden if parameter.ndim == 2]
    others = [p for p in model.parameters() if not any(p is matrix for matrix in matrices)]
    return [torch.optim.Muon(matrices, lr=1e-2), torch.optim.AdamW(others, lr=1e-3)]


class Run:
    """A real training run of any optimizers, saved as scripts, Lightning, or one optimizer of two groups do."""

    def __init__(self, path, make):
        torch.manual_seed(0)
        self.path, self.step, self.model = path, 0, Net()
        self.optimizers = make(self.model)
        self.draw = torch.Generator().manual_seed(1)

    def train(self, steps):
        losses = []
        for _ in range(steps):
            images = torch.randn(16, 3, 8, 8, generator=self.draw)
            classes = images.mean((2, 3)).argmax(1)
            loss = nn.functional.cross_entropy(self.model(images), classes)
            for optimizer in self.optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in self.optimizers:
                optimizer.step()
            losses.append(loss.item())
        self.step += steps
        return losses

    def state(self, form="script"):
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        if form == "lightning":
            return {"state_dict": self.model.state_dict(), "optimizer_states": states, "epoch": self.step}
        if form == "one of two groups":
            return {"model": self.model.state_dict(), "optimizer": joined(states), "step": self.step}
        optimizers = {f"optimizer{number}": state for number, state in enumerate(states)}
        return {"model": self.model.state_dict(), **optimizers, "step": self.step}

    def save(self, form="script"):
        path = self.path / f"epoch_{self.step}.pt"  # which says nothing of how often weights were moved
        torch.save(self.state(form), path)
        return path


def joined(states):
    """One state dict of several optimizers' groups, ids numbered through, as Muon with an AdamW inside writes it."""
    state, groups, first = {}, [], 0
    for one in states:
        count = sum(len(group["params"]) for group in one["param_groups"])
        state |= {first + key: value for key, value in one["state"].items()}
        groups += [group | {"params": [first + key for key in group["params"]]} for group in one["param_groups"]]
        first += count
    return {"state": state, "param_groups": groups}


def checkpoints(path, make, form="script", count=3):
    run, paths = Run(path, make), []
    for _ in range(count):
        run.train(10)
        paths.append(run.save(form))
    return run, paths


def triples_of(path, reference=None):
    """Name of a weight -> paths of its moments."""
    inputs = Inputs(read_checkpoint(path), reference.reconstruction if reference is not None else None)
    return {
        inputs.tensor(triple.weight).path[-1]: [inputs.tensor(number).path for number in triple.moments]
        for triple in pair(inputs).triples
    }


def names_in_order(run):
    """Every optimizer's parameters by name, in the order of their ids."""
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    return [[names[p] for group in o.param_groups for p in group["params"]] for o in run.optimizers]


MAKERS = {"sgd": (sgd, "momentum_buffer"), "lion": (lion, "exp_avg")}
LARGE = {"conv.weight", "bn.weight", "bn.bias", "conv.bias", "blocks.0.weight", "blocks.1.weight", "head.weight"}
LARGE |= {"blocks.0.bias", "blocks.1.bias"}


@pytest.mark.parametrize("form", ["script", "lightning"])
@pytest.mark.parametrize("name", MAKERS)
def test_every_momentum_finds_its_weight(tmp_path, name, form):
    """Also past batch norm's running statistics, which look like weights and are none."""
    make, key = MAKERS[name]
    run, paths = checkpoints(tmp_path, make, form, count=2)
    (order,) = names_in_order(run)
    for path, reference in ((paths[0], None), (paths[1], encode(paths[0]))):
        found = triples_of(path, reference)
        assert found.keys() == LARGE
        for weight, moments_of in found.items():
            assert [path[-2:] for path in moments_of] == [(str(order.index(weight)), key)]


@pytest.mark.parametrize("form", ["script", "lightning", "one of two groups"])
def test_muon_beside_adamw(tmp_path, form):
    """Matrices have a lone momentum, all else has two moments, in one file."""
    run, paths = checkpoints(tmp_path, muon, form, count=2)
    order = names_in_order(run)
    for path, reference in ((paths[0], None), (paths[1], encode(paths[0]))):
        found = triples_of(path, reference)
        assert found.keys() == LARGE
        for weight, moments_of in found.items():
            hidden = weight in order[0]
            keys = ["momentum_buffer"] if hidden else ["exp_avg", "exp_avg_sq"]
            before = len(order[0]) if form == "one of two groups" and not hidden else 0
            number = before + order[not hidden].index(weight)
            assert [path[-2:] for path in moments_of] == [(str(number), key) for key in keys]


@pytest.mark.parametrize("make", [sgd, lion])
def test_shuffled_matrices_are_matched_by_the_evidence(tmp_path, make):
    """Weights move against their own momentum and no other's of the same shape."""
    run, paths = checkpoints(tmp_path, make, count=2)
    (order,) = names_in_order(run)
    state = run.state()
    pair_of = [order.index(f"blocks.{k}.weight") for k in (0, 1)]
    entries = state["optimizer0"]["state"]
    entries[pair_of[0]], entries[pair_of[1]] = entries[pair_of[1]], entries[pair_of[0]]
    torch.save(state, paths[1])
    found = triples_of(paths[1], encode(paths[0]))
    assert [found[f"blocks.{k}.weight"][0][-2] for k in (0, 1)] == [str(pair_of[1]), str(pair_of[0])]


def test_a_directory_of_the_hugging_face_trainer(tmp_path):
    """Weights in safetensors, the optimizer beside them: decayed parameters first."""
    from safetensors.torch import save_file

    def decayed_first(model):
        matrices = [p for p in model.parameters() if p.ndim > 1]
        vectors = [p for p in model.parameters() if p.ndim == 1]
        return [torch.optim.SGD([{"params": matrices}, {"params": vectors}], lr=1e-2, momentum=0.9)]

    run, archives = Run(tmp_path, decayed_first), []
    for _ in range(2):
        run.train(5)
        place = tmp_path / f"checkpoint-{run.step}"
        place.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in run.model.state_dict().items()},
                  place / "model.safetensors")  # fmt: skip
        torch.save(run.optimizers[0].state_dict(), place / "optimizer.pt")
        (place / "config.json").write_text("{}")
        (place / "trainer_state.json").write_text(f'{{"global_step": {run.step}}}')
        archives.append(encode(place, archives[-1] if archives else None))
    first, second = archives
    (order,) = names_in_order(run)
    found = triples_of(place, first)
    assert found.keys() == LARGE  # safetensors are sorted by name: of vectors of one length the order is lost
    matrices = {weight: paths[0][-2] for weight, paths in found.items() if run.model.get_parameter(weight).ndim > 1}
    assert matrices == {weight: str(order.index(weight)) for weight in matrices}
    files = decode(second, first)
    assert tuple(hashlib.sha256(data).hexdigest() for data in files) == second.encoded.restored_sha256


@pytest.mark.parametrize("make", [sgd, lion, muon])
@pytest.mark.parametrize("preset", ["resume", "archive", "paper"])
def test_a_chain_is_restored_with_its_momenta(tmp_path, make, preset):
    """What a decoder writes has the recorded hash, with the reference or without; no momentum is dropped."""
    _, paths = checkpoints(tmp_path, make)
    archives = compressed_run(paths, preset)
    for archive, before, path in zip(archives, [None, *archives], paths, strict=False):
        (data,) = decode(archive, before, own=True)
        assert (hashlib.sha256(data).hexdigest(),) == archive.encoded.restored_sha256
        assert ("first_order_loss" in archive.encoded.quality) == (make is muon)  # whose vectors are AdamW's
        state, original = restored(archive, before), torch.load(path)
        assert same_tensor(state["model"]["bn.running_mean"], original["model"]["bn.running_mean"])
        methods = archive.methods(before)
        momenta = [n for n in methods if n.endswith("momentum_buffer") or (make is lion and n.endswith("exp_avg"))]
        framed = {Method.FRAMED} if before is not None and preset != "paper" else {Method.SCALED}
        assert {methods[name] for name in momenta} >= framed
        for name in momenta:
            optimizer, _, number, key = name.split(".")
            after, true = (s[optimizer]["state"][int(number)][key].double() for s in (state, original))
            assert (after * true).sum() > 0.8 * after.norm() * true.norm() > 0
            if methods[name] is Method.EXACT:  # a vector of a young run
                assert true.numel() < 128 or true.ndim == 1


@pytest.mark.parametrize("make", [sgd, lion, muon])
def test_training_goes_on_from_a_restored_checkpoint(tmp_path, make):
    run, paths = checkpoints(tmp_path, make)
    first, second, third = compressed_run(paths)
    again = Run(tmp_path, make)
    state = restored(third, second)
    assert restored(second, first)["step"] == 20
    again.model.load_state_dict(state["model"])
    for number, optimizer in enumerate(again.optimizers):
        optimizer.load_state_dict(state[f"optimizer{number}"])
    again.draw.set_state(run.draw.get_state())
    assert np.mean(again.train(10)) == pytest.approx(np.mean(run.train(10)), rel=0.05)


def test_the_first_moments_of_adam_may_follow_their_weights_beside_a_momentum(tmp_path):
    """Muon's momentum is kept whatever becomes of AdamW's, whose betas are not to be taken from Lion's groups."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(40, 50)) for _ in range(3)]
    optimizers = {
        "muon": torch.optim.Muon(weights[:1]),
        "adam": torch.optim.Adam(weights[1:2], betas=(0.9, 0.95)),
        "lion": Lion(weights[2:], betas=(0.95, 0.98)),
    }
    archives = []
    for step in (10_000, 10_100):  # long past its youth
        for _ in range(100):
            for weight in weights:
                weight.grad = torch.randn(40, 50)
            for optimizer in optimizers.values():
                optimizer.step()
        path = tmp_path / f"step_{step}.pt"
        states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
        for state in states["adam"]["state"].values():
            state["step"] = torch.tensor(float(step))
        torch.save({"model": dict(zip("abc", weights, strict=True)), "step": step, **states}, path)
        archives.append(encode(path, archives[-1] if archives else None))
    quality, state = archives[1].encoded.quality, restored(archives[1], archives[0])
    assert quality["moment_step"] == 0 < quality["momentum_step"]
    assert archives[1].methods(archives[0])["adam.state.0.exp_avg"] is Method.TREND
    original, found = (each["adam"]["state"][0]["exp_avg"] for each in (states, state))
    assert (found * original).sum() > 0
    for name, key in (("muon", "momentum_buffer"), ("lion", "exp_avg")):
        assert state[name]["state"][0][key].count_nonzero() > 1000


def test_muons_matrices_are_coarser_from_step_100_on_and_what_adam_moves_beside_them_is_not(tmp_path):
    run, archives = Run(tmp_path, muon), [None]
    for older in (0, 0, 200):
        for state in run.optimizers[1].state.values():
            state["step"] += older  # Muon itself does not count
        run.train(10)
        archives.append(encode(run.save(), archives[-1]))
    young, later = archives[2:]
    exponents = []
    for archive, reference in ((young, archives[1]), (later, young)):
        index = archive.index(reference)
        names = {index.layout.tensors[t.weight].path[-1]: t.weight for t in index.layout.triples}
        exponents.append({name: index.step_exponents.get(number, 0) for name, number in names.items()})
    assert all(exponents[1][f"blocks.{n}.weight"] < 2 <= exponents[1]["conv.weight"] for n in range(2))
    assert later.encoded.quality["matrix_error"] <= later.encoded.quality["max_matrix_error"]
    steps = [archive.encoded.quality["momentum_step"] for archive in (young, later)]
    assert steps[1] > 2 * steps[0]
    again, state = Run(tmp_path, muon), restored(later, young)
    again.model.load_state_dict(state["model"])
    for number, optimizer in enumerate(again.optimizers):
        optimizer.load_state_dict(state[f"optimizer{number}"])
    again.draw.set_state(run.draw.get_state())
    assert np.mean(again.train(10)) == pytest.approx(np.mean(run.train(10)), rel=0.05)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ns_steps": 5, "momentum": 0.95}, True),
        ({"use_muon": True}, True),
        ({"use_muon": False, "betas": (0.9, 0.95)}, False),
        ({"use_muon": False, "ns_steps": 5}, False),
        ({"momentum": 0.9, "nesterov": True}, False),
        ({"ns_steps": "many", "use_muon": None}, False),
    ],
)
def test_what_groups_of_muon_say(tmp_path, settings, expected):
    state = {"state": {0: {"momentum_buffer": torch.ones(16, 16)}}, "param_groups": [{"params": [0], **settings}]}
    torch.save({"w": torch.ones(16, 16), "optimizer": state}, tmp_path / "x.pt")
    (optimizer,) = read_checkpoint(tmp_path / "x.pt").optimizers
    assert [group.is_orthogonal for group in optimizer.groups] == [expected]


def test_a_plain_decoder_reads_lone_momenta(tmp_path):
    """What the archive means is what FORMAT.md says."""
    torch.manual_seed(0)
    weights = {"w": nn.Parameter(torch.randn(12, 20)), "half": nn.Parameter(torch.randn(16, 9).bfloat16())}
    weights["framed"] = nn.Parameter(torch.randn(20, 24))
    optimizer, before = torch.optim.SGD(weights.values(), lr=1e-2, momentum=0.9), None
    for step in (1, 2):
        for _ in range(3):
            for weight in weights.values():
                weight.grad = torch.randn(weight.shape).to(weight.dtype)
            optimizer.step()
        path = tmp_path / f"step_{step}.pt"
        torch.save({"model": weights, "optimizer": optimizer.state_dict(), "step": step}, path)
        report = ckzd.compress(path)
        archive = PlainArchive(report.archive, before)
        before = archive.own
        (data,) = archive.files().values()
        assert hashlib.sha256(data).hexdigest() == archive.manifest["files"][0]["sha256"]
        state = torch.load(io.BytesIO(data))["optimizer"]["state"]
        assert {len(triple) for triple in archive.layout["triples"]} == {2}
        methods = {archive.index["codes"][momentum][0] for _, momentum in archive.layout["triples"]}
        assert methods == ({"scaled"} if step == 1 else {"scaled", "framed"})
        assert all(entry["momentum_buffer"].any() for entry in state.values())


def odd_states(weight):
    """State of one parameter, as other optimizers keep it."""
    like = torch.rand_like(weight) + 0.1
    rows, columns = like.mean(1), like.mean(0)
    return {
        "AMSGrad": {"exp_avg": like, "exp_avg_sq": like**2, "max_exp_avg_sq": like**3},
        "Adafactor": {"exp_avg": like, "exp_avg_sq_row": rows.repeat(8), "exp_avg_sq_col": columns.repeat(8)},
        "RMSprop": {"square_avg": like**2, "momentum_buffer": like},
        "Adamax": {"exp_avg": like, "exp_inf": like**2},
        "Adagrad": {"sum": like**2},
        "8 bits": {"state1": like.to(torch.uint8), "state2": like.to(torch.uint8), "qmap1": rows.repeat(8)},
        "an 8-bit momentum": {"momentum_buffer": like.to(torch.uint8)},
        "nested": {"momentum_buffer": {"exp_avg": like}},
        "unknown": {"velocity": like},
        "doubles": {"momentum_buffer": like.double()},
        "another shape": {"momentum_buffer": like.ravel()},
    }


LOSSY = {
    "AMSGrad": {"exp_avg": Method.FRAMED, "exp_avg_sq": Method.FILL, "max_exp_avg_sq": Method.STATE_VARIANCE},
    "Adafactor": {"exp_avg": Method.FRAMED},
    "RMSprop": {"square_avg": Method.STATE_FILL, "momentum_buffer": Method.FRAMED},
    "Adamax": {"exp_avg": Method.FRAMED, "exp_inf": Method.STATE_FILL},
    "Adagrad": {"sum": Method.STATE_FILL},
    "doubles": {"momentum_buffer": Method.FRAMED},
    "another shape": {"momentum_buffer": Method.STATE_MEAN},
}


@pytest.mark.parametrize("name", odd_states(torch.ones(16, 16)))
def test_what_is_not_known_of_a_state_stays_exact(tmp_path, name):
    archives = []
    torch.manual_seed(0)
    weight = torch.randn(16, 16)
    for step in (1, 2):
        weight = weight + 1e-3 * torch.randn(16, 16)
        optimizer = {"state": {0: odd_states(weight)[name]}, "param_groups": [{"params": [0], "betas": (0.9, 0.999)}]}
        path = tmp_path / f"step_{step}.pt"
        torch.save({"model": {"w": weight}, "optimizer": optimizer, "step": step}, path)
        archives.append(encode(path, archives[-1] if archives else None))
    methods = archives[1].methods(archives[0])
    for tensor, method in methods.items():
        if tensor.startswith("optimizer.state"):
            assert method is LOSSY.get(name, {}).get(tensor.split(".", 3)[-1], Method.EXACT), tensor
    assert methods["model.w"] is Method.FRAMED


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_a_broken_or_empty_momentum_is_kept_as_it_is(tmp_path, value):
    run, paths = checkpoints(tmp_path, sgd, count=2)
    state = run.state()
    momentum = state["optimizer0"]["state"][0]["momentum_buffer"]
    if value:
        momentum[0, 0] = value
    else:
        momentum.zero_()
    torch.save(state, paths[1])
    first, second = compressed_run(paths)
    assert second.methods(first)["optimizer0.state.0.momentum_buffer"] is Method.EXACT
    assert same_tensor(restored(second, first)["optimizer0"]["state"][0]["momentum_buffer"], momentum)


values = st.one_of(st.just(0.0), st.floats(-(2.0**60), 2.0**60, width=32), st.floats(-1.0, 1.0, width=32))
matrices = arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=values)


@given(matrices, st.floats(0.1, 4))
def test_momenta_come_back_within_their_step(momentum, step):
    """Zeros throughout a row or column come back as zeros; all else is as far off as the dead zone allows."""
    scales = scales_of_momentum(momentum)
    energy = product_of(scales)
    checked_scales(scales.rows, scales.columns, scales.reach)
    alive = momentum != 0
    assert np.array_equal(energy > 0, alive.any(1)[:, None] & alive.any(0))
    levels = elementwise.quantize_update(Moments(momentum, energy), step, scaled.DEAD_ZONE)
    exact = elementwise.restored_update(levels, energy, step, single=False)
    inside = np.abs(levels) < MAX_LEVEL
    limit = scaled.DEAD_ZONE * step * np.sqrt(energy) * (1 + 1e-9)
    assert (np.abs(exact - momentum)[inside] <= limit[inside]).all()
    for dtype in ("float32", "bfloat16", "float16"):
        known = known_moments(scales, dtype, lone=True, momentum_step=step)
        restored = scaled.ScaledMomentum().restored(Coded(levels=levels), known)
        assert np.array_equal(restored, from_float64(exact, dtype))


def test_a_rank_one_momentum_is_measured_by_its_rows_and_columns():
    momentum = np.geomspace(1e-5, 1e-1, 400)[:, None] * np.geomspace(0.1, 10, 300)
    unit = np.sqrt(product_of(scales_of_momentum(momentum)))
    assert np.abs(np.log2(unit / momentum)).max() < 1


def test_an_empty_matrix_has_empty_scales():
    scales = scales_of_momentum(np.zeros((0, 3)))
    assert scales.rows.shape == (0,)
    assert (product_of(scales)).shape == (0, 3)
