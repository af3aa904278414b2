"""What is struck: a run with a store beside it, a command, and what must be true of every checkpoint whatever happens.

PLACE/run/     the checkpoints
PLACE/store/   the archives
PLACE/state/   the daemon's
"""

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import forks

sys.path.append(str(Path(__file__).parent.parent))
from on_disk import unnamed

from ckzd.archive import ArchiveReader
from ckzd.chains import is_whole
from ckzd.locks import Process
from ckzd.operations.pointer import pointer_for
from ckzd.operations.replace import replace
from ckzd.store import Store

STEPS, MORE = (10, 20), 30  # MORE: in runs that are pruned, an archive that needs none of the others
CONFIG = """
[[watch]]
path = {run}
store = {store}
replace = true
preset = "lossless"
keep_raw = 0
settle_seconds = 0
trash_seconds = 0
{keep}
[daemon]
state_dir = {state}
port = 0
"""
KEEP, SLIM = "[watch.keep]\nnewest = 1\n", "[watch.keep]\nmoments = 1\n"
_LARGE = {"file": ("",), "files": ("",), "directory": ("model.safetensors", "inner/optimizer.pt")}
_SMALL = {"file": (), "files": (), "directory": ("config.json", "trainer_state.json", "inner/meta.json")}
_DEAD = Process(Process.this().boot, Process.this().namespace, 1, "1")
# into a replaced directory
_LATER = {"notes.txt": "written by training", "config.json": '{"edited": true}', "inner/notes.txt": "likewise"}


@dataclass(frozen=True)
class Scenario:
    """A command that is struck, after other commands have prepared its place. `{}` stands for the place."""

    name: str
    kind: str  # "file", "files" (two of each step, which are one checkpoint) or "directory"
    command: str
    before: tuple[str, ...] = ()
    killed_after: str = ""  # the command was killed before, at the call after the first that holds this
    written_later: bool = False  # training has written into the replaced directories
    rotten: str = ""  # of this checkpoint the archive is damaged, after these commands
    has_copies: bool = False  # there are copies of all archives, which are not
    in_trash: str = ""  # this checkpoint was replaced, and lies in the trash still
    targets: tuple[tuple[str, int], ...] = (("command", 1),)  # role and number of the processes that are struck
    pruned: tuple[int, ...] = ()  # steps that [watch.keep] lets go: in the end nothing of them is left
    slimmed: tuple[int, ...] = ()  # steps of which it keeps the weights alone: in the end nothing else of them is left
    litter: bool = False  # the place is full of what nothing needs: in the end there is none of it


_COMPRESS = "compress {} --preset lossless --store PLACE/store --replace"
_KEEP = _COMPRESS.removesuffix(" --replace")
_CHECK = "check PLACE/run --store PLACE/store"
_FILE, _DIRECTORY = (
    ("PLACE/run/step_10.pt", "PLACE/run/step_20.pt"),
    ("PLACE/run/checkpoint-10", "PLACE/run/checkpoint-20"),
)
_FILES = ("PLACE/run/model_10.pt", "PLACE/run/optimizer_20.pt")
_SERVE = "serve --once --config CONFIG"
_PRUNE = "prune --config CONFIG"
_MERGE = "merge --config CONFIG"
_PROVEN = (("command", 1), ("verifier", 1))
_GC = "gc --config CONFIG --gone-runs --damaged-days 0"


def _apart(paths: tuple[str, str], more: str) -> tuple[str, ...]:
    """The last one first, as a base; then a base and a delta that may go."""
    return tuple(map(_COMPRESS.format, (more, *paths)))


def _chained(paths: tuple[str, str], more: str) -> tuple[str, ...]:
    """A base and two deltas with moments, of which the last carries the others in the end."""
    return tuple(_COMPRESS.format(path).replace("lossless", "resume") for path in (*paths, more))


