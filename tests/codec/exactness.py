"""Arrays that look at every matrix product: how large its partial sums can get, and what another order makes of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

_state: dict = {"largest": [0.0], "order": None}


class Watched(np.ndarray):
    """Float64 whose products are watched; what is computed from one is one."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        plain = [np.asarray(value) if isinstance(value, Watched) else value for value in inputs]
        if out is not None:
            options["out"] = tuple(np.asarray(value) if isinstance(value, Watched) else value for value in out)
        if ufunc is np.matmul and method == "__call__":
            found = _product(*plain)
        else:
            found = getattr(ufunc, method)(*plain, **options)
        if out is not None:
            return out[0]
        return watched(found) if isinstance(found, np.ndarray) else found


def watched(array) -> Watched:
    return np.asarray(array).view(Watched)


@contextmanager
def largest_sum(order: str | None = None) -> Iterator[list[float]]:
    """The largest sum of magnitudes seen in a product so far; sums are taken in the given order."""
    _state.update(largest=[0.0], order=order)
    yield _state["largest"]
    _state["order"] = None


def _product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    for side in (left, right):
        assert np.array_equal(side, np.rint(side)), "a product of numbers that are no integers"
    bound = np.abs(left) @ np.abs(right)  # no partial sum in any order is beyond it
    _state["largest"][0] = max(_state["largest"][0], float(np.max(bound, initial=0.0)))
    if _state["order"] == "backwards":
        return left[..., ::-1] @ right[..., ::-1, :]
    if _state["order"] == "sevens":
        parts = [left[..., k : k + 7] @ right[..., k : k + 7, :] for k in range(0, left.shape[-1], 7)]
        return sum(parts[::-1], start=np.zeros_like(left @ right))
    return left @ right
