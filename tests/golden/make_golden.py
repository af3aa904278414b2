"""Write the golden archives of the current format version. Refuses to overwrite: a golden is for ever.

usage: make_golden.py    writes tests/golden/format_N/: chains and `expected.json`, hashes of what they restore
Run it once for a new format version, in the commit that changes FORMAT.md.
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file

import ckzd
from ckzd.archive.manifest import FORMAT_VERSION
from ckzd.chains import read_manifest
from ckzd.codec.analysis import tiles
from ckzd.codec.paper import fitting
from ckzd.codec.presets import PRESETS
from ckzd.operations.merge import write_merged

sys.path += [str(Path(__file__).parents[1] / folder) for folder in ("", "bench")]
from dcp_directories import Writer  # a script finds what stands beside it only
from plain_decoder import PlainArchive

HERE = Path(__file__).parent / f"format_{FORMAT_VERSION}"
STEPS = (20, 40, 60)
DAY = "2026-11-30"  # when merged archives lost their moments
PRETRAINED = Path("/tmp/ckzd-golden/pretrained.safetensors")  # it must not be there
WANTED = {
    ("weights", method) for method in ("framed", "factored", "scalar", "whole", "kmeans", "exact", "delta", "ulps")
}
WANTED |= {("first_moment", method) for method in ("framed", "scaled", "trend", "kmeans")} | {
    ("", "fill"),
    ("", "same"),
    ("second_moment", "scaled"),
    ("second_moment", "exact"),
    ("zeros", "as expected"),
    ("zeros", "otherwise"),
    ("", "cast"),
    ("second_moment", "state_fill"),
    ("second_moment", "state_variance"),
    ("first_moment", "state_mean"),
}


class Beside:
    """What has no two moments: RMSprop's float64 weights, an average of another module, its rounded copy, a table."""

    def __init__(self, other: torch.nn.Module) -> None:
        self.other, self.table = other, 0.1 * torch.randn(32, 24)
        self.free = torch.nn.Sequential(torch.nn.Linear(48, 32), torch.nn.Linear(32, 32)).double()
        self.shaped = torch.exp(2.0 * torch.randn(32, 48))  # its variances are far from rank 1
        self.centred = torch.optim.RMSprop(self.free.parameters(), lr=1e-4, momentum=0.9, centered=True)
        self.average = {name: tensor.clone() for name, tensor in other.state_dict().items()}

    def follow(self, inputs: torch.Tensor, outputs: torch.Tensor) -> None:
        """One step, float32 (B, 48) -> (B, 160)."""
        self.centred.zero_grad()
        (self.free(inputs.double()) - outputs[:, :32]).pow(2).mean().backward()
        self.free[0].weight.grad.mul_(self.shaped)
        self.centred.step()
        self.table += 1e-3 * torch.outer(inputs[0, :32], outputs[0, :24])
        for name, tensor in self.other.state_dict().items():
            self.average[name].lerp_(tensor, 0.05)

    def state(self) -> dict[str, dict]:
        """All of it."""
        narrow = {name: tensor.bfloat16() for name, tensor in self.other.state_dict().items()}
        return {
            "free": self.free.state_dict(),
            "centred": self.centred.state_dict(),
            "narrow": narrow,
            "average": self.average,
            "bare": {"table": self.table},
        }