SCENARIOS = [
    Scenario("file", "file", _COMPRESS.format(_FILE[0])),
    Scenario(
        "file, delta",
        "file",
        _COMPRESS.format(_FILE[1]).replace("lossless", "resume"),
        (_COMPRESS.format(_FILE[0]).replace("lossless", "resume"),),
        targets=_PROVEN,
    ),
    Scenario("directory", "directory", _COMPRESS.format(_DIRECTORY[1]), (_COMPRESS.format(_DIRECTORY[0]),)),
    Scenario("file, after a kill", "file", _COMPRESS.format(_FILE[0]), killed_after='/step_10.pt.ckz"'),
    Scenario("directory, after a kill", "directory", _COMPRESS.format(_DIRECTORY[0]), killed_after="RENAME_EXCHANGE"),
    Scenario("serve, file", "file", _SERVE, (_COMPRESS.format(_FILE[0]),), targets=(("worker", 1), ("command", 1))),
    Scenario("serve, directory", "directory", _SERVE, (_COMPRESS.format(_DIRECTORY[0]),), targets=(("worker", 1),)),
    Scenario(
        "check, copy",
        "file",
        f"{_CHECK} PLACE/copies",
        (_COMPRESS.format(_FILE[0]), _COMPRESS.format(_FILE[1])),
        rotten="step_10.pt",
        has_copies=True,
    ),
    Scenario(
        "check, original",
        "file",
        _CHECK,
        (
            _KEEP.format(_FILE[0]).replace("lossless", "resume"),
            _COMPRESS.format(_FILE[1]).replace("lossless", "resume"),
        ),
        rotten="step_10.pt",
        targets=_PROVEN,
    ),
    Scenario(
        "check, trash",
        "file",
        _CHECK,
        (_KEEP.format(_FILE[0]), _COMPRESS.format(_FILE[1])),
        in_trash="step_10.pt",
        rotten="step_10.pt",
    ),
    Scenario(
        "check, directory",
        "directory",
        _CHECK,
        (_KEEP.format(_DIRECTORY[0]), _COMPRESS.format(_DIRECTORY[1])),
        rotten="checkpoint-10",
    ),
    Scenario("files", "files", _COMPRESS.format(_FILES[1]), (_COMPRESS.format(_FILES[0]),)),
    Scenario("files, after a kill", "files", _COMPRESS.format(_FILES[0]), killed_after='/model_10.pt.ckz"'),
    Scenario("serve, files", "files", _SERVE, (_COMPRESS.format(_FILES[0]),), targets=(("worker", 1),)),
    Scenario("restore, files", "files", f"restore {_FILES[1]}", (_SERVE,)),
    Scenario("restore, file", "file", f"restore {_FILE[1]}", (_SERVE,)),
    Scenario("restore, directory", "directory", f"restore {_DIRECTORY[1]}", (_SERVE,), written_later=True),
    Scenario("prune, file", "file", _PRUNE, _apart(_FILE, "PLACE/run/step_30.pt"), pruned=STEPS),
    Scenario("prune, directory", "directory", _PRUNE, _apart(_DIRECTORY, "PLACE/run/checkpoint-30"), pruned=STEPS),
    Scenario(
        "serve, prune",
        "directory",
        _SERVE,
        _apart(_DIRECTORY, "PLACE/run/checkpoint-30"),
        pruned=STEPS,
        targets=(("worker", 1), ("command", 1)),
    ),
    Scenario(
        "prune, moments",
        "file",
        _PRUNE,
        tuple(_COMPRESS.format(path).replace("lossless", "resume") for path in _FILE),
        slimmed=STEPS[:1],
    ),
    Scenario("merge, file", "file", _MERGE, _chained(_FILE, "PLACE/run/step_30.pt"), pruned=STEPS, targets=_PROVEN),
    Scenario("merge, directory", "directory", _MERGE, _chained(_DIRECTORY, "PLACE/run/checkpoint-30"), pruned=STEPS),
    Scenario("gc", "file", _GC, (_SERVE,), litter=True),
]


@dataclass(frozen=True)
class Kept:
    """A checkpoint: sha256 of what may stand for each large file, and of the small files that always stand there."""

    path: Path
    large: dict[str, set[str | None]]
    small: dict[str, str | None]
    may_go: bool = False
    weights: str | None = None  # of what is to lose its moments: sha256 of its weights alone


