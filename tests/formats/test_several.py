"""Which files of one step are one checkpoint: what is in them says so, names where that does not tell."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ckzd.errors import BadCheckpoint
from ckzd.formats import read_checkpoint, read_whole


class Model:
    """A small one with an optimizer of its own."""

    def __init__(self, *widths: int, **options: object) -> None:
        layers = [torch.nn.Linear(*pair) for pair in pairwise(widths)]
        self.net = torch.nn.Sequential(*layers)
        self.optimizer = torch.optim.AdamW(self.net.parameters(), 1e-3, **options)
        self.net(torch.randn(4, widths[0])).sum().backward()
        self.optimizer.step()

    @property
    def weights(self) -> dict:
        return self.net.state_dict()

    @property
    def moments(self) -> dict:
        return self.optimizer.state_dict()

    @property
    def both(self) -> dict:
        return {"model": self.weights, "optimizer": self.moments}


M, G, D, F = Model(48, 32, 16), Model(32, 64, 16), Model(16, 32, 8), Model(48, 32)
HALVES = {
    "encoder": {k: v for k, v in M.weights.items() if k < "1"},
    "decoder": {"1.weight": M.weights["1.weight"], "1.bias": M.weights["1.bias"]},
}
SMALL = {"last_epoch": 3}
TOGETHER = {
    "a model and its optimizer": ({"model_9.pt": M.weights, "optimizer_9.pt": M.moments}, 2),
    "wrapped": (
        {"weights_9.pt": {"model": M.weights, "step": 9}, "optim_9.pt": {"optimizer": M.moments, "epoch": 1}}, 2
    ),
    "under other names": ({"m.epoch9.pt": M.weights, "o.epoch9.pt": M.moments}, 2),
    "with all else": (
        {"model_9.pt": M.weights, "optimizer_9.pt": M.moments, "scheduler_9.pt": SMALL, "rng_9.pt": torch.rand(5)}, 4
    ),
    "with an average": ({"net_9.pt": M.weights, "net_ema_9.pt": M.weights, "optim_9.pt": M.moments}, 3),
    "an average alone": ({"net_9.pt": M.weights, "net-EMA_9.pt": M.weights}, 2),
    "of two models": ({"G_9.pt": G.weights, "optG_9.pt": G.moments, "D_9.pt": D.weights, "optD_9.pt": D.moments}, 2),
    "of two models of one shape": (
        {"netG_9.pt": M.weights, "optG_9.pt": M.moments, "netF_9.pt": M.weights, "optF_9.pt": M.moments}, 2
    ),
    "of folds": (
        {
            f"fold{fold}_{kind}_9.pt": what
            for fold in (0, 1)
            for kind, what in (("model", M.weights), ("optim", M.moments))
        },
        2,
    ),
    "parts with one optimizer": (
        {"encoder_9.pt": HALVES["encoder"], "decoder_9.pt": HALVES["decoder"], "optim_9.pt": M.moments}, 3
    ),
    "without a step": ({"model_last.pt": M.weights, "optimizer_last.pt": M.moments, "model_best.pt": M.weights}, 2),
}  # fmt: skip
APART = {
    "each with its own optimizer": {"G_9.pt": G.both, "D_9.pt": D.both},
    "an optimizer of others": {"model_9.pt": M.weights, "optimizer_9.pt": G.moments},
    "an optimizer of another name with few of the shapes": {"G_9.pt": M.weights, "optD_9.pt": F.moments},
    "an optimizer of one of two": {"A_9.pt": M.weights, "B_9.pt": M.weights, "optim_9.pt": M.moments},
    "of another step": {"model_9.pt": M.weights, "optimizer_8.pt": M.moments},
    "a whole one with a model": {"all_9.pt": M.both, "model_9.pt": M.weights},
    "two models": {"G_9.pt": G.weights, "D_9.pt": D.weights},
    "small files": {"scheduler_9.pt": SMALL, "rng_9.pt": SMALL},
    "other names of the weights": {
        "model_9.pt": M.weights,
        "optim_9.pt": Model(48, 32, 16).optimizer.state_dict()
        | {"param_groups": [M.moments["param_groups"][0] | {"param_names": ["a", "b", "c", "d"]}]},
    },
}


def written(place: Path, files: dict[str, object]) -> Path:
    for name, value in files.items():
        torch.save(value, place / name)
    return place / next(iter(files))


@pytest.mark.parametrize("kind", TOGETHER)
def test_what_belongs_together_is_one_checkpoint(tmp_path, kind):
    files, count = TOGETHER[kind]
    first = written(tmp_path, files)
    checkpoint = read_whole(first)
    names = [file.name for file in checkpoint.files]
    assert (len(names), checkpoint.name, checkpoint.is_directory) == (count, names[0], False)
    assert first.name in names
    for name in names:
        assert [file.name for file in read_whole(tmp_path / name).files] == names, "whichever is named"
    assert len({tensor.path for tensor in checkpoint.tensors}) == len(checkpoint.tensors)
    assert checkpoint.sha256() == tuple(read_checkpoint(tmp_path / name).sha256()[0] for name in names)


@pytest.mark.parametrize("kind", APART)
def test_what_cannot_be_told_is_a_checkpoint_of_its_own(tmp_path, kind):
    written(tmp_path, APART[kind])
    for name in APART[kind]:
        assert [file.name for file in read_whole(tmp_path / name).files] == [name]


def test_paths_are_the_same_at_every_step_and_the_model_s_as_in_a_file_of_its_own(tmp_path):
    paths = []
    for step in (8, 9):
        first = written(tmp_path, {f"model_{step}.pt": M.weights, f"optimizer_{step}.pt": M.moments})
        paths.append([tensor.path for tensor in read_whole(first).tensors])
    assert paths[0] == paths[1]
    assert [path for path in paths[0] if len(path) == 1] == [
        t.path for t in read_checkpoint(tmp_path / "model_9.pt").tensors
    ]


def test_formats_may_differ(tmp_path):
    save_file(M.weights, tmp_path / "model_9.safetensors")
    torch.save(M.moments, tmp_path / "optimizer_9.pt")
    assert len(read_whole(tmp_path / "optimizer_9.pt").files) == 2


def test_a_damaged_file_is_of_no_other(tmp_path):
    written(tmp_path, {"model_9.pt": M.weights, "optimizer_9.pt": M.moments})
    damaged = tmp_path / "optimizer_9.pt"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    assert len(read_whole(tmp_path / "model_9.pt").files) == 1
    with pytest.raises(BadCheckpoint):
        read_whole(damaged)
