"""The short form of flips.py, and that it sees what is lost."""

from pathlib import Path

from crash.flips import flip_all, is_replaced, trained

import ckzd
from ckzd.store import Store, default_store


def test_nothing_is_replaced_on_top_of_a_flipped_bit(tmp_path):
    bits, lost = flip_all(tmp_path, every=997)
    assert bits > 50
    assert lost == 0


def test_a_replacement_is_seen(tmp_path):
    (checkpoint,) = trained(tmp_path / "run", 1)
    archive, content = Path(ckzd.compress(checkpoint).archive), checkpoint.read_bytes()
    store = Store.open(default_store(tmp_path / "run"))
    assert is_replaced(checkpoint, archive, store, content)
    assert checkpoint.read_bytes() == content
