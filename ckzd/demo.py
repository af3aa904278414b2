"""`ckzd demo`: the whole story on one machine, with real parts only.

A real training job writes checkpoints, the real daemon compresses and replaces them while it trains, the job is killed,
its newest replaced checkpoint is restored, and a new process trains on from it to the end. Beside it an uninterrupted
twin of the job trains to the same step: how far the two losses lie apart is the result. Nothing here is simulated and
no number is written down in advance.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ckzd.errors import CkzdError
from ckzd.operations.inspect import inspect
from ckzd.operations.replace import pointer_for

ALLOWED_GAP = 0.01  # of the uninterrupted run's loss
POLL_SECONDS = 0.1
PATIENCE_SECONDS = 300.0  # for any one stage; the slowest takes about a minute on two cores
LOG_TAIL_LINES = 15


@dataclass(frozen=True)
class Plan:
    """How long the job is and when it dies. The kill lies between two checkpoints, as kills do."""

    size: str = "demo"  # a name in demo_training.SIZES
    steps: int = 280
    every: int = 35
    kill_at: int = 225
    keep_raw: int = 1
    preset: str = "resume"


@dataclass(frozen=True)
class Event:
    """Something that happened, for a person (`text`) and for a program (`fields`)."""

    who: str  # "job", "ckzd", "kill", "restore", "resumed", "twin"
    text: str
    seconds: float  # since the demo began
    fields: Mapping[str, Any]


OnEvent = Callable[[Event], None]


@dataclass(frozen=True)
class Archived:
    """One checkpoint that was replaced by its archive. `heldout_loss` is what the job measured when it wrote it."""

    checkpoint: str
    original_bytes: int
    archive_bytes: int
    ratio: float
    depth: int  # links of the chain below it; 0 is a base
    heldout_loss: float


@dataclass(frozen=True)
class Comparison:
    """One loss, nats a byte, with and without the interruption."""

    what: str
    uninterrupted: float
    resumed: float

    @property
    def gap(self) -> float:
        """Relative excess of the resumed run's loss: 0.002 is 0.2 %."""
        return self.resumed / self.uninterrupted - 1


