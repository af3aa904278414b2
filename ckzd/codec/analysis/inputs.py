"""A checkpoint and its reference's reconstruction, tensor by tensor, as the encoder looks at them.

# R = rows, C = columns of a tensor seen as a matrix
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ckzd.checkpoint import STORED_AS, Bytes, Checkpoint, ParamGroup, RawArray, TensorSpec, tiles_of, whole
from ckzd.codec.analysis.contents import Contents, read_contents
from ckzd.codec.arrays import Float64, Numbers
from ckzd.codec.dtypes import stored_array, to_numbers
from ckzd.codec.records.layout import Role, Triple, plane_shape
from ckzd.codec.records.reconstruction import Reconstruction
from ckzd.codec.records.reference_tensors import finite_reference, reference_scales, reference_values
from ckzd.codec.scales import Scales

# What optimizers call another copy of the weight that they keep: a master (apex, Transformer Engine, Megatron), the
# iterate that gradients are not taken at (schedule-free), an average (ASGD), slow weights (Lookahead).
_WEIGHTS_IN_STATE = frozenset({"master_param", "master_params", "fp32_param", "param", "z", "ax", "slow_buffer"})


def _is_weight_in_state(tensor: TensorSpec) -> bool:
    """By the last name, of a tile too."""
    names = [part for part in tensor.path if not part.startswith("[")]
    return bool(names) and names[-1] in _WEIGHTS_IN_STATE


@dataclass(frozen=True)
class Values:
    """One tensor as it was read."""

    tensor: TensorSpec
    stored: RawArray  # in its own shape and dtype

    @cached_property
    def numbers(self) -> Numbers:
        """(R, C), exactly, as kernels take them."""
        return to_numbers(self.stored, self.tensor.dtype).reshape(plane_shape(self.tensor.shape))

    @property
    def matrix(self) -> Float64:
        """(R, C), exactly, widened."""
        return self.numbers.astype(np.float64)


@dataclass(frozen=True)
class TripleValues:
    """A weight and its moments as they were read."""

    weight: Values
    first: Values
    second: Values | None

    def of(self, role: Role) -> Values:
        """What stands in that role."""
        found = self.second if role is Role.SECOND else self.weight if role is Role.WEIGHT else self.first
        assert found is not None, "it has a second moment"
        return found


@dataclass(frozen=True)
class Inputs:
    """What there is before anything is decided."""

    checkpoint: Checkpoint
    reference: Reconstruction | None

    @cached_property
    def reference_tensors(self) -> tuple[int, ...]:
        """Numbers of the tensors that dependents may refer to: floats that are no optimizer state but weights in it."""
        own, tensors = frozenset(self.model_tensors), enumerate(self.checkpoint.tensors)
        return tuple(n for n, t in tensors if n in own or (t.dtype in STORED_AS and _is_weight_in_state(t)))

    @cached_property
    def model_tensors(self) -> tuple[int, ...]:
        """Numbers of the floats that are not under an optimizer: of one at the root only its states are."""
        paths = {optimizer.path or ("state",) for optimizer in self.checkpoint.optimizers}
        return tuple(
            number
            for number, tensor in enumerate(self.checkpoint.tensors)
            if tensor.dtype in STORED_AS and not any(tensor.path[:n] in paths for n in range(len(tensor.path) + 1))
        )

    @cached_property
    def is_reference(self) -> frozenset[int]:
        """Numbers of the reference tensors, to ask whether a tensor is one."""
        return frozenset(self.reference_tensors)

    @cached_property
    def tiles(self) -> dict[int, list[int]]:
        """Numbers of the tiles of each tensor, by that of the first."""
        return tiles_of(self.checkpoint.files, self.checkpoint.tiled)

    @cached_property
    def first_tile(self) -> dict[int, int]:
        """What `tiles` knows a tile's tensor by, for each tile."""
        return {tile: first for first, tiles in self.tiles.items() for tile in tiles}

    @cached_property
    def _groups(self) -> dict[tuple[str, ...], ParamGroup]:
        """By the path of each parameter's state."""
        return {
            (*optimizer.path, "state", key): group
            for optimizer in self.checkpoint.optimizers
            for group in optimizer.groups
            for key in group.ids
        }

    def group_of(self, moment: int) -> ParamGroup | None:
        """The optimizer's group that a tensor of its state belongs to."""
        path = self.tensor(moment).path
        found = (self._groups.get(path[:depth]) for depth in range(len(path)))
        return next((group for group in found if group is not None), None)

    def updates_of(self, moment: int) -> int | None:
        """How often the optimizer that a moment is of says that it moved weights, else what others beside it say.

        Muon does not count. A checkpoint's own number, where none does, may be of anything.
        """
        group = self.group_of(moment)
        if group is not None and group.updates is not None:
            return group.updates
        return max(self._counted, default=self.checkpoint.updates)

    @cached_property
    def _counted(self) -> list[int]:
        groups = [group for optimizer in self.checkpoint.optimizers for group in optimizer.groups]
        return [group.updates for group in groups if group.updates is not None]

    def whole_shape(self, number: int) -> tuple[int, ...]:
        """Shape of a tensor with all its tiles, by the number of the first."""
        return whole([self.tensor(tile) for tile in self.tiles[number]]).shape

    def is_orthogonal(self, triple: Triple) -> bool:
        """Whether a weight's updates are its momentum made orthogonal."""
        group = self.group_of(triple.first) if triple.first is not None and triple.second is None else None
        return group is not None and group.is_orthogonal

    def tensor(self, number: int) -> TensorSpec:
        """Path, dtype and shape of a tensor."""
        return self.checkpoint.tensors[number]

    @cached_property
    def contents(self) -> Contents:
        """What the first reading says; BadCheckpoint where a file's own CRC-32 says that its bytes have rotted."""
        return read_contents(self.checkpoint, self.is_reference, self.before)

    def has_sound_moments(self, triple: Triple) -> bool:
        """Whether a weight's moments are finite, and none of the second ones is below 0, or beneath float32's range."""
        contents = self.contents.tensors
        if not all(contents[number].is_finite for number in triple.moments):
            return False
        return triple.second is None or not (contents[triple.second].has_negative or contents[triple.second].has_tiny)

    def values(self, triple: Triple) -> TripleValues:
        """A weight and its moments, each read once; those that are not sound tell nothing, and are all 0 here.

        So is the first one of a weight alone.
        """
        read = self._values if self.has_sound_moments(triple) else self._nothing
        first = self._nothing(triple.weight) if triple.first is None else read(triple.first)
        return TripleValues(self._values(triple.weight), first, None if triple.second is None else read(triple.second))

    def _nothing(self, number: int) -> Values:
        tensor = self.tensor(number)
        return Values(tensor, np.zeros(tensor.shape, STORED_AS[tensor.dtype]))

    def _values(self, number: int) -> Values:
        return Values(self.tensor(number), self.stored(number))

    def payload(self, number: int) -> Bytes:
        """The original bytes of a tensor."""
        return self.checkpoint.payload(number)

    def stored(self, number: int) -> RawArray:
        """A tensor's values in their stored dtype and own shape."""
        tensor = self.tensor(number)
        return stored_array(self.payload(number), tensor.dtype, tensor.shape)

    def matrix(self, number: int) -> Float64:
        """A tensor's values in float64, (R, C)."""
        return self._values(number).matrix

    def before(self, number: int) -> RawArray | None:
        """The reference's values of it, if it has them in the same dtype and shape."""
        return reference_values(self.tensor(number), self.reference)

    def finite_before(self, number: int) -> RawArray | None:
        """The reference's values of it, if all are finite too: no residual can be taken against others."""
        return finite_reference(self.tensor(number), self.reference)

    def numbers_before(self, number: int) -> Numbers | None:
        """The reference's values of it (R, C) as kernels take them; None where no residual can be taken."""
        tensor, before = self.tensor(number), self.finite_before(number)
        return None if before is None else to_numbers(before, tensor.dtype).reshape(plane_shape(tensor.shape))

    def scales_before(self, number: int) -> Scales | None:
        """The reference's scales of a weight, if it has some of the same lengths."""
        return reference_scales(self.tensor(number), self.reference)

    def reference_blob(self, field: str) -> bytes:
        """What the reference holds under a field alone; empty without a reference."""
        return self.reference.blob(field) if self.reference is not None else b""
