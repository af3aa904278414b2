"""The original or a verified archive exists, and can be found, after a crash at any instant of a replacement.

Every instant is one call that changes the disk: the victim is killed before the first, the second, ... until it gets
through. Then a new process recovers. So it goes for a file and a directory, on a file system with the flags of
renameat2 and on one without.
"""

import itertools
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from making import store_archive, tree_of
from on_disk import unnamed

from ckzd.archive import ArchiveReader
from ckzd.operations.replace import pointer_for, resolve
from ckzd.store import Store

METHODS = ("file", "file without flags", "files", "files without flags", "exchange", "pieces")
FILES = ("model_100.pt", "optimizer_100.pt")
OF_FILES = [
    *("intent", *(f"pointer {name}" for name in FILES), *(f"moved {name}" for name in FILES), "checked", "verified")
]
STEPS = {
    "file without flags": ["intent", "pointer", "moved", "checked", "verified"],
    "file": ["intent", "pointer", "moved", "checked", "verified"],
    "files": OF_FILES,
    "files without flags": OF_FILES,
    "exchange": ["intent", "prepared", "exchanged", "checked", "verified"],
    "pieces": ["intent", "prepared", "pointer", "moved model.bin", "moved inner/optimizer.bin", "checked", "verified"],
}
LAST_MOVE = {method: steps[-3] for method, steps in STEPS.items()}
DIRECTORY_TIME = 10**18 + 7


@dataclass
class Scene:
    """A run with one checkpoint, archived in a store."""

    root: Path
    method: str

    def __post_init__(self) -> None:
        run = self.root / "run"
        run.mkdir(parents=True)
        self.store = Store.open_or_create(self.root / ".ckzd")
        names = FILES if self.is_of_several else ["step_100.pt" if self.is_file else "checkpoint-100"]
        self.places = [run / name for name in names]
        self.checkpoint, *others = self.places
        if self.is_file:
            for place in self.places:
                place.write_bytes(place.name.encode() * 50)
                os.utime(place, ns=(10**18, 10**18 + 3))
        else:
            (self.checkpoint / "inner").mkdir(parents=True)
            for name in ("model.bin", "inner/optimizer.bin", "trainer_state.json"):
                (self.checkpoint / name).write_bytes(name.encode() * 50)
                os.utime(self.checkpoint / name, ns=(10**18, 10**18 + 3))
            for place in (self.checkpoint / "inner", self.checkpoint):
                os.utime(place, ns=(10**18, DIRECTORY_TIME))
        self.archive = store_archive(self.store, self.checkpoint, *others)
        self.before = tree_of(self.checkpoint)
        self.others = {place: tree_of(place) for place in others}

    @property
    def is_of_several(self) -> bool:
        return self.method.startswith("files")

    @property
    def is_file(self) -> bool:
        return self.method.startswith("file")

    def order(self, victim, do: str = "replace", **fields) -> dict:
        places = {"store": self.store.root, "checkpoint": self.checkpoint, "archive": self.archive}
        return victim(
            do=do, no_flags=self.method.endswith("without flags") or self.method == "pieces", **places, **fields
        )

    def is_original(self) -> bool:
        """All is in its place, as it was; a pointer may stand beside it."""
        if not all(map(os.path.lexists, self.places)):
            return False
        if any(tree_of(place) != before for place, before in self.others.items()):
            return False
        now = tree_of(self.checkpoint)
        now.pop("ckzd.json", None)
        if self.method == "pieces":  # between two of its steps the time of the directory is that of the step
            return {name: file[0] for name, file in now.items()} == {
                name: file[0] for name, file in self.before.items()
            }
        return now == self.before

    def is_archived(self) -> bool:
        """The pointer stands and leads to a whole archive, that of every file of several."""
        return all(map(self.is_pointed, self.places))

    def is_pointed(self, place: Path) -> bool:
        if not pointer_for(place).is_file():
            return False
        with ArchiveReader(resolve(pointer_for(place)).path) as archive:
            archive.check()
        return True

    def assert_nothing_is_lost(self) -> None:
        assert unnamed({"STORE": self.store.root, "RUN": self.checkpoint.parent}) == []
        if self.is_of_several:  # some may have gone: each is there, or its archive is, and no model alone
            assert all(tree_of(p) == old if p.exists() else self.is_pointed(p) for p, old in self.others.items())
            assert self.is_pointed(self.checkpoint) or tree_of(self.checkpoint) == self.before
            assert not (self.checkpoint.exists() and not all(place.exists() for place in self.places))
        else:
            assert self.is_original() or self.is_archived()
        if not self.is_file:  # Hugging Face resumes from such a directory with a fresh Adam, and says nothing
            model, optimizer = self.checkpoint / "model.bin", self.checkpoint / "inner/optimizer.bin"
            assert optimizer.exists() or not model.exists()
        with ArchiveReader(self.archive) as archive:
            archive.check()

    def assert_clean(self) -> str:
        """Either end of a replacement, and nothing half-done anywhere. Tells which end."""
        assert list(self.store.tmp.iterdir()) == []
        assert all((entry / "verified").exists() for entry in self.store.trash.iterdir())
        if not self.is_file:
            for place in (self.checkpoint, self.checkpoint / "inner"):
                assert place.stat().st_mtime_ns == DIRECTORY_TIME
        run = {path.name for path in self.checkpoint.parent.iterdir()}
        if not any(self.store.trash.iterdir()):
            assert tree_of(self.checkpoint) == self.before
            assert all(tree_of(place) == before for place, before in self.others.items())
            assert run == {place.name for place in self.places}
            return "original"
        assert self.is_archived()
        if self.is_file:
            assert run == {f"{place.name}.ckz" for place in self.places}
        else:
            assert {path.name for path in self.checkpoint.iterdir()} == {"ckzd.json", "trainer_state.json", "inner"}
        (entry,) = self.store.trash.iterdir()
        held = tree_of(entry / "held" / self.checkpoint.name)
        assert all(held[name][0] == file[0] for name, file in self.before.items() if name in held)
        return "replaced"


