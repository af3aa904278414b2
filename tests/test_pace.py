"""A limit on what is read and written is kept, in every process that works for the daemon."""

import ctypes
import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import write_checkpoint

from ckzd import durable
from ckzd.formats import read_whole
from ckzd.operations.child import run_module
from ckzd.pace import pace, set_pace, took, unpaced
from ckzd.page_cache import forget_file

RATE = 4e6


@pytest.fixture
def limited():
    set_pace(RATE)
    yield
    set_pace(None)


def seconds(work) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began


def test_without_a_limit_nothing_waits():
    assert pace() is None
    assert seconds(lambda: took(1 << 40)) < 0.1


def test_what_is_read_and_written_takes_its_time(tmp_path, limited):
    checkpoint = write_checkpoint(tmp_path / "step_1.safetensors", elements=500_000)  # 2 MB
    read = seconds(lambda: read_whole(checkpoint).sha256())

    def write() -> None:
        with durable.create(tmp_path / "written") as file:
            for _ in range(20):
                file.write(bytes(100_000))

    assert read > 0.2
    assert seconds(write) > 0.2
    assert (tmp_path / "written").stat().st_size == 2_000_000


def test_a_rest_is_not_saved_up(limited):
    """Whoever read nothing for a while may not read all of it at once then."""
    took(1)
    time.sleep(0.6)
    assert seconds(lambda: took(int(0.6 * RATE))) > 0.3


def test_a_process_that_is_started_keeps_to_it(tmp_path, limited, monkeypatch):
    (tmp_path / "told.py").write_text("import ckzd.pace, sys\nsys.exit(ckzd.pace.pace() != 4e6)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    run_module("told", [], subject=tmp_path)


def held(path: Path) -> float:
    """Share of a file's pages that memory holds, by mincore(2): to read a byte would have the kernel read ahead."""
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as pages:
        count = -(-len(pages) // mmap.PAGESIZE)
        told, first = (ctypes.c_ubyte * count)(), ctypes.c_char.from_buffer(pages)
        answer = ctypes.CDLL(None).mincore(ctypes.byref(first), ctypes.c_size_t(len(pages)), told)
        del first
    assert answer == 0
    return sum(page & 1 for page in told) / count


@pytest.fixture
def on_disk() -> Iterator[Path]:
    """A checkpoint on a file system whose pages memory may forget."""
    place = Path(__file__).parent / f".{os.getpid()}.safetensors"
    write_checkpoint(place, elements=500_000)
    durable.fsync_file(place)
    forget_file(place)
    try:
        if held(place) > 0.5:
            pytest.skip("this file system lies in memory")
        yield place
    finally:
        place.unlink()


@pytest.mark.parametrize("before", [0.0, 1.0])
def test_memory_holds_of_a_checkpoint_what_it_held_before(on_disk, before):
    if before:
        on_disk.read_bytes()
    read = read_whole(on_disk)
    read.sha256()
    assert held(on_disk) > 0.9
    read.source.close()
    assert held(on_disk) == pytest.approx(before, abs=0.1)


def test_what_holds_locks_that_others_wait_for_is_not_paced(limited):
    with unpaced():
        assert pace() is None
        assert seconds(lambda: took(1 << 40)) < 0.1
    assert pace() == RATE
