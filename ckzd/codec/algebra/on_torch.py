"""Exact linear algebra in torch, on a GPU: the bits of NumPy.

Loaded late, by an encoder that was given a GPU: a proof and a restore are NumPy by definition. torch computes one
operator at a time, so nothing is fused; products in float64 are never done in a shorter format.

# K = matrices that are worked on together, N = directions of each, P = rows of a panel
"""

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ckzd.codec.algebra.exact import Algebra, Order
from ckzd.codec.arrays import Float64
from ckzd.codec.kernels import kernels
from ckzd.codec.kernels.plain import ROW_BITS

_WORK_BITS, _PANEL = 22, 16  # as `kernels.plain.orthonormal` has them
_TOGETHER = 1 << 12  # matrices: all that a batch of tensors has, for every call of a GPU takes microseconds
# Elements (K * N**2) of a stack whose Gram-Schmidt is left to the cores: on a GPU it takes 34 calls a direction of any
# number of matrices: at 6 us a call 50 ms, if they have 256; a core takes 2.4 ms for each. Counted, not measured.
_FEW = 1 << 20


class OnTorch(Algebra[Tensor]):
    """Tensors of float64 on one device. Threads may share it: their calls are queued one behind the other.

    Stacks of `few` elements or less are made orthonormal by the cores.
    """

    def __init__(self, device: str, few: int = _FEW) -> None:
        self._device, self._few = torch.device(device), few
        self._one = torch.full((), 2.0**ROW_BITS, dtype=torch.float64, device=self._device)  # in 2**-18

    def together(self, width: int) -> int:  # noqa: ARG002  # of any
        """As many as there are."""
        return _TOGETHER

    def put(self, values: npt.NDArray[np.generic]) -> Tensor:
        """See `Algebra`; always copied, in its own dtype, which is shorter."""
        return torch.tensor(values, device=self._device).double()

    def get(self, values: Tensor) -> Float64:
        """See `Algebra`; waits for the device."""
        found: Float64 = values.cpu().numpy()
        return found

    def empty_like(self, values: Tensor) -> Tensor:
        """See `Algebra`."""
        return torch.empty_like(values)

    def stacked(self, matrices: Sequence[Tensor]) -> Tensor:
        """See `Algebra`."""
        return torch.stack(list(matrices))

    def shifted(self, values: Tensor, bits: int) -> Tensor:
        """See `Algebra`."""
        return (values * 2.0**bits).round_().add_(0.0)

    def orthonormal(self, rows: Tensor) -> Tensor:
        """See `Algebra`."""
        if rows.numel() <= self._few:
            return self.put(kernels.orthonormal(self.get(rows)))
        done = torch.zeros_like(rows)
        for start in range(0, rows.shape[1], _PANEL):
            panel, before = _scaled(rows[:, start : start + _PANEL]), done[:, :start]
            for _ in range(2):
                shares = self.shifted(panel @ before.mT, -ROW_BITS)
                panel = _scaled(panel - self.shifted(shares @ before, -ROW_BITS))
                self._gram_schmidt(panel, start)
            done[:, start : start + _PANEL] = panel
        return done

    def _gram_schmidt(self, panel: Tensor, start: int) -> None:
        """Make a panel's rows (K, P, N) orthonormal among themselves, in 2**-18, in place."""
        for number in range(panel.shape[1]):
            row, rest = panel[:, number : number + 1], panel[:, number + 1 :]
            square = row @ row.mT
            vanished = square == 0  # instead of asking the device, which would wait
            row[..., start + number : start + number + 1] += vanished
            square += vanished
            row *= torch.true_divide(self._one, square.sqrt_())  # of a number it would be a product: see `exact`
            row.round_()
            shares = self.shifted(rest @ row.mT, -ROW_BITS)
            rest -= (shares.mul_(2.0**-ROW_BITS) * row).round_()

    def largest(self, values: Tensor) -> Float64:
        """See `Algebra`."""
        return self.get(values.abs().amax((1, 2)))

    def ordered(self, rows: Tensor, order: Order) -> Tensor:
        """See `Algebra`."""
        return rows.take_along_dim(torch.tensor(order, device=self._device)[..., None], 1)


def _scaled(rows: Tensor) -> Tensor:
    """Each row (K, P, N) times a power of two, so that its largest magnitude is a number of 22 bits."""
    largest = rows.abs().amax(-1, keepdim=True).clamp_(min=1.0)
    exponents = (
        largest.view(torch.int64) >> 52
    )  # of IEEE 754; those of their units as well, for torch's ldexp is a power
    return (rows * ((2045 + _WORK_BITS - exponents) << 52).view(torch.float64)).round_()


def idle_device(idle: Collection[str]) -> str | None:
    """The first GPU that torch sees whose uuid, as `nvidia-smi` has it, is one of these; None if it sees none."""
    for number in range(torch.cuda.device_count()):
        if f"GPU-{torch.cuda.get_device_properties(number).uuid}" in idle:
            return f"cuda:{number}"
    return None
