"""One file that is saved over and over, as nanoGPT does: each state is archived, and a torn one is no loss."""

from pathlib import Path

import pytest
from frameworks.jobs import are_equal, daemon, job, run_job, wait_until

import ckzd
from ckzd.operations.compress import default_store
from ckzd.store import Store

pytestmark = pytest.mark.slow

TRAINER = Path(__file__).parent / "nanogpt_trainer.py"


def test_the_state_before_a_torn_one_resumes_as_if_nothing_had_happened(tmp_path):
    run = tmp_path / "own" / "run"
    expected, resumed = tmp_path / "expected.pt", tmp_path / "resumed.pt"
    holds = [run.parent / f"hold_{step}" for step in (15, 25)]

    def steps() -> list[int]:
        store = default_store(run)
        return [record.manifest.step for record in Store.open(store).archives(run)] if store.exists() else []

    with job(TRAINER, tmp_path / "twin", 40, "", expected) as twin:
        run.mkdir(parents=True)
        for hold in holds:
            hold.touch()
        with daemon(run), job(TRAINER, run, 40, "", "") as running:
            for number, hold in enumerate(holds, 1):
                wait_until(lambda number=number: len(steps()) == number, running)
                hold.unlink()
            wait_until(lambda: len(steps()) == len(holds) + 1, running)
            running.kill()
        assert twin.wait() == [0]
    assert steps() == [10, 20, 30]
    assert not list(run.glob("*.ckz")), "the newest state is never replaced"
    file = run / "ckpt.pt"
    file.write_bytes(file.read_bytes()[:-1000])  # as if it had died while it saved
    assert run_job(TRAINER, run, 40, file, tmp_path / "not.pt") != [0]
    second = Store.open(default_store(run)).archives(run)[1]
    ckzd.restore(second.path, output=tmp_path / "ckpt.pt")
    assert run_job(TRAINER, run, 40, tmp_path / "ckpt.pt", resumed) == [0]
    assert are_equal(expected, resumed)
