"""Which tensors a torch storage consists of: the views of it that lie in one piece and do not overlap, and the rest.

Flattened parameters, buckets of gradients and cuDNN's recurrent weights are many tensors in one storage.
"""

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from ckzd.checkpoint import STORED_AS, TensorSpec
from ckzd.formats.parsed import SMALL_STORAGE_BYTES
from ckzd.formats.survey import StorageUse
from ckzd.formats.torch_objects import DTYPE_BYTES
from ckzd.formats.tree import TensorRef, Trail

_MANY, _MEAN_BYTES = 64, 1 << 12  # of views in one storage: rows that were saved one by one are no tensors
REST = "<rest>"  # last in the path of what is no view


@dataclass(frozen=True, slots=True)
class Part:
    """Bytes [start, start + nbytes) of a storage. `place` is where in the pickle they are first referred to."""

    start: int
    tensor: TensorSpec
    place: int
    is_rest: bool = False  # no view is all of it


@dataclass(frozen=True, slots=True)
class _Extent:
    """Bytes [start, stop) of a storage that a view covers once, as an array of `shape`."""

    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]
    place: int
    trail: Trail


def parts_of(use: StorageUse, nbytes: int, optimizers: Container[tuple[str, ...]], subject: str) -> list[Part]:
    """What a storage consists of, without gap or overlap: itself, or views of floats and what lies between them.

    `optimizers` are the paths of those in the file.
    """
    extents = _large(_extents(use, nbytes)) if nbytes >= SMALL_STORAGE_BYTES else []
    place, trail = use.first
    path, dtype = trail.path(subject), _dtype(use)
    if not extents:
        return [whole(use, nbytes, subject)]
    rest = _path_of_rest(path, optimizers)
    parts: list[Part] = []
    end = 0
    for extent in extents:
        if extent.start > end:
            parts.append(Part(end, _spec(rest, dtype, extent.start - end), place, is_rest=True))
        tensor = TensorSpec(extent.trail.path(subject), extent.dtype, extent.shape, extent.stop - extent.start)
        parts.append(Part(extent.start, tensor, extent.place))
        end = extent.stop
    if end < nbytes:
        parts.append(Part(end, _spec(rest, dtype, nbytes - end), place, is_rest=True))
    return parts


def whole(use: StorageUse, nbytes: int, subject: str) -> Part:
    """A storage in one part, whatever views it."""
    place, trail = use.first
    tensor = _spec(trail.path(subject), _dtype(use), nbytes)
    return Part(0, replace(tensor, shape=_strided_shape(use, tensor)), place)


