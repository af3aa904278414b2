"""The law of the codec over whole checkpoints: what is restored has the recorded hash, and loses only what it may."""

import hashlib
import io

import numpy as np
import pytest
import torch
from codec.chains import Zoo, compressed_run, decode, encode, lstm_everywhere, restored, same_tensor

from ckzd.codec.presets import PRESETS, Scheme
from ckzd.codec.records.index import Method

BROKEN = 1  # the checkpoint with values that are not finite
CHECKPOINTS = 3


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Three checkpoints of one run; the second is broken."""
    run, zoo, paths = tmp_path_factory.mktemp("run"), Zoo(), []
    for number in range(CHECKPOINTS):
        zoo.advance()
        paths.append(zoo.save(run / f"step_{zoo.step}.pt", broken=number == BROKEN))
    return paths


@pytest.fixture(scope="module", params=list(PRESETS))
def chain(request, paths):
    """(preset, archives, restored states); planes are coded with an LSTM."""
    with lstm_everywhere():
        archives = compressed_run(paths, request.param)
    states = [restored(archive, before) for archive, before in zip(archives, [None, *archives], strict=False)]
    return request.param, archives, states


def originals(paths):
    return [torch.load(path, weights_only=False) for path in paths]


def test_what_a_decoder_writes_has_the_recorded_hash(chain, paths):
    """Also where moments are decoded from the archive's own reconstruction, as a cache allows."""
    _, archives, _ = chain
    for number, (archive, path) in enumerate(zip(archives, paths, strict=True)):
        before = archives[number - 1] if number else None
        for own in (False, True):
            (data,) = decode(archive, before, own=own)
            assert (hashlib.sha256(data).hexdigest(),) == archive.encoded.restored_sha256
        assert (hashlib.sha256(path.read_bytes()).hexdigest(),) == archive.encoded.original_sha256


def test_lossless_is_lossless(chain, paths):
    preset, archives, _ = chain
    for path, archive in zip(paths, archives, strict=True):
        exact = archive.encoded.restored_sha256 == archive.encoded.original_sha256
        assert exact == (preset == "lossless")
        assert archive.nbytes < path.stat().st_size


def test_encoding_twice_gives_the_same_bytes(chain, paths):
    preset, archives, _ = chain
    with lstm_everywhere():
        assert encode(paths[0], None, preset).fingerprint() == archives[0].fingerprint()
        assert encode(paths[1], archives[0], preset).fingerprint() == archives[1].fingerprint()


def test_what_no_loss_is_allowed_for_comes_back_bit_for_bit(chain, paths):
    """Everything but weights with moments, and those moments."""
    _, _, states = chain
    for state, original in zip(states, originals(paths), strict=True):
        assert state["step"] == original["step"]
        assert state["odd"].keys() == original["odd"].keys()
        assert state["odd"]["none"] is None
        for name, tensor in original["odd"].items():
            assert tensor is None or same_tensor(state["odd"][name], tensor), name
        assert state["odd"]["shared"].untyped_storage().data_ptr() == state["odd"]["with"].untyped_storage().data_ptr()
        for name in ("frozen", "frozen_half", "small"):
            assert same_tensor(state["model"][name], original["model"][name]), name
        assert state["optimizer"]["param_groups"] == original["optimizer"]["param_groups"]


def test_a_copy_in_a_storage_of_its_own_is_stored_once_and_stays_equal(chain):
    _, archives, states = chain
    for archive, before, state in zip(archives, [None, *archives], states, strict=False):
        assert same_tensor(state["model"]["tied"], state["model"]["wide"])
        assert archive.methods(before)["model.tied"] is Method.COPY


def test_frozen_weights_cost_nothing(chain):
    _, archives, _ = chain
    for archive, before in zip(archives[1:], archives, strict=False):
        methods = archive.methods(before)
        assert methods["model.frozen"] is methods["model.frozen_half"] is Method.SAME
        assert methods["odd.constant"] is Method.SAME


