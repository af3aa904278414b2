"""At no instant of a replacement or a restore does a framework resume from half a directory without a word.

On file systems that exchange two directories there is no such instant. On others files leave and come one by one, and
the process may be killed between any two calls: then what is there must be the whole, or the framework must refuse it.
What each refuses is written down here from its source (Hugging Face 5.23, Accelerate 1.15, DeepSpeed 0.19.8 and before,
torch 2.13); torch.distributed.checkpoint is asked itself.
"""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from dcp_directories import write_dcp
from making import store_archive
from torch.distributed.checkpoint import CheckpointException

from ckzd import durable
from ckzd.operations.restore import _fill_directory
from ckzd.store import Store

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # torch's, without ranks

TRAINER = ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "rng_state_1.pth", "scaler.pt")
LAYOUTS = {
    "hugging_face": ("model.safetensors", *TRAINER),
    "hugging_face bin": ("pytorch_model.bin", *TRAINER),
    "hugging_face sharded": ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", *TRAINER),
    "hugging_face peft": ("adapter_model.safetensors", *TRAINER),
    "accelerate": ("model.safetensors", "model_1.safetensors", "optimizer.bin", "optimizer_1.bin", "scheduler.bin",
                   "random_states_0.pkl", "random_states_1.pkl", "custom_checkpoint_0.pkl"),
    "deepspeed": ("mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
                  "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    "deepspeed stage 3": ("zero_pp_rank_0_mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_model_states.pt",
                          "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
                          "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"),
    "dcp": ("__0_0.distcp", "__1_0.distcp", "__2_0.distcp"),
}  # fmt: skip
SMALL = {"dcp": (".metadata",), "hugging_face sharded": ("trainer_state.json", "model.safetensors.index.json")}
STATE = {f"{part}.{number}": torch.arange(6.0) for part in ("model", "optimizer") for number in range(2)}


def by_model(path: Path, layout: tuple[str, ...]) -> bool:
    """Hugging Face and DeepSpeed look for the model's files alone (DeepSpeed: each rank for its own)."""
    model = [name for name in layout if "model" in name]
    return not all((path / name).exists() for name in model)


def by_model_optimizer_and_scheduler(path: Path, layout: tuple[str, ...]) -> bool:
    """Accelerate reads all but the random states, whose failure it swallows."""
    return not all((path / name).exists() for name in layout if not name.startswith("random_states"))


def by_loading(path: Path, _layout: tuple[str, ...]) -> bool:
    """All that every rank needs, as torch loads it."""
    loaded = {name: torch.zeros(6) for name in STATE}
    try:
        dcp.load(loaded, checkpoint_id=path, no_dist=True)
    except CheckpointException:
        return True
    return not all(torch.equal(value, loaded[name]) for name, value in STATE.items())


REFUSES: dict[str, Callable[[Path, tuple[str, ...]], bool]] = {
    "hugging_face": by_model,
    "accelerate": by_model_optimizer_and_scheduler,
    "deepspeed": by_model,
    "dcp": by_loading,
}


def write(path: Path, kind: str) -> Path:
    if kind == "dcp":
        return write_dcp(path, 3, STATE)
    path.mkdir(parents=True)
    for name in LAYOUTS[kind]:
        (path / name).write_bytes(name.encode() * 20)
    for name in SMALL.get(kind, ("notes.json",)):
        (path / name).write_text(json.dumps({"global_step": 1}))
    return path


def assert_whole_or_refused(path: Path, kind: str) -> None:
    names = LAYOUTS[kind]
    there = {name for name in names if (path / name).exists()}
    assert there == set(names) or REFUSES[kind.split(maxsplit=1)[0]](path, names), f"only {sorted(there)}"


@pytest.mark.parametrize("kind", LAYOUTS)
def test_while_it_is_replaced_or_put_back(tmp_path, victim, kind):
    """Killed at any call without exchange, and again while it is recovered."""
    for number in itertools.count(1):
        root = tmp_path / str(number)
        checkpoint = write(root / "run" / "step-1", kind)
        store = Store.open_or_create(root / ".ckzd")
        archive = store_archive(store, checkpoint)
        places = {"store": store.root, "checkpoint": checkpoint, "archive": archive, "no_flags": True}
        died = victim(do="replace", die_at=number, **places)["killed"]
        assert_whole_or_refused(checkpoint, kind)
        victim(do="recover", die_at=1 + number % 9, **places)
        assert_whole_or_refused(checkpoint, kind)
        victim(do="recover", **places)
        assert_whole_or_refused(checkpoint, kind)
        shutil.rmtree(root)
        if not died:
            break
    assert number > len(LAYOUTS[kind])


class Killed(BaseException):
    """Nothing of what is tested catches it."""


@pytest.mark.parametrize("kind", LAYOUTS)
def test_while_it_comes_back_file_by_file(tmp_path, kind, monkeypatch):
    real = durable.rename
    for number in itertools.count(1):
        staged, target = write(tmp_path / f"staged-{number}", kind), write(tmp_path / f"step-{number}", kind)
        for name in LAYOUTS[kind]:
            (target / name).unlink()
        (target / "ckzd.json").touch()
        calls = itertools.count(1)

        def struck(source: Path, place: Path, calls=calls, number=number) -> None:
            if next(calls) == number:
                raise Killed
            real(source, place)

        monkeypatch.setattr(durable, "rename", struck)
        try:
            _fill_directory(staged, target)
        except Killed:
            assert (target / "ckzd.json").exists()
            assert_whole_or_refused(target, kind)
        else:
            assert {path.name for path in target.iterdir()} == {*LAYOUTS[kind], *SMALL.get(kind, ("notes.json",))}
            break
    assert number == len(LAYOUTS[kind]) + len(SMALL.get(kind, ("notes.json",))) + 1
