"""What a tensor is to the codec: weights without moments, averages, rounded copies of masters, other states."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from bench.soap import Soap
from codec.chains import Archive, decode, encode, restored
from torch import nn

from ckzd.codec.records.index import Method

EXACTLY = {Method.EXACT, Method.DELTA, Method.SAME, Method.ULPS}
WITH_LOSS = {Method.WHOLE, Method.FRAMED, Method.FACTORED, Method.SCALAR}


class Run:
    """A small network that learns a teacher; `save` says what of it a checkpoint holds."""

    def __init__(self, place: Path, make=torch.optim.AdamW, *, double: bool = False, **options) -> None:
        torch.manual_seed(3)
        self.place = place
        self.model = nn.Sequential(nn.Linear(48, 160), nn.Tanh(), nn.Linear(160, 96), nn.Tanh(), nn.Linear(96, 40))
        self.model = self.model.double() if double else self.model
        self.average = copy.deepcopy(self.model)
        self.optimizer = make(self.model.parameters(), **{"lr": 1e-3} | options)
        self.teacher, self.done = torch.randn(48, 40), 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            torch.manual_seed(self.done)
            inputs = torch.randn(32, 48)
            targets = torch.tanh(inputs @ self.teacher / 5)
            self.optimizer.zero_grad()
            (self.model(inputs.to(self.model[0].weight.dtype)) - targets).pow(2).mean().backward()
            self.optimizer.step()
            with torch.no_grad():
                for mean, weight in zip(self.average.parameters(), self.model.parameters(), strict=True):
                    mean.lerp_(weight, 0.02)
            self.done += 1

    def save(self, **content) -> Path:
        path = self.place / f"step_{self.done}.pt"
        torch.save(content | {"step": self.done}, path)
        return path

    def chain(self, content, count: int = 3, preset: str = "resume") -> tuple[list[Path], list[Archive]]:
        """Checkpoints 40 steps apart, and their archives, each against the one before."""
        paths, archives = [], [None]
        for _ in range(count):
            self.train(40)
            paths.append(self.save(**content(self)))
            archives.append(encode(paths[-1], archives[-1], preset))
        return paths, archives[1:]


def weights_only(run):
    return {"model": run.model.state_dict()}


def with_average(run):
    return {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(), "ema": run.average.state_dict()}


def with_masters(run):
    narrow = {name: tensor.bfloat16() for name, tensor in run.model.state_dict().items()}
    return {"model": narrow, "master": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}


def with_masters_in_state(run):
    narrow = {name: tensor.bfloat16() for name, tensor in run.model.state_dict().items()}
    optimizer = run.optimizer.state_dict()
    masters = zip(optimizer["state"].values(), run.model.parameters(), strict=True)
    state = {number: own | {"master_param": weight.detach()} for number, (own, weight) in enumerate(masters)}
    return {"model": narrow, "optimizer": {"state": state, "param_groups": optimizer["param_groups"]}}


def with_optimizer(run):
    return {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}


def off(original: torch.Tensor, found: torch.Tensor) -> float:
    return float((found.double() - original.double()).norm() / original.double().norm())


def test_weights_alone_are_deltas_with_loss_and_their_vectors_hardly_any(tmp_path):
    paths, archives = Run(tmp_path).chain(weights_only)
    assert {archives[0].methods()[f"model.{n}.weight"] for n in (0, 2, 4)} == {Method.WHOLE}
    later = archives[2].methods(archives[1])
    assert {later[f"model.{n}.weight"] for n in (0, 2, 4)} <= {Method.FRAMED, Method.FACTORED}
    assert archives[0].methods()["model.0.bias"] in EXACTLY
    state, original = restored(archives[2], archives[1]), torch.load(paths[2])
    moved = original["model"]["0.bias"] - torch.load(paths[1])["model"]["0.bias"]
    assert (state["model"]["0.bias"] - original["model"]["0.bias"]).norm() < 0.1 * moved.norm()
    assert all(0 < off(original["model"][f"{n}.weight"], state["model"][f"{n}.weight"]) < 0.1 for n in (0, 2, 4))


@pytest.mark.parametrize("preset", ["lossless", "paper"])
def test_presets_without_a_way_for_them_keep_weights_alone_exactly(tmp_path, preset):
    paths, archives = Run(tmp_path).chain(weights_only, 2, preset)
    state = restored(archives[1], archives[0])
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in torch.load(paths[1])["model"].items())


@pytest.mark.parametrize(
    "table",
    [
        torch.tril(torch.ones(64, 64)),
        torch.randint(0, 5, (64, 64)).float(),
        torch.eye(128)[torch.randint(0, 128, (64,))],
    ],
    ids=["mask", "whole numbers", "one-hot"],
)
def test_tables_are_no_weights(tmp_path, table):
    run = Run(tmp_path)
    path = run.save(model=run.model.state_dict(), table=table)
    archive = encode(path)
    assert archive.methods()["table"] is Method.EXACT
    assert archive.methods()["model.0.weight"] is Method.WHOLE


def test_an_optimizers_state_dict_may_be_the_root_that_holds_the_model_too(tmp_path):
    _, archives = Run(tmp_path).chain(lambda run: run.optimizer.state_dict() | {"model": run.model.state_dict()})
    methods = archives[2].methods(archives[1])
    assert {methods[f"model.{n}.weight"] for n in (0, 2, 4)} <= WITH_LOSS
    assert {methods[f"state.{n}.exp_avg_sq"] for n in (0, 2, 4)} == {Method.FILL}


def test_float64_loses_what_float32_may_and_numbers_beyond_it_are_exact(tmp_path):
    def wide(run):
        content = {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict()}
        content["far"] = {"weight": (1e30 * run.model[2].weight.detach() ** 3).double() * 1e30}
        return content

    run = Run(tmp_path, double=True)
    paths, archives = run.chain(wide)
    methods = archives[2].methods(archives[1])
    assert {methods[f"model.{n}.weight"] for n in (0, 2, 4)} <= WITH_LOSS
    assert methods["far.weight"] in EXACTLY
    state, original = restored(archives[2], archives[1]), torch.load(paths[2])
    assert state["model"]["0.weight"].dtype == torch.float64
    assert 0 < off(original["model"]["2.weight"], state["model"]["2.weight"]) < 0.1
    assert torch.equal(state["far"]["weight"], original["far"]["weight"])


def test_second_moments_that_float32_has_not_are_exact(tmp_path):
    """An embedding's row that is never seen: what is left of its gradient's square divides the next update."""
    run = Run(tmp_path, double=True)
    run.train(40)
    second = run.optimizer.state[run.model[2].weight]["exp_avg_sq"]
    second[3] = 1e-60
    path = run.save(model=run.model.state_dict(), optimizer=run.optimizer.state_dict())
    archive = encode(path)
    methods = archive.methods()
    assert methods["optimizer.state.2.exp_avg_sq"] in EXACTLY
    assert methods["optimizer.state.0.exp_avg_sq"] not in EXACTLY
    assert torch.equal(restored(archive)["optimizer"]["state"][2]["exp_avg_sq"], second)


def test_what_no_optimizer_moves_stays_exact(tmp_path):
    """Beside weights with moments, a matrix that does not change is frozen: it may be what an adapter is trained on."""
    frozen = torch.randn(80, 80)
    paths, archives = Run(tmp_path).chain(lambda run: with_optimizer(run) | {"frozen": {"weight": frozen}})
    assert archives[0].methods()["frozen.weight"] is Method.EXACT
    assert archives[2].methods(archives[1])["frozen.weight"] is Method.SAME
    assert torch.equal(restored(archives[2], archives[1])["frozen"]["weight"], torch.load(paths[2])["frozen"]["weight"])


def test_batch_norms_statistics_are_exact(tmp_path):
    reference = None
    for step in range(2):
        norm = {"running_mean": torch.randn(200), "running_var": torch.rand(200), "weight": torch.randn(200)}
        path = tmp_path / f"step_{step}.pt"
        torch.save({"model": {"conv.weight": torch.randn(64, 64), **{f"bn.{n}": t for n, t in norm.items()}}}, path)
        archive = encode(path, reference)
        state = restored(archive, reference)["model"]
        assert torch.equal(state["bn.running_mean"], norm["running_mean"])
        assert torch.equal(state["bn.running_var"], norm["running_var"])
        reference = archive


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_alone_in_16_bits_begin_exactly_and_go_on_so_where_few_change(tmp_path, dtype):
    torch.manual_seed(0)
    weight, reference = torch.randn(96, 128), None
    for step in range(3):
        path = tmp_path / f"step_{step}.pt"
        torch.save({"model": {"w": weight.to(dtype)}}, path)
        archive = encode(path, reference)
        assert archive.methods(reference)["model.w"] in EXACTLY
        weight, reference = weight + 2e-5 * torch.randn(96, 128), archive


def test_an_average_costs_little_beside_its_weights(tmp_path):
    (tmp_path / "plain").mkdir()
    paths, archives = Run(tmp_path).chain(with_average, 4)
    _, plain = Run(tmp_path / "plain").chain(with_optimizer, 4)
    index = archives[3].index(archives[2])
    numbers = {".".join(t.path): n for n, t in enumerate(index.layout.tensors)}
    assert {index.predictions[numbers[f"ema.{n}.weight"]].other for n in (0, 2, 4)} == {
        numbers[f"model.{n}.weight"] for n in (0, 2, 4)
    }
    assert archives[3].nbytes < 1.6 * plain[3].nbytes
    state, original = restored(archives[3], archives[2]), torch.load(paths[3])
    assert all(off(tensor, state["ema"][name]) < 0.1 for name, tensor in original["ema"].items())


class Normed(Run):
    """The same with norms, whose vectors are alike."""

    def __init__(self, place: Path) -> None:
        super().__init__(place)
        wide = [nn.Linear(48, 160), nn.LayerNorm(160), nn.Tanh(), nn.Linear(160, 160), nn.LayerNorm(160), nn.Tanh()]
        self.model = nn.Sequential(*wide, nn.BatchNorm1d(160, affine=False), nn.Linear(160, 40))
        self.average = copy.deepcopy(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 1e-3)


def with_shadow_params(run):
    """As torch_ema and diffusers keep an average."""
    average = {"decay": 0.98, "num_updates": run.done, "shadow_params": list(run.average.parameters())}
    return {"model": run.model.state_dict(), "optimizer": run.optimizer.state_dict(), "ema": average}


def test_an_average_without_names_follows_its_weights_by_its_order(tmp_path):
    """Its vectors cost a fifth more where only distance said whose they are: all norms are near to each other."""
    (tmp_path / "named").mkdir()
    _, lists = Normed(tmp_path).chain(with_shadow_params, 3)
    _, named = Normed(tmp_path / "named").chain(with_average, 3)
    index = lists[2].index(lists[1])
    numbers = {".".join(t.path): n for n, t in enumerate(index.layout.tensors)}
    names = [name for name, _ in Normed(tmp_path).model.named_parameters()]
    for place, name in enumerate(names):
        if f"ema.shadow_params.{place}" in numbers and name != "7.bias":  # of 40 elements
            assert index.predictions[numbers[f"ema.shadow_params.{place}"]].other == numbers[f"model.{name}"]
    assert lists[2].nbytes < 1.02 * named[2].nbytes


@pytest.mark.parametrize("content", [with_masters, with_masters_in_state])
def test_a_rounded_copy_of_a_master_costs_nothing_and_is_one_again(tmp_path, content):
    paths, archives = Run(tmp_path).chain(content, 2)
    methods = archives[1].methods(archives[0])
    assert {methods[f"model.{n}.weight"] for n in (0, 2, 4)} == {Method.CAST}
    state, original = restored(archives[1], archives[0]), torch.load(paths[1])
    if "master" in state:
        masters = state["master"]
    else:
        names = original["model"].keys()
        found = (own["master_param"] for own in state["optimizer"]["state"].values())
        masters = dict(zip(names, found, strict=True))
    assert all(torch.equal(state["model"][name], tensor.bfloat16()) for name, tensor in masters.items())
    assert methods["optimizer.state.0.exp_avg_sq"] is Method.FILL


def test_an_average_with_a_rounded_copy_is_its_master_and_follows_nothing(tmp_path):
    def content(run):
        narrow = {name: tensor.bfloat16() for name, tensor in run.average.state_dict().items()}
        return {"narrow": narrow, **with_average(run)}

    paths, archives = Run(tmp_path).chain(content)
    methods = archives[2].methods(archives[1])
    assert {methods[f"narrow.{n}.weight"] for n in (0, 2, 4)} == {Method.CAST}
    state, original = restored(archives[2], archives[1]), torch.load(paths[2])
    for name, tensor in state["ema"].items():
        assert off(original["ema"][name], tensor) < 0.1
        assert torch.equal(state["narrow"][name], tensor.bfloat16())


def test_lossless_rounds_masters_too(tmp_path):
    paths, archives = Run(tmp_path).chain(with_masters, 2, "lossless")
    assert archives[1].methods(archives[0])["model.0.weight"] is Method.CAST
    state, original = restored(archives[1], archives[0]), torch.load(paths[1])
    assert all(torch.equal(state["model"][name], tensor) for name, tensor in original["model"].items())


def test_a_copy_that_differs_in_one_number_is_no_cast(tmp_path):
    def content(run):
        saved = with_masters(run)
        saved["model"]["0.weight"][5, 7] += 1.0
        return saved

    paths, archives = Run(tmp_path).chain(content, 1)
    assert archives[0].methods()["model.0.weight"] is not Method.CAST
    found = restored(archives[0])["model"]["0.weight"][5, 7]
    assert found == torch.load(paths[0])["model"]["0.weight"][5, 7]


OPTIMIZERS = {
    "amsgrad": (torch.optim.AdamW, {"amsgrad": True}, "max_exp_avg_sq"),
    "rmsprop": (torch.optim.RMSprop, {}, "square_avg"),
    "centred rmsprop with momentum": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}, "grad_avg"),
    "adagrad": (torch.optim.Adagrad, {"lr": 1e-2}, "sum"),
    "adadelta": (torch.optim.Adadelta, {"lr": 1.0}, "acc_delta"),
    "adamax": (torch.optim.Adamax, {}, "exp_inf"),
    "nadam": (torch.optim.NAdam, {}, "exp_avg_sq"),
    "radam": (torch.optim.RAdam, {}, "exp_avg_sq"),
    "asgd": (torch.optim.ASGD, {"lr": 0.1}, "ax"),
    "soap": (Soap, {}, "Q.1"),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_states_of_every_optimizer_lose_precision_and_resume(tmp_path, kind):
    make, options, name = OPTIMIZERS[kind]
    run = Run(tmp_path, make, **options)
    _, archives = run.chain(with_optimizer)
    methods = archives[2].methods(archives[1])
    matrices = [f"optimizer.state.{number}.{name}" for number in (0, 2, 4)]
    assert not {methods[matrix] for matrix in matrices} & {Method.EXACT, Method.DELTA}
    assert {methods[f"model.{n}.weight"] for n in (0, 2, 4)} <= WITH_LOSS
    state = restored(archives[2], archives[1])
    again = Run(tmp_path, make, **options)
    again.model.load_state_dict(state["model"])
    again.optimizer.load_state_dict(state["optimizer"])
    again.done = run.done
    losses = []
    for each in (run, again):
        each.train(20)
        inputs = torch.randn(512, 48, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            loss = (each.model(inputs) - torch.tanh(inputs @ each.teacher / 5)).pow(2).mean()
        losses.append(float(loss))
    assert losses[1] < 1.02 * losses[0]


def test_another_iterate_of_a_weight_follows_it(tmp_path):
    """As schedule-free AdamW keeps it: z, which gradients are not taken at, and a second moment."""

    def content(run):
        saved = with_optimizer(run)
        averages = dict(enumerate(run.average.parameters()))
        kept = saved["optimizer"]["state"].items()
        state = {n: {"z": averages[n].detach().clone(), "exp_avg_sq": own["exp_avg_sq"]} for n, own in kept}
        return {**saved, "optimizer": {**saved["optimizer"], "state": state}}

    paths, archives = Run(tmp_path).chain(content)
    index, methods = archives[2].index(archives[1]), archives[2].methods(archives[1])
    numbers = {".".join(tensor.path): number for number, tensor in enumerate(index.layout.tensors)}
    assert index.predictions[numbers["optimizer.state.0.z"]].other == numbers["model.0.weight"]
    assert methods["optimizer.state.0.exp_avg_sq"] is Method.STATE_FILL
    state, original = (
        each["optimizer"]["state"] for each in (restored(archives[2], archives[1]), torch.load(paths[2]))
    )
    assert all(off(original[number]["z"], state[number]["z"]) < 0.1 for number in (0, 2, 4))


def test_weights_weigh_as_the_factors_of_their_variance_say(tmp_path):
    """SOAP's moments are in another basis than its weights: their rows and columns are none of these."""
    run = Run(tmp_path, Soap)
    _, archives = run.chain(with_optimizer, 1)
    index = archives[0].index()
    numbers = {".".join(tensor.path): number for number, tensor in enumerate(index.layout.tensors)}
    methods = archives[0].methods()
    kept = {methods[f"optimizer.state.0.{name}"] for name in ("GG.0", "GG.1", "Q.0", "exp_avg", "exp_avg_sq")}
    assert kept <= {Method.STATE_MEAN, Method.STATE_FILL, Method.STATE_VARIANCE}
    state = run.optimizer.state_dict()["state"][0]
    rows, columns = (factor.diagonal().double().log2() * 8 for factor in state["GG"])
    found = archives[0].reconstruction
    own = [found.get(index.layout.tensors[numbers["model.0.weight"]].path, name) for name in ("rows", "columns")]
    for code, expected in zip(own, (rows, columns), strict=True):
        off = torch.from_numpy(code.astype("f8")) - expected
        assert (off - off.median()).abs().max() <= 1.01