def scenes(place: Path, method: str):
    """A fresh scene for every instant."""
    for number in itertools.count(1):
        root = place / str(number)
        yield number, Scene(root, method)
        shutil.rmtree(root)


@pytest.mark.parametrize(("method", "step"), [(method, step) for method in METHODS for step in STEPS[method]])
def test_killed_after_a_step(tmp_path, victim, method, step):
    scene = Scene(tmp_path, method)
    assert scene.order(victim, die_after=step)["killed"]
    scene.assert_nothing_is_lost()
    scene.order(victim, "recover")
    late = step in {"moved", "moved inner/optimizer.bin", "moved optimizer_100.pt", "exchanged", "checked", "verified"}
    assert scene.assert_clean() == ("replaced" if late else "original")
    assert scene.order(victim, "recover")["result"] == []
    scene.order(victim)
    assert scene.assert_clean() == "replaced"


@pytest.mark.parametrize("method", METHODS)
def test_killed_before_any_call(place, victim, method):
    ends = []
    for number, scene in scenes(place, method):
        died = scene.order(victim, die_at=number)["killed"]
        scene.assert_nothing_is_lost()
        scene.order(victim, "recover")
        ends.append(scene.assert_clean())
        assert scene.order(victim, "recover")["result"] == []
        assert scene.assert_clean() == ends[-1]
        if not died:
            break
    assert ends[0] == "original"
    assert ends[-1] == "replaced"
    assert ends == sorted(ends)  # there is one instant from which on it is replaced
    assert len(ends) > 15


@pytest.mark.parametrize("strike", ["die_at", "fail_at"])
@pytest.mark.parametrize("method", METHODS)
def test_replaced_again_before_anybody_recovers(place, victim, method, strike):
    """The second run succeeds and its original is deleted; then a daemon starts, and finds what the first run left."""
    for number, scene in scenes(place, method):
        answer = scene.order(victim, **{strike: number})
        scene.order(victim)
        scene.assert_nothing_is_lost()
        scene.order(victim, "empty")
        scene.assert_nothing_is_lost()
        scene.order(victim, "recover")
        scene.order(victim, "empty")
        assert scene.is_archived()
        assert list(scene.store.trash.iterdir()) == []
        if not answer["killed"] and answer.get("calls", number) < number:
            break


