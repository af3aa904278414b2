"""Verbatim: tensors that come back bit for bit, by themselves, against the reference, or as a copy of another one."""

from typing import ClassVar

import numpy as np

from ckzd.checkpoint import STORED_AS, Bytes, RawArray, TensorSpec
from ckzd.codec.dtypes import stored_array, to_numbers
from ckzd.codec.lossless.exact import decode_exact, encode_exact
from ckzd.codec.methods.method import CodingMethod, Streams
from ckzd.codec.records.index import Method
from ckzd.codec.records.layout import Role, plane_shape

_REFERENCE_TENSORS = frozenset({Role.REFERENCE, Role.WEIGHT})


class Verbatim(CodingMethod):
    """A method that loses nothing. `before` are the reference's values of the tensor."""

    needs_reference: ClassVar[bool] = False

    def encoded(self, payload: Bytes, tensor: TensorSpec, before: RawArray | None) -> bytes:
        """The stream of a tensor's bytes."""
        reference = before.tobytes() if self.needs_reference and before is not None else None
        _, columns = plane_shape(tensor.shape)
        return encode_exact(payload, _itemsize(tensor), reference, columns)

    def decoded(self, data: bytes, tensor: TensorSpec, before: RawArray | None) -> Bytes:
        """The inverse of `encoded`; ValueError or IndexError if the bytes cannot be one, or the reference is not."""
        if self.needs_reference and before is None:
            raise ValueError(f"tensor {tensor.path}: the reference does not have it")
        reference = before.tobytes() if self.needs_reference and before is not None else None
        return decode_exact(data, tensor.nbytes, _itemsize(tensor), reference)


class Exact(Verbatim):
    """On its own; the last resort of every role."""

    name = Method.EXACT
    roles = frozenset(Role)


class Delta(Verbatim):
    """Against the reference's values."""

    name = Method.DELTA
    roles = _REFERENCE_TENSORS
    needs_reference = True


class Same(Verbatim):
    """The reference's values."""

    name = Method.SAME
    roles = _REFERENCE_TENSORS
    streams = Streams.NONE
    needs_reference = True

    def decoded(self, data: bytes, tensor: TensorSpec, before: RawArray | None) -> Bytes:  # noqa: ARG002  # no stream
        """The reference's bytes; ValueError if it does not have them."""
        if before is None:
            raise ValueError(f"tensor {tensor.path}: the reference does not have it")
        return before.tobytes()


class Copy(CodingMethod):
    """The bytes of an earlier tensor of this archive, which the index names."""

    name = Method.COPY
    roles = _REFERENCE_TENSORS
    streams = Streams.OTHER


class Cast(CodingMethod):
    """The values of another tensor of this archive, which the index names, in a narrower dtype."""

    name = Method.CAST
    roles = _REFERENCE_TENSORS
    streams = Streams.OTHER


def encoded_exactly(payload: Bytes, tensor: TensorSpec, before: RawArray | None) -> tuple[Method, bytes]:
    """How a tensor is coded exactly, and its stream: against the reference's values where that costs less."""
    if before is None:
        return Method.EXACT, Exact().encoded(payload, tensor, None)
    ways: list[Verbatim] = [Delta()] if _is_change(payload, tensor, before) else [Delta(), Exact()]
    coded = [(way.name, way.encoded(payload, tensor, before)) for way in ways]
    return min(coded, key=lambda each: len(each[1]))


def _is_change(payload: Bytes, tensor: TensorSpec, before: RawArray) -> bool:
    """Whether most elements are nearer to the reference's than to 0, as a NaN never is, and they are not all alike."""
    stored = stored_array(payload, tensor.dtype, tensor.shape)
    values, others = to_numbers(stored, tensor.dtype), to_numbers(before, tensor.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        nearer = int(np.count_nonzero(np.abs(values - others) < np.abs(values)))
    return 2 * nearer > values.size and bool((values != values.flat[0]).any())


def _itemsize(tensor: TensorSpec) -> int:
    """Bytes an element; 1 for an opaque dtype."""
    return STORED_AS[tensor.dtype].itemsize if tensor.dtype in STORED_AS else 1
