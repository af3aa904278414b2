"""The command line: what it prints, where, and with which exit code. Operations are fakes here."""

import contextlib
import errno
import json
import logging
import os
import pty
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from making import store_archive

from ckzd import cli, errors
from ckzd.errors import (
    BadCheckpoint,
    CkzdError,
    ConfigError,
    CorruptArchive,
    MissingReference,
    NoSpace,
    NotAccepted,
    StoreLocked,
)
from ckzd.operations.replace import empty_trash, replace
from ckzd.plain import plain_bytes
from ckzd.screen import Screen
from ckzd.store import Store, default_store


@dataclass(frozen=True)
class FakeReport:
    """All the fields that a report of any operation has."""

    checkpoint: str = "/runs/gpt/step_100.pt"
    members: tuple[str, ...] = ("/runs/gpt/step_100.pt",)
    archive: str = "/runs/.ckzd/archives/gpt/step_100.pt.ckz"
    reference: str | None = None
    preset: str = "resume"
    original_bytes: int = 17_394_081
    archive_bytes: int = 340_000
    ratio: float = 51.2
    seconds: float = 3.25
    verified: bool = True
    accepted: bool | None = None
    already: bool = False
    replaced: bool = False
    ruined: bool = False
    kept: str | None = None
    without_base_model: str | None = None
    restored_bytes: int = 17_394_081
    files: int = 1

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


class FakeOperation:
    """Stands for one operation: answers with a report, or raises what `failures` says for a path's name."""

    def __init__(self, answer: object = None) -> None:
        self.answer = answer or FakeReport()
        self.failures: dict[str, Exception] = {}
        self.calls: list[tuple[Path, dict[str, object]]] = []

    def __call__(self, path, **options):
        self.calls.append((path, options))
        for report in (options.get("on_stage"), options.get("on_progress")):
            if report is not None:
                report(*(("encode", 0.5) if report is options.get("on_stage") else (0.5,)))
        if path.name in self.failures:
            raise self.failures[path.name]
        return self.answer

    def each(self, paths, *, on_archive, on_progress):
        """As `verify_each`: errors are outcomes too."""
        for path in paths:
            on_archive(path)
            try:
                yield self(path, on_progress=on_progress)
            except CkzdError as error:
                yield error


@pytest.fixture
def operation(monkeypatch):
    """One fake that stands for every operation."""
    fake = FakeOperation()
    for verb in ("compress", "restore", "verify", "inspect"):
        module = ModuleType(f"ckzd.operations.{verb}")
        setattr(module, verb, fake)
        module.verify_each = fake.each
        module.RUINED = "ruined"
        monkeypatch.setitem(sys.modules, module.__name__, module)
    formats = ModuleType("ckzd.formats")
    formats.looks_like_checkpoint = lambda path: path.suffix == ".pt"
    formats.list_checkpoints = lambda run: sorted(run.glob("*.pt"))
    monkeypatch.setitem(sys.modules, "ckzd.formats", formats)
    return fake