@dataclass(frozen=True)
class DemoReport:
    """What the demo found."""

    archived: tuple[Archived, ...]
    killed_at: int  # steps done when the job was killed
    restored: str
    restored_step: int
    steps: int
    comparisons: tuple[Comparison, ...]  # at the restored step, over the resumed steps, at the end
    twin_agreed: bool  # the twin's losses up to the kill were the job's, bit for bit
    seconds: float
    allowed_gap: float = ALLOWED_GAP

    @property
    def passed(self) -> bool:
        """Every resumed loss is within the allowed gap of the uninterrupted run's."""
        return all(abs(comparison.gap) <= self.allowed_gap for comparison in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        comparisons = [{**asdict(comparison), "gap": comparison.gap} for comparison in self.comparisons]
        return {**asdict(self), "comparisons": comparisons, "passed": self.passed}


def run_demo(on_event: OnEvent, plan: Plan | None = None) -> DemoReport:
    """Play the whole story in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="ckzd-demo-") as place, Demo(Path(place), plan or Plan(), on_event) as demo:
        demo.start_daemon()
        demo.train_until_killed()
        demo.start_twin()
        demo.wait_until_replaced()
        demo.restore_newest_replaced()
        demo.resume()
        demo.wait_for_twin()
        demo.stop_daemon()
        return demo.report()


class Child:
    """A process of ours and what it says: standard output and error go to one file, JSON lines of it to `said`."""

    def __init__(self, name: str, log: Path, *arguments: str) -> None:
        self.name = name
        self.said: list[dict[str, Any]] = []
        self._log = log
        self._offset = 0
        environment = {key: value for key, value in os.environ.items() if not key.startswith("CKZD_")}
        command = [sys.executable, *arguments]
        with log.open("wb") as out:
            self._process = subprocess.Popen(  # noqa: S603  # our own interpreter and modules
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def ended(self) -> bool:
        """No longer running."""
        return self._process.poll() is not None

    def news(self) -> list[dict[str, Any]]:
        """What it said since the last time."""
        with self._log.open("rb") as log:
            log.seek(self._offset)
            whole = log.read().rpartition(b"\n")[0]
        self._offset += len(whole) + 1 if whole else 0
        fresh = [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        self.said += fresh
        return fresh

    def wait(self) -> None:
        """Wait for its end, which has to be a good one."""
        try:
            code = self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            raise self.broken(f"did not end within {PATIENCE_SECONDS:.0f} s") from None
        if code != 0:
            raise self.broken(f"expected it to end with 0, got {code}")

    def broken(self, problem: str) -> CkzdError:
        """An error that shows the end of the log."""
        tail = self._log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        return CkzdError(f"the demo's {self.name}", problem, hint="\n".join(["its last words:", *tail]))

    def terminate(self) -> None:
        """SIGTERM."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL; it gets no chance to say anything."""
        self._process.kill()
        self._process.wait()


class Demo:
    """The story's acts, in the order in which `run_demo` plays them. Leaves no process behind."""

    def __init__(self, place: Path, plan: Plan, on_event: OnEvent) -> None:
        self.place = place
        self.plan = plan
        self.run = place / "runs" / "gpt"
        self.run.mkdir(parents=True)
        self.children: dict[str, Child] = {}
        self.archived: dict[str, Archived] = {}  # by checkpoint name, in the order of their replacement
        self.restored: Archived | None = None
        self.killed_at = 0
        self._on_event = on_event
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self.children.values():
            if not child.ended:
                child.kill()

    def start_daemon(self) -> None:
        """`ckzd serve` on the directory of runs, with times that suit a run of a minute."""
        config = self.place / "ckzd.toml"
        config.write_text(
            "[[watch]]\n"
            f"path = {json.dumps(str(self.run.parent))}\n"
            f"preset = {json.dumps(self.plan.preset)}\n"
            f"replace = true\nkeep_raw = {self.plan.keep_raw}\nsettle_seconds = 1\nscan_seconds = 1\n"
            f'[daemon]\nstate_dir = {json.dumps(str(self.place / "state"))}\nport = 0\ndevices = ["cpu"]\n'
        )
        self._start("daemon", "ckzd", "serve", "--config", str(config))
        self._tell("ckzd", f"the daemon watches {self.run.parent}", watch=str(self.run.parent))

    def train_until_killed(self) -> None:
        """Start the job and kill it without warning once it is past `kill_at`."""
        plan = self.plan
        job = self._start_training("job", "--every", str(plan.every))
        self._tell("job", f"starts training: {plan.steps} steps, a checkpoint every {plan.every}", steps=plan.steps)
        self._until("the job to reach its end", lambda: bool(job.said) and job.said[-1]["step"] >= plan.kill_at, job)
        job.kill()
        self._look_at_training()
        self.killed_at = job.said[-1]["step"]
        self._tell("kill", f"SIGKILL to the job after step {self.killed_at}", step=self.killed_at)

    def start_twin(self) -> None:
        """Begin the job anew, which nobody interrupts this time: what the resumed one is compared with."""
        self._start_training("twin", "--every", str(self.plan.every), "--no-save")
        self._tell("twin", "starts: the same job, uninterrupted, to compare with")

    def wait_until_replaced(self) -> None:
        """Wait for the daemon to do what the job left behind: all but the newest `keep_raw` checkpoints."""
        names = [line["checkpoint"] for line in self.children["job"].said if "checkpoint" in line]
        expected = set(names[: len(names) - self.plan.keep_raw])
        self._until(f"{len(expected)} checkpoints to be replaced", lambda: expected <= set(self.archived))

    def restore_newest_replaced(self) -> None:
        """`ckzd restore`, in place, of the last delta of the chain."""
        newest = max(self.archived.values(), key=lambda archived: self._step_of(archived.checkpoint))
        if newest.depth == 0:
            raise CkzdError(newest.checkpoint, "expected the newest replaced checkpoint to be a delta, got a base")
        started = time.monotonic()
        self._start("restore", "ckzd", "restore", "--json", str(self.run / newest.checkpoint)).wait()
        seconds = time.monotonic() - started
        self.restored = newest
        text = f"{newest.checkpoint} is back, {newest.depth + 1} archives deep, in {seconds:.1f} s"
        self._tell("restore", text, checkpoint=newest.checkpoint, seconds=seconds)

    def resume(self) -> None:
        """A new process trains on from the restored file."""
        assert self.restored is not None
        resumed = self._start_training("resumed", "--resume", str(self.run / self.restored.checkpoint))
        self._tell("resumed", f"trains on from {self.restored.checkpoint} in a new process")
        self._until("the resumed job to end", lambda: resumed.ended, resumed)
        resumed.wait()
        self._look_at_training()

    def wait_for_twin(self) -> None:
        """The twin may still have a few steps to go."""
        twin = self.children["twin"]
        self._until("the uninterrupted twin to end", lambda: twin.ended, twin)
        twin.wait()
        self._look_at_training()

    def stop_daemon(self) -> None:
        """SIGTERM, and the daemon has to end well."""
        self.children["daemon"].terminate()
        self.children["daemon"].wait()

    def report(self) -> DemoReport:
        """Put the losses beside each other."""
        assert self.restored is not None
        job, twin, resumed = (self.children[name].said for name in ("job", "twin", "resumed"))
        step = self._step_of(self.restored.checkpoint)
        uninterrupted = {line["step"]: line for line in twin}
        after = [line for line in resumed if "loss" in line]
        comparisons = (
            Comparison(f"held-out, step {step}", uninterrupted[step]["heldout_loss"], resumed[0]["heldout_loss"]),
            Comparison(
                f"training, steps {step + 1}-{self.plan.steps}",
                sum(uninterrupted[line["step"]]["loss"] for line in after) / len(after),
                sum(line["loss"] for line in after) / len(after),
            ),
            Comparison(f"held-out, step {self.plan.steps}", twin[-1]["heldout_loss"], after[-1]["heldout_loss"]),
        )
        return DemoReport(
            archived=tuple(sorted(self.archived.values(), key=lambda archived: self._step_of(archived.checkpoint))),
            killed_at=self.killed_at,
            restored=self.restored.checkpoint,
            restored_step=step,
            steps=self.plan.steps,
            comparisons=comparisons,
            twin_agreed=all(uninterrupted[line["step"]]["loss"] == line["loss"] for line in job),
            seconds=time.monotonic() - self._started,
        )

    def _start(self, name: str, *arguments: str) -> Child:
        self.children[name] = Child(name, self.place / f"{name}.log", "-m", *arguments)
        return self.children[name]

    def _start_training(self, name: str, *arguments: str) -> Child:
        sizes = ("--size", self.plan.size, "--steps", str(self.plan.steps))
        return self._start(name, "ckzd.demo_training", str(self.run), *sizes, *arguments)

    def _until(self, what: str, done: Callable[[], bool], *needed: Child) -> None:
        """Tell what happens until `done`; the daemon and the `needed` children must live that long."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            ended = [child for child in (self.children["daemon"], *needed) if child.ended]
            self._look_at_training()
            self._look_at_run()
            if done():
                return
            if ended:
                raise ended[0].broken(f"ended while the demo waited for {what}")
            if time.monotonic() > deadline:
                raise self.children["daemon"].broken(f"waited {PATIENCE_SECONDS:.0f} s for {what}")
            time.sleep(POLL_SECONDS)

    def _look_at_training(self) -> None:
        for name in ("job", "twin", "resumed"):
            for line in self.children[name].news() if name in self.children else ():
                if "heldout_loss" in line:
                    saved = f", saved {line['checkpoint']}" if "checkpoint" in line else ""
                    text = f"step {line['step']}: held-out loss {line['heldout_loss']:.4f}{saved}"
                    self._tell(name, text, **line)

    def _look_at_run(self) -> None:
        """Find the checkpoints that have become pointers since the last look."""
        losses = {
            line["checkpoint"]: line["heldout_loss"] for line in self.children["job"].said if "checkpoint" in line
        }
        for name, loss in losses.items():
            path = self.run / name
            if name in self.archived or path.exists() or not pointer_for(path).exists():
                continue
            facts = inspect(path)
            sizes = int(facts["original_bytes"]), int(facts["archive_bytes"]), float(facts["ratio"])
            archived = Archived(name, *sizes, depth=int(facts["depth"]), heldout_loss=loss)
            self.archived[name] = archived
            kind = f"delta, {archived.depth} deep" if archived.depth else "base"
            text = f"{name} proven and replaced, {archived.ratio:.1f}x smaller ({kind})"
            self._tell("ckzd", text, **asdict(archived))

    def _step_of(self, checkpoint: str) -> int:
        said = self.children["job"].said
        return next(int(line["step"]) for line in said if line.get("checkpoint") == checkpoint)

    def _tell(self, who: str, text: str, **fields: Any) -> None:
        self._on_event(Event(who, text, time.monotonic() - self._started, fields))
