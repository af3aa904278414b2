"""`ckzd serve`: scan, settle, journal, compress and verify in workers, replace later, tell.

One thread owns all state and goes round in `Service.step`. The watcher's threads only leave hints, the web server's
only read the last snapshot, workers are processes that send messages. Whatever ends this process, everything that
matters is on disk: the next start finishes or undoes it.
"""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Self

from ckzd import durable
from ckzd.config import Settings, WatchSettings, systemd
from ckzd.daemon import status
from ckzd.daemon.choose import Chooser
from ckzd.daemon.clock import Clock, SystemClock
from ckzd.daemon.jobs import Executor
from ckzd.daemon.journal import Journal
from ckzd.daemon.let_go import LetGo
from ckzd.daemon.logs import configure
from ckzd.daemon.notify import Notifier
from ckzd.daemon.outcomes import MAX_NOT_STARTED, Outcomes
from ckzd.daemon.reader import Reader
from ckzd.daemon.rebuild import rebuild
from ckzd.daemon.requirements import require_servable
from ckzd.daemon.rotate import drop_rotated, forget_pruned
from ckzd.daemon.scan import Scan, Scanner
from ckzd.daemon.settle import FormatsRule, Rule, Settler
from ckzd.daemon.states import ARCHIVED, RUNNING
from ckzd.daemon.stores import Stores
from ckzd.daemon.telling import Teller
from ckzd.daemon.watch import Watcher
from ckzd.daemon.workers import LocalExecutor
from ckzd.errors import EXIT_DONE, EXIT_SOME_FAILED, StoreLocked
from ckzd.locks import locked

log = logging.getLogger(__name__)

TICK_SECONDS = 0.5  # a signal or a hint waits at most so long
PLAN_SECONDS = 2.0  # back-offs and pauses end without an event
TELL_SECONDS, TELL_ANYWAY_SECONDS = 1.0, 10.0
MIN_SCAN_SECONDS = 1.0  # between scans, however many hints come
MAX_TROUBLES = 20  # rounds in a row that went wrong, some minutes: then it is time for a restart
SCAN_SHARE = 4.0  # and at least so many times as long as the last scan took


def serve(
    settings: Settings, *, once: bool = False, executor: Executor | None = None, log_as_json: bool = False
) -> int:
    """Run until a signal (or, `once`, until there is nothing left to do) and return the exit code.

    SIGTERM drains: running jobs may finish within `drain_seconds`. SIGINT, or SIGTERM again, ends at once.
    """
    configure(as_json=log_as_json)
    require_servable(settings)
    clock = SystemClock()
    state = settings.daemon.state_dir
    with locked(state / "lock", state / "claims", shared=False, wait_seconds=0.0):
        durable.sweep(state)
        chosen = executor or LocalExecutor(settings.daemon, clock, log_as_json=log_as_json)
        with (
            Reader(patient=once) as reader,
            Service(settings, chosen, clock, once=once, rule=reader) as service,
            _signals(service),
        ):
            return service.run()


