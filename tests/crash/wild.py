"""What people do to runs, one real pass of the daemon after the other: nothing is lost, and every pass comes to an end.

    python tests/crash/wild.py [--scenario NAME]...

After each scenario: what stands in a checkpoint's place is what was written there last, or a pointer from which just
that is restored; every version that a pass has seen is restored from an archive of its own; a further pass changes
nothing; `ckzd list` names every archive. All of it lossless, so "just that" is bit for bit. Exit status 1 otherwise.
"""

import argparse
import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import forks

from ckzd.archive import ArchiveReader
from ckzd.operations.pointer import pointer_for

CONFIG = """
[[watch]]
path = {runs}
replace = true
preset = "lossless"
keep_raw = {keep_raw}
settle_seconds = 0
trash_seconds = 0
[daemon]
state_dir = {state}
port = 0
"""
ELEMENTS = 2048


class Wild:
    """A directory of runs, what was written there, and what passes have seen of it."""

    def __init__(self, place: Path) -> None:
        self.place, self.work, self.runs = place, place / "work", place / "runs"
        self.work.mkdir(parents=True)
        self.run = self.runs / "gpt"
        self.run.mkdir(parents=True)
        self.expected: dict[Path, str] = {}  # sha256 of what stands, or should come back, at each place
        self.seen: dict[str, str] = {}  # sha256 of each version that a pass has archived -> its name
        self.problems: list[str] = []

    def save(self, path: Path | str, content: object, *, in_place: bool = False, mtime_ns: int = 0) -> Path:
        """As a trainer does: a new file in the old one's place, or, `in_place`, the same file with other bytes."""
        path = self.run / path
        data = f"{content} ".encode() * (4 * ELEMENTS)
        data = data[: 4 * ELEMENTS]
        header = json.dumps({"w": {"dtype": "F32", "shape": [ELEMENTS], "data_offsets": [0, len(data)]}}).encode()
        header += b" " * (-len(header) % 8)
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = struct.pack("<Q", len(header)) + header + data
        if in_place:
            with path.open("r+b") as file:
                file.write(whole)
        else:
            path.with_name("writing").write_bytes(whole)
            path.with_name("writing").replace(path)
        if mtime_ns:
            os.utime(path, ns=(mtime_ns, mtime_ns))
        self.expected[path] = digest(path)
        return path

    def command(self, *words: object) -> forks.Finished:
        return forks.run([str(word) for word in words], self.work)

    def serve(self, *, keep_raw: int = 0) -> int:
        """One pass; what it should have seen must have an archive afterwards."""
        config = self.work / "ckzd.toml"
        values = {"runs": json.dumps(str(self.runs)), "state": json.dumps(str(self.place / "state"))}
        config.write_text(CONFIG.format(**values, keep_raw=keep_raw))
        finished = self.command("serve", "--once", "--config", config)
        self.seen |= {sha: path.name for path, sha in self.expected.items() if path.parent.is_dir()}
        if finished.status not in (0, 3):
            self.problems.append(f"a pass ended with {finished.status}: {finished.output[-300:]}")
        return finished.status

    def moved(self, old: Path, new: Path) -> None:
        """What was expected below `old` is expected below `new`."""
        for path in [path for path in self.expected if path.is_relative_to(old)]:
            self.expected[new / path.relative_to(old)] = self.expected.pop(path)

    def restored(self, path: Path) -> str:
        """sha256 of what `ckzd restore` makes of a place, or why not."""
        out = self.work / "out"
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
        finished = self.command("restore", path, "-o", out)
        return digest(out) if finished.status == 0 else f"not restored: {finished.output.strip()[-200:]}"

    def archives(self) -> list[Path]:
        return sorted(path for path in self.place.rglob("*.ckz") if path.parent.parent.name == "archives")

    def check(self) -> list[str]:
        """All that is wrong at the end."""
        self.serve()
        before = sorted((str(path), path.stat().st_mtime_ns) for path in self.archives())
        self.serve()
        if before != sorted((str(path), path.stat().st_mtime_ns) for path in self.archives()):
            self.problems.append("a pass over what was done changes archives")
        for path, sha in self.expected.items():
            stands = os.path.lexists(path) and not (path.is_dir() and pointer_for(path).exists())
            got = digest(path) if stands else self.restored(path)
            if got != sha:
                self.problems.append(f"{path.relative_to(self.place)}: {got}, expected {sha[:12]}")
        back = {self.restored(archive) for archive in self.archives()}
        self.problems += [f"a version of {name} has no archive" for sha, name in self.seen.items() if sha not in back]
        self.problems += self._what_list_says()
        return self.problems

    def _what_list_says(self) -> list[str]:
        finished = self.command("list", self.runs, "--json")
        lines = [json.loads(line) for line in finished.output.splitlines() if line.startswith("{")]
        rows = [line for line in lines if "archive" in line]
        named = {row["archive"] for row in rows if row["archive"]}
        wrong = [] if finished.status == 0 else [f"list: exit status {finished.status}: {finished.output[-200:]}"]
        wrong += [f"list: {path.name} is missing" for path in self.archives() if str(path) not in named]
        wrong += [f"list: {row['checkpoint']}: {row['damaged']}" for row in rows if row["damaged"]]
        return wrong


