"""The daemon with a base model: handed on, never replaced, and what waits for it is no damage."""

import pytest
from serving import settings_for, write_checkpoint

from ckzd.base_models import notes_in
from ckzd.daemon.jobs import Done
from ckzd.errors import MissingBaseModel


@pytest.fixture
def model(tmp_path):
    return write_checkpoint(tmp_path / "models" / "pretrained.safetensors")


def serving(make_daemon, model, **options):
    daemon = make_daemon(base_model=model, **options)
    daemon.service.start()
    return daemon


def later(daemon) -> None:
    daemon.clock.sleep(4000)
    daemon.go(200)


def test_it_goes_with_each_compression(make_daemon, model):
    daemon = serving(make_daemon, model)
    daemon.write(1, 2)
    daemon.go()
    compressions = [job for job in daemon.executor.began if job.kind == "compress"]
    assert {job.base_model for job in compressions} == {model}


def test_what_waits_for_it_is_not_damaged_and_originals_stay(make_daemon, model, tmp_path):
    daemon = serving(make_daemon, model, keep_raw=1, trash_seconds=10**6)
    daemon.write(1)
    daemon.go()
    model.rename(tmp_path / "away")
    daemon.write(2, 3)
    daemon.go(90)
    later(daemon)

    assert daemon.raw() == ["step_1", "step_3"]  # step 2 is of a base of its own
    assert daemon.executor.names("compress").count("step_1.safetensors") == 1
    assert daemon.status()["damaged_archives"] == []
    assert daemon.metric("ckzd_damaged_archives") == 0
    assert daemon.status()["waiting_archives"] == [str(daemon.row("step_1").archive)]
    assert "base model" in daemon.why("step_1")
    (tmp_path / "away").rename(model)
    later(daemon)
    assert daemon.raw() == ["step_3"]


def test_what_is_in_the_trash_stays_there_while_it_is_away(make_daemon, model, tmp_path):
    daemon = serving(make_daemon, model, keep_raw=0, trash_seconds=100)
    daemon.write(1)
    daemon.go(40)
    (store,) = daemon.service._stores._opened.values()
    assert daemon.pointers() == ["step_1"]
    model.rename(tmp_path / "away")
    later(daemon)
    assert len(list(store.store.trash.iterdir())) == 1
    assert daemon.pointers() == ["step_1"]
    (tmp_path / "away").rename(model)
    later(daemon)
    assert list(store.store.trash.iterdir()) == []


def test_a_checkpoint_of_the_same_run_is_never_replaced(make_daemon, tmp_path):
    model = write_checkpoint(tmp_path / "runs" / "gpt" / "step_1.safetensors")
    daemon = serving(make_daemon, model, keep_raw=1)
    daemon.write(2, 3, 4)
    daemon.go(120)
    later(daemon)
    assert daemon.raw() == ["step_1", "step_4"]
    assert "base_model" in daemon.why("step_1")


def test_nor_is_one_that_archives_of_a_store_name_that_no_watch_is_of(make_daemon, tmp_path):
    """Its own run was fine-tuned by hand; the watch says nothing of it."""
    from serving import named

    from ckzd.store import Store

    daemon = serving(make_daemon, None, keep_raw=0)
    model, _ = daemon.write(1, 2)
    named(model, Store.open_or_create(tmp_path / "other" / ".ckzd"))
    daemon.go(120)
    later(daemon)
    assert daemon.raw() == ["step_1"]
    assert "archives in" in daemon.why("step_1")
    assert daemon.status()["replacing_stopped"] is None


def test_why_a_run_is_a_base_is_in_the_status(make_daemon, model):
    daemon = serving(make_daemon, model)
    report = {}

    def behave(job):
        if job.kind != "compress" or report.get("said"):
            return None
        from serving import archive_by_hand

        report["said"] = True
        return Done(job, archive_by_hand(job) | {"without_base_model": "base_model: /models/x is not there"})

    daemon.executor.behave = behave
    daemon.write(1)
    daemon.go()
    (said,) = daemon.status()["without_base_model"]
    assert said == {"run": str(daemon.run), "says": "archived as a base: base_model: /models/x is not there"}


def test_what_is_to_be_made_anew_against_it_is_tried_until_it_is_there(make_daemon, model):
    daemon = serving(make_daemon, model)
    daemon.executor.behave = lambda job: MissingBaseModel("x.ckz", "is away") if job.kind == "compress" else None
    daemon.write(1)
    daemon.go()
    for _ in range(5):
        later(daemon)
    assert daemon.states() == {"step_1": "settled"}
    daemon.executor.behave = lambda _: None
    later(daemon)
    assert daemon.states() == {"step_1": "verified"}


def test_an_archive_that_a_base_model_may_be_restored_from_is_not_dropped(make_daemon, tmp_path):
    from serving import named

    from ckzd.store import Store

    daemon = serving(make_daemon, None, on_rotate="drop", keep_raw=5)
    model, *_ = daemon.write(1, 2, 3)
    daemon.go(90)
    archive, other = daemon.row("step_1").archive, daemon.row("step_2").archive
    root = tmp_path / "other" / ".ckzd"
    named(model, Store.open_or_create(root))
    for step in (1, 2):
        (daemon.run / f"step_{step}.safetensors").unlink()
    later(daemon)
    assert archive.exists()
    assert notes_in(root)
    assert other.exists()  # step 3 needs it


def test_a_watch_may_name_a_model_that_is_not_there_yet(tmp_path):
    assert settings_for(tmp_path, base_model=tmp_path / "nowhere").watch[0].base_model == tmp_path / "nowhere"
