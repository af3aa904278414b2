"""Which archives `on_rotate = "drop"` may delete: of names that are gone, all of them, for long."""

from pathlib import Path

import pytest

from ckzd.daemon.identity import Identity
from ckzd.daemon.rotate import MIN_GONE_SECONDS, _unwanted
from ckzd.daemon.states import Row, State

RUN, NOW, LONG_AGO = Path("/runs/gpt"), 10_000.0, 10_000.0 - 2 * MIN_GONE_SECONDS


def row(number, name, state=State.ROTATED, changed=LONG_AGO, archive="step_2.ckz"):
    found = dict.fromkeys(Row.__dataclass_fields__, 0)
    found |= {"number": number, "run": RUN, "path": RUN / name, "identity": Identity(1, 2, 3), "state": state}
    return Row(**found | {"archive": archive and Path("/store", archive), "changed": changed})


@pytest.mark.parametrize(
    ("other", "dropped"),
    [
        (row(2, "best.pt"), True),
        (row(2, "best.pt", changed=NOW - 10), False),  # only just out of sight
        (row(2, "best.pt", State.REPLACED), False),
        (row(2, "step_2.pt", State.SEEN, archive=None), False),  # what it is will show
        (row(2, "step_3.pt", State.SEEN, archive=None), True),
    ],
)
def test_an_archive_of_several_names_goes_with_the_last_of_them(other, dropped):
    rows = [row(1, "step_2.pt"), other]
    found = _unwanted(rows, NOW, 1.0)
    assert bool(found) is dropped
    if dropped:
        assert found[Path("/store/step_2.ckz")] == [each for each in rows if each.archive is not None]