def digest(path: Path) -> str:
    """sha256 of a file, or of all files of a directory that a trainer wrote, with their names."""
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != "ckzd.json")
    names = (f"{file.relative_to(path)} {hashlib.sha256(file.read_bytes()).hexdigest()}" for file in files)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def resumed(wild: Wild) -> None:
    """A run that goes on in its directory, from a checkpoint that was put back into its place."""
    for step in (10, 20):
        wild.save(f"step_{step}.safetensors", step)
    wild.serve()
    wild.command("restore", wild.run / "step_20.safetensors")
    wild.save("step_30.safetensors", 30)
    wild.serve()


def written_twice(wild: Wild) -> None:
    """Steps that are saved again with other content, before and after they were replaced."""
    for step in (10, 20):
        wild.save(f"step_{step}.safetensors", step)
    wild.serve(keep_raw=1)
    for step in (10, 20):
        wild.save(f"step_{step}.safetensors", f"again {step}")
    wild.serve(keep_raw=1)
    wild.save("step_30.safetensors", 30)


def renamed(wild: Wild) -> None:
    """A run under another name goes on; its old name is taken by another run."""
    for step in (10, 20):
        wild.save(f"step_{step}.safetensors", step)
    wild.serve(keep_raw=1)
    new = wild.run.with_name("gpt-lr3")
    wild.run.rename(new)
    wild.moved(wild.run, new)
    wild.save(new / "step_30.safetensors", 30)
    wild.serve(keep_raw=1)
    wild.save("step_10.safetensors", "another run's")


def copied(wild: Wild) -> None:
    """cp -r with reflinks where there are some, and cp -al, while pointers and originals stand there."""
    for step in (10, 20, 30):
        wild.save(f"step_{step}.safetensors", step)
    wild.serve(keep_raw=1)
    for name, how in (("copy", ["-r", "--reflink=auto"]), ("linked", ["-al"])):
        os.spawnlp(os.P_WAIT, "cp", "cp", *how, str(wild.run), str(wild.runs / name))
        wild.expected |= {
            wild.runs / name / path.name: sha for path, sha in wild.expected.items() if path.parent == wild.run
        }
    wild.save(wild.runs / "copy" / "step_40.safetensors", 40)
    wild.serve()
    for path in (wild.runs / "linked").glob("*.safetensors"):  # a second name of what stays
        path.unlink()
        del wild.expected[path]


def moved(wild: Wild) -> None:
    """Runs and store to another file system: every inode and the device are others."""
    for step in (10, 20, 30):
        wild.save(f"step_{step}.safetensors", step)
    wild.serve(keep_raw=1)
    with tempfile.TemporaryDirectory(dir=other_file_system(wild.place)) as elsewhere:
        for source, target in ((wild.runs, Path(elsewhere) / "runs"), (Path(elsewhere) / "runs", wild.runs)):
            shutil.move(source, target)
    wild.save("step_40.safetensors", 40)


def moved_alone(wild: Wild) -> None:
    """A run away from its store and back again: meanwhile its pointers lead nowhere, and a daemon looks at it."""
    for step in (10, 20):
        wild.save(f"step_{step}.safetensors", step)
    wild.serve(keep_raw=1)
    with tempfile.TemporaryDirectory(dir=other_file_system(wild.place)) as elsewhere:
        shutil.move(wild.run, Path(elsewhere) / "gpt")
        wild.serve()
        shutil.move(Path(elsewhere) / "gpt", wild.run)
    wild.save("step_30.safetensors", 30)