def json_lines(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_compress_gives_the_fields_of_the_contract(operation, capsys):
    assert cli.run(["compress", "step_100.pt", "--json"]) == 0

    (line,) = json_lines(capsys.readouterr().out)
    contract = "checkpoint archive reference preset original_bytes archive_bytes ratio seconds verified accepted"
    assert set(contract.split()) <= set(line)


def test_compress_hands_its_options_on(operation):
    options = ["--preset", "lossless", "--store", "/s", "--stride", "2", "--replace", "--device", "cpu"]
    options += ["--effort", "fast", "--max-depth", "9", "--base-model", "/models/x"]
    asking = ["--accept-command", "eval.py --strict", "--accept-seconds", "60"]
    assert cli.run(["compress", "a.pt", *options, *asking]) == 0

    _, given = operation.calls[0]
    del given["on_stage"]
    asked = {"accept_command": "eval.py --strict", "accept_seconds": 60.0, "base_model": Path("/models/x")}
    assert given == {
        "preset": "lossless", "store": Path("/s"), "stride": 2, "replace": True, "device": "cpu", **asked,
        "effort": "fast", "max_depth": 9,
    }  # fmt: skip


def test_compress_takes_the_checkpoints_of_a_run_in_order(operation, tmp_path):
    for name in ("step_1.pt", "step_2.pt", "notes.txt"):
        (tmp_path / name).touch()
    assert cli.run(["compress", str(tmp_path)]) == 0

    assert [path.name for path, _ in operation.calls] == ["step_1.pt", "step_2.pt"]


def test_files_of_one_checkpoint_are_archived_once_and_told_each(operation, capsys):
    paths = ("/runs/gpt/model_1.pt", "/runs/gpt/optimizer_1.pt")
    operation.answer = FakeReport(checkpoint=paths[0], members=paths)
    assert cli.run(["compress", *paths, "--json"]) == 0
    lines = json_lines(capsys.readouterr().out)
    assert [(line["checkpoint"], line["already"]) for line in lines] == [(paths[0], False), (paths[1], True)]
    assert len(operation.calls) == 1
    assert cli.run(["compress", *paths]) == 0
    assert "with model_1.pt" in " ".join(capsys.readouterr().out.split())


def test_compress_leaves_what_is_no_run_to_the_operation(operation, tmp_path):
    operation.failures[tmp_path.name] = BadCheckpoint(tmp_path, "expected a checkpoint")
    assert cli.run(["compress", str(tmp_path)]) == 1


def test_a_person_gets_a_table(operation, capsys):
    assert cli.run(["compress", "a.pt"]) == 0

    out = capsys.readouterr().out
    for part in ("step_100.pt", "17.4 MB", "340.0 kB", "51.2x", "original kept", "a base"):
        assert part in out


def test_a_person_is_told_that_a_command_accepted(operation, capsys):
    operation.answer = FakeReport(accepted=True)
    assert cli.run(["compress", "a.pt", "--accept-command", "eval.py"]) == 0
    assert "accepted, original kept" in " ".join(capsys.readouterr().out.split())


def test_restore_hands_its_options_on(operation, capsys):
    assert cli.run(["restore", "a.pt", "-o", "/b.pt", "--weights-only"]) == 0

    path, given = operation.calls[0]
    assert (path, given["output"], given["weights_only"]) == (Path("a.pt"), Path("/b.pt"), True)
    assert "17.4 MB in 1 file(s)" in capsys.readouterr().out


def test_inspect_shows_every_fact(operation, capsys):
    operation.answer = {"original_bytes": 2_000_000, "ratio": 51.234, "parts": {"weights": 1000}, "reference": None}
    assert cli.run(["inspect", "a.ckz"]) == 0
    assert cli.run(["inspect", "a.ckz", "--json"]) == 0

    table, _, line = capsys.readouterr().out.rstrip().rpartition("\n")
    assert "2.0 MB" in table
    assert "weights 1.0 kB" in table
    assert json.loads(line) == operation.answer


QUALITY = {"weight_error": 0.0821, "max_weight_error": 0.125, "worst_tensor_error": 0.5, "max_worst_tensor_error": 0.75}
QUALITY |= {
    "first_order_loss": 0.0044,
    "regained": 0.0035,
    "update_length_ratio": 1.07,
    "max_update_length_ratio": 1.25,
}


def test_inspect_shows_the_measured_loss_beside_the_budget(operation, capsys):
    spent = {"tightened_tensors": 2, "exact_tensors": 1}
    operation.answer = {"promise": "resumes", "tightened": True, "quality": {**QUALITY, **spent, "step": 0.01}}
    assert cli.run(["inspect", "a.ckz"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:2] == ["promise resumes", "tightened yes: 2 tensors coded finer, 1 exactly, to keep to the budget"]
    assert "quality step 0.01" in lines
    assert "weight error 0.0821 of the weights, budget 0.125" in lines
    assert "worst tensor error 0.5 of the weights, budget 0.75" in lines
    assert "update length ratio 1.07 times, budget 1.25" in lines
    assert "first order loss 0.0044, of which first moments regain 0.0035" in lines

    operation.answer["quality"] |= dict.fromkeys(spent, 0)
    cli.run(["inspect", "a.ckz"])
    assert "tightened no" in [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_inspect_shows_what_archives_without_a_budget_say(operation, capsys):
    operation.answer = {"promise": None, "tightened": False, "quality": {"weight_error": 0.0821}}
    assert cli.run(["inspect", "a.ckz"]) == 0
    assert "weight_error 0.0821" in capsys.readouterr().out


def test_inspect_spares_a_person_the_hashes(operation, capsys):
    operation.answer = {"files": [{"name": "step_1.pt", "size": 2_000_000, "sha256": "f" * 64}], "entries": [{}, {}]}
    cli.run(["inspect", "a.ckz"])
    out = capsys.readouterr().out
    assert "step_1.pt, 2.0 MB" in out
    assert "f" * 64 not in out


def test_verify_says_ok_for_each(operation, capsys):
    assert cli.run(["verify", "a.ckz", "b.ckz"]) == 0
    assert capsys.readouterr().out.count("ok ") == 2


def test_status_tells_of_a_daemon_that_never_ran(tmp_path, capsys):
    config = tmp_path / "ckzd.toml"
    config.write_text(f'[daemon]\nstate_dir = "{tmp_path}"\n')
    assert cli.run(["status", "--config", str(config)]) == 0
    assert cli.run(["status", "--config", str(config), "--json"]) == 0

    said, _, line = capsys.readouterr().out.rstrip().rpartition("\n")
    assert "stopped" in said
    assert "none yet" in said
    assert json.loads(line)["state"] == "stopped"


def test_status_shows_every_checkpoint_and_why_nothing_is_replaced(capsys):
    totals = {"checkpoints": {"verified": 1}, "reclaimed_bytes": 0}
    row = {"checkpoint": "/r/step_1.pt", "state": "verified", "original_bytes": 100, "archive_bytes": 10, "ratio": 10.0}
    stop = {"reason": "step_1.pt did not verify", "acknowledge": "rm /state/STOPPED"}
    facts = {
        "version": "0",
        "state": "running",
        "pid": 7,
        "reasons": [stop["reason"]],
        "replacing_stopped": stop,
        "left_alone": [],
        "damaged_archives": ["/s/step_0.ckz"],
        "waiting_archives": ["/s/step_1.ckz"],
        "without_base_model": [{"run": "/r", "says": "archived as a base: /models/x is not there"}],
        "totals": totals,
        "space": {
            "freed_bytes": -7e6,
            "trash_bytes": 87e6,
            "trash_until": 50_000.0,
            "archive_bytes": 1e6,
            "cache_bytes": 6e6,
        },
        "stores": [{"store": "/s", "check": {"archives": 8, "pass_ratio": 0.25, "pass_completed": 50_000.0}}],
        "checkpoints": [row | {"why": "one of the newest 2"}],
    }
    cli._show_status(facts, Screen(as_json=False))
    out = capsys.readouterr().out
    for part in (
        "process 7",
        "did not verify",
        "rm /state/STOPPED",
        "1 verified",
        "/r/step_1.pt",
        "/s/step_0.ckz",
        "/s/step_1.ckz",
    ):
        assert part in out
    assert "newest 2" in out
    assert "/r: archived as a base: /models/x is not there" in out
    until = time.strftime("%H:%M", time.localtime(50_000.0))
    assert "space: -7.0 MB freed, net of archives (1.0 MB) and cache (6.0 MB)" in out
    assert "87.0 MB in the trash until " + until in out
    assert "10.0x" in out
    assert f"checked: all by 1970-01-01 {until}, 25 % of 8 again, in /s" in out


# --- failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (BadCheckpoint("a.pt", "truncated"), 1),
        (NotAccepted("a.pt", "exit code 3"), 1),
        (ConfigError("preset", "unknown"), 2),
        (CorruptArchive("a.ckz", "entry lstm differs"), 4),
        (MissingReference("a.ckz", "needs 1234"), 5),
        (StoreLocked("/s", "held"), 6),
        (NoSpace("/s", "full"), 7),
        (OSError(errno.ENOSPC, "No space left on device", "/s/x"), 7),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/s/x"), 7),
        (PermissionError(errno.EACCES, "Permission denied", "/s/x"), 1),
    ],
)
@pytest.mark.parametrize("verb", ["compress", "restore", "verify", "inspect"])
def test_every_error_has_its_exit_code(operation, verb, error, code, capsys):
    operation.failures["a.pt"] = error
    assert cli.run([verb, "a.pt"]) == code

    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_an_error_says_subject_problem_and_hint(operation, capsys):
    operation.failures["a.ckz"] = CorruptArchive("a.ckz", "entry lstm: bytes differ", hint="restore it from a copy")
    cli.run(["inspect", "a.ckz"])
    assert capsys.readouterr().err == "error: a.ckz: entry lstm: bytes differ\nhint: restore it from a copy\n"


def test_an_error_is_json_too(operation, capsys):
    operation.failures["a.ckz"] = CorruptArchive("a.ckz", "entry lstm: bytes differ", hint="copy it")
    assert cli.run(["inspect", "a.ckz", "--json"]) == 4

    captured = capsys.readouterr()
    expected = {"error": "CorruptArchive", "subject": "a.ckz", "problem": "entry lstm: bytes differ"}
    assert json_lines(captured.err) == [expected | {"hint": "copy it", "exit_code": 4}]
    assert captured.out == ""


def test_some_failed(operation, capsys):
    operation.failures["b.pt"] = BadCheckpoint("b.pt", "truncated")
    assert cli.run(["compress", "a.pt", "b.pt", "c.pt", "--json"]) == 3

    captured = capsys.readouterr()
    assert len(json_lines(captured.out)) == 2
    assert [line["subject"] for line in json_lines(captured.err)] == ["b.pt"]


def test_all_failed_is_the_first_failure(operation):
    operation.failures["a.ckz"] = MissingReference("a.ckz", "needs 1234")
    operation.failures["b.ckz"] = CorruptArchive("b.ckz", "bytes differ")
    assert cli.run(["verify", "a.ckz", "b.ckz"]) == 5


@pytest.mark.parametrize("error", [NoSpace("/s", "full"), StoreLocked("/s", "held")])
def test_what_would_stop_the_next_one_too_ends_the_loop(operation, error):
    operation.failures["b.pt"] = error
    assert cli.run(["compress", "a.pt", "b.pt", "c.pt"]) == 3
    assert [path.name for path, _ in operation.calls] == ["a.pt", "b.pt"]


def test_a_wrong_setting_is_said_once(operation, capsys):
    operation.failures["a.pt"] = ConfigError("preset", "expected one of resume, got 'fast'")
    assert cli.run(["compress", "a.pt", "b.pt"]) == 2
    assert capsys.readouterr().err.count("error:") == 1


def test_our_own_mistakes_are_not_hidden(operation):
    operation.failures["a.pt"] = AssertionError("ours")
    with pytest.raises(AssertionError):
        cli.run(["restore", "a.pt"])


def test_a_line_of_an_error_is_one_line(operation, capsys):
    """Whatever is in a path: a line break, an escape sequence, bytes that are no text."""
    operation.failures["a\n\x1b[31m\udcff.pt"] = BadCheckpoint("a\n\x1b[31m\udcff.pt", "truncated", hint="none")
    cli.run(["compress", "a\n\x1b[31m\udcff.pt"])
    assert capsys.readouterr().err == "error: a\\n\\x1b[31m\\udcff.pt: truncated\nhint: none\n"


def test_warnings_of_the_layers_below_are_told(operation, monkeypatch, capsys):
    def warning(path, **options):
        logging.getLogger("ckzd.operations").warning("a new base", extra={"tensor": "wte"})
        return operation(path, **options)

    monkeypatch.setattr(sys.modules["ckzd.operations.compress"], "compress", warning)
    cli.run(["compress", "a.pt"])
    assert capsys.readouterr().err == "warning: a new base (tensor wte)\n"
    cli.run(["compress", "a.pt", "--json"])
    assert json_lines(capsys.readouterr().err) == [{"warning": "a new base", "tensor": "wte"}]


# --- progress ---


def output_of(tmp_path, *, on_terminal: bool) -> str:
    """What `ckzd compress` of no checkpoint at all says on standard error, with a terminal there and without."""
    (tmp_path / "step_1.pt").write_bytes(b"no checkpoint")
    command = [sys.executable, "-m", "ckzd", "compress", str(tmp_path / "step_1.pt")]
    if not on_terminal:
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=theirs, env=os.environ | {"TERM": "xterm"}):
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while piece := os.read(ours, 4096):
                said += piece
    os.close(ours)
    return said.decode()


