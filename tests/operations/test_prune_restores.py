"""Whatever is configured and whatever points to what: all that pruning leaves restores, and what is kept is left."""

import hashlib
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving import write_checkpoint

from ckzd.operations.compress import compress
from ckzd.operations.pointer import pointer_for
from ckzd.operations.prune import Run, prune
from ckzd.operations.restore import restore
from ckzd.retention import Quota, Rules
from ckzd.store import Store

STEPS = tuple(range(10, 70, 10))  # a base, two deltas against it, and so on
ANY = st.sets(st.sampled_from(STEPS))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, dict[int, str]]:
    """A run of replaced checkpoints beside its store; what each was."""
    place = tmp_path_factory.mktemp("made")
    originals = {}
    for step in STEPS:
        path = write_checkpoint(place / "runs" / "gpt" / f"step_{step}.safetensors", elements=8192)
        originals[step] = hashlib.sha256(path.read_bytes()).hexdigest()
        compress(path, preset="lossless", max_depth=2, replace=True)
    return place, originals


RULES = st.builds(
    Rules,
    st.one_of(st.none(), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(1, 50)),
    st.one_of(st.none(), st.sampled_from([0, 10])),
)


@given(RULES, st.one_of(st.none(), st.integers(0, 80_000)), st.tuples(ANY, ANY, ANY))
@settings(max_examples=12, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_everything_that_is_left_restores(made, tmp_path, rules, max_bytes, steps):
    place, originals = made
    rotated, copied, marked = steps
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(place, work)
    run = work / "runs" / "gpt"
    store, checkpoints = Store.open(run.parent / ".ckzd"), {step: run / f"step_{step}.safetensors" for step in STEPS}
    (work / "runs" / "kept").mkdir()
    for step in copied:
        shutil.copy(pointer_for(checkpoints[step]), work / "runs" / "kept" / f"{step}.ckz")
    for step in rotated:
        pointer_for(checkpoints[step]).unlink()

    report = prune(
        store,
        [Run(run, run.parent, rules)],
        roots=[run.parent],
        now=time.time() + 5 * 86400,
        quota=Quota(max_bytes),
        markers=lambda _, paths: {path: "marked" for path in paths if path in {checkpoints[s] for s in marked}},
    )

    left = {record.manifest.step: record.path for record in store.archives(run)}
    assert {judged.step for judged in report.judged if not judged.goes} == left.keys()
    assert left.keys() >= marked | copied | {max(STEPS)}
    if rules.newest is None and rules.days is None:
        assert left.keys() >= set(STEPS) - rotated
    for step, archive in left.items():
        out = work / "out"
        out.unlink(missing_ok=True)
        restore(archive, output=out)
        assert hashlib.sha256(out.read_bytes()).hexdigest() == originals[step]
    standing = {step for step in STEPS if pointer_for(checkpoints[step]).exists()}
    assert standing == left.keys() - rotated
