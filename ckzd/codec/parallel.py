"""Many tensors at a time, their results in order.

NumPy and the BLAS let go of the interpreter while they work, so threads are enough. Each has a tensor of its own: on
one matrix they would wait for each other. Nothing of an archive depends on how many there are. They end with the
results, or when these are closed.
"""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from typing import TypeVar

from threadpoolctl import ThreadpoolController

from ckzd.cores import cores

T = TypeVar("T")
R = TypeVar("R")

_MOST = 16  # each takes memory, and with more the interpreter is what they wait for
_ELEMENTS_A_BATCH = 1 << 20  # about 32 blocks of a basis
# In work, waiting for it, or done before their turn; or one tile of long rows. Two tiles a thread are enough that none
# waits for the one before it, and memory does not grow with the checkpoint.
_ELEMENTS_A_THREAD = 1 << 23
_LEAST = 1 << 18  # what a tensor counts at least


def threads() -> int:
    """How many: OMP_NUM_THREADS if it is a number, as the daemon sets it; else the cores that we may use, up to 16."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, int(said)) if said.isdecimal() else min(cores(), _MOST)


def set_threads(count: int) -> None:
    """How many it is from now on, here and in processes that are started from here."""
    os.environ["OMP_NUM_THREADS"] = str(count)


def one_blas_thread() -> AbstractContextManager[object]:
    """The BLAS does not start threads of its own meanwhile: beside a busy job they wait for each other."""
    limited: AbstractContextManager[object] = ThreadpoolController().limit(limits=1)
    return limited


def in_order(work: Callable[[T], R], items: Iterable[T], elements: Callable[[T], int]) -> Generator[R, None, None]:
    """`work` of every item, in the order of the items; `elements` says how much each is."""
    count = threads()
    if count == 1:
        with one_blas_thread():
            yield from map(work, items)
        return
    with one_blas_thread(), ThreadPoolExecutor(count) as pool:
        ahead: deque[tuple[Future[R], int]] = deque()
        try:
            for item in items:
                size = max(elements(item), _LEAST)
                while ahead and sum(each for _, each in ahead) + size > count * _ELEMENTS_A_THREAD:
                    yield ahead.popleft()[0].result()
                ahead.append((pool.submit(work, item), size))
            while ahead:
                yield ahead.popleft()[0].result()
        finally:
            for future, _ in ahead:
                future.cancel()


def in_batches(
    work: Callable[[list[T]], list[R]], items: Iterable[T], elements: Callable[[T], int]
) -> Generator[R, None, None]:
    """Results in the order of the items, of `work` that takes several at a time: small ones are faster together."""

    def all_elements(batch: list[T]) -> int:
        return sum(elements(item) for item in batch)

    with closing(in_order(work, _batches(items, elements), all_elements)) as batches:
        for batch in batches:
            yield from batch


def _batches(items: Iterable[T], elements: Callable[[T], int]) -> Iterator[list[T]]:
    batch: list[T] = []
    size = 0
    for item in items:
        more = elements(item)
        if batch and size + more > _ELEMENTS_A_BATCH:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += more
    if batch:
        yield batch
