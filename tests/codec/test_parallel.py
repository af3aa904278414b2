"""Many at a time, in order, never more than memory allows; an error ends them all."""

import threading
import time

import pytest
from codec.chains import Zoo, compressed_run, decode

from ckzd.codec import parallel
from ckzd.codec.analysis.tiles import MAX_ELEMENTS
from ckzd.codec.parallel import in_batches, in_order, threads


@pytest.fixture(params=[1, 2, 5])
def count(request, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", str(request.param))
    return request.param


def test_results_come_in_the_order_of_the_items(count):
    def slow_first(item):
        time.sleep(0.02 / (1 + item))
        return item * item

    assert list(in_order(slow_first, range(20), lambda _: 1)) == [item * item for item in range(20)]
    assert list(in_order(slow_first, [], lambda _: 1)) == []


def test_threads_end_when_nobody_wants_more_results(count):
    """Whoever takes them may fail between two, and what it failed with may be held for long."""
    before = threading.active_count()
    results = in_batches(list, range(50), lambda _: parallel._ELEMENTS_A_BATCH)
    assert next(results) == 0
    assert threading.active_count() > before or count == 1
    results.close()
    assert threading.active_count() == before


def test_no_more_are_in_work_than_there_are_threads_and_room(count, monkeypatch):
    monkeypatch.setattr(parallel, "_ELEMENTS_A_THREAD", 4)
    monkeypatch.setattr(parallel, "_LEAST", 1)
    lock, now, most = threading.Lock(), [], []

    def watched(size):
        with lock:
            now.append(size)
            most.append((len(now), sum(now)))
        time.sleep(0.002)
        with lock:
            now.remove(size)

    list(in_order(watched, [1, 1, 1, 3, 9, 1, 50, 1, 4, 4] * 3, lambda size: size))
    assert max(many for many, _ in most) <= count
    assert all(total <= 4 * count or many == 1 for many, total in most)


def test_small_ones_between_two_slabs_do_not_make_the_second_wait(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    both = threading.Barrier(2, timeout=5)

    def meeting(size):
        return both.wait() if size == MAX_ELEMENTS else 0

    layer = [MAX_ELEMENTS, *[64] * 8]  # a weight, then biases and norms
    list(in_order(meeting, layer * 2, lambda size: size))


def test_an_error_comes_out_and_the_rest_is_left_undone(count):
    done = []

    def failing(item):
        if item == 3:
            raise ValueError(item)
        done.append(item)
        return item

    found = in_order(failing, range(1000), lambda _: MAX_ELEMENTS)
    with pytest.raises(ValueError, match="3"):
        list(found)
    assert len(done) < 20


def test_how_many_threads(monkeypatch):
    for said, expected in (("3", 3), ("0", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert threads() == expected
    for said in ("", "4,2", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert threads() >= 1
    monkeypatch.setattr(parallel, "cores", lambda: 200)
    assert threads() == 16


@pytest.mark.parametrize("preset", ["resume", "paper", "lossless"])
def test_an_archive_is_the_same_on_any_number_of_threads(tmp_path, monkeypatch, preset):
    """And so is what a decoder makes of it."""
    zoo, paths = Zoo(), []
    for number in range(2):
        zoo.advance()
        paths.append(zoo.save(tmp_path / f"step_{number}.pt"))
    found = []
    for count in (1, 3):
        monkeypatch.setenv("OMP_NUM_THREADS", str(count))
        base, delta = compressed_run(paths, preset)
        found.append((base.fingerprint(), delta.fingerprint(), decode(delta, base)))
    assert found[0] == found[1]
