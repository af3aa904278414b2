"""What a framework, a person or a file system holds by name is never replaced."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from serving import write_checkpoint

from ckzd.daemon.identity import fingerprint
from ckzd.daemon.protect import Protection
from ckzd.daemon.settle import FormatsRule, NotReadYet
from ckzd.errors import BadCheckpoint
from ckzd.formats.frameworks.markers import named_in_markers

asked = Protection(FormatsRule())


@pytest.fixture
def run(tmp_path) -> Path:
    path = tmp_path / "runs" / "gpt"
    path.mkdir(parents=True)
    return path


def held(run: Path, *paths: Path) -> dict[str, str]:
    seen = [(path, fingerprint(path)) for path in paths]
    return {path.name: why for path, why in asked.held(run.parent, run, seen).items()}


def write(run: Path, *names: str) -> list[Path]:
    return [write_checkpoint(run / name) for name in names]


def write_trainer(run: Path, step: int, best: str | None, mtime: int) -> Path:
    folder = run / f"checkpoint-{step}"
    write_checkpoint(folder / "model.safetensors")
    state = folder / "trainer_state.json"
    state.write_text(json.dumps({"global_step": step, "best_model_checkpoint": best}))
    os.utime(state, (mtime, mtime))
    return folder


def write_lightning(run: Path, name: str, best: str, mtime: int) -> Path:
    callback = {"monitor": "loss", "best_model_score": torch.tensor(1.0), "best_model_path": best}
    state = {"callbacks": {"ModelCheckpoint{'monitor': 'loss'}": callback}, "state_dict": {"w": torch.zeros(4)}}
    torch.save(state, run / name)
    os.utime(run / name, (mtime, mtime))
    return run / name


def test_ordinary_checkpoints_are_not_held(run):
    assert held(run, *write(run, "step_1.pt", "blast_2.pt", "lastly-3.pt", "epoch=1-step=200.ckpt")) == {}


@pytest.mark.parametrize(
    "name", ["best.pt", "model_best.pth.tar", "last.ckpt", "last-v1.ckpt", "checkpoint-latest.pt", "BEST_model.pt"]
)
def test_a_name_that_says_best_last_or_latest(run, name):
    assert "its name says" in held(run, *write(run, name))[name]


@pytest.mark.parametrize("place", ["run", "beside"])
@pytest.mark.parametrize("absolute", [True, False])
def test_a_symlink_in_the_run_or_beside_it(run, place, absolute):
    first, _ = write(run, "step_1.pt", "step_2.pt")
    link = (run if place == "run" else run.parent) / "resume-from-here"
    link.symlink_to(first if absolute else os.path.relpath(first, link.parent))

    assert held(run, first, run / "step_2.pt") == {"step_1.pt": "a symlink points to it"}


def test_a_symlink_in_a_directory_of_the_run(run):
    first, second = write(run, "step_1.pt", "step_2.pt")
    (run / "best").mkdir()
    (run / "best" / "model.pt").symlink_to("../step_1.pt")

    assert held(run, first, second) == {"step_1.pt": "a symlink points to it"}


def test_a_symlink_into_a_directory(run):
    folder = write_trainer(run, 5, None, 1)
    (run / "weights").symlink_to(folder / "model.safetensors")

    assert held(run, folder) == {"checkpoint-5": "a symlink points to it"}


def test_symlinks_that_lead_nowhere_or_in_circles_hold_nothing(run):
    (run / "a").symlink_to("b")
    (run / "b").symlink_to("a")
    (run / "c").symlink_to("absent")

    assert held(run, *write(run, "step_1.pt")) == {}


def test_another_hard_link(run, tmp_path):
    first, second = write(run, "step_1.pt", "step_2.pt")
    os.link(second, tmp_path / "kept")
    folder = write_trainer(run, 5, None, 1)
    os.link(folder / "model.safetensors", tmp_path / "too")

    assert held(run, first, second, folder) == dict.fromkeys(
        ["step_2.pt", "checkpoint-5"], "it has another name (hard link)"
    )


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("latest", "global_step2"),  # DeepSpeed
        ("latest", "global_step2\n"),
        ("latest_checkpointed_iteration.txt", "2"),  # Megatron
        ("best.json", '{"path": "/ckpts/gpt/global_step2"}'),
    ],
)
def test_a_marker_file(run, marker, text):
    paths = write(run, "global_step1", "global_step2")
    (run / marker).write_text(text)

    assert held(run, *paths) == {"global_step2": "a marker file names it"}


@pytest.mark.parametrize(
    ("marker", "text"),
    [
        ("latest", "step_200"),  # without its suffix
        ("latest", "\ufeffstep_200.pt\r\n"),
        ("latest", "run=step_200.pt;"),
        ("best.json", '[{"file":"step_200.pt"}]'),
        ("best.json", json.dumps({"history": [0.5] * 2000, "best": "step_200.pt"})),
        ("latest.json", '{"step": 200}'),
        ("bestModel.txt", "step_200.pt"),
        ("checkpoint", 'model_checkpoint_path: "step_200.pt"'),
    ],
)
def test_a_marker_in_other_words(run, marker, text):
    paths = write(run, "step_100.pt", "step_200.pt")
    (run / marker).write_text(text)

    assert held(run, *paths) == {"step_200.pt": "a marker file names it"}


@pytest.mark.parametrize("text", ["release", "", "global_step22", "x" * 100_000])
def test_a_marker_that_names_none_of_them(run, text):
    (run / "latest").write_text(text)

    assert held(run, *write(run, "global_step1", "global_step2")) == {}


@pytest.mark.parametrize(
    ("level", "marker", "text"),
    [
        (1, "latest", "step_10\n"),
        (1, "latest", "/ckpts/gpt/deeper/step_10"),
        (1, "latest_checkpointed_iteration.txt", "10"),
        (2, "latest", "deeper/step_10"),
        (2, "last_checkpoint", "deeper/step_10/net.pt\n"),
        (2, "latest", "step_10"),
        (3, "best.json", '{"checkpoint": "/ckpts/gpt/deeper/step_10"}'),
    ],
)
def test_a_marker_above_holds_all_that_is_in_the_directory_that_it_names(run, level, marker, text):
    folder = run / "deeper" / "step_10"
    (net,) = write(folder, "net.pt")
    (other,) = write(run / "deeper" / "step_20", "other.pt")
    (folder.parents[level - 1] / marker).write_text(text)

    assert asked.held(run.parent, folder, [(net, fingerprint(net))]) == {net: "a marker file names it"}
    assert asked.held(run.parent, other.parent, [(other, fingerprint(other))]) == {}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_symlink_above_holds_all_that_is_in_the_directory_that_it_leads_to(run, level):
    folder = run / "deeper" / "step_10"
    (net,) = write(folder, "net.pt")
    (other,) = write(run / "deeper" / "step_20", "other.pt")
    (folder.parents[level - 1] / "newest").symlink_to(folder)

    assert asked.held(run.parent, folder, [(net, fingerprint(net))]) == {net: "a symlink points to it"}
    assert asked.held(run.parent, other.parent, [(other, fingerprint(other))]) == {}


@pytest.mark.parametrize("text", ["/ckpts/gpt/step_1.pt", "gpt/step_1.pt"])
def test_a_marker_above_that_names_one_checkpoint_holds_that_one(run, text):
    paths = write(run, "step_1.pt", "step_2.pt")
    (run.parent / "latest").write_text(text)

    assert held(run, *paths) == {"step_1.pt": "a marker file names it"}


def test_links_to_the_watched_directory_itself_and_markers_outside_it_hold_nothing(run):
    (run.parent / "again").symlink_to(run.parent)
    (run.parent.parent / "latest").write_text("gpt")

    assert held(run, *write(run, "step_1.pt")) == {}


def test_the_trainer_s_best_is_what_its_newest_state_says(run):
    paths = [
        write_trainer(run, 100, "out/checkpoint-100", mtime=1),
        write_trainer(run, 200, "out/checkpoint-100", mtime=2),
        write_trainer(run, 300, "/elsewhere/checkpoint-200", mtime=3),
    ]
    why = "best_model_checkpoint in trainer_state.json names it"
    assert held(run, *paths) == {"checkpoint-200": why}

    (paths[2] / "trainer_state.json").write_text('{"global_step": 300, "best_model')  # being written
    os.utime(paths[2] / "trainer_state.json", (3, 3))
    assert held(run, *paths) == {"checkpoint-100": why}


@pytest.mark.parametrize(
    "text", ["[]", "null", '{"best_model_checkpoint": 5}', "\ud800".encode("utf-8", "replace").decode()]
)
def test_a_strange_trainer_state_holds_nothing(run, text):
    folder = write_trainer(run, 100, None, mtime=1)
    (folder / "trainer_state.json").write_text(text)

    assert held(run, folder) == {}


def test_lightning_s_best_is_what_its_newest_checkpoint_says(run):
    first = write_lightning(run, "epoch=0-step=10.ckpt", "", mtime=1)
    second = write_lightning(run, "epoch=1-step=20.ckpt", str(first), mtime=2)
    third = write_lightning(run, "epoch=2-step=30.ckpt", str(second), mtime=3)

    assert held(run, first, second, third) == {second.name: "Lightning's best_model_path names it"}
    third.write_bytes(third.read_bytes()[:-100])  # being written
    os.utime(third, (3, 3))
    assert held(run, first, second, third) == {first.name: "Lightning's best_model_path names it"}


def test_a_torch_checkpoint_without_callbacks_holds_nothing(run):
    torch.save({"callbacks": [1], "state_dict": {}}, run / "a.ckpt")
    torch.save([1, 2], run / "b.ckpt")

    assert held(run, run / "a.ckpt", run / "b.ckpt") == {}


def test_what_vanishes_meanwhile_is_no_error(run):
    (first,) = write(run, "step_1.ckpt")
    seen = [(first, fingerprint(first)), (run / "gone.ckpt", fingerprint(first))]
    first.unlink()
    run.rmdir()

    assert asked.held(run.parent, run, seen) == {}


@pytest.mark.parametrize("odd", ["pipe", "deep", "device", "loop", "directory"])
@pytest.mark.parametrize("name", ["trainer_state.json", "notes/trainer_state.json", "latest", "best.txt", "last.ckpt"])
def test_an_odd_marker_stops_nothing(run, odd, name):
    place = run / name
    place.parent.mkdir(exist_ok=True)
    make = {
        "pipe": lambda: os.mkfifo(place),
        "deep": lambda: place.write_text("[" * 100_000),
        "device": lambda: place.symlink_to("/dev/zero"),
        "loop": lambda: place.symlink_to(place.name),
        "directory": place.mkdir,
    }
    make[odd]()
    folder = write_trainer(run, 100, "elsewhere/step_1.pt", mtime=1)
    assert held(run, *write(run, "step_1.pt"), folder) == {
        "step_1.pt": "best_model_checkpoint in trainer_state.json names it"
    }


class Slow(FormatsRule):
    """Has no answer at first, and refuses files that are called bad."""

    asked = 0

    def best_models(self, checkpoint):
        self.asked += 1
        if self.asked == 1:
            raise NotReadYet(checkpoint, "is being read")
        if "bad" in checkpoint.name:
            raise BadCheckpoint(checkpoint, "cannot be read")
        return super().best_models(checkpoint)


def test_until_a_lightning_checkpoint_is_read_everything_is_held_and_it_is_read_once(run):
    first = write_lightning(run, "epoch=0-step=10.ckpt", "", mtime=1)
    second = write_lightning(run, "epoch=1-step=20.ckpt", str(first), mtime=2)
    bad = write_lightning(run, "bad.ckpt", "", mtime=3)
    paths, rule = [first, second, bad], Slow()
    protection, seen = Protection(rule), [(path, fingerprint(path)) for path in paths]

    assert [*protection.held(run.parent, run, seen)] == paths
    for _ in range(3):
        assert protection.held(run.parent, run, seen) == {first: "Lightning's best_model_path names it"}
    assert rule.asked == 3


def test_a_marker_with_thousands_of_parts_takes_no_time(run):
    paths = [write_checkpoint(run / f"step_{step}.pt") for step in (1, 2)]
    (run / "latest").write_text("../" * 1300 + "gpt/step_2.pt")
    began = time.process_time()
    assert set(named_in_markers(run, paths)) == {paths[1]}
    assert time.process_time() - began < 0.5