@dataclass
class Stage:
    """A scenario set up once, and again before every blow, beside the runs that `train` made."""

    scenario: Scenario
    trained: Path
    kept: list[Kept] = field(default_factory=list)
    killer: forks.Aim | None = None
    restored: dict[tuple[str | None, ...], dict[str, str | None]] = field(default_factory=dict)  # the same bytes once

    @property
    def work(self) -> Path:
        return self.trained / self.scenario.name.replace(",", "").replace(" ", "-")

    @property
    def place(self) -> Path:
        return self.work / "place"

    def build(self) -> None:
        """Do what comes before the command; find out to what the archives restore."""
        template = self.work / "template"
        longer = ", longer" if self.scenario.pruned else ""
        shutil.copytree(self.trained / f"{self.scenario.kind} run{longer}", self.place / "run")
        paths = sorted((self.place / "run").iterdir())
        large, small = _LARGE[self.scenario.kind], _SMALL[self.scenario.kind]
        originals = [{name: digest(path / name) for name in large} for path in paths]
        for command in self.scenario.before:
            self.must_run(command)
        if self.scenario.litter:
            self._litter()
        if self.scenario.written_later:
            for path in paths:
                for name, text in _LATER.items():
                    (path / name).write_text(text)
        small += tuple(_LATER) if self.scenario.written_later else ()
        self._harm()
        shutil.copytree(self.place, template)
        if self.scenario.killed_after:
            self.killer = self._call_after(self.scenario.killed_after)
            self.reset()
        going = [path for path in paths if path.stem.endswith(tuple(f"{step}" for step in self.scenario.pruned))]
        before = {path: _restored(path, self, large) for path in going}
        slim = [path for path in paths if path.stem.endswith(tuple(f"{step}" for step in self.scenario.slimmed))]
        before |= {path: _restored(path, self, large) for path in slim}
        weights = {path: _weights(path, self) for path in slim}
        self.run(self.scenario.command)
        self.must_run(_SERVE)
        for path, original in zip(paths, originals, strict=True):
            restored = before.get(path) or _restored(path, self, large)
            accepted = {name: {original[name], restored[name]} for name in large}
            wanted = {} if path in going else {name: digest(path / name) for name in small}
            self.kept.append(Kept(path, accepted, wanted, path in going, weights.get(path)))
        self.reset()

    def _litter(self) -> None:
        """What nothing needs, of every kind."""
        gone, store = self.place / "gone", self.place / "store"
        shutil.copytree(self.place / "run", gone)
        shutil.copy(self.trained / "file run" / "step_10.pt", gone / "step_5.pt")
        self.must_run("compress PLACE/gone/step_5.pt --preset lossless --store PLACE/store")
        shutil.rmtree(gone)
        archives = next(path for path in store.glob("archives/run-*"))
        for path in (
            store / "tmp" / f"{_DEAD}-aaaa.ckz",
            store / "tmp" / f"{_DEAD}-bbbb.restore" / "model.safetensors",
            store / "cache" / f".ckzd-{_DEAD}-cccc.tmp",
            store / "cache" / f"{'f' * 64}.rec",
            self.place / "run" / f".ckzd-{_DEAD}-dddd.tmp",
            archives / "step_1.pt.ckz.00000000.damaged",
        ):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x" * 100)

    def _harm(self) -> None:
        """What the disk does to an archive, and what there is to heal it from."""
        scenario, store = self.scenario, self.place / "store"
        if scenario.in_trash:
            (archive,) = store.glob(f"archives/*/{scenario.in_trash}.*.ckz")
            forks.in_fork(lambda: replace(self.place / "run" / scenario.in_trash, archive, Store.open(store)))
        if scenario.has_copies:
            shutil.copytree(next((store / "archives").iterdir()), self.place / "copies")
        if scenario.rotten:
            (archive,) = store.glob(f"archives/*/{scenario.rotten}.*.ckz")
            with ArchiveReader(archive) as reader:
                offset = reader._members[reader.entries()[0]].data_offset
            data = bytearray(archive.read_bytes())
            data[offset + 1] ^= 1
            archive.write_bytes(data)

    def _call_after(self, text: str) -> forks.Aim:
        calls = self.run(self.scenario.command, forks.Aim("command")).calls
        call = calls[1 + next(number for number, call in enumerate(calls) if text in call.text)]
        return forks.Aim("command", 1, f"{call.name}:signal=KILL:when={call.number}")

    def reset(self) -> None:
        """As it was before the command. What a kill leaves is made again, not copied: recovery goes by inodes."""
        shutil.rmtree(self.place)
        shutil.copytree(self.work / "template", self.place)
        if self.killer is not None:
            self.run(self.scenario.command, self.killer)

    def run(self, command: str, aim: forks.Aim | None = None, place: Path | None = None) -> forks.Finished:
        place = place or self.place
        config = self.work / "config.toml"
        values = {name: json.dumps(str(place / name)) for name in ("run", "store", "state")}
        config.write_text(CONFIG.format(**values, keep=self._keep()))
        words = command.replace("PLACE", str(place)).replace("CONFIG", str(config)).split()
        return forks.run(words, self.work, aim=aim, watched=place)

    def _keep(self) -> str:
        return KEEP if self.scenario.pruned else SLIM if self.scenario.slimmed else ""

    def must_run(self, command: str) -> None:
        finished = self.run(command)
        if finished.status != 0:
            raise SystemExit(f"{command}: exit status {finished.status}\n{finished.output}")

    def start_a_daemon(self, place: Path | None = None) -> forks.Finished:
        return self.run(_SERVE, place=place)

    def states(self) -> list[str]:
        """Of every checkpoint: "original", "replaced", "both", or what is lost: what no recovery puts back."""
        found = [state_of(kept, self) for kept in self.kept]
        if not any("LOST" in state for state in found):
            return found
        copy = self.work / "recovered"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self.place, copy)
        self.start_a_daemon(copy)
        moved = [Kept(copy / kept.path.relative_to(self.place), kept.large, kept.small) for kept in self.kept]
        after = [state_of(kept, self) for kept in moved]
        return [
            state if "LOST" not in state or "LOST" in then else f"recovered to {then}"
            for state, then in zip(found, after, strict=True)
        ]

    def unnamed(self) -> list[str]:
        """What lies there under a name that DESIGN.md does not know."""
        return unnamed({word: self.place / word.lower() for word in ("STORE", "RUN", "STATE")})

    def leftovers(self) -> list[str]:
        """What no finished command leaves anywhere."""
        store = self.place / "store"
        unfinished = [entry for entry in store.glob("trash/*") if not (entry / "verified").exists()]
        left = [*store.glob("tmp/*"), *unfinished]
        left += [path for path in self.place.rglob("*") if path.name.startswith(".ckzd-") or "stopped" in path.name]
        holders = {store / name for name in ("tmp", "trash", "cache", "claims", "archives")}
        holders.add(self.place / "state" / "claims")
        left += [*store.glob("cache/f*f.rec"), *store.glob("archives/gone-*")]
        aside = store.glob("archives/*/*.damaged")  # one that a check found damaged stays for a while
        left += [path for path in aside if not self.scenario.rotten or is_whole(path)]
        gone = [kept.path for kept in self.kept if kept.may_go]
        places = (place for path in gone for place in (path, pointer_for(path)))
        left += [path for path in places if os.path.lexists(path)]
        slim = [kept for kept in self.kept if kept.weights is not None]
        left += [kept.path for kept in slim if state_of(kept, self) != "weights"]
        left += [archive for path in gone for archive in store.glob(f"archives/*/{path.name}.*")]
        left += [
            path for path in self.place.rglob("*") if path.is_dir() and path not in holders and not any(path.iterdir())
        ]
        return sorted({str(path.relative_to(self.place)) for path in left})