def test_progress_is_for_terminals_only(tmp_path):
    assert "\x1b[" in output_of(tmp_path, on_terminal=True)
    said = output_of(tmp_path, on_terminal=False)
    assert said.startswith("error: ")
    assert "\x1b[" not in said


# --- usage --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["compress"], ["fly"], ["compress", "a.pt", "--stride", "0"], ["inspect", "a", "b"], ["--fly"]]
)
def test_wrong_usage_is_2(operation, arguments, capsys):
    assert cli.run(arguments) == 2
    assert "--help" in capsys.readouterr().err


def test_wrong_usage_is_json_too(capsys):
    assert cli.run(["inspect", "--json"]) == 2
    (line,) = json_lines(capsys.readouterr().err)
    assert (line["exit_code"], line["subject"]) == (2, "ckzd inspect")


def test_nothing_to_do_shows_the_help(capsys):
    assert cli.run([]) == 2
    assert "compress" in capsys.readouterr().out


def test_every_verb_has_json_and_help():
    verbs = {command.name or command.callback.__name__: command for command in cli.app.registered_commands}
    assert set(verbs) == {
        "serve", "compress", "restore", "verify", "inspect", "list", "check", "status", "prune", "merge", "gc", "demo"
    }  # fmt: skip
    for command in verbs.values():
        assert command.callback.__doc__
        assert "as_json" in command.callback.__annotations__