def write_run(run: Path) -> None:
    """A small real run: matrices with structured gradients, biases, a lone momentum, odd tensors, a NaN, a mask.

    The second moments of `uneven` are far from rank 1, and those of `pure` underflow in float16. All weights of `model`
    are views into one storage; `stack` is one of small matrices.
    """
    torch.manual_seed(7)
    inputs, outputs = torch.randn(512, 48) @ torch.diag(torch.logspace(-1, 1, 48)), torch.randn(512, 160)
    model = torch.nn.Sequential(torch.nn.Linear(48, 272), torch.nn.Tanh(), torch.nn.Linear(272, 160))
    half, master = torch.randn(16, 16).half(), torch.randn(64, 64)  # of what is kept in bfloat16
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.0, 0.99))  # no memory: the last one is dropped
    other = torch.nn.Sequential(torch.nn.Linear(48, 40), torch.nn.Linear(96, 64, bias=False))
    momentum = torch.optim.SGD(other.parameters(), lr=1e-2, momentum=0.9)
    pruned, uneven = torch.nn.Linear(48, 24), torch.nn.Linear(24, 64)
    pure = torch.nn.Linear(48, 20).half()
    mask, scale = torch.rand(24, 48) < 0.5, torch.exp(1.5 * torch.randn(64, 24))
    pruned.weight.data.mul_(mask)
    beside = Beside(other)
    stack = torch.nn.Parameter(torch.randn(3, 24, 16))
    fused = torch.optim.Adam([stack], lr=1e-3, betas=(0.0, 0.99))
    masked = torch.optim.Adam([*pruned.parameters(), *uneven.parameters()], lr=1e-3, betas=(0.0, 0.99))
    halved = torch.optim.Adam(pure.parameters(), lr=1e-3, betas=(0.0, 0.99), eps=1e-4)
    for step in range(1, max(STEPS) + 1):
        rows = torch.randint(512, (32,))
        optimizer.zero_grad()
        (model(inputs[rows]) - outputs[rows]).pow(2).mean().backward()
        optimizer.step()
        momentum.zero_grad()
        (other[0](inputs[rows]) - outputs[rows, :40]).pow(2).mean().backward()
        other[1].weight.grad = 0.01 * torch.outer(outputs[rows[0], :64], outputs[step % 3, 64:])  # three directions
        momentum.step()
        masked.zero_grad()
        (uneven(pruned(inputs[rows])) - outputs[rows, 64:128]).pow(2).mean().backward()
        pruned.weight.grad.mul_(mask)
        uneven.weight.grad.mul_(scale)
        masked.step()
        pure.weight.grad = (3e-4 * torch.randn(20, 48) * torch.logspace(-1, 1, 20)[:, None]).half()
        pure.bias.grad = torch.zeros(20).half()
        halved.step()
        master -= 3e-4 * torch.randn(64, 64).sign()
        stack.grad = torch.einsum("er,c->erc", torch.randn(3, 24), outputs[rows[0], :16])
        fused.step()
        beside.follow(inputs[rows], outputs[rows])
        if step in STEPS:
            odd = torch.full((300,), float("nan")) if step == STEPS[1] else torch.linspace(0, 1, 300)
            extra = {
                "half": half,
                "brain": master.bfloat16().flatten(),
                "count": torch.arange(100) * step,
                "odd": odd,
                "tied": half.clone(),
            }
            state = {
                "model": in_one_storage(model.state_dict()),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "extra": extra,
            }
            state |= {"other": other.state_dict(), "momentum": momentum.state_dict(), "pruned": pruned.state_dict()}
            state |= {"uneven": uneven.state_dict(), "masked": masked.state_dict(), "pure": pure.state_dict()}
            state |= beside.state() | {"halved": halved.state_dict()}
            state |= {"stack": stack.detach(), "fused": fused.state_dict()}
            torch.save(state, run / f"step_{step}.pt")


