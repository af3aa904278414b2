"""Whatever is merged, in whatever order: all that is left restores as before, under the same reconstruction ids."""

import random
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from ckzd.chains import read_manifest
from ckzd.errors import ConfigError
from ckzd.operations.compress import compress
from ckzd.operations.merge import merge
from ckzd.operations.prune import Run
from ckzd.operations.verify import VerifyReport, verify_each
from ckzd.store import RUN_FILE, Store

STEPS = tuple(range(10, 80, 10))  # with 3 deltas over a base at most, a branch begins at step 50


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A run whose checkpoints were rotated away, with its store in it."""
    place, draw = tmp_path_factory.mktemp("made"), np.random.default_rng(3)
    run = place / "run"
    run.mkdir()
    weight = draw.standard_normal((32, 48)).astype("f4")
    for step in STEPS:
        weight += 1e-3 * draw.standard_normal(weight.shape).astype("f4")
        path = run / f"step_{step}.safetensors"
        save_file({"weight": weight, "bias": weight.sum(0)}, path)
        compress(path, preset="lossless", store=place / "store", max_depth=3)
        if step != STEPS[-1]:
            path.unlink()
    return place


@pytest.mark.parametrize("seed", range(3))
def test_everything_that_is_left_is_what_it_was(made, tmp_path, seed):
    draw, work = random.Random(seed), tmp_path / "work"
    shutil.copytree(made, work)
    store, run = Store.open(work / "store"), work / "run"
    (store.run_directory(run) / RUN_FILE).unlink()  # it tells that this directory is another one
    ids = {record.path: record.manifest.reconstruction for record in store.archives(run)}
    assert len({record.manifest.reference for record in store.archives(run)}) < len(STEPS), "it branches"
    gone: set[Path] = set()
    for _ in range(5):
        named = draw.sample(sorted(ids.keys() - gone), draw.randint(1, 2))
        size = sum(path.stat().st_size for path in store.run_directory(run).glob("*.ckz"))
        try:
            reports = list(merge(store, Run(run, run), named, day="2026-11-30", now=time.time(), roots=[run]))
        except ConfigError:
            reports = []
        merged = {Path(path) for report in reports for path in report.merged}
        assert merged in (set(), set(named))
        gone |= merged
        left = sorted(store.run_directory(run).glob("*.ckz"))
        assert set(left) == ids.keys() - gone
        assert {path: read_manifest(path).reconstruction for path in left} == {path: ids[path] for path in left}
        assert sum(path.stat().st_size for path in left) <= size + 1000 * len(merged)  # a manifest says a bit more
        outcomes = list(verify_each(left))
        assert {type(outcome) for outcome in outcomes} == {VerifyReport}
        assert len(outcomes) == len(left)
    assert gone