class Service:
    """The daemon's state and its one loop."""

    def __init__(
        self,
        settings: Settings,
        executor: Executor,
        clock: Clock,
        *,
        once: bool = False,
        rule: Rule | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._clock = clock
        self._once = once
        self._open = ExitStack()
        self.journal = Journal(settings.daemon.state_dir / status.JOURNAL)
        self._open.callback(self.journal.close)
        self._stores = Stores(clock)
        self._open.callback(self._stores.close)
        self.teller = Teller(settings, clock)
        self.metrics = self.teller.metrics
        self._notifier = Notifier(systemd(), clock)
        self._watcher = watcher or Watcher()
        self._outcomes = Outcomes(settings, self.journal, self.metrics, self._stores, clock, self._ask_for_scan)
        rule = rule or FormatsRule()
        self._scanner = Scanner(settings, self.journal, Settler(clock, rule), clock, self._adopt, once=once)
        self._chooser = Chooser(
            settings=settings,
            journal=self.journal,
            stores=self._stores,
            outcomes=self._outcomes,
            metrics=self.metrics,
            clock=clock,
            rule=rule,
            once=once,
        )
        self._let_go = LetGo(self.journal, rule)
        self._adopted: set[Path] = set()
        self._scan = Scan()
        self._scan_wanted = True
        self._next_scan = self._earliest_scan = clock.monotonic()
        self._next_plan = self._next_tell = self._tell_anyway = clock.monotonic()
        self._overflows = 0
        self._started = clock.time()
        self._trouble, self._troubles = "", 0  # what went wrong in the last round, and how often in a row
        self._terminations = 0
        self._ends_at: float | None = None  # monotonic; draining since it is set

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End everything; what still runs is given back to the journal."""
        self._notifier.stopping()
        for event in self._executor.close():
            self._outcomes.apply(event)
        self._watcher.stop()
        self.teller.close()
        self._open.close()

    def run(self) -> int:
        """Go round until the end."""
        self.start()
        while not self._is_over():
            self.step()
        log.info("ended", extra={"failed": len(self._outcomes.failed)})
        return self._exit_code()

    def start(self) -> None:
        """Bring the journal in line with a crash, look at everything for the first time, and open the door."""
        for row in self.journal.on_start(self._clock.time()):
            log.warning("job was interrupted by a crash: it waits again", extra={"checkpoint": str(row.path)})
            self._outcomes.after_crash(row)
        self.metrics.last_success.set(self._last_success())
        for watch in self._settings.watch:
            if watch.store is not None:
                self._stores.open(watch.path, watch)
        if not self._once:
            self._watcher.start()
            self.teller.listen()
            log.info("listening", extra={"url": self.teller.url})
        self._look()
        self._refuse_to_start()
        self._notifier.ready()

    def _last_success(self) -> float:
        """When the youngest archive that the journal knows was written; 0 if there is none."""
        written = [0.0]
        for row in self.journal.rows(states=ARCHIVED):
            if row.archive is not None:
                with suppress(OSError):
                    written.append(row.archive.lstat().st_mtime)
        return max(written)

    def step(self) -> None:
        """Come round once; waits for events at most `TICK_SECONDS`."""
        self._notifier.alive()
        self.teller.came_round()
        try:
            if self._scan_is_due():
                self._look()
            if self._ends_at is None and self._clock.monotonic() >= self._next_plan:
                self._plan()
            for event in self._executor.events(TICK_SECONDS):
                self._outcomes.apply(event)
                self._next_plan = self._next_tell = min(self._next_plan, self._clock.monotonic())
            self._tell()
            self._trouble, self._troubles = "", 0
        except Exception as error:  # noqa: BLE001  # see there
            self._survive(error)

    def _survive(self, error: Exception) -> None:
        """One thing that went wrong (a full state directory, a store out of sight) must not end the service.

        If it goes on it must: a restart may help, and silence does not.
        """
        self._trouble, self._troubles = f"{type(error).__name__}: {error}", self._troubles + 1
        if self._once or self._troubles >= MAX_TROUBLES:
            raise error
        log.error("something went wrong: trying again", exc_info=error)
        self._clock.sleep(TICK_SECONDS * self._troubles)

    def terminate(self, number: int) -> None:
        """SIGTERM: drain. SIGINT, or SIGTERM again: end at once."""
        self._terminations += 1
        now = self._clock.monotonic()
        drain = number == signal.SIGTERM and self._terminations == 1
        self._ends_at = now + self._settings.daemon.drain_seconds if drain else now

    # -- looking ------------------------------------------------------------------------------------------------

    def _ask_for_scan(self) -> None:
        self._scan_wanted = True

    def _scan_is_due(self) -> bool:
        now = self._clock.monotonic()
        if self._watcher.take_hint():
            self._scan_wanted = True
        return now >= self._next_scan or (self._scan_wanted and now >= self._earliest_scan)

    def _look(self) -> None:
        began = self._clock.monotonic()
        self._scan_wanted = False
        self._scan = self._scanner.scan()
        if not self._once and self._watcher.follow(self._scan.folders):
            self._ask_for_scan()  # what happened in a new directory before it was watched
        ended = self._clock.monotonic()
        self._earliest_scan = ended + max(MIN_SCAN_SECONDS, SCAN_SHARE * (ended - began))
        wait = min([self._scan.again_seconds, *(watch.scan_seconds for watch in self._settings.watch)])
        self._next_scan = max(self._earliest_scan, ended + wait)
        self._next_plan = ended
        self.metrics.scan_seconds.observe(ended - began)
        self.metrics.overflows.inc(self._watcher.overflows - self._overflows)
        self._overflows = self._watcher.overflows
        if not self._scan.problems and not self._scan.errors:
            self.metrics.last_scan.set(self._clock.time())
        self._take_back_lost_jobs()
        if self._let_go.look(self._scan.runs):
            self._ask_for_scan()
        busy = {running.run for running in self._outcomes.running}
        drop_rotated(
            self._scan.runs,
            roots=[watch.path for watch in self._settings.watch],
            busy=busy,
            journal=self.journal,
            stores=self._stores,
            metrics=self.metrics,
            now=self._clock.time(),
        )
        forget_pruned(self.journal)

    def _take_back_lost_jobs(self) -> None:
        """Rows that say a job runs while none does: its end was lost in some trouble."""
        running = {running.job.number for running in self._outcomes.running}
        for row in self.journal.rows(states=RUNNING):
            if row.number not in running:
                self.journal.taken_back(row.number, self._clock.time())

    def _adopt(self, run: Path, watch: WatchSettings) -> Path:
        """The run's store; a run that the journal does not know is filled in from there."""
        root = self._stores.open(run, watch)
        if run not in self._adopted:
            if not self.journal.rows(run=run):
                rebuild(self.journal, run, self._stores.archives(root, run), self._clock.time())
            self._adopted.add(run)
            log.info("run found", extra={"run": str(run), "store": str(root)})
        return root

    def _refuse_to_start(self) -> None:
        """A daemon that can serve nothing should say so and end; one that can serve something stays."""
        locked = [error for error in self._scan.errors if isinstance(error, StoreLocked)]
        if locked:
            raise locked[0]
        if not self._scan.runs and self._scan.errors:
            raise self._scan.errors[0]
        if self._once and self._scan.problems and not self._scan.runs:
            raise self._scan.problems[0]

    # -- deciding -----------------------------------------------------------------------------------------------

    def _plan(self) -> None:
        self._next_plan = self._clock.monotonic() + PLAN_SECONDS
        if not self._executor.free():
            return
        for job, run in self._chooser.jobs({run.path: run for run in self._scan.runs}):
            if job.kind == "compress":
                self.journal.encoding(job.number, self._clock.time())
            self._executor.submit(job)
            self._outcomes.began(job, run)
            self._next_tell = self._clock.monotonic()
            if not self._executor.free():
                return

    def _is_over(self) -> bool:
        now = self._clock.monotonic()
        if self._ends_at is not None:
            return now >= self._ends_at or not self._outcomes.running
        if not self._once or self._outcomes.running:
            return False
        if self._outcomes.no_space is not None or self._outcomes.not_started >= MAX_NOT_STARTED:
            return True
        if self._scan_wanted:
            return False
        return not any(True for _ in self._chooser.jobs({run.path: run for run in self._scan.runs}))

    def _exit_code(self) -> int:
        if not self._once or self._ends_at is not None:
            return EXIT_DONE
        if self._outcomes.no_space is not None:
            log.error("out of space", extra={"error": str(self._outcomes.no_space)})
            return self._outcomes.no_space.exit_code
        trouble = self._outcomes.failed or self._outcomes.not_started or self._scan.errors or self._scan.problems
        stopped = status.replacing_stopped(self._settings) is not None
        return EXIT_SOME_FAILED if trouble or stopped else EXIT_DONE

    # -- telling ------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        now = self._clock.monotonic()
        if now < self._next_tell and now < self._tell_anyway:
            return
        self._next_tell, self._tell_anyway = float("inf"), now + TELL_ANYWAY_SECONDS
        if self._outcomes.running:
            self._next_tell = now + TELL_SECONDS
        self.metrics.watching.set(self._watcher.healthy())
        snapshot = self.teller.tell(self.journal.rows(), self._live())
        counts = snapshot["totals"]["checkpoints"]
        self._notifier.status(", ".join(f"{count} {state}" for state, count in counts.items()) or "nothing found yet")

    def _live(self) -> status.Live:
        now = self._clock.monotonic()
        jobs = [
            {
                "kind": running.job.kind,
                "checkpoint": str(running.job.checkpoint if running.run else running.job.store),
                "stage": running.stage,
                "fraction": running.fraction,
                "seconds": now - running.since,
            }
            for running in self._outcomes.running
        ]
        workers = [
            {"worker": worker.name, "up": worker.up, "restarts": worker.restarts, "busy": worker.job is not None}
            for worker in self._executor.workers()
        ]
        problems = [str(problem) for problem in (*self._scan.problems, *self._scan.errors)]
        problems += [self._trouble] if self._trouble else []
        problems += [self._outcomes.worker_problem] if self._outcomes.worker_problem else []
        paused = f"waiting for space: {self._outcomes.no_space}" if self._outcomes.no_space else None
        return status.Live(
            state="running" if self._ends_at is None else "draining",
            started=self._started,
            problems=problems,
            paused=paused,
            jobs=jobs,
            workers=workers,
            stores=self._stores.facts(),
            damaged=sorted(self._outcomes.told_damaged),
            waiting=sorted(set().union(*self._outcomes.waiting.values())),
            without_base_model=self._outcomes.without_base_model,
            why=self._chooser.why | self._scan.why,
            left_alone=self._scan.left_alone,
            behind=self._chooser.behind,
            runs={run.path: (run.watch, run.store) for run in self._scan.runs},
        )


@contextmanager
def _signals(service: Service) -> Iterator[None]:
    """Let SIGTERM and SIGINT end the service in good order. Only a main thread hears them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, _: FrameType | None) -> None:
        service.terminate(number)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