METHODS = {  # of a weight in a base and a delta, of its moments in either
    Scheme.UNIFORM: (Method.WHOLE, Method.SCALAR, Method.SCALED, Method.FILL),
    Scheme.KMEANS: (Method.EXACT, Method.KMEANS, Method.KMEANS, Method.KMEANS),
    Scheme.EXACT: (Method.EXACT, Method.DELTA, Method.EXACT, Method.EXACT),
}
MATRICES = ("wide", "deep.0.w", "deep.1.w", "brain", "half", "sgd")  # with 16 rows and columns at least
ALIKE = ("wide", "brain", "half")  # and another tensor that is not trained: which is which shows when they move


def test_each_tensor_is_coded_in_its_way(chain):
    """A matrix has an adaptive basis from its first residual on: its moment is coded in it too."""
    preset, archives, _ = chain
    base, delta = archives[0].methods(), archives[1].methods(archives[0])
    whole, scalar, scaled, second = METHODS[PRESETS[preset].scheme]
    for number, name in enumerate(["wide", "deep.0.w", "deep.1.w", "vector", "cube", "brain", "half", "sgd"]):
        in_basis = PRESETS[preset].scheme is Scheme.UNIFORM and name in MATRICES
        assert base[f"model.{name}"] is (Method.EXACT if name in ALIKE else whole), name
        exactly = delta[f"model.{name}"] is Method.ULPS  # which may take less than a loss
        assert exactly or delta[f"model.{name}"] is (Method.FRAMED if in_basis else scalar), name
        assert not exactly or (name in {"brain", "half"} and preset != "paper"), name
        if name != "sgd":
            close = name == "vector" and PRESETS[preset].scheme is Scheme.UNIFORM  # of a young run
            first, again = base[f"optimizer.state.{number}.exp_avg"], delta[f"optimizer.state.{number}.exp_avg"]
            unpaired = Method.STATE_MEAN if PRESETS[preset].scheme is Scheme.UNIFORM else Method.EXACT
            assert first is (Method.EXACT if close else unpaired if name in ALIKE else scaled), name
            ways = {Method.EXACT if close else Method.FRAMED if in_basis else scaled}
            if exactly and not close:  # it has no basis yet
                ways.add(scaled)
            if preset == "archive" and not close:  # a coarse step in a basis would shorten updates
                ways.add(Method.SCALED)
            assert again in ways, name
            assert delta[f"optimizer.state.{number}.exp_avg_sq"] is second, name
    lone = {"lossless": Method.EXACT, "paper": Method.SCALED}.get(preset, Method.FRAMED)
    assert delta["sgd.state.0.momentum_buffer"] is lone


def test_weights_stay_close_in_closed_loop(chain, paths):
    """Errors do not add up: the last of the chain is no further off than the first, and none beyond its budget."""
    preset, archives, states = chain
    errors = []
    for state, original in zip(states, originals(paths), strict=True):
        lost = energy = 0.0
        for name in ("wide", "deep.0.w", "deep.1.w", "vector", "cube"):
            lost += (state["model"][name] - original["model"][name]).double().pow(2).sum().item()
            energy += original["model"][name].double().pow(2).sum().item()
        errors.append(lost / energy)
    budget = PRESETS[preset].budget
    assert max(errors) <= min(budget.max_worst_tensor_error, 0.02)  # of the published pipeline as well
    assert errors[-1] <= 3 * max(errors[:2]) + 1e-30
    for archive in archives:
        quality = archive.encoded.quality
        assert quality["weight_error"] <= budget.max_weight_error
        assert quality["worst_tensor_error"] <= budget.max_worst_tensor_error


def test_values_that_are_not_finite_are_kept_exactly_and_never_spread(chain, paths):
    """Neither into other tensors, nor into the checkpoint after."""
    preset, archives, states = chain
    originals_ = originals(paths)
    methods = archives[BROKEN].methods(archives[BROKEN - 1])
    for name in ("nan", "inf"):
        assert same_tensor(states[BROKEN]["model"][name], originals_[BROKEN]["model"][name])
        assert methods[f"model.{name}"] is Method.DELTA
    moments = [state["optimizer"]["state"][9] for state in (states[BROKEN], originals_[BROKEN])]
    assert same_tensor(moments[0]["exp_avg"], moments[1]["exp_avg"])
    assert same_tensor(moments[0]["exp_avg_sq"], moments[1]["exp_avg_sq"])
    for number, state in enumerate(states):
        for name, tensor in state["model"].items():
            assert torch.isfinite(tensor).all() or (number == BROKEN and name in ("nan", "inf")), (number, name)
        for moment in state["optimizer"]["state"].values():
            assert torch.isfinite(moment["exp_avg_sq"]).all()
    after = states[BROKEN + 1]["model"]["nan"], originals_[BROKEN + 1]["model"]["nan"]
    assert torch.linalg.norm(after[0] - after[1]) < 0.05 * torch.linalg.norm(after[1])
    if preset != "lossless":  # a broken reference must not set the step of all others
        steps = [archive.index(before).steps.step for archive, before in zip(archives[1:], archives, strict=False)]
        assert max(steps) <= 4 * min(steps)


