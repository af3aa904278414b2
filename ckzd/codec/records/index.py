"""The index of an archive: its files' layouts, its tensors, and how each tensor is coded.

Two JSON documents, each compressed: `layout` (files, tensors, triples), which hardly changes over a run and is coded
against the reference's, and `codes`. FORMAT.md gives every field. Here they are taken apart; that every tensor is coded
in a way that fits it is for `methods/registry.py` to say.
"""

import json
import struct
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from ckzd.codec import zstd
from ckzd.codec.parsing import read_json
from ckzd.codec.records.holes import MAX_BYTES
from ckzd.codec.records.layout import Layout
from ckzd.streams import StreamRef

MAX_INDEX_BYTES = 1 << 30
MOST_COMPRESSED = 1024  # a layout without a reference's: 10 to 40, names of a thousand characters 150
_FEW_BYTES, _FEW_VALUES = 1 << 16, 64
_BYTES_A_CODE, _VALUES_A_CODE = 192, 16  # of a tensor: method, entry, offset, length, and its step exponent
MAX_STEP = 2.0**128
MAX_STEP_EXPONENT = 64
MAX_REACH = 4000
MAX_SLACK = 14
MAX_COEFFICIENT = 16.0
_LENGTHS = struct.Struct("<II")


class Method(StrEnum):
    """How one tensor is coded."""

    COPY = "copy"  # the bytes of another tensor, named by number
    CAST = "cast"  # the values of another tensor, rounded to a narrower dtype
    SAME = "same"  # the reference's bytes
    EXACT = "exact"  # on its own, exactly
    DELTA = "delta"  # against the reference, exactly
    ULPS = "ulps"  # the same of 16-bit floats that hardly change
    SCALAR = "scalar"  # weight: reference + Fisher-weighted scalar residual
    FRAMED = "framed"  # weight: reference + residual in its adaptive basis; first moment or momentum likewise
    FACTORED = "factored"  # weight: reference + residual as a sum of few outer products
    WHOLE = "whole"  # intra: weight by levels of its own, without a reference
    KMEANS = "kmeans"  # weight: reference + codebook residual; moment: codebook values over zero or the fill
    FILL = "fill"  # second moment: rank 1
    TREND = "trend"  # first moment: what moves the weight as it moved since the reference
    SCALED = "scaled"  # first moment or momentum: levels times the root of the fill; second: half octaves of the fill
    STATE_FILL = "state_fill"  # state that is a variance: the product of scales of its own
    STATE_VARIANCE = "state_variance"  # the same times half octaves
    STATE_MEAN = "state_mean"  # state that is a mean: levels times the root of the product of scales of its own


@dataclass(frozen=True, slots=True)
class Code:
    """A tensor's method and its stream; `other` is the copied tensor's number, else -1."""

    method: Method
    stream: StreamRef | None = None
    other: int = -1


@dataclass(frozen=True, slots=True)
class QuantizationSteps:
    """What one level is worth, by what is coded; 0 where nothing is. Field names are the archive's."""

    step: float = 0.0  # weights' residuals, Fisher-weighted
    whole_step: float = 0.0  # weights without a reference, likewise
    moment_step: float = 0.0  # exp_avg / sqrt(exp_avg_sq)
    momentum_step: float = 0.0  # a momentum without a second moment, over the root of its rank-1 variance
    framed_moment_step: float = 0.0  # exp_avg in its weight's adaptive basis
    framed_momentum_step: float = 0.0  # a lone momentum likewise, over the fourth root of its typical variance


@dataclass(frozen=True, slots=True)
class LinearPrediction:
    """What stands in the place of a weight's reference: a sum of others' values, rounded once to its dtype."""

    other: int  # number of a tensor of its shape
    own: float  # times its own values in the reference
    now: float  # times the other's as this archive restores them
    before: float  # times the other's in the reference


STEPS = tuple(f.name for f in fields(QuantizationSteps))


