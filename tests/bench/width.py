"""What a parameter costs in wide and narrow layers: square matrices of growing width.

usage: width.py [--widths 256 512 1024 2048 4096]
For each width the CPU seconds a million parameters, on one thread, of what could grow with a matrix: into the basis,
levels, back, and the basis's learning (of a second residual: it has learned before). Bar: at most linear in the width.
"""

import argparse
import json
import math
import time

import numpy as np
from machine import machine

from ckzd.checkpoint import TensorSpec
from ckzd.codec.methods.basis import BasisWeight
from ckzd.codec.methods.method import Coded, KnownWeight
from ckzd.codec.parallel import one_blas_thread
from ckzd.codec.records.reference_tensors import with_tracked_bases
from ckzd.codec.scales import Scales
from ckzd.codec.transform import quantize
from ckzd.codec.transform.adaptive_basis import AdaptiveBasis, in_fine_units

PARAMETERS = 1 << 24  # the widest that is measured, once
RANK, STEP = 16, 1.0


def residual(width: int, seed: int) -> np.ndarray:
    """Low rank and noise, (width, width), in units of the quantizer's step."""
    draw = np.random.default_rng(seed)
    signal = draw.normal(size=(width, RANK)) @ draw.normal(size=(RANK, width)) / math.sqrt(RANK)
    return 0.5 * signal + 0.3 * draw.normal(size=(width, width))


def seconds(width: int) -> float:
    """CPU seconds of coding one matrix of this width."""
    none = np.zeros(width, np.int16)
    scales, before = Scales(none, none), np.zeros((width, width), np.float32)

    def coded(basis: AdaptiveBasis, weighted: np.ndarray) -> AdaptiveBasis:
        known = KnownWeight(TensorSpec(("w",), "float32", (width, width), before.nbytes), None, scales)
        vars(known).update(before=before, basis=basis)  # as if a reference held them
        fixed = in_fine_units(weighted, STEP)
        assert fixed is not None
        code = quantize.quantize_scalar(basis.gained(fixed), 1.0, 0.5)
        restored = BasisWeight().restored(Coded(code.centres, code.levels), known, STEP)
        (tensor,) = with_tracked_bases([restored])
        assert tensor is not None
        assert tensor.basis is not None
        return tensor.basis

    basis, second = coded(AdaptiveBasis.unknown(width, width), residual(width, 0)), residual(width, 1)
    started = time.process_time()
    coded(basis, second)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", nargs="+", type=int, default=[256, 512, 1024, 2048, 4096])
    print(json.dumps(machine()))
    with one_blas_thread():
        for width in parser.parse_args().widths:
            times = [seconds(width) for _ in range(max(1, PARAMETERS // width**2 // 8))]
            print(json.dumps({"width": width, "seconds_a_million": round(min(times) / width**2 * 1e6, 3)}), flush=True)


if __name__ == "__main__":
    main()