@pytest.mark.parametrize("nbytes", [0, 999, 1000, 17_394_081, 105e9, 3e15])
def test_plain_bytes_have_a_unit_and_few_digits(nbytes):
    number, unit = plain_bytes(nbytes).split()
    assert unit in ("B", "kB", "MB", "GB", "TB")
    assert float(number) < 1000 or unit == "TB"


@pytest.mark.parametrize(
    ("nbytes", "shown"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (59_316_863, "59.3 MB"), (105e9, "105.0 GB"), (4e15, "4000.0 TB")],
)
def test_bytes_are_short(nbytes, shown):
    assert plain_bytes(nbytes) == shown


def test_python_m_ckzd_is_ckzd():
    finished = subprocess.run([sys.executable, "-m", "ckzd", "--version"], capture_output=True, text=True, check=True)
    assert finished.stdout.startswith("ckzd ")


def test_exit_codes_are_the_documented_ones():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CkzdError)]
    assert {kind.exit_code for kind in kinds} == {1, 2, 4, 5, 6, 7}


# --- the demo's table ---------------------------------------------------------------------------------------


def fake_demo(*, passed: bool):
    archived = SimpleNamespace(checkpoint="step_30.pt", original_bytes=1000, archive_bytes=10, ratio=100.0, depth=0)
    loss = SimpleNamespace(what="held-out, step 300", uninterrupted=2.0, resumed=2.002, gap=0.001)
    return SimpleNamespace(
        archived=(archived,),
        killed_at=255,
        restored="step_210.pt",
        steps=300,
        comparisons=(loss,),
        allowed_gap=0.01,
        twin_agreed=True,
        seconds=99.0,
        passed=passed,
        to_dict=lambda: {"passed": passed},
    )


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_the_demo_passes_only_within_the_gap(monkeypatch, passed, code, capsys):
    module = ModuleType("ckzd.demo")
    event = SimpleNamespace(who="job", text="step 30", seconds=1.5, fields={"step": 30})

    def run_demo(on_event):
        on_event(event)
        return fake_demo(passed=passed)

    module.run_demo = run_demo
    monkeypatch.setitem(sys.modules, "ckzd.demo", module)
    assert cli.run(["demo"]) == code
    out = capsys.readouterr().out
    for part in ("step_30.pt", "100.0x", "+0.10 %", "killed at step 255"):
        assert part in out

    assert cli.run(["demo", "--json"]) == code
    lines = json_lines(capsys.readouterr().out)
    assert lines == [
        {"event": "job", "text": "step 30", "seconds": 1.5, "step": 30},
        {"event": "report", "passed": passed},
    ]