def state_of(kept: Kept, stage: Stage) -> str:
    """Of one checkpoint, by what is on disk."""
    found = {name: digest(kept.path / name) for name in kept.large}
    pointer = pointer_for(kept.path).is_file()
    if kept.may_go and not os.path.lexists(kept.path) and not os.path.lexists(pointer_for(kept.path)):
        return "pruned"
    gone = [name for name, wanted in kept.small.items() if digest(kept.path / name) != wanted]
    damaged = [name for name, got in found.items() if got is not None and got not in kept.large[name]]
    if gone or damaged:
        return f"LOST {kept.path.name}: not there as they were: {gone + damaged}"
    if all(found.values()):
        return "both" if pointer else "original"
    if any(found.values()) or not pointer:
        return f"LOST {kept.path.name}: " + ("half of it is there" if any(found.values()) else "nothing leads to it")
    restored = _restored(kept.path, stage, tuple(kept.large))
    whole = all(restored[name] in accepted for name, accepted in kept.large.items())
    if kept.weights is not None and not any(restored.values()):
        return "weights" if _weights(kept.path, stage) == kept.weights else f"LOST {kept.path.name}: not even weights"
    return "replaced" if whole else f"LOST {kept.path.name}: its pointer does not lead to it"


def _restored(path: Path, stage: Stage, large: tuple[str, ...]) -> dict[str, str | None]:
    """sha256 of what `ckzd restore` writes, from a copy of everything whose cache is empty."""
    copy, out = stage.work / "copy", stage.work / "out"
    place = next(parent for parent in path.parents if parent.parent == stage.work)
    seen = (str(path.relative_to(place)), *map(digest, [pointer_for(path), *sorted(place.glob("store/archives/*/*"))]))
    if seen not in stage.restored:
        for old in (copy, out):
            if old.is_dir():
                shutil.rmtree(old)
            old.unlink(missing_ok=True)
        shutil.copytree(place, copy)
        for cached in (copy / "store" / "cache").iterdir():
            cached.unlink()
        forks.run(["restore", str(copy / path.relative_to(place)), "-o", str(out)], stage.work)
        stage.restored[seen] = {name: digest(out / name) for name in large}
    return stage.restored[seen]


