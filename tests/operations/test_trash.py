"""What a replacement left of itself is read like any file that somebody may have put there."""

import os
from pathlib import Path

import pytest

from ckzd.errors import CorruptArchive
from ckzd.operations.trash import Entry
from ckzd.store import Store


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir, Path.touch])
def test_an_intent_that_is_no_small_file_is_refused_at_once(make, tmp_path):
    store = Store.open_or_create(tmp_path / "store")
    root = store.trash / "x"
    root.mkdir()
    make(root / "intent.json")
    with pytest.raises(CorruptArchive, match=r"intent.json cannot be read"):
        Entry.load(store, root)
