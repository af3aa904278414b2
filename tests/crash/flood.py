"""More than a watcher can follow: files by the thousand, few watches, a full queue, a file system that says nothing.

    python tests/crash/flood.py [--files N]

The daemon is real but for its workers, its clock and its codec; the kernel's events are real. Each scene prints how
many of the checkpoints were found, and with how many looks. Nothing may be missed after one look that no event asked
for. Exit status 1 otherwise. Scenes that need a user namespace are skipped where there is none.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))

from clocks import Clock
from serving import Daemon, write_checkpoint

from ckzd.daemon import filesystems
from ckzd.daemon.watch import Watcher

SCENES = ("at once", "few watches", "full queue", "silence")
FEW = 4
STOPPED = """
import os, shutil, signal, sys, time
watched, template, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.kill(os.getppid(), signal.SIGSTOP)
for _ in range(9000):  # fills the queue: what comes then is not heard of
    open(f"{watched}/noise", "w").close()
    os.unlink(f"{watched}/noise")
for number in range(count):
    shutil.copyfile(template, f"{watched}/step_{number}.safetensors")
os.kill(os.getppid(), signal.SIGCONT)
"""


class Scene:
    """A daemon that sees checkpoints and does nothing about them."""

    def __init__(self, place: Path, files: int) -> None:
        self.files, self.place, self.looks = files, place, 0
        (place / "runs").mkdir()
        self.template = write_checkpoint(place / "template", elements=16)
        self.daemon = Daemon(place, Clock(), watcher=Watcher(), scan_seconds=60, settle_seconds=0)
        self.daemon.executor.held = True
        self.daemon.run.mkdir()
        self.daemon.service.start()
        look = self.daemon.service._scanner.scan

        def counted():
            self.looks += 1
            return look()

        self.daemon.service._scanner.scan = counted

    def write(self, directory: Path, count: int) -> None:
        directory.mkdir(exist_ok=True)
        data = self.template.read_bytes()
        for number in range(count):
            (directory / f"step_{number}.safetensors").write_bytes(data)

    def look_once(self) -> None:
        """The next look that the clock alone asks for, with what events ask for before."""
        time.sleep(0.5)  # until events have come
        self.daemon.go(2 * 60 + 10)

    def found(self) -> int:
        return len(self.daemon.service.journal.rows())

    def end(self) -> None:
        self.daemon.service.__exit__()


def at_once(scene: Scene) -> None:
    scene.write(scene.daemon.run, scene.files)


def few_watches(scene: Scene) -> None:
    for number in range(2 * FEW):
        scene.write(scene.place / "runs" / f"run-{number}", scene.files // (2 * FEW))
    scene.look_once()
    for number in range(2 * FEW):
        write_checkpoint(scene.place / "runs" / f"run-{number}" / "step_999999.safetensors", elements=16)


def full_queue(scene: Scene) -> None:
    command = [sys.executable, "-c", STOPPED, scene.daemon.run, scene.template, scene.files]
    subprocess.run(list(map(str, command)), check=True)


def silence(scene: Scene) -> None:
    scene.write(scene.daemon.run, scene.files)


def go(name: str, files: int) -> str | None:
    """What is to be said of it; None if this machine has no such thing."""
    play: Callable[[Scene], None] = {
        "at once": at_once, "few watches": few_watches, "full queue": full_queue, "silence": silence,
    }[name]  # fmt: skip
    if name == "few watches":
        Path("/proc/sys/user/max_inotify_watches").write_text(str(FEW))
    if name == "silence":
        filesystems.kind = lambda *_: "nfs4"
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="ckzd-flood-") as place:
        scene = Scene(Path(place), files)
        try:
            began = time.process_time()
            play(scene)
            scene.look_once()
            there = len(list((scene.place / "runs").rglob("*.safetensors")))
            overflows = scene.daemon.metric("ckzd_watch_overflows_total")
            watched = len(scene.daemon.watcher._watches)
            seconds = time.process_time() - began
            missed = there - scene.found()
        finally:
            scene.end()
    said = f"{missed} of {there} missed after {scene.looks} looks; {watched} directories watched"
    return f"{said}, {overflows:.0f} overflows; {seconds:.1f} s CPU"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--files", type=int, default=9000)
    parser.add_argument("--scene", choices=SCENES, help="only this one, in this very process")
    arguments = parser.parse_args()
    if arguments.scene:
        print(go(arguments.scene, arguments.files))
        return 0
    well = True
    for name in SCENES:
        namespace = ["unshare", "-Ur"] if name == "few watches" else []
        command = [*namespace, sys.executable, __file__, "--scene", name, "--files", str(arguments.files)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode and namespace and any(w in finished.stderr for w in ("unshare", "Read-only", "Permiss")):
            print(f"{name}: skipped, no user namespace here")
            continue
        said = finished.stdout.strip() or finished.stderr.strip().splitlines()[-1]
        print(f"{name}: {said}", flush=True)
        well = well and said.startswith("0 of ")
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
