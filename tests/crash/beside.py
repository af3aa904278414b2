"""A live daemon that is killed at any moment, again and again, beside a live writer: nothing is lost, all work is done.

    python tests/crash/beside.py [--kills N] [--seed N]

The writer saves files and directories, rewrites, rotates and renames them, and renames the run, while the daemon runs
and after it was killed. Whatever the writer has not deleted itself must stand in its place as it was last written, or
come back from its pointer bit for bit (all is lossless), once a pass has cleaned up: that is looked at every so many
kills. In the end two passes must leave nothing to do, and nothing half-done. Exit status 1 otherwise.
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

import forks
from wild import Wild, digest

from ckzd.operations.pointer import pointer_for

LOOK_KILLS = 50  # between two looks at everything
LONGEST_SECONDS = 1.5  # of a daemon's life; a tick of it takes 0.02
STEPS = 12  # names that are taken again and again
KEPT = 8  # what rotation leaves


class Writer:
    """A trainer that does everything trainers do, one thing at a time."""

    def __init__(self, wild: Wild, templates: Path, seed: int) -> None:
        self.wild, self.templates, self.random = wild, sorted(templates.iterdir()), random.Random(seed)
        self.saved = 0

    @property
    def run(self) -> Path:
        return self.wild.run

    def act(self) -> None:
        """One of them."""
        actions = (self._save_file, self._save_file, self._save_directory, self._rotate, self._rename, self._rename_run)
        weights = (6, 6, 4, 6, 2, 1)
        self.random.choices(actions, weights)[0]()

    def _save_file(self) -> None:
        self.saved += 1
        name = f"step_{10 * self.random.randrange(1, STEPS)}.safetensors"
        in_place = (self.run / name).is_file() and self.random.random() < 0.3
        try:
            self.wild.save(name, f"version {self.saved}", in_place=in_place)
        except FileNotFoundError:  # it has just been replaced, and was to be written over where it is
            self.wild.save(name, f"version {self.saved}")

    def _save_directory(self) -> None:
        """As the Trainer: built beside, and renamed; what was there under its name goes."""
        step = 10 * self.random.randrange(1, STEPS)
        path, built = self.run / f"checkpoint-{step}", self.run / f"tmp-checkpoint-{step}"
        shutil.copytree(self.random.choice(self.templates), built)
        (built / "trainer_state.json").write_text(json.dumps({"global_step": step, "best_model_checkpoint": None}))
        self.wild.expected.pop(path, None)
        shutil.rmtree(path, ignore_errors=True)
        if not os.path.lexists(path):
            built.rename(path)
            self.wild.expected[path] = digest(path)
        shutil.rmtree(built, ignore_errors=True)

    def _rotate(self) -> None:
        """The oldest that is there goes; a file that was replaced is not seen."""
        there = [path for path in self.wild.expected if os.path.lexists(path)]
        if len(there) > KEPT:
            path = self.random.choice(there)
            try:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            except FileNotFoundError:
                if os.path.lexists(path) or not path.suffix:
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    return
            self.wild.expected.pop(path)

    def _rename(self) -> None:
        there = [path for path in self.wild.expected if path.is_file() and path.name.startswith("step_")]
        if there:
            path = self.random.choice(there)
            target = path.with_name(path.name.replace("step_", "kept_"))
            try:
                path.rename(target)
            except FileNotFoundError:
                return
            self.wild.expected[target] = self.wild.expected.pop(path)

    def _rename_run(self) -> None:
        new = self.run.with_name("gpt" if self.run.name != "gpt" else "renamed")
        if not new.exists():
            self.run.rename(new)
            self.wild.moved(self.run, new)
            self.wild.run = new


def look(wild: Wild) -> list[str]:
    """What is not as the writer left it, after a pass has cleaned up; what is half-done."""
    status = wild.serve()
    wrong = [f"a pass ended with {status}"] if status not in (0, 3) else []
    for path, sha in wild.expected.items():
        stands = os.path.lexists(path) and not (path.is_dir() and pointer_for(path).exists())
        got = digest(path) if stands else wild.restored(path)
        if got != sha:
            wrong.append(f"{path.relative_to(wild.place)}: {got}")
    left = [*wild.runs.glob(".ckzd/tmp/*"), *wild.runs.glob("*/.ckzd-*")]
    return wrong + [f"left: {path.relative_to(wild.place)}" for path in left]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    began, wrong = time.monotonic(), []
    with tempfile.TemporaryDirectory(dir=memory, prefix="ckzd-beside-") as place:
        forks.in_fork(lambda: _templates(Path(place) / "templates"))
        wild = Wild(Path(place))
        writer = Writer(wild, Path(place) / "templates", arguments.seed)
        wild.serve()  # writes the configuration
        actions = 0
        for number in range(1, arguments.kills + 1):
            actions += _live(wild, writer)
            if number % LOOK_KILLS == 0 or number == arguments.kills:
                found = look(wild)
                wrong += found
                print("".join(f"  after {number} kills: {one}\n" for one in found), end="", flush=True)
        before = {path: path.stat().st_mtime_ns for path in wild.archives()}
        wild.serve()
        raw = [path for path in wild.expected if os.path.lexists(path) and not pointer_for(path).exists()]
        unfinished = bool(raw) or before != {path: path.stat().st_mtime_ns for path in wild.archives()}
    print(
        f"{arguments.kills} kills of a daemon beside {actions} actions of a writer (seed {arguments.seed}):"
        f" {len(wild.expected)} checkpoints at the end, {len(raw)} of them raw, {len(before)} archives;"
        f" {len(wrong)} lost or half-done, {'work is left' if unfinished else 'all work is done'};"
        f" {time.monotonic() - began:.0f} s"
    )
    return 1 if wrong or unfinished else 0


def _live(wild: Wild, writer: Writer) -> int:
    """One life of a daemon; how much the writer did meanwhile."""
    pid = forks.start(["serve", "--config", str(wild.work / "ckzd.toml")], wild.work)
    until, actions = time.monotonic() + writer.random.uniform(0.02, LONGEST_SECONDS), 0
    while time.monotonic() < until:
        writer.act()
        actions += 1
        time.sleep(writer.random.uniform(0.0, 0.1))
    forks.kill(pid)
    return actions


def _templates(place: Path) -> None:
    from scenes import train_directories

    train_directories(place, tuple(range(10, 70, 10)))


if __name__ == "__main__":
    sys.exit(main())