def test_restored_second_moments_obey_the_law(chain, paths):
    """0 only where both moments were, else at least the smallest normal: on the file that a restore writes."""
    _, _, states = chain
    seen = 0
    for state, original in zip(states, originals(paths), strict=True):
        for number, moments in original["optimizer"]["state"].items():
            got = state["optimizer"]["state"][number]
            first, second = moments["exp_avg"], moments["exp_avg_sq"]
            zero = got["exp_avg_sq"] == 0
            assert not (zero & ((first != 0) | (second != 0))).any()
            if not same_tensor(got["exp_avg_sq"], second):
                seen += 1
                positive = got["exp_avg_sq"][~zero]
                assert (positive >= torch.finfo(positive.dtype).tiny).all()
                assert not ((got["exp_avg"] != 0) & zero).any()
            assert got["step"] == moments["step"]
    assert seen > 15 or chain[0] == "lossless"


def test_an_optimizer_goes_on_from_a_restored_checkpoint(chain):
    zoo = Zoo()
    zoo.advance()
    state = chain[2][-1]
    zoo.adam.load_state_dict(state["optimizer"])
    with torch.no_grad():
        for name, parameter in zoo.model.items():
            parameter.copy_(state["model"][name])
    before = {name: parameter.detach().clone() for name, parameter in zoo.model.items()}
    zoo.advance(1)
    for name, parameter in zoo.model.items():
        longest = (parameter.detach() - before[name]).abs().max().item()
        assert longest < 20e-3, name  # no step is many times the learning rate of 1e-3


@pytest.mark.parametrize("jump", [1e8, 1e30])
def test_a_tensor_that_jumps_out_of_the_quantizers_reach_is_coded_exactly(tmp_path, jump):
    """One weight is replaced by something else altogether: the others' step stays theirs, and nothing is clipped."""
    draw = torch.Generator().manual_seed(0)
    weights = {f"w{k}": torch.randn(20, 30, generator=draw) for k in range(40)}
    optimizer = {
        "state": {
            k: {"step": torch.tensor(9.0), "exp_avg": torch.randn(20, 30, generator=draw) * 1e-4,
                "exp_avg_sq": torch.rand(20, 30, generator=draw) * 1e-7 + 1e-9}
            for k in range(40)
        },
        "param_groups": [{"params": list(range(40)), "betas": (0.9, 0.999)}],
    }  # fmt: skip
    paths = []
    for step in (1, 2):
        moved = {name: w + (step - 1) * 1e-6 * torch.randn(20, 30, generator=draw) for name, w in weights.items()}
        if step == 2:
            moved["w7"][0, 0] += jump
        torch.save({"model": moved, "optimizer": optimizer, "step": step}, tmp_path / f"step_{step}.pt")
        paths.append(tmp_path / f"step_{step}.pt")
    first, second = compressed_run(paths)
    model, after = restored(second, first)["model"], torch.load(paths[1])["model"]
    assert second.methods(first)["model.w7"] is Method.DELTA
    assert same_tensor(model["w7"], after["w7"])
    base = restored(first)["model"]
    for name in ("w0", "w39"):
        lost, moved = (model[name] - after[name]).pow(2).sum(), (base[name] - after[name]).pow(2).sum()
        assert lost < 1.2 * moved