class TestDeleting:
    """`prune` and `gc` on a real store of hand-made archives."""

    @pytest.fixture
    def place(self, tmp_path):
        run = tmp_path / "runs" / "gpt"
        run.mkdir(parents=True)
        store = Store.open_or_create(default_store(run))
        for step in (1, 2, 3):
            checkpoint = run / f"step_{step}.pt"
            checkpoint.write_bytes(b"x" * step)
            replace(checkpoint, store_archive(store, checkpoint, step=step, reconstruction=f"{step:064}"), store)
        empty_trash(store, 0.0, time.time() + 1)
        config = tmp_path / "ckzd.toml"
        config.write_text(f"[[watch]]\npath = '{run.parent}'\nreplace = true\n[watch.keep]\nnewest = 1\n")
        return run, store, ["--config", str(config)]

    def test_prune_says_of_each_why_it_goes_or_stays(self, place, capsys):
        run, _, config = place
        assert cli.run(["prune", *config, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert f"would go    4.1 kB  {run}/step_1.pt: not one of the newest 1" in said
        assert f"stays       4.1 kB  {run}/step_3.pt: the next archive is a delta against it" in said
        assert "2 archives would be deleted, 1 stay; 8.2 kB would be freed" in said
        assert len(list(run.iterdir())) == 3

    def test_prune_tells_a_program_each_archive_and_the_sums(self, place, capsys):
        run, store, config = place
        assert cli.run(["prune", str(run), *config, "--json"]) == 0
        *archives, sums = map(json.loads, capsys.readouterr().out.splitlines())
        assert [(line["step"], line["goes"], line["pointer"]) for line in archives] == [
            (1, True, True),
            (2, True, True),
            (3, False, True),
        ]
        assert archives[0]["why"] == "not one of the newest 1"
        assert (sums["store"], sums["pruned"], sums["kept"]) == (str(store.root), 2, 1)
        assert [path.name for path in run.iterdir()] == ["step_3.pt.ckz"]

    def test_what_is_not_watched_is_never_pruned(self, place, capsys, monkeypatch):
        run, _, _ = place
        monkeypatch.setattr("ckzd.config.default_config_files", tuple)
        assert cli.run(["prune", str(run)]) == 0
        assert capsys.readouterr().out.count("nothing says that it may go") == 3
        assert len(list(run.iterdir())) == 3

    def test_nothing_to_prune_is_an_error(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("ckzd.config.default_config_files", tuple)
        for verb in ("prune", "gc"):
            assert cli.run([verb]) == errors.EXIT_USAGE
            assert "nothing is watched" in capsys.readouterr().err
            assert cli.run([verb, str(tmp_path)]) == errors.EXIT_USAGE

    def test_a_store_that_is_read_is_left_alone(self, place, capsys):
        _, store, config = place
        with store.lock(shared=True):
            assert cli.run(["prune", *config]) == StoreLocked.exit_code

    def test_gc_names_what_goes(self, place, capsys):
        _, store, config = place
        store.cache_path("f" * 64).write_bytes(b"x")
        assert cli.run(["gc", *config, "--dry-run"]) == 0
        said = capsys.readouterr().out
        assert f"{'f' * 64}.rec: a cached reconstruction, its archive is gone" in said
        assert "4.1 kB would be freed" in said
        assert cli.run(["gc", str(store.root), *config, "--json"]) == 0
        (garbage,) = map(json.loads, capsys.readouterr().out.splitlines())
        assert garbage == {
            "path": str(store.cache_path("f" * 64)),
            "what": "a cached reconstruction",
            "nbytes": 4096,
            "goes": True,
            "why": "its archive is gone",
        }
        assert not store.cache_path("f" * 64).exists()

    def test_gc_deletes_archives_of_runs_that_are_gone_if_asked(self, place, capsys):
        run, store, config = place
        shutil.rmtree(run)
        assert cli.run(["gc", *config]) == 0
        assert capsys.readouterr().out.count(f"its run {run} is gone") == 3
        assert cli.run(["gc", str(run.parent), "--gone-runs"]) == 0
        assert store.run_directories() == []