def branched(wild: Wild) -> None:
    """Set back to an older step: later ones are deleted, and other ones come under their names."""
    for step in (10, 20, 30):
        wild.save(f"step_{step}.safetensors", step)
    wild.serve(keep_raw=1)
    wild.command("restore", wild.run / "step_10.safetensors")
    for step in (20, 30):
        for path in (wild.run / f"step_{step}.safetensors", wild.run / f"step_{step}.safetensors.ckz"):
            path.unlink(missing_ok=True)
    for step in (15, 20):
        wild.save(f"step_{step}.safetensors", f"branch {step}")
    del wild.expected[wild.run / "step_30.safetensors"]
    wild.serve()
    wild.save("step_30.safetensors", "branch 30")


def two_jobs(wild: Wild) -> None:
    """Two that know nothing of each other in one directory: same steps, and for a while the same names."""
    for step in (10, 20):
        wild.save(f"step_{step}.safetensors", f"job a {step}")
        wild.save(f"other-step_{step}.safetensors", f"job b {step}")
    wild.serve(keep_raw=1)
    wild.save("step_20.safetensors", "job b wrote over it")
    wild.serve()
    wild.save("step_20.safetensors", "and job a again")


def overwritten(wild: Wild) -> None:
    """One file again and again, in place: each version its own archive, though inode and size are as they were."""
    path = wild.save("step_10.safetensors", "version 0")
    for version in range(1, 4):
        wild.serve(keep_raw=1)
        wild.save(path, f"version {version}", in_place=True)


def overwritten_unseen(wild: Wild) -> None:
    """The time is as it was, too: nobody sees that before it is to be replaced, which its archive must not do."""
    path = wild.save("step_10.safetensors", "version 0", mtime_ns=10**18)
    wild.serve(keep_raw=1)
    wild.save(path, "version 1", in_place=True, mtime_ns=10**18)
    for _ in range(3):
        wild.serve()
    if path.exists():
        wild.problems.append(f"{path.name} is never archived")


def world_size(wild: Wild) -> None:
    """A sharded run that goes on with other numbers of ranks, and back."""
    forks.in_fork(lambda: _shards(wild.run, {10: 2, 20: 4, 30: 4}))
    for step in (10, 20, 30):
        wild.expected[wild.run / f"step-{step}"] = digest(wild.run / f"step-{step}")
    wild.serve(keep_raw=1)
    forks.in_fork(lambda: _shards(wild.run, {40: 2}))
    wild.expected[wild.run / "step-40"] = digest(wild.run / "step-40")


def _shards(run: Path, ranks_of: dict[int, int]) -> None:
    sys.path.append(str(Path(__file__).parent.parent / "bench"))
    from dcp_directories import state_of, trained, write_dcp

    for step, ranks in ranks_of.items():
        write_dcp(run / f"step-{step}", ranks, state_of(*trained(step, 32)))


def other_file_system(place: Path) -> str:
    """A directory on another device than `place`; the same where there is none."""
    found = (path for path in (tempfile.gettempdir(), "/dev/shm", "/var/tmp") if os.access(path, os.W_OK))
    return next((path for path in found if Path(path).stat().st_dev != place.stat().st_dev), tempfile.gettempdir())


SCENARIOS: dict[str, Callable[[Wild], None]] = {
    scenario.__name__: scenario
    for scenario in (
        resumed, written_twice, renamed, copied, moved, moved_alone, branched, two_jobs, overwritten,
        overwritten_unseen, world_size,
    )
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenario", action="append", choices=list(SCENARIOS), help="only this one")
    wanted = parser.parse_args().scenario or list(SCENARIOS)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    well = True
    for name in wanted:
        with tempfile.TemporaryDirectory(dir=memory, prefix="ckzd-wild-") as place:
            wild = Wild(Path(place))
            SCENARIOS[name](wild)
            problems = wild.check()
            bases = sum(_is_base(archive) for archive in wild.archives())
            print(
                f"{name}: {len(wild.archives())} archives, {bases} of them bases; {len(problems)} problems", flush=True
            )
            print("".join(f"  {problem}\n" for problem in problems), end="", flush=True)
        well = well and not problems
    return 0 if well else 1


def _is_base(archive: Path) -> bool:
    with ArchiveReader(archive) as reader:
        return reader.manifest.reference is None


if __name__ == "__main__":
    sys.exit(main())