@dataclass(frozen=True, slots=True)
class Index:
    """Everything but the streams themselves.

    A weight in `step_exponents` has the step of all weights times 2 to the minus so many.
    `zeros` are the tensors with a mask of exact zeros, by number: a weight, or a first moment for all that is kept of
    its weight. None is a mask that is as expected. `reach` is that of all `scales.Scales`, `slack` that of all adaptive
    bases (`algebra.exact.refine`); None in formats that did not know them. `predictions` are of weights, by number.
    """

    layout: Layout
    codes: tuple[Code, ...]
    steps: QuantizationSteps
    step_exponents: Mapping[int, int] = field(default_factory=dict)
    zeros: Mapping[int, StreamRef | None] = field(default_factory=dict)
    reach: int | None = None
    slack: int | None = None
    predictions: Mapping[int, LinearPrediction] = field(default_factory=dict)

    def turns(self) -> tuple[list[int], list[int]]:
        """Reference tensors in the order of their decoding, see `in_turn`."""
        copies = {n: code.other for n, code in enumerate(self.codes) if code.method is Method.COPY}
        dependent = {n for n, code in enumerate(self.codes) if code.method is Method.CAST} | self.predictions.keys()
        return in_turn(self.layout.reference_tensors, dependent, copies)

    def to_bytes(self, reference_layout: bytes) -> bytes:
        """u32 length of the layout block, u32 length of the code block, both blocks (zstd)."""
        codes = [[c.method.value, *(c.stream or ()), *([c.other] if c.other >= 0 else [])] for c in self.codes]
        zeros = [[number, *(stream or ())] for number, stream in self.zeros.items()]
        lists = {
            "halvings": list(self.step_exponents.items()),
            "zeros": zeros,
            "reach": self.reach,
            "slack": self.slack,
            "predictions": [[n, p.other, p.own, p.now, p.before] for n, p in sorted(self.predictions.items())],
        }
        document = {"codes": codes, **asdict(self.steps), **lists}
        blocks = (
            zstd.compress_against(self.layout.to_json(), reference_layout),
            zstd.compress(json.dumps(document, separators=(",", ":")).encode()),
        )
        return _LENGTHS.pack(*map(len, blocks)) + b"".join(blocks)

    @staticmethod
    def from_bytes(data: bytes, reference_layout: bytes, checkpoint_bytes: int = MAX_BYTES) -> "Index":
        """The inverse of `to_bytes`; ValueError, TypeError or KeyError if it is malformed.

        What it may become follows from its own bytes, the reference's layout and the size of the checkpoint.
        """
        block, _ = _blocks(data)
        limit = _FEW_BYTES + 2 * len(reference_layout) + MOST_COMPRESSED * len(block)
        layout = zstd.decompress(block, min(limit, MAX_INDEX_BYTES), reference_layout)
        return Index.with_layout(data, Layout.from_json(layout, checkpoint_bytes))

    @staticmethod
    def with_layout(data: bytes, layout: Layout) -> "Index":
        """An index whose layout is already known, so that no reference is needed; errors as of `from_bytes`."""
        _, block = _blocks(data)
        tensors = len(layout.tensors)
        limit = min(_FEW_BYTES + _BYTES_A_CODE * tensors, MAX_INDEX_BYTES)
        document = read_json(zstd.decompress(block, limit), _FEW_VALUES + _VALUES_A_CODE * tensors)
        codes = tuple(_code(*entry) for entry in document["codes"])
        steps = QuantizationSteps(
            **{name: _step(document.get(name, 0)) for name in STEPS}
        )  # format 1 knows two of them
        halvings, zeros = document.get("halvings", []), document.get("zeros", [])
        reach, slack = (_limited(document, name, most) for name, most in (("reach", MAX_REACH), ("slack", MAX_SLACK)))
        predictions = _predictions(document.get("predictions", []))
        return Index(layout, codes, steps, _step_exponents(halvings), _zeros(zeros), reach, slack, predictions)


def in_turn(
    numbers: Sequence[int], dependent: Container[int], copies: Mapping[int, int]
) -> tuple[list[int], list[int]]:
    """Tensors that follow from no other's values in the same archive, then those that do; each ascending.

    `copies` belong to what they are copies of.
    """
    second = [number for number in numbers if copies.get(number, number) in dependent]
    later = frozenset(second)
    return [number for number in numbers if number not in later], second


def _blocks(data: bytes) -> tuple[bytes, bytes]:
    first, second = _LENGTHS.unpack_from(data)
    if _LENGTHS.size + first + second != len(data):
        raise ValueError(f"expected blocks of {first} and {second} bytes, got {len(data)} bytes in all")
    return data[_LENGTHS.size : _LENGTHS.size + first], data[_LENGTHS.size + first :]


def _code(name: str, *place: str | int) -> Code:
    method = Method(name)
    match place:
        case ():
            return Code(method)
        case (int(other),) if other >= 0:
            return Code(method, other=other)
        case (str(), int(), int()):
            return Code(method, _place(place))
    raise ValueError(f"a tensor coded as {method} at {place!r:.60}")


def _step(value: object) -> float:
    if not isinstance(value, float | int) or not 0 <= value <= MAX_STEP:
        raise ValueError(f"expected a step of 0..2**128, got {value!r:.40}")
    return float(value)


def _step_exponents(pairs: list[list[int]]) -> dict[int, int]:
    """Ascending [number of a weight with a step, count] -> count by number."""
    before = -1
    for number, count in pairs:
        if not (type(number) is type(count) is int and number > before and 0 < count <= MAX_STEP_EXPONENT):
            raise ValueError(
                f"expected step exponents of 1..{MAX_STEP_EXPONENT}, ascending by tensor, got {pairs!r:.60}"
            )
        before = number
    return {number: count for number, count in pairs}  # noqa: C416  # two each, which dict() cannot be told


def _zeros(entries: list[list[Any]]) -> dict[int, StreamRef | None]:
    """Ascending [number] or [number, entry, offset, nbytes] -> where the mask is coded, by number."""
    found: dict[int, StreamRef | None] = {}
    before = -1
    for number, *place in entries:
        if type(number) is not int or number <= before:
            raise ValueError(f"a mask of tensor {number!r:.20}, expected an ascending order")
        before = number
        found[number] = _place(place) if place else None
    return found


def _predictions(entries: list[list[Any]]) -> dict[int, LinearPrediction]:
    """Ascending [number, other, own, now, before] -> by number."""
    found: dict[int, LinearPrediction] = {}
    before = -1
    for number, other, *coefficients in entries:
        if not (type(number) is type(other) is int and number > before and other >= 0 and len(coefficients) == 3):
            raise ValueError(f"expected predictions ascending by tensor, got {entries!r:.60}")
        before = number
        found[number] = LinearPrediction(other, *map(_coefficient, coefficients))
    return found


def _coefficient(value: object) -> float:
    if not isinstance(value, float | int) or not abs(value) <= MAX_COEFFICIENT:
        raise ValueError(f"expected a coefficient of -{MAX_COEFFICIENT}..{MAX_COEFFICIENT}, got {value!r:.40}")
    return float(value)


def _place(place: Sequence[Any]) -> StreamRef:
    match place:
        case (str(entry), int(offset), int(nbytes)):
            return StreamRef(entry, offset, nbytes)
    raise ValueError(f"a stream at {place!r:.60}")


def _limited(document: Mapping[str, object], name: str, most: int) -> int | None:
    value = document.get(name)
    if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most):
        raise ValueError(f"expected a {name} of 0..{most}, got {value!r:.40}")
    return value