def in_one_storage(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies of them, one behind the other."""
    pieces = torch.cat([tensor.flatten() for tensor in tensors.values()]).split([t.numel() for t in tensors.values()])
    return {name: piece.view(tensors[name].shape) for name, piece in zip(tensors, pieces, strict=True)}


def write_tuned() -> dict[str, dict]:
    """A chain that begins with a base model, half of it in another dtype; what it restores to."""
    torch.manual_seed(8)
    model = {"h.0.weight": torch.randn(96, 64), "h.1.weight": torch.randn(64, 96), "norm.bias": torch.randn(200)}
    target, expected = HERE / "base_model", {}
    target.mkdir(parents=True)
    PRETRAINED.parent.mkdir()  # an archive names this place: it is the same on all machines
    try:
        narrow = {name: value.bfloat16() if "h.0" in name else value for name, value in model.items()}
        save_file(narrow | {"odd": torch.full((3,), float("inf"))}, PRETRAINED)
        shutil.copy(PRETRAINED, target)
        run, reference = PRETRAINED.parent / "run", None
        run.mkdir()
        for step in STEPS[:2]:
            model = {name: value + 1e-3 * torch.randn(value.shape) for name, value in model.items()}
            torch.save({"model": {f"module.{name}": value for name, value in model.items()}}, run / f"step_{step}.pt")
            archive = Path(shutil.copy(ckzd.compress(run / f"step_{step}.pt", base_model=PRETRAINED).archive, target))
            manifest, plain = read_manifest(archive), PlainArchive(archive, reference)
            reference = plain.own
            if (
                hashlib.sha256(reference.to_bytes()).hexdigest() != manifest.reconstruction
                or manifest.depth != step // 20
            ):
                raise SystemExit(f"{archive}: the plain decoder makes something else of it")
            expected[f"base_model/{archive.name}"] = {"restored": manifest.restored, "coders": manifest.coders}
    finally:
        shutil.rmtree(PRETRAINED.parent)
    return expected


def write_sharded(run: Path) -> None:
    """Directories of three ranks, which have rows of weights and columns of one; each has some of its tiles.

    Experts are cut in their middle dimension, a bias is shorter in each than what has a name of its own.
    """
    torch.manual_seed(7)
    shapes = {"rows": (700, 32), "columns": (640, 48), "experts": (3, 24, 32), "bias": (96,)}
    weights = {name: torch.nn.Parameter(0.1 * torch.randn(shape)) for name, shape in shapes.items()}
    optimizer = torch.optim.AdamW(weights.values(), lr=1e-3, betas=(0.9, 0.99))
    for step in range(1, STEPS[1] + 1):
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape[:-1])[..., None] * torch.randn(weight.shape[-1])
        optimizer.step()
        if step in STEPS:
            writer = Writer(run / f"step-{step}", 3)
            for (name, weight), kept in zip(weights.items(), optimizer.state_dict()["state"].values(), strict=True):
                cut = int(name in {"columns", "experts"})
                writer.put(f"model.{name}", weight.detach(), cut=cut)
                for key, value in kept.items():
                    writer.put(f"optimizer.state.{name}.{key}", value, cut=cut if value.ndim else 0)
            writer.finish()


def write_archives(
    folder: str, preset: str, checkpoints: Sequence[Path], expected: dict[str, dict]
) -> list[PlainArchive]:
    """A chain in a folder of goldens, read by the plain decoder too: what nothing but ckzd reads is no golden."""
    archives: list[PlainArchive] = []
    for checkpoint in checkpoints:
        report = ckzd.compress(checkpoint, preset=preset)
        target = HERE / folder / Path(report.archive).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(report.archive, target)
        manifest = read_manifest(target)
        archives.append(PlainArchive(target, archives[-1].own if archives else None))
        digest = hashlib.sha256(archives[-1].own.to_bytes()).hexdigest()
        files = {name: hashlib.sha256(data).hexdigest() for name, data in archives[-1].files().items()}
        if digest != manifest.reconstruction or files != {file.name: file.sha256 for file in manifest.files}:
            raise SystemExit(f"{target}: the plain decoder makes something else of it")
        expected[f"{folder}/{target.name}"] = {"restored": manifest.restored, "coders": manifest.coders}
    return archives


def write_merged_archives(expected: dict[str, dict]) -> None:
    """Of three archives of a chain the middle one, or both before the last, taken out; of two of a model the first."""
    for folder, kept in (("resume", 1), ("paper", 0), ("base_model", 0)):
        paths, target = sorted((HERE / folder).glob("*.ckz")), HERE / f"merged_{folder}"
        target.mkdir()
        for path in (*paths[:kept], *(HERE / folder).glob("*.safetensors")):
            shutil.copy(path, target)
        with (target / paths[-1].name).open("wb") as file:
            write_merged(paths[kept:-1], paths[-1], file, target / "scratch", DAY)
        plain = None
        for path in sorted(target.glob("*.ckz")):
            plain, manifest = PlainArchive(path, plain and plain.own), read_manifest(path)
            if hashlib.sha256(plain.own.to_bytes()).hexdigest() != manifest.reconstruction:
                raise SystemExit(f"{path}: the plain decoder makes something else of it")
            expected[f"{target.name}/{path.name}"] = expected[f"{folder}/{path.name}"]


def require_all_kinds(archives: Sequence[PlainArchive], sharded: Sequence[PlainArchive]) -> None:
    """Whatever an archive may hold is in one of them."""
    methods = {(c[1].split("/")[0] if len(c) > 2 else "", c[0]) for a in archives for c in a.index["codes"]}
    methods |= {("zeros", "otherwise" if len(m) > 1 else "as expected") for a in archives for m in a.index["zeros"]}
    if not methods >= WANTED:
        raise SystemExit(f"the run has no {WANTED - methods}")
    for archive in archives:
        if not any(len(file) == 5 and all(file[3:]) for file in archive.layout["files"]):
            raise SystemExit("no tensor is cut, or none joins another")
        if not any(len(tensor) == 5 for tensor in json.loads(archive.layout_json)["tensors"]):
            raise SystemExit("no tensor is a stack")
    for archive in sharded:
        places = [place for file in archive.layout["files"] for hole in file[2] for place in hole[3:4]]
        parts = {len(place) for place in places if isinstance(place, list)}
        if parts != {1, 3} or not archive.layout.get("tiled"):
            raise SystemExit("no tensor lies in parts of one run and of several, or none of them is cut")
        if not len(archive.skeleton) < sum(map(len, archive.pieces())):
            raise SystemExit("no header repeats another")


def main() -> None:
    if HERE.exists():
        raise SystemExit(f"{HERE} exists: goldens are never regenerated")
    trained = {name: replace(PRESETS[name], lstm_steps=60, lstm_cold_steps=150) for name in ("resume", "paper")}
    expected: dict[str, dict] = {}
    with (
        tempfile.TemporaryDirectory() as work,
        mock.patch.object(fitting, "encode_lstm", return_value=b""),  # an LSTM that seems free: small planes use it
        mock.patch.dict(PRESETS, trained),
        mock.patch.dict(os.environ, XDG_STATE_HOME=work),  # what is noted of a base model is not of this user
        mock.patch.object(tiles, "MAX_ELEMENTS", 1 << 13),  # the largest tensors are cut
    ):
        archives: list[PlainArchive] = []
        for preset in trained:
            run = Path(work) / preset / "run"
            run.mkdir(parents=True)
            write_run(run)
            archives += write_archives(preset, preset, [run / f"step_{step}.pt" for step in STEPS], expected)
        run = Path(work) / "sharded" / "run"
        write_sharded(run)
        directories = [run / f"step-{step}" for step in STEPS[:2]]
        require_all_kinds(archives, write_archives("sharded", "resume", directories, expected))
        expected |= write_tuned()
        write_merged_archives(expected)
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
