"""The daemon with a base model: handed on, never replaced, and what waits for it is no damage."""

import pytest
from making import put, store_archive
from serving import archive_by_hand, named, settings_for, write_checkpoint

from ckzd.daemon.jobs import Done
from ckzd.daemon.stores import Stores
from ckzd.errors import MissingBaseModel
from ckzd.store import Store


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
    daemon = serving(make_daemon, None, keep_raw=0)
    model, _ = daemon.write(1, 2)
    named(model, Store.open_or_create(tmp_path / "other" / ".ckzd"))
    daemon.go(120)
    later(daemon)
    assert daemon.raw() == ["step_1"]
    assert "the base model of archives in" in daemon.why("step_1")
    assert daemon.status()["replacing_stopped"] is None


def test_why_a_run_is_a_base_is_in_the_status(make_daemon, model):
    daemon = serving(make_daemon, model)
    report = {}

    def behave(job):
        if job.kind != "compress" or report.get("said"):
            return None
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


def test_an_archive_that_a_base_model_may_be_restored_from_is_not_dropped(tmp_path, clock):
    run = tmp_path / "runs" / "gpt"
    run.mkdir(parents=True)
    stores = Stores(clock)
    root = stores.open(run, settings_for(tmp_path).watch[0])
    model = write_checkpoint(run / "step_1.safetensors")
    kept = store_archive(Store.open(root), model, step=1)
    others = [put(Store.open(root), run, step, mtime_ns=10**18 + step) for step in (200, 300)]
    named(model, Store.open_or_create(tmp_path / "other" / ".ckzd"))
    model.unlink()
    assert stores.drop(root, run, [kept, *others], 1) == [others[0]]
    stores.close()


def test_a_watch_may_name_a_model_that_is_not_there_yet(tmp_path):
    assert settings_for(tmp_path, base_model=tmp_path / "nowhere").watch[0].base_model == tmp_path / "nowhere"