def test_a_state_that_nobody_knows_is_exact_and_its_weight_is_not(tmp_path):
    def content(run):
        saved = with_optimizer(run)
        for state in saved["optimizer"]["state"].values():
            state["curiosity"] = torch.randn(state["exp_avg"].shape)
        return saved

    _, archives = Run(tmp_path).chain(content, 2)
    methods = archives[1].methods(archives[0])
    assert methods["optimizer.state.0.curiosity"] is Method.EXACT
    assert methods["model.0.weight"] in WITH_LOSS
    assert methods["optimizer.state.0.exp_avg_sq"] is Method.FILL


def test_reconstructions_of_encoder_and_decoder_agree_where_tensors_wait_for_others(tmp_path):
    """An average, its tied copy, and a rounded master that stands before what it is rounded from."""

    def content(run):
        narrow = {name: tensor.half() for name, tensor in run.model.state_dict().items()}
        average = run.average.state_dict()
        tied = {"tied": average["0.weight"].clone()}
        return {"model": narrow, "ema": average, "more": tied} | {
            "master": run.model.state_dict(),
            "optimizer": run.optimizer.state_dict(),
        }

    _, archives = Run(tmp_path).chain(content, 3)
    reference = None
    for archive in archives:
        decode(archive, reference)  # asserts the id
        reference = archive
    assert archives[2].methods(archives[1])["more.tied"] is Method.COPY
    assert np.isfinite(archives[2].nbytes)
