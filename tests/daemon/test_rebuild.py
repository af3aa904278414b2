"""A journal that was lost is filled from the store: what stands for what is on disk."""

import os
from contextlib import closing

from making import store_archive
from serving import write_checkpoint

from ckzd.daemon.journal import Journal
from ckzd.daemon.rebuild import rebuild
from ckzd.daemon.states import State
from ckzd.operations.replace import replace
from ckzd.store import Store, default_store


def test_each_name_that_an_archive_stands_for_has_a_row(tmp_path):
    run = tmp_path / "runs" / "gpt"
    paths = [write_checkpoint(run / name, "the same") for name in ("step_1.safetensors", "model.safetensors")]
    kept = write_checkpoint(run / "step_2.safetensors")
    store = Store.open_or_create(default_store(run))
    archive = store_archive(store, paths[0], step=1)
    store_archive(store, kept, step=2)
    os.utime(paths[1], ns=(7, 7))
    for path in paths:
        replace(path, archive, store)
    with closing(Journal(tmp_path / "journal")) as journal:
        rebuild(journal, run, store.archives(run), 1.0)
        rows = {row.path: row for row in journal.rows()}
        assert rows.keys() == set(paths)
        assert {(row.state, row.archive) for row in rows.values()} == {(State.REPLACED, archive)}
        assert rows[paths[1]].identity.mtime_ns == 7