def _weights(path: Path, stage: Stage) -> str | None:
    """sha256 of its weights alone."""
    out = stage.work / "weights"
    out.unlink(missing_ok=True)
    forks.run(["restore", str(path), "--weights-only", "-o", str(out)], stage.work)
    return digest(out)


def digest(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def train(place: Path) -> None:
    """A tiny network with Adam, saved twice, as files and as directories. In a fork: torch starts threads."""
    runs = [place / f"{kind} run" for kind in ("file", "files", "directory")]
    forks.in_fork(lambda: _train(*runs, STEPS))
    longer = [place / f"{run.name}, longer" for run in runs]
    forks.in_fork(lambda: _train(*longer, (*STEPS, MORE)))


def train_directories(place: Path, steps: tuple[int, ...]) -> None:
    """Directories alone."""
    with tempfile.TemporaryDirectory() as others:
        _train(Path(others) / "files", Path(others) / "several", place, steps)


def _train(files: Path, several: Path, directories: Path, steps: tuple[int, ...]) -> None:
    import torch
    from safetensors.torch import save_file

    for place in (files, several, directories):
        place.mkdir()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Linear(32, 16))
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    for step in range(1, max(steps) + 1):
        adam.zero_grad()
        model(torch.randn(16, 32)).pow(2).mean().backward()
        adam.step()
        if step in steps:
            weights, moments = model.state_dict(), adam.state_dict()
            torch.save({"model": weights, "optimizer": moments, "step": step}, files / f"step_{step}.pt")
            torch.save(weights, several / f"model_{step}.pt")
            torch.save(moments, several / f"optimizer_{step}.pt")
            directory = directories / f"checkpoint-{step}"
            (directory / "inner").mkdir(parents=True)
            save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
            torch.save(moments, directory / "inner" / "optimizer.pt")
            (directory / "inner" / "meta.json").write_text('{"a": 2}')
            (directory / "config.json").write_text('{"a": 1}')
            state = {"global_step": step, "best_model_checkpoint": None}
            (directory / "trainer_state.json").write_text(json.dumps(state))
