"""Directories of DeepSpeed are one checkpoint each, the flat partitions of ZeRO the weights that lie in them."""

from math import prod

import pytest
import torch
from formats.helpers import assert_lossless, saved

import ckzd
from ckzd.codec.analysis.inputs import Inputs
from ckzd.codec.analysis.pairing import pair
from ckzd.codec.analysis.tiles import in_tiles
from ckzd.formats import completeness, is_replaced, read_checkpoint

SHAPES = ({"a.weight": (48, 32), "b.weight": (32, 48)}, {"a.bias": (96,), "b.bias": (95,)})
MODEL = {
    name: torch.randn(shape, generator=torch.Generator().manual_seed(1))
    for group in SHAPES
    for name, shape in group.items()
}
RANKS = 2


def partitions(stage: int, scale: float) -> list[list[torch.Tensor]]:
    """Of each group, the flat part of each rank, as DeepSpeed lays them out."""
    if stage == 3:
        parts = [[torch.nn.functional.pad(t, (0, -len(t) % RANKS)).chunk(RANKS) for t in some] for some in flat(scale)]
        return [[torch.cat([part[rank] for part in some]) for rank in range(RANKS)] for some in parts]
    whole = [torch.cat(some) for some in flat(scale)]
    return [list(torch.nn.functional.pad(t, (0, -len(t) % (2 * RANKS))).chunk(RANKS)) for t in whole]


def flat(scale: float) -> list[list[torch.Tensor]]:
    return [[scale * MODEL[name].flatten() for name in group] for group in SHAPES]


