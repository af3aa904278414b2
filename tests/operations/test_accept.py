"""An archive counts only if the user's own command, a real one, takes what it restores to."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from serving import write_checkpoint

import ckzd
from ckzd import cli, durable
from ckzd.errors import ConfigError, NoSpace, NotAccepted
from ckzd.operations.pointer import pointer_for
from ckzd.store import Store


def shell(script: str) -> list[str]:
    """The checkpoint is $1."""
    return ["sh", "-c", script, "check"]


ACCEPTING = shell('cmp "$1" "$CKZD_ORIGINAL" && [ "$1" = "$CKZD_RESTORED" ]')
REFUSING = shell("echo loss is 9.5 >&2; exit 3")


def archives(place: Path) -> list[Path]:
    return sorted(place.glob(".ckzd/archives/*/*.ckz"))


def leftovers(place: Path) -> list[Path]:
    return list((place / ".ckzd" / "tmp").iterdir())


@pytest.fixture(scope="module")
def archived(tmp_path_factory) -> Path:
    """Where a checkpoint is archived, and nobody was asked."""
    place = tmp_path_factory.mktemp("archived")
    assert ckzd.compress(write_checkpoint(place / "run" / "step_1.safetensors"), preset="lossless").accepted is None
    return place


def test_what_a_command_takes_is_archived_and_replaced(tmp_path):
    checkpoint, stages = write_checkpoint(tmp_path / "run" / "step_1.safetensors"), []
    report = ckzd.compress(
        checkpoint, preset="lossless", replace=True, accept_command=shlex.join(ACCEPTING),
        on_stage=lambda stage, _: stages.append(stage),
    )  # fmt: skip
    assert (report.accepted, report.replaced) == (True, True)
    assert archives(tmp_path) == [Path(report.archive)]
    assert pointer_for(checkpoint).exists()
    assert leftovers(tmp_path) == []
    assert stages[-5:] == ["verified", "accept", "accepted", "publish", "replaced"]


def test_what_a_command_refuses_is_neither_archived_nor_replaced(tmp_path):
    first, second = (write_checkpoint(tmp_path / "run" / f"step_{step}.safetensors") for step in (1, 2))
    kept = Path(ckzd.compress(first, preset="lossless", accept_command=ACCEPTING).archive)
    content = second.read_bytes()
    with pytest.raises(NotAccepted, match=r"exit code 3, having said: loss is 9\.5") as caught:
        ckzd.compress(second, preset="lossless", replace=True, accept_command=REFUSING)
    assert (caught.value.subject, caught.value.exit_code) == (str(second), 1)
    assert archives(tmp_path) == [kept]
    assert second.read_bytes() == content
    assert not pointer_for(second).exists()
    assert leftovers(tmp_path) == []
    assert len(list((tmp_path / ".ckzd" / "cache").iterdir())) == 1

    report = ckzd.compress(second, preset="lossless", accept_command=ACCEPTING)
    assert (report.accepted, report.already, report.reference) == (True, False, str(kept))


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("kill -9 $$", r"was ended by signal 9 \(Killed\), and said nothing"),
        ("echo evaluating; sleep 60", "took longer than 0.3 s, having said: evaluating"),
        ("sleep 60 & exit 7", "ended with exit code 7"),
    ],
)
def test_an_archive_that_was_there_before_is_asked_about_and_stays(archived, tmp_path, script, why):
    """It may have been made without a command, and others may need it."""
    place = Path(shutil.copytree(archived, tmp_path / "copy"))
    checkpoint, before = place / "run" / "step_1.safetensors", archives(place)
    with pytest.raises(NotAccepted, match=why) as caught:
        ckzd.compress(checkpoint, replace=True, accept_command=shell(script), accept_seconds=0.3)
    assert "stays" in caught.value.hint
    assert checkpoint.exists()
    assert archives(place) == before
    assert leftovers(place) == []


def test_the_archive_of_another_machine_that_was_first_is_asked_about_too(archived, tmp_path):
    checkpoint = write_checkpoint(tmp_path / "run" / "step_1.safetensors")
    (theirs,) = archives(archived)

    def on_stage(stage, _):
        if stage == "accepted" and not archives(tmp_path):
            directory = Store.open(tmp_path / ".ckzd").run_directory(checkpoint.parent)
            directory.mkdir()
            shutil.copy(theirs, directory)

    asked = tmp_path / "asked"
    once = shell(f"[ ! -e {asked} ] && touch {asked}")
    with pytest.raises(NotAccepted):
        ckzd.compress(checkpoint, preset="lossless", accept_command=once, on_stage=on_stage)
    assert [path.name for path in archives(tmp_path)] == [theirs.name]
    assert leftovers(tmp_path) == []


def test_a_directory_is_given_as_a_directory(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoint-20"
    write_checkpoint(checkpoint / "model.safetensors")
    (checkpoint / "trainer_state.json").write_text('{"global_step": 20}')
    checkpoint.chmod(0o550)
    script = shell('diff -r "$1" "$CKZD_ORIGINAL" && [ "$(basename "$1")" = checkpoint-20 ]')
    report = ckzd.compress(checkpoint, preset="lossless", accept_command=script)
    checkpoint.chmod(0o750)
    assert report.accepted
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"accept_command": "no-such-program --strict"}, "accept_command"),
        ({"accept_command": "sh -c 'exit 0"}, "accept_command"),
        ({"accept_command": ""}, "accept_command"),
        ({"accept_command": "true", "accept_seconds": 0.0}, "accept_seconds"),
        ({"accept_command": "true", "accept_seconds": float("nan")}, "accept_seconds"),
        ({"accept_command": "true", "accept_seconds": float("inf")}, "accept_seconds"),
    ],
)
def test_a_wrong_command_is_named_before_anything_is_made(tmp_path, options, field):
    checkpoint = write_checkpoint(tmp_path / "run" / "step_1.safetensors")
    with pytest.raises(ConfigError) as caught:
        ckzd.compress(checkpoint, **options)
    assert caught.value.subject == field
    assert not (tmp_path / ".ckzd").exists()


def test_room_for_what_the_command_is_given_is_asked_for_first(tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "run" / "step_1.safetensors")
    monkeypatch.setattr(durable, "free_bytes", lambda _: 3 * checkpoint.stat().st_size - 1)
    with pytest.raises(NoSpace):
        ckzd.compress(checkpoint, preset="lossless", accept_command="true")


def test_the_command_line_tells_it(archived, tmp_path, capsys):
    place = Path(shutil.copytree(archived, tmp_path / "copy"))
    arguments = ["compress", str(place / "run"), "--json", "--accept-command"]
    assert cli.run([*arguments, "test -s"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["accepted"], told["already"]) == (True, True)
    assert cli.run([*arguments, shlex.join(REFUSING)]) == 1
    told = json.loads(capsys.readouterr().err)
    assert (told["error"], told["exit_code"]) == ("NotAccepted", 1)
    assert "loss is 9.5" in told["problem"]