@pytest.mark.parametrize(("method", "error"), [*((method, "EIO") for method in METHODS), ("exchange", "ENOSPC")])
def test_any_call_fails(place, victim, method, error):
    """An error is not a crash: the call returns, and has put everything back already, or `recover` does."""
    for number, scene in scenes(place, method):
        answer = scene.order(victim, fail_at=number, error=error)
        scene.assert_nothing_is_lost()
        if "error" in answer:
            assert answer["error"] in {"OSError", "NoSpace"}
        scene.order(victim, "recover")
        end = scene.assert_clean()
        if "error" not in answer and end == "replaced" and answer["calls"] < number:
            break


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("late", [True, False])
def test_killed_while_recovering(place, victim, method, late):
    """From a state that recovery finishes, and from one that it undoes."""
    step = LAST_MOVE[method]
    for number, scene in scenes(place, method):
        assert scene.order(victim, die_after=step if late else STEPS[method][STEPS[method].index(step) - 1])["killed"]
        died = scene.order(victim, "recover", die_at=number)["killed"]
        scene.assert_nothing_is_lost()
        scene.order(victim, "recover")
        assert scene.assert_clean() == ("replaced" if late else "original")
        if not died:
            break


@pytest.mark.parametrize("method", METHODS)
def test_killed_while_putting_a_changed_original_back(place, victim, method):
    """The content changed after it was archived: recovery has to put it back, however often it is killed."""
    step = LAST_MOVE[method]
    for number, scene in scenes(place, method):
        assert scene.order(victim, die_after=step)["killed"]
        (entry,) = scene.store.trash.iterdir()
        held = entry / "held" / scene.places[-1].name
        changed = held if scene.is_file else held / "inner/optimizer.bin"
        changed.write_bytes(b"x" * changed.stat().st_size)
        died = scene.order(victim, "recover", die_at=number)["killed"]
        scene.order(victim, "recover")
        assert list(scene.store.trash.iterdir()) == []
        back = scene.places[-1] if scene.is_file else scene.checkpoint / "inner/optimizer.bin"
        assert set(back.read_bytes()) == {ord("x")}
        assert not any(pointer_for(place).exists() for place in scene.places)
        assert not scene.is_of_several or tree_of(scene.checkpoint) == scene.before
        if not scene.is_file:
            assert scene.checkpoint.stat().st_mtime_ns == DIRECTORY_TIME
            assert (scene.checkpoint / "model.bin").read_bytes() == b"model.bin" * 50
        if not died:
            break


@pytest.mark.parametrize("method", METHODS)
def test_killed_while_emptying_the_trash(place, victim, method):
    for number, scene in scenes(place, method):
        scene.order(victim)
        died = scene.order(victim, "empty", die_at=number)["killed"]
        assert scene.is_archived()
        assert scene.order(victim, "recover")["result"] == []
        scene.order(victim, "empty")
        assert list(scene.store.trash.iterdir()) == []
        if not died:
            break


REPLACE = (
    "import sys; from pathlib import Path; from ckzd.store import Store; from ckzd.operations.replace import replace\n"
    "replace(Path(sys.argv[1]), Path(sys.argv[2]), Store.open(Path(sys.argv[3])))"
)


def strace(injection: str, *command: object) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("strace")
    if tool is None:
        pytest.skip("needs strace")
    traced = injection.split(":", maxsplit=1)[0]
    run = [
        tool,
        "-f",
        "-qq",
        "-o",
        "/dev/null",
        "-e",
        f"trace={traced}",
        "-e",
        f"inject={injection}",
        *map(str, command),
    ]
    finished = subprocess.run(run, capture_output=True, text=True, check=False)
    if "ptrace" in finished.stderr:
        pytest.skip(f"may not trace: {finished.stderr}")
    return finished


@pytest.mark.parametrize(
    ("method", "injection"),
    [
        ("file", "fsync:error=EIO:when=1"),
        ("file", "fsync:error=EIO:when=8"),
        ("file", "fsync:error=EIO:when=12"),
        ("file", "rename:error=EIO:when=3"),
        ("exchange", "fsync:error=EIO:when=12"),
        ("exchange", "fsync:error=EIO:when=16"),
        ("exchange", "renameat2:error=EIO:when=2"),
        ("exchange", "renameat2:signal=KILL:when=2"),
        ("exchange", "write:error=ENOSPC:when=2+"),
    ],
)
def test_the_kernel_says_no(tmp_path, victim, method, injection):
    """The same at the real system calls, whoever makes them."""
    scene = Scene(tmp_path, method)
    finished = strace(injection, sys.executable, "-c", REPLACE, scene.checkpoint, scene.archive, scene.store.root)
    assert finished.returncode != 0
    scene.assert_nothing_is_lost()
    scene.order(victim, "recover")
    assert scene.assert_clean() == "original"