def _strided_shape(use: StorageUse, tensor: TensorSpec) -> tuple[int, ...]:
    """A storage of which views show slices, as columns of a matrix: its rows are as long as their strides say."""
    sliced = [view for view in use.views if _memory_shape(view) is None] if tensor.dtype in STORED_AS else []
    for view in sliced:
        steps = sorted({step for size, step in zip(view.shape, view.stride, strict=True) if size > 1}, reverse=True)
        sides = [*pairwise([tensor.elements, *steps])]
        if len(steps) > 1 and steps[-1] == 1 and not any(longer % step for longer, step in sides):
            return tuple(longer // step for longer, step in sides)
    return tensor.shape


def _dtype(use: StorageUse) -> str:
    """Of all views; opaque bytes where they disagree or nobody knows it."""
    found = {view.dtype for view in use.views} or {use.ref.dtype}
    return found.pop() if len(found) == 1 and not use.several_dtypes else "uint8"


def _spec(path: tuple[str, ...], dtype: str, nbytes: int) -> TensorSpec:
    """Bytes without a shape: flat, opaque ones counted."""
    if dtype not in DTYPE_BYTES or nbytes % DTYPE_BYTES[dtype]:
        dtype = "uint8"
    elements = nbytes // DTYPE_BYTES[dtype] if dtype in STORED_AS else nbytes
    return TensorSpec(path, dtype, (elements,), nbytes)


def _path_of_rest(path: tuple[str, ...], optimizers: Container[tuple[str, ...]]) -> tuple[str, ...]:
    """Beside the tensors of an optimizer it stays out of their states, whose tensors are told by their names."""
    above = (path[:depth] for depth in range(len(path), -1, -1))
    return (*next((start for start in above if start in optimizers), path), REST)


def _extents(use: StorageUse, nbytes: int) -> list[_Extent]:
    """What views of floats cover; of several that cover the same, the first with the most dimensions."""
    found: dict[tuple[int, int], _Extent] = {}
    for view, (place, trail) in use.views.items():
        shape = _memory_shape(view)
        if shape is None or view.dtype not in STORED_AS:
            continue
        start, stop = _span(view, nbytes)
        before = found.get((start, stop))
        if before is None or len(shape) > len(before.shape):
            found[start, stop] = _Extent(start, stop, view.dtype, shape, place, trail)
    large = [extent for extent in found.values() if extent.stop - extent.start >= SMALL_STORAGE_BYTES]
    if use.several_dtypes or not large:
        return []
    others = _Spans(use, nbytes)
    return [extent for extent in large if extent.stop <= nbytes and not others.meet(extent)]


def _memory_shape(view: TensorRef) -> tuple[int, ...] | None:
    """The sizes in the order in which memory runs through them, if the view covers its elements once; else None.

    Dimensions of size 1 keep their places: their strides mean nothing.
    """
    moving = [axis for axis, size in enumerate(view.shape) if size != 1]
    ordered = sorted(moving, key=lambda axis: -view.stride[axis])
    expected = 1
    for axis in reversed(ordered):
        if view.stride[axis] != expected:
            return None
        expected *= view.shape[axis]
    shape = list(view.shape)
    for place, axis in zip(moving, ordered, strict=True):
        shape[place] = view.shape[axis]
    return tuple(shape)


def _span(view: TensorRef, nbytes: int) -> tuple[int, int]:
    """The bytes from a view's first to its last; of one whose elements nobody knows, all of its storage."""
    if not view.element_bytes:
        return 0, nbytes
    if not all(view.shape):
        return 0, 0
    last = view.offset + sum((size - 1) * step for size, step in zip(view.shape, view.stride, strict=True))
    return view.offset * view.element_bytes, (last + 1) * view.element_bytes


class _Spans:
    """Where views of each dtype lie: what is seen as two kinds of numbers may lose precision as neither."""

    def __init__(self, use: StorageUse, nbytes: int) -> None:
        spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for view in use.views:
            spans[view.dtype].append(_span(view, nbytes))
        self._starts: dict[str, list[int]] = {}
        self._furthest: dict[str, list[int]] = {}  # the largest stop of so many spans, by their starts
        for dtype, found in spans.items():
            found.sort()
            self._starts[dtype] = [start for start, _ in found]
            self._furthest[dtype] = list(accumulate((stop for _, stop in found), max, initial=0))

    def meet(self, extent: _Extent) -> bool:
        """Whether a view of another dtype overlaps it."""
        return any(
            self._furthest[dtype][bisect_left(starts, extent.stop)] > extent.start
            for dtype, starts in self._starts.items()
            if dtype != extent.dtype
        )


def _large(extents: Sequence[_Extent]) -> list[_Extent]:
    """Those of `_apart`, of large ones alone where they are many and small: a name for each would cost more."""
    found = _apart(extents)
    if len(found) > _MANY and sum(extent.stop - extent.start for extent in found) < _MEAN_BYTES * len(found):
        return _apart([extent for extent in extents if extent.stop - extent.start >= _MEAN_BYTES])
    return found


def _apart(extents: Sequence[_Extent]) -> list[_Extent]:
    """Those that together cover most without overlap, in order.

    A flat one that holds others counts half: where these cover half of it or more, it is only the storage that they lie
    in. A matrix that holds others is what an optimizer knows: its slices must cover more than it does.
    """
    ordered = sorted(extents, key=lambda extent: (extent.stop, -extent.start))
    stops = [extent.stop for extent in ordered]
    holds = _holding(extents)
    best = [(0, 0)]  # twice the bytes or so, and the number, of the best choice among so many
    for extent in ordered:
        weight = 2 * (extent.stop - extent.start)
        if (extent.start, extent.stop) in holds:
            weight = weight + 1 if len(extent.shape) > 1 else weight // 2
        covered, count = best[bisect_right(stops, extent.start)]
        best.append(max(best[-1], (covered + weight, count + 1)))
    chosen: list[_Extent] = []
    at = len(ordered)
    while at:
        if best[at] == best[at - 1]:
            at -= 1
        else:
            chosen.append(ordered[at - 1])
            at = bisect_right(stops, ordered[at - 1].start)
    return chosen[::-1]


def _holding(extents: Sequence[_Extent]) -> set[tuple[int, int]]:
    """Start and stop of those that hold another one."""
    ordered = sorted(((extent.start, extent.stop) for extent in extents), key=lambda each: (each[0], -each[1]))
    ends = list(accumulate((stop for _, stop in reversed(ordered)), min))[::-1]  # the first end from here on
    return {each for each, end in zip(ordered, ends[1:], strict=False) if end <= each[1]}