def write(path, stage, step=7, scale=1.0):
    path.mkdir(parents=True)
    states = {"param_shapes": [{k: torch.Size(v) for k, v in group.items()} for group in SHAPES], "optimizer": None}
    states |= {"dp_world_size": RANKS, "mp_world_size": 1, "global_steps": step}
    if stage == 3:
        for rank in range(RANKS):
            states["module"] = {name: torch.empty(0, dtype=torch.bfloat16) for name in MODEL}
            saved(path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt", states)
    else:
        states["module"] = {name: (scale * value).bfloat16() for name, value in MODEL.items()}
        saved(path / "mp_rank_00_model_states.pt", states)
    for rank in range(RANKS):
        first, second, weights = ([group[rank] for group in partitions(stage, s)] for s in (0.1, 0.01, scale))
        state = {n: {"step": torch.tensor(float(step)), "exp_avg": m.clone(), "exp_avg_sq": (v * v).clone()}
                 for n, (m, v) in enumerate(zip(first, second, strict=True))}  # fmt: skip
        groups = [{"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "params": [n]} for n in range(len(SHAPES))]
        kept = {"state": state, "param_groups": groups}
        flats = [weight.clone() for weight in weights]
        if stage == 3:
            states = {"optimizer_state_dict": kept, "fp32_flat_groups": flats}
        else:
            states = {"base_optimizer_state": kept, "single_partition_of_fp32_groups": flats}
        name = f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
        saved(path / name, {"optimizer_state_dict": states, "ds_version": "0.19.8"})
    return path


def values(checkpoint, number):
    tensor = checkpoint.tensors[number]
    return torch.frombuffer(bytearray(checkpoint.payload(number)), dtype=torch.float32).reshape(tensor.shape)


@pytest.mark.parametrize("stage", [1, 3])
def test_flat_partitions_are_the_weights_in_them(tmp_path, stage):
    path = write(tmp_path / "global_step7", stage)
    assert completeness(path) is None
    checkpoint = read_checkpoint(path)
    assert checkpoint.step == 7
    assert_lossless(checkpoint, path)
    found = {}
    for triple in pair(Inputs(in_tiles(checkpoint), None)).triples:
        weight = checkpoint.tensors[triple.weight].path[-1]
        assert {checkpoint.tensors[number].path[-2] for number in triple.moments} == {weight}
        if len(checkpoint.tensors[triple.weight].shape) > 1:
            found[weight] = checkpoint.tensors[triple.weight].shape
            assert torch.equal(values(checkpoint, triple.weight), MODEL[weight])
            assert torch.equal(values(checkpoint, triple.first), 0.1 * MODEL[weight])
    assert found == SHAPES[0]
    assert {group.betas for optimizer in checkpoint.optimizers for group in optimizer.groups} == {(0.9, 0.99)}


def test_a_weight_that_is_cut_within_a_row_is_one(tmp_path, monkeypatch):
    set_shapes(monkeypatch, {"c.weight": (33, 31)}, {"c.bias": (200,)})
    checkpoint = read_checkpoint(write(tmp_path / "global_step7", 1))
    assert_lossless(checkpoint, tmp_path / "global_step7")
    triples = pair(Inputs(in_tiles(checkpoint), None)).triples
    names = {checkpoint.tensors[triple.weight].path[-1]: checkpoint.tensors[triple.weight].shape for triple in triples}
    assert names == {"c.weight": (33, 31), "c.bias": (200,)}


def set_shapes(monkeypatch, *groups):
    monkeypatch.setitem(globals(), "SHAPES", groups)
    drawn = {name: torch.randn(shape) for group in groups for name, shape in group.items()}
    monkeypatch.setitem(globals(), "MODEL", drawn)


def test_a_share_without_the_others_has_a_name_of_its_own(tmp_path, monkeypatch):
    """The second rank has ten elements of the first weight, less than what is worth a name."""
    set_shapes(monkeypatch, {"c.weight": (32, 32), "d.weight": (251, 4)})
    checkpoint = read_checkpoint(write(tmp_path / "global_step7", 1))
    assert_lossless(checkpoint, tmp_path / "global_step7")
    triples = pair(Inputs(in_tiles(checkpoint), None)).triples
    names = {checkpoint.tensors[triple.weight].path[-1]: checkpoint.tensors[triple.weight].shape for triple in triples}
    assert names == {"c.weight[0:1014]": (1014,), "d.weight": (251, 4)}
    state = [tensor.path for tensor in checkpoint.tensors if tensor.path[-1] == "<rest>"]
    paths = [optimizer.path for optimizer in checkpoint.optimizers]
    assert any(path[: len(own)] == own for path in state for own in paths)


@pytest.mark.parametrize("stage", [1, 3])
def test_another_number_of_ranks_goes_on_with_the_same_tensors(tmp_path, monkeypatch, stage):
    run, reports, known = tmp_path / "run", [], []
    for step, ranks in ((7, 2), (8, 3), (9, 1)):
        monkeypatch.setitem(globals(), "RANKS", ranks)
        path = write(run / f"global_step{step}", stage, step, 1 + 0.001 * step)
        known.append({tensor.path for tensor in read_checkpoint(path).tensors if len(tensor.shape) > 1})
        reports.append(ckzd.compress(path, preset="resume"))
    of_zero = [{path for path in paths if "optim" in path[0]} for paths in known]
    assert of_zero[0] == of_zero[1] == of_zero[2]
    assert [report.reference is not None for report in reports] == [False, True, True]
    assert ckzd.verify(reports[-1].archive).ok


@pytest.mark.parametrize("change", ["shapes", "groups", "length", "no shapes"])
def test_a_partition_that_is_none_stays_flat(tmp_path, change):
    path = write(tmp_path / "global_step7", 1)
    file = path / "mp_rank_00_model_states.pt"
    states = torch.load(file)
    if change == "shapes":
        states["param_shapes"][0]["a.weight"] = torch.Size((50, 32))
    elif change == "groups":
        states["param_shapes"] = states["param_shapes"][:1]
    elif change == "length":
        states["dp_world_size"] = 3
    else:
        states["param_shapes"] = None
    saved(file, states)
    checkpoint = read_checkpoint(path)
    assert_lossless(checkpoint, path)
    if change != "shapes":
        assert not any("a.weight" in tensor.path for tensor in checkpoint.tensors[:8])


def test_it_is_complete_when_the_states_of_every_rank_are_there(tmp_path):
    path = write(tmp_path / "global_step7", 1)
    last = path / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"
    whole = last.read_bytes()
    last.write_bytes(whole[:-50])
    assert "cut off" in completeness(path)
    last.unlink()
    assert completeness(path) == "global_step7: optimizer states of rank 1 (model-parallel rank 0) missing"
    last.write_bytes(whole)
    (path / "mp_rank_00_model_states.pt").unlink()
    assert completeness(path) == "global_step7: model states missing"


@pytest.mark.parametrize("stage", [1, 3])
def test_it_is_replaced_whole_and_comes_back_bit_for_bit(tmp_path, stage):
    paths = [write(tmp_path / "run" / f"global_step{step}", stage, step, scale) for step, scale in ((7, 1), (8, 1.01))]
    before = {}
    for path in paths:
        before[path] = {entry.name: (entry.read_bytes(), entry.stat().st_mtime_ns) for entry in path.iterdir()}
        assert ckzd.compress(path, preset="lossless", replace=True).replaced
        assert is_replaced(path)
    for path in paths:
        ckzd.ensure_restored(path)
        assert {e.name: (e.read_bytes(), e.stat().st_mtime_ns) for e in path.iterdir()} == before[path]


def test_a_lossy_restore_has_its_checksums(tmp_path):
    path = write(tmp_path / "run" / "global_step7", 1)
    ckzd.compress(path, preset="resume", replace=True)
    ckzd.restore(path)
    states = torch.load(path / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")["optimizer_state_dict"]
    weights = states["single_partition_of_fp32_groups"][0]
    expected = MODEL["a.weight"].flatten()
    assert 0 < (weights[: prod(SHAPES[0]["a.weight"])] - expected).norm() < 0.1 * expected.norm()
    assert completeness(path) is None


def write_plain(path, optimizer, step=7):
    """As an engine without ZeRO saves, or one without an optimizer."""
    path.mkdir(parents=True, exist_ok=True)
    states = {"module": {name: value + step for name, value in MODEL.items()}, "optimizer": optimizer}
    states |= {"param_shapes": None, "dp_world_size": RANKS, "mp_world_size": 1, "global_steps": step}
    saved(path / "mp_rank_00_model_states.pt", states)
    return path


OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(64)}}, "param_groups": [{"params": [0]}]}


@pytest.mark.parametrize("optimizer", [OPTIMIZER, None], ids=["no ZeRO", "no optimizer"])
def test_without_partitions_the_model_states_are_all(tmp_path, optimizer):
    path = write_plain(tmp_path / "run" / "global_step7", optimizer)
    assert completeness(path) is None
    before = {entry.name: entry.read_bytes() for entry in path.iterdir()}
    assert ckzd.compress(path, preset="lossless", replace=True).replaced
    assert completeness(path) is not None
    ckzd.ensure_restored(path)
    assert {entry.name: entry.read_bytes() for entry in path.iterdir()} == before


def test_without_optimizer_states_in_the_model_s_those_of_ranks_are_waited_for(tmp_path):
    path = write(tmp_path / "global_step7", 1)
    for file in path.glob("*optim_states.pt"):
        file.unlink()
    assert "optimizer states of rank 0" in completeness(path)


def test_where_one_rank_writes_its_states_all_do(tmp_path):
    """Of bf16 without ZeRO, too, whose states the model's file repeats."""
    path = write_plain(tmp_path / "global_step7", OPTIMIZER)
    saved(path / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt", {"optimizer_state_dict": {}})
    assert "optimizer states of rank 0" in completeness(path)


@pytest.mark.parametrize("optimizer", [OPTIMIZER, None], ids=["no ZeRO", "no optimizer"])
def test_one_that_is_saved_over_its_pointer_is_a_checkpoint(tmp_path, optimizer):
    path = write_plain(tmp_path / "run" / "global_step7", optimizer)
    archive = ckzd.compress(path, preset="lossless", replace=True).archive
    assert is_replaced(path)
    write_plain(path, optimizer, step=8)
    assert not is_replaced(path)
    assert completeness(path) is None
    assert ckzd.ensure_restored(path) == path
    report = ckzd.compress(path, preset="lossless", replace=True)
    assert report.replaced
    assert report.archive != archive


def test_with_zero_a_save_over_its_pointer_counts_when_it_is_whole(tmp_path):
    path = write(tmp_path / "run" / "global_step7", 1)
    ckzd.compress(path, preset="lossless", replace=True)
    whole = {entry.name: entry.read_bytes() for entry in write(tmp_path / "again", 1, 8).iterdir()}
    for name in sorted(whole, key=lambda name: "optim" in name):
        (path / name).write_bytes(whole[name])
        assert (completeness(path) is None) == (len(list(path.glob("*.pt"))) == len(whole))