def test_a_checkpoint_that_did_not_change_is_next_to_nothing(chain, paths):
    preset, (first, *_), _ = chain
    again = encode(paths[0], first, preset)
    methods = again.methods(first)
    assert methods["model.wide"] is Method.SAME
    assert len(again.entries["index"]) < 1500
    assert len(again.entries["skeleton"]) < 60
    state, original = restored(again, first), torch.load(paths[0], weights_only=False)
    lossy = PRESETS[preset].scheme is Scheme.UNIFORM  # a base is: then its error is coded, as an update would be
    for name, tensor in original["model"].items():
        if lossy and methods.get(f"model.{name}") in (Method.FRAMED, Method.FACTORED, Method.SCALAR):
            assert (state["model"][name] - tensor).norm() < 0.1 * tensor.norm(), name
        else:
            assert same_tensor(state["model"][name], tensor), name
    assert again.encoded.quality["weight_error"] <= first.encoded.quality["weight_error"]


def test_a_sign_of_zero_is_no_change_to_divide_by(tmp_path):
    """Bytes differ and values do not: there is no energy to quantize against."""
    paths = []
    for step, zero in ((1, 0.0), (2, -0.0)):
        weight = torch.nn.Parameter(torch.ones(16, 16))
        optimizer = torch.optim.Adam([weight])
        weight.grad = torch.full((16, 16), 0.5)
        optimizer.step()
        model = {"w": torch.full((16, 16), zero)}
        torch.save({"model": model, "optimizer": optimizer.state_dict(), "step": step}, tmp_path / f"step_{step}.pt")
        paths.append(tmp_path / f"step_{step}.pt")
    first, second = compressed_run(paths)
    assert np.signbit(restored(second, first)["model"]["w"].numpy()).all()


def test_a_checkpoint_without_one_tensor(tmp_path):
    path = tmp_path / "step_1.pt"
    torch.save({"step": 1, "note": "nothing here"}, path)
    first = encode(path)
    second = encode(path, first)
    assert restored(second, first) == {"step": 1, "note": "nothing here"}


def test_rot_inside_a_checkpoint_is_found_before_it_is_archived(tmp_path, paths):
    from ckzd.errors import BadCheckpoint

    data = bytearray(paths[0].read_bytes())
    place = data.index(torch.load(paths[0], weights_only=False)["model"]["wide"].numpy().tobytes())
    data[place + 100] ^= 1
    damaged = tmp_path / "step_4.pt"
    damaged.write_bytes(data)
    with pytest.raises(BadCheckpoint, match=r"model/wide: its bytes do not match the CRC-32"):
        encode(damaged)


def test_two_runs_do_not_share_a_reference_by_accident(chain, tmp_path):
    """A delta against another reconstruction decodes to another id, never to plausible tensors."""
    preset, (_, second, *_), _ = chain
    other = Zoo(seed=1)
    other.advance()
    wrong = encode(other.save(tmp_path / "step_4.pt"), None, preset)
    with pytest.raises((ValueError, AssertionError)):
        decode(second, wrong)


def test_files_and_their_tensors_in_a_directory(tmp_path):
    """Several files are one checkpoint: tensors of one are paired with the optimizer of another."""
    from safetensors.torch import save_file

    archives = []
    draw, weight = torch.Generator().manual_seed(0), torch.nn.Parameter(torch.ones(24, 32))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    for step in (10, 20):
        place = tmp_path / f"checkpoint-{step}"
        place.mkdir()
        for _ in range(5):
            weight.grad = torch.randn(24, 32, generator=draw)
            optimizer.step()
        save_file({"w": weight.detach()}, place / "model.safetensors")
        torch.save(optimizer.state_dict(), place / "optimizer.pt")
        (place / "config.json").write_text("{}")
        (place / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
        archives.append(encode(place, archives[-1] if archives else None))
    first, second = archives
    files = decode(second, first)
    assert tuple(hashlib.sha256(data).hexdigest() for data in files) == second.encoded.restored_sha256
    assert [m for name, m in second.methods(first).items() if name.endswith("exp_avg_sq")] == [Method.FILL]
    names = [layout.name for layout in second.index(first).layout.files]
    state = torch.load(io.BytesIO(files[names.index("optimizer.pt")]))
    assert (state["state"][0]["exp_avg_sq"] > 0).all()
